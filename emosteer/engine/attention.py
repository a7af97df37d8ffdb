"""Attention of one new token per row over keys that rows share and keys of its own, put into a model by transformers' interfaces.

Rows that reply to the same prompt read its keys and values from one copy: their queries are one matrix product. The two parts of a
row's past are softened apart and merged by their log-sum-exps, which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from emosteer.model.attention import unknown_arguments

NAME = "emosteer_shared_prefix"


class Unsuitable(Exception):  # noqa: N818 - it is no mistake of anybody
    """A model's attention asks for something that this one does not know."""


class Expanding(Unsuitable):
    """A model makes keys and values of what its cache gives back (DeepSeek keeps latents): the shared ones must go that way too."""


class Shape(NamedTuple):
    """Heads of keys and values, and the heads of queries that look at each."""

    kv_heads: int
    group: int


class Held(NamedTuple):
    """A layer's keys and values, as attention takes them."""

    keys: Tensor
    """Rows' own [row, head, column, width]."""
    values: Tensor
    shared_keys: Tensor
    """Prompts' [prompt, head, position, width]."""
    shared_values: Tensor


class Added(NamedTuple):
    """What is added to scores: 0, and -inf for what is not seen. None where all is seen."""

    own: Tensor | None
    """[row, 1, 1, column]"""
    shared: Tensor | None
    """[line, 1, row beside x query head, column]"""


class Part(NamedTuple):
    """Attention over some of a row's past."""

    output: Tensor
    """[row, key head, query head of it, width]"""
    lse: Tensor
    """[row, key head, query head of it]: log of the sum of the scores' exponentials; -inf where nothing is seen."""


SLACK = 3
"""Places for rows beside each other may be so many times the rows: beyond that, prompts with many rows are put in several lines."""


@dataclass
class Crowd:
    """Which rows look at which shared prefix: rows of one prompt are put side by side, in lines of equal length."""

    rows: Tensor
    """[line, row beside]: numbers of rows; a line with fewer has places that repeat the first row and are not read."""
    places: Tensor
    """[row]: its place among all, line by line."""
    prompts: Tensor | None
    """[line]: its prompt; None where they come in order."""

    def __post_init__(self) -> None:
        self._indices: dict[Shape, tuple[Tensor, Tensor]] = {}

    @classmethod
    def seated(cls, prompt_of: list[int], n_prompts: int, device: torch.device, multiple: int = 1) -> Crowd:
        """Put rows into lines.

        Args:
            prompt_of: for each row, the number of its prompt.
            n_prompts: places for prompts, of which some may be free.
            device: of the model.
            multiple: lines are that long, or a multiple.
        """
        rows_of: list[list[int]] = [[] for _ in range(n_prompts)]
        for row, prompt in enumerate(prompt_of):
            rows_of[prompt].append(row)
        longest = max(map(len, rows_of))
        lines = list(enumerate(rows_of))
        if longest * n_prompts > SLACK * len(prompt_of):
            longest = min(longest, math.ceil(SLACK * len(prompt_of) / n_prompts / 2))
            lines = [(prompt, rows[i : i + longest]) for prompt, rows in lines for i in range(0, len(rows), longest)]
        side = math.ceil(longest / multiple) * multiple
        prompts = [prompt for prompt, _ in lines]
        places = sorted((row, number * side + i) for number, (_, rows) in enumerate(lines) for i, row in enumerate(rows))
        return cls(
            torch.tensor([rows + [0] * (side - len(rows)) for _, rows in lines], device=device),
            torch.tensor([place for _, place in places], device=device),
            None if prompts == list(range(n_prompts)) else torch.tensor(prompts, device=device),
        )

    @property
    def side(self) -> int:
        """Places in a line."""
        return int(self.rows.shape[1])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What it consists of, by name."""
        named = {"rows": self.rows, "places": self.places}
        return named if self.prompts is None else {**named, "prompts": self.prompts}

    def of_lines(self, prompts: Tensor) -> Tensor:
        """What there is for each prompt [prompt, ...], by line."""
        return prompts[: len(self.rows)] if self.prompts is None else prompts[self.prompts]

    def gather(self, query: Tensor, shape: Shape) -> Tensor:
        """Queries [row, query head, 1, width] as [line, key head, row beside x query head, width]."""
        there, _ = self._index(shape)
        width = query.shape[-1]
        return query.reshape(-1, width)[there].view(len(self.rows), shape.kv_heads, self.side * shape.group, width)

    def scatter(self, part: Part, shape: Shape) -> Part:
        """What was computed there [line, key head, row beside x query head, ...], by row [row, key head, query head of it, ...]."""
        _, back = self._index(shape)
        output = part.output.reshape(-1, part.output.shape[-1])[back]
        return Part(output.view(-1, *shape, output.shape[-1]), part.lse.flatten()[back].view(-1, *shape))

    def _index(self, shape: Shape) -> tuple[Tensor, Tensor]:
        if shape not in self._indices:
            device = self.rows.device
            kv, group = shape
            heads = torch.arange(kv * group, device=device).view(kv, 1, group)
            there = self.rows[:, None, :, None] * (kv * group) + heads[None]
            prompt, beside = self.places // self.side, self.places % self.side
            first = (prompt[:, None] * kv + torch.arange(kv, device=device)) * (self.side * group) + (beside * group)[:, None]
            self._indices[shape] = there.flatten(), (first[..., None] + torch.arange(group, device=device)).flatten()
        return self._indices[shape]


@dataclass
class View:
    """What rows see in one step. All layers share it; `SharedLayer` says which part of it a layer takes.

    A row's past has three stretches of columns: its prompt's shared prefix, a prefix of its own (where its steering made it
    another), and the tokens since, whose columns go round in a ring.
    """

    crowd: Crowd
    seen: Tensor
    """[row, shared + own prefix + ring column]: where there is something of the row's past."""
    positions: Tensor
    """Of the same columns, in the row's text."""
    query_positions: Tensor
    """[row]: of the new tokens."""
    n_shared: int
    n_private: int
    n_columns: int
    column: Tensor
    """[1]: of the ring, where the new tokens go."""

    def __post_init__(self) -> None:
        self._added: dict[tuple[int, int], tuple[Tensor, Added]] = {}

    def of_rows(self, rows: Tensor, crowd: Crowd) -> View:
        """What some rows see [row], which are crowded so."""
        return replace(
            self, crowd=crowd, seen=self.seen[rows], positions=self.positions[rows], query_positions=self.query_positions[rows]
        )

    def added(self, mask: Tensor, group: int, is_private: Tensor | None) -> Added:
        """What a mask adds to scores.

        Args:
            mask: [row, 1, 1, column], boolean or itself something to add.
            group: heads of queries that look at a head of keys.
            is_private: see `SharedLayer`.
        """
        key = id(mask), group
        if is_private is None and key in self._added:
            return self._added[key][1]
        # Where the model restricts more than what is there, it does so for all heads alike.
        seen = mask[:, 0, 0] if mask.dtype == torch.bool else mask[:, 0, 0] >= 0
        shared = seen[:, : self.n_shared][self.crowd.rows]  # [line, row beside, column]
        ring = seen[:, self.n_shared + self.n_private :]
        if is_private is None:
            added = Added(_added(ring), _added(shared, group))
            self._added[key] = mask, added  # as long as it lives, no other has its id
            return added
        prefix = seen[:, self.n_shared : self.n_shared + self.n_private] & is_private[:, None]
        return Added(_added(torch.cat([prefix, ring], 1)), _added(shared, group))


