"""The difference between two samples that share no prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from emosteer.statistics.paired import BATCH_ELEMENTS, DEFAULT_RESAMPLES, is_constant

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from emosteer.statistics.paired import Seed


@dataclass(frozen=True)
class UnpairedEffect:
    """By how much the mean of one sample is above that of another. Units are the metric's.

    Attributes:
        n_first: values of the first sample that entered.
        n_second: values of the second sample.
        delta: mean of the second less mean of the first; NaN where either is empty.
        ci_low: lower end of the percentile bootstrap interval of `delta`; NaN where either has fewer than two values.
        ci_high: upper end of it.
        p: two-sided Mann-Whitney p, `scipy.stats.mannwhitneyu` with its defaults; NaN where either is empty.
    """

    n_first: int
    n_second: int
    delta: float
    ci_low: float
    ci_high: float
    p: float


def unpaired_effect(
    first: ArrayLike,
    second: ArrayLike,
    *,
    seed: Seed,
    n_resamples: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
) -> UnpairedEffect:
    """The difference between the means of two independent samples.

    The interval is the percentile bootstrap of the difference (Efron and Tibshirani 1993, ch. 8 and 13): each sample is
    resampled by itself.

    Args:
        first: values `[prompt]`, one a prompt; NaN where undefined, and left out.
        second: the same of the other sample.
        seed: what `numpy.random.SeedSequence` takes; same seed, same numbers.
        n_resamples: of the bootstrap.
        confidence: of the interval, between 0 and 1.

    Raises `ValueError` where a value is infinite or a sample is not one-dimensional.
    """
    one, other = _defined(first), _defined(second)
    if not one.size or not other.size:
        return UnpairedEffect(one.size, other.size, np.nan, np.nan, np.nan, np.nan)
    delta = float(other.mean() - one.mean())
    low, high = _interval(one, other, seed, n_resamples, confidence)
    p = float(stats.mannwhitneyu(one, other).pvalue)
    return UnpairedEffect(one.size, other.size, delta, low, high, p)


def _interval(
    one: NDArray[np.float64], other: NDArray[np.float64], seed: Seed, n_resamples: int, confidence: float
) -> tuple[float, float]:
    if min(one.size, other.size) < 2:
        return np.nan, np.nan
    if is_constant(one) and is_constant(other):
        return float(other[0] - one[0]), float(other[0] - one[0])
    found = stats.bootstrap(
        (one, other),
        lambda x, y, axis: y.mean(axis=axis) - x.mean(axis=axis),
        vectorized=True,
        method="percentile",
        n_resamples=n_resamples,
        batch=max(1, BATCH_ELEMENTS // (one.size + other.size)),
        confidence_level=confidence,
        rng=np.random.default_rng(np.random.SeedSequence(seed)),
    ).confidence_interval
    return float(found.low), float(found.high)


def _defined(values: ArrayLike) -> NDArray[np.float64]:
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or np.isinf(row).any():
        raise ValueError(f"values have shape {list(row.shape)}: give one finite number a prompt, NaN where undefined")
    return row[~np.isnan(row)]
