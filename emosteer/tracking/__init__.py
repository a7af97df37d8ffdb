"""Trackers: where a sweep's results are logged besides its directory, from its records, after the cells are done."""

from __future__ import annotations

from emosteer.errors import EmosteerError
from emosteer.records.sweep import Sweep
from emosteer.tables import Tables


def log_sweep(sweep: Sweep, tables: Tables) -> None:
    """Log a sweep to the tracker of its newest command; raises EmosteerError for one that is unknown."""
    settings = sweep.settings()["tracking"]
    if settings["name"] == "none":
        return
    if settings["name"] != "wandb":
        raise EmosteerError(f"tracking={settings['name']}: choose wandb or none")
    from emosteer.tracking.wandb_runs import log_to_wandb

    log_to_wandb(sweep, tables)
