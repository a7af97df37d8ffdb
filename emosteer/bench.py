"""What stays in a process from one worker to the next: the model, so that a sweeper's next batch need not load it again.

Apart from the worker, whose import brings torch, which is not needed where nothing is left to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emosteer.worker import Loaded


@dataclass
class Bench:
    """Holds at most one loaded model."""

    loaded: Loaded | None = None
