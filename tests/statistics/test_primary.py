"""The primary metric's other numbers against scipy, pingouin, statsmodels and hand calculation."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pingouin
import pytest
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from emosteer.statistics import primary, primary_effect
from emosteer.statistics.paired import effect_size

pytestmark = pytest.mark.filterwarnings("error")


def effect_of(differences, **options):
    """The primary effect where the baseline is zero."""
    differences = np.asarray(differences, dtype=float)
    return primary_effect(differences, np.zeros_like(differences), **{"seed": 0} | options)


@pytest.fixture
def skewed():
    return np.random.default_rng(4).gamma(1, 2, 32) - 1


def test_the_t_test_is_scipys_and_statsmodels(skewed):
    baseline = np.random.default_rng(5).normal(5, 2, 32)
    p = primary_effect(baseline + skewed, baseline, seed=0).p_t
    assert p == pytest.approx(stats.ttest_rel(baseline + skewed, baseline).pvalue)
    assert p == pytest.approx(DescrStatsW(skewed).ttest_mean(0)[1])


def test_the_rank_biserial_is_pingouins_and_by_hand(skewed):
    baseline = np.random.default_rng(5).normal(5, 2, 32)
    pingouins = pingouin.wilcoxon(baseline + skewed, baseline)["RBC"].iloc[0]
    assert primary_effect(baseline + skewed, baseline, seed=0).rank_biserial == pytest.approx(pingouins)
    # Ranks of 1, 2, 2, 4 are 1, 2.5, 2.5, 4: falls have 2.5 of 10.
    assert effect_of([1, -2, 2, 4]).rank_biserial == pytest.approx((7.5 - 2.5) / 10)
    assert effect_of([0, 0, 1, -2, 2, 4]).rank_biserial == pytest.approx((7.5 - 2.5) / 10), "zeros are dropped"


@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize("statistic", ["mean", "d"])
def test_bca_intervals_are_scipys(skewed, statistic, confidence):
    compute = np.mean if statistic == "mean" else lambda x, axis: x.mean(axis) / x.std(axis, ddof=1)
    scipys = stats.bootstrap(
        (skewed,), compute, method="BCa", n_resamples=60_000, confidence_level=confidence, vectorized=True, rng=1
    ).confidence_interval
    effect = effect_of(skewed, n_resamples=60_000, confidence=confidence)
    ours = (effect.ci_low_bca, effect.ci_high_bca) if statistic == "mean" else (effect.effect_size_ci_low, effect.effect_size_ci_high)
    # Both are Monte Carlo: the ends' standard error is about 1 % of the interval.
    assert ours == pytest.approx(scipys, abs=0.04 * (scipys.high - scipys.low))
    percentile = np.quantile(
        np.random.default_rng(2).choice(skewed, (60_000, 32)).mean(1), [0.5 - confidence / 2, 0.5 + confidence / 2]
    )
    if statistic == "mean":
        assert ours[0] > percentile[0] + 0.02, "skew moves both ends upward"


def test_the_same_seed_gives_the_same_and_batches_change_nothing(skewed, monkeypatch):
    first = effect_of(skewed, seed=3)
    assert astuple(first) == astuple(effect_of(skewed, seed=3))
    assert first.ci_low_bca != effect_of(skewed, seed=4).ci_low_bca
    monkeypatch.setattr(primary, "BATCH_ELEMENTS", 32 * 700)
    assert astuple(first) == astuple(effect_of(skewed, seed=3))


def test_undefined_prompts_are_dropped(skewed):
    with_gaps = np.insert(skewed, [0, 9], np.nan)
    assert astuple(effect_of(with_gaps)) == astuple(effect_of(skewed))


def test_what_few_or_equal_differences_leave_open_is_nan():
    five, six = effect_of([1.0, 2, 3, 4, 6]), effect_of([1.0, 2, 3, 4, 6, 7])
    assert np.isnan(astuple(five)[2:]).all()
    assert five.rank_biserial == 1
    assert 0 < five.p_t < 0.05
    assert np.isfinite(astuple(six)).all()
    assert np.isnan(astuple(effect_of([]))).all()
    assert math.isnan(effect_of([2.0]).p_t)

    nothing = effect_of(np.zeros(8))
    assert astuple(nothing) == (1, 0, 0, 0, 0, 0)
    equal = effect_of(np.full(8, 0.1))
    assert math.isnan(equal.p_t), "no variance, no t"
    assert (equal.rank_biserial, equal.ci_low_bca, equal.ci_high_bca) == (1, 0.1, 0.1)
    assert math.isnan(equal.effect_size_ci_low)


def test_resamples_that_are_all_alike_have_an_infinite_effect_size():
    # Two prompts differ from the rest: (6/8)**8 = 10 % of the resamples are constant.
    effect = effect_of([1.0, 1, 1, 1, 1, 1, 2, 3], confidence=0.999)
    assert effect.effect_size_ci_high == math.inf
    assert 0 < effect.effect_size_ci_low < effect_size(np.array([1.0, 1, 1, 1, 1, 1, 2, 3]))
    one = effect_of([1.0, 1, 1, 1, 1, 1, 1, 2])
    assert math.isnan(one.effect_size_ci_low), "without the last prompt all are equal"
    assert one.ci_low_bca == 1
