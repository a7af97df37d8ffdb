"""Blocks that compute once what rows have in common: below the first steered block, rows with one history are one row.

A step's batch is narrow in the first blocks, and becomes wider where the steering of some rows begins; from the last such block on,
every row is there itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor

from emosteer.engine.attention import Crowd, SharedLayer, View
from emosteer.engine.body import Narrowing
from emosteer.engine.histories import Histories, Moves
from emosteer.engine.prefixes import Prefix
from emosteer.engine.request import Request
from emosteer.model.capture import Place


@dataclass
class _Stage:
    """Some blocks one after the other, in all of which the same rows are one."""

    start: int
    stop: int
    layers: list[tuple[int, SharedLayer]]
    """Of its blocks, by number."""
    histories: Histories
    rows: Tensor = field(init=False)
    """[slot]: a row of each."""
    slots: Tensor = field(init=False)
    """[row]"""
    crowd: Crowd = field(init=False)

    def carry_out(self, moves: Moves, n_rows: int) -> None:
        """Have the layers hold what the slots are now.

        Args:
            moves: of the histories.
            n_rows: of the batch.
        """
        for _, layer in self.layers:
            layer.rearrange(moves, self.histories.n_slots, n_rows)


class Stages:
    """The stages of a batch.

    Args:
        cuts: blocks at which the steering of some rows begins, ascending, none of them the first.
        layers: of the cache, by number of the block.
        n_rows: of the batch.
    """

    def __init__(self, cuts: Sequence[int], layers: Sequence[tuple[int, SharedLayer]], n_rows: int) -> None:
        self.n_rows = n_rows
        self._stages = [
            _Stage(start, stop, [(number, layer) for number, layer in layers if start <= number < stop], Histories(n_rows))
            for start, stop in zip((0, *cuts), cuts, strict=False)
        ]
        for stage in self._stages:
            stage.carry_out([], n_rows)

    def put(self, rows: Sequence[int], requests: Sequence[Request], prefixes: Sequence[Prefix]) -> None:
        """Let rows reply to other requests, from the beginning."""
        for stage in self._stages:
            keys = [_history(row, stage.stop, request, prefix) for row, request, prefix in zip(rows, requests, prefixes, strict=True)]
            stage.carry_out(stage.histories.put(rows, keys), self.n_rows)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self.n_rows = len(rows)
        for stage in self._stages:
            stage.carry_out(stage.histories.keep(rows), self.n_rows)

    def part(self, tokens: Tensor, prompt_of: Sequence[int], n_prompts: int) -> None:
        """Give each row its next token [row]; see `seat` for the others."""
        chosen = tokens.tolist() if self._stages else []
        for stage in self._stages:
            if moves := stage.histories.part(chosen):
                stage.carry_out(moves, self.n_rows)
                self._seat(stage, prompt_of, n_prompts, tokens.device)

    def seat(self, prompt_of: Sequence[int], n_prompts: int, device: torch.device) -> None:
        """Say which prompt each row shares, and how many there are places for."""
        for stage in self._stages:
            self._seat(stage, prompt_of, n_prompts, device)

    @staticmethod
    def _seat(stage: _Stage, prompt_of: Sequence[int], n_prompts: int, device: torch.device) -> None:
        rows = stage.histories.rows
        stage.rows = torch.tensor(rows, device=device)
        stage.slots = torch.tensor(stage.histories.slots, device=device)
        stage.crowd = Crowd.seated([prompt_of[row] for row in rows], n_prompts, device)

    def slot(self, layer: int, row: int) -> int:
        """Where a layer keeps what is a row's."""
        stage = self._at(layer)
        slot = row if stage is None else stage.histories.slots[row]
        assert slot is not None
        return slot

    def rows_at(self, place: Place) -> Tensor | None:
        """[slot]: the rows that are at a place, as it is steered; None for all in order."""
        site, layer = place
        # What a block puts out is for the next one already.
        stage = self._at(layer + (site == "residual"))
        return None if stage is None else stage.rows

    def _at(self, block: int) -> _Stage | None:
        return next((stage for stage in self._stages if block < stage.stop), None)

    def look(self, view: View, own_from: Tensor) -> list[Narrowing]:
        """Tell the layers what their rows see in the step that comes, and how its blocks are narrow.

        Args:
            view: what all rows see.
            own_from: [row], of each, the first layer at which its prefix is its own.
        """
        narrowings = []
        for stage, following in zip_longest(self._stages, self._stages[1:]):
            narrowed = view.of_rows(stage.rows, stage.crowd)
            for number, layer in stage.layers:
                layer.view = narrowed
                layer.is_private = own_from[stage.rows] <= number if layer.any_private else None
            onward = stage.slots if following is None else stage.slots[following.rows]
            narrowings.append(Narrowing(stage.start, stage.stop, self.n_rows, stage.rows, onward))
        return narrowings

    @property
    def stop(self) -> int:
        """The first block at which every row is there itself."""
        return self._stages[-1].stop if self._stages else 0

    @property
    def blocks_spared(self) -> int:
        """That need not be run in the step that comes, summed over all rows."""
        return sum((self.n_rows - stage.histories.n_slots) * (stage.stop - stage.start) for stage in self._stages)


def _history(row: int, stop: int, request: Request, prefix: Prefix) -> tuple[object, ...]:
    """What a row's first token and its past are, in blocks below `stop`: equal for rows that are one there."""
    if request.steering is not None and request.steering.reaches(stop):
        return ("itself", row)
    return ("itself", row) if prefix.shared is None else (id(prefix.shared), request.prompt[-1])
