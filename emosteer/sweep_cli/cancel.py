"""`emosteer-sweep cancel`: the end of a sweep's SLURM jobs."""

from __future__ import annotations

import typer

from emosteer.overview import overview
from emosteer.slurm import submitting
from emosteer.slurm.submission import submissions
from emosteer.sweep_cli.arguments import JsonOption, SweepArgument
from emosteer.sweep_cli.finding import open_sweep
from emosteer.sweep_cli.outlook import n_left
from emosteer.sweep_cli.printing import called, count, print_json

MOST_SHOWN = 12
"""Ids of jobs in a line; --json has all."""


def cancel(sweep: SweepArgument, as_json: JsonOption = False) -> None:
    """End a sweep's SLURM jobs, and no others.

    Workers and the job for the results, running or in the queue, those of an interrupted submission too; it does not ask first. A
    worker that is told so gives its cells back. On disk the submissions are marked as cancelled; what is finished is kept, and
    `retry --all` goes on.

    \b
    Examples:
      emosteer-sweep cancel default
      emosteer-sweep cancel default --json | jq -r .cancelled[]

    \b
    JSON:
      sweep, directory
      cancelled   [job]: those that had not ended; of an array each task
      counts      {done, failed, running, pending, total}

    \b
    Exit codes:
      0  none of its jobs is left; also where there were none
      2  no such sweep; SLURM does not answer, or is not on this machine
    """  # noqa: D301 - \b keeps the lines of a paragraph
    found = open_sweep(sweep)
    own = submissions(found)
    ended = submitting.cancel(found) if own else []
    seen = overview(found)
    if as_json:
        print_json({"sweep": found.name, "directory": str(found.paths.root), "cancelled": ended, "counts": seen.counts})
        return
    behind = {one.finaliser for one in submissions(found)}
    workers, finalisers = [job for job in ended if job not in behind], [job for job in ended if job in behind]
    if workers:
        more = f" and {len(workers) - MOST_SHOWN:,} more" if len(workers) > MOST_SHOWN else ""
        typer.echo(f"cancelled: {count(len(workers), 'worker')} ({', '.join(workers[:MOST_SHOWN])}{more})")
    if finalisers:
        typer.echo(f"cancelled: job {', '.join(finalisers)} for the results")
    if not ended:
        why = "none of its jobs is in SLURM's queue" if own else "it was never submitted to SLURM"
        typer.echo(f"{found.name}: nothing to cancel, {why}")
    elif left := n_left(seen):
        typer.echo(f"{count(left, 'task')} left; goes on: emosteer-sweep retry {called(found.paths.root)} --all")
