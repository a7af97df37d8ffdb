"""The launcher that runs a sweep in this process: one model load, all cells' rows in common batches.

Hydra imports this module at every start, so it imports nothing heavy; and outside sys.modules, so that its dataclasses cannot have
postponed annotations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
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

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what Hydra gives."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one cell per list of overrides; its id is the job's value, or the declared objective."""
        from emosteer.hydra_jobs import job, refusals, sweep_directory
        from emosteer.launcher import objectives, open_sweep, outcomes, submit, work

        setup_globals()
        assert self.config is not None
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        configs = [self._compose(overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        with refusals():
            jobs = [job(config) for config in configs]
            sweep = open_sweep(jobs[0].config.store, sweep_directory(self.config))
            cells = submit(jobs, sweep)
            self._notify_start(configs)
            work(sweep)
            # After the work: a wrong value is refused without waiting for pandas and matplotlib.
            from emosteer.finaliser import finalise
            from emosteer.tables import build

            found = outcomes(sweep, cells)
            column = jobs[0].config.objective
            values: Sequence[str | float] = objectives(build(sweep), cells, column) if column else [cell.id for cell in cells]
            if any(outcome.error for outcome in found):
                # Hydra will raise the first failure and leave; the others' results are built before that.
                finalise(sweep)
        returns = [self._job_return(c, o, v) for c, o, v in zip(configs, found, values, strict=True)]
        self._notify_end(configs, returns)
        return returns

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        assert self.hydra_context is not None
        assert self.config is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
            config.hydra.runtime.output_dir = str(config.hydra.sweep.dir)
        return config

    def _notify_start(self, configs: Sequence[DictConfig]) -> None:
        assert self.hydra_context is not None
        assert self.task_function is not None
        for config in configs:
            self.hydra_context.callbacks.on_job_start(config=config, task_function=self.task_function)

    def _notify_end(self, configs: Sequence[DictConfig], returns: Sequence[JobReturn]) -> None:
        assert self.hydra_context is not None
        for config, returned in zip(configs, returns, strict=True):
            self.hydra_context.callbacks.on_job_end(config=config, job_return=returned)

    def _job_return(self, config: DictConfig, outcome: "Outcome", value: str | float) -> JobReturn:
        from emosteer.hydra_jobs import Refused

        returned = JobReturn(
            overrides=filter_overrides(OmegaConf.to_container(config.hydra.overrides.task)),  # type: ignore[arg-type]
            cfg=OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]),
            hydra_cfg=OmegaConf.masked_copy(config, ["hydra"]),
            working_dir=str(config.hydra.sweep.dir),
            task_name=str(config.hydra.job.name),
            status=JobStatus.FAILED if outcome.error else JobStatus.COMPLETED,
        )
        returned.return_value = Refused(f"{outcome.cell.id} failed: {outcome.error}") if outcome.error else value
        return returned
