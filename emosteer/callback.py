"""What emosteer does around Hydra's runs, whatever launcher carries them: refuse early, and build the results at the end."""

from __future__ import annotations

import sys
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from emosteer.errors import EmosteerError
from emosteer.hydra_jobs import sweep_directory
from emosteer.planning import check_sweep_name


class SweepCallback(Callback):
    """Checks the sweep's name before a directory is made, and finalises a multirun.

    Hydra logs what a callback raises and goes on, so that a refusal leaves by SystemExit.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a wrong name."""
        _check(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a wrong name."""
        _check(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Nothing: a job's cell is in the store by then."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Build tables, figures, trackers' runs and the summary of the whole sweep."""
        from emosteer.finaliser import finalise
        from emosteer.launcher import failed_tasks, open_sweep

        try:
            # Of this configuration no more is certain: keys that are swept may be missing in it.
            sweep = open_sweep(str(config.store), sweep_directory(config))
            finalise(sweep)
        except EmosteerError as error:
            sys.exit(str(error))
        if failed := failed_tasks(sweep):
            sys.exit(f"{len(failed)} cells failed; see {sweep.paths.failures}")


def _check(config: DictConfig) -> None:
    try:
        check_sweep_name(str(config.name))
    except EmosteerError as error:
        sys.exit(str(error))
