"""How a direction is found in the states of texts: one function a method, from `States` to a direction per block.

Whatever the method, a direction points from the negative to the positive texts, and its length is in the activations' own units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class States:
    """What a model makes of the texts that tell two emotions apart: a state per text and block, read as `vector.reading` says."""

    positive: Tensor
    """[pair, block, width] float32, of the texts that express the target emotion."""
    negative: Tensor
    """[pair, block, width] float32, of those that express its counterpart."""


Method = Callable[[States], Tensor]
"""Makes directions [block, width] of states."""


def mean_difference(states: States) -> Tensor:
    """The mean over positive texts minus the mean over negative texts [block, width], as long as these are apart.

    Source: *Conversations: Love Them, Hate Them, Steer Them* (Chebrolu, Yeo, Jaidka).
    """
    return states.positive.mean(0) - states.negative.mean(0)


METHODS: dict[str, Method] = {"mean_difference": mean_difference}
