"""Whether a difference is small for certain: a large p of a test for a difference does not say so."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from emosteer.statistics.paired import is_constant

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def equivalence_p(steered: ArrayLike, baseline: ArrayLike, margin: float, *, of_ratio: bool = False) -> float:
    """The p of two one-sided paired t-tests (Schuirmann 1987): small where the mean difference lies within the margin.

    Args:
        steered: per-prompt means `[prompt]`; NaN where undefined, and such prompts are dropped from both sides.
        baseline: the same of the unsteered replies.
        margin: the largest difference that counts as none, in the metric's unit; where `of_ratio`, a factor above 1.
        of_ratio: test the geometric mean of `steered / baseline`, which are positive, between 1 / margin and margin.

    NaN with fewer than two prompts, and for a ratio of values that are not all positive. Where all differences are equal t has
    no denominator: p is then that of n signs, 2**-n, within the margin, and 1 outside or on it.

    Raises `ValueError` for a margin that is not above 0 (of a ratio: 1).
    """
    if not margin > (1 if of_ratio else 0) or not math.isfinite(margin):
        raise ValueError(f"margin is {margin}: give a number above {1 if of_ratio else 0}")
    after, before = np.asarray(steered, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if of_ratio:
        if (after <= 0).any() or (before <= 0).any():
            return math.nan
        after, before, margin = np.log(after), np.log(before), math.log(margin)
    row = after - before
    row = row[~np.isnan(row)]
    if row.size < 2:
        return math.nan
    if is_constant(row):
        return float(np.ldexp(1.0, -row.size)) if abs(row[0]) < margin else 1.0
    lower = stats.ttest_1samp(row, -margin, alternative="greater").pvalue
    upper = stats.ttest_1samp(row, margin, alternative="less").pvalue
    return float(max(lower, upper))
