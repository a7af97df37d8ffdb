"""More about a cell's primary metric than about the others: further tests, effect sizes and intervals of the same differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from emosteer.statistics.paired import BATCH_ELEMENTS, DEFAULT_RESAMPLES, effect_size, is_constant, signed_ranks

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from emosteer.statistics.paired import FloatArray, Seed

FEWEST_FOR_BCA = 6
"""Prompts below which no BCa interval is computed: resamples of five are too often all alike, and no p reaches 0.05 either."""


@dataclass(frozen=True)
class PrimaryEffect:
    """More of the effect on one metric, over the prompts where it is defined on both sides.

    Attributes:
        p_t: two-sided p of the paired t-test; NaN with fewer than two prompts, and where all differences are equal and not zero.
        rank_biserial: matched-pairs rank-biserial correlation (Kerby 2014), from -1 to 1: of the ranks of the absolute
            differences, the share that belongs to rises less the share that belongs to falls. Zeros are dropped, as Wilcoxon's
            test does; 0 where there are only zeros.
        ci_low_bca: lower end of the BCa bootstrap interval of the mean difference (Efron 1987); NaN with fewer than
            `FEWEST_FOR_BCA` prompts.
        ci_high_bca: upper end of it.
        effect_size_ci_low: lower end of the BCa interval of d for paired data, from the same resamples; NaN where that of the mean
            is, and where leaving one prompt out leaves differences that are all equal. Infinite ends are possible.
        effect_size_ci_high: upper end of it.
    """

    p_t: float
    rank_biserial: float
    ci_low_bca: float
    ci_high_bca: float
    effect_size_ci_low: float
    effect_size_ci_high: float


def primary_effect(
    steered: ArrayLike,
    baseline: ArrayLike,
    *,
    seed: Seed,
    n_resamples: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
) -> PrimaryEffect:
    """More of the effect on one metric; `steered` and `baseline` are per-prompt means `[prompt]`, NaN where undefined.

    `seed`, `n_resamples`, `confidence`: as for `paired_effects`.
    """
    differences = np.asarray(steered, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    row = differences[~np.isnan(differences)]
    mean, size = _bca_intervals(row, seed, n_resamples, confidence)
    return PrimaryEffect(paired_t_p(row), rank_biserial(row), *mean, *size)


def paired_t_p(row: FloatArray) -> float:
    """Two-sided p of Student's t-test of differences `[prompt]`; what is undefined is NaN, and 1 for zeros alone."""
    if row.size < 2:
        return math.nan
    if is_constant(row):
        return math.nan if row[0] else 1.0
    return float(stats.ttest_1samp(row, 0).pvalue)


def rank_biserial(row: FloatArray) -> float:
    """Matched-pairs rank-biserial correlation of differences `[prompt]`, with the sign of the rise; NaN for none."""
    if not row.size:
        return math.nan
    ranks = signed_ranks(row)
    total = np.abs(ranks).sum()
    return float(ranks.sum() / total) if total else 0.0


def _bca_intervals(
    row: FloatArray, seed: Seed, n_resamples: int, confidence: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Intervals of the mean and of d, from the same resamples."""
    nothing = (math.nan, math.nan)
    if row.size < FEWEST_FOR_BCA:
        return nothing, nothing
    if is_constant(row):
        delta = float(row[0])
        return (delta, delta), nothing if delta else (0.0, 0.0)
    chance = np.random.default_rng(seed)
    size = max(1, BATCH_ELEMENTS // row.size)
    batches = [min(size, n_resamples - done) for done in range(0, n_resamples, size)]
    resampled = [_mean_and_size(row[chance.integers(row.size, size=(n, row.size))]) for n in batches]
    left_out = _mean_and_size(np.stack([np.delete(row, i) for i in range(row.size)]))
    mean, d = (
        _bca(estimate, np.concatenate([batch[i] for batch in resampled]), left_out[i], confidence)
        for i, estimate in enumerate((float(row.mean()), effect_size(row)))
    )
    return mean, d


def _mean_and_size(samples: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and d of each sample `[sample, prompt]`; d is infinite, or 0, where a sample is constant."""
    means, deviations = samples.mean(axis=1), samples.std(axis=1, ddof=1)
    constant = (samples == samples[:, :1]).all(axis=1)
    sizes = means / np.where(constant, 1.0, deviations)
    infinite = np.where(samples[:, 0] == 0, 0.0, np.copysign(np.inf, samples[:, 0]))
    return means, np.where(constant, infinite, sizes)


def _bca(estimate: float, resampled: FloatArray, left_out: FloatArray, confidence: float) -> tuple[float, float]:
    """Efron's (1987) bias-corrected and accelerated interval; `left_out` are the estimates without each prompt in turn.

    Its ends are resampled values, not points between two, since these may be infinite.
    """
    below = (np.count_nonzero(resampled < estimate) + np.count_nonzero(resampled <= estimate)) / (2 * resampled.size)
    if not 0 < below < 1 or not np.isfinite(left_out).all():
        return math.nan, math.nan
    influence = left_out.mean() - left_out
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    bias, z = stats.norm.ppf(below), stats.norm.ppf(0.5 + confidence / 2)
    shifted = bias + np.array([-z, z])
    levels = stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
    if not np.isfinite(levels).all():
        return math.nan, math.nan
    places = np.clip(np.ceil(levels * resampled.size).astype(int) - 1, 0, resampled.size - 1)
    low, high = np.sort(resampled)[places]
    return float(low), float(high)
