"""Plots, as matplotlib figures that the caller saves: where people would rather look than read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from emosteer.config import AUTO

if TYPE_CHECKING:
    import pandas as pd

    from emosteer.attribution import Attribution

DIVERGING = "RdBu_r"
MOST_POSITIONS = 24
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


def attribution_heatmap(attribution: Attribution, title: str, metric: str) -> Figure:
    """Components by block: at the last position, over all positions, and the residual stream position by position.

    Args:
        attribution: of one model and pair.
        title: whose.
        metric: what the scores are of, and in which unit.
    """
    last = np.stack([attribution.last[site].mean(0).numpy() for site in ("attention", "mlp", "residual")])
    everywhere = np.stack([attribution.everywhere[site].mean(0).numpy() for site in ("attention", "mlp")])
    positions = attribution.residual_profile().numpy()[:, -MOST_POSITIONS:].T
    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots(3, 1, height_ratios=[3, 2, 6])
    figure.suptitle(f"Attribution patching: {title}\n{metric}, {attribution.direction}")
    _heatmap(axes[0], last, ["attention", "MLP", "residual"], "last prompt position")
    _heatmap(axes[1], everywhere, ["attention", "MLP"], "summed over all positions")
    count = positions.shape[0]
    labels = [str(i - count) if (count - i) % 4 == 1 else "" for i in range(count)]
    _heatmap(axes[2], positions, labels, "residual stream by position, counted from the end")
    axes[2].set_xlabel("decoder block")
    return figure


def effect_heatmap(results: pd.DataFrame, metric: str, title: str) -> Figure:
    """Mean difference from the baseline by layer and coefficient as it was asked for; cells with q < 0.05 are marked."""
    # Coefficients that were looked for are others at each layer, and stand together.
    is_found = results["coefficient_request"] == AUTO
    results = results.assign(coefficient=results["coefficient"].mask(is_found, math.inf))
    table = results.pivot_table(index="coefficient", columns="layers", values=f"{metric}_delta", sort=False)
    columns = sorted([str(column) for column in table.columns], key=_layer_order)
    table = table.sort_index(ascending=False)[columns]
    q = results.pivot_table(index="coefficient", columns="layers", values=f"{metric}_q", sort=False).reindex_like(table)
    figure = Figure(figsize=(max(6.0, 1.6 + 0.9 * len(table.columns)), 2.0 + 0.6 * len(table)), layout="constrained")
    axis = figure.subplots()
    _heatmap(axis, table.to_numpy(), [AUTO if math.isinf(c) else f"{c:g}" for c in table.index], title)
    axis.set_xticks(range(len(table.columns)), list(table.columns))
    axis.set_xlabel("steered block")
    axis.set_ylabel("coefficient")
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        if np.isfinite(value):
            mark = "*" if q.to_numpy()[row, column] < 0.05 else ""
            axis.text(column, row, f"{value:+.1f}{mark}", ha="center", va="center", fontsize=9, path_effects=_halo())
    return figure


def dose_response(results: pd.DataFrame, controls: pd.DataFrame, metric: str, title: str) -> Figure:
    """Mean difference from the baseline over the coefficient, a line with its interval per layer; random directions dashed."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.axhline(0, color="0.6", linewidth=0.8)
    groups = _by_layers(results)
    apart = 0.012 * float(results["coefficient"].abs().max())
    for number, (layers, rows) in enumerate(groups):
        rows = rows.sort_values("coefficient")
        color = f"C{number % 10}"
        # Side by side, so that no interval hides another.
        doses = rows["coefficient"] + apart * (number - (len(groups) - 1) / 2)
        errors = [rows[f"{metric}_delta"] - rows[f"{metric}_ci_low"], rows[f"{metric}_ci_high"] - rows[f"{metric}_delta"]]
        axis.errorbar(doses, rows[f"{metric}_delta"], yerr=errors, color=color, marker="o", capsize=3, label=f"block {layers}")
        random = controls[controls["layers"] == layers].groupby("coefficient")[f"{metric}_delta"].mean()
        if len(random):
            axis.plot(random.index, random.to_numpy(), color=color, linestyle="--", marker="x", alpha=0.6)
    if len(controls):
        axis.plot([], [], color="0.4", linestyle="--", marker="x", label="random direction")
    if (results["intervention"] == "add").all():  # nothing added is the baseline; a projection set to nothing is not
        axis.plot(0, 0, color="black", marker="s", markersize=5, linestyle="", label="baseline")
    axis.set_xlabel("coefficient (fraction of the residual norm)" if _is_fraction(results) else "coefficient (raw)")
    axis.set_ylabel(f"{metric}: difference from the baseline")
    axis.set_title(title)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def trade_off(results: pd.DataFrame, metric: str, title: str, most_alike: float) -> Figure:
    """Mean difference from the baseline over perplexity as a multiple of the baseline's, a point per cell, with the Pareto front: the
    cells than which no other has as much effect at less cost.

    Args:
        results: rows of cells, with `perplexity_ratio` and the metric's columns.
        metric: whose differences.
        title: above it.
        most_alike: the share of replies that begin alike beyond which a cell is not readable, and its point hollow.
    """
    rows = results[results["perplexity_ratio"].notna() & results[f"{metric}_delta"].notna()]
    rows = rows.assign(is_alike=np.asarray(rows.get("duplication_steered", np.zeros(len(rows)))) > most_alike)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.axhline(0, color="0.6", linewidth=0.8)
    for number, (layers, own) in enumerate(_by_layers(rows)):
        color, marker = f"C{number % 10}", MARKERS[number % len(MARKERS)]
        for is_alike, points in own.groupby("is_alike"):
            inside = "none" if is_alike else color
            axis.scatter(points["perplexity_ratio"], points[f"{metric}_delta"], facecolors=inside, edgecolors=color, marker=marker)
        axis.scatter([], [], color=color, marker=marker, label=f"block {layers}")
    if rows["is_alike"].any():
        axis.scatter([], [], facecolors="none", edgecolors="0.4", label="hollow: not readable,\ntoo many replies begin alike")
    front = pareto_front(rows["perplexity_ratio"].tolist(), rows[f"{metric}_delta"].tolist())
    axis.plot(*zip(*front, strict=True), color="0.4", linestyle="--", linewidth=1, label="Pareto front")
    axis.set_xlabel("perplexity, as a multiple of the baseline's")
    axis.set_ylabel(f"{metric}: difference from the baseline")
    axis.set_title(title)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def pareto_front(costs: Sequence[float], effects: Sequence[float]) -> list[tuple[float, float]]:
    """The points (cost, effect) than which no other has as much effect at less cost, or more at as little, from cheap to dear."""
    front: list[tuple[float, float]] = []
    for cost, effect in sorted(zip(costs, effects, strict=True), key=lambda point: (point[0], -point[1])):
        if not front or effect > front[-1][1]:
            front.append((cost, effect))
    return front


