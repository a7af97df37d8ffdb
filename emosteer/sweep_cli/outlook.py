"""What several commands ask of a sweep: what is left, how it goes on, what failed, what SLURM says."""

from __future__ import annotations

import shlex
from typing import Any

from emosteer.overview import RUNNING, Overview, Standing, overview
from emosteer.records.sweep import DONE, FAILED, PENDING, Sweep
from emosteer.slurm.submission import submissions
from emosteer.sweep_cli.crew import Crew, crew
from emosteer.sweep_cli.printing import utc

UNFINISHED = 3


def looked_at(sweep: Sweep) -> tuple[Overview, Crew]:
    """A sweep's tasks and workers; what a worker holds that has ended is pending."""
    # Workers first: what one that ends in between has finished is then a record.
    found = crew(sweep)
    seen = overview(sweep, found.gone)
    return seen, found.with_tasks(seen)


def exit_code(seen: Overview) -> int:
    """0 where all is done, 1 where something failed, else 3."""
    if seen.counts[FAILED]:
        return 1
    return 0 if seen.counts[DONE] == seen.counts["total"] else UNFINISHED


def n_left(seen: Overview) -> int:
    """How many tasks are neither done nor failed."""
    return seen.counts[PENDING] + seen.counts[RUNNING]


def goes_on(seen: Overview) -> dict[str, str] | None:
    """The command that runs what is missing, and where it was given; None where nothing is."""
    if not n_left(seen):
        return None
    return {"command": shlex.join(seen.newest["line"]), "directory": str(seen.newest["provenance"].get("directory") or "")}


def is_for_slurm(sweep: Sweep, seen: Overview) -> bool:
    """Whether the sweep was last given to SLURM, and not to a process of its own."""
    own = submissions(sweep)
    if not own:
        return False
    # A command that found enough workers in the queue has submitted nothing: its manifest tells.
    return own[-1].time >= utc(seen.newest["time"]).timestamp() or seen.newest["settings"]["worker"].get("max_attempts") is not None


def failures(sweep: Sweep, seen: Overview) -> list[dict[str, Any]]:
    """Why those tasks failed that did."""
    return [_failure(sweep, one) for one in seen.of_state(FAILED)]


def _failure(sweep: Sweep, one: Standing) -> dict[str, Any]:
    facts = one.failure or {}
    known = {key: facts.get(key) for key in ("exception", "message", "host", "node", "job", "attempt", "time")}
    return {"id": one.cell.id, "kind": one.cell.kind, **known, "file": str(sweep.paths.failure(one.cell.id))}


def slurm_data(at_work: Crew) -> dict[str, Any] | None:
    """What is known of SLURM, besides the workers; None where it was never asked."""
    if not at_work.is_submitted:
        return None
    return {
        "answers": at_work.silence is None,
        "why": at_work.silence,
        "finaliser": at_work.finaliser.as_data() if at_work.finaliser else None,
        "live": at_work.is_live,
        "interrupted": [one.name for one in at_work.interrupted],
    }
