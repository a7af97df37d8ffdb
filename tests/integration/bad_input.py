"""What people get wrong at the keyboard, and a part of the line that they are told: data for the tests and for benchmarks/refusals.py.

Paths are relative to a fresh directory in which the command is given; `../bad` holds the files that `make_bad_files` makes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SINGLE, SWEEP = "single", "sweep"
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Mistake:
    """One way to get it wrong."""

    given: tuple[str, ...]
    """What is typed after `emosteer`, besides -m."""
    line: str
    """A part of the line that tells it: key, value and remedy."""
    modes: tuple[str, ...] = (SINGLE, SWEEP)
    environment: Mapping[str, str] = field(default_factory=dict)
    asks_torch: bool = False
    """Whether only torch knows."""

    @property
    def name(self) -> str:
        """For reports."""
        return " ".join([*(f"{key}={value}" for key, value in self.environment.items()), *self.given])


def _values(lines: Mapping[str, str]) -> list[Mistake]:
    """Mistakes of one argument each."""
    return [Mistake((given,), line) for given, line in lines.items()]


PROMPT = '{"id": "a", "text": "How are you?", "category": "x"}\n'
PAIR = '{"id": "a", "positive": "I am glad.", "negative": "I am low.", "topic": "mood"}\n'
DIAGNOSTIC = (
    '{"id": "a", "clean": "I won.", "corrupted": "I lost.", "reply_prefix": "I am", "expressive": ["glad"], "counterpart": ["sad"]}\n'
)
