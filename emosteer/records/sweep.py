"""A sweep: the union of the cells of all commands that were given under one name, and what became of them.

Each command leaves a manifest of its own under `commands/`, so that two of them never overwrite each other; `sweep.json` is their
union, for people and other programs. A manifest never changes, so that a process reads each once.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emosteer.errors import EmosteerError
from emosteer.records.cell import ATTRIBUTION, Cell
from emosteer.records.packing import PackedFiles, pack, unpack
from emosteer.records.paths import SweepPaths
from emosteer.records.publish import names_in, publish_json, read_json
from emosteer.records.store import Store
from emosteer.scoring.scorer import Scorer, find_scorers, kept_scorers

log = logging.getLogger(__name__)

DONE, FAILED, PENDING = "done", "failed", "pending"
WORKER_LOST = "WorkerLost"
"""Stands for an exception in the failure of a cell that brought its workers down."""
FEW = 64
"""So many tasks are looked at one by one, more by listing their directories."""
MANIFEST_KEYS = {"time", "line", "store", "settings", "provenance", "tasks"}


@dataclass(frozen=True)
class Task:
    """A cell of a sweep, with the Hydra files that are kept beside its replies."""

    cell: Cell
    overrides: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


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
        self._manifests: dict[str, dict[str, Any] | None] = {}
        """By file name; None for a damaged one."""
        self._tasks: dict[str, list[Task]] = {}
        """Of each manifest, by its file's name."""

    def add(self, command: Command) -> None:
        """Join a command's cells to the sweep; those that an earlier command brought alike are not written again.

        What the store has of them already is looked through, so that nothing damaged is reused.
        """
        known = {task.cell.id: task.cell for task in self.tasks()}
        manifest = {
            "time": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
            "line": command.line,
            "store": str(self.store.paths.root),
            "settings": command.settings,
            "provenance": command.provenance,
            **pack(
                {
                    task.cell.id: {"cell": task.cell.to_json(), "overrides": list(task.overrides), "files": task.files}
                    for task in command.tasks
                    if known.get(task.cell.id) != task.cell
                }
            ),
        }
        publish_json(self.paths.commands / self._next_name(), manifest)
        self.write_summary()
        keys = [scorer.key for scorer in self.scorers()]
        for task in command.tasks:
            self.store.check(task.cell, keys)

    def _next_name(self) -> str:
        """A manifest's file name, which orders it behind all others: also those of the same second, and of a clock that ran ahead."""
        stamps = [int(parts[1]) for path in self._manifest_paths() if len(parts := path.stem.split("-")) == 3 and parts[1].isdigit()]
        stamp = max([time.time_ns(), *(stamp + 1 for stamp in stamps)])
        return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(stamp // 10**9))}-{stamp}-{uuid.uuid4().hex[:6]}.json"

    def manifests(self) -> list[dict[str, Any]]:
        """All commands' manifests, oldest first; a damaged one is told and left out."""
        return [manifest for path in self._manifest_paths() if (manifest := self._manifest(path)) is not None]

    def tasks(self) -> list[Task]:
        """The union of all commands' tasks, each once, in the order in which they came.

        Of what is no part of an id (a pair's primary metric, names), the newest command's holds.
        """
        tasks: dict[str, Task] = {}
        for path in self._manifest_paths():
            if self._manifest(path) is not None:
                tasks.update((task.cell.id, task) for task in self._tasks[path.name])
        return list(tasks.values())

    def settings(self) -> dict[str, Any]:
        """Those of the newest command; raises EmosteerError where no command's manifest can be read."""
        manifests = self.manifests()
        if not manifests:
            raise EmosteerError(f"{self.paths.commands} has no command that can be read; give the sweep's command again")
        return dict(manifests[-1]["settings"])

    def _manifest_paths(self) -> list[Path]:
        return sorted(path for path in self.paths.commands.glob("*.json") if not path.name.startswith("."))

    def _manifest(self, path: Path) -> dict[str, Any] | None:
        if path.name not in self._manifests:
            try:
                manifest = read_json(path)
                if manifest is None:
                    return None  # removed since the listing
                if missing := MANIFEST_KEYS - set(manifest):
                    raise KeyError(*missing)
                manifest["tasks"] = unpack(manifest)
                self._tasks[path.name] = _tasks(manifest)
                self._manifests[path.name] = manifest
            except (ValueError, KeyError, TypeError, AttributeError):
                log.warning("%s is damaged and left out: give the command again whose cells it held, and remove the file", path)
                self._manifests[path.name] = None
        return self._manifests[path.name]

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
        settings = self.settings()
        if "scorer_versions" not in settings:  # of a manifest of before
            return find_scorers(settings["scorers"])
        return kept_scorers(settings["scorers"], settings["scorer_versions"])

    def is_done(self, cell: Cell, scorers: Sequence[Scorer]) -> bool:
        """Whether the store has what the task was for: replies, and what every scorer says of them."""
        return self.looked_at(cell, scorers)[0] == DONE

    def looked_at(self, cell: Cell, scorers: Sequence[Scorer]) -> tuple[str, dict[str, Any] | None]:
        """done, failed or pending, as `state`, and the record of the replies where they are there: it is read once."""
        if cell.kind == ATTRIBUTION:
            record, is_done = None, self.store.paths.attribution_summary(cell.attribution_id).exists()
        else:
            record = self.store.record(cell)
            is_done = record is not None and not self.unscored(cell, scorers)
        if is_done:
            return DONE, record
        return FAILED if self.paths.failure(cell.id).exists() else PENDING, record

    def unscored(self, cell: Cell, scorers: Sequence[Scorer]) -> list[Scorer]:
        """The scorers that have not seen a cell's replies yet."""
        paths = self.store.cell_paths(cell)
        there = names_in(paths.scores)
        return [scorer for scorer in scorers if paths.score(scorer.key).name not in there]

    def state(self, cell: Cell, scorers: Sequence[Scorer]) -> str:
        """done, failed or pending; a record outweighs an old failure."""
        return self.looked_at(cell, scorers)[0]

    def unsettled(self, tasks: Iterable[Task], scorers: Sequence[Scorer]) -> list[Task]:
        """The tasks that somebody still has to run.

        A worker asks this before each batch. Of many tasks only those are looked at of which a listing of the directories shows
        something: over a network file system a listing costs as much as a few of the 20,000 looks that 10,000 cells take.
        """
        tasks = list(tasks)
        begun = self._begun() if len(tasks) > FEW else None

        def is_untouched(cell: Cell) -> bool:
            return begun is not None and begun.isdisjoint(_names(cell))

        return [task for task in tasks if is_untouched(task.cell) or self.state(task.cell, scorers) == PENDING]

    def _begun(self) -> set[str]:
        """The names of all cells and attributions that have left anything in the store, or a failure in this sweep."""
        paths = self.store.paths
        directories = (paths.cells, paths.baselines, paths.attributions)
        return {name for directory in directories for name in names_in(directory)} | {
            name.removesuffix(".json") for name in names_in(self.paths.failures)
        }

    def record_failure(self, cell: Cell, facts: dict[str, Any]) -> None:
        """Settle a cell as failed for good, for this sweep."""
        publish_json(self.paths.failure(cell.id), {"id": cell.id, "kind": cell.kind, **facts})

    def failure(self, cell: Cell) -> dict[str, Any] | None:
        """What is known of a cell's failure, or None; `exception` and `message` are always there."""
        path = self.paths.failure(cell.id)
        unknown = {"id": cell.id, "kind": cell.kind, "exception": "unknown", "message": f"the reason is lost: {path} is damaged"}
        try:
            found = read_json(path)
            return None if found is None else {**unknown, "message": "the reason was not written down", **found}
        except (ValueError, TypeError):
            return unknown

    def forget_failure(self, cell: Cell) -> None:
        """Let a failed cell run again, from its first attempt."""
        self.paths.failure(cell.id).unlink(missing_ok=True)
        for path in self._losses_of(cell):
            path.unlink(missing_ok=True)

    def record_loss(self, cell: Cell, token: str, facts: dict[str, Any]) -> None:
        """Write down that a worker ended while it held a cell.

        Args:
            cell: which it held.
            token: of its lease, so that whoever finds the same end writes the same file.
            facts: host, node, job, and the reason where it is known.
        """
        publish_json(self.paths.loss(cell.id, token), {"id": cell.id, **facts})

    def give_up(self, task: Task) -> None:
        """Settle a cell as failed that has cost as many workers as it may. They raised nothing: how they ended is what is known."""
        losses = self.losses(task.cell)
        last = losses[-1] if losses else {}
        where = f"job {last['job']} on {last.get('node')}" if last.get("job") else f"process {last.get('pid')} on {last.get('host')}"
        message = (
            f"{len(losses)} workers ended while they held it, the last one in {where}: {last.get('reason')}; "
            "it may need more memory or time (hydra.launcher.mem_gb, timeout_min); `emosteer-sweep retry` runs it again"
        )
        known = {key: last.get(key) for key in ("host", "node", "job", "time")}
        facts = {"exception": WORKER_LOST, "message": message, "traceback": "", "attempt": len(losses), **known}
        self.record_failure(task.cell, {**facts, "overrides": list(task.overrides)})

    def attempts(self) -> Counter[str]:
        """By cell id, how many workers have ended while they held the cell; at one look."""
        return Counter(name.rsplit(".", 2)[0] for name in names_in(self.paths.losses) if not name.startswith("."))

    def losses(self, cell: Cell) -> list[dict[str, Any]]:
        """What is known of the workers that ended while they held a cell, oldest first; a damaged file is left out."""
        return _read_losses(self._losses_of(cell))

    def all_losses(self) -> dict[str, list[dict[str, Any]]]:
        """The same of every cell that has cost a worker, by its id; at one look."""
        paths: dict[str, list[Path]] = defaultdict(list)
        for name in names_in(self.paths.losses):
            if not name.startswith("."):
                paths[name.rsplit(".", 2)[0]].append(self.paths.losses / name)
        return {cell_id: _read_losses(own) for cell_id, own in paths.items()}

    def _losses_of(self, cell: Cell) -> list[Path]:
        names = [name for name in names_in(self.paths.losses) if name.rsplit(".", 2)[0] == cell.id]
        return [self.paths.losses / name for name in names]


def _read_losses(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Oldest first; a damaged file, or one that is being forgotten, is left out."""
    found = []
    for path in paths:
        with contextlib.suppress(ValueError, FileNotFoundError):
            found.append((path.stat().st_mtime, dict(read_json(path) or {})))
    return [loss for _, loss in sorted(found, key=lambda one: one[0])]


def _tasks(manifest: dict[str, Any]) -> list[Task]:
    return [Task(Cell.from_json(t["cell"]), tuple(t["overrides"]), _files(t["files"])) for t in manifest["tasks"].values()]


def _files(files: Any) -> Mapping[str, str]:
    return files if isinstance(files, PackedFiles) else dict(files)


def _names(cell: Cell) -> list[str]:
    """Under which names the store keeps a task, or the sweep its failure."""
    return [cell.id, cell.attribution_id] if cell.kind == ATTRIBUTION else [cell.id]
