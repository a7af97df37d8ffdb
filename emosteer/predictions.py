"""Whether attribution predicts steering: of each pair, the blocks' scores against the effects of steering there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from emosteer.records.cell import CELL
from emosteer.scored import Floats, Scored, seed_of
from emosteer.statistics import rank_prediction

Grid = dict[tuple[float, int], Scored]
"""Cells of one grid by coefficient and block."""
TOLD = 4
"""Coefficients that are told one by one."""


def predictions(scored: Mapping[str, Scored], found: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each grid of blocks and coefficient, and one more for all coefficients that every block has, where there are several.

    A grid is of cells that add one vector at one block, and differ in block and coefficient alone.

    Args:
        scored: what the sweep has, by cell id.
        found: the summaries of its attributions, by their id.
        settings: `n_resamples` and `confidence`.
    """
    rows = []
    for key, grid in sorted(_grids(scored).items()):
        axes = json.loads(key)
        blocks = {layer for _, layer in grid}
        of_coefficient = {c: {layer for own, layer in grid if own == c} for c, _ in sorted(grid)}
        everywhere = tuple(c for c, layers in of_coefficient.items() if layers == blocks)
        choices = [(c,) for c in of_coefficient] + ([everywhere] if len(everywhere) > 1 else [])
        summary = found.get(axes["attribution_id"], {})
        for coefficients in choices:
            layers = sorted(of_coefficient[coefficients[0]])
            seed = seed_of(f"{key} {coefficients}")
            effects = np.stack([_effects([grid[c, layer] for c in coefficients], scored) for layer in layers])
            rows.append(
                axes
                | {"coefficients": "+".join(f"{c:g}" for c in coefficients), "n_coefficients": len(coefficients)}
                | _predicted(layers, effects, summary.get("block_scores"), seed, settings)
            )
            if not rows[-1]["reason"] or summary.get("block_scores"):
                continue
            rows[-1]["reason"] = "its attribution is not there" if axes["attribution_id"] else "attribution is switched off"
    return pd.DataFrame(rows)


def coefficients_text(row: Any) -> str:
    """The coefficients of a row of `predictions`, in a sentence; where there are many, how many."""
    return str(row["coefficients"]) if row["n_coefficients"] <= TOLD else f"{row['n_coefficients']} coefficients"


def _grids(scored: Mapping[str, Scored]) -> dict[str, Grid]:
    """By all axes but block and coefficient, as JSON."""
    grids: dict[str, Grid] = {}
    for one in sorted(scored.values(), key=lambda one: one.cell.id):
        cell = one.cell
        is_addition = cell.kind == CELL and cell.intervention == "add" and cell.coefficient not in (None, 0)
        is_measured = cell.pair is not None and cell.pair.primary in one.metrics and cell.baseline_id in scored
        if is_addition and is_measured and len(layers := one.record["resolved"]["layers"]) == 1:
            # A block that was asked for by its number and by `auto` too is there twice.
            grids.setdefault(_key(one), {}).setdefault((one.coefficient, layers[0]), one)
    return grids


def _effects(members: Sequence[Scored], scored: Mapping[str, Scored]) -> Floats:
    """Of one block: difference of the primary metric from the baseline at each prompt, the mean over coefficients."""
    cell = members[0].cell
    assert cell.pair is not None
    baseline, primary = scored[cell.baseline_id], [cell.pair.primary]
    unsteered = baseline.matrix(primary, baseline.prompts)[0]
    # A push the other way should do the opposite.
    signed = [math.copysign(1, one.coefficient) * (one.matrix(primary, baseline.prompts)[0] - unsteered) for one in members]
    return np.asarray(np.mean(signed, axis=0))


def _predicted(
    layers: Sequence[int], effects: Floats, block_scores: Sequence[float] | None, seed: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Of effects [block, prompt] at some blocks."""
    scores = [block_scores[layer] for layer in layers] if block_scores else [math.nan] * len(layers)
    prediction = rank_prediction(scores, effects, seed=seed, n_resamples=settings["n_resamples"], confidence=settings["confidence"])
    means = {layer: float(np.nanmean(own)) for layer, own in zip(layers, effects, strict=True) if not np.isnan(own).all()}
    return {
        "first_scored": max(layers, key=lambda layer: block_scores[layer]) if block_scores else None,
        "first_steered": max(means, key=lambda layer: means[layer]) if means else None,
        **asdict(prediction),
        "n_blocks": prediction.n_blocks if block_scores else len(layers),
    }


def _key(one: Scored) -> str:
    cell = one.cell
    assert cell.pair is not None
    axes = {
        "model": cell.model.config.name,
        "dtype": cell.model.config.dtype,
        "pair": cell.pair.name,
        "primary": cell.pair.primary,
        "prompts": cell.prompts_name,
        "attribution_id": cell.attribution_id if cell.attribution else None,
        "vector_id": cell.vector_id,
        "site": cell.site,
        "coefficient_unit": cell.coefficient_unit,
        "scope": cell.scope,
        "decay": cell.decay,
        "seed": cell.seed,
        "baseline_id": cell.baseline_id,
    }
    return json.dumps(axes, sort_keys=True)
