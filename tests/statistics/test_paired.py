"""Paired statistics against statsmodels, pingouin, scipy's other tests, enumeration, closed forms and hand calculation."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import astuple

import numpy as np
import pingouin
import pytest
import statsmodels.api as sm
from scipy import stats

from emosteer.statistics import dose_response, paired, paired_effects, smallest_p

pytestmark = pytest.mark.filterwarnings("error")


def effect_of(differences, **options):
    """The effect of one metric whose baseline is zero."""
    differences = np.atleast_2d(np.asarray(differences, dtype=float))
    return paired_effects(differences, np.zeros_like(differences), **{"seed": 0} | options)[0]


def enumerated_p(values):
    """Two-sided p of the mean under all flips of sign: the share of flips at least as far from zero."""
    values = np.asarray(values, dtype=float)
    sums = np.array([np.dot(signs, values) for signs in itertools.product([-1, 1], repeat=len(values))])
    return np.mean(np.abs(sums) >= abs(values.sum()) - 1e-9)


def assert_same(left, right):
    np.testing.assert_array_equal([astuple(effect) for effect in left], [astuple(effect) for effect in right])


@pytest.fixture
def scores():
    """Skewed, tied, partly undefined metrics `[metric, prompt]`, an odd number of prompts: steered, baseline."""
    rng = np.random.default_rng(3)
    baseline = rng.poisson(2, (7, 39)) * rng.uniform(1, 3, (7, 1))
    steered = baseline + rng.gamma(1, 1, (7, 39)) - 0.8
    steered[1] = np.round(steered[1])
    steered[2, 5:9] = np.nan
    baseline[3, [0, 5]] = np.nan
    steered[4, 8:] = np.nan
    steered[5] = baseline[5]
    steered[6, 1:] = np.nan
    return steered, baseline


# Means, effect size and Wilcoxon's p


def test_means_difference_and_effect_size_by_hand():
    effect = paired_effects([[3.0, 5.0, 7.0, 9.0]], [[1.0, 2.0, 3.0, 8.0]], seed=0)[0]
    assert (effect.n, effect.steered, effect.baseline, effect.delta) == (4, 6.0, 3.5, 2.5)
    # differences 2, 3, 4, 1: squared deviations 0.25, 0.25, 2.25, 2.25 over n - 1 = 3
    assert effect.effect_size == pytest.approx(2.5 / math.sqrt(5 / 3))


def test_effect_size_is_the_paired_t_over_root_n(scores):
    steered, baseline = scores[0][0], scores[1][0]
    effect = paired_effects([steered], [baseline], seed=0)[0]
    t = stats.ttest_rel(steered, baseline).statistic
    assert effect.effect_size == pytest.approx(t / math.sqrt(39))
    assert effect.effect_size == pytest.approx(pingouin.ttest(steered, baseline, paired=True)["T"].iloc[0] / math.sqrt(39))


def test_wilcoxon_by_hand():
    # Rank 2 is the only negative one. Subsets of {1..6} with a sum of at most 2: {}, {1}, {2}, of 64; twice for two sides.
    assert effect_of([0.1, -0.2, 0.3, 0.4, 0.5, 0.6]).p == pytest.approx(6 / 64)


def test_wilcoxon_agrees_with_pingouin_where_its_defaults_do():
    # Without ties, to 50 prompts, both are exact; beyond, pingouin corrects for continuity and scipy's default does not.
    rng = np.random.default_rng(1)
    steered, baseline = rng.normal(0.4, 1, 20), rng.normal(0, 1, 20)
    frame = pingouin.wilcoxon(steered, baseline)
    expected = frame.filter(regex=r"^p[-_]val$").iloc[0, 0]
    assert paired_effects([steered], [baseline], seed=0)[0].p == pytest.approx(expected)


@pytest.mark.parametrize(
    ("n", "kind"),
    [
        *itertools.product([1, 2, 3, 5, 6, 8, 14, 20, 50, 51, 80], ["continuous", "ties", "ties and zeros", "zeros"]),
        (13, "ties and zeros"),  # the last that scipy enumerates; once, since it takes scipy a second
    ],
)
def test_wilcoxon_is_scipys_with_its_defaults(n, kind):
    rng = np.random.default_rng(n)
    differences = rng.normal(0.5, 1, n)
    if "ties" in kind:
        differences = np.round(3 * differences)
        differences[differences == 0] = -1.0
    if "zeros" in kind and n > 1:
        differences[: (n + 1) // 2] = 0.0
        differences[-1] = 2.0
    assert effect_of(differences).p == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-12)


def test_the_method_of_one_metric_does_not_follow_the_ties_of_another():
    rng = np.random.default_rng(8)
    plain, tied = rng.normal(0.3, 1, 20), np.round(rng.normal(0.3, 1, 20))
    together = paired_effects([plain, tied], np.zeros((2, 20)), seed=0)
    assert together[0].p == pytest.approx(stats.wilcoxon(plain, method="exact").pvalue)
    assert together[1].p == pytest.approx(stats.wilcoxon(tied, method="asymptotic").pvalue)


def test_small_samples_with_ties_cost_milliseconds():
    differences = np.random.default_rng(2).normal(0.5, 1, (18, 13))
    differences[:9, 0] = 0
    differences[9:, 0] = differences[9:, 1]
    started = time.perf_counter()
    paired_effects(differences, np.zeros_like(differences), seed=0)
    assert time.perf_counter() - started < 3  # scipy's own enumeration takes 13 s


# The sign-flip test


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rounded", [False, True])
def test_sign_flip_p_enumerates_all_flips_of_eight(seed, rounded):
    differences = np.random.default_rng(seed).normal(0.5, 1, 8)
    differences = np.round(differences) if rounded else differences
    assert effect_of(differences).p_perm == pytest.approx(enumerated_p(differences), abs=1e-12)
    assert effect_of(-differences).p_perm == pytest.approx(enumerated_p(differences), abs=1e-12)


@pytest.mark.parametrize("zeros", [0, 30])
def test_sign_flip_p_is_exact_up_to_n_resamples_flips(zeros):
    differences = np.random.default_rng(0).normal(0.6, 1, 8)
    exact = enumerated_p(differences)
    differences = np.append(differences, np.zeros(zeros))
    assert all(effect_of(differences, n_resamples=256, seed=seed).p_perm == pytest.approx(exact) for seed in range(4))
    drawn = {effect_of(differences, n_resamples=255, seed=seed).p_perm for seed in range(4)}
    assert len(drawn) > 1
    assert all(round(p * 256 / 2, 9).is_integer() for p in drawn)  # 2 (k + 1) / (n_resamples + 1)


def test_sign_flip_p_ignores_zero_differences():
    few = np.array([1.0, 2.5, -0.5, 3.0, 0.2, 1.1])
    assert effect_of([*few, *np.zeros(60)]).p_perm == pytest.approx(enumerated_p(few))


@pytest.mark.parametrize("shift", [0.0, 0.15, 0.3])
def test_drawn_sign_flip_p_is_near_the_exact_one(shift):
    differences = np.random.default_rng(4).normal(shift, 1, 16)
    exact = effect_of(differences, n_resamples=2**16).p_perm
    tail = exact / 2
    tolerance = 5 * 2 * math.sqrt(tail * (1 - tail) / 4999)
    assert effect_of(differences, n_resamples=4999).p_perm == pytest.approx(exact, abs=tolerance + 2 / 5000)


def test_sign_flip_p_is_near_the_t_test_in_a_large_normal_sample():
    differences = np.random.default_rng(5).normal(0, 1, 150)
    differences += 2 / math.sqrt(150) - differences.mean()  # two standard errors
    t_test = stats.ttest_1samp(differences, 0).pvalue
    assert 0.02 < t_test < 0.1
    assert effect_of(differences, n_resamples=10_000).p_perm == pytest.approx(t_test, abs=0.015)


def test_drawn_sign_flip_p_counts_the_observed_flip():
    assert effect_of(np.arange(1.0, 41.0), n_resamples=999).p_perm == pytest.approx(2 / 1000)


# The bootstrap interval


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_interval_is_the_normal_one_in_a_large_sample(confidence):
    differences = np.random.default_rng(6).gamma(4, 1, 400)
    effect = effect_of(differences, confidence=confidence, n_resamples=10_000)
    error = differences.std() / 20
    low, high = stats.norm.interval(confidence, loc=differences.mean(), scale=error)
    # The skew of the mean, 1 / 20, moves an end by (z**2 - 1) / 120, at most 0.05; a Monte Carlo error is at most 0.05.
    assert effect.ci_low == pytest.approx(low, abs=0.15 * error)
    assert effect.ci_high == pytest.approx(high, abs=0.15 * error)


@pytest.mark.parametrize(("confidence", "high"), [(0.95, 3.0), (0.9, 2.0)])
def test_interval_holds_the_percentiles_of_all_resamples_of_three(confidence, high):
    # The mean of three draws from 0, 0, 3 is 0, 1, 2, 3 with weights 8, 12, 6, 1 of 27; a mean of 3 has 3.7%.
    effect = effect_of([0.0, 0.0, 3.0], confidence=confidence)
    assert (effect.ci_low, effect.ci_high) == (pytest.approx(0.0, abs=1e-12), pytest.approx(high))


def test_interval_of_two_prompts_spans_both():
    effect = effect_of([1.0, 4.0])  # both draws are the same one in half of the resamples
    assert (effect.ci_low, effect.ci_high) == (1.0, 4.0)


# Same seed, same numbers; one metric's numbers are its own


def test_same_seed_same_numbers_and_another_seed_others(scores):
    first, again, other = (paired_effects(*scores, seed=seed) for seed in (11, 11, 12))
    assert_same(first, again)
    assert first[0].ci_low != other[0].ci_low
    assert first[0].p_perm != other[0].p_perm
    assert (first[0].delta, first[0].p) == (other[0].delta, other[0].p)


@pytest.mark.parametrize("prompts", [39, 13, 12])
@pytest.mark.parametrize("n_resamples", [500, 4999])
def test_a_metrics_numbers_do_not_depend_on_the_others(scores, prompts, n_resamples):
    steered, baseline = (values[:, :prompts] for values in scores)
    together = paired_effects(steered, baseline, seed=1, n_resamples=n_resamples)
    alone = [
        paired_effects(s[np.newaxis], b[np.newaxis], seed=1, n_resamples=n_resamples)[0]
        for s, b in zip(steered, baseline, strict=True)
    ]
    reversed_ = paired_effects(steered[::-1], baseline[::-1], seed=1, n_resamples=n_resamples)[::-1]
    assert_same(together, alone)
    assert_same(together, reversed_)


def test_many_prompts_in_batches_give_the_same_numbers(scores, monkeypatch):
    whole = paired_effects(*scores, seed=1)
    monkeypatch.setattr(paired, "BATCH_ELEMENTS", 39 * 700)
    assert_same(whole, paired_effects(*scores, seed=1))


def test_seeds_of_any_size_and_several():
    seeds = [2**200, (1, 2), (2, 1), 1]
    assert len({effect_of(np.arange(20.0), seed=seed).ci_low for seed in seeds}) > 1


# Undefined values and degenerate samples


def test_undefined_prompts_are_dropped_in_pairs():
    rng = np.random.default_rng(7)
    steered, baseline = rng.normal(0.5, 1, (2, 10)), rng.normal(0, 1, (2, 10))
    steered[0, 2] = np.nan
    baseline[0, 7] = np.nan
    kept = [0, 1, 3, 4, 5, 6, 8, 9]
    expected = paired_effects(steered[:1, kept], baseline[:1, kept], seed=3)
    effects = paired_effects(steered, baseline, seed=3)
    assert_same(effects[:1], expected)
    assert effects[0].baseline == pytest.approx(baseline[0, kept].mean())
    assert effects[0].steered == pytest.approx(steered[0, kept].mean())
    assert [effect.n for effect in effects] == [8, 10]


def test_drawn_flips_with_undefined_prompts_are_still_valid():
    differences = np.random.default_rng(9).normal(0.3, 1, 30)
    differences[[1, 4, 20]] = np.nan
    kept = differences[~np.isnan(differences)]
    full, reduced = effect_of(differences, n_resamples=20_000), effect_of(kept, n_resamples=20_000)
    assert full.p_perm == pytest.approx(reduced.p_perm, abs=0.02)
    assert (full.ci_low, full.ci_high, full.p) == (reduced.ci_low, reduced.ci_high, reduced.p)


@pytest.mark.parametrize("n", [2, 5, 13, 14, 60])
def test_no_difference_at_all(n):
    effect = paired_effects(np.full((1, n), 0.1), np.full((1, n), 0.1), seed=0)[0]
    assert astuple(effect)[3:] == (0.0, 0.0, 0.0, 0.0, 1.0, 1.0)
    assert effect.n == n


@pytest.mark.parametrize("n", [2, 7, 10, 30, 60])
@pytest.mark.parametrize("value", [0.1, -0.7])
def test_the_same_difference_everywhere(n, value):
    effect = effect_of(np.full(n, value))
    assert effect.effect_size == math.copysign(math.inf, value)
    assert effect.ci_low == effect.ci_high == effect.delta == pytest.approx(value)
    assert effect.p_perm == pytest.approx(smallest_p(n) if 2**n <= 4999 else 2 / 5000)
    assert effect.p == pytest.approx(stats.wilcoxon(np.full(n, value)).pvalue)


@pytest.mark.parametrize("difference", [2.0, 0.0])
def test_one_prompt(difference):
    effect = paired_effects([[difference + 1]], [[1.0]], seed=0)[0]
    assert (effect.n, effect.delta, effect.p, effect.p_perm) == (1, difference, 1.0, 1.0)
    assert np.isnan([effect.ci_low, effect.ci_high, effect.effect_size]).all()


@pytest.mark.parametrize("values", [np.full((1, 4), np.nan), np.zeros((1, 0))])
def test_no_prompt(values):
    effect = paired_effects(values, np.zeros_like(values), seed=0)[0]
    assert effect.n == 0
    assert np.isnan(astuple(effect)[1:]).all()


def test_no_metric():
    assert paired_effects(np.zeros((0, 5)), np.zeros((0, 5)), seed=0) == []


@pytest.mark.parametrize("n", range(1, 9))
def test_smallest_p_is_what_differences_of_one_sign_reach(n):
    effect = effect_of(np.arange(1.0, n + 1))
    assert smallest_p(n) == pytest.approx(effect.p_perm) == pytest.approx(effect.p)
    assert (smallest_p(n) > 0.05) == (n < 6)


def test_smallest_p_of_nothing():
    assert math.isnan(smallest_p(0))
    with pytest.raises(ValueError, match="-1"):
        smallest_p(-1)


@pytest.mark.parametrize(
    ("steered", "baseline", "options", "message"),
    [
        ([[1.0, 2.0]], [[1.0]], {}, r"\[1, 2\], baseline \[1, 1\]"),
        ([1.0, 2.0], [1.0, 2.0], {}, "two dimensions"),
        ([[1.0, 2.0], [1.0, math.inf]], np.zeros((2, 2)), {}, "steered is inf in row 1, prompt 1"),
        ([[1.0, 2.0]], [[-math.inf, 0.0]], {}, "baseline is -inf in row 0, prompt 0"),
        ([[1.0, 2.0]], [[0.0, 0.0]], {"n_resamples": 0}, "n_resamples is 0"),
        ([[1.0, 2.0]], [[0.0, 0.0]], {"confidence": 95}, "confidence is 95"),
        ([[1.0, 2.0]], [[0.0, 0.0]], {"seed": -1}, "non-negative"),
    ],
)
def test_what_cannot_be_computed_is_said(steered, baseline, options, message):
    with pytest.raises(ValueError, match=message):
        paired_effects(steered, baseline, **{"seed": 0} | options)


# Dose and response


@pytest.fixture
def doses():
    rng = np.random.default_rng(12)
    coefficients = np.array([0.4, 0.1, -0.2])
    return coefficients, np.outer(coefficients, rng.normal(2, 1, 15)) + rng.normal(0, 0.2, (3, 15))


def test_trend_is_the_mean_of_the_prompts_least_squares_slopes(doses):
    coefficients, deltas = doses
    slopes = [sm.OLS(prompt, coefficients).fit().params[0] for prompt in deltas.T]
    trend, effect = dose_response(coefficients, deltas, seed=5), effect_of(slopes, seed=5)
    assert (trend.n, trend.slope) == (15, pytest.approx(np.mean(slopes)))
    assert trend.p == pytest.approx(stats.wilcoxon(slopes).pvalue)
    assert (trend.ci_low, trend.ci_high) == (pytest.approx(effect.ci_low), pytest.approx(effect.ci_high))
    assert trend.p_perm == pytest.approx(effect.p_perm)
    assert trend.ci_low < trend.slope < trend.ci_high


def test_trend_passes_on_seed_resamples_and_confidence(doses):
    wide = dose_response(*doses, seed=5, confidence=0.99)
    narrow = dose_response(*doses, seed=5, confidence=0.5)
    assert wide.ci_low < narrow.ci_low < narrow.ci_high < wide.ci_high
    assert dose_response(*doses, seed=6).ci_low != dose_response(*doses, seed=5).ci_low
    assert dose_response(*doses, seed=5, n_resamples=99).p_perm >= 2 / 100


def test_monotone_is_spearmans_rho_with_the_origin():
    # Coefficients -1, 0 (origin), 1, 2 and mean deltas 2, 0, 1, 3: ranks 1 2 3 4 and 3 1 2 4, rho = 1 - 6 * 6 / (4 * 15)
    deltas = np.array([[2.0, 4.0], [1.0, 3.0], [3.0, 1.0]])[[1, 0, 2]]
    trend = dose_response([1.0, 2.0, -1.0], [[0.0, 2.0], [2.0, 4.0], [1.0, 3.0]], seed=0)
    assert trend.monotone == pytest.approx(1 - 36 / 60)
    assert dose_response([0.1, 0.2, 0.4], np.sort(deltas, axis=0), seed=0).monotone == pytest.approx(1.0)
    assert dose_response([0.1, 0.2, 0.4], -np.sort(deltas, axis=0), seed=0).monotone == pytest.approx(-1.0)


def test_rows_at_the_origin_change_nothing(doses):
    coefficients, deltas = doses
    with_origin = dose_response([0.0, *coefficients], np.vstack([np.zeros(15), deltas]), seed=5)
    assert with_origin == dose_response(coefficients, deltas, seed=5)


def test_a_prompt_undefined_at_one_coefficient_is_dropped_from_all(doses):
    coefficients, deltas = doses
    holes = deltas.copy()
    holes[0, 3] = np.nan
    holes[1, 3] = -1e6
    trend, expected = (dose_response(coefficients, d, seed=5, n_resamples=2**15) for d in (holes, np.delete(deltas, 3, axis=1)))
    assert trend.n == 14
    assert astuple(trend) == pytest.approx(astuple(expected))


def test_one_coefficient_has_a_slope_but_no_rank_correlation(doses):
    deltas = doses[1][:1]
    trend = dose_response([0.4], deltas, seed=5)
    assert trend.slope == pytest.approx(deltas.mean() / 0.4)
    assert trend.p == pytest.approx(stats.wilcoxon(deltas[0]).pvalue)
    assert math.isnan(trend.monotone)
    assert math.isnan(dose_response([0.4, 0.4], np.vstack([deltas, deltas]), seed=5).monotone)


@pytest.mark.parametrize(
    ("coefficients", "deltas"),
    [([], np.zeros((0, 4))), ([0.0], np.zeros((1, 4))), ([0.1, 0.2], np.full((2, 4), np.nan)), ([0.1], np.zeros((1, 0)))],
)
def test_no_coefficient_or_no_prompt(coefficients, deltas):
    trend = dose_response(coefficients, deltas, seed=0)
    assert trend.n == 0
    assert np.isnan(astuple(trend)[1:]).all()


def test_no_response_at_all():
    trend = dose_response([0.1, 0.2], np.zeros((2, 6)), seed=0)
    assert astuple(trend)[:6] == (6, 0.0, 0.0, 0.0, 1.0, 1.0)
    assert math.isnan(trend.monotone)


@pytest.mark.parametrize(
    ("coefficients", "deltas", "message"),
    [
        ([0.1], np.zeros((2, 3)), r"\[1\] coefficients for deltas \[2, 3\]"),
        ([0.1, math.nan], np.zeros((2, 3)), "finite"),
        ([0.1, 0.2], [[0.0], [math.inf]], "deltas is inf in row 1, prompt 0"),
        ([0.1], [0.0], "two dimensions"),
    ],
)
def test_what_has_no_trend_is_said(coefficients, deltas, message):
    with pytest.raises(ValueError, match=message):
        dose_response(coefficients, deltas, seed=0)


# Error rates over 400 simulated samples of 16 prompts


@pytest.fixture(scope="module")
def simulated():
    """400 experiments without an effect: two draws of the same prompts, whose own levels differ."""
    rng = np.random.default_rng(20)
    level = rng.gamma(2, 3, (400, 16))
    return paired_effects(level + rng.normal(0, 1, (400, 16)), level + rng.normal(0, 1, (400, 16)), seed=0)


@pytest.mark.parametrize("test", ["p", "p_perm"])
def test_without_an_effect_five_percent_are_significant(simulated, test):
    false_positives = sum(getattr(effect, test) <= 0.05 for effect in simulated)
    low, high = stats.binom.interval(0.999, 400, 0.05)
    assert low <= false_positives <= high


@pytest.mark.parametrize(("n", "confidence"), [(16, 0.95), (80, 0.95), (16, 0.8)])
def test_interval_covers_the_true_difference_at_its_level(n, confidence):
    differences = np.random.default_rng(21).normal(0.7, 2, (400, n))
    effects = paired_effects(differences, np.zeros_like(differences), seed=0, confidence=confidence, n_resamples=2000)
    covered = sum(effect.ci_low <= 0.7 <= effect.ci_high for effect in effects)
    # The percentile interval of a normal mean is z * sd(ddof 0) / sqrt(n) wide, and the mean follows Student's t.
    z = stats.norm.ppf(0.5 + confidence / 2)
    level = 1 - 2 * stats.t.sf(z * math.sqrt((n - 1) / n), n - 1)
    assert confidence - 0.04 < level < confidence
    low, high = stats.binom.interval(0.999, 400, level)
    assert low <= covered <= high
