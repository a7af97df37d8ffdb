"""A sweep's tables as a tracker's runs.

Runs of different pairs and layers compare side by side: what a run is of stands in its config, under keys that are always there, and
never in a metric's name; `primary_*` is the effect on the cell's own primary metric. A cell's run holds no q, because q changes with
every cell that joins the sweep: it stands in the summary run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import Any

import pandas as pd

from emosteer.records.cell import ATTRIBUTION, BASELINE, Cell
from emosteer.records.sweep import DONE, FAILED, PENDING, Sweep
from emosteer.scored import prompt_means
from emosteer.scoring.nrc import emotion_words
from emosteer.tables import Tables
from emosteer.tracking.axes import AXES, baseline_config, cell_config, shared_config
from emosteer.tracking.origins import Origins, attribution_scores
from emosteer.tracking.run import Artifact, Destination, Picture, Run, Scalar, Table, cut, named, picture, plain, table

SUMMARY = "summary"
PRIMARY = "primary"
Q = "_q"
OF_A_FAMILY = (Q, "_holm")
"""Ends of columns that change with every cell that joins the sweep."""
SIGNIFICANT = 0.05

FACTS = ("status", "n_tokens", "n_controls", "seconds", "attempt", "perplexity_ratio", "auto_cost", "auto_status")
"""Columns of `results` that say how it went, besides its metrics."""
REPLY_COLUMNS = ("cell_id", "prompt_id", "sample", "turn", "prompt", "reply", "is_baseline", "n_tokens")
"""Columns of `replies` that are no metrics."""
GRID_EFFECTS = ("delta", "ci_low", "ci_high", "p", "q", "beyond_random", "beyond_random_p", "beyond_random_q")


def sweep_runs(sweep: Sweep, tables: Tables, to: Destination) -> Iterator[Run]:
    """The runs of what cells come from, of all cells and controls that are settled, then the sweep's summary."""
    if tables.results.empty:
        return
    cells = {task.cell.id: task.cell for task in sweep.tasks()}
    origins = Origins(sweep, to)
    for key, cell in cells.items():
        if cell.kind == ATTRIBUTION and (run := origins.attribution_run(cell)):
            yield run
        if cell.kind == BASELINE and key in tables.baselines:
            yield baseline_run(cell, tables, to)
    for cell in {cell.vector_id: cell for cell in cells.values() if cell.vector}.values():
        if run := origins.vector_run(cell):
            yield run
    metrics = metric_names(tables.results)
    configs = []
    for _, row in tables.results.iterrows():
        cell = cells[row["cell_id"]]
        configs.append(cell_config(row, cell))
        if row["status"] != PENDING:
            yield cell_run(row, configs[-1], tables, metrics, origins.of(cell), to)
    yield summary_run(sweep, tables, configs, metrics, to)


def metric_names(results: pd.DataFrame) -> list[str]:
    """The metrics that a results table has columns of."""
    found = [str(column).removesuffix("_delta") for column in results if str(column).endswith("_delta")]
    return [name for name in found if not name.startswith(f"{PRIMARY}_")]


def cell_run(
    row: pd.Series[Any], config: dict[str, Scalar], tables: Tables, metrics: list[str], uses: list[Artifact], to: Destination
) -> Run:
    """The run of one cell or control; one that failed ends as failed in W&B too."""
    replies = tables.replies_of.get(row["cell_id"])
    shown = {} if replies is None else {"replies": side_by_side(replies, tables.replies_of.get(row["baseline_id"]), metrics)}
    limited, _, told = cut(shown, {})
    summary, renamed = named(effects(row, metrics))
    failed = row["status"] == FAILED
    return Run(
        key=row["cell_id"],
        name=row["cell_id"],
        job_type=str(config["kind"]),
        to=to,
        config=config,
        summary=summary,
        tables=limited,
        uses=uses,
        notes="\n".join([*([f"Failed: {row['error']}"] if failed else []), *told, *renamed]),
        exit_code=1 if failed else 0,
    )


