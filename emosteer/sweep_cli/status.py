"""`emosteer-sweep status`: what became of a sweep."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import typer

from emosteer.records.cell import ATTRIBUTION, BASELINE, CELL, CONTROL
from emosteer.records.sweep import DONE, FAILED, PENDING, Sweep
from emosteer.sweep_cli.arguments import JsonOption, SweepArgument
from emosteer.sweep_cli.finding import open_sweep
from emosteer.sweep_cli.overview import RUNNING, STATES, Overview, Standing, overview
from emosteer.sweep_cli.printing import count, one_line, print_json, print_table

UNFINISHED = 3
MOST_FAILURES = 20
KINDS = {CELL: "cells", CONTROL: "random controls", BASELINE: "baselines", ATTRIBUTION: "attributions"}
SHARED = "(shared by pairs)"


def status(sweep: SweepArgument, as_json: JsonOption = False) -> None:
    """Tell what became of a sweep.

    What is done, what failed and why, what runs now, and which command goes on. "Running" is what a live worker holds at this moment,
    on any host that shares the store. Nothing is changed on disk, save that a record which proves damaged is moved aside, as a run
    would do, and counts as pending.

    \b
    Examples:
      emosteer-sweep status default
      emosteer-sweep status /scratch/me/outputs/layers
      emosteer-sweep status default --json | jq .counts.failed
      while emosteer-sweep status mine > log; [ $? = 3 ]; do sleep 60; done

    \b
    JSON:
      sweep, directory, store
      counts    {done, failed, running, pending, total}
      kinds     {cell, control, baseline, attribution: counts}
      groups    [{model, pair, ...counts}]; pair is null for what pairs share
                (baselines, controls)
      failures  [{id, kind, exception, message, host, time, file}]; the file
                has the traceback
      workers   [{host, pid, running}]
      states    {cell id: done | failed | running | pending}
      goes_on   {command, directory}: the last command, as typed and where;
                null where nothing is pending

    \b
    Exit codes:
      0  all is done
      1  something failed (whatever else is pending)
      2  no such sweep, or its manifest is damaged
      3  not finished: something is running or pending, nothing failed
    """  # noqa: D301 - \b keeps the lines of a paragraph
    found = open_sweep(sweep)
    seen = overview(found)
    if as_json:
        print_json(_as_data(found, seen))
    else:
        _show(found, seen)
    raise typer.Exit(exit_code(seen))


def exit_code(seen: Overview) -> int:
    """0 where all is done, 1 where something failed, else 3."""
    if seen.counts[FAILED]:
        return 1
    return 0 if seen.counts[DONE] == seen.counts["total"] else UNFINISHED


def goes_on(seen: Overview) -> dict[str, str] | None:
    """The command that runs what is missing, and where it was given; None where nothing is."""
    if not seen.counts[PENDING] + seen.counts[RUNNING]:
        return None
    return {"command": shlex.join(seen.newest["line"]), "directory": str(seen.newest["provenance"].get("directory") or "")}


def failures(sweep: Sweep, seen: Overview) -> list[dict[str, Any]]:
    """Why those tasks failed that did."""
    return [_failure(sweep, one) for one in seen.of_state(FAILED)]


def show_failures(found: list[dict[str, Any]]) -> None:
    """Print failures, a line each."""
    for one in found[:MOST_FAILURES]:
        where = one_line(f"{one['exception']}: {one['message']}")
        typer.echo(f"failed: {one['id']}: {where} (traceback: {_short(Path(one['file']))})")
    if len(found) > MOST_FAILURES:
        rest = len(found) - MOST_FAILURES
        typer.echo(f"and {rest:,} more failed; --json lists all, and {_short(Path(found[0]['file']).parent)} has them")


def _failure(sweep: Sweep, one: Standing) -> dict[str, Any]:
    try:
        facts = sweep.failure(one.cell) or {}
    except ValueError:
        facts = {"exception": "unknown", "message": "the file about it is damaged"}
    known = {key: facts.get(key) for key in ("exception", "message", "host", "time")}
    return {"id": one.cell.id, "kind": one.cell.kind, **known, "file": str(sweep.paths.failure(one.cell.id))}


def _workers(seen: Overview) -> list[dict[str, Any]]:
    held = Counter((one.holder.host, one.holder.pid) for one in seen.standings if one.holder)
    return [{"host": host, "pid": pid, "running": n} for (host, pid), n in sorted(held.items())]


def _as_data(sweep: Sweep, seen: Overview) -> dict[str, Any]:
    groups = seen.by(lambda one: (one.model, one.pair))
    return {
        "sweep": sweep.name,
        "directory": str(sweep.paths.root),
        "store": str(sweep.store.paths.root),
        "counts": seen.counts,
        "kinds": seen.by(lambda one: one.cell.kind),
        "groups": [{"model": model, "pair": pair, **counts} for (model, pair), counts in groups.items()],
        "failures": failures(sweep, seen),
        "workers": _workers(seen),
        "states": {one.cell.id: one.state for one in seen.standings},
        "goes_on": goes_on(seen),
    }


def _show(sweep: Sweep, seen: Overview) -> None:
    counts = seen.counts
    states = ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])
    typer.echo(f"{sweep.name}: {states or 'nothing in it'}\n")
    kinds = seen.by(lambda one: one.cell.kind)
    columns = (*STATES, "total")
    rows = [[name, *_numbers(kinds[kind])] for kind, name in KINDS.items() if kind in kinds]
    print_table(("", *columns), rows, columns)
    typer.echo()
    groups = seen.by(lambda one: (one.model, one.pair or SHARED))
    print_table(("model", "pair", *columns), [[*key, *_numbers(group)] for key, group in groups.items()], columns)
    if counts[DONE] < counts["total"]:
        typer.echo()
    for worker in _workers(seen):
        typer.echo(f"running: {count(worker['running'], 'task')} by process {worker['pid']} on {worker['host']}")
    show_failures(failures(sweep, seen))
    if counts[FAILED]:
        typer.echo(f"again:   emosteer-sweep retry {shlex.quote(_short(sweep.paths.root))}")
    if (command := goes_on(seen)) is not None:
        elsewhere = command["directory"] not in ("", str(Path.cwd()))
        place = f"cd {shlex.quote(command['directory'])} && " if elsewhere else ""
        typer.echo(f"goes on: {place}{command['command']}")


def _numbers(counts: dict[str, int]) -> list[str]:
    return [f"{counts[state]:,}" if counts[state] else "-" for state in (*STATES, "total")]


def _short(path: Path) -> str:
    """A path as seen from here, where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
