"""What a tracker is told of a sweep: a run per cell and control, and one that sums the sweep up. Plain data, made from the tables."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import pandas as pd

FORMAT = 1
"""Raised by hand when runs that are written already shall be written anew."""
MAX_TABLE_ROWS = 10_000
"""W&B shows no more rows of a table."""
MAX_IMAGES = 108
"""W&B takes no more pictures under one key."""
HASHED_DIGITS = 10
"""Significant digits of a number that count as content: the last bits differ between machines."""

Scalar = float | int | str | bool | None


@dataclass(frozen=True)
class Table:
    """Rows under column names."""

    columns: list[str]
    rows: list[list[Scalar]]


@dataclass(frozen=True)
class Picture:
    """An image file."""

    path: str
    caption: str
    sha256: str


@dataclass(frozen=True)
class Destination:
    """Where runs go, and what they share."""

    project: str
    entity: str | None
    group: str
    tags: list[str]


@dataclass(frozen=True)
class Run:
    """One run, whole: it is written once and never added to."""

    key: str
    """What it is of, unique within the group."""
    name: str
    job_type: str
    to: Destination
    config: dict[str, Any]
    summary: dict[str, Scalar]
    """Values that are defined; one that is not is left out."""
    tables: dict[str, Table] = field(default_factory=dict)
    images: dict[str, list[Picture]] = field(default_factory=dict)
    notes: str = ""
    exit_code: int = 0

    @property
    def id(self) -> str:
        """16 hexadecimal digits from the sweep's name and the key: the same at every time and on every machine."""
        return hashlib.sha256(json.dumps([self.to.group, self.key]).encode()).hexdigest()[:16]

    def content(self) -> str:
        """A digest of all that the run says."""
        return hashlib.sha256(json.dumps(_rounded([FORMAT, self]), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As `wandb_writer` reads it."""
        data = asdict(self)
        return {**data, **data.pop("to"), "id": self.id, "content": self.content()}


def cut(
    run_tables: dict[str, Table], images: dict[str, list[Picture]]
) -> tuple[dict[str, Table], dict[str, list[Picture]], list[str]]:
    """Tables and pictures within W&B's limits, and a sentence for each that was cut."""
    told = [
        f"Table {name}: the first {MAX_TABLE_ROWS} of {len(table.rows)} rows; all are in the sweep's directory."
        for name, table in run_tables.items()
        if len(table.rows) > MAX_TABLE_ROWS
    ]
    told += [
        f"Pictures {name}: the first {MAX_IMAGES} of {len(pictures)}; all are in the sweep's directory."
        for name, pictures in images.items()
        if len(pictures) > MAX_IMAGES
    ]
    short = {name: Table(table.columns, table.rows[:MAX_TABLE_ROWS]) for name, table in run_tables.items()}
    return short, {name: pictures[:MAX_IMAGES] for name, pictures in images.items()}, told


def typed(value: Any, kind: type) -> Scalar:
    """A table's value as a plain one of that type; None for what is missing."""
    if pd.isna(value):
        return None
    made: Scalar = kind(value)
    return made


def plain(value: Any) -> Scalar:
    """A table's value as JSON has it; None for what is missing or not finite."""
    if pd.isna(value):
        return None
    made: Scalar = value.item() if hasattr(value, "item") else value
    return None if isinstance(made, float) and math.isinf(made) else made


def _rounded(data: Any) -> Any:
    if isinstance(data, float):
        return float(f"{data:.{HASHED_DIGITS}g}")
    if is_dataclass(data):
        data = vars(data)
    if isinstance(data, dict):
        # Where a picture lies is not what it shows.
        return {key: _rounded(value) for key, value in data.items() if key != "path"}
    if isinstance(data, Sequence) and not isinstance(data, str):
        return [_rounded(value) for value in data]
    return data
