"""Whether what attribution says of a block predicts what steering does there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from emosteer.statistics.paired import FloatArray, Seed

FEWEST_BLOCKS = 3
"""Blocks below which nothing is computed: two have an order by chance. Of three, one order in six is still the right one so."""


@dataclass(frozen=True)
class Prediction:
    """Rank correlation between the attribution scores of blocks and the steering effects there.

    Attributes:
        n_blocks: blocks that have both.
        n: prompts.
        rho: Spearman's, over blocks.
        ci_low: lower end of the percentile interval of `rho`, by the bootstrap over prompts; NaN with fewer than two.
        ci_high: upper end of it.
        reason: why there is none, and the numbers are NaN; empty where there is one.
    """

    n_blocks: int
    n: int
    rho: float
    ci_low: float
    ci_high: float
    reason: str


def rank_prediction(
    scores: ArrayLike, effects: ArrayLike, *, seed: Seed, n_resamples: int = 4999, confidence: float = 0.95
) -> Prediction:
    """Spearman's rank correlation of scores and mean effects over blocks, with an interval over prompts.

    The blocks are those that a sweep has, and no sample of more: neighbours are alike, and drawing them anew would say little. The
    prompts are a sample, the same at every block, and are drawn anew together; a block's effect is then the mean over those drawn.
    The scores stay as they are. A resample adds to the effects' noise as much again as they have, so that where it hides their
    order the interval lies nearer to 0 than the truth: it is one of this sweep's rho, not of what rho were without noise.

    Args:
        scores: of each block `[block]`.
        effects: steered minus baseline at each block and prompt `[block, prompt]`; NaN where undefined.
        seed: of the resamples, as for `paired_effects`.
        n_resamples: of the prompts.
        confidence: of the interval.
    """
    own, values = np.asarray(scores, dtype=np.float64), np.asarray(effects, dtype=np.float64)
    n = values.shape[1]
    known = np.isfinite(own) & (~np.isnan(values)).any(axis=1)
    own, values = own[known], values[known]
    means = _means(values, np.ones((1, n)))
    if reason := _why_not(own, means[:, 0]):
        return Prediction(len(own), n, math.nan, math.nan, math.nan, reason)
    low = high = math.nan
    if n > 1:
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples).astype(np.float64)
        rhos = _rank_correlations(own, _means(values, drawn))
        tail = 50 * (1 - confidence)
        low, high = (float(end) for end in np.nanpercentile(rhos, [tail, 100 - tail]))
    return Prediction(len(own), n, float(_rank_correlations(own, means)[0]), low, high, "")


def _why_not(scores: FloatArray, effects: FloatArray) -> str:
    if len(scores) < FEWEST_BLOCKS:
        return f"{len(scores)} steered blocks are too few for a rank correlation: steer at least {FEWEST_BLOCKS}"
    if np.ptp(scores) == 0:
        return "all blocks have the same attribution score"
    return "all blocks have the same effect" if np.ptp(effects) == 0 else ""


def _means(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Means `[block, resample]` over prompts that count as often as `[resample, prompt]` says; NaN where none is defined."""
    defined = ~np.isnan(values)
    counts = defined @ weights.T
    sums = np.where(defined, values, 0.0) @ weights.T
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _rank_correlations(scores: FloatArray, effects: FloatArray) -> FloatArray:
    """Spearman's rho of the scores `[block]` with the effects of each resample `[block, resample]`; NaN where one is constant.

    Sums that differ in their last bits alone are ties: they come from the same numbers in another order.
    """
    a = stats.rankdata(scores)
    b = stats.rankdata(np.round(effects, 10), axis=0)
    a, b = a - a.mean(), b - b.mean(axis=0)
    lengths = np.sqrt((a**2).sum() * (b**2).sum(axis=0))
    return np.where(lengths > 0, a @ b / np.where(lengths > 0, lengths, 1.0), np.nan)