def locus(found: Mapping[str, Any], title: str) -> Figure:
    """What each block adds at the last position, with its interval, and the heatmaps of components by block.

    Args:
        found: `blocks` and `heatmaps`, as `emosteer.report.locus` gives them.
        title: of the whole.
    """
    scores, low, high = (
        np.array(found["blocks"][key], dtype=float) for key in ("block_scores", "block_scores_low", "block_scores_high")
    )
    maps = found["heatmaps"]
    heights = [3.0 * bool(len(scores)), *(0.8 + 0.28 * len(one["rows"]) for one in maps)]
    shown = [height for height in heights if height]
    figure = Figure(figsize=(9, sum(shown) + 1), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(len(shown), 1, height_ratios=shown)))
    figure.suptitle(f"Attribution patching: {title} [nats]")
    if len(scores):
        axis = axes.pop(0)
        errors = np.abs(np.stack([scores - low, high - scores])) if len(low) else None
        axis.bar(range(len(scores)), scores, yerr=errors, color="C0", error_kw={"linewidth": 0.8})
        axis.set_title("attention and MLP of each block, last prompt position", fontsize=10)
        axis.margins(x=0.01)
    for axis, one in zip(axes, maps, strict=True):
        _heatmap(axis, np.array(one["values"], dtype=float), one["rows"], one["name"])
    axes[-1].set_xlabel("decoder block")
    return figure


def _by_layers(results: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    groups = [(str(layers), rows) for layers, rows in results.groupby("layers")]
    return sorted(groups, key=lambda group: _layer_order(group[0]))


def _is_fraction(results: pd.DataFrame) -> bool:
    return bool((results["coefficient_unit"] == "fraction").all())


def _heatmap(axis: Any, values: np.ndarray[Any, Any], row_labels: list[str], title: str) -> None:
    finite = np.abs(values[np.isfinite(values)])
    limit = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    image = axis.imshow(values, aspect="auto", cmap=DIVERGING, norm=TwoSlopeNorm(0.0, -limit, limit), interpolation="nearest")
    axis.set_yticks(range(len(row_labels)), row_labels)
    axis.set_title(title, fontsize=10)
    axis.figure.colorbar(image, ax=axis, pad=0.01)


def _layer_order(layers: str) -> tuple[int, str]:
    first = layers.split("+")[0]
    return (int(first) if first.isdigit() else 10**6, layers)


def _halo() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.5, foreground="white")]
