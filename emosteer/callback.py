"""What emosteer does around Hydra's runs, whatever launcher carries them: refuse early, and build the results at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from emosteer.checks import check_no_secrets, check_sweep_name, check_writable
from emosteer.endings import PROBE_KEPT, leaving
from emosteer.errors import EmosteerError
from emosteer.hydra_jobs import Refused, sweep_directory
from emosteer.launcher import check_device, open_sweep, unlink_jobs
from emosteer.model.source import find
from emosteer.one_line import one_line
from emosteer.planning import plan, typed

OWN_LAUNCHERS = "hydra_plugins.emosteer."
SLURM = f"{OWN_LAUNCHERS}slurm.SlurmLauncher"


class SweepCallback(Callback):
    """Refuses what cannot run before Hydra makes a directory for it, and finalises a multirun.

    Hydra warns of what a callback raises and goes on, so that a refusal leaves by SystemExit.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a single run that cannot be planned."""
        with _refusing():
            _check(config)
            if str(config.hydra.launcher._target_) == SLURM:
                raise EmosteerError(
                    "hydra/launcher=slurm needs -m, also for one cell (emosteer -m ...): without it Hydra uses no launcher"
                )
            task = typed(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
            check_writable("hydra.run.dir", Path(str(config.hydra.run.dir)))
            check_writable("store", Path(task.store).expanduser())
            if task.probe:
                with leaving(PROBE_KEPT):
                    find(task.model)  # its cell, whose block another model may not have, is none of a probe's business
            else:
                plan(task)
            check_device(task.model.device)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse what is wrong whatever is swept; the jobs are planned when their sweeper has made them."""
        with _refusing():
            _check(config)
            check_writable("hydra.sweep.dir", sweep_directory(config))
            if not str(config.hydra.launcher._target_).startswith(OWN_LAUNCHERS):
                unlink_jobs(open_sweep(str(config.store), sweep_directory(config)))

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Leave with a failed cell's one line: Hydra would print all overrides with it."""
        error = kwargs["job_return"]._return_value
        if isinstance(error, Refused):
            sys.exit(str(error))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Nothing: a job's cell is in the store by then."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Build tables, figures, trackers' runs and the summary of the whole sweep."""
        from emosteer.finaliser import finalise
        from emosteer.launcher import failed_tasks
        from emosteer.slurm.submission import close, one_at_a_time

        with _refusing():
            # Of this configuration no more is certain: keys that are swept may be missing in it.
            sweep = open_sweep(str(config.store), sweep_directory(config))
            is_on_slurm = str(config.hydra.launcher._target_) == SLURM
            if is_on_slurm:
                close(sweep)
            if is_on_slurm and sweep.unsettled(sweep.tasks(), sweep.scorers()):
                return  # submitted: the job behind the workers builds the results
            with one_at_a_time(sweep, "finalising") if is_on_slurm else nullcontext():
                finalise(sweep)
        if failed := failed_tasks(sweep):
            sys.exit(f"{len(failed)} cells failed; see {sweep.paths.failures}")


def _check(config: DictConfig) -> None:
    # Values such as ${hydra:runtime.cwd} are looked up there.
    HydraConfig.instance().set_config(config)
    check_sweep_name(str(config.name))
    check_no_secrets(config)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if (line := one_line(error)) is None:
            raise
        sys.exit(line)
