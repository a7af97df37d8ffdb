"""What the ways through a model have in common: rows that decode a token a step, and are replaced as they end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from emosteer.engine.prefixes import Key, Prefix
from emosteer.engine.request import Origin, Request
from emosteer.model.language_model import LanguageModel
from emosteer.steering import Interventions, Shape

MOST_CUTS = 4
"""Of a batch: each costs the choice of rows at every step."""


@dataclass(frozen=True)
class Extent:
    """The most that any of the requests which may come into a batch asks for."""

    prefix: int
    """Tokens of the longest prompt, without its last."""
    private: int
    """The same, of prompts that a steering touches."""
    reply: int
    """Tokens of the longest reply."""
    steering: Shape
    """What is done to any of their rows."""
    cuts: tuple[int, ...] = ()
    """Blocks at which the steering of some begins, ascending: below them rows that have read the same are one."""

    @classmethod
    def of(cls, requests: Sequence[Request]) -> Extent:
        steered = [r for r in requests if r.steering is not None]
        return cls(
            prefix=max((len(r.prompt) - 1 for r in requests), default=0),
            private=max((len(r.prompt) - 1 for r in steered if r.steering and r.steering.touches_prefix), default=0),
            reply=max((r.decoding.max_new_tokens for r in requests), default=1),
            steering=Shape.of(r.steering for r in steered),
            cuts=_cuts([r.steering.first_block for r in steered if r.steering is not None and r.steering.pushes]),
        )

    @property
    def positions(self) -> int:
        """That a row may keep to itself."""
        return self.private + self.reply


def _cuts(first_blocks: Sequence[int]) -> tuple[int, ...]:
    """Of the first steered blocks of all requests, those that divide them into a few parts of like size."""
    ordered = sorted(first_blocks)
    cuts = set(ordered)
    if len(cuts) > MOST_CUTS:
        cuts = {ordered[len(ordered) * part // MOST_CUTS] for part in range(MOST_CUTS)}
    return tuple(sorted(cuts - {0}))


class Rows(Protocol):
    """A batch. Its rows are known by their numbers, from 0 on."""

    @property
    def blocks_spared(self) -> int:
        """That the coming step need not run, summed over all rows: rows that have read the same are one below a steered block."""

    def put(self, rows: Sequence[int], requests: Sequence[Request], prefixes: Sequence[Prefix]) -> None:
        """Let rows reply to other requests, from the beginning."""

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, which are then numbered in this order."""

    def step(self) -> Iterator[tuple[slice, Tensor]]:
        """Run the rows' newest tokens; logits of the next ones, a few rows at a time: (rows, [those rows, vocabulary])."""

    def append(self, tokens: Tensor) -> None:
        """Give each row its next token [row]."""


class Fed:
    """What goes into a step besides the past: each row's newest token, and what is done to its states.

    Args:
        model: the model.
        n_rows: of the batch.
        extent: of all requests that may come.
    """

    def __init__(self, model: LanguageModel, n_rows: int, extent: Extent) -> None:
        self.tokens = torch.zeros(n_rows, 1, dtype=torch.long, device=model.device)
        """[row, 1]"""
        self.interventions = Interventions.nothing(extent.steering, n_rows, model.width, model.device, model.dtype)
        self._once: list[int] = []
        """Rows in their first step, whose steering ends with the prompt."""

    def put(self, rows: Sequence[int], requests: Sequence[Request]) -> None:
        """Let rows begin with the last tokens of other requests' prompts."""
        device = self.tokens.device
        self.tokens[torch.tensor(rows, device=device), 0] = torch.tensor([request.prompt[-1] for request in requests], device=device)
        self.interventions.put(rows, [request.steering for request in requests])
        self._once = [r for r, q in zip(rows, requests, strict=True) if q.steering is not None and not q.steering.touches_reply]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.tokens = self.tokens[rows]
        self.interventions.keep(rows)

    def append(self, tokens: Tensor) -> None:
        """Give each row its next token [row]."""
        self.tokens = tokens[:, None]
        self.interventions.advance()
        if self._once:
            self.interventions.put(self._once, [None] * len(self._once))
            self._once = []


def prefix_key(asked: Request | Origin) -> Key:
    """The prefix that a row begins with."""
    steering = asked.steering
    return asked.prompt[:-1], steering if steering is not None and steering.touches_prefix else None