def baseline_run(cell: Cell, tables: Tables, to: Destination) -> Run:
    """The run of the unsteered replies: what they are, and each metric's mean over prompts, as cells are compared with it."""
    replies = tables.replies_of[cell.id]
    metrics = [column for column in replies.columns if column not in REPLY_COLUMNS]
    prompts = replies["prompt_id"].tolist()
    by_prompt = {m: [v for v in prompt_means(prompts, replies[m].tolist()).values() if not math.isnan(v)] for m in metrics}
    means, renamed = named({f"{metric}_baseline": fmean(values) for metric, values in by_prompt.items() if values})
    shown = replies[["prompt_id", "sample", "turn", "prompt", "reply"]].assign(emotion_words=replies["reply"].map(emotions_in))
    limited, _, told = cut({"replies": table(shown.join(replies[metrics]))}, {})
    return Run(
        key=cell.id,
        name=cell.id,
        job_type=BASELINE,
        to=to,
        config=baseline_config(cell, to.group, len(by_prompt[metrics[0]]) if metrics else len(set(prompts))),
        summary={**means, "n_tokens": int(replies["n_tokens"].sum()), "status": DONE},
        tables=limited,
        notes="\n".join([*told, *renamed]),
    )


def effects(row: pd.Series[Any], metrics: Iterable[str]) -> dict[str, Scalar]:
    """A cell's metrics by column name, its primary metric's once more as `primary_*`, and how the cell went; no q."""
    columns = metric_columns(row.index, metrics)
    own = [c for c in map(str, row.index) if c.startswith(f"{PRIMARY}_") and not c.endswith(OF_A_FAMILY)]
    values = {column: plain(row[column]) for column in (*FACTS, *own, *columns) if column in row.index}
    values |= {f"{PRIMARY}_{suffix}": plain(row[f"{row[PRIMARY]}_{suffix}"]) for suffix in _suffixes(columns, row[PRIMARY])}
    return {column: value for column, value in values.items() if value is not None}


def metric_columns(columns: Iterable[Any], metrics: Iterable[str]) -> list[str]:
    """The columns that hold a metric's effect, without q."""
    prefixes = tuple(f"{metric}_" for metric in metrics)
    return [str(c) for c in columns if str(c).startswith(prefixes) and not str(c).endswith(Q)]


def _suffixes(columns: Iterable[str], metric: Any) -> list[str]:
    return [column.removeprefix(f"{metric}_") for column in columns if isinstance(metric, str) and column.startswith(f"{metric}_")]


def side_by_side(replies: pd.DataFrame, baseline: pd.DataFrame | None, metrics: list[str]) -> Table:
    """A row per prompt and sample: prompt, baseline's and steered reply, and each metric of both."""
    on = ["prompt_id", "sample", "turn"]
    steered = replies[[*on, "prompt", "reply", *metrics]].rename(columns={"reply": "steered_reply"})
    other = (replies.iloc[:0] if baseline is None else baseline)[[*on, "reply", *metrics]]
    names = {"reply": "baseline_reply"} | {metric: f"{metric}_baseline" for metric in metrics}
    merged = steered.merge(other.rename(columns=names), on=on, how="left")
    scores = [name for metric in metrics for name in (metric, f"{metric}_baseline")]
    for side in ("baseline", "steered"):
        merged[f"{side}_emotion_words"] = merged[f"{side}_reply"].map(emotions_in)
    both = [f"{side}_{what}" for what in ("reply", "emotion_words") for side in ("baseline", "steered")]
    return table(merged[[*on, "prompt", *both, *scores]])


def emotions_in(reply: Any) -> str | None:
    """The words of a reply that the NRC lexicon knows, in order, each with its categories; None where there is no reply."""
    if not isinstance(reply, str):
        return None
    return ", ".join(f"{word} ({' '.join(categories)})" for word, categories in emotion_words(reply))


