"""Trackers: where a sweep's results are logged besides its directory, from its records, after the cells are done.

A tracker is two functions: one logs a sweep as its settings say, and warns; one does it because somebody asks, and says what came
of it.
"""

from __future__ import annotations

import logging

from emosteer.errors import EmosteerError
from emosteer.progress import Work
from emosteer.records.sweep import Sweep
from emosteer.tables import Tables
from emosteer.tracking import background
from emosteer.tracking.run import Synced

NONE, WANDB, TRACKIO = "none", "wandb", "trackio"


log = logging.getLogger(__name__)


def log_sweep(sweep: Sweep, tables: Tables) -> None:
    """Log a sweep to the tracker of its newest command, in a process of its own, so that nobody waits for a network.

    With `tracking.wait`, and where that process would be ended with this one, here.
    """
    settings = sweep.settings()["tracking"]
    if settings["name"] == NONE:
        return
    if settings.get("wait") or background.ends_with_this_process():
        log_now(sweep, tables)
        return
    background.start(sweep)
    log.info("tracking goes on in the background: see %s; `emosteer-sweep sync` completes it", sweep.paths.tracking_log)


def log_now(sweep: Sweep, tables: Tables) -> None:
    """Log a sweep to the tracker of its newest command, and wait for it; raises EmosteerError for one that is unknown."""
    name = sweep.settings()["tracking"]["name"]
    if name == NONE:
        return
    if name == TRACKIO:
        from emosteer.tracking.trackio_runs import log_to_trackio

        log_to_trackio(sweep, tables)
    elif name == WANDB:
        from emosteer.tracking.wandb_runs import log_to_wandb

        log_to_wandb(sweep, tables)
    else:
        raise EmosteerError(f"tracking={name}: choose wandb, trackio or none")


def sync_sweep(
    sweep: Sweep, tables: Tables, project: str | None = None, entity: str | None = None, at_a_time: int = 8, work: Work | None = None
) -> Synced:
    """Bring what is missing to a sweep's tracker; one that ran with `tracking=none` goes to W&B. `work` is told how far it is.

    Raises:
        EmosteerError: the tracker cannot be used: not installed, no key.
    """
    if sweep.settings()["tracking"]["name"] == TRACKIO:
        from emosteer.tracking.trackio_runs import sync_to_trackio

        return sync_to_trackio(sweep, tables, project)
    from emosteer.tracking.wandb_runs import sync_to_wandb

    return sync_to_wandb(sweep, tables, project, entity, at_a_time, work)
