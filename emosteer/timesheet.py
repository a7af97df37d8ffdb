"""Where a worker's time goes, and how fast its engine is: for people, in the log, in the worker's state and in records."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emosteer.engine.account import Account

IMPORTING, LOADING, ATTRIBUTION, VECTORS = "importing", "loading", "attribution", "vectors"
PREFILL, DECODE, SCORING, WRITING, WAITING, OTHER = "prefill", "decode", "scoring", "writing", "waiting", "other"
PARTS = (IMPORTING, LOADING, ATTRIBUTION, VECTORS, PREFILL, DECODE, SCORING, WRITING, WAITING, OTHER)
"""What a worker's time goes to. `importing` is of torch, `writing` waiting for the disk, `waiting` for cells that others hold."""


@dataclass(frozen=True)
class Generated:
    """What an engine has generated between two moments."""

    tokens: int = 0
    steps: int = 0
    """Forwards that generated."""
    row_steps: int = 0
    """Rows in those forwards."""

    @classmethod
    def by(cls, account: Account) -> Generated:
        """All that an engine has generated until now."""
        return cls(account.tokens, account.steps, account.row_steps)

    @property
    def rows(self) -> float:
        """Rows in the mean forward."""
        return self.row_steps / self.steps if self.steps else 0.0

    def __add__(self, other: Generated) -> Generated:
        return Generated(self.tokens + other.tokens, self.steps + other.steps, self.row_steps + other.row_steps)

    def __sub__(self, earlier: Generated) -> Generated:
        return Generated(self.tokens - earlier.tokens, self.steps - earlier.steps, self.row_steps - earlier.row_steps)


class Timesheet:
    """Wall clock from its making on, each second under one part, and what engines have generated meanwhile."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._parts = [OTHER]
        self._since, self._prefilled = time.perf_counter(), 0.0
        self._engine: Account | None = None
        self._before, self._past = Generated(), Generated()
        """What the engine at work had generated before, and what others have since the sheet was made."""

    def follow(self, engine: Account) -> None:
        """Count from now on what this engine generates, and no longer what another one did."""
        self._past = self.generated
        self._engine, self._before, self._prefilled = engine, Generated.by(engine), engine.prefill_seconds

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Count the time inside under a part, and not under the one around it.

        Inside `decode`, what the engine says that it has spent on reading prompts is counted as `prefill`.
        """
        self._turn()
        self._parts.append(part)
        try:
            yield
        finally:
            self._turn()
            self._parts.pop()

    @property
    def seconds(self) -> dict[str, float]:
        """By part, until now; their sum is the time that has passed. Another thread may ask."""
        found, passed, part = dict(self._seconds), time.perf_counter() - self._since, self._parts[-1]
        if part == DECODE and self._engine is not None:
            prefilled = min(passed, self._engine.prefill_seconds - self._prefilled)
            found[PREFILL] += prefilled
            passed -= prefilled
        found[part] += passed
        return found

    @property
    def generated(self) -> Generated:
        """By all engines, until now."""
        return self._past if self._engine is None else self._past + (Generated.by(self._engine) - self._before)

    def facts(self) -> dict[str, Any]:
        """What records and the worker's state say: the engine's path, why that one, its batch, and the seconds of each part."""
        path, reason, rows = (self._engine.path, self._engine.reason, self._engine.batch_rows) if self._engine else ("", "", 0)
        return {
            "engine_path": path,
            "engine_reason": reason,
            "batch_rows": rows,
            "rows": round(self.generated.rows, 1),
            "spent": {part: round(seconds, 3) for part, seconds in self.seconds.items()},
        }

    @property
    def tokens_per_second(self) -> float:
        """Generated, in the time of prefill and decoding."""
        seconds = self.seconds
        return self.generated.tokens / max(seconds[PREFILL] + seconds[DECODE], 1e-6)

    def __str__(self) -> str:
        seconds = self.seconds
        whole = sum(seconds.values())
        parts = [f"{part} {s:.1f} s ({s / whole:.0%})" for part, s in seconds.items() if s >= 0.05]
        done = self.generated
        if self._engine is not None and done.tokens:
            speed = f"{done.tokens:,} tokens at {self.tokens_per_second:,.0f} tokens/s, {done.rows:.0f} rows in the mean forward"
            parts.append(f"{speed}, path {self._engine.path} ({self._engine.reason})")
        return f"{whole:.1f} s: {', '.join(parts)}"

    def _turn(self) -> None:
        self._seconds, self._since = self.seconds, time.perf_counter()
        if self._engine is not None:
            self._prefilled = self._engine.prefill_seconds
