"""The statistics err as often as they say: a small run of benchmarks/error_rates.py, within binomial bounds."""

from __future__ import annotations

import error_rates
import pytest
from scipy import stats

SWEEPS = 100


@pytest.fixture(scope="module")
def without() -> dict[str, tuple[int, int]]:
    return error_rates.without_effect(SWEEPS, cells=6, prompts=32)


@pytest.fixture(scope="module")
def with_one() -> dict[str, tuple[int, int]]:
    return error_rates.with_effect(SWEEPS, cells=6, prompts=32)


def bounds(level: float) -> tuple[float, float]:
    """Of a rate among as many tests as there are sweeps: cells of a sweep share their baseline, and hang together."""
    low, high = stats.binom.interval(0.999, SWEEPS, level)
    return low / SWEEPS, high / SWEEPS


@pytest.mark.parametrize(
    "test",
    [
        "a cell's p (Wilcoxon)",
        "a cell's p_perm (sign flips)",
        "a cell's p_t (paired t)",
        "the trend's p",
        "any cell: q",
        "any cell: Holm's p",
        "the confirmation's p",
        "no cost (ratio is the margin, 1.1)",
    ],
)
def test_without_an_effect_the_level_holds(without: dict[str, tuple[int, int]], test: str) -> None:
    hits, tries = without[test]
    assert hits / tries <= bounds(0.05)[1]
    assert tries >= SWEEPS


def test_uncorrected_it_would_not_hold(without: dict[str, tuple[int, int]]) -> None:
    hits, tries = without["any cell: p"]
    assert hits / tries > bounds(0.05)[1]


@pytest.mark.parametrize("interval", ["percentile interval", "BCa interval", "BCa interval of d", "the confirmation's interval"])
def test_intervals_cover_a_known_effect(with_one: dict[str, tuple[int, int]], interval: str) -> None:
    hits, tries = with_one[f"covers: {interval}"]
    # At 32 skewed differences bootstrap intervals of 95 % cover 92 to 93 %.
    assert hits / tries >= bounds(0.925)[0]


def test_effects_are_found(with_one: dict[str, tuple[int, int]]) -> None:
    assert {name: hits > 70 for name, (hits, _) in with_one.items() if name.startswith("finds")} == {
        "finds: the best cell's own p": True,
        "finds: the confirmation's p": True,
        "finds: no cost (ratio is 1, margin 1.1)": True,
    }


def test_the_true_size_is_that_of_very_many_prompts() -> None:
    steered, baseline = error_rates.sweep(error_rates.np.random.default_rng(3), error_rates.np.array([error_rates.EFFECT]), 400_000)
    differences = steered[0] - baseline
    assert differences.mean() / differences.std() == pytest.approx(error_rates.true_size(), rel=0.02)
