"""transformers' caches as reading in parts needs them: layers that begin with a past, and layers to which nothing is added.

Apart from `prefix`, so that importing that one does not import transformers, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

KeysAndValues = tuple[Tensor, Tensor]
"""[row, head, position, width] each."""


KEYED = {DynamicLayer, DynamicSlidingWindowLayer}


PAST_NAMES = ("cache", "past_key_values")
"""What models call their past: `cache` since transformers 5.24, which takes the other name until 5.40."""


def past_name(model: nn.Module) -> str:
    """By which of `PAST_NAMES` a model's forward takes its past."""
    # Of the class: accelerate puts another forward into the module.
    return PAST_NAMES[0] if PAST_NAMES[0] in signature(type(model).forward).parameters else PAST_NAMES[1]


def layer_kinds(config: PretrainedConfig) -> list[type]:
    """The kind of each layer in a model's own cache."""
    return [type(layer) for layer in DynamicCache(config=config).layers]


def is_keyed(config: PretrainedConfig) -> bool:
    """Whether a model's memory of the past is keys and values alone."""
    kinds = layer_kinds(config)
    return bool(kinds) and KEYED.issuperset(kinds)


class Growing(DynamicLayer):  # type: ignore[misc] # transformers has no types
    """One block's past, to which a forward adds. It keeps every position, where a sliding layer would drop some."""

    def __init__(self, past: KeysAndValues | None = None) -> None:
        super().__init__()
        if past is not None:
            self.keys, self.values = past
            self.dtype, self.device = self.keys.dtype, self.keys.device
            self.is_initialized = True


class Held(Growing):
    """One block's past, to which nothing is added: it serves any number of forwards, and a block that runs again in one.

    (A block does where activation checkpointing computes it anew for the backward pass.)
    """

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> KeysAndValues:
        """The past and the new states; where all rows have one past, it is given to each."""
        rows = key_states.shape[0]
        keys, values = (past.expand(rows, -1, -1, -1) for past in (self.keys, self.values))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def cache_with(config: PretrainedConfig, layers: Sequence[Growing]) -> DynamicCache:
    """A cache of these layers, one a block."""
    cache = DynamicCache(config=config)
    cache.layers = list(layers)
    return cache


def growing_layers(config: PretrainedConfig, pasts: Sequence[KeysAndValues] | None) -> list[Growing]:
    """A layer for each that the model's own cache would have.

    Raises:
        TypeError: the model remembers by more than keys and values, such as recurrent states.
    """
    kinds = layer_kinds(config)
    if other := {kind.__name__ for kind in kinds if kind not in KEYED}:
        raise TypeError(f"its memory is {', '.join(sorted(other))}")
    return [Growing(past) for past in pasts] if pasts else [Growing() for _ in kinds]
