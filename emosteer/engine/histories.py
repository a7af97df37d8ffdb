"""Which rows of a batch have read the same tokens so far: in blocks that no steering has reached, they are one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Moves = list[tuple[int, int]]
"""(slot, the slot whose past it takes), all at once."""


class Histories:
    """Rows with one history share a slot, until their tokens part. Slots are numbered from 0 on, without gaps.

    Args:
        n_rows: of the batch; each is to be `put` before tokens come.
    """

    def __init__(self, n_rows: int) -> None:
        self.slots: list[int | None] = [None] * n_rows
        """By row."""
        self.n_slots = 0

    @property
    def rows(self) -> list[int]:
        """Of each slot, the first of its rows."""
        first: dict[int, int] = {}
        for row, slot in enumerate(self.slots):
            if slot is not None:
                first.setdefault(slot, row)
        return [first[slot] for slot in range(self.n_slots)]

    def put(self, rows: Sequence[int], keys: Sequence[Hashable]) -> Moves:
        """Let rows begin anew, those of one key with one history. Their slots have no past."""
        for row in rows:
            self.slots[row] = None
        held = set(self.slots)
        free = iter([slot for slot in range(self.n_slots) if slot not in held])
        slot_of: dict[Hashable, int] = {}
        for row, key in zip(rows, keys, strict=True):
            if key not in slot_of:
                slot_of[key] = next(free, self.n_slots)
                self.n_slots = max(self.n_slots, slot_of[key] + 1)
            self.slots[row] = slot_of[key]
        return self._close_gaps()

    def part(self, tokens: Sequence[int]) -> Moves:
        """Give each row its next token: those of a slot whose tokens differ go on in slots of their own, with its past."""
        slot_of: dict[tuple[int | None, int], int | None] = {}
        taken: set[int | None] = set()
        moves: Moves = []
        for row, (slot, token) in enumerate(zip(self.slots, tokens, strict=True)):
            if (slot, token) not in slot_of:
                slot_of[slot, token] = slot
                if slot in taken:
                    assert slot is not None
                    slot_of[slot, token] = self.n_slots
                    moves.append((self.n_slots, slot))
                    self.n_slots += 1
                taken.add(slot)
            self.slots[row] = slot_of[slot, token]
        return moves

    def keep(self, rows: Sequence[int]) -> Moves:
        """Drop all rows but these, which are then numbered in this order."""
        self.slots = [self.slots[row] for row in rows]
        return self._close_gaps()

    def _close_gaps(self) -> Moves:
        """Let the last slots take the places of those that no row has."""
        held = {slot for slot in self.slots if slot is not None}
        gaps = [slot for slot in range(len(held)) if slot not in held]
        moves = list(zip(gaps, sorted(slot for slot in held if slot >= len(held)), strict=True))
        target = {source: slot for slot, source in moves}
        self.slots = [slot if slot is None else target.get(slot, slot) for slot in self.slots]
        self.n_slots = len(held)
        return moves
