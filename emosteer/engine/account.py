"""What an engine has done and how long it took, for those who tell people."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Account:
    """Sums over an engine's life. Seconds are wall clock; on a GPU the work may end a little later than it is counted."""

    path: str = ""
    """Which way the engine goes through the model: `shared`, `stock` or `reread`."""
    reason: str = ""
    """Why that one; for people."""
    batch_rows: int = 0
    """Rows that the last batch had room for."""
    prefill_seconds: float = 0.0
    """Reading prompts."""
    decode_seconds: float = 0.0
    """Generating, token by token."""
    likelihood_seconds: float = 0.0
    """Reading replies to tell how probable they are."""
    prefill_tokens: int = 0
    tokens: int = 0
    """Generated."""
    ties: int = 0
    """Tokens that were decided by reading their row again alone (see `ties`)."""
    steps: int = 0
    """Forwards that generated."""
    row_steps: int = 0
    """Rows in those forwards, ended ones included."""
    blocks_spared: int = 0
    """Of those rows, blocks that were run for another with the same history (see `stages`)."""

    @property
    def rows(self) -> float:
        """Rows in the mean forward."""
        return self.row_steps / self.steps if self.steps else 0.0

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Add the seconds of the work inside to `prefill`, `decode` or `likelihood`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            name = f"{what}_seconds"
            setattr(self, name, getattr(self, name) + time.perf_counter() - started)
