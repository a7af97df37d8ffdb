"""What stays in a process from one worker to the next: the model, so that a sweeper's next batch need not load it again.

Apart from the worker, whose import brings torch, which is not needed where nothing is left to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emosteer.engine import Engine
    from emosteer.model.language_model import LanguageModel


@dataclass(frozen=True)
class Loaded:
    """A model that a worker holds, with the engine that keeps its prompts' keys and values."""

    key: str
    """Tells models that have to be loaded apart."""
    model: LanguageModel
    engine: Engine


@dataclass
class Bench:
    """Holds at most one loaded model."""

    loaded: Loaded | None = None
