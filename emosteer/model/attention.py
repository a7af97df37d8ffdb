"""A model's attention opened: the queries and keys that its probabilities are made of, to be read and to be changed.

It goes through transformers' interface, by which most decoders call their attention. Whether a model's own numbers come out of it
is found by comparison (`with_open_attention`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from emosteer.errors import EmosteerError
from emosteer.model.anatomy import KEY, QUERY, TOLERANCE, Anatomy
from emosteer.model.dialogue import OPENING

if TYPE_CHECKING:
    from emosteer.model.language_model import LanguageModel

NAME = "emosteer_opened"

WITHOUT_EFFECT = frozenset(
    [
        "sliding_window",
        "cache_position",
        "position_ids",
        "position_embeddings",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "is_causal",
        "num_items_in_batch",
        "layer_idx",
        "cache",
        "past_key_values",
        "past_key_value",
        "rotary_emb",
    ]
)
"""What models pass to their attention that the mask, the positions or the cache say already, or that changes no number."""


def unknown_arguments(given: Mapping[str, Any]) -> list[str]:
    """Names of what a model passes to its attention that has an effect and is not known here."""
    return sorted(name for name, value in given.items() if value is not None and name not in WITHOUT_EFFECT)


@dataclass(frozen=True)
class Attending:
    """What the attention of a block makes its probabilities of, rotated and normed as the model does."""

    query: Tensor
    """[row, head, position, width]"""
    key: Tensor
    """[row, head of keys, column, width]: columns before the positions are those of a prefix that was read before."""
    mask: Tensor | None
    """Added to the scores [row, 1, position, column]."""
    scale: float
    cap: float | None
    """Scores are softened to `cap * tanh(score / cap)` (Gemma 2)."""

    def probabilities(self) -> Tensor:
        """[row, head, position, column], float32."""
        scores = torch.matmul(self.query, _for_each(self.key, self.query.shape[1]).transpose(-1, -2)) * self.scale
        if self.cap is not None:
            scores = (scores / self.cap).tanh() * self.cap
        if self.mask is not None:
            scores = scores + self.mask
        return scores.softmax(-1, dtype=torch.float32)

    def own(self, site: str) -> Tensor:
        """Queries or keys of the positions [row, position, heads x width]."""
        states = self.query if site == QUERY else self.key[:, :, -self.query.shape[2] :]
        return states.transpose(1, 2).flatten(2)

    def having(self, site: str, states: Tensor) -> Attending:
        """With other queries or keys at the last positions, laid out as in `own`."""
        old = self.query if site == QUERY else self.key
        new = states.view(*states.shape[:2], old.shape[1], -1).transpose(1, 2)
        whole = torch.cat([old[:, :, : old.shape[2] - new.shape[2]], new], dim=2)
        return replace(self, query=whole) if site == QUERY else replace(self, key=whole)


Attend = Callable[[int, Attending], Tensor]
"""Gives the probabilities of a block."""

_attend: ContextVar[tuple[dict[int, int], Attend] | None] = ContextVar("attend", default=None)
"""Block of each module that may call for attention, by its `id`, and who gives the probabilities."""


@contextmanager
def attended(anatomy: Anatomy, attend: Attend) -> Iterator[None]:
    """Take each block's attention probabilities from `attend`, as a model that is `opened` runs inside."""
    blocks = {id(module): layer for layer, block in enumerate(anatomy.blocks) for module in block.modules()}
    token = _attend.set((blocks, attend))
    try:
        yield
    finally:
        _attend.reset(token)


@contextmanager
def opened(model: LanguageModel) -> Iterator[None]:
    """Let the model attend by this module, as it runs inside.

    Raises:
        EmosteerError: its attention does not go through transformers' interface.
    """
    _register()
    inner: Any = model.model
    if not getattr(inner, "_can_set_attn_implementation", lambda: False)():
        raise EmosteerError(f"the attention of {model.name} does not go through transformers' interface")
    before = inner.config._attn_implementation
    inner.set_attn_implementation(NAME)
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


def with_open_attention(model: LanguageModel) -> LanguageModel:
    """The same model, with how many heads of keys a block has; it reads a few tokens twice.

    Raises:
        EmosteerError: its attention cannot be opened, and why.
    """
    if model.anatomy.n_key_heads:
        return model
    ids = torch.tensor([model.dialogue.prompt([OPENING])], device=model.device)
    heads: dict[int, tuple[int, int]] = {}

    def attend(block: int, one: Attending) -> Tensor:
        heads[block] = one.query.shape[1], one.key.shape[1]
        return one.probabilities()

    with torch.no_grad():
        own = model.model(input_ids=ids, use_cache=False).logits.float()
        with opened(model), attended(model.anatomy, attend):
            found = model.model(input_ids=ids, use_cache=False).logits.float()
    if missing := sorted(set(range(model.n_blocks)) - set(heads)):
        raise EmosteerError(f"the attention of {model.name} does not go through transformers' interface in block {missing[0]}")
    if len(set(heads.values())) > 1:
        raise EmosteerError(f"the blocks of {model.name} differ in how many attention heads they have")
    error = float((found - own).norm() / own.norm())
    if not error < TOLERANCE.get(model.dtype, TOLERANCE[torch.bfloat16]):
        raise EmosteerError(
            f"the attention of {model.name} is another one than softmax of queries and keys: logits differ by {error:.2g}"
        )
    return replace(model, anatomy=replace(model.anatomy, n_key_heads=heads[0][1]))


def showing(sites: Collection[tuple[str, int]], show: Callable[[tuple[str, int], Tensor], Tensor | None]) -> Attend:
    """Probabilities after `show` has seen the queries and keys of some places, and perhaps changed them."""

    def attend(block: int, one: Attending) -> Tensor:
        for site in (QUERY, KEY):
            if (site, block) in sites and (changed := show((site, block), one.own(site))) is not None:
                one = one.having(site, changed)
        return one.probabilities()

    return attend


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention as a model calls it: query [row, head, position, width] to output [row, position, head, width]."""
    if unknown := unknown_arguments(rest):
        raise EmosteerError(f"its attention is given {', '.join(unknown)}, which is not known here")
    one = Attending(query, key, attention_mask, query.shape[-1] ** -0.5 if scaling is None else float(scaling), softcap)
    watched = _attend.get()
    if watched is None:
        probabilities = one.probabilities()
    else:
        blocks, attend = watched
        probabilities = attend(blocks[id(module)], one) if id(module) in blocks else one.probabilities()
    output = torch.matmul(probabilities.to(value.dtype), _for_each(value, query.shape[1]))
    return output.transpose(1, 2).contiguous(), None


def _for_each(states: Tensor, n_heads: int) -> Tensor:
    """Keys or values of every query head: heads of queries that follow each other share one."""
    return states.repeat_interleave(n_heads // states.shape[1], dim=1)


def _register() -> None:
    # Importing transformers takes seconds.
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, eager_mask)
