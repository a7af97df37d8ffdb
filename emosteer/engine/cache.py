"""What models keep of the past, as transformers' caches hold it: keys and values, or the states of convolutions and recurrences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from emosteer.model.past import layer_kinds

if TYPE_CHECKING:
    from emosteer.engine.prefixes import Prefix


def holds_states(config: PretrainedConfig) -> bool:
    """Whether some layers keep the state of a convolution or a recurrence instead of keys and values."""
    return LinearAttentionLayer in layer_kinds(config)


def prefill_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache that keeps every position: sliding layers would drop those that a longer row still needs aligned."""
    cache = DynamicCache(config=config)
    cache.layers = [layer if isinstance(layer, LinearAttentionLayer) else DynamicLayer() for layer in cache.layers]
    return cache


@dataclass(frozen=True, eq=False)
class State:
    """What a layer with a convolution or a recurrence keeps of one row, by the number that the model gives it."""

    convolutions: dict[int, Tensor]
    recurrences: dict[int, Tensor]

    @classmethod
    def of_row(cls, layer: LinearAttentionLayer, row: int, is_empty: bool) -> State:
        """A row's state out of a batch's; `is_empty` where the row has read nothing but padding: that is a state of zeros."""

        def cut(states: dict[int, Tensor | None]) -> dict[int, Tensor]:
            own = {number: state[row].clone() for number, state in states.items() if state is not None}
            return {number: state.zero_() if is_empty else state for number, state in own.items()}

        return cls(cut(layer.conv_states), cut(layer.recurrent_states))


class StateRows(LinearAttentionLayer):  # type: ignore[misc] # transformers has no types
    """One layer's states of a batch."""

    def __init__(self, like: State, n_rows: int) -> None:
        super().__init__(number_of_states=1 + max((*like.convolutions, *like.recurrences)))
        for number, state in like.convolutions.items():
            self.conv_states[number] = _rooms(state, n_rows)
            self.conv_kernel_size[number] = state.shape[-1]
            self.is_conv_states_initialized[number] = self.has_previous_state[number] = True
        for number, state in like.recurrences.items():
            self.recurrent_states[number] = _rooms(state, n_rows)
            self.is_recurrent_states_initialized[number] = self.has_previous_state[number] = True
        some = next(iter((*like.convolutions.values(), *like.recurrences.values())))
        self.dtype, self.device = some.dtype, some.device

    def put(self, rows: Sequence[int], states: Sequence[State]) -> None:
        """Give rows their states."""
        index = torch.tensor(rows, device=self.device)
        for number, batch in self.conv_states.items():
            if batch is not None:
                batch[index] = torch.stack([state.convolutions[number] for state in states])
        for number, batch in self.recurrent_states.items():
            if batch is not None:
                batch[index] = torch.stack([state.recurrences[number] for state in states])

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        for states in (self.conv_states, self.recurrent_states):
            for number, batch in states.items():
                if batch is not None:
                    states[number] = batch[rows]


def _rooms(state: Tensor, n_rows: int) -> Tensor:
    return torch.zeros(n_rows, *state.shape, dtype=state.dtype, device=state.device)


class JoinedLayer(DynamicLayer):  # type: ignore[misc] # transformers has no types
    """One layer's keys and values of left-padded rows, written in place: growing by concatenation copies them all each step."""

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

    @property
    def room(self) -> int:
        """Positions that can still be written."""
        return int(self._key_room.shape[2]) - self._length

    def put(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Give a row another past [head, position, width], which ends where the others' ends."""
        start = self._length - keys.shape[1]
        self._key_room[row, :, start : self._length] = keys
        self._value_room[row, :, start : self._length] = values

    def widen(self, positions: int) -> None:
        """Put so many empty positions before all others."""
        self._key_room, self._value_room = (
            torch.nn.functional.pad(room, (0, 0, positions, 0)) for room in (self._key_room, self._value_room)
        )
        self._length += positions
        self._show()

    def move(self, dropped: int, room: int) -> None:
        """Forget the first positions of all rows, and make room for so many new ones."""
        self._key_room = _moved(self._key_room[:, :, dropped : self._length], room)
        self._value_room = _moved(self._value_room[:, :, dropped : self._length], room)
        self._length -= dropped
        self._show()

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        own = rows.to(self._key_room.device)
        self._key_room, self._value_room = self._key_room[own], self._value_room[own]
        self._show()


def join_rows(config: PretrainedConfig, prefixes: Sequence[Prefix | None], room: int) -> DynamicCache:
    """A batch's cache from its rows' prefixes, left-padded to the longest, with space for `room` further positions.

    Args:
        config: of the model, all of whose layers keep keys and values.
        prefixes: None for a row without a past; at least one has one.
        room: positions.
    """
    longest = max(prefix.length for prefix in prefixes if prefix is not None)
    cache = DynamicCache(config=config)
    n_layers = next(len(prefix.keys) for prefix in prefixes if prefix is not None)
    cache.layers = [
        JoinedLayer(
            _joined([None if prefix is None else prefix.keys[layer] for prefix in prefixes], longest, room),
            _joined([None if prefix is None else prefix.values[layer] for prefix in prefixes], longest, room),
            longest,
        )
        for layer in range(n_layers)
    ]
    return cache


def _joined(rows: Sequence[Tensor | None], longest: int, room: int) -> Tensor:
    some = next(states for states in rows if states is not None)
    heads, _, width = some.shape
    joined = torch.zeros(len(rows), heads, longest + room, width, dtype=some.dtype, device=some.device)
    for row, states in enumerate(rows):
        if states is not None:
            joined[row, :, longest - states.shape[1] : longest] = states
    return joined


def _moved(states: Tensor, room: int) -> Tensor:
    rows, heads, length, width = states.shape
    moved = torch.zeros(rows, heads, length + room, width, dtype=states.dtype, device=states.device)
    moved[:, :, :length] = states
    return moved
