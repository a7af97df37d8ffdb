"""`emosteer-sweep ls`: the sweeps in a directory, a line each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from emosteer.errors import EmosteerError
from emosteer.overview import RUNNING, overview
from emosteer.records.sweep import DONE, FAILED
from emosteer.sweep_cli.arguments import JsonOption
from emosteer.sweep_cli.finding import HOW_TO_MAKE_ONE, OUTPUTS, sweep_directories, sweep_in
from emosteer.sweep_cli.printing import print_json, print_table, utc

HEADINGS = ("sweep", "done", "failed", "models", "pairs", "last command")


def ls(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where sweeps lie.", show_default=True)] = OUTPUTS,
    as_json: JsonOption = False,
) -> None:
    """List the sweeps in a directory.

    A line each: how much is done and failed, models, pairs, and the time (UTC) of the last command; a number after a plus sign runs
    now. Counted are all tasks: cells, random controls, baselines and attributions. Nothing is changed on disk, save that a record
    which proves damaged is moved aside, as a run would do.

    \b
    Examples:
      emosteer-sweep ls
      emosteer-sweep ls /scratch/me/outputs
      emosteer-sweep ls --json | jq -r '.[] | select(.failed > 0).name'

    \b
    JSON: a list of objects with
      name, directory, done, failed, running, pending, total, models, pairs,
      last_command (UTC, ISO 8601); of a sweep that cannot be read: name,
      directory, error.

    \b
    Exit codes:
      0  every sweep that is there is listed
      1  some cannot be read: they are named on stderr
      2  no such directory
    """  # noqa: D301 - \b keeps the lines of a paragraph
    is_default_and_missing = directory == OUTPUTS and not directory.exists()
    found = [] if is_default_and_missing else [_line(path) for path in sweep_directories(directory)]
    if as_json:
        print_json(found)
    elif found:
        print_table(HEADINGS, [_row(line) for line in found], numbers=("done", "failed"))
    if not found:
        typer.echo(f"no sweeps in {directory.absolute()}; {HOW_TO_MAKE_ONE}", err=True)
    unread = [line for line in found if "error" in line]
    for line in unread:
        typer.echo(f"{line['name']}: {line['error']}", err=True)
    raise typer.Exit(1 if unread else 0)


def _line(directory: Path) -> dict[str, Any]:
    place = {"name": directory.absolute().name, "directory": str(directory.absolute())}
    try:
        seen = overview(sweep_in(directory))
        time = utc(seen.newest["time"]).isoformat()
    except (EmosteerError, OSError) as error:
        return {**place, "error": str(error)}
    return {**place, **seen.counts, "models": seen.models, "pairs": seen.pairs, "last_command": time}


def _row(line: dict[str, Any]) -> list[str | int]:
    if "error" in line:
        return [line["name"], "?", "?", "", "", ""]
    return [
        line["name"],
        f"{line[DONE]}/{line['total']}" + (f" +{line[RUNNING]}" if line[RUNNING] else ""),
        line[FAILED],
        ", ".join(line["models"]),
        ", ".join(line["pairs"]),
        line["last_command"][:16].replace("T", " "),
    ]
