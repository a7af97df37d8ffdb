"""What a tracker is told of a sweep: a run per cell and control, and one that sums the sweep up. Plain data, made from the tables."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import pandas as pd

FORMAT = 2
"""Raised by hand when runs that are written already shall be written anew."""
MAX_TABLE_ROWS = 10_000
"""W&B shows no more rows of a table."""
MAX_IMAGES = 108
"""W&B takes no more pictures under one key."""
HASHED_DIGITS = 10
"""Significant digits of a number that count as content: the last bits differ between machines."""

LONGEST_NAME = 128
"""Characters of an artifact's name."""
METRIC_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""W&B cannot filter, sort or plot by a metric with another name."""

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
class File:
    """A file of an artifact."""

    path: str
    name: str
    """In the artifact."""
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """Files that runs are made from, or make: those with the same name and content are one, whichever run says so."""

    name: str
    type: str
    files: list[File]
    facts: dict[str, Scalar] = field(default_factory=dict)
    description: str = ""


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
    uses: list[Artifact] = field(default_factory=list)
    """What it was made from."""
    makes: list[Artifact] = field(default_factory=list)
    """What it made, for other runs to use."""
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


@dataclass(frozen=True)
class Synced:
    """What came of an upload."""

    n_runs: int
    n_uploaded: int
    """By this upload; the others were there."""
    n_left: int
    reason: str
    """Why some are left."""
    project: str
    entity: str | None


def is_installed(package: str) -> bool:
    """Whether a tracker's package is; a folder of its name in the current directory, as wandb itself makes them, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


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


def named(values: dict[str, Scalar]) -> tuple[dict[str, Scalar], list[str]]:
    """Metrics under names that W&B can query, and a sentence where some had others: of scorers that are not ours."""
    changed = {key: re.sub(r"^(?=\d)|[^A-Za-z0-9_]", "_", key) for key in values if not METRIC_NAME.fullmatch(key)}
    told = [f"Metrics under other names: {', '.join(f'{old} is {new}' for old, new in changed.items())}."] if changed else []
    # A name that is taken stays with the metric whose own it is.
    return {changed[key]: value for key, value in values.items() if key in changed} | {
        key: value for key, value in values.items() if key not in changed
    }, told


def artifact_name(*parts: str) -> str:
    """A name as artifacts may have it; a long one ends in a digest of the whole."""
    name = re.sub(r"[^\w.-]", "_", "-".join(parts), flags=re.ASCII)
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 11]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


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


def table(frame: pd.DataFrame) -> Table:
    """A frame as plain data."""
    columns = [[plain(value) for value in frame[column].tolist()] for column in frame]
    return Table([str(column) for column in frame], [list(row) for row in zip(*columns, strict=True)])


def picture(path: Path, caption: str) -> Picture:
    """An image file that is there."""
    return Picture(str(path.resolve()), caption, hashlib.sha256(path.read_bytes()).hexdigest())


def _rounded(data: Any) -> Any:
    if isinstance(data, int) and not isinstance(data, bool):
        return float(data)  # a column of whole numbers is one of floats as soon as one is missing
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
