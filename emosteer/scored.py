"""What the store has of a sweep's cells: their replies with what the scorers said of each, and means over a prompt's samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emosteer.errors import Damaged
from emosteer.records.cell import ATTRIBUTION, Cell
from emosteer.records.store import Store, StoredReply
from emosteer.records.sweep import PENDING, Sweep
from emosteer.scoring.scorer import Scorer

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """A cell's replies with what the scorers said of each."""

    cell: Cell
    record: dict[str, Any]
    replies: list[StoredReply]
    metrics: dict[str, list[float]]
    """Metric -> one value per reply."""

    @property
    def coefficient(self) -> float:
        """The cell's, as it was given or found."""
        return coefficient_of(self.cell, self.record)

    @cached_property
    def by_prompt(self) -> dict[str, dict[str, float]]:
        """Metric -> prompt id -> mean over its samples (NaN values left out; NaN where all are)."""
        prompt_ids = [reply.prompt_id for reply in self.replies]
        return {metric: prompt_means(prompt_ids, values) for metric, values in self.metrics.items()}

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts' ids, in their order."""
        return list(dict.fromkeys(reply.prompt_id for reply in self.replies))

    def at(self, turn: int) -> Scored:
        """The same with the dialogues' replies of one turn alone."""
        kept = [number for number, reply in enumerate(self.replies) if reply.turn == turn]
        metrics = {metric: [values[number] for number in kept] for metric, values in self.metrics.items()}
        return Scored(self.cell, self.record, [self.replies[number] for number in kept], metrics)

    def matrix(self, metrics: Sequence[str], prompts: Sequence[str]) -> Floats:
        """Per-prompt means [metric, prompt]; NaN where a metric or prompt is missing."""
        missing: dict[str, float] = {}
        return np.array(
            [[self.by_prompt.get(metric, missing).get(prompt, math.nan) for prompt in prompts] for metric in metrics],
            dtype=np.float64,
        ).reshape(len(metrics), len(prompts))


def coefficient_of(cell: Cell, record: dict[str, Any]) -> float:
    """A cell's coefficient as it was given or found, with its sign; NaN where it is looked for and not found yet."""
    found = record.get("resolved", {}).get("found") or {}
    size = float(found.get("coefficient", math.nan)) if cell.coefficient is None else cell.coefficient
    return -size if cell.negative else size


def prompt_means(prompt_ids: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Prompt id -> mean over its samples, of one value per reply (NaN values left out; NaN where all are)."""
    grouped: dict[str, list[float]] = {}
    for prompt, value in zip(prompt_ids, values, strict=True):
        grouped.setdefault(prompt, []).append(value)
    return {prompt: _mean(samples) for prompt, samples in grouped.items()}


def mean_of(matrices: Sequence[Floats]) -> Floats:
    """The mean of matrices, such as those of several controls; NaN values left out, NaN where all are."""
    stacked = np.stack(matrices)
    n = (~np.isnan(stacked)).sum(axis=0)
    return np.where(n > 0, np.nansum(stacked, axis=0) / np.maximum(n, 1), np.nan)


def seed_of(text: str) -> int:
    """Bootstraps are seeded by what they are of (a cell's id), so that a cell's interval does not depend on its neighbours."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def scored_cells(sweep: Sweep) -> tuple[dict[str, str], dict[str, Scored]]:
    """The states of a sweep's tasks, and the replies and scores of those that have them, both by id."""
    scorers, cells = sweep.scorers(), [task.cell for task in sweep.tasks()]
    read = {cell.id: one for cell in cells if (one := _scored(sweep.store, cell, scorers)) is not None}
    # Only now: reading puts aside what is damaged, and that has to run again.
    states = {cell.id: sweep.state(cell, scorers) for cell in cells}
    # A cell that failed because of a scorer has its replies and other scores.
    return states, {cell_id: one for cell_id, one in read.items() if states[cell_id] != PENDING}


def _scored(store: Store, cell: Cell, scorers: Sequence[Scorer]) -> Scored | None:
    """What there is of a cell; None where it has no replies, or damaged ones."""
    if cell.kind == ATTRIBUTION or (record := store.record(cell)) is None:
        return None
    try:
        replies = store.replies(cell)
    except Damaged:
        return None
    metrics: dict[str, list[float]] = {}
    for scorer in scorers:
        metrics |= store.scores(cell, scorer.key, len(replies)) or {}
    return Scored(cell, record, replies, metrics)


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
