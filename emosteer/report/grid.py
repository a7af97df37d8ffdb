"""What the report's heatmaps, curves and cell details are drawn from: the columns of `results`, as the script reads them."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from emosteer.config import EFFECTS
from emosteer.report.words import UNITS
from emosteer.tables import READABLE_DUPLICATION, READABLE_PERPLEXITY_RATIO, Tables

SLICE = (
    *("pair", "primary", "model", "dtype", "vector_id", "site", "scope", "intervention", "decay", "seed", "prompts"),
    *("coefficient_unit", "baseline_id"),
)
"""Columns in which the cells of one heatmap agree."""
TOLD = (
    *(
        "model",
        "dtype",
        "vector_method",
        "vector_reading",
        "vector_source",
        "site",
        "scope",
        "intervention",
        "decay",
        "seed",
        "prompts",
    ),
    *("coefficient_unit", "n_samples", "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_p"),
)
"""Columns that a heatmap's name tells where they vary; its pair it always tells."""
FACTS = (
    *("model", "dtype", "pair", "target", "primary", "vector_id", "vector_method", "vector_reading", "vector_source"),
    *("vector_split_half", "vector_auc", "site", "scope", "intervention", "decay", "layers", "layer_request", "coefficient"),
    *("coefficient_unit", "coefficient_raw", "coefficient_fraction", "seed", "prompts", "n_prompts", "n_samples", "max_new_tokens"),
    *("n_tokens", "n_controls", "status", "error", "attempt", "seconds", "perplexity_ratio", "baseline_id"),
)
"""Columns that a cell's details list, where they have a value."""
OF_TREND = ("vector_id", "site", "scope", "decay", "seed", "coefficient_unit", "baseline_id")
"""Columns in which a trend agrees with the cells that it is over."""
TREND = ("layers", "metric", "n_coefficients", "slope", "ci_low", "ci_high", "p", "q", "monotone")
"""Columns of `trends` that are shown."""
MEASURES = (*EFFECTS, "p_equivalence")
DIGITS = 6
"""Significant ones of a number in the page."""


def metric_names(results: pd.DataFrame) -> list[str]:
    """The metrics that a results table has columns of: what has a baseline, which the primary metric's second opinions have not."""
    found = [str(column).removesuffix("_baseline") for column in results if str(column).endswith("_baseline")]
    return [metric for metric in found if f"{metric}_delta" in results]


def grid(tables: Tables) -> dict[str, Any]:
    """Plain data: `metrics`, `units`, `rows` (column -> values, a row per cell and control), `numbers` (metric -> measure -> values,
    null where there is none) and `slices` (each with its name and the rows of its cells and controls).
    """
    results = tables.results.reset_index(drop=True)
    metrics = metric_names(results)
    facts = [column for column in ("cell_id", "is_control", "layer", *FACTS) if column in results]
    return {
        "metrics": metrics,
        "units": {metric: UNITS[metric] for metric in metrics if metric in UNITS},
        "readable": {"perplexity_ratio": READABLE_PERPLEXITY_RATIO, "duplication": READABLE_DUPLICATION},
        "facts": [column for column in FACTS if column in results],
        "rows": {column: plain(results[column]) for column in facts},
        "numbers": {
            metric: {
                measure: plain(results[f"{metric}_{measure}"])
                for measure in MEASURES
                if f"{metric}_{measure}" in results and results[f"{metric}_{measure}"].notna().any()
            }
            for metric in metrics
        },
        "slices": _slices(results, tables.trends),
    }


def _slices(results: pd.DataFrame, trends: pd.DataFrame) -> list[dict[str, Any]]:
    cells = results[~results["is_control"]]
    keys = [column for column in SLICE if column in cells]
    if cells.empty or "pair" not in keys:
        return []
    varying = [column for column in TOLD if column in cells and cells[column].nunique(dropna=False) > 1]
    found = []
    for _, rows in cells.groupby(keys, dropna=False, sort=True):
        first = rows.iloc[0]
        controls = results[results["is_control"] & results["control_key"].isin(rows["control_key"].dropna())]
        random = controls[controls["vector_method"] == "random"]
        told = [f"{first[column]}" if isinstance(first[column], str) else f"{column} {first[column]}" for column in varying]
        found.append(
            {
                "name": ", ".join([str(first["pair"]), *told]),
                "pair": str(first["pair"]),
                "primary": str(first["primary"]),
                "vector": str(first["vector_id"]),
                "unit": str(first["coefficient_unit"]),
                "adds": str(first["intervention"]) == "add",
                "cells": rows.index.tolist(),
                "random": random.index.tolist(),
                "trends": _trends_of(trends, first),
            }
        )
    return _told_apart(found)


def _told_apart(slices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number those whose names are one, so that each can be chosen."""
    names = [one["name"] for one in slices]
    for number, one in enumerate(slices, start=1):
        if names.count(one["name"]) > 1:
            one["name"] += f" ({number})"
    return slices


def _trends_of(trends: pd.DataFrame, first: pd.Series[Any]) -> list[dict[str, Any]]:
    """The slopes over coefficients of one heatmap's cells, a row per blocks and metric."""
    if trends.empty or first["intervention"] != "add":
        return []
    own = trends[(trends[list(OF_TREND)] == first[list(OF_TREND)]).all(axis=1)]
    values = [plain(own[column]) for column in TREND]
    return [dict(zip(TREND, row, strict=True)) for row in zip(*values, strict=True)]


def plain(column: pd.Series[Any]) -> list[Any]:
    """A column as JSON holds it: floats rounded, None where there is no value."""
    if column.dtype == float:
        return [_rounded(value) for value in column.tolist()]
    return [None if not isinstance(value, str) and pd.isna(value) else _plain(value) for value in column.astype(object).tolist()]


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | str) else _rounded(float(value))


def _rounded(number: float) -> float | None:
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 1e15 else float(f"{number:.{DIGITS}g}")
