"""`emosteer-sweep logs`: what was written about a cell, or by a worker."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from emosteer.errors import EmosteerError
from emosteer.overview import Standing, overview
from emosteer.records.publish import names_in
from emosteer.records.sweep import FAILED, Sweep
from emosteer.records.workers import workers
from emosteer.sweep_cli.arguments import JsonOption, SweepArgument, task_ids, worker_names
from emosteer.sweep_cli.finding import cell_called, open_sweep
from emosteer.sweep_cli.printing import called, print_json, short

LAST_LINES = 15
"""Of what a worker that died had printed."""
MOST_NAMES = 12
PRINTED = re.compile(r"(?P<job>\d+(?:_\d+)?)_\d+_log\.(?:out|err)")
"""What a batch script and its worker printed: `17_3_0_log.err`."""
BEGINNING = re.compile(r"(?:\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d(?:,\d+)? [A-Z]+ (?:[\w.]+: )?")
"""Time, level and logger; a line without goes on with the one before."""

CellArgument = Annotated[
    str | None, typer.Argument(metavar="CELL", help="A task's id, or so much of its beginning as tells it.", autocompletion=task_ids)
]
WorkerOption = Annotated[
    str | None,
    typer.Option("--worker", metavar="WORKER", help="All that a worker printed: 17_3, or HOST-PID.", autocompletion=worker_names),
]


def logs(sweep: SweepArgument, cell: CellArgument = None, worker: WorkerOption = None, as_json: JsonOption = False) -> None:
    """Print what was written about a cell, or by a worker.

    Of a cell, control, baseline or attribution: where it ran, the traceback if it failed, the lines of all logs that name it, and of
    workers that were lost while they held it how their output ends. On disk nothing is changed; the files are the sweep's logs/ and
    slurm/output/.

    \b
    Examples:
      emosteer-sweep logs default joy_sadness-L8-c0.2
      emosteer-sweep logs default --worker 17_3 | tail
      emosteer-sweep logs default joy_sadness-L8-c0.2 --json |
        jq -r .failure.traceback

    \b
    JSON: of a cell
      sweep, directory, id, kind, state, attempt, node, job
      failure   {exception, message, traceback, ...}; null where it did not fail
      lines     [{file, lines}]: what names it, with the lines that go on
      losses    [{host, node, job, pid, reason, time, output: [{file, lines}]}]:
                workers that were lost, and how their output ends
    and of a worker
      sweep, directory, worker
      files     [{file, lines}]

    \b
    Exit codes:
      0  printed; also where nothing was written about the cell
      2  no such sweep, cell or worker; several cells begin so
    """  # noqa: D301 - \b keeps the lines of a paragraph
    found = open_sweep(sweep)
    if (cell is None) == (worker is None):
        raise EmosteerError(f"give a task's id, or --worker: {_choice(found)}")
    place = {"sweep": found.name, "directory": str(found.paths.root)}
    if worker is not None:
        files = [_whole(path) for path in _files_of(found, worker)]
        if as_json:
            print_json({**place, "worker": worker, "files": files})
        else:
            _show_files(files)
        return
    wanted = cell_called(found, str(cell)).id
    one = next(one for one in overview(found).standings if one.cell.id == wanted)
    data = {**place, **_as_data(found, one)}
    if as_json:
        print_json(data)
    else:
        _show(found, data)


def _choice(sweep: Sweep) -> str:
    names = sorted(_names_of_workers(sweep))
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    workers = f"its workers are {', '.join(names[:MOST_NAMES])}{more}" if names else "it has no logs yet"
    return f"`emosteer-sweep status {called(sweep.paths.root)} --cells` lists the ids, and {workers}"


def _as_data(sweep: Sweep, one: Standing) -> dict[str, Any]:
    return {
        **one.as_data(),
        "failure": one.failure,
        "lines": list(_about(one.cell.id, _all_files(sweep))),
        "losses": [{**loss, "output": _last_words(sweep, loss)} for loss in sweep.losses(one.cell)],
    }


def _about(cell_id: str, paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The lines that name a cell; a message that stands in a worker's log and in what it printed is given once."""
    given: set[str] = set()
    for path in paths:
        lines = []
        goes_on = False
        for text in _read(path):
            beginning = BEGINNING.match(text)
            if beginning:
                message = text[beginning.end() :]
                goes_on = cell_id in text and message not in given
                given |= {message} if goes_on else set()
            if goes_on or (beginning is None and cell_id in text):
                lines.append(text)
        if lines:
            yield {"file": str(path), "lines": lines}


