"""The report's last section: how the sweep was made, and what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from emosteer.records.cell import Cell
from emosteer.records.sweep import DONE, FAILED, PENDING, Sweep
from emosteer.report.words import count
from emosteer.tables import Tables

MOST_FAILURES = 200
MOST_COMMANDS = 50


@dataclass
class Failure:
    """A task that failed."""

    cell_id: str
    exception: str
    message: str
    where: str


@dataclass
class Making:
    """How a sweep was made."""

    counts: dict[str, int]
    """Tasks by state, and `total`."""
    commands: list[tuple[str, str]]
    """When a command was given, and its line; the newest last."""
    facts: list[tuple[str, list[str]]]
    """What is told -> its values."""
    failures: list[Failure]
    last: str
    """When the newest of the records was written; empty where there is none."""
    cut: str
    """What is left out; empty where nothing is."""

    @property
    def is_whole(self) -> bool:
        """Whether every task is done."""
        return self.counts["total"] == self.counts[DONE]


def making(sweep: Sweep, tables: Tables) -> Making:
    """How a sweep was made, from its commands' manifests and its cells' records."""
    cells = [task.cell for task in sweep.tasks()]
    states = Counter(tables.states.values())
    counts = {state: states[state] for state in (DONE, FAILED, PENDING)} | {"total": len(tables.states)}
    manifests = sweep.manifests()
    commands = [(_time(manifest["time"]), " ".join(map(str, manifest["line"]))) for manifest in manifests]
    failed = [cell for cell in cells if tables.states.get(cell.id) == FAILED]
    cut = []
    if len(commands) > MOST_COMMANDS:
        cut.append(f"{len(commands) - MOST_COMMANDS} older commands are left out; sweep.json has all.")
    if len(failed) > MOST_FAILURES:
        cut.append(f"{len(failed) - MOST_FAILURES} more failures are left out; results.csv and failures/ have all.")
    facts = [*_of_models(cells), *_of_data(cells), *_of_machines(manifests, tables), *_of_time(tables)]
    return Making(
        counts,
        commands[-MOST_COMMANDS:],
        [(label, values) for label, found in facts if (values := list(dict.fromkeys(found)))],
        [_failure(sweep, cell) for cell in failed[:MOST_FAILURES]],
        max((str(one["finished_at"]) for one in tables.provenance.values() if one.get("finished_at")), default=""),
        " ".join(cut),
    )


def _of_models(cells: Iterable[Cell]) -> Iterator[tuple[str, list[str]]]:
    models = {cell.model.key: cell.model for cell in cells}.values()
    yield (
        "Model",
        [
            f"{one.config.name}: {one.config.path}, revision {one.config.revision or 'the default'}, {one.fingerprint}, "
            f"{one.config.dtype}, {one.n_blocks} blocks"
            for one in models
        ],
    )


def _of_data(cells: list[Cell]) -> Iterator[tuple[str, list[str]]]:
    """The digests that enter ids: of all texts that the sweep read."""
    pairs = {cell.pair.name: cell.pair for cell in cells if cell.pair}.values()
    yield "Prompts", [f"{cell.prompts_name or 'prompts'}: {cell.prompts}" for cell in cells if cell.prompts]
    yield "Contrastive texts", [f"{pair.name}: {pair.texts}" for pair in pairs if pair.texts]
    yield "Diagnostic texts", [f"{pair.name}: {pair.diagnostics}" for pair in pairs if pair.diagnostics]
    yield "Neutral texts", [cell.neutral for cell in cells if cell.neutral]
    yield "Seeds", [str(seed) for seed in sorted({cell.seed for cell in cells})]
    yield "Baselines", [cell.baseline_id for cell in cells if cell.prompts]


def _of_machines(manifests: list[dict[str, Any]], tables: Tables) -> Iterator[tuple[str, list[str]]]:
    """Versions and hardware, of the commands and of the cells."""
    makers = [manifest["provenance"] for manifest in manifests]
    yield "emosteer", [_revision(maker) for maker in makers]
    yield "Python", [str(maker["python"]) for maker in makers if maker.get("python")]
    records = tables.provenance.values()
    versions = ((name, version) for one in records for name, version in (one.get("versions") or {}).items())
    yield "Versions", [f"{name} {version}" for name, version in sorted(set(versions))]
    yield "Hardware", [_machine(one) for one in records]
    yield "Ways through the model", [f"{one['engine_path']}: {one.get('engine_reason')}" for one in records if one.get("engine_path")]


def _revision(maker: dict[str, Any]) -> str:
    git = maker.get("git")
    changed = ", with uncommitted changes" if maker.get("git_dirty") else ""
    return f"{maker.get('emosteer', 'unknown')}" + (f", git {git}{changed}" if git else "")


def _machine(one: dict[str, Any]) -> str:
    parts = [str(one.get("device", "device unknown")), f"on {one.get('node') or one.get('host') or 'an unknown host'}"]
    parts += [f"{one['threads']} threads"] if one.get("threads") else []
    return ", ".join(parts)


def _of_time(tables: Tables) -> Iterator[tuple[str, list[str]]]:
    seconds = pd.to_numeric(tables.results["seconds"], errors="coerce") if "seconds" in tables.results else pd.Series(dtype=float)
    yield (
        "Time",
        [f"{_span(float(seconds.sum()))} for {count(int(seconds.notna().sum()), 'cell')} and control"] if seconds.any() else [],
    )
    again = sum(max(int(one.get("attempt") or 1) - 1, 0) for one in tables.provenance.values())
    yield "Attempts", [f"{again} over the first"] if again else []


def _failure(sweep: Sweep, cell: Cell) -> Failure:
    facts = sweep.failure(cell) or {}
    where = ", ".join(str(facts[key]) for key in ("node", "host", "job") if facts.get(key))
    return Failure(cell.id, str(facts.get("exception")), str(facts.get("message")), where)


def _time(stamp: str) -> str:
    """A manifest's time, as people write it."""
    is_stamp = len(stamp) == 16 and stamp[8] == "T"
    return f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]} {stamp[9:11]}:{stamp[11:13]} UTC" if is_stamp else stamp


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
