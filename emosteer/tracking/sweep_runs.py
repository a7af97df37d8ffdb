"""A sweep's tables as a tracker's runs.

Runs of different pairs and layers compare side by side: what a run is of stands in its config, under keys that are always there, and
never in a metric's name; `primary_*` is the effect on the cell's own primary metric. A cell's run holds no q, because q changes with
every cell that joins the sweep: it stands in the summary run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from emosteer.config import GenerationConfig
from emosteer.records.cell import CELL, Cell
from emosteer.records.publish import read_json
from emosteer.records.sweep import DONE, FAILED, PENDING, Sweep
from emosteer.tables import Tables
from emosteer.tracking.run import Destination, Picture, Run, Scalar, Table, cut, plain, typed

SUMMARY = "summary"
PRIMARY = "primary"
Q = "_q"
SIGNIFICANT = 0.05

AXES: dict[str, type] = {
    "sweep": str,
    "cell_id": str,
    "model": str,
    "dtype": str,
    "pair": str,
    "target": str,
    "primary": str,
    "vector_id": str,
    "vector_method": str,
    "vector_reading": str,
    "vector_source": str,
    "vector_plus": str,
    "vector_without": str,
    "site": str,
    "layer": int,
    "layers": str,
    "layer_request": str,
    "coefficient": float,
    "coefficient_request": str,
    "auto_metric": str,
    "auto_target": float,
    "coefficient_unit": str,
    "coefficient_raw": float,
    "coefficient_fraction": float,
    "across_blocks": str,
    "scope": str,
    "intervention": str,
    "decay": float,
    "seed": int,
    "prompts": str,
    "n_prompts": int,
    "n_samples": int,
    "baseline_id": str,
    "control_key": str,
}
"""Columns of `results` that say what a cell is."""
FACTS = ("status", "n_tokens", "n_controls", "seconds", "attempt", "perplexity_ratio", "auto_cost", "auto_status")
"""Columns of `results` that say how it went, besides its metrics."""
CONFIG_KEYS = (*AXES, "kind", "model_fingerprint", *(f"generation_{f.name}" for f in fields(GenerationConfig)))
GRID_EFFECTS = ("delta", "ci_low", "ci_high", "p", "q", "beyond_random", "beyond_random_p", "beyond_random_q")


def sweep_runs(sweep: Sweep, tables: Tables, to: Destination) -> Iterator[Run]:
    """The runs of all cells and controls that are settled, then the sweep's summary."""
    if tables.results.empty:
        return
    metrics = metric_names(tables.results)
    cells = {task.cell.id: task.cell for task in sweep.tasks()}
    replies = dict(list(tables.replies.groupby("cell_id", sort=False))) if len(tables.replies) else {}
    configs = []
    for _, row in tables.results.iterrows():
        config = cell_config(row, cells[row["cell_id"]])
        configs.append(config)
        if row["status"] != PENDING:
            yield cell_run(row, config, replies.get(row["cell_id"]), replies.get(row["baseline_id"]), metrics, to)
    yield summary_run(sweep, tables, configs, metrics, to)


def metric_names(results: pd.DataFrame) -> list[str]:
    """The metrics that a results table has columns of, without other readings of the primary one."""
    columns = [str(column) for column in results if not str(column).startswith("primary_")]
    return [column.removesuffix("_delta") for column in columns if column.endswith("_delta")]


def cell_config(row: pd.Series[Any], cell: Cell) -> dict[str, Scalar]:
    """What a cell is: flat, typed, and with the same keys for every cell and control; None where an axis does not apply."""
    config: dict[str, Scalar] = {key: typed(row[key], kind) for key, kind in AXES.items()}
    # Dots in keys would read as nesting in W&B's filters.
    config |= {f"generation_{key}": value for key, value in asdict(cell.generation).items()}
    return config | {"kind": cell.kind, "model_fingerprint": cell.model.fingerprint}


def cell_run(
    row: pd.Series[Any],
    config: dict[str, Scalar],
    replies: pd.DataFrame | None,
    baseline: pd.DataFrame | None,
    metrics: list[str],
    to: Destination,
) -> Run:
    """The run of one cell or control; one that failed ends as failed in W&B too."""
    tables, _, told = cut({"replies": side_by_side(replies, baseline, metrics)} if replies is not None else {}, {})
    failed = row["status"] == FAILED
    return Run(
        key=row["cell_id"],
        name=row["cell_id"],
        job_type=str(config["kind"]),
        to=to,
        config=config,
        summary=effects(row, metrics),
        tables=tables,
        notes="\n".join([*([f"Failed: {row['error']}"] if failed else []), *told]),
        exit_code=1 if failed else 0,
    )


