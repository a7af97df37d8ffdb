"""What a sweep asks of a cluster: the keys of `hydra/launcher=slurm`, named as submitit names them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from emosteer.errors import EmosteerError

OURS = ("workers", "cells_per_claim", "max_attempts", "wait", "python", "finaliser")
"""What is not for sbatch."""
MOST_WORKERS = 4096


@dataclass
class SlurmOptions:
    """What one worker gets, how many there are, and what this site wants besides."""

    workers: int = 2
    """Processes that share the sweep, each with a model of its own: tasks of a job array. They start and end independently."""
    cells_per_claim: int | None = None
    """Cells that a worker runs together; null takes worker.cells_per_claim."""
    max_attempts: int = 3
    """A cell during which so many workers were lost is given up, and what the cluster lost is submitted again so often."""
    wait: bool = False
    """Stay until the sweep is finished, and show how it goes; searches (objective.column) always stay."""
    python: str | None = None
    """Shell words that start Python on a node, such as `apptainer exec --nv image.sif python`; null takes this Python."""
    finaliser: dict[str, Any] = field(default_factory=dict)
    """Where the job that builds the results wants other values than workers: `+hydra.launcher.finaliser.partition=cpu`."""
    partition: str | None = None
    """Partitions that may run a worker; null takes the cluster's default."""
    account: str | None = None
    """Whom the time is charged to."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that a node must have, such as `a100|h100`."""
    exclude: str | None = None
    """Nodes to stay away from."""
    nodelist: str | None = None
    """Nodes to run on."""
    comment: str | None = None
    """Of the jobs, for sites that ask for one."""
    timeout_min: int = 60
    """Minutes that a worker gets; at their end it gives its cells back and starts again: short times wait less in the queue."""
    mem_gb: float | None = None
    """Memory of a worker's node share; null takes the cluster's default."""
    mem_per_cpu: str | None = None
    """Instead of mem_gb, as sbatch has it: 4G."""
    mem_per_gpu: str | None = None
    """Instead of mem_gb, as sbatch has it: 64G."""
    cpus_per_task: int | None = None
    """CPU cores of a worker; null takes the cluster's default."""
    gpus_per_node: str | None = "1"
    """GPUs of a worker, also with a type: `a100:2`; null for a worker without."""
    gres: str | None = None
    """Other generic resources, for sites that give GPUs this way only: `gpu:1`, with gpus_per_node=null."""
    signal_delay_s: int = 90
    """So many seconds before its time ends a worker is told, and hands over."""
    array_parallelism: int = 256
    """Workers that run at once."""
    setup: list[str] | None = None
    """Shell lines before a worker starts: `module load cuda`, `export HF_HUB_OFFLINE=1`. One that fails ends the job."""
    srun_args: list[str] | None = None
    """Further arguments of srun."""
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Further parameters of sbatch, by their long names: `+hydra.launcher.additional_parameters.reservation=spring`."""

    def check(self) -> None:
        """Raise EmosteerError for a value that no cluster takes."""
        from emosteer.checks import check_count

        check_count("hydra.launcher.workers", self.workers, most=MOST_WORKERS)
        for key in ("max_attempts", "timeout_min", "array_parallelism", "cells_per_claim", "cpus_per_task"):
            if getattr(self, key) is not None:
                check_count(f"hydra.launcher.{key}", getattr(self, key))
        if self.mem_gb is not None and self.mem_gb <= 0:
            raise EmosteerError(f"hydra.launcher.mem_gb={self.mem_gb}: give a number above 0, or null for the cluster's default")
        if not 0 <= self.signal_delay_s < 60 * self.timeout_min:
            raise EmosteerError(
                f"hydra.launcher.signal_delay_s={self.signal_delay_s}: a worker is told so many seconds before its time ends, "
                f"and has {60 * self.timeout_min} (timeout_min={self.timeout_min}); lower it"
            )
        if unknown := set(self.finaliser) - set(self.for_workers()):
            raise EmosteerError(f"hydra.launcher.finaliser.{min(unknown)}: no such key; choose among {', '.join(self.for_workers())}")

    def for_workers(self) -> dict[str, Any]:
        """What submitit's executor takes for the workers' array."""
        return {key: value for key, value in asdict(self).items() if key not in OURS}

    def for_finaliser(self) -> dict[str, Any]:
        """The same for the job that builds the results: no GPU, and what the user sets differently for it."""
        return self.for_workers() | {"gpus_per_node": None, "gres": None, "mem_per_gpu": None} | dict(self.finaliser)
