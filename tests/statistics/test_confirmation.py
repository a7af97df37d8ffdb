"""Confirmation on held-out halves against enumeration, a plain loop and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from emosteer.statistics import FEWEST_TO_CONFIRM, confirm
from emosteer.statistics.confirmation import _halves

pytestmark = pytest.mark.filterwarnings("error")


def all_readable(cells):
    return lambda half: np.ones(cells, dtype=bool)


@pytest.fixture
def grid():
    """Four cells x 14 prompts; the third is best, the second has a gap."""
    differences = np.random.default_rng(0).normal(0, 1, (4, 14)) + np.array([[0], [0.5], [1.2], [0.2]])
    differences[1, 3] = np.nan
    return differences


def plainly(differences, halves, signs, readable=lambda cell, half: True):
    """The mean held-out difference, the mean on the choosing halves, and who is chosen, by a loop."""
    here, there, chosen = [], [], []
    for half in halves:
        flipped = differences * signs
        means = [np.nanmean(row[half]) if readable(cell, half) else -math.inf for cell, row in enumerate(flipped)]
        if max(means) == -math.inf:
            continue
        best = means.index(max(means))
        chosen.append(best)
        here.append(means[best])
        there.append(np.nanmean(flipped[best][~half]))
    return np.mean(there), np.mean(here), chosen


def test_it_is_what_a_plain_loop_gives(grid):
    found = confirm(grid, all_readable(4), seed=5, n_splits=20)
    split_seed, _ = np.random.SeedSequence(5).spawn(2)
    halves = _halves(14, 20, np.random.default_rng(split_seed))
    there, here, chosen = plainly(grid, halves, np.ones(14))

    assert all(half.sum() == 7 for half in halves)
    assert all((first != second).all() for first, second in zip(halves[::2], halves[1::2], strict=True))
    assert found.confirmed == pytest.approx(there)
    assert found.optimism == pytest.approx(here - there)
    assert (found.winner, found.apparent) == (2, pytest.approx(grid[2].mean()))
    assert found.agreement == chosen.count(2) / 40
    assert (found.n, found.n_cells, found.n_halves, found.reason) == (14, 4, 40, "")
    assert found.ci_low < found.confirmed < found.ci_high


def test_p_and_interval_are_those_of_all_flips():
    differences = np.random.default_rng(2).normal(0.45, 1, (3, 12))
    found = confirm(differences, all_readable(3), seed=1, n_splits=1, n_flips=3000)
    halves = _halves(12, 1, np.random.default_rng(np.random.SeedSequence(1).spawn(2)[0]))
    centred = (differences - differences.mean(axis=1, keepdims=True)) * math.sqrt(12 / 11)
    every = [np.array(signs) for signs in itertools.product([-1.0, 1.0], repeat=12)]
    values = np.array([plainly(differences, halves, signs)[0] for signs in every])
    noise = np.array([plainly(centred, halves, signs)[0] for signs in every])

    assert found.p == pytest.approx(np.mean(np.abs(values) >= found.confirmed - 1e-12), abs=0.035)
    assert found.ci_high - found.confirmed == pytest.approx(np.quantile(np.abs(noise), 0.95), rel=0.06)
    assert found.ci_low == pytest.approx(2 * found.confirmed - found.ci_high)


def test_what_is_not_readable_is_not_chosen(grid):
    def readable(cell, half):
        return cell != 2 and not (cell == 1 and half[0])

    found = confirm(grid, lambda half: np.array([readable(cell, half) for cell in range(4)]), seed=5, n_splits=20)
    halves = _halves(14, 20, np.random.default_rng(np.random.SeedSequence(5).spawn(2)[0]))
    there, _, chosen = plainly(grid, halves, np.ones(14), readable)
    assert found.confirmed == pytest.approx(there)
    assert found.winner in (0, 3)
    assert 2 not in chosen


def test_the_same_seed_gives_the_same_and_the_order_of_cells_changes_nothing(grid):
    first = confirm(grid, all_readable(4), seed=3)
    assert first == confirm(grid, all_readable(4), seed=3)
    assert first.confirmed != confirm(grid, all_readable(4), seed=4).confirmed
    turned = confirm(grid[::-1], all_readable(4), seed=3)
    assert (turned.confirmed, turned.ci_low, turned.p) == pytest.approx((first.confirmed, first.ci_low, first.p))
    assert (first.winner, turned.winner) == (2, 1)


def test_what_is_not_computed_says_why(grid):
    few = confirm(grid[:, :11], all_readable(4), seed=0)
    assert few.reason == f"11 prompts are too few to halve: give at least {FEWEST_TO_CONFIRM}"
    assert np.isnan([few.confirmed, few.p, few.ci_low, few.optimism]).all()
    assert (few.winner, few.apparent) == (2, pytest.approx(grid[2, :11].mean())), "the winner is known all the same"
    assert not confirm(grid[:, :12], all_readable(4), seed=0).reason

    assert confirm(grid[:1], all_readable(1), seed=0).reason.startswith("nothing was chosen: there is one cell")
    nothing = confirm(grid, lambda half: np.zeros(4, dtype=bool), seed=0)
    assert (nothing.winner, nothing.reason) == (None, "no cell stays readable")
    seldom = confirm(grid, lambda half: np.full(4, half.all()), seed=0)
    assert (seldom.winner, seldom.reason) == (2, "no cell stays readable on most halves of the prompts")


def test_no_difference_at_all_is_p_one():
    found = confirm(np.zeros((3, 16)), all_readable(3), seed=0)
    assert (found.p, found.confirmed, found.ci_low, found.ci_high, found.optimism) == (1, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def simulated():
    """150 sweeps of 8 cells x 16 prompts that share a baseline, without an effect, and with one of 0.8 in every cell."""
    rng = np.random.default_rng(9)
    made = rng.normal(0, 1, (150, 8, 16)) - rng.normal(0, 1, (150, 1, 16))
    return {
        effect: [confirm(one + effect, all_readable(8), seed=i, n_splits=12, n_flips=199) for i, one in enumerate(made)]
        for effect in (0.0, 0.8)
    }


def test_without_an_effect_five_percent_are_confirmed(simulated):
    low, high = stats.binom.interval(0.999, 150, 0.05)
    assert low <= sum(found.p <= 0.05 for found in simulated[0.0]) <= high


def test_the_interval_covers_the_truth_and_the_optimism_is_taken_off(simulated):
    found = simulated[0.8]
    low, _ = stats.binom.interval(0.999, 150, 0.95)
    assert sum(one.ci_low <= 0.8 <= one.ci_high for one in found) >= low
    confirmed, apparent = np.array([(one.confirmed, one.apparent) for one in found]).T
    assert abs(confirmed.mean() - 0.8) < 3.3 * confirmed.std() / math.sqrt(150)
    assert apparent.mean() > 0.8 + 3.3 * apparent.std() / math.sqrt(150)
    assert np.mean([one.optimism for one in found]) > 0.3
