"""`emosteer-sweep retry`: what failed or was left in a sweep, again."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from emosteer.errors import EmosteerError
from emosteer.overview import RUNNING, Overview, Standing, overview
from emosteer.records.sweep import DONE, FAILED, PENDING, Sweep
from emosteer.slurm.following import tell
from emosteer.slurm.submitting import Submitted
from emosteer.sweep_cli.arguments import JsonOption, SweepArgument, task_ids
from emosteer.sweep_cli.finding import cell_called, open_sweep
from emosteer.sweep_cli.outlook import failures, goes_on, is_for_slurm, looked_at, n_left
from emosteer.sweep_cli.printing import called, count, print_json
from emosteer.sweep_cli.report import finalised
from emosteer.sweep_cli.showing import show_failures
from emosteer.sweep_cli.submitting import NumberOption, submit_again, submitted_data

MOST_LINES = 20

CellsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CELL]...", help="Only these: ids, or so much of their beginning as tells them.", autocompletion=task_ids
    ),
]
All = Annotated[
    bool, typer.Option("--all", help="All that is neither done nor running: what failed, and what was cancelled, lost or never run.")
]
Here = Annotated[bool, typer.Option("--here", help="In this process, also where the sweep was submitted to SLURM.")]
OnlyForget = Annotated[
    bool, typer.Option("--only-forget", help="Forget the failures and run nothing: the next run of the sweep takes these cells up.")
]


def retry(
    sweep: SweepArgument,
    cells: CellsArgument = None,
    everything: All = False,
    here: Here = False,
    n_workers: NumberOption = None,
    only_forget: OnlyForget = False,
    as_json: JsonOption = False,
) -> None:
    """Run again what failed in a sweep, or what was left.

    A sweep that was last given to SLURM gets workers there, with the options of its last submission; the command returns, and says
    how to follow them. Any other, and with --here, runs in this process, with what else is missing; then the results are built. The
    model is loaded as `emosteer` would load it, in the directory in which the last command was given.

    On disk: the chosen cells' files in the sweep's failures/ and losses/ are deleted, so that their attempts count from one; new
    records join the store, and the results are replaced as by `report`. Mend the cause first: `status` tells it, and `logs` shows the
    traceback.

    \b
    Examples:
      emosteer-sweep retry default
      emosteer-sweep retry default --all --workers 8   # after `cancel`
      emosteer-sweep retry default joy_sadness-L8-c0.2 --here
      emosteer-sweep retry default --only-forget   # then emosteer -m ... again

    \b
    JSON:
      sweep, directory
      retried   [cell id]
      submitted {workers, earlier_workers, jobs, finaliser}: what SLURM was
                given; null where nothing was
      failures  [{id, kind, exception, message, host, node, job, attempt, time,
                file}]: what failed (again)
      counts    {done, failed, running, pending, total}, afterwards

    \b
    Exit codes:
      0  all that was chosen is done now, or submitted, or forgotten with
         --only-forget; also where there was nothing to retry
      1  a cell failed (again)
      2  no such sweep or cell, a cell that is done or running; a file of the
         sweep is damaged; SLURM does not take the workers, or does not answer
    """  # noqa: D301 - \b keeps the lines of a paragraph
    found = open_sweep(sweep)
    if cells and everything:
        raise EmosteerError("give cells, or --all")
    before, at_work = looked_at(found)
    chosen = _chosen(found, before, cells or [], everything)
    submitted = None
    after = before
    if chosen:
        is_elsewhere = not (here or only_forget) and is_for_slurm(found, before)
        if n_workers is not None and not is_elsewhere:
            raise EmosteerError("--workers is for a sweep that was last given to SLURM, without --here and --only-forget")
        if is_elsewhere:
            submitted = submit_again(found, n_workers, first=lambda: _forget(found, chosen))
        else:
            _forget(found, chosen)
        if not as_json:
            _tell_which(chosen, only_forget)
        if submitted is None and not only_forget:
            _run(found, before, as_json)
        after = overview(found)
    if as_json:
        print_json(_as_data(found, chosen, submitted, after))
    elif submitted is not None:
        tell(found, submitted)
    elif chosen:
        _tell(found, after, len(chosen), only_forget)
    else:
        _tell_nothing(found, before, at_work.is_live)
    raise typer.Exit(1 if after.counts[FAILED] and submitted is None else 0)


def _chosen(sweep: Sweep, seen: Overview, names: Sequence[str], everything: bool) -> list[Standing]:
    """What is to run again.

    Raises:
        EmosteerError: a name that is no task's, or that of one which is done or running.
    """
    if everything:
        return [one for one in seen.standings if one.state in (FAILED, PENDING)]
    if not names:
        return seen.of_state(FAILED)
    ids = {cell_called(sweep, name).id for name in names}
    chosen = [one for one in seen.standings if one.cell.id in ids]
    for one in chosen:
        if one.state == DONE:
            raise EmosteerError(f"{one.cell.id} is done: mode=force with its command would run it again")
        if one.state == RUNNING:
            raise EmosteerError(f"{one.cell.id} is running: wait for it, or cancel its worker")
    return chosen


def _forget(sweep: Sweep, chosen: Sequence[Standing]) -> None:
    for one in chosen:
        if one.state == FAILED or one.lost:
            sweep.forget_failure(one.cell)


def _run(sweep: Sweep, seen: Overview, is_quiet: bool) -> None:
    from emosteer.launcher import work

    given = Path(seen.newest["provenance"].get("directory") or ".")
    # A relative model.path is meant from there.
    with contextlib.chdir(given) if given.is_dir() else contextlib.nullcontext():
        work(sweep)
    finalised(sweep, is_quiet)


def _as_data(sweep: Sweep, chosen: Sequence[Standing], submitted: Submitted | None, after: Overview) -> dict[str, Any]:
    return {
        "sweep": sweep.name,
        "directory": str(sweep.paths.root),
        "retried": [one.cell.id for one in chosen],
        "submitted": submitted_data(submitted) if submitted else None,
        "failures": failures(sweep, after),
        "counts": after.counts,
    }


def _tell_which(chosen: Sequence[Standing], only_forget: bool) -> None:
    for one in chosen[:MOST_LINES]:
        typer.echo(f"{'forgotten' if only_forget else 'again'}: {one.cell.id}")
    if len(chosen) > MOST_LINES:
        typer.echo(f"and {len(chosen) - MOST_LINES:,} more")


def _tell(sweep: Sweep, seen: Overview, n_retried: int, only_forget: bool) -> None:
    if only_forget:
        typer.echo(f"{count(n_retried, 'failure')} of {sweep.name} forgotten; nothing was run")
        if (command := goes_on(seen)) is not None:
            typer.echo(f"goes on: {command['command']}")
        return
    show_failures(failures(sweep, seen))
    typer.echo(f"{count(n_retried, 'task')} of {sweep.name} retried, {seen.counts[FAILED]} failed again")


def _tell_nothing(sweep: Sweep, seen: Overview, is_live: bool) -> None:
    left, name = n_left(seen), called(sweep.paths.root)
    typer.echo(f"{sweep.name}: nothing failed, nothing to retry")
    if left and is_live:
        typer.echo(f"{count(left, 'task')} not done yet; its jobs go on: emosteer-sweep watch {name}")
    elif left and is_for_slurm(sweep, seen):
        typer.echo(f"{count(left, 'task')} not done yet; goes on: emosteer-sweep retry {name} --all")
    elif (command := goes_on(seen)) is not None:
        typer.echo(f"{count(left, 'task')} not done yet; goes on: {command['command']}")
