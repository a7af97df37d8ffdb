"""Keys and values: a prompt's, computed once and shared, and a batch's, preallocated for the replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


@dataclass(frozen=True)
class Prefix:
    """The keys and values of a prompt without its last token, per layer: [head, position, width], without padding."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        return int(self.keys[0].shape[1]) if self.keys else 0


class RowsLayer(DynamicLayer):  # type: ignore[misc] # transformers has no types
    """One layer's keys and values of a batch, written in place: growing by concatenation copies them all each step."""

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        super().__init__()
        self._key_room, self._value_room, self._length = keys, values, length
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._show()

    def _show(self) -> None:
        self.keys, self.values = self._key_room[:, :, : self._length], self._value_room[:, :, : self._length]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new positions [row, head, position, width]."""
        start, self._length = self._length, self._length + key_states.shape[2]
        self._key_room[:, :, start : self._length] = key_states
        self._value_room[:, :, start : self._length] = value_states
        self._show()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Positions held, padding included."""
        return self._length

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self._key_room, self._value_room = self._key_room[rows], self._value_room[rows]
        self._show()


def is_cacheable(config: PretrainedConfig) -> bool:
    """Whether a model's memory of the past is keys and values alone (recurrent and convolution states are not)."""
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def prefill_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache that keeps every position: sliding layers would drop those that a longer row still needs aligned."""
    cache = DynamicCache(config=config)
    cache.layers = [DynamicLayer() for _ in cache.layers]
    return cache


def split_rows(cache: DynamicCache, lengths: Sequence[int]) -> list[Prefix]:
    """Each row's own keys and values out of a left-padded batch's cache."""
    layers = [layer for layer in cache.layers if layer.is_initialized]
    return [
        Prefix(
            # Copies, so that a prefix that is kept does not keep its whole batch alive.
            tuple(layer.keys[row, :, layer.keys.shape[2] - length :].clone() for layer in layers),
            tuple(layer.values[row, :, layer.values.shape[2] - length :].clone() for layer in layers),
        )
        for row, length in enumerate(lengths)
    ]


def join_rows(config: PretrainedConfig, prefixes: Sequence[Prefix], room: int) -> DynamicCache:
    """A batch's cache from its rows' prefixes, left-padded to the longest, with space for `room` further positions."""
    longest = max(prefix.length for prefix in prefixes)
    cache = DynamicCache(config=config)
    cache.layers = [
        RowsLayer(
            _padded([prefix.keys[i] for prefix in prefixes], longest, room),
            _padded([prefix.values[i] for prefix in prefixes], longest, room),
            longest,
        )
        for i in range(len(prefixes[0].keys))
    ]
    return cache


def _padded(rows: Sequence[Tensor], longest: int, room: int) -> Tensor:
    heads, _, width = rows[0].shape
    joined = torch.zeros(len(rows), heads, longest + room, width, dtype=rows[0].dtype, device=rows[0].device)
    for row, states in enumerate(rows):
        joined[row, :, longest - states.shape[1] : longest] = states
    return joined
