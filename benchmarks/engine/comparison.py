"""Whether two variants did the same work: their tokens, and at a first difference how near to a tie the two tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from emosteer.model.capture import replace_output
from engine.work import Cell, Row, Tokens, Work

TIE = 1e-3
"""Logits nearer than that are a tie: in float32 their last sums are rounded to about 1e-5 of their size, which is some tens."""


class DifferentWorkError(Exception):
    """A variant gave other tokens, and no tie explains it: its time would say nothing."""


@dataclass(frozen=True)
class Difference:
    """The first token in which a reply differs."""

    cell: int
    prompt: int
    position: int
    """In the reply, from 0."""
    gap: float
    """Between the two tokens' logits after what the replies have in common, in float64."""

    @property
    def is_tie(self) -> bool:
        """Whether rounding explains it."""
        return self.gap < TIE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Judge:
    """Compares replies. The model is loaded only where some differ."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def differences(self, rows: Sequence[Row], ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> list[Difference]:
        """Every row whose replies differ."""
        found = []
        for (cell, prompt), our, their in zip(rows, ours, theirs, strict=True):
            if (position := first_difference(our, their)) is not None:
                gap = self._gap(cell, prompt, tuple(our[:position]), _token_at(our, position), _token_at(their, position))
                found.append(Difference(cell, prompt, position, gap))
        return found

    def _gap(self, cell: int, prompt: int, common: Tokens, our: int | None, their: int | None) -> float:
        logits = self.logits(self.work.cells[cell], self.work.prompts[prompt], common)

        def logit(token: int | None) -> float:
            return float(logits[list(self.work.stop_tokens)].max() if token is None else logits[token])

        return abs(logit(our) - logit(their))

    @torch.no_grad()
    def logits(self, cell: Cell, prompt: Tokens, reply: Tokens) -> Tensor:
        """Logits [vocabulary] after a prompt and the beginning of a steered reply, read at once, in float64."""

        def steer(states: Tensor) -> Tensor:
            if cell.vector is None:
                return states
            states = states.clone()
            states[:, 0 if cell.scope == "all" else len(prompt) - 1 :] += cell.vector.double()
            return states

        with replace_output(self._model.get_decoder().layers[cell.layer], steer):
            logits: Tensor = self._model(input_ids=torch.tensor([[*prompt, *reply]]), use_cache=False).logits
        return logits[0, -1]

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.work.weights, dtype=torch.float64).eval()


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Where two replies first differ; None where they do not. One that is shorter was ended there by a stop token."""
    for position, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return position
    return None if len(one) == len(other) else min(len(one), len(other))


def _token_at(reply: Sequence[int], position: int) -> int | None:
    """None for the stop token."""
    return reply[position] if position < len(reply) else None
