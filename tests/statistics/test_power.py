"""Power and numbers of prompts against statsmodels and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from statsmodels.stats.power import TTestPower

from emosteer.statistics.power import MOST_PROMPTS, power, prompts_needed, smallest_effect, upper_deviation

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("alpha", [0.05, 0.004])
@pytest.mark.parametrize("size", [0.0, 0.1, -0.5, 0.9, 3.0])
@pytest.mark.parametrize("n", [2, 8, 32, 400])
def test_power_is_statsmodels(n, size, alpha):
    expected = TTestPower().power(abs(size), n, alpha, alternative="two-sided")
    # Of some, statsmodels has NaN: scipy's noncentral t has it far out, where the probability is nothing.
    expected = integrated_power(n, size, alpha) if math.isnan(expected) else expected
    assert power(n, size, alpha) == pytest.approx(expected, abs=1e-6)


def integrated_power(n, size, alpha):
    """The chance that a normal variable over the root of a chi-squared one is beyond the critical value, by integration."""
    df = n - 1
    critical, shift = stats.t.isf(alpha / 2, df), abs(size) * math.sqrt(n)

    def beyond(v):
        edge = critical * math.sqrt(v / df)
        return (stats.norm.sf(edge - shift) + stats.norm.cdf(-edge - shift)) * stats.chi2.pdf(v, df)

    return quad(beyond, 0, stats.chi2.isf(1e-12, df), limit=500, points=[df])[0]


@pytest.mark.parametrize("alpha", [0.05, 0.004])
@pytest.mark.parametrize("size", [0.05, 0.3, 0.92, 2.0])
def test_prompts_needed_are_statsmodels_rounded_up_and_see_the_effect(size, alpha):
    needed = prompts_needed(2 * size, 2.0, alpha=alpha)
    assert needed == math.ceil(TTestPower().solve_power(size, power=0.8, alpha=alpha))
    assert power(needed, size, alpha) >= 0.8 > power(needed - 1, size, alpha)
    assert smallest_effect(needed, 2.0, alpha=alpha) <= 2 * size < smallest_effect(needed - 1, 2.0, alpha=alpha)
    assert prompts_needed(-2 * size, 2.0, alpha=alpha) == needed


def test_simulated_tests_have_that_power():
    rng = np.random.default_rng(3)
    seen = np.count_nonzero(stats.ttest_1samp(rng.normal(0.5, 1, (4000, prompts_needed(0.5, 1.0))), 0, axis=1).pvalue <= 0.05)
    low, high = stats.binom.interval(0.999, 4000, power(prompts_needed(0.5, 1.0), 0.5))
    assert low <= seen <= high


def test_the_upper_deviation_is_above_the_true_one_as_often_as_it_says():
    deviations = np.random.default_rng(4).normal(0, 3, (4000, 20)).std(axis=1, ddof=1)
    above = sum(upper_deviation(float(one), 20) >= 3 for one in deviations)
    low, high = stats.binom.interval(0.999, 4000, 0.8)
    assert low <= above <= high
    assert math.isnan(upper_deviation(1.0, 1))


def test_what_is_not_computed_or_makes_no_sense():
    assert prompts_needed(1.0, 0.0) is None
    assert prompts_needed(1.0, math.nan) is None
    assert prompts_needed(1e-5, 1.0) is None
    assert prompts_needed(0.003, 1.0) < MOST_PROMPTS
    assert prompts_needed(100.0, 1.0) == 2
    assert math.isnan(smallest_effect(1, 1.0))
    assert smallest_effect(5, 1.0, wanted=0.01) == 0
    for wrong in ({"wanted": 0.0}, {"wanted": 1.0}, {"alpha": 0.0}, {"alpha": math.nan}):
        with pytest.raises(ValueError, match="between 0 and 1"):
            prompts_needed(1.0, 1.0, **wrong)
    with pytest.raises(ValueError, match="effect is 0"):
        prompts_needed(0, 1.0)
