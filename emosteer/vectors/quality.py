"""How sure a vector's direction is, from the states that it was made of: nothing is read again.

Each number is of the method that made the vector, which runs again on some of the pairs; it is None where they are too few, or
give no direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from emosteer.vectors.composition import composed
from emosteer.vectors.methods import Method, States, fewest_pairs

SPLITS = 10
"""Random halves that are averaged."""
FOLDS = 5
ORDERS = 3
"""Random orders in which pairs are added, averaged."""
SETTLED = 0.95
"""Cosine with the whole vector at which a direction counts as the same."""


@dataclass(frozen=True)
class Quality:
    """Of one vector; lists have an entry per block."""

    n_pairs: int
    split_half: list[float | None] | None
    """Cosine between the directions of two random halves of the pairs, over `SPLITS` splits: 1 where the pairs agree, about 0
    where they have nothing in common. An odd pair is left out."""
    auc: list[float | None] | None
    """How well the direction tells texts apart that it was not made of: the probability that a held-out positive text lies
    further along it than a held-out negative one, over `FOLDS` folds of pairs (as many as there are pairs, if fewer)."""
    pairs_needed: list[int] | None
    """The fewest pairs from which on the direction stays the same: random ones have a mean cosine of at least `SETTLED` with the
    whole vector, and so have all larger numbers of them (1, 2, 4, 8, ... and all are tried)."""
    cosine_to_parts: list[list[float]] | None = None
    """Of a composed vector: the cosine with each vector that it is put together of, in the order of the pair's own, those that
    are added, and those that are taken out."""


def quality(states: States, method: Method) -> Quality:
    """How sure the direction is that a method finds in states, or that it finds in them and in their parts and puts together.

    Of a composed vector all parts are halved, folded and added together, each in its own proportion; the held-out texts are the
    pair's own.
    """
    return Quality(
        len(states), _split_half(states, method), _auc(states, method), _pairs_needed(states, method), _to_parts(states, method)
    )


def _split_half(states: States, method: Method) -> list[float | None] | None:
    make, half = composed(method), len(states) // 2
    if half < fewest_pairs(method):
        return None
    cosines = [
        cosine_similarity(make(states.of(order[:half])), make(states.of(order[half : 2 * half])))
        for order in _orders(len(states), SPLITS)
    ]
    return _plain(cosines)


def _auc(states: States, method: Method) -> list[float | None] | None:
    make, n = composed(method), len(states)
    order = next(_orders(n, 1))
    folds = order.tensor_split(min(FOLDS, n))
    if n - max(map(len, folds)) < fewest_pairs(method):
        return None
    return _plain([_separation(make(states.of(order[~torch.isin(order, fold)])), states.of(fold)) for fold in folds])


def _separation(direction: Tensor, held_out: States) -> Tensor:
    """The share of (positive, negative) texts [block] of which the positive one lies further along; half of a tie."""
    positive, negative = ((texts * direction).sum(2) for texts in (held_out.positive, held_out.negative))
    ahead = positive[:, None] - negative[None]
    return torch.where(ahead.isnan(), ahead, (ahead.sign() + 1) / 2).mean((0, 1))


def _pairs_needed(states: States, method: Method) -> list[int] | None:
    make, n = composed(method), len(states)
    numbers = [2**i for i in range(n.bit_length()) if fewest_pairs(method) <= 2**i < n]
    if n < 2:
        return None
    whole, orders = make(states), list(_orders(n, ORDERS))
    needed = torch.full((whole.shape[0],), n)
    settled = torch.ones(whole.shape[0], dtype=torch.bool)
    for number in reversed(numbers):
        cosines = [cosine_similarity(make(states.of(order[:number])), whole) for order in orders]
        settled &= torch.stack(cosines).mean(0) >= SETTLED
        needed[settled] = number
    return [int(number) for number in needed]


def _to_parts(states: States, method: Method) -> list[list[float]] | None:
    parts = [*(part for _, part in states.plus), *states.without]
    if not parts:
        return None
    whole, own = composed(method)(states), replace(states, plus=(), without=())
    return [cosine_similarity(whole, method(part)).tolist() for part in (own, *parts)]


def _orders(n: int, how_many: int) -> Iterator[Tensor]:
    """Random orders of n pairs, the same in every process."""
    for seed in range(how_many):
        yield torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _plain(parts: list[Tensor]) -> list[float | None]:
    """The mean of the parts; None where one of them had no direction."""
    return [None if mean.isnan() else float(mean) for mean in torch.stack(parts).mean(0)]
