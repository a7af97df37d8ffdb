"""How many prompts a paired test needs to see an effect, in closed form: the two-sided paired t-test's, by the noncentral t."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats
from scipy.optimize import brentq

MOST_PROMPTS = 1_000_000
"""Beyond, no number is looked for."""


def power(n: int, effect_size: float, alpha: float = 0.05) -> float:
    """Chance that the two-sided paired t-test of `n` >= 2 prompts is below `alpha`, where d for paired data is `effect_size`.

    Normal differences are supposed. Of such Wilcoxon's test needs 1 / 0.955 times as many prompts, and of no symmetric ones more than
    1 / 0.864 times as many in large samples (Hodges and Lehmann 1956); with heavy tails it needs fewer.
    """
    critical, shift = stats.t.isf(alpha / 2, n - 1), abs(effect_size) * math.sqrt(n)
    # The far tail is next to nothing, and scipy's cannot always be told.
    far = np.nan_to_num(stats.nct.cdf(-critical, n - 1, shift))
    return float(stats.nct.sf(critical, n - 1, shift) + far)


def prompts_needed(effect: float, deviation: float, *, wanted: float = 0.8, alpha: float = 0.05) -> int | None:
    """The fewest prompts with which the paired t-test has the power `wanted` for a mean difference of `effect`.

    `deviation`: standard deviation of the differences, in the effect's unit. None where it is 0 or not known, and where more than
    `MOST_PROMPTS` would be needed. Raises `ValueError` for an effect of 0, and for a power or alpha that is not between 0 and 1.
    """
    _check(wanted, alpha)
    if not effect or not math.isfinite(effect):
        raise ValueError(f"effect is {effect}: give a number other than 0")
    if not deviation > 0:
        return None
    size, low, high = effect / deviation, 2, MOST_PROMPTS
    if power(high, size, alpha) < wanted:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, size, alpha) >= wanted else (middle + 1, high)
    return low


def smallest_effect(n: int, deviation: float, *, wanted: float = 0.8, alpha: float = 0.05) -> float:
    """The mean difference that the paired t-test of `n` prompts sees with the power `wanted`; NaN with fewer than two prompts.

    `deviation` as for `prompts_needed`, in the unit of what is returned; errors too.
    """
    _check(wanted, alpha)
    if n < 2 or not deviation > 0:
        return math.nan
    if power(n, 0.0, alpha) >= wanted:
        return 0.0
    most = 1.0
    while power(n, most, alpha) < wanted:
        most *= 2
    return deviation * float(brentq(lambda size: power(n, size, alpha) - wanted, 0.0, most))


def upper_deviation(deviation: float, n: int, assurance: float = 0.8) -> float:
    """What the true standard deviation is below with this assurance, where `n` normal differences show `deviation` (Browne 1995).

    NaN with fewer than two.
    """
    return deviation * math.sqrt((n - 1) / stats.chi2.ppf(1 - assurance, n - 1)) if n > 1 else math.nan


def _check(wanted: float, alpha: float) -> None:
    for name, value in (("power", wanted), ("alpha", alpha)):
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value}: give a number between 0 and 1")