class SharedLayer(CacheLayerMixin):  # type: ignore[misc] # transformers has no types
    """One layer's keys and values: prompts' shared ones, and each row's own.

    Args:
        n_rows: of the batch.
        room: columns of the ring, which holds a row's tokens.
        n_private: columns before it, for prefixes that rows have to themselves.
        like: keys and values [head, position, width], of which the sizes are taken.
        expands: the model makes keys and values of what is kept (see `Expanding`).
    """

    def __init__(self, n_rows: int, room: int, n_private: int, like: tuple[Tensor, Tensor], expands: bool = False) -> None:
        super().__init__()
        self.expands = expands
        self.n_private, self.room = n_private, room
        self.n_rows = n_rows
        """That there are now."""
        self.key_room, self.value_room = (
            torch.zeros(n_rows, one.shape[0], n_private + room, one.shape[2], dtype=one.dtype, device=one.device) for one in like
        )
        self.shared_keys, self.shared_values = (one.new_zeros(0, one.shape[0], 0, one.shape[2]) for one in like)
        """[prompt, head, position, width], padded on the right."""
        self.is_private: Tensor | None = None
        """[row]: who has a prefix of its own here; None for nobody."""
        self.any_private = self.all_private = False
        self.view: View | None = None
        self.keys, self.values = self.key_room, self.value_room
        self.dtype, self.device = self.key_room.dtype, self.key_room.device
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing left to do."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values [row, head, 1, width] into their column."""
        assert self.view is not None
        column = self.view.column + self.n_private
        self.key_room[: self.n_rows].index_copy_(2, column, key_states)
        self.value_room[: self.n_rows].index_copy_(2, column, value_states)
        kept = self._kept()
        if not self.expands:
            return kept.keys, kept.values
        return _under(kept.keys, kept.shared_keys), _under(kept.values, kept.shared_values)

    def _kept(self) -> Held:
        assert self.view is not None
        stop = self.n_private + self.view.n_columns
        return Held(
            self.key_room[: self.n_rows, :, :stop],
            self.value_room[: self.n_rows, :, :stop],
            self.shared_keys[:, :, : self.view.n_shared],
            self.shared_values[:, :, : self.view.n_shared],
        )

    def held(self, keys: Tensor, values: Tensor) -> Held:
        """What there is, from what `update` gave and the model passed on [row, head, column, width].

        Raises:
            Expanding: the model made something else of it.
        """
        kept = self._kept()
        if not self.expands:
            if keys.shape != kept.keys.shape or values.shape != kept.values.shape:
                raise Expanding("it makes keys and values of what its cache gives back")
            return kept
        rows, stop, n_shared = self.n_rows, kept.keys.shape[2], kept.shared_keys.shape[2]
        return Held(keys[:rows, :, :stop], values[:rows, :, :stop], keys[rows:, :, :n_shared], values[rows:, :, :n_shared])

    def make_room(self, n_prompts: int, length: int) -> bool:
        """Have room for the shared prefixes of so many prompts of that length; what is there stays. Whether it had to move."""
        before = self.shared_keys
        self.shared_keys = _grown(self.shared_keys, n_prompts, length, self.key_room)
        self.shared_values = _grown(self.shared_values, n_prompts, length, self.value_room)
        return self.shared_keys is not before

    def share(self, prompt: int, keys: Tensor, values: Tensor) -> None:
        """Take a prompt's keys and values [head, position, width]."""
        self.shared_keys[prompt, :, : keys.shape[1]] = keys
        self.shared_values[prompt, :, : values.shape[1]] = values

    def put(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Give a row a prefix of its own [head, position, width]."""
        self.key_room[row, :, : keys.shape[1]] = keys
        self.value_room[row, :, : values.shape[1]] = values

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        own = rows.to(self.key_room.device)
        self.key_room, self.value_room = self.key_room[own], self.value_room[own]
        self.keys, self.values, self.n_rows = self.key_room, self.value_room, len(rows)

    def rearrange(self, moves: Sequence[tuple[int, int]], n_rows: int, room: int) -> None:
        """Let rows take the pasts of others.

        Args:
            moves: (row, the row whose past it takes), all at once.
            n_rows: that there are then.
            room: rows that there may come to be.
        """
        if moves:
            rows, sources = (torch.tensor(numbers, device=self.key_room.device) for numbers in zip(*moves, strict=True))
            self.key_room[rows], self.value_room[rows] = self.key_room[sources], self.value_room[sources]
        if room < len(self.key_room):
            self.key_room, self.value_room = self.key_room[:room].clone(), self.value_room[:room].clone()
            self.keys, self.values = self.key_room, self.value_room
        self.n_rows = n_rows

    def get_seq_length(self) -> int:
        """Not zero: models take that for a prompt."""
        return self.n_private + (self.view.n_columns if self.view else 0) + self.shared_keys.shape[2]

    def get_max_length(self) -> int:
        """None that a model should mind."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Of the mask that `mask` makes, which looks at neither."""
        return self.get_seq_length() + query_length, 0


_running: ContextVar[tuple[Sequence[CacheLayerMixin], View]] = ContextVar("running")
"""The cache layers of the batch that runs, and what all its rows see; transformers passes no cache to an attention function."""


@contextmanager
def installed(model: PreTrainedModel, layers: Sequence[CacheLayerMixin], view: View) -> Iterator[None]:
    """Let a model attend by this module's functions to these layers, as it runs inside, where all rows have this view.

    Raises:
        Unsuitable: its attention cannot be chosen.
    """
    before = model.config._attn_implementation
    if not model._can_set_attn_implementation():
        raise Unsuitable("its attention does not go through transformers' interface")
    model.set_attn_implementation(NAME)
    token = _running.set((layers, view))
    try:
        yield
    finally:
        _running.reset(token)
        model.set_attn_implementation(before)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention as a model calls it: query [row, head, 1, width] to output [row, 1, head, width].

    Args:
        softcap: scores are softened to `cap * tanh(score / cap)` (Gemma 2).
        s_aux: attention sinks [head]: scores of a key without a value (GPT-OSS).

    Raises:
        Unsuitable: something is asked that has an effect and is not known here.
    """
    if unknown := unknown_arguments(rest):
        raise Unsuitable(f"its attention is given {', '.join(unknown)}")
    layers, _ = _running.get()
    layer = layers[module.layer_idx]  # type: ignore[call-overload]
    if not isinstance(layer, SharedLayer) or layer.view is None or attention_mask is None:
        raise Unsuitable("its attention has no mask or no cache of its own")
    held = layer.held(key, value)
    view, shape = layer.view, Shape(held.keys.shape[1], query.shape[1] // held.keys.shape[1])
    if query.shape[2] != 1 or attention_mask.shape[-1] != view.seen.shape[1]:
        raise Unsuitable("its attention does not take one new token at a time")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    added = view.added(attention_mask, shape.group, layer.is_private)
    # A row's tokens, and where its steering made it another, its prompt.
    grouped, first = query.reshape(len(query), *shape, -1), 0 if layer.is_private is not None else layer.n_private
    part = _attention(grouped, held.keys[:, :, first:], held.values[:, :, first:], added.own, scale, softcap)
    if not layer.all_private and view.n_shared:
        crowd = view.crowd
        keys, values = crowd.of_lines(held.shared_keys), crowd.of_lines(held.shared_values)
        shared = crowd.scatter(_attention(crowd.gather(query, shape), keys, values, added.shared, scale, softcap), shape)
        if layer.is_private is not None:
            shared = shared._replace(lse=shared.lse.masked_fill(layer.is_private[:, None, None], -torch.inf))
        part = _merged(shared, part)
    output = part.output
    if s_aux is not None:
        output = output * torch.sigmoid(part.lse - s_aux.view(1, *shape).to(part.lse.dtype))[..., None]
    return output.reshape(len(query), 1, query.shape[1], -1).to(query.dtype), None


def mask(
    batch_size: int, q_length: int, kv_length: int, mask_function: Callable[..., Tensor], device: torch.device, **rest: Any
) -> Tensor:
    """The mask [row, 1, 1, column] of a step, as a model asks for it: its windows and chunks over the columns of `View`."""
    _, view = _running.get()
    rows = torch.arange(batch_size, device=device)[:, None, None, None]
    heads = torch.zeros_like(rows)
    allowed = mask_function(rows, heads, view.query_positions[:, None, None, None], view.positions[:, None, None, :])
    return view.seen[:, None, None, :] & allowed


def _attention(query: Tensor, keys: Tensor, values: Tensor, added: Tensor | None, scale: float, softcap: float | None) -> Part:
    """Over one stretch: query [.., head, query, width], keys and values [.., head, column, width], what is added to their scores.

    By matrix products and in place: for few queries over few keys PyTorch's own kernels take twice as long on a CPU, and tell no
    log-sum-exp on a GPU.
    """
    if query.device.type == "cpu":  # elsewhere that would move all keys and values once more
        query, keys, values = query.float(), keys.float(), values.float()
    scores = torch.matmul(query, keys.transpose(-1, -2)).float().mul_(scale)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if added is not None:
        scores += added
    # Where nothing is seen: exp(-inf), not exp(-inf + inf), and a sum of 0.
    largest = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    weights = scores.sub_(largest).exp_()
    total = weights.sum(-1, keepdim=True)
    parts = total.clamp(min=1)
    if values.dtype == torch.float16:  # whose sums would overflow where many columns are alike
        output = torch.matmul(weights.div_(parts).to(values.dtype), values).float()
    else:
        output = torch.matmul(weights.to(values.dtype), values).float().div_(parts)
    return Part(output, (largest + total.log())[..., 0])


def _merged(one: Part, other: Part) -> Part:
    """Attention over two disjoint stretches of the past, of which `other` is never empty."""
    weight = torch.sigmoid(other.lse - one.lse)[..., None]
    output = torch.lerp(one.output.to(weight.dtype), other.output.to(weight.dtype), weight)
    return Part(output, torch.logaddexp(one.lse, other.lse))


def _added(seen: Tensor, group: int = 1) -> Tensor | None:
    """What is added to the scores of those who see that [row, column] or [line, row beside, column]; None for nothing."""
    # Asking would stop a GPU.
    if seen.device.type == "cpu" and bool(seen.all()):
        return None
    added = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)
    return added[:, None, None] if added.ndim == 2 else added[:, None, :, None].expand(-1, -1, -1, group, -1).flatten(2, 3)


def _under(rows: Tensor, prompts: Tensor) -> Tensor:
    """Prompts' states [prompt, head, position, width] as further rows, all padded on the right to one length."""
    length = max(rows.shape[2], prompts.shape[2])
    return torch.cat([nn.functional.pad(states, (0, 0, 0, length - states.shape[2])) for states in (rows, prompts)])


def _grown(held: Tensor, n_prompts: int, length: int, like: Tensor) -> Tensor:
    prompts, heads, positions, width = held.shape
    if prompts >= n_prompts and positions >= length:
        return held
    grown = torch.zeros(max(prompts, n_prompts), heads, max(positions, length), width, dtype=like.dtype, device=like.device)
    grown[:prompts, :, :positions] = held
    return grown


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, mask)
