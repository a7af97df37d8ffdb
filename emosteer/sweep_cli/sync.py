"""`emosteer-sweep sync`: a sweep's runs into its tracker."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from emosteer.overview import overview
from emosteer.progress import working
from emosteer.records.sweep import DONE, FAILED, Sweep
from emosteer.sweep_cli.arguments import JsonOption, SweepArgument
from emosteer.sweep_cli.finding import open_sweep
from emosteer.sweep_cli.printing import count, print_json

if TYPE_CHECKING:
    from emosteer.tracking.run import Synced

FOLLOW_SECONDS = 60.0


def sync(
    sweep: SweepArgument,
    project: Annotated[str | None, typer.Option(help="Another project than the sweep's.")] = None,
    entity: Annotated[str | None, typer.Option(help="Another user or team than the sweep's.")] = None,
    at_a_time: Annotated[int, typer.Option("--parallel", min=1, max=64, help="Runs that are uploaded at a time.")] = 8,
    follow: Annotated[bool, typer.Option("--follow", help="Again every minute, until every cell is settled.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload what is not uploaded yet of a sweep's runs.

    Runs are written from the records, also of a half-done sweep, one that was killed, or one that ran without tracking; then those
    that the server does not have are uploaded. Interrupted, it goes on next time with what is left; twice, it does nothing. For
    compute nodes without internet: run it on a login node, with --follow while the sweep goes on. Needs no model. How many runs are
    uploaded is shown on a terminal, on stderr.

    \b
    Examples:
      emosteer-sweep sync default
      emosteer-sweep sync default --follow --project emotions

    \b
    JSON:
      sweep, directory, project, entity
      n_runs      of the sweep by now
      n_uploaded  by this command
      n_left      that could not be
      reason      why

    \b
    Exit codes:
      0  every run is uploaded
      1  some could not be
      2  no such sweep, no key, or the tracker is not installed
    """  # noqa: D301 - \b keeps the lines of a paragraph
    while True:
        found = open_sweep(sweep)
        counts = overview(found).counts
        is_settled = counts[DONE] + counts[FAILED] == counts["total"]
        synced = _synced(found, project, entity, at_a_time)
        _tell(found, synced, as_json)
        if not follow or is_settled:
            raise typer.Exit(1 if synced.n_left else 0)
        with working() as work:
            work.count("tasks are settled; runs are uploaded every minute", counts[DONE] + counts[FAILED], counts["total"])
            time.sleep(FOLLOW_SECONDS)


def _synced(sweep: Sweep, project: str | None, entity: str | None, at_a_time: int) -> Synced:
    # Here, so that the other commands do not wait for pandas.
    from emosteer import tracking
    from emosteer.tables import build

    with working() as work:
        work.stage(f"building the tables of {sweep.name}")
        tables = build(sweep)
        work.stage("writing and uploading the runs that are missing")
        return tracking.sync_sweep(sweep, tables, project, entity, at_a_time, work)


def _tell(sweep: Sweep, synced: Synced, as_json: bool) -> None:
    if as_json:
        print_json({"sweep": sweep.name, "directory": str(sweep.paths.root), **asdict(synced)})
        return
    there = synced.n_runs - synced.n_uploaded - synced.n_left
    place = "/".join(part for part in (synced.entity, synced.project) if part)
    typer.echo(f"{place}: {count(synced.n_uploaded, 'run')} uploaded, {there} there before.")
    if synced.n_left:
        typer.echo(f"{count(synced.n_left, 'run')} could not be uploaded: {synced.reason}. Give the same command again.", err=True)
