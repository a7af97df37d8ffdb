"""The command `emosteer-sweep`: what became of a sweep, and its results again from the records."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from emosteer.errors import EmosteerError
from emosteer.records.publish import read_json
from emosteer.records.store import Store
from emosteer.records.sweep import DONE, FAILED, Sweep

app = typer.Typer(help="Look after sweeps: their state, and their results again from the records.", no_args_is_help=True)

SweepArgument = Annotated[str, typer.Argument(metavar="NAME_OR_DIR", help="A sweep's name under outputs/, or its directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def status(sweep: SweepArgument, as_json: JsonOption = False) -> None:
    """How many cells are done, failed or pending, and why those failed that did."""
    found = _open(sweep)
    scorers = found.scorers()
    states = {task.cell.id: found.state(task.cell, scorers) for task in found.tasks()}
    failures = {
        task.cell.id: (found.failure(task.cell) or {}).get("message") for task in found.tasks() if states[task.cell.id] == FAILED
    }
    counts = Counter(states.values())
    if as_json:
        typer.echo(json.dumps({"sweep": found.name, "counts": counts, "states": states, "failures": failures}, indent=1))
    else:
        typer.echo(f"{found.name}: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
        for cell_id, message in failures.items():
            typer.echo(f"failed: {cell_id}: {message}\n  {found.paths.failures / cell_id}.json has the traceback")
    sys.exit(1 if counts[FAILED] else 0)


@app.command()
def report(sweep: SweepArgument) -> None:
    """Build tables, figures, trackers' runs and the summary again from the records, of a half-done sweep too."""
    from emosteer.finaliser import finalise

    finalise(_open(sweep))


@app.command("ls")
def list_sweeps(directory: Annotated[Path, typer.Argument(help="Where sweeps lie.")] = Path("outputs")) -> None:
    """The sweeps below a directory, with their numbers of cells done."""
    for path in sorted(directory.glob("*/commands")):
        found = _open(str(path.parent))
        scorers = found.scorers()
        counts = Counter(found.state(task.cell, scorers) for task in found.tasks())
        typer.echo(f"{found.name}: {counts[DONE]} of {sum(counts.values())} done, {counts[FAILED]} failed")


def _open(name: str) -> Sweep:
    candidates = [Path(name), Path("outputs") / name]
    for directory in candidates:
        manifests = sorted((directory / "commands").glob("*.json"))
        if manifests:
            newest = read_json(manifests[-1])
            store = Path(newest["store"])
            # A tree that was moved keeps its store beside its sweeps.
            beside = directory.absolute().parent / store.name
            return Sweep(directory.absolute(), Store(store if store.exists() or not beside.exists() else beside))
    raise typer.BadParameter(f"{name}: no sweep there (looked for {' and '.join(f'{c}/commands' for c in candidates)})")


def main() -> None:
    """Entry point of the command: errors for the user in one line."""
    try:
        app()
    except EmosteerError as error:
        sys.exit(str(error))
