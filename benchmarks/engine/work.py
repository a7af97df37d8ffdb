"""What is to be generated, in a file that every variant can read: it needs torch and safetensors alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Tokens = tuple[int, ...]
Row = tuple[int, int]
"""Indices of a cell and of a prompt."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One steering."""

    vector: Tensor | None = None
    """[width] float32, at its full length; None is the baseline."""
    layer: int = 0
    """The block whose output it is added to."""
    scope: str = "generated"
    """`generated`: the last prompt position and every later one; `all`: every position."""


@dataclass(frozen=True, eq=False)
class Work:
    """Cells, prompts and lengths. Every cell replies to every prompt, greedily."""

    weights: str
    """A directory that transformers 4 and 5 both load."""
    cells: tuple[Cell, ...]
    prompts: tuple[Tokens, ...]
    new_tokens: int
    stop_tokens: tuple[int, ...]
    pad_token_id: int
    min_new_tokens: int = 0
    """Stop tokens are held back until a reply has so many."""

    def rows(self) -> list[Row]:
        """All replies, in order: by cell, then by prompt."""
        return [(cell, prompt) for cell in range(len(self.cells)) for prompt in range(len(self.prompts))]

    def write(self, directory: Path, name: str = "work") -> Path:
        """Put it into a directory, and return its path."""
        path = directory / f"{name}.safetensors"
        vectors = {str(i): cell.vector.contiguous() for i, cell in enumerate(self.cells) if cell.vector is not None}
        cells = [{"layer": cell.layer, "scope": cell.scope} for cell in self.cells]
        lengths = {"new_tokens": self.new_tokens, "min_new_tokens": self.min_new_tokens}
        model = {"weights": self.weights, "stop_tokens": self.stop_tokens, "pad_token_id": self.pad_token_id}
        save_file(vectors, path, {"work": json.dumps({**model, **lengths, "prompts": self.prompts, "cells": cells})})
        return path


def read(path: Path) -> Work:
    """Work that was written."""
    with safe_open(path, "pt") as file:
        told: dict[str, Any] = json.loads(file.metadata()["work"])
        names = set(file.keys())
        vectors = [file.get_tensor(str(i)) if str(i) in names else None for i in range(len(told["cells"]))]
    cells = tuple(Cell(vector, **cell) for vector, cell in zip(vectors, told.pop("cells"), strict=True))
    prompts = tuple(map(tuple, told.pop("prompts")))
    return Work(cells=cells, prompts=prompts, stop_tokens=tuple(told.pop("stop_tokens")), **told)


@dataclass(frozen=True)
class Order:
    """What a variant is told to run."""

    work: str
    """Path of the work."""
    cells: tuple[int, ...] | None = None
    """Only these; None is all."""
    rows: tuple[Row, ...] | None = None
    """Only these, of the variants that take rows; None is every prompt of every cell."""
    batch_rows: int | None = None
    """Rows in a batch, of the variants that choose them."""

    def to_json(self) -> str:
        """On one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Order:
        """One that was sent."""
        return cls(**json.loads(line))
