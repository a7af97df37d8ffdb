"""What several commands print of a sweep: failures, workers, SLURM's jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from emosteer.overview import RUNNING
from emosteer.records.sweep import Sweep
from emosteer.records.workers import shares
from emosteer.sweep_cli.crew import CANCELLED, PAST, WAITING, Crew, Member
from emosteer.sweep_cli.printing import called, count, one_line, print_table, short

MOST_FAILURES = 20
LEAST_SHARE = 0.005
MOST_ENDED = 12
"""Workers that have ended, on a terminal; the living are all told."""
WORKER_HEADINGS = ("worker", "start", "node", "state", "holds", "published", "failed", "tokens/s", "rows", "what")
WORKER_NUMBERS = ("start", "holds", "published", "failed", "tokens/s", "rows")


def show_failures(found: list[dict[str, Any]]) -> None:
    """Print failures, a line each."""
    for one in found[:MOST_FAILURES]:
        where = one_line(f"{one['exception']}: {one['message']}")
        typer.echo(f"failed: {one['id']}: {where} (traceback: {short(Path(one['file']))})")
    if len(found) > MOST_FAILURES:
        rest = len(found) - MOST_FAILURES
        typer.echo(f"and {rest:,} more failed; --json lists all, and {short(Path(found[0]['file']).parent)} has them")


def show_workers(workers: list[Member]) -> None:
    """Print workers, a line each, and what their time has gone to."""
    print_table(WORKER_HEADINGS, [_worker_row(one) for one in workers], WORKER_NUMBERS)
    parts = [f"{part} {share:.0%}" for part, share in shares(one.said for one in workers if one.said).items() if share >= LEAST_SHARE]
    if parts:
        typer.echo(f"their time: {', '.join(parts)}")


def _worker_row(one: Member) -> list[str | int]:
    said = one.said
    numbers = [str(one.n_running) if one.n_running else "-", *(["-"] * 4 if said is None else [])]
    if said is not None:
        generates = one.state == RUNNING and said.stage == "generating"
        speed = [f"{number:,.0f}" if number and generates else "-" for number in (said.tokens_per_second, said.rows)]
        numbers += [f"{said.published:,}", f"{said.failed:,}", *speed]
    start = str(said.restarts + 1) if said else "-"
    return [one.job or "-", start, one.node or "-", one.state, *numbers, one_line(one.detail, 60)]


def show_slurm(sweep: Sweep, at_work: Crew) -> None:
    """Print what SLURM's jobs do: a line in all, then workers, those that wait together."""
    if at_work.silence is not None:
        typer.echo(f"SLURM: not known, it does not answer ({one_line(at_work.silence)})")
    else:
        states = ", ".join(f"{n:,} {state}" for state, n in at_work.counts().items()) or "no workers"
        typer.echo(f"SLURM: workers {states}{_of_finaliser(at_work.finaliser)}")
    for one in at_work.interrupted:
        by = f"process {one.submitter.get('pid')} on {one.submitter.get('host')}"
        typer.echo(f"SLURM: {by} is submitting {one.name}, or ended meanwhile: `retry`, `cancel` and `workers add` see to its jobs")
    for reason, n in _reasons(at_work).items():
        typer.echo(f"waiting: {count(n, 'worker')}, as SLURM says: {reason or 'no reason yet'}")
    own = [one for one in at_work.members if one.is_own]
    newest = [one for one in reversed(own) if one.state in PAST and (one.said or one.state != CANCELLED)]
    past = sorted(newest, key=lambda one: PAST.index(one.state))
    shown = [one for one in own if one.state not in (*PAST, WAITING)] + past[:MOST_ENDED]
    if shown:
        show_workers(shown)
    if len(past) > MOST_ENDED:
        typer.echo(
            f"and {len(past) - MOST_ENDED:,} more that ended; `emosteer-sweep workers list {called(sweep.paths.root)}` has all"
        )


def _reasons(at_work: Crew) -> dict[str, int]:
    """How many workers wait for each reason."""
    found: dict[str, int] = {}
    for one in at_work.members:
        if one.state == WAITING:
            found[one.detail] = found.get(one.detail, 0) + 1
    return found


def _of_finaliser(finaliser: Member | None) -> str:
    if finaliser is None:
        return ""
    why = f", {finaliser.detail}" if finaliser.detail and finaliser.state != CANCELLED else ""
    return f"; job {finaliser.job} for the results: {finaliser.state}{why}"
