"""A conversation with a steered model, as it is streamed to a terminal; the unsteered model can answer beside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from emosteer.datasets import Message
from emosteer.engine import Engine
from emosteer.engine.request import Decoding, Request, RowSeed
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.records.cell import Cell
from emosteer.steering import Steering, steering_along
from emosteer.vectors import EmotionVector, checked

UNFINISHED = "\ufffd"
"""What a decoder writes for a character of which some bytes are still to come."""


class Conversation:
    """What was said so far, and what the model says next: steered as a cell is, but for the coefficient, or not at all.

    Both sides answer one conversation, which goes on with the steered replies.

    Args:
        model: the cell's.
        cell: how it steers, and how it decodes.
        vector: what it steers with.
        layers: the blocks that it steers.
        coefficient: by how much, at first: the cell's, as it was given or found.
        max_new_tokens: of a reply.

    Raises:
        EmosteerError: a vector of another shape than the model's.
    """

    def __init__(
        self,
        model: LanguageModel,
        cell: Cell,
        vector: EmotionVector,
        layers: tuple[int, ...],
        coefficient: float,
        max_new_tokens: int,
    ) -> None:
        self.model, self.cell, self.layers, self.max_new_tokens = model, cell, layers, max_new_tokens
        self.vector = checked(vector, model.n_blocks, model.width)
        self.coefficient = coefficient
        self.messages: list[Message] = []
        self._engine = Engine(model)

    @property
    def steering(self) -> Steering:
        """What is done to the model now."""
        cell = self.cell
        how = (cell.coefficient_unit, cell.intervention, cell.scope, cell.decay, cell.across_blocks)
        return steering_along(self.vector, self.layers, self.coefficient, *how)

    def set_coefficient(self, text: str) -> None:
        """Steer with another coefficient from now on; raises EmosteerError where the text is no finite number."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise EmosteerError(f"coefficient {text}: give a number such as 0.2")
        self.coefficient = value

    def ask(self, text: str) -> None:
        """The user says something."""
        self.messages.append({"role": "user", "content": text})

    def answered(self, reply: str) -> None:
        """The conversation goes on with a reply."""
        self.messages.append({"role": "assistant", "content": reply})

    def forget(self) -> None:
        """Begin anew."""
        self.messages.clear()

    def reply(self, is_steered: bool) -> Iterator[str]:
        """The next reply, in pieces as they are generated; joined they are what a sweep's cell would have replied.

        Raises:
            EmosteerError: the conversation fills the model's context.
        """
        prompt = self.model.dialogue.prompt(self.messages)
        room = self.max_new_tokens if self.model.context is None else min(self.max_new_tokens, self.model.context - len(prompt))
        if room < 1:
            raise EmosteerError(f"the conversation has {len(prompt)} tokens, which fill the context of {self.model.name}: /reset")
        generation = self.cell.generation
        sampling = Decoding(do_sample=generation.do_sample, temperature=generation.temperature, top_p=generation.top_p)
        decoding = dataclasses.replace(sampling, max_new_tokens=room)
        # Steered and unsteered share their random numbers, turn by turn.
        row_seed = RowSeed(self.cell.seed, f"turn {len(self.messages)}", 0)
        tokens: list[int] = []
        told = ""
        for token in self._engine.stream(Request(prompt, row_seed, self.steering if is_steered else None, decoding)):
            tokens.append(token)
            text = self.model.dialogue.reply(tokens)
            if text.endswith(UNFINISHED) or not text.startswith(told):
                continue
            yield text[len(told) :]
            told = text
        rest = self.model.dialogue.reply(tokens)
        if rest.startswith(told):
            yield rest[len(told) :]