def effects(row: pd.Series[Any], metrics: Iterable[str]) -> dict[str, Scalar]:
    """A cell's metrics by column name, its primary metric's once more as `primary_*`, and how the cell went; no q."""
    columns = metric_columns(row.index, metrics)
    values = {column: plain(row[column]) for column in (*FACTS, *columns) if column in row.index}
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
    on = ["prompt_id", "sample"]
    steered = replies[[*on, "prompt", "reply", *metrics]].rename(columns={"reply": "steered_reply"})
    other = (replies.iloc[:0] if baseline is None else baseline)[[*on, "reply", *metrics]]
    names = {"reply": "baseline_reply"} | {metric: f"{metric}_baseline" for metric in metrics}
    merged = steered.merge(other.rename(columns=names), on=on, how="left")
    scores = [name for metric in metrics for name in (metric, f"{metric}_baseline")]
    return table(merged[[*on, "prompt", "baseline_reply", "steered_reply", *scores]])


def table(frame: pd.DataFrame) -> Table:
    """A frame as plain data."""
    columns = [[plain(value) for value in frame[column].tolist()] for column in frame]
    return Table([str(column) for column in frame], [list(row) for row in zip(*columns, strict=True)])


def summary_run(sweep: Sweep, tables: Tables, configs: list[dict[str, Scalar]], metrics: list[str], to: Destination) -> Run:
    """The sweep as a whole: the grid with q, controls, trends, confirmations, figures, and what attribution found."""
    grid = _grid(tables.cells, metrics)
    shown = {"grid": table(grid), "controls": table(_grid(tables.controls, metrics))}
    if len(tables.trends):
        shown["trends"] = table(tables.trends)
    if len(tables.confirmations):
        shown["confirmations"] = table(tables.confirmations)
    if len(tables.agreement):
        shown["agreement"] = table(tables.agreement)
    if tables.attributions:
        shown["attribution_scores"] = attribution_scores(sweep, tables.attributions)
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


def shared_config(configs: list[dict[str, Scalar]]) -> dict[str, Scalar]:
    """Every axis, with its value where all cells share one, else None; controls have no pair, and do not count."""
    cells = [config for config in configs if config["kind"] == CELL] or configs
    values = {key: {config[key] for config in cells} for key in CONFIG_KEYS}
    return {key: found.pop() if len(found) == 1 else None for key, found in values.items()}


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
    pictures = {name: [_picture(path, caption) for path, caption in files if path.exists()] for name, files in drawn.items()}
    return {name: found for name, found in pictures.items() if found}


def _picture(path: Path, caption: str) -> Picture:
    return Picture(str(path.resolve()), caption, hashlib.sha256(path.read_bytes()).hexdigest())


def attribution_scores(sweep: Sweep, attributions: dict[str, str]) -> Table:
    """A row per pair, model and block: mean scores [nats] at the last prompt position, summed over all positions, and the rank."""
    # Reading scores takes torch, which a finaliser of tables alone does without.
    from emosteer.resources import read_attribution

    columns = [
        "attribution_id",
        "pair",
        "model",
        "block",
        "attention",
        "mlp",
        "residual",
        "attention_all",
        "mlp_all",
        "block_score",
        "rank",
    ]
    rows: list[list[Scalar]] = []
    for key, pair in sorted(attributions.items()):
        found = read_attribution(sweep.store, key)
        if found is None:
            continue
        model = (read_json(sweep.store.paths.attribution_summary(key)) or {}).get("model")
        last = [found.last[site].mean(0).tolist() for site in ("attention", "mlp", "residual")]
        everywhere = [found.everywhere[site].mean(0).tolist() for site in ("attention", "mlp")]
        ranks = {block: rank for rank, block in enumerate(found.ranking(), start=1)}
        scores = zip(*last, *everywhere, found.block_scores().tolist(), strict=True)
        rows += [[key, pair, model, block, *map(plain, values), ranks[block]] for block, values in enumerate(scores)]
    return Table(columns, rows)
