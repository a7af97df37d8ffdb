"""`emosteer-sweep report`: a sweep's results again from its records."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import typer

from emosteer.overview import RUNNING, Overview, overview
from emosteer.progress import working
from emosteer.records.sweep import FAILED, PENDING, Sweep
from emosteer.sweep_cli.arguments import JsonOption, SweepArgument
from emosteer.sweep_cli.finding import open_sweep
from emosteer.sweep_cli.printing import count, print_json

if TYPE_CHECKING:
    from emosteer.tables import Tables

TABLES = ("results", "replies", "trends", "confirmations", "predictions", "agreement", "turns")


def report(sweep: SweepArgument, as_json: JsonOption = False) -> None:
    """Build a sweep's results again from its records.

    Tables, figures, report.html, the tracker's runs and the summary are views of the records: of a half-done sweep they hold what is
    there, and twice they are the same. Needs no model. On disk it replaces, in the sweep's directory, sweep.json, results.parquet,
    results.csv, replies.parquet, trends.csv, confirmations.csv, predictions.csv, agreement.csv, turns.csv (of dialogues),
    report.html, figures/ and, with tracking=wandb, wandb/.

    \b
    Examples:
      emosteer-sweep report default
      emosteer-sweep report default --json | jq -r .files.results_csv

    \b
    JSON:
      sweep, directory
      counts    {done, failed, running, pending, total}
      complete  whether all is done
      files     {summary, results_parquet, results_csv, replies_parquet,
                trends_csv, confirmations_csv, predictions_csv, agreement_csv,
                turns_csv (of dialogues), report_html, figures: [...]}
      rows      {results, replies, trends, confirmations, predictions, agreement,
                turns}

    \b
    Exit codes:
      0  built, of a half-done sweep too
      2  no such sweep, or its manifest is damaged
    """  # noqa: D301 - \b keeps the lines of a paragraph
    found = open_sweep(sweep)
    seen = overview(found)
    tables = finalised(found, as_json)
    if as_json:
        print_json(_as_data(found, seen, tables))
    elif lacking := {state: seen.counts[state] for state in (FAILED, RUNNING, PENDING) if seen.counts[state]}:
        states = ", ".join(f"{n:,} {state}" for state, n in lacking.items())
        typer.echo(f"Half done: of {count(seen.counts['total'], 'task')} {states}. The tables and the report hold what is there.")


def finalised(sweep: Sweep, is_quiet: bool) -> Tables:
    """Build a sweep's views; where `is_quiet`, with nothing on stdout."""
    with contextlib.redirect_stdout(sys.stderr) if is_quiet else contextlib.nullcontext():
        with working() as work:
            # Here, so that the other commands do not wait for pandas and matplotlib.
            from emosteer.finaliser import conclude, write_views

            tables = write_views(sweep, work.stage)
        conclude(sweep, tables, show=not is_quiet)
    return tables


def _as_data(sweep: Sweep, seen: Overview, tables: Tables) -> dict[str, Any]:
    paths = sweep.paths
    files = {
        "summary": paths.summary,
        "results_parquet": paths.results_parquet,
        "results_csv": paths.results_csv,
        "replies_parquet": paths.replies,
        "trends_csv": paths.trends_csv,
        "confirmations_csv": paths.confirmations_csv,
        "predictions_csv": paths.predictions_csv,
        "agreement_csv": paths.agreement_csv,
        **({"turns_csv": paths.turns_csv} if len(tables.turns) else {}),
        "report_html": paths.report,
    }
    return {
        "sweep": sweep.name,
        "directory": str(paths.root),
        "counts": seen.counts,
        "complete": seen.counts["done"] == seen.counts["total"],
        "files": {name: str(path) for name, path in files.items()} | {"figures": sorted(map(str, paths.figures.glob("*.png")))},
        "rows": {name: len(getattr(tables, name)) for name in TABLES},
    }
