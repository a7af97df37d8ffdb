"""More workers for a sweep that was submitted to SLURM before: what it asked for then is asked for again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import typer

from emosteer.errors import EmosteerError
from emosteer.records.sweep import Sweep
from emosteer.slurm.refusal import check_submittable
from emosteer.slurm.submission import submissions
from emosteer.slurm.submitting import Submitted, submit_workers

NumberOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, metavar="N", help="On SLURM: so many workers in all; as at the last submission without."),
]


def submit_again(sweep: Sweep, n_workers: int | None = None, more: int = 0, first: Callable[[], None] = lambda: None) -> Submitted:
    """Submit workers with the options of the sweep's last submission.

    Args:
        sweep: which one.
        n_workers: instead of the number that was asked for then.
        more: so many on top of those that are there, instead.
        first: is done when SLURM has said that it would take them.

    Raises:
        EmosteerError: the sweep was never submitted; SLURM's reason not to take them, nothing is submitted then.
    """
    own = submissions(sweep)
    if not own:
        raise EmosteerError(
            f"{sweep.name} was never submitted to SLURM: give its command with hydra/launcher=slurm, which submits workers; "
            "finished cells are kept"
        )
    last = own[-1]
    options = last.slurm_options()
    options = replace(options, workers=n_workers or options.workers)
    check_submittable(sweep, options)
    first()
    return submit_workers(sweep, options, last.directory, more=more)


def submitted_data(submitted: Submitted) -> dict[str, Any]:
    """As JSON shows it."""
    own = submitted.submission
    return {
        "workers": submitted.new_workers,
        "earlier_workers": submitted.live_workers,
        "jobs": list(own.arrays) if submitted.new_workers else [],
        "finaliser": own.finaliser,
    }
