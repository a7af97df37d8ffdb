"""`emosteer-sweep status`: what became of a sweep."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from emosteer.overview import STATES, Overview, Standing
from emosteer.records.cell import ATTRIBUTION, BASELINE, CELL, CONTROL, PROMPTING
from emosteer.records.sweep import DONE, FAILED, PENDING, Sweep
from emosteer.sweep_cli.arguments import JsonOption, SweepArgument
from emosteer.sweep_cli.crew import Crew
from emosteer.sweep_cli.finding import open_sweep
from emosteer.sweep_cli.outlook import exit_code, failures, goes_on, is_for_slurm, looked_at, n_left, slurm_data
from emosteer.sweep_cli.printing import called, count, one_line, print_json, print_table
from emosteer.sweep_cli.showing import show_failures, show_slurm

KINDS = {CELL: "cells", CONTROL: "random controls", PROMPTING: "prompted", BASELINE: "baselines", ATTRIBUTION: "attributions"}
SHARED = "(shared by pairs)"
CELL_HEADINGS = ("task", "state", "attempt", "node", "job", "seconds", "why")

Cells = Annotated[bool, typer.Option("--cells", help="Also a line for each task: cells, controls, baselines, attributions.")]


def status(sweep: SweepArgument, cells: Cells = False, as_json: JsonOption = False) -> None:
    """Tell what became of a sweep.

    What is done, what failed and why, what runs now, and what to do next. Records and leases say how cells stand: "running" is what a
    live worker holds at this moment, on any host that shares the store. Of a sweep that was submitted to SLURM also its workers, by
    their own word and SLURM's; where SLURM does not answer, that is said. Nothing is changed on disk, save that a record which proves
    damaged is moved aside, as a run would do, and counts as pending.

    \b
    Of a worker:
      running    SLURM runs it (without SLURM: it wrote a moment ago). A process
                 outside of SLURM is at what the store lacks first of what it
                 holds: attribution, residual norms, vectors, replies, scores;
                 a model that is still loaded is not told apart
      silent     SLURM runs it, and it has not written for a minute
      starting   SLURM runs it, and it has not written yet
      waiting    in SLURM's queue, with SLURM's reason
      lost       its job has ended, and it never said so: killed, out of memory
                 or time, or its node is gone; others take over what it held
      cancelled, ended
      not known  SLURM does not answer, or contradicts what it wrote a moment ago

    \b
    Examples:
      emosteer-sweep status default
      emosteer-sweep status default --cells | grep lost
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
      cells     [{id, kind, state, attempt, node, job, seconds, lost, why}];
                lost: how many workers ended while they held it
      failures  [{id, kind, exception, message, host, node, job, attempt, time,
                file}]; the file has the traceback
      states    {cell id: done | failed | running | pending}
      workers   [{job, start, state, detail, slurm, node, host, pid, running,
                published, failed, tokens, tokens_per_second, rows, batch_rows,
                engine_path, engine_reason, spent, stage, started, seen,
                seconds, exit_code}]; start: how often SLURM has started the
                job; slurm: its own word; running: tasks that it holds; rows:
                in the mean forward, of batch_rows that have room; spent: the
                seconds that went to loading, prefill, decode, scoring, ...;
                job is null outside of SLURM
      slurm     {answers, why, finaliser, live, interrupted}: why it does not
                answer; the job that builds the results, as a worker; whether
                any job may be alive; submissions that are not complete; null
                where the sweep was never submitted
      goes_on   {command, directory}: the last command, as typed and where;
                null where nothing is pending

    \b
    Exit codes:
      0  all is done
      1  something failed (whatever else is pending)
      2  no such sweep, or a file of it is damaged
      3  not finished: something is running or pending, nothing failed
    """  # noqa: D301 - \b keeps the lines of a paragraph
    found = open_sweep(sweep)
    seen, at_work = looked_at(found)
    if as_json:
        print_json(_as_data(found, seen, at_work))
    else:
        _show(found, seen, at_work)
        if cells:
            _show_cells(found, seen)
    raise typer.Exit(exit_code(seen))


def _show(sweep: Sweep, seen: Overview, at_work: Crew) -> None:
    _show_counts(sweep, seen)
    if at_work.is_submitted:
        typer.echo()
        show_slurm(sweep, at_work)
    if seen.counts[DONE] < seen.counts["total"]:
        typer.echo()
    _show_processes(at_work)
    show_failures(failures(sweep, seen))
    _show_what_next(sweep, seen, at_work)


def _show_counts(sweep: Sweep, seen: Overview) -> None:
    """A line in all, then by kind, then by model and pair."""
    states = ", ".join(f"{seen.counts[state]:,} {state}" for state in STATES if seen.counts[state])
    typer.echo(f"{sweep.name}: {states or 'nothing in it'}\n")
    kinds = seen.by(lambda one: one.cell.kind)
    columns = (*STATES, "total")
    rows = [[name, *_numbers(kinds[kind])] for kind, name in KINDS.items() if kind in kinds]
    print_table(("", *columns), rows, columns)
    typer.echo()
    groups = seen.by(lambda one: (one.model, one.pair or SHARED))
    print_table(("model", "pair", *columns), [[*key, *_numbers(group)] for key, group in groups.items()], columns)


def _show_processes(at_work: Crew) -> None:
    """Those that are no workers of the sweep's own submissions."""
    for worker in at_work.members:
        if not worker.is_own and worker.process:
            by = f"job {worker.job}, " if worker.job else ""
            by += f"process {worker.process.pid} on {worker.process.host}"
            typer.echo(f"running: {count(worker.n_running, 'task')} by {by}, {worker.detail}")


