"""What each worker of a sweep's SLURM jobs says of itself: a small file that it replaces every few seconds.

For people and for `emosteer-sweep status` and `watch`. Nothing is decided by it: records say what is done, leases who holds what.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from emosteer.records.paths import SlurmPaths
from emosteer.records.publish import publish_json, read_json

UNFINISHED = 75
"""Exit code of a worker that SLURM is to start again: there is more to do, but not here and now."""


@dataclass
class WorkerState:
    """One attempt of one worker: a job that SLURM has started again leaves one for each start."""

    job: str
    """As SLURM names it: `17`, or `17_3` for a task of an array."""
    restarts: int
    """How often SLURM had started the job again."""
    submission: str
    """Token of the submission that brought it."""
    host: str
    node: str
    pid: int
    started: float
    """Seconds since 1970, as is `seen`."""
    seen: float
    """When it wrote this."""
    stage: str = "starting"
    published: int = 0
    """Cells, controls and baselines whose replies it has published."""
    failed: int = 0
    """Of those that it ran."""
    tokens: int = 0
    """That it has generated."""
    tokens_per_second: float = 0.0
    """While it generated, lately."""
    engine_path: str = ""
    """Which way its engine goes through the model; empty before one is loaded."""
    engine_reason: str = ""
    """Why that one."""
    batch_rows: int = 0
    """Rows that a batch has room for."""
    rows: float = 0.0
    """Rows in the mean forward that generated."""
    spent: dict[str, float] = field(default_factory=dict)
    """What its seconds have gone to: loading, prefill, decode, scoring, writing, ..."""
    ended: str | None = None
    """Why it left; None while it works, and for ever where it was killed."""
    exit_code: int | None = None

    @property
    def has_left(self) -> bool:
        """Whether it takes no more cells, by its own word, and its job is not to start again."""
        return self.ended is not None and self.exit_code != UNFINISHED

    def write(self, paths: SlurmPaths) -> None:
        """Put it in its place; raises Unwritable."""
        publish_json(paths.worker(self.job, self.restarts), asdict(self))


def workers(paths: SlurmPaths) -> list[WorkerState]:
    """All workers that have ever started, oldest first; a damaged file is left out: its worker writes it again."""
    return sorted(_read(paths.workers), key=lambda worker: worker.started)


def shares(workers: Iterable[WorkerState]) -> dict[str, float]:
    """What the time of workers has gone to, as shares of all of it, the largest first; nothing where none has said."""
    seconds: Counter[str] = Counter()
    for worker in workers:
        seconds.update(worker.spent)
    return {part: spent / seconds.total() for part, spent in seconds.most_common() if spent}


def _read(directory: Path) -> Iterator[WorkerState]:
    names = {one.name for one in fields(WorkerState)}
    for path in sorted(directory.glob("*.json")):
        if path.name.startswith("."):
            continue
        with contextlib.suppress(ValueError, TypeError):
            found: dict[str, Any] = dict(read_json(path) or {})
            yield WorkerState(**{key: value for key, value in found.items() if key in names})
