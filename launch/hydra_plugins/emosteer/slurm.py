"""The launcher that runs a sweep on a SLURM cluster: it submits workers that share the cells, and returns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra_plugins.emosteer.cells import CellsLauncher
from omegaconf import OmegaConf

from emosteer.slurm.options import SlurmOptions

if TYPE_CHECKING:
    from emosteer.launcher import Job, Outcome
    from emosteer.records.cell import Cell
    from emosteer.records.sweep import Sweep


@dataclass
class SlurmLauncherConf(SlurmOptions):
    """`hydra/launcher=slurm`."""

    _target_: str = "hydra_plugins.emosteer.slurm.SlurmLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmLauncherConf, provider="emosteer")


class SlurmLauncher(CellsLauncher):
    """Submits workers; waits for them where it is told to, or where a sweeper needs what the cells came to."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        plain: dict[str, Any] = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in options.items()
        }
        self.options = SlurmOptions(**plain)

    def _checked(self, jobs: "Sequence[Job]", sweep: "Sweep") -> "Sequence[Job]":
        from emosteer.slurm.refusal import check_submittable

        check_submittable(sweep, self.options)
        return [replace(job, config=replace(job.config, worker=self._worker(job))) for job in jobs]

    def _worker(self, job: "Job") -> Any:
        """How its workers share a sweep, in the launcher's words."""
        cells_per_claim = self.options.cells_per_claim or job.config.worker.cells_per_claim
        return replace(job.config.worker, cells_per_claim=cells_per_claim, max_attempts=self.options.max_attempts)

    def _run(
        self, jobs: "Sequence[Job]", cells: "Sequence[Cell]", sweep: "Sweep", overrides: Sequence[str], number: int
    ) -> "Sequence[Outcome]":
        from emosteer.launcher import Outcome, outcomes
        from emosteer.slurm.following import tell, wait
        from emosteer.slurm.submission import keep_open
        from emosteer.slurm.submitting import submit_workers

        if not sweep.unsettled(sweep.tasks(), sweep.scorers()):
            return outcomes(sweep, cells)
        is_search = jobs[0].config.objective.column is not None
        if is_search:
            keep_open(sweep)
        submitted = submit_workers(sweep, self.options, str(Path.cwd()))
        tell(sweep, submitted)
        if not self.options.wait and not is_search:
            return [Outcome(cell, None) for cell in cells]
        try:
            wait(sweep)
        except KeyboardInterrupt:
            print(f"The jobs go on: `emosteer-sweep watch {sweep.name}` follows them, `cancel` ends them.", flush=True)
            raise
        return outcomes(sweep, cells)
