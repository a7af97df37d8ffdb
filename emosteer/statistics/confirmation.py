"""What the best of many cells is worth on prompts that had no part in choosing it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from emosteer.statistics.paired import FloatArray, Seed

    Flags: TypeAlias = NDArray[np.bool_]

FEWEST_TO_CONFIRM = 12
"""Prompts below which nothing is confirmed: on halves of five no test reaches 0.05, and a choice is chance."""
DEFAULT_SPLITS = 50
"""Ways in which the prompts are halved; each half chooses once."""
DEFAULT_FLIPS = 999
"""Sign flips behind p and interval: p comes in steps of 0.001, at 0.05 with a standard error of 0.007."""


@dataclass(frozen=True)
class Confirmation:
    """The rise of the cell that is chosen on one half of the prompts, on the other half; in the metric's unit.

    Attributes:
        n: prompts.
        n_cells: cells that were chosen among.
        n_halves: halves that chose.
        winner: the cell that all prompts together choose, by its row; None where none is readable.
        agreement: share of the halves that choose it too.
        apparent: mean difference of the winner over all prompts, which chose it: too large, as a rule.
        confirmed: mean over halves of the chosen cell's mean difference on the other half.
        ci_low: lower end of the interval of `confirmed`.
        ci_high: upper end of it.
        p: two-sided p of `confirmed`, for the hypothesis that no cell has an effect.
        optimism: mean over halves of the chosen cell's mean difference on the half that chose it, less that on the other.
        reason: why there is no confirmation, and its numbers are NaN; empty where there is one.
    """

    n: int
    n_cells: int
    n_halves: int
    winner: int | None
    agreement: float
    apparent: float
    confirmed: float
    ci_low: float
    ci_high: float
    p: float
    optimism: float
    reason: str


@dataclass(frozen=True)
class _Half:
    """Half of the prompts, and what is readable on it."""

    prompts: Flags
    readable: Flags


def confirm(
    differences: ArrayLike,
    is_readable: Callable[[Flags], Flags],
    *,
    seed: Seed,
    n_splits: int = DEFAULT_SPLITS,
    n_flips: int = DEFAULT_FLIPS,
    confidence: float = 0.95,
) -> Confirmation:
    """Choose the readable cell with the largest mean difference on one half of the prompts, and measure it on the other.

    One split hangs on chance: the prompts are split at random `n_splits` times, each half of each split chooses, and the mean over
    all of these is `confirmed` (repeated cross-fitting). Its expectation is the true effect of the cells that halves choose. Since
    halves choose less well than all prompts do, that is rather less than the true effect of the winner.

    Two halves that choose alike make that mean vary more than as many prompts do, so that no test of one cell is valid for it. p
    is of flips of signs: where no cell has an effect, all differences at a prompt could as well have had the other sign; the whole
    procedure is repeated with `n_flips` such flips, and the observed one counts too (Phipson and Smyth 2010). The interval reaches
    as far as the same flips of the differences without their cells' means do, at the level `confidence`.

    Args:
        differences: steered minus baseline of the primary metric `[cell, prompt]`; NaN where undefined.
        is_readable: which prompts count, `[prompt]` -> which cells are readable on them, `[cell]`.
        seed: of splits and flips, as for `paired_effects`.
        n_splits: how often the prompts are halved.
        n_flips: of signs.
        confidence: of the interval.
    """
    values = np.asarray(differences, dtype=np.float64)
    n_cells, n = values.shape
    winner, apparent = _winner(values, is_readable)
    halves: list[_Half] = []
    reason = _why_not(n, n_cells, winner)
    if not reason:
        split_seed, flip_seed = np.random.SeedSequence(seed).spawn(2)
        halves = [_Half(half, is_readable(half)) for half in _halves(n, n_splits, np.random.default_rng(split_seed))]
        choosing = sum(half.readable.any() for half in halves)
        if choosing <= len(halves) / 2:
            reason = "no cell stays readable on most halves of the prompts"
    if reason:
        unknown = dict.fromkeys(("agreement", "confirmed", "ci_low", "ci_high", "p", "optimism"), math.nan)
        return Confirmation(n=n, n_cells=n_cells, n_halves=0, winner=winner, apparent=apparent, reason=reason, **unknown)
    signs = np.random.default_rng(flip_seed).choice([-1.0, 1.0], (n_flips, n))
    chosen, here, there = _cross_fit(values, halves, np.ones((1, n)))
    confirmed = float(there[:, 0].mean())
    flipped = _cross_fit(values, halves, signs)[2].mean(axis=0)
    # Equal to the last bit where a flip changes nothing.
    further = np.count_nonzero(np.abs(flipped) >= abs(confirmed) * (1 - 1e-12))
    noise = np.sort(np.abs(_cross_fit(_centred(values), halves, signs)[2].mean(axis=0)))
    reach = float(noise[min(n_flips, math.ceil(confidence * (n_flips + 1))) - 1])
    return Confirmation(
        n=n,
        n_cells=n_cells,
        n_halves=len(chosen),
        winner=winner,
        agreement=float((chosen[:, 0] == winner).mean()),
        apparent=apparent,
        confirmed=confirmed,
        ci_low=confirmed - reach,
        ci_high=confirmed + reach,
        p=(1 + further) / (1 + n_flips),
        optimism=float((here - there).mean()),
        reason="",
    )


def _why_not(n: int, n_cells: int, winner: int | None) -> str:
    if n_cells < 2:
        return "nothing was chosen: there is one cell, and its own numbers hold"
    if n < FEWEST_TO_CONFIRM:
        return f"{n} prompts are too few to halve: give at least {FEWEST_TO_CONFIRM}"
    return "no cell stays readable" if winner is None else ""


def _winner(values: FloatArray, is_readable: Callable[[Flags], Flags]) -> tuple[int | None, float]:
    """The row that all prompts choose, and its mean."""
    everything = np.ones(values.shape[1], dtype=np.bool_)
    whole = _Half(everything, is_readable(everything))
    if not whole.readable.any():
        return None, math.nan
    means = _means(values, everything, np.ones((1, everything.size)))[:, 0]
    winner = int(_choice(means[:, np.newaxis], whole)[0])
    return winner, float(means[winner])


def _halves(n: int, n_splits: int, chance: np.random.Generator) -> list[Flags]:
    """Both halves of each split, as flags `[prompt]`."""
    firsts = [np.isin(np.arange(n), chance.permutation(n)[: n // 2]) for _ in range(n_splits)]
    return [half for first in firsts for half in (first, ~first)]


def _cross_fit(values: FloatArray, halves: list[_Half], signs: FloatArray) -> tuple[NDArray[np.intp], FloatArray, FloatArray]:
    """Under each flip, the cell that each half chooses, its mean there and its mean on the other half, each `[half, flip]`.

    `signs` `[flip, prompt]`. Halves on which nothing is readable are left out.
    """
    chosen, here, there = [], [], []
    flips = np.arange(len(signs))
    for half in halves:
        if half.readable.any():
            means = _means(values, half.prompts, signs)
            rows = _choice(means, half)
            chosen.append(rows)
            here.append(means[rows, flips])
            there.append(_means(values, ~half.prompts, signs)[rows, flips])
    return np.array(chosen), np.array(here), np.array(there)


def _means(values: FloatArray, prompts: Flags, signs: FloatArray) -> FloatArray:
    """Means `[cell, flip]` over some prompts, of those where a cell's value is defined; 0 where none is."""
    defined = ~np.isnan(values[:, prompts])
    sums = np.where(defined, values[:, prompts], 0.0) @ signs[:, prompts].T
    return np.asarray(sums / np.maximum(defined.sum(axis=1, keepdims=True), 1))


def _choice(means: FloatArray, half: _Half) -> NDArray[np.intp]:
    """The readable cell with the largest mean under each flip `[flip]`, the first of equal ones."""
    return np.where(half.readable[:, np.newaxis], means, -np.inf).argmax(axis=0)


def _centred(values: FloatArray) -> FloatArray:
    """Values without their cell's mean, as spread out as they were."""
    everything = np.ones(values.shape[1], dtype=np.bool_)
    n = (~np.isnan(values)).sum(axis=1, keepdims=True)
    means = _means(values, everything, np.ones((1, everything.size)))
    return np.asarray((values - means) * np.sqrt(n / np.maximum(n - 1, 1)))