def _show_cells(sweep: Sweep, seen: Overview) -> None:
    typer.echo()
    print_table(CELL_HEADINGS, [_cell_row(one) for one in _cells(sweep, seen)], ("attempt", "seconds"))


def _show_what_next(sweep: Sweep, seen: Overview, at_work: Crew) -> None:
    name = called(sweep.paths.root)
    if seen.counts[FAILED]:
        typer.echo(f"again:   emosteer-sweep retry {name}")
    if n_left(seen) and at_work.is_live:
        typer.echo(f"watch:   emosteer-sweep watch {name}")
    elif n_left(seen) and is_for_slurm(sweep, seen):
        typer.echo(f"goes on: emosteer-sweep retry {name} --all")
    elif not n_left(seen) and not at_work.is_live and not sweep.paths.results_csv.exists():
        typer.echo(f"results: emosteer-sweep report {name}")
    elif (command := goes_on(seen)) is not None:
        elsewhere = command["directory"] not in ("", str(Path.cwd()))
        place = f"cd {shlex.quote(command['directory'])} && " if elsewhere else ""
        typer.echo(f"goes on: {place}{command['command']}")


def _cell_row(one: dict[str, Any]) -> list[str | int]:
    seconds = "-" if one["seconds"] is None else f"{one['seconds']:.1f}"
    texts = [str(one[key]) if one[key] is not None else "-" for key in ("attempt", "node", "job")]
    return [one["id"], one["state"], *texts, seconds, one_line(one["why"] or "")]


def _numbers(counts: dict[str, int]) -> list[str]:
    return [f"{counts[state]:,}" if counts[state] else "-" for state in (*STATES, "total")]


def _as_data(sweep: Sweep, seen: Overview, at_work: Crew) -> dict[str, Any]:
    groups = seen.by(lambda one: (one.model, one.pair))
    return {
        "sweep": sweep.name,
        "directory": str(sweep.paths.root),
        "store": str(sweep.store.paths.root),
        "counts": seen.counts,
        "kinds": seen.by(lambda one: one.cell.kind),
        "groups": [{"model": model, "pair": pair, **counts} for (model, pair), counts in groups.items()],
        "cells": _cells(sweep, seen),
        "failures": failures(sweep, seen),
        "states": {one.cell.id: one.state for one in seen.standings},
        "workers": [one.as_data() for one in at_work.members],
        "slurm": slurm_data(at_work),
        "goes_on": goes_on(seen),
    }


def _cells(sweep: Sweep, seen: Overview) -> list[dict[str, Any]]:
    losses = sweep.all_losses() if any(one.lost and one.state != DONE for one in seen.standings) else {}
    return [
        {
            **one.as_data(),
            "seconds": one.seconds,
            "lost": one.lost,
            "why": _why(one, losses.get(one.cell.id, [])),
        }
        for one in seen.standings
    ]


def _why(one: Standing, losses: list[dict[str, Any]]) -> str | None:
    """Why a task failed, or is not done though it was begun."""
    if one.failure is not None:
        return f"{one.failure['exception']}: {one.failure['message']}"
    told = []
    if one.holder is not None and one.state == PENDING:
        told.append(f"worker {one.holder.job} ended while it held it; another takes it over when its lease expires")
    if losses and one.state != DONE:
        last = losses[-1]
        told.append(f"{count(len(losses), 'worker')} lost, the last one {_where(last)}: {last.get('reason') or 'nobody knows why'}")
    return "; ".join(told) or None


def _where(loss: dict[str, Any]) -> str:
    if loss.get("job"):
        return f"{loss['job']} on {loss.get('node')}"
    return f"process {loss.get('pid')} on {loss.get('host')}"
