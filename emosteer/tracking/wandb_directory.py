"""The offline runs in a sweep's directory: which are there, which are wanted, and what is left over from a crash.

A run's directory says itself what it holds: the digest of its content lies in it. There is no index that could be lost or be wrong.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emosteer.records.publish import TEMPORARY

PREFIX = "offline-run-"
CONTENT = "emosteer-content"
"""Beside the run's log: the digest of what the run says."""


@dataclass(frozen=True)
class RunDirectory:
    """One offline run on disk, named `offline-run-<date>_<time>-<id>` by wandb."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name.removeprefix(PREFIX).partition("-")[2]

    @property
    def log(self) -> Path:
        return self.path / f"run-{self.id}.wandb"

    @property
    def is_uploaded(self) -> bool:
        """Whether `wandb sync` has left its mark."""
        return self.log.with_suffix(".wandb.synced").exists()

    def content(self) -> str | None:
        """The digest of what it says; None where the run is not whole or not ours."""
        try:
            return (self.path / CONTENT).read_text(encoding="utf-8") if self.log.exists() else None
        except OSError:
            return None


def run_directories(root: Path) -> list[RunDirectory]:
    """All offline runs below a `wandb` directory, oldest first."""
    return [RunDirectory(path) for path in sorted(root.glob(f"{PREFIX}*")) if path.is_dir()]


def tidy(root: Path, wanted: Mapping[str, str]) -> dict[str, RunDirectory]:
    """Leave at most one directory of each run, one that is whole and says what it should; these by their ids.

    Only to be called while nobody else writes there.

    Args:
        root: the `wandb` directory.
        wanted: run id -> digest of its content. Runs that are not in it are left alone.
    """
    kept: dict[str, RunDirectory] = {}
    # An uploaded copy first, so that it is not uploaded again.
    for directory in sorted(run_directories(root), key=lambda d: not d.is_uploaded):
        if directory.id not in wanted:
            continue
        if directory.id in kept or directory.content() != wanted[directory.id]:
            shutil.rmtree(directory.path, ignore_errors=True)
        else:
            kept[directory.id] = directory
    for draft in root.glob(f"{TEMPORARY}*"):
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
    return kept
