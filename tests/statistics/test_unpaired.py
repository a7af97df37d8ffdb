"""The difference between two samples without common prompts, against scipy and a slow bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from emosteer.statistics import unpaired_effect

CHANCE = np.random.default_rng(3)
FIRST, SECOND = CHANCE.normal(0, 1, 40), CHANCE.normal(1, 3, 25)


def test_delta_and_p_are_those_of_the_two_samples() -> None:
    found = unpaired_effect(FIRST, SECOND, seed=1)
    assert (found.n_first, found.n_second) == (40, 25)
    assert found.delta == pytest.approx(SECOND.mean() - FIRST.mean())
    assert found.p == pytest.approx(stats.mannwhitneyu(SECOND, FIRST).pvalue)


def test_the_interval_is_that_of_resampling_each_sample_by_itself() -> None:
    found = unpaired_effect(FIRST, SECOND, seed=1)
    chance = np.random.default_rng(8)
    means = [chance.choice(SECOND, 25).mean() - chance.choice(FIRST, 40).mean() for _ in range(20_000)]
    low, high = np.quantile(means, [0.025, 0.975])
    # A quantile of 4,999 resamples is off by some 2 % of the interval.
    assert found.ci_low == pytest.approx(low, abs=0.08)
    assert found.ci_high == pytest.approx(high, abs=0.08)
    assert unpaired_effect(FIRST, SECOND, seed=1) == found
    assert unpaired_effect(FIRST, SECOND, seed=2) != found


def test_it_covers_as_often_as_it_says() -> None:
    chance = np.random.default_rng(5)
    hits = 0
    for trial in range(300):
        found = unpaired_effect(chance.normal(0, 1, 30), chance.normal(0.5, 2, 40), seed=trial, n_resamples=499)
        hits += found.ci_low <= 0.5 <= found.ci_high
    assert 0.90 <= hits / 300 <= 0.98


def test_edges() -> None:
    assert unpaired_effect([1.0, math.nan], [2.0, 4.0], seed=0).n_first == 1
    one = unpaired_effect([1.0], [2.0, 4.0], seed=0)
    assert one.delta == 2
    assert math.isnan(one.ci_low)
    none = unpaired_effect([math.nan], [2.0], seed=0)
    assert math.isnan(none.delta)
    assert math.isnan(none.p)
    constant = unpaired_effect([1.0, 1.0], [3.0, 3.0, 3.0], seed=0)
    assert (constant.ci_low, constant.delta, constant.ci_high) == (2, 2, 2)
    with pytest.raises(ValueError, match="one finite number a prompt"):
        unpaired_effect([math.inf], [1.0], seed=0)
