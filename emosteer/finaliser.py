"""What is built when the last cell of a sweep is settled, or at any time before: tables, figures, trackers' runs, a summary.

All of it is a view of the records, so that it can be built again, with the same result.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

import pandas as pd

from emosteer import figures, tracking
from emosteer.records.paths import in_name
from emosteer.records.publish import publish_file
from emosteer.records.sweep import DONE, FAILED, Sweep
from emosteer.report.page import write_report
from emosteer.summary import console, summary
from emosteer.tables import Tables, build

log = logging.getLogger(__name__)

APART = ["vector_id", "site", "scope", "intervention", "decay", "seed", "prompts", "coefficient_unit", "baseline_id"]
"""Columns of `results` in which the cells of one figure agree, besides model and pair."""


def finalise(sweep: Sweep, show: bool = True) -> Tables:
    """Write a sweep's tables, figures and report, log it to its tracker, and print the summary.

    A tracker that fails is told and never fails the sweep.
    """
    tables = write_views(sweep)
    conclude(sweep, tables, show)
    return tables


def write_views(sweep: Sweep, stage: Callable[[str], None] = log.debug) -> Tables:
    """Write a sweep's tables, figures and report; `stage` is told what goes on."""
    sweep.write_summary()
    stage(f"building the tables of {sweep.name}")
    tables = build(sweep)
    write_tables(sweep, tables)
    stage("drawing the figures and writing the report")
    draw(sweep, tables)
    write_report(sweep, tables)
    return tables


def conclude(sweep: Sweep, tables: Tables, show: bool = True) -> None:
    """Log a sweep to its tracker, and print the summary."""
    try:
        tracking.log_sweep(sweep, tables)
    except Exception as error:
        log.warning("tracking failed, the results are safe: %s: %s", type(error).__name__, error)
    if show:
        out = console()
        out.print(summary(sweep.name, tables))
        out.print(f"\nReport: {sweep.paths.report}; results.csv, replies.parquet and figures/ beside it", soft_wrap=True)


def write_tables(sweep: Sweep, tables: Tables) -> None:
    """Put the tables into the sweep's directory."""
    publish_file(sweep.paths.results_parquet, tables.results.to_parquet(index=False))
    publish_file(sweep.paths.results_csv, tables.results.to_csv(index=False))
    publish_file(sweep.paths.replies, tables.replies.to_parquet(index=False))
    publish_file(sweep.paths.trends_csv, tables.trends.to_csv(index=False))
    publish_file(sweep.paths.confirmations_csv, tables.confirmations.to_csv(index=False))
    publish_file(sweep.paths.predictions_csv, tables.predictions.to_csv(index=False))
    publish_file(sweep.paths.agreement_csv, tables.agreement.to_csv(index=False))
    if len(tables.turns):
        publish_file(sweep.paths.turns_csv, tables.turns.to_csv(index=False))
    else:
        sweep.paths.turns_csv.unlink(missing_ok=True)  # of before, with other prompts


def draw(sweep: Sweep, tables: Tables) -> None:
    """Put the figures into the sweep's directory: per model and pair, heatmap, dose-response and attribution."""
    sweep.paths.figures.mkdir(parents=True, exist_ok=True)
    drawn = set()
    for name, figure in figure_files(tables).items():
        drawn.add(sweep.paths.figures / f"{name}.png")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150)
        publish_file(sweep.paths.figures / f"{name}.png", picture.getvalue())
    for attribution_id, pair in tables.attributions.items():
        heatmap = sweep.store.paths.attribution_heatmap(attribution_id)
        path = sweep.paths.figures / f"attribution-{in_name(pair)}-{attribution_id.rsplit('-', 1)[-1]}.png"
        if heatmap.exists():
            drawn.add(path)
            publish_file(path, heatmap.read_bytes())
    for stale in set(sweep.paths.figures.glob("*.png")) - drawn:
        stale.unlink()


def figure_files(tables: Tables) -> dict[str, Any]:
    """Figures of effects by file name."""
    done = tables.replied
    made = {}
    for keys, cells in done.groupby(["model", "pair", "primary"]):
        model, pair, primary = map(str, keys)
        if f"{primary}_delta" not in cells:
            continue
        slices = list(cells.groupby(APART))
        for number, (_, rows) in enumerate(slices):
            name = in_name(f"{pair}-{model}") + (f"-{number + 1}" if len(slices) > 1 else "")
            controls = tables.controls[tables.controls["control_key"].isin(rows["control_key"])]
            title = f"{primary} words per 100, {pair} on {model}"
            made[f"effect-{name}"] = figures.effect_heatmap(rows, primary, f"{title}:\ndifference from the baseline (* q < 0.05)")
            made[f"dose-response-{name}"] = figures.dose_response(rows, controls, primary, title)
    return made


def outcome(tables: Tables) -> tuple[int, int]:
    """How many rows are done, and how many failed."""
    counts: pd.Series[int] = tables.results["status"].value_counts()
    return int(counts.get(DONE, 0)), int(counts.get(FAILED, 0))
