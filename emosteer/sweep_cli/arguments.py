"""The arguments and options that commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from emosteer.sweep_cli.finding import OUTPUTS, sweep_directories


def _names(incomplete: str) -> list[str]:
    """For the shell's completion: the sweeps under outputs/."""
    try:
        return [directory.name for directory in sweep_directories(OUTPUTS) if directory.name.startswith(incomplete)]
    except OSError:
        return []


SweepArgument = Annotated[
    str,
    typer.Argument(metavar="NAME_OR_DIR", help="A sweep's name under outputs/, or its directory.", autocompletion=_names),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
