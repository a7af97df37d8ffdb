from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from emosteer.statistics import rank_prediction


def grid(n_blocks: int = 8, n: int = 20, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and effects whose means rise with them."""
    chance = np.random.default_rng(seed)
    scores = chance.normal(size=n_blocks)
    return scores, scores[:, None] + noise * chance.normal(size=(n_blocks, n))


def test_rho_is_scipys() -> None:
    for seed in range(5):
        scores, effects = grid(noise=6.0, seed=seed)
        scores[2], effects[4] = scores[1], effects[5]  # ties
        found = rank_prediction(scores, effects, seed=1)
        assert found.rho == pytest.approx(stats.spearmanr(scores, effects.mean(1)).statistic)
        assert (found.n_blocks, found.n, found.reason) == (8, 20, "")


@pytest.mark.parametrize(("sign", "rho"), [(1, 1.0), (-1, -1.0)])
def test_a_known_order_is_told_surely(sign: int, rho: float) -> None:
    scores, effects = grid(noise=0.001)
    found = rank_prediction(scores, sign * effects, seed=1)
    assert (found.rho, found.ci_low, found.ci_high) == pytest.approx((rho, rho, rho))


def test_the_interval_is_that_of_prompts_drawn_anew() -> None:
    scores, effects = grid(noise=3.0)
    found = rank_prediction(scores, effects, seed=3, n_resamples=20_000, confidence=0.9)
    chance = np.random.default_rng(7)
    slow = [stats.spearmanr(scores, effects[:, chance.integers(0, 20, 20)].mean(1)).statistic for _ in range(2_000)]
    assert [found.ci_low, found.ci_high] == pytest.approx(np.percentile(slow, [5, 95]), abs=0.05)
    assert found.ci_low < found.rho < found.ci_high
    assert rank_prediction(scores, effects, seed=3, n_resamples=20_000, confidence=0.9) == found


def test_undefined_values_are_left_out() -> None:
    scores, effects = grid(noise=2.0)
    effects[0, :5] = math.nan
    effects[3] = math.nan
    found = rank_prediction(scores, effects, seed=0)
    kept = [0, 1, 2, 4, 5, 6, 7]
    assert found.n_blocks == 7
    assert found.rho == pytest.approx(stats.spearmanr(scores[kept], np.nanmean(effects[kept], axis=1)).statistic)


@pytest.mark.parametrize(
    ("scores", "effects", "reason"),
    [
        ([1, 2], np.eye(2), "2 steered blocks are too few for a rank correlation: steer at least 3"),
        ([1, math.nan, 3], np.eye(3), "2 steered blocks are too few"),
        ([2, 2, 2, 2], np.arange(12.0).reshape(4, 3), "all blocks have the same attribution score"),
        ([1, 2, 3, 4], np.ones((4, 3)), "all blocks have the same effect"),
    ],
)
def test_not_computed(scores: list[float], effects: np.ndarray, reason: str) -> None:
    found = rank_prediction(scores, effects, seed=0)
    assert found.reason.startswith(reason)
    assert all(math.isnan(value) for value in (found.rho, found.ci_low, found.ci_high))


def test_one_prompt_has_no_interval() -> None:
    found = rank_prediction([1, 2, 3, 4], np.array([[1.0], [2.0], [4.0], [3.0]]), seed=0)
    assert found.rho == pytest.approx(0.8)
    assert math.isnan(found.ci_low)


def test_the_interval_holds_the_true_rank_correlation_as_often_as_it_says() -> None:
    """Where effects stand clear of the noise; 200 sweeps of 10 blocks whose true order is half that of the scores."""
    chance = np.random.default_rng(0)
    scores = np.arange(10.0)
    true = np.array([0, 4, 2, 7, 1, 5, 9, 3, 8, 6], dtype=float)
    rho = stats.spearmanr(scores, true).statistic
    held = 0
    for number in range(200):
        found = rank_prediction(scores, true[:, None] + 3 * chance.normal(size=(10, 24)), seed=number, n_resamples=499)
        held += found.ci_low - 1e-9 <= rho <= found.ci_high + 1e-9
    assert held >= 180
