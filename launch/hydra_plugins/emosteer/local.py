"""The launcher that runs a sweep in this process: one model load, all cells' rows in common batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.core.utils import configure_log
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.emosteer.cells import CellsLauncher
from omegaconf import DictConfig, read_write

if TYPE_CHECKING:
    from emosteer.bench import Bench
    from emosteer.launcher import Job, Outcome
    from emosteer.records.cell import Cell
    from emosteer.records.sweep import Sweep


@dataclass
class LocalLauncherConf:
    """`hydra/launcher=local`, the default."""

    _target_: str = "hydra_plugins.emosteer.local.LocalLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConf, provider="emosteer")


class LocalLauncher(CellsLauncher):
    """Runs cells together, here. A sweeper that searches launches again and again: the model stays loaded between the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.bench: Bench | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what Hydra gives."""
        from emosteer.bench import Bench

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.bench = Bench()

    def _checked(self, jobs: "Sequence[Job]", sweep: "Sweep") -> "Sequence[Job]":
        from emosteer.launcher import check_device

        for device in {one.config.model.device for one in jobs}:
            check_device(device)
        return jobs

    def _run(
        self, jobs: "Sequence[Job]", cells: "Sequence[Cell]", sweep: "Sweep", overrides: Sequence[str], number: int
    ) -> "Sequence[Outcome]":
        from emosteer.launcher import outcomes, work

        with self._job_logging(overrides, number):
            work(sweep, self.bench)
        return outcomes(sweep, cells)

    @contextmanager
    def _job_logging(self, overrides: Sequence[str], number: int) -> Iterator[None]:
        """`hydra.job_logging` while the jobs run: together, so that it is one log, and a file of it lies in the sweep's directory."""
        assert self.config is not None
        with self._inside_job(overrides, number) as composed:
            hydra = composed.whole.hydra
            with read_write(hydra):
                hydra.runtime.output_dir = str(Path(str(hydra.sweep.dir)).absolute())
            configure_log(hydra.job_logging, hydra.verbose)
        try:
            yield
        finally:
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
