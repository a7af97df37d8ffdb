"""A sweep: the union of the cells of all commands that were given under one name, and what became of them.

Each command leaves a manifest of its own under `commands/`, so that two of them never overwrite each other; `sweep.json` is their
union, for people and other programs.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emosteer.records.cell import ATTRIBUTION, Cell
from emosteer.records.paths import SweepPaths
from emosteer.records.publish import publish_json, read_json
from emosteer.records.store import Store
from emosteer.scoring.scorer import Scorer, find_scorers

DONE, FAILED, PENDING = "done", "failed", "pending"


@dataclass(frozen=True)
class Task:
    """A cell of a sweep, with the Hydra files that are kept beside its replies."""

    cell: Cell
    overrides: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """What one command added to a sweep."""

    line: list[str]
    settings: dict[str, Any]
    """What is not of the cells: scorers, statistics, tracking, engine, worker."""
    provenance: dict[str, Any]
    """Git revision, versions, host, directory."""
    tasks: list[Task]


class Sweep:
    """One sweep's directory."""

    def __init__(self, root: Path, store: Store) -> None:
        self.paths = SweepPaths(root)
        self.store = store
        self.name = root.name

    def add(self, command: Command) -> None:
        """Join a command's cells to the sweep; those that an earlier command brought alike are not written again."""
        known = {task.cell.id: task.cell for task in self.tasks()}
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        manifest = {
            "time": stamp,
            "line": command.line,
            "store": str(self.store.paths.root),
            "settings": command.settings,
            "provenance": command.provenance,
            "tasks": {
                task.cell.id: {"cell": task.cell.to_json(), "overrides": list(task.overrides), "files": task.files}
                for task in command.tasks
                if known.get(task.cell.id) != task.cell
            },
        }
        # Nanoseconds order commands of one second, and the manifests' names with them.
        publish_json(self.paths.commands / f"{stamp}-{time.time_ns()}-{uuid.uuid4().hex[:6]}.json", manifest)
        self.write_summary()

    def manifests(self) -> list[dict[str, Any]]:
        """All commands' manifests, oldest first."""
        return [manifest for path in self._manifest_paths() if (manifest := read_json(path)) is not None]

    def tasks(self) -> list[Task]:
        """The union of all commands' tasks, each once, in the order in which they came.

        Of what is no part of an id (a pair's primary metric, names), the newest command's holds.
        """
        tasks: dict[str, Task] = {}
        for manifest in self.manifests():
            for cell_id, task in manifest["tasks"].items():
                tasks[cell_id] = Task(Cell.from_json(task["cell"]), tuple(task["overrides"]), task["files"])
        return list(tasks.values())

    def settings(self) -> dict[str, Any]:
        """Those of the newest command."""
        return dict(read_json(self._manifest_paths()[-1])["settings"])

    def _manifest_paths(self) -> list[Path]:
        return sorted(path for path in self.paths.commands.glob("*.json") if not path.name.startswith("."))

    def write_summary(self) -> None:
        """Write `sweep.json` from the manifests."""
        manifests = self.manifests()
        cells: dict[str, Any] = {}
        for manifest in manifests:
            for cell_id, task in manifest["tasks"].items():
                cells.setdefault(cell_id, {"kind": task["cell"]["kind"], "overrides": task["overrides"]})
        summary = {
            "id": self.name,
            "commands": [{key: m[key] for key in ("time", "line", "provenance", "settings")} for m in manifests],
            "cells": cells,
        }
        publish_json(self.paths.summary, summary)

    def scorers(self) -> list[Scorer]:
        """The scorers of the newest command."""
        return find_scorers(self.settings()["scorers"])

    def is_done(self, cell: Cell, scorers: Sequence[Scorer]) -> bool:
        """Whether the store has what the task was for: replies, and what every scorer says of them."""
        if cell.kind == ATTRIBUTION:
            return self.store.paths.attribution_summary(cell.attribution_id).exists()
        return self.store.is_done(cell) and not self.unscored(cell, scorers)

    def unscored(self, cell: Cell, scorers: Sequence[Scorer]) -> list[Scorer]:
        """The scorers that have not seen a cell's replies yet."""
        paths = self.store.cell_paths(cell)
        return [scorer for scorer in scorers if not paths.score(scorer.key).exists()]

    def state(self, cell: Cell, scorers: Sequence[Scorer]) -> str:
        """done, failed or pending; a record outweighs an old failure."""
        if self.is_done(cell, scorers):
            return DONE
        return FAILED if self.paths.failure(cell.id).exists() else PENDING

    def unsettled(self, tasks: Iterable[Task], scorers: Sequence[Scorer]) -> list[Task]:
        """The tasks that somebody still has to run."""
        return [task for task in tasks if self.state(task.cell, scorers) == PENDING]

    def record_failure(self, cell: Cell, facts: dict[str, Any]) -> None:
        """Settle a cell as failed for good, for this sweep."""
        publish_json(self.paths.failure(cell.id), {"id": cell.id, "kind": cell.kind, **facts})

    def failure(self, cell: Cell) -> dict[str, Any] | None:
        """What is known of a cell's failure, or None."""
        found: dict[str, Any] | None = read_json(self.paths.failure(cell.id))
        return found

    def forget_failure(self, cell: Cell) -> None:
        """Let a failed cell run again."""
        self.paths.failure(cell.id).unlink(missing_ok=True)
