"""How commands print: tables for a terminal and for a pipe, JSON, numbers with their nouns."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

STAMP = "%Y%m%dT%H%M%SZ"
"""How a manifest writes its time."""


def print_json(data: Any) -> None:
    """Print plain data as JSON."""
    typer.echo(json.dumps(data, indent=1, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str | int]], numbers: Sequence[str] = ()) -> None:
    """Print rows under headings: as wide as the terminal, or, in a pipe, aligned and never cut.

    Args:
        headings: of the columns.
        rows: their cells.
        numbers: the headings of columns that are aligned to the right.
    """
    cells = [[str(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        _print_plain([list(headings), *cells], [heading in numbers for heading in headings])
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold", no_wrap=heading in numbers)
    for line in cells:
        table.add_row(*map(Text, line))
    Console(highlight=False).print(table)


def _print_plain(lines: Sequence[Sequence[str]], is_number: Sequence[bool]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        aligned = [text.rjust(n) if right else text.ljust(n) for text, n, right in zip(line, widths, is_number, strict=True)]
        typer.echo("  ".join(aligned).rstrip())


def count(n: int, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def utc(stamp: str) -> datetime:
    """The time that a manifest's stamp says; raises ValueError where it says none."""
    return datetime.strptime(stamp, STAMP).replace(tzinfo=UTC)


def one_line(text: str, most: int = 160) -> str:
    """Text without line breaks, cut where it is long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 3]}..."


def short(path: Path) -> str:
    """A path as seen from here, where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def called(root: Path) -> str:
    """A sweep's directory as an argument of a command given here, quoted for a shell: by its name, where that finds it."""
    is_here = root.parent == (Path.cwd() / "outputs").resolve() and not Path(root.name).exists()
    return shlex.quote(root.name if is_here else short(root))
