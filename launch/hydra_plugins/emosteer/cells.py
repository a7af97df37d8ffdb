"""What our launchers have in common: Hydra's jobs become cells of a sweep, and their outcomes what Hydra hears of the jobs.

Hydra imports these modules at every start, so they import nothing heavy; and outside sys.modules, so that their dataclasses cannot
have postponed annotations.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, env_override, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from emosteer.composer import Composed, Composer
    from emosteer.launcher import Job, Outcome
    from emosteer.records.cell import Cell
    from emosteer.records.sweep import Sweep


class CellsLauncher(Launcher):
    """Turns Hydra's jobs into cells of a sweep; its children say who runs them."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.task_function: TaskFunction | None = None
        self.composer: Composer | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what Hydra gives."""
        from emosteer.composer import Composer

        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.composer = Composer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Have one cell run per list of overrides; its id is the job's value, or the declared objective."""
        from emosteer.hydra_jobs import job, refusals, sweep_directory
        from emosteer.launcher import check_number_of_cells, link_jobs, open_sweep, submit

        setup_globals()
        assert self.config is not None
        assert self.composer is not None
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        with refusals():
            check_number_of_cells(len(job_overrides))
            jobs = [job(self.composer.compose(overrides, initial_job_idx + i)) for i, overrides in enumerate(job_overrides)]
            sweep = open_sweep(jobs[0].config.store, sweep_directory(self.config))
            jobs = list(self._checked(jobs, sweep))
            cells = submit(jobs, sweep)
            link_jobs(jobs, cells, sweep)
        self._notify_start(job_overrides, initial_job_idx)
        with refusals(), env_override(self.config.hydra.job.env_set):
            found = self._run(jobs, cells, sweep, job_overrides[0], initial_job_idx)
            values = _values(jobs, found, sweep)
        returns = [
            self._job_return(overrides, outcome, values[outcome.cell.id])
            for overrides, outcome in zip(job_overrides, found, strict=True)
        ]
        self._notify_end(job_overrides, initial_job_idx, returns)
        return returns

    @abstractmethod
    def _checked(self, jobs: "Sequence[Job]", sweep: "Sweep") -> "Sequence[Job]":
        """The jobs as they are to be submitted; raises EmosteerError for what this launcher cannot run. Nothing is on disk yet."""

    @abstractmethod
    def _run(
        self, jobs: "Sequence[Job]", cells: "Sequence[Cell]", sweep: "Sweep", overrides: Sequence[str], number: int
    ) -> "Sequence[Outcome]":
        """Have cells run that are part of a sweep by now; what became of each.

        Args:
            jobs: which asked for them.
            cells: of each job.
            sweep: theirs.
            overrides: of the first job.
            number: of the first job.
        """

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


def _values(jobs: "Sequence[Job]", found: "Sequence[Outcome]", sweep: "Sweep") -> dict[str, str | float]:
    """What a sweeper is told of each cell, by its id: the id, or the declared objective.

    Of a failed trial it hears the error; `hydra.sweeper.max_failure_rate` says how many are too many.
    """
    objective = jobs[0].config.objective
    values: dict[str, str | float] = {outcome.cell.id: outcome.cell.id for outcome in found}
    done = [outcome.cell for outcome in found if outcome.error is None]
    if objective.column is not None and done:
        # After the work: a wrong value is refused without waiting for pandas.
        from emosteer.objective import objective_values
        from emosteer.tables import build

        values |= zip([cell.id for cell in done], objective_values(build(sweep), done, objective), strict=True)
    return values