def _last_words(sweep: Sweep, loss: dict[str, Any]) -> list[dict[str, Any]]:
    """How the output of a worker ends that was lost."""
    name = loss.get("job") or f"{loss.get('host')}-{loss.get('pid')}"
    found = [path for path in _all_files(sweep) if _name_of(path) == str(name)]
    return [{"file": str(path), "lines": lines[-LAST_LINES:]} for path in found if (lines := _read(path))]


def _files_of(sweep: Sweep, worker: str) -> list[Path]:
    """What a worker printed, or where that is not kept, its log.

    Raises:
        EmosteerError: there is neither.
    """
    processes = {f"{one.host}-{one.pid}" for one in workers(sweep.paths.slurm) if one.job == worker}
    files = _all_files(sweep)
    found = [path for path in files if _name_of(path) == worker] or [path for path in files if _name_of(path) in processes]
    if not found:
        raise EmosteerError(
            f"--worker {worker}: nothing of it is in {sweep.paths.logs} or {sweep.paths.slurm.output}; {_choice(sweep)}"
        )
    return found


def _all_files(sweep: Sweep) -> list[Path]:
    """The workers' logs, and what they printed."""
    return [
        directory / name
        for directory, endings in ((sweep.paths.logs, (".log",)), (sweep.paths.slurm.output, (".out", ".err")))
        for name in sorted(names_in(directory))
        if name.endswith(endings)
    ]


def _names_of_workers(sweep: Sweep) -> set[str]:
    """Their jobs where they are SLURM's, else host and process."""
    in_jobs = {f"{one.host}-{one.pid}" for one in workers(sweep.paths.slurm)}
    return {_name_of(path) for path in _all_files(sweep)} - in_jobs


def _name_of(path: Path) -> str:
    """Whose a file is: `17_3` or `host-1234`."""
    printed = PRINTED.fullmatch(path.name)
    return printed["job"] if printed else path.stem


def _whole(path: Path) -> dict[str, Any]:
    return {"file": str(path), "lines": _read(path)}


def _read(path: Path) -> list[str]:
    """A file's lines; what is no UTF-8 in it is shown as it can be."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _show(sweep: Sweep, data: dict[str, Any]) -> None:
    ran = [f"attempt {data['attempt']}"] if data["attempt"] else []
    ran += [f"job {data['job']}"] if data["job"] else []
    ran += [f"on {data['node']}"] if data["node"] else []
    typer.echo(f"{data['id']}: {data['state']}" + (f" ({', '.join(ran)})" if ran else ""))
    if data["state"] == FAILED:
        typer.echo(f"\n{(data['failure'].get('traceback') or _without_traceback(data['failure'])).rstrip()}")
    for loss in data["losses"]:
        where = (
            f"worker {loss['job']} on {loss.get('node')}" if loss.get("job") else f"process {loss.get('pid')} on {loss.get('host')}"
        )
        typer.echo(f"\nlost: {where}, {loss.get('time')}: {loss.get('reason')}")
        _show_files(loss["output"], f" (its last {LAST_LINES} lines)")
    _show_files(data["lines"])
    if not data["lines"] and not data["losses"] and data["job"]:
        typer.echo(f"No line names it; all of its worker: emosteer-sweep logs {called(sweep.paths.root)} --worker {data['job']}")
    elif not data["lines"] and not data["losses"]:
        typer.echo("No line names it.")


def _without_traceback(failure: dict[str, Any]) -> str:
    return f"{failure['exception']}: {failure['message']}"


def _show_files(files: Iterable[dict[str, Any]], remark: str = "") -> None:
    for one in files:
        typer.echo(f"\n== {short(Path(one['file']))}{remark}")
        for text in one["lines"]:
            typer.echo(text)
