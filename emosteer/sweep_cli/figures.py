"""`emosteer-sweep figures`: a sweep's figures and its table for a paper."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer

from emosteer.errors import EmosteerError
from emosteer.progress import Work, working
from emosteer.records.publish import publish_file
from emosteer.records.sweep import Sweep
from emosteer.sweep_cli.arguments import JsonOption, SweepArgument
from emosteer.sweep_cli.finding import open_sweep
from emosteer.sweep_cli.printing import print_json, short

FORMATS = ("pdf", "png")
DOTS = 300
"""Per inch, of a PNG."""


def figures(
    sweep: SweepArgument,
    to: Annotated[Path | None, typer.Option(help="The directory to write to; by default paper/ in the sweep's.")] = None,
    metric: Annotated[str | None, typer.Option(help="What is drawn; by default each pair's primary metric.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a sweep's figures for a paper, and its table.

    The report's heatmaps, dose-response curves, trade-offs with perplexity and attributions, each as PDF (text stays text) and as PNG
    (300 dots per inch), and cells.tex, the table of cells for LaTeX (booktabs). Made anew of the records, of a half-done sweep of
    what is there. On disk it replaces files of these names in paper/, or in the directory that is named.

    \b
    Examples:
      emosteer-sweep figures default
      emosteer-sweep figures default --metric first_person --to figures

    \b
    JSON:
      sweep, directory
      files  a list of what was written

    \b
    Exit codes:
      0  written
      2  no such sweep, nothing to draw yet, a metric that nobody computed, a
         directory that cannot be written
    """  # noqa: D301 - \b keeps the lines of a paragraph
    found = open_sweep(sweep)
    place = found.paths.paper if to is None else to
    if place.exists() and not place.is_dir():
        raise EmosteerError(f"--to {place}: that is a file; name a directory")
    with working() as work:
        written = _written(found, place, metric, work)
    if as_json:
        print_json({"sweep": found.name, "directory": str(place), "files": [str(path) for path in written]})
        return
    for path in written:
        typer.echo(short(path.absolute()))


def _written(sweep: Sweep, place: Path, metric: str | None, work: Work) -> list[Path]:
    # Here, so that the other commands do not wait for pandas and matplotlib.
    from matplotlib import rc_context

    from emosteer.report.paper import checked_metric, latex_table, paper_figures
    from emosteer.tables import build

    work.stage(f"building the tables of {sweep.name}")
    tables = build(sweep)
    shown = checked_metric(tables, metric)
    place.mkdir(parents=True, exist_ok=True)
    written = []
    work.stage("drawing the figures")
    with rc_context({"pdf.fonttype": 42}):  # TrueType, as publishers ask
        for name, figure in paper_figures(sweep.store, tables, shown):
            for kind in FORMATS:
                drawn = io.BytesIO()
                figure.savefig(drawn, format=kind, dpi=DOTS, metadata={"CreationDate": None} if kind == "pdf" else None)
                written.append(place / f"{name}.{kind}")
                publish_file(written[-1], drawn.getvalue())
    written.append(place / "cells.tex")
    publish_file(written[-1], latex_table(tables, shown))
    return written
