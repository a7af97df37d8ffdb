"""Whether the scorers agree: correlations over replies between those that measure one emotion, or whether replies are positive."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from emosteer.records.cell import CELL
from emosteer.scored import Floats, Scored, seed_of

SENTIMENT = "sentiment"
FEWEST = 3
"""Replies on which a correlation can be anything but 1 or -1."""
TINY = 1e-12
"""Below this share of the squares a spread is the rounding of numbers that are equal."""


def agreement(scored: Iterable[Scored], settings: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each pair, baseline and two measures of the pair's target emotion: their correlation over replies.

    The measures are the pair's primary metric, `sentiment`, and all whose name ends in `_` and the target (`classifier_joy`,
    `judge_joy`); the replies are those of the pair's cells and of their baseline. `pearson` and `spearman` (ties get mean ranks) are
    over the `n` replies where both are defined, and NaN with a `reason` where that is fewer than 3, or one of the two is constant.

    Replies to one prompt resemble each other, so that the intervals (`..._ci_low`, `..._ci_high`) are percentile bootstraps over
    prompts; Spearman's keeps the ranks among all replies, as Pearson's correlation of them.

    Args:
        scored: what the sweep has.
        settings: `n_resamples` and `confidence`.
    """
    by_id = {one.cell.id: one for one in scored}
    groups: dict[tuple[str, str], list[Scored]] = {}
    for one in sorted(by_id.values(), key=lambda one: one.cell.id):
        if one.cell.kind == CELL and one.cell.pair and one.cell.baseline_id in by_id:
            groups.setdefault((one.cell.pair.name, one.cell.baseline_id), []).append(one)
    rows = []
    for (name, baseline_id), cells in sorted(groups.items()):
        members = [by_id[baseline_id], *cells]
        prompts = np.array([reply.prompt_id for one in members for reply in one.replies])
        for a, b in combinations(_measures(members), 2):
            x, y = (_values(members, metric) for metric in (a, b))
            rows.append(
                {"model": cells[0].cell.model.config.name, "dtype": cells[0].cell.model.config.dtype, "pair": name}
                | {"prompts": cells[0].cell.prompts_name, "baseline_id": baseline_id, "metric": a, "other": b}
                | _correlations(x, y, prompts, seed_of(f"{name} {baseline_id} {a} {b}"), settings)
            )
    return pd.DataFrame(rows)


def _measures(members: Sequence[Scored]) -> list[str]:
    pair = members[-1].cell.pair
    assert pair is not None
    there = list(dict.fromkeys(metric for one in members for metric in one.metrics))
    return [
        *([pair.primary] if pair.primary in there else []),
        *(m for m in there if m != pair.primary and (m == SENTIMENT or m.endswith(f"_{pair.target}"))),
    ]


def _values(members: Sequence[Scored], metric: str) -> Floats:
    return np.array([v for one in members for v in one.metrics.get(metric, [math.nan] * len(one.replies))], dtype=np.float64)


def _correlations(x: Floats, y: Floats, prompts: Any, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    both = ~np.isnan(x) & ~np.isnan(y)
    x, y, prompts = x[both], y[both], prompts[both]
    found: dict[str, Any] = {"n": len(x), "n_prompts": len(set(prompts))}
    reason = ""
    if len(x) < FEWEST:
        reason = f"both are defined for {len(x)} replies"
    elif constant := [name for name, values in (("the first", x), ("the other", y)) if np.ptp(values) == 0]:
        reason = f"{' and '.join(constant)} is the same for all replies"
    for name, (a, b) in {"pearson": (x, y), "spearman": (stats.rankdata(x), stats.rankdata(y))}.items():
        value = math.nan if reason else float(stats.pearsonr(a, b).statistic)
        low, high = (math.nan, math.nan) if reason else _interval(a, b, prompts, seed, settings)
        found |= {name: value, f"{name}_ci_low": low, f"{name}_ci_high": high}
    return found | {"reason": reason}


def _interval(x: Floats, y: Floats, prompts: Any, seed: int, settings: Mapping[str, Any]) -> tuple[float, float]:
    """Of Pearson's correlation, from resamples of whole prompts; NaN with one prompt."""
    _, place = np.unique(prompts, return_inverse=True)
    n_prompts = int(place.max()) + 1
    if n_prompts < 2:
        return math.nan, math.nan
    # Centred, or squares of large values would cancel.
    x, y = x - x.mean(), y - y.mean()
    parts = [np.bincount(place, weights=w, minlength=n_prompts) for w in (np.ones_like(x), x, y, x * x, y * y, x * y)]
    times = np.random.default_rng(seed).multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=settings["n_resamples"])
    n, sx, sy, sxx, syy, sxy = (times @ np.stack(parts, axis=1)).T
    own, other = sxx - sx * sx / n, syy - sy * sy / n
    # A resample in which one is constant, but for rounding, has no correlation.
    varies = (own > TINY * sxx) & (other > TINY * syy)
    if not varies.any():
        return math.nan, math.nan
    r = (sxy - sx * sy / n)[varies] / np.sqrt(own[varies] * other[varies])
    tail = (1 - settings["confidence"]) / 2
    low, high = np.quantile(np.clip(r, -1, 1), [tail, 1 - tail])
    return float(low), float(high)
