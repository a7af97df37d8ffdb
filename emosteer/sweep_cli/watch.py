"""`emosteer-sweep watch`: a sweep while it runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from emosteer.errors import EmosteerError
from emosteer.overview import Overview
from emosteer.records.sweep import FAILED, Sweep
from emosteer.slurm.following import View, follow, line, views
from emosteer.slurm.submission import submissions
from emosteer.sweep_cli.arguments import SweepArgument
from emosteer.sweep_cli.crew import LIVE, crew
from emosteer.sweep_cli.finding import open_sweep
from emosteer.sweep_cli.outlook import exit_code, n_left
from emosteer.sweep_cli.printing import called, count, short

INTERRUPTED = 130

LinesOption = Annotated[bool, typer.Option("--json", help="Print a JSON object a line, whenever something changes, on stdout.")]


def watch(sweep: SweepArgument, as_json: LinesOption = False) -> None:
    """Show how a sweep goes, until it ends or nobody works on it.

    On a terminal a bar and a line for each node, drawn anew every few seconds; elsewhere a line now and then; on stderr both. Works
    for a sweep that runs on this machine too. ctrl-C ends the watching, and nothing else. On disk nothing is changed, save as by
    `status`.

    \b
    Examples:
      emosteer-sweep watch default
      emosteer-sweep watch default && emosteer-sweep report default
      emosteer-sweep watch default --json | jq --unbuffered .counts.done

    \b
    JSON: an object a line, when a count, the number of workers or that of
    waiting jobs has changed
      sweep, time (UTC, ISO 8601)
      counts             {done, failed, running, pending, total}
      workers            at work now
      waiting            jobs in SLURM's queue; null where it does not answer
      tokens_per_second
      seconds_left       at the pace until now; null where it is not known
      settled            whether all is done or failed

    \b
    Exit codes:
      0    all is done
      1    something failed (whatever else is pending)
      2    no such sweep, or a file of it is damaged
      3    not finished, and nobody works on it
      130  interrupted by ctrl-C
    """  # noqa: D301 - \b keeps the lines of a paragraph
    found = open_sweep(sweep)
    try:
        last = _follow_in_lines(found) if as_json else follow(found)
    except KeyboardInterrupt:
        _tell_that_it_goes_on(found)
        raise typer.Exit(INTERRUPTED) from None
    if not as_json:
        typer.echo(line(last))
        _tell_what_next(found, last.overview)
    raise typer.Exit(exit_code(last.overview))


def _follow_in_lines(sweep: Sweep) -> View:
    told: dict[str, Any] = {}
    for seen in views(sweep):
        key = {"counts": seen.overview.counts, "workers": seen.n_working, "waiting": seen.waiting}
        if key != told:
            told = key
            typer.echo(json.dumps(_as_data(sweep, seen), ensure_ascii=False))
        if seen.is_settled:
            break
    return seen


def _as_data(sweep: Sweep, seen: View) -> dict[str, Any]:
    return {
        "sweep": sweep.name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "counts": seen.overview.counts,
        "workers": seen.n_working,
        "waiting": seen.waiting,
        "tokens_per_second": round(seen.tokens_per_second, 1),
        "seconds_left": None if seen.seconds_left is None else round(seen.seconds_left, 1),
        "settled": seen.is_settled,
    }


def _tell_that_it_goes_on(sweep: Sweep) -> None:
    try:
        is_on_slurm = bool(submissions(sweep))
    except EmosteerError:
        is_on_slurm = False
    name = called(sweep.paths.root)
    ends = f"; its jobs end by: emosteer-sweep cancel {name}" if is_on_slurm else ""
    typer.echo(f"\nNo longer watching {sweep.name}, which goes on{ends}", err=True)


def _tell_what_next(sweep: Sweep, seen: Overview) -> None:
    name = called(sweep.paths.root)
    if left := n_left(seen):
        typer.echo(f"Nobody works on {sweep.name}; {count(left, 'task')} not done: emosteer-sweep status {name}")
    elif seen.counts[FAILED]:
        typer.echo(f"What failed, and why: emosteer-sweep status {name}")
    finaliser = crew(sweep).finaliser
    if not left and finaliser is not None and finaliser.state in LIVE:
        typer.echo(f"Job {finaliser.job} builds the results, in {short(sweep.paths.root)}")
