"""How sure a direction is, against closed forms in numpy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from emosteer.vectors import METHODS, Quality, States, lda, mean_difference, quality
from emosteer.vectors.quality import FOLDS, ORDERS, SPLITS

Floats = NDArray[np.float64]


def states_of(n: int, shift: float, blocks: int = 2, width: int = 16) -> States:
    generator = torch.Generator().manual_seed(n)
    positive, negative = torch.randn(2, n, blocks, width, generator=generator)
    positive[..., 0] += shift
    return States(positive, negative)


def order_of(n: int, seed: int) -> list[int]:
    return [int(i) for i in torch.randperm(n, generator=torch.Generator().manual_seed(seed))]


def by_hand(states: States, block: int) -> tuple[float, float, int]:
    """Split-half cosine, held-out AUC and pairs needed of the mean difference at a block."""
    positive, negative = (part[:, block].double().numpy() for part in (states.positive, states.negative))
    n = len(positive)

    def direction(rows: list[int]) -> Floats:
        made: Floats = positive[rows].mean(0) - negative[rows].mean(0)
        return made

    def cosine(a: Floats, b: Floats) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    halves = [(order_of(n, seed)[: n // 2], order_of(n, seed)[n // 2 : n // 2 * 2]) for seed in range(SPLITS)]
    split_half = float(np.mean([cosine(direction(a), direction(b)) for a, b in halves]))
    areas = []
    for fold in np.array_split(order_of(n, 0), min(FOLDS, n)):
        line = direction([row for row in range(n) if row not in fold])
        projections = np.concatenate([positive[fold] @ line, negative[fold] @ line])
        areas.append(roc_auc_score(np.repeat([1, 0], len(fold)), projections))
    needed, whole = n, direction(list(range(n)))
    for number in sorted((2**i for i in range(10) if 2**i < n), reverse=True):
        if np.mean([cosine(direction(order_of(n, seed)[:number]), whole) for seed in range(ORDERS)]) < 0.95:
            break
        needed = number
    return split_half, float(np.mean(areas)), needed


@pytest.mark.parametrize(("n", "shift"), [(2, 1.0), (3, 0.0), (13, 1.0), (40, 0.5), (40, 8.0)])
def test_of_the_mean_difference_by_hand(n: int, shift: float) -> None:
    states = states_of(n, shift)
    found = quality(states, mean_difference)
    split_half, auc, needed = zip(*(by_hand(states, block) for block in range(2)), strict=True)
    assert found.n_pairs == n
    assert found.split_half == pytest.approx(split_half, abs=1e-5)
    assert found.auc == pytest.approx(auc, abs=1e-6)
    assert found.pairs_needed == list(needed)


def test_a_clear_direction_is_sure_and_noise_is_not() -> None:
    clear, noise = (quality(states_of(40, shift), mean_difference) for shift in (30.0, 0.0))
    assert clear.split_half is not None and noise.split_half is not None  # noqa: PT018
    assert clear.auc is not None and noise.auc is not None  # noqa: PT018
    assert min(value or 0 for value in clear.split_half) > 0.98
    assert clear.auc == [1.0, 1.0]
    assert clear.pairs_needed is not None
    assert max(clear.pairs_needed) <= 4
    # In 16 dimensions a cosine of unrelated directions has a standard deviation of 0.25, over dependent splits.
    assert max(abs(value or 1) for value in noise.split_half) < 0.6
    assert all(abs((value or 1) - 0.5) < 0.25 for value in noise.auc)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lda"])
def test_every_method_is_judged_by_itself(method: str) -> None:
    """On halves of its own pairs: nothing of the other half enters."""
    generator = torch.Generator().manual_seed(1)
    states = states_of(24, 3.0)
    states = States(states.positive, states.negative, torch.randn(2, 2, 16, generator=generator), torch.randn(9, 2, 16), 2)
    called: list[int] = []

    def counted(some: States) -> Tensor:
        called.append(len(some))
        return METHODS[method](some)

    found = quality(states, counted)
    assert found.split_half is not None and found.auc is not None  # noqa: PT018
    assert min(value or 0 for value in found.auc) > 0.8
    order = order_of(24, 0)
    halves = [METHODS[method](states.of(torch.tensor(half))) for half in (order[:12], order[12:])]
    assert torch.cosine_similarity(*halves).isfinite().all()
    assert called.count(12) == 2 * SPLITS
    assert set(called) == {1, 2, 4, 8, 12, 16, 19, 20, 24}


def test_too_few_pairs_are_told_as_none() -> None:
    assert quality(states_of(1, 1.0), mean_difference) == Quality(1, None, None, None)
    two = quality(states_of(2, 1.0), lda)
    assert (two.split_half, two.auc, two.pairs_needed) == (None, None, [2, 2])
    assert quality(states_of(4, 1.0), lda).split_half is not None


def test_halves_without_a_direction_are_told_as_none() -> None:
    def nothing(states: States) -> Tensor:
        return torch.full((2, 16), torch.nan)

    found = quality(states_of(8, 1.0), nothing)
    assert found == Quality(8, [None, None], [None, None], [8, 8])
