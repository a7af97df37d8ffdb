"""Two one-sided tests against statsmodels, pingouin, a closed form and simulation at the margin."""

from __future__ import annotations

import math

import numpy as np
import pingouin
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from emosteer.statistics import equivalence_p

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def perplexities():
    """Of 32 prompts, unsteered and 3 % higher."""
    rng = np.random.default_rng(0)
    baseline = rng.lognormal(1.5, 0.4, 32)
    return baseline * rng.lognormal(0.03, 0.15, 32), baseline


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.5])
def test_a_difference_is_statsmodels_and_pingouins(perplexities, margin):
    p = equivalence_p(*perplexities, margin)
    assert p == pytest.approx(ttost_paired(*perplexities, -margin, margin)[0])
    assert p == pytest.approx(pingouin.tost(*perplexities, bound=margin, paired=True).filter(like="p").iloc[0, -1])


def test_a_ratio_is_statsmodels_of_logarithms(perplexities):
    p = equivalence_p(*perplexities, 1.1, of_ratio=True)
    assert p == pytest.approx(ttost_paired(*perplexities, 1 / 1.1, 1.1, transform=np.log)[0])
    assert p == pytest.approx(equivalence_p(*perplexities[::-1], 1.1, of_ratio=True)), "the same both ways"


def test_it_is_small_where_the_90_percent_interval_lies_within_the_margin(perplexities):
    logs = np.log(perplexities[0] / perplexities[1])
    half = stats.t.ppf(0.95, 31) * logs.std(ddof=1) / math.sqrt(32)
    edge = math.exp(abs(logs.mean()) + half)
    assert equivalence_p(*perplexities, edge, of_ratio=True) == pytest.approx(0.05)
    assert equivalence_p(*perplexities, edge * 1.01, of_ratio=True) < 0.05 < equivalence_p(*perplexities, edge / 1.01, of_ratio=True)


@pytest.mark.parametrize("truth", [1.0, -1.0])
def test_at_the_margin_at_most_five_percent_are_told_equal(truth):
    differences = np.random.default_rng(6).normal(truth, 1, (600, 32))
    told = sum(equivalence_p(row, np.zeros(32), 1.0) <= 0.05 for row in differences)
    low, high = stats.binom.interval(0.999, 600, 0.05)
    assert low <= told <= high


def test_undefined_few_and_equal():
    assert equivalence_p([1, math.nan, 2.0, 1.5], [1, 1, math.nan, 1.4], 1) == equivalence_p([1, 1.5], [1, 1.4], 1)
    assert math.isnan(equivalence_p([1.0, math.nan], [1.2, 1], 1))
    assert math.isnan(equivalence_p([], [], 1))
    assert equivalence_p(np.ones(8), np.ones(8), 0.5) == 1 / 256
    assert equivalence_p(np.ones(8), np.zeros(8), 1.0) == 1, "on the margin is not within"
    assert equivalence_p(np.full(8, 5.0), np.zeros(8), 1.0) == 1


@pytest.mark.parametrize(
    ("margin", "of_ratio"), [(0, False), (-1, False), (math.nan, False), (math.inf, False), (1, True), (0.9, True)]
)
def test_margins_that_make_no_sense_are_refused(margin, of_ratio):
    with pytest.raises(ValueError, match=f"margin is {margin}: give a number above {int(of_ratio)}"):
        equivalence_p([1.0, 2.0], [1.0, 3.0], margin, of_ratio=of_ratio)


def test_ratios_of_nothing_are_not_computed():
    assert math.isnan(equivalence_p([1.0, 0.0], [1.0, 3.0], 1.1, of_ratio=True))
