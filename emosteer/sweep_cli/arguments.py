"""The arguments and options that commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from emosteer.errors import EmosteerError
from emosteer.records.workers import workers
from emosteer.sweep_cli.finding import OUTPUTS, open_sweep, sweep_directories


def _names(incomplete: str) -> list[str]:
    """For the shell's completion: the sweeps under outputs/."""
    try:
        return [directory.name for directory in sweep_directories(OUTPUTS) if directory.name.startswith(incomplete)]
    except OSError:
        return []


def task_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """For the shell's completion: the ids of the tasks of the sweep that is named before."""
    try:
        return [task.cell.id for task in open_sweep(str(ctx.params.get("sweep"))).tasks() if task.cell.id.startswith(incomplete)]
    except (OSError, EmosteerError):
        return []


def worker_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """For the shell's completion: the SLURM jobs that have worked on the sweep that is named before."""
    try:
        found = workers(open_sweep(str(ctx.params.get("sweep"))).paths.slurm)
    except (OSError, EmosteerError):
        return []
    return list(dict.fromkeys(one.job for one in found if one.job.startswith(incomplete)))


def sweep_argument(metavar: str) -> Any:
    """A sweep, as commands are given it."""
    return typer.Argument(metavar=metavar, help="A sweep's name under outputs/, or its directory.", autocompletion=_names)


SweepArgument = Annotated[str, sweep_argument("NAME_OR_DIR")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
CellArgument = Annotated[
    str | None,
    typer.Argument(metavar="[CELL]", help="A cell's id, or how it begins; by default the best.", autocompletion=task_ids),
]
