"""What rows have in common at their beginning, read once: its keys and values, which forwards over the rest look back at.

Not every decoder remembers by keys and values alone, or takes them from outside. Whether one does is found out by numbers
(`agrees`): the states of a row that was read in two parts are those of the row read whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emosteer.model.anatomy import TOLERANCE
from emosteer.model.capture import Place, watching
from emosteer.model.language_model import LanguageModel
from emosteer.model.memory import is_out_of_memory
from emosteer.model.padding import pad_left, positions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prefix:
    """The beginning of rows, as the rest of them looks back at it."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values [row, head, position, width] of each block; a single row stands for all."""
    mask: Tensor
    """[row, position], 1 at real tokens."""

    @property
    def length(self) -> int:
        """Positions, padding included."""
        return self.mask.shape[1]

    def times(self, n: int) -> Prefix:
        """All rows n times over, one lot after the other; a single row goes on standing for all."""
        if len(self.mask) == 1:
            return self
        layers = tuple((keys.repeat(n, 1, 1, 1), values.repeat(n, 1, 1, 1)) for keys, values in self.layers)
        return Prefix(layers, self.mask.repeat(n, 1))

    def first(self, lengths: Sequence[int]) -> Prefix:
        """Of the one row that this is: for each length a row of so many first tokens, or of none below 0, padded on the left."""
        longest = max(lengths)
        # Which position of this one stands at each of a row's; on the padding any.
        position = torch.tensor([range(length - longest, length) for length in lengths], device=self.mask.device)

        def of_rows(states: Tensor) -> Tensor:
            return states[0][:, position.clamp(min=0).to(states.device)].transpose(0, 1)

        layers = tuple((of_rows(keys), of_rows(values)) for keys, values in self.layers)
        return Prefix(layers, (position >= 0).to(self.mask.dtype))


def inputs_after(model: LanguageModel, prefix: Prefix | None, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """The keyword arguments of a forward over what follows a prefix.

    Args:
        model: the language model.
        prefix: None where the rows are read whole.
        ids: token ids after the prefix [row, position].
        mask: 1 at their real tokens.
    """
    if prefix is None:
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask), "use_cache": False}
    whole = torch.cat([prefix.mask.expand(len(mask), -1), mask], dim=1)
    from emosteer.model.past import Held, cache_with, past_name

    return {
        "input_ids": ids,
        "attention_mask": whole,
        "position_ids": positions(whole)[:, prefix.length :],
        past_name(model.model): cache_with(model.model.config, [Held(past) for past in prefix.layers]),
        "use_cache": True,
    }


@torch.no_grad()
def read_prefix(model: LanguageModel, ids: Tensor, mask: Tensor, after: Prefix | None = None) -> Prefix:
    """Read the beginnings of rows [row, position], padded on the left where they need it.

    Args:
        model: the language model.
        ids: token ids.
        mask: 1 at real tokens.
        after: what stands before them, read already; it becomes part of the prefix.

    Raises:
        TypeError: the model remembers by more than keys and values, such as recurrent states.
    """
    from emosteer.model.past import cache_with, growing_layers, past_name

    layers = growing_layers(model.model.config, after.layers if after else None)
    whole = torch.cat([after.mask, mask], dim=1) if after else mask
    with watching(model.anatomy, [_last(model)], lambda _place, _states: None, stops=True):
        model.model(
            input_ids=ids,
            attention_mask=whole,
            position_ids=positions(whole)[:, -ids.shape[1] :],
            use_cache=True,
            **{past_name(model.model): cache_with(model.model.config, layers)},
        )
    return Prefix(tuple((layer.keys, layer.values) for layer in layers), whole)


def common_beginning(rows: Iterable[Sequence[int]]) -> int:
    """With how many tokens all rows begin alike."""
    length = 0
    for tokens in zip(*rows, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


@torch.no_grad()
def agrees(model: LanguageModel, row: Sequence[int], length: int) -> bool:
    """Whether the model gives a row's later positions the same states when its first `length` tokens were read before.

    Take the longest row: one that is longer than an attention window shows what shorter ones cannot.
    """
    if not 0 < length < len(row):
        return False
    batch = pad_left([row], model.pad_token_id, model.device)
    ids, mask = batch.input_ids, batch.attention_mask
    whole = _last_states(model, batch.inputs() | {"use_cache": False})[:, length:]
    try:
        prefix = read_prefix(model, ids[:, :length], mask[:, :length])
        parted = _last_states(model, inputs_after(model, prefix, ids[:, length:], mask[:, length:]))
        # Of the worst position; the first of all, an attention sink a hundred times as long, is not among them.
        worst = float(((parted - whole).norm(dim=-1) / whole.norm(dim=-1)).max())
    except Exception as error:
        if is_out_of_memory(error):
            raise
        log.info("%s reads rows whole, not their common beginning once: %s", model.name, error)
        return False
    if not worst < TOLERANCE.get(model.dtype, TOLERANCE[torch.bfloat16]):
        log.info("%s reads rows whole: in two parts its states differ by %.2g", model.name, worst)
        return False
    return True


def _last_states(model: LanguageModel, inputs: dict[str, Any]) -> Tensor:
    """The residual stream after the last block [row, position, width], float32."""
    seen: list[Tensor] = []
    with watching(model.anatomy, [_last(model)], lambda _place, states: seen.append(states.float()), stops=True):
        model.model(**inputs)
    return seen[0]


def _last(model: LanguageModel) -> Place:
    return "residual", model.n_blocks - 1
