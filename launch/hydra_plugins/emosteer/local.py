"""The launcher that runs a sweep in this process: one model load, all cells' rows in common batches.

Hydra imports this module at every start, so it imports nothing heavy; and outside sys.modules, so that its dataclasses cannot have
postponed annotations.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, env_override, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, read_write

if TYPE_CHECKING:
    from emosteer.bench import Bench
    from emosteer.composer import Composed, Composer
    from emosteer.launcher import Outcome


@dataclass
class LocalLauncherConf:
    """`hydra/launcher=local`, the default."""

    _target_: str = "hydra_plugins.emosteer.local.LocalLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConf, provider="emosteer")


class LocalLauncher(Launcher):
    """Turns Hydra's jobs into cells of a sweep and runs them together, here."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.task_function: TaskFunction | None = None
        self.composer: Composer | None = None
        self.bench: Bench | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what Hydra gives."""
        from emosteer.bench import Bench
        from emosteer.composer import Composer

        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.composer, self.bench = Composer(hydra_context.config_loader, config), Bench()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one cell per list of overrides; its id is the job's value, or the declared objective.

        A sweeper that searches calls this again and again: the model stays loaded between the calls.
        """
        from emosteer.hydra_jobs import job, refusals, sweep_directory
        from emosteer.launcher import check_device, check_number_of_cells, link_jobs, open_sweep, outcomes, submit, work

        setup_globals()
        assert self.config is not None
        assert self.composer is not None
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        with refusals():
            check_number_of_cells(len(job_overrides))
            jobs = [job(self.composer.compose(overrides, initial_job_idx + i)) for i, overrides in enumerate(job_overrides)]
            for device in {one.config.model.device for one in jobs}:
                check_device(device)
            sweep = open_sweep(jobs[0].config.store, sweep_directory(self.config))
            cells = submit(jobs, sweep)
            link_jobs(jobs, cells, sweep)
        self._notify_start(job_overrides, initial_job_idx)
        with refusals(), env_override(self.config.hydra.job.env_set):
            with self._job_logging(job_overrides[0], initial_job_idx):
                work(sweep, self.bench)
            # After the work: a wrong value is refused without waiting for pandas.
            from emosteer.objective import objective_values
            from emosteer.tables import build

            found = outcomes(sweep, cells)
            objective = jobs[0].config.objective
            values: dict[str, str | float] = {cell.id: cell.id for cell in cells}
            # Of a failed trial the sweeper hears the error; hydra.sweeper.max_failure_rate says how many are too many.
            done = [outcome.cell for outcome in found if outcome.error is None]
            if objective.column is not None and done:
                values |= zip([cell.id for cell in done], objective_values(build(sweep), done, objective), strict=True)
        returns = [
            self._job_return(overrides, outcome, values[outcome.cell.id])
            for overrides, outcome in zip(job_overrides, found, strict=True)
        ]
        self._notify_end(job_overrides, initial_job_idx, returns)
        return returns

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

    def _notify_start(self, job_overrides: Sequence[Sequence[str]], first: int) -> None:
        assert self.hydra_context is not None
        assert self.task_function is not None
        for i, overrides in enumerate(job_overrides if self._has_listeners() else ()):
            with self._inside_job(overrides, first + i) as composed, env_override(composed.whole.hydra.job.env_set):
                self.hydra_context.callbacks.on_job_start(config=composed.whole, task_function=self.task_function)

    def _notify_end(self, job_overrides: Sequence[Sequence[str]], first: int, returns: Sequence[JobReturn]) -> None:
        assert self.hydra_context is not None
        for i, overrides in enumerate(job_overrides if self._has_listeners() else ()):
            with self._inside_job(overrides, first + i) as composed:
                returned = returns[i]
                returned.cfg, returned.hydra_cfg = composed.task, composed.whole
                self.hydra_context.callbacks.on_job_end(config=composed.whole, job_return=returned)

    @contextmanager
    def _inside_job(self, overrides: Sequence[str], number: int) -> "Iterator[Composed]":
        """A job's configuration, which `HydraConfig` holds meanwhile, as around Hydra's own jobs."""
        assert self.composer is not None
        composed = self.composer.compose(overrides, number).copy()
        outside = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(composed.whole)
        try:
            yield composed
        finally:
            HydraConfig.instance().cfg = outside

    def _has_listeners(self) -> bool:
        """Whether anybody but us hears of single jobs, whose configurations are composed again for that."""
        from emosteer.callback import SweepCallback

        assert self.hydra_context is not None
        return any(not isinstance(callback, SweepCallback) for callback in self.hydra_context.callbacks.callbacks)

    def _job_return(self, overrides: Sequence[str], outcome: "Outcome", value: str | float) -> JobReturn:
        from emosteer.hydra_jobs import Refused

        assert self.config is not None
        returned = JobReturn(
            overrides=list(overrides),
            working_dir=str(Path.cwd()),
            task_name=JobRuntime.instance().get("name"),
            status=JobStatus.FAILED if outcome.error else JobStatus.COMPLETED,
        )
        returned.return_value = Refused(f"{outcome.cell.id} failed: {outcome.error}") if outcome.error else value
        return returned
