"""`emosteer-sweep retry`: what failed in a sweep, again."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from emosteer.records.sweep import FAILED, PENDING, Sweep
from emosteer.sweep_cli.arguments import JsonOption, SweepArgument
from emosteer.sweep_cli.finding import open_sweep
from emosteer.sweep_cli.overview import RUNNING, Overview, overview
from emosteer.sweep_cli.printing import count, print_json
from emosteer.sweep_cli.report import finalised
from emosteer.sweep_cli.status import failures, goes_on, show_failures

OnlyForget = Annotated[
    bool, typer.Option("--only-forget", help="Forget the failures and run nothing: the next run of the sweep takes these cells up.")
]


def retry(sweep: SweepArgument, only_forget: OnlyForget = False, as_json: JsonOption = False) -> None:
    """Run again what failed in a sweep.

    In this process, with what else is missing; then the results are built. The model is loaded as `emosteer` would load it, in the
    directory in which the last command was given. On disk: the failed cells' files in the sweep's failures/ are deleted, new records
    join the store, and the results are replaced as by `report`. Mend the cause first: `status` tells it.

    \b
    Examples:
      emosteer-sweep retry default
      emosteer-sweep retry default --only-forget   # then emosteer -m ... again

    \b
    JSON:
      sweep, directory
      retried   [cell id]
      failures  [{id, kind, exception, message, host, time, file}]: what failed
                again
      counts    {done, failed, running, pending, total}, afterwards

    \b
    Exit codes:
      0  all that failed is done now, or forgotten with --only-forget; also
         where nothing had failed
      1  a cell failed again
      2  no such sweep, or its manifest is damaged
    """  # noqa: D301 - \b keeps the lines of a paragraph
    found = open_sweep(sweep)
    before = overview(found)
    failed = [one.cell for one in before.of_state(FAILED)]
    for cell in failed:
        found.forget_failure(cell)
    if not as_json:
        for cell in failed:
            typer.echo(f"{'forgotten' if only_forget else 'again'}: {cell.id}")
    after = before
    if failed:
        if not only_forget:
            _run(found, before, as_json)
        after = overview(found)
    if as_json:
        retried = [cell.id for cell in failed]
        data = {"sweep": found.name, "directory": str(found.paths.root), "retried": retried, "failures": failures(found, after)}
        print_json(data | {"counts": after.counts})
    elif failed:
        _tell(found, after, len(failed), only_forget)
    else:
        _tell_nothing(found, before)
    raise typer.Exit(1 if after.counts[FAILED] else 0)


def _run(sweep: Sweep, seen: Overview, is_quiet: bool) -> None:
    from emosteer.launcher import work

    given = Path(seen.newest["provenance"].get("directory") or ".")
    # A relative model.path is meant from there.
    with contextlib.chdir(given) if given.is_dir() else contextlib.nullcontext():
        work(sweep)
    finalised(sweep, is_quiet)


def _tell(sweep: Sweep, seen: Overview, n_retried: int, only_forget: bool) -> None:
    if only_forget:
        typer.echo(f"{count(n_retried, 'failure')} of {sweep.name} forgotten; nothing was run")
        if (command := goes_on(seen)) is not None:
            typer.echo(f"goes on: {command['command']}")
        return
    show_failures(failures(sweep, seen))
    typer.echo(f"{count(n_retried, 'task')} of {sweep.name} retried, {seen.counts[FAILED]} failed again")


def _tell_nothing(sweep: Sweep, seen: Overview) -> None:
    typer.echo(f"{sweep.name}: nothing failed, nothing to retry")
    if (command := goes_on(seen)) is not None:
        typer.echo(f"{count(seen.counts[PENDING] + seen.counts[RUNNING], 'task')} not done yet; goes on: {command['command']}")