def dose_response(cells: pd.DataFrame) -> Table:
    """The points of the dose-response curves: a row per cell with a primary effect, curve by curve, along the coefficient."""
    rows = _grid(cells, [])
    if "primary_delta" not in rows:
        return Table([], [])
    curve = [name for name in ("model", "pair", "target", "site", "scope", "layers", "coefficient") if name in rows]
    points = [f"{PRIMARY}_{effect}" for effect in ("delta", "ci_low", "ci_high", "q")]
    extra = [name for name in (*points, "perplexity_ratio") if name in rows]
    return table(rows[rows["primary_delta"].notna()][[*curve, *extra]].sort_values(curve))


def summary_run(sweep: Sweep, tables: Tables, configs: list[dict[str, Scalar]], metrics: list[str], to: Destination) -> Run:
    """The sweep as a whole: the grid with q, controls, trends, confirmations, predictions, figures, and what attribution found."""
    grid = _grid(tables.cells, metrics)
    shown = {"grid": table(grid), "controls": table(_grid(tables.controls, metrics))}
    shown["dose_response"] = dose_response(tables.cells)
    if len(tables.trends):
        shown["trends"] = table(tables.trends)
    if len(tables.confirmations):
        shown["confirmations"] = table(tables.confirmations)
    if len(tables.predictions):
        shown["predictions"] = table(tables.predictions)
    if len(tables.agreement):
        shown["agreement"] = table(tables.agreement)
    if tables.attributions:
        shown["attribution_scores"] = attribution_scores(sweep.store, tables.attributions)
    limited, pictures, told = cut({name: t for name, t in shown.items() if t.rows}, figures(sweep, tables))
    states = tables.results["status"].value_counts()
    counts: dict[str, Scalar] = {f"n_{state}": int(states.get(state, 0)) for state in (DONE, FAILED, PENDING)}
    q = grid[f"{PRIMARY}_q"] if f"{PRIMARY}_q" in grid else pd.Series(dtype=float)
    counts |= {"n_cells": len(tables.cells), "n_controls": len(tables.controls), "n_significant": int((q < SIGNIFICANT).sum())}
    return Run(
        key=SUMMARY,
        name=f"{sweep.name} {SUMMARY}",
        job_type=SUMMARY,
        to=to,
        config=shared_config(configs) | {"sweep": sweep.name, "kind": SUMMARY, "commands": _commands(sweep)},
        summary=counts,
        tables=limited,
        images=pictures,
        notes="\n".join(told),
    )


def _commands(sweep: Sweep) -> str:
    """The command lines, each once: one that is given again and finds nothing to run changes nothing."""
    return "\n".join(dict.fromkeys(" ".join(manifest["line"]) for manifest in sweep.manifests()))


def _grid(rows: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Axes, status, the primary effect, and each metric's difference, p and q; columns without any value are left out."""
    primary = pd.DataFrame(
        [[row.get(f"{row[PRIMARY]}_{effect}") for effect in GRID_EFFECTS] for _, row in rows.iterrows()],
        index=rows.index,
        columns=[f"{PRIMARY}_{effect}" for effect in GRID_EFFECTS],
    ).astype(float)
    wanted = [*AXES, *FACTS, *(f"{metric}_{key}" for metric in metrics for key in ("delta", "p", "q"))]
    grid = pd.concat([rows[[column for column in wanted if column in rows]], primary], axis=1)
    first = [*AXES, *primary.columns]
    return grid[[*first, *(column for column in grid if column not in first)]].dropna(axis="columns", how="all")


def figures(sweep: Sweep, tables: Tables) -> dict[str, list[Picture]]:
    """The sweep's figures by what they show."""
    drawn = {
        "effect_heatmap": [(path, path.stem) for path in sorted(sweep.paths.figures.glob("effect-*.png"))],
        "dose_response": [(path, path.stem) for path in sorted(sweep.paths.figures.glob("dose-response-*.png"))],
        "attribution_heatmap": [
            (sweep.store.paths.attribution_heatmap(key), f"{pair} ({key})") for key, pair in sorted(tables.attributions.items())
        ],
    }
    pictures = {name: [picture(path, caption) for path, caption in files if path.exists()] for name, files in drawn.items()}
    return {name: found for name, found in pictures.items() if found}
