"""Vectors put together of several emotions' vectors: others added to one, and others taken out of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emosteer.errors import EmosteerError
from emosteer.vectors.methods import Method, States, fewest_pairs
from emosteer.vectors.vector import EmotionVector, checked

LEAST_LEFT = 1e-4
"""Of the length of what was put together: what is shorter is rounding, and no direction."""


def composed(method: Method) -> Method:
    """The method that finds each emotion's direction by another method, and puts them together as `compose` does."""

    def direction(states: States) -> Tensor:
        plus = [(weight, _direction(method, part)) for weight, part in states.plus]
        return compose(method(states), plus, [_direction(method, part) for part in states.without])

    return direction


def _direction(method: Method, states: States) -> Tensor:
    """A part's direction [block, width]; NaN where it has too few pairs for one, as in a share of few."""
    if len(states) < fewest_pairs(method):
        return states.positive.new_full(states.positive.shape[1:], torch.nan)
    return method(states)


def compose(own: Tensor, plus: Sequence[tuple[float, Tensor]] = (), without: Sequence[Tensor] = ()) -> Tensor:
    """Directions [block, width], float32, put together of others of that shape; NaN at blocks where nothing is left.

    Without others, `own` as it is. With all vectors at length 1, `plus` are added with their weights; the sum is multiplied by the
    length of `own`, so that a raw coefficient means what it means with `own` alone. Then what lies in the space that `without` span
    is taken out: the direction is at right angles to each of them.

    Args:
        own: the vector that the others are put to.
        plus: weights and directions.
        without: directions, which may depend on each other.
    """
    if not plus and not without:
        return own
    lengths = own.double().norm(dim=1, keepdim=True)
    found = own.double() / lengths + sum(weight * _unit(other) for weight, other in plus)
    if without:
        spanned = torch.stack([_unit(other) for other in without], dim=2)
        is_known = spanned.isfinite().all(dim=(1, 2), keepdim=True)
        axes, scales, _ = torch.linalg.svd(torch.where(is_known, spanned, 0.0), full_matrices=False)
        # Of vectors that depend on each other, fewer axes than vectors are spanned: the others are rounding.
        axes = axes * (scales > 1e-6)[:, None]
        found = torch.where(is_known[:, 0], found - (axes @ (axes.mT @ found[..., None])).squeeze(2), torch.nan)
    whole = 1 + sum(abs(weight) for weight, _ in plus)
    return torch.where(found.norm(dim=1, keepdim=True) > LEAST_LEFT * whole, lengths * found, torch.nan).float()


def combine_vectors(
    vector: EmotionVector,
    plus: Sequence[EmotionVector] = (),
    without: Sequence[EmotionVector] = (),
    weights: Sequence[float] | None = None,
) -> EmotionVector:
    """An emotion vector with others added to it, and others taken out; see `compose`.

    Args:
        vector: whose length and residual norms stay.
        plus: vectors of the same model and site, added at equal length.
        without: vectors of the same model and site, to which the result is at right angles.
        weights: one for each of `plus`; None weighs each as much as `vector`.

    Raises:
        EmosteerError: vectors of another model or site, another number of weights, or nothing that is left at some block.
    """
    weights = [1.0] * len(plus) if weights is None else list(weights)
    if len(weights) != len(plus):
        raise EmosteerError(f"{len(weights)} weights for {len(plus)} vectors: give one for each of plus")
    for other in (*plus, *without):
        if other.directions.shape != vector.directions.shape or other.site != vector.site:
            raise EmosteerError(f"{other} does not go with {vector}: give vectors of one model and site")
    parts = list(zip(weights, (other.directions for other in plus), strict=True))
    found = compose(vector.directions, parts, [other.directions for other in without])
    return checked(EmotionVector(left(found), vector.residual_norm, vector.site))


def left(directions: Tensor) -> Tensor:
    """The directions themselves; raises EmosteerError where `compose` left nothing."""
    if bad := torch.nonzero(directions.isnan().any(dim=1)).flatten().tolist():
        raise EmosteerError(
            f"vector.plus and vector.without leave nothing of the vector at blocks {bad}: it lies among those that are taken out, "
            "or all cancel; put other emotions together"
        )
    return directions


def _unit(directions: Tensor) -> Tensor:
    return directions.double() / directions.double().norm(dim=1, keepdim=True)
