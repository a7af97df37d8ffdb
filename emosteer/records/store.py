"""The store: replies, scores, vectors and attributions by content, shared by all sweeps.

Records are the truth: a cell is done when its directory with a readable `record.json` and replies is there, and nothing else says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from emosteer.datasets import (
    ContrastivePair,
    DiagnosticPair,
    Item,
    NeutralText,
    Prompt,
    digest,
    load_contrastive_pairs,
    load_diagnostic_pairs,
    load_neutral_texts,
    load_prompts,
    to_json_lines,
)
from emosteer.records.cell import ATTRIBUTION, BASELINE, Cell
from emosteer.records.claims import Claims
from emosteer.records.paths import CellPaths, StorePaths
from emosteer.records.publish import publish_directory, publish_file, publish_json, read_json

log = logging.getLogger(__name__)

FORMAT = 1
"""Of `record.json`."""
POLL_SECONDS = 0.5

Made = TypeVar("Made")


@dataclass(frozen=True)
class StoredReply:
    """One reply as it was generated."""

    prompt_id: str
    sample: int
    reply: str
    tokens: tuple[int, ...]
    """Token ids, without the one that ended the reply."""
    finished: bool


@dataclass(frozen=True)
class Resolved:
    """What a cell's requests came to, once model and texts were at hand."""

    layers: tuple[int, ...] = ()
    coefficient_raw: float | None = None
    """Multiple of the raw vector; None where several blocks are steered, each with its own."""
    coefficient_fraction: float | None = None


@dataclass(frozen=True)
class Provenance:
    """Who ran a cell, and how long it took."""

    attempt: int
    seconds: float
    """The cell's share, by tokens, of the time that its batch had taken when it was done."""
    host: str
    device: str
    versions: dict[str, str]


class Store:
    """The shared store below one directory."""

    def __init__(self, root: Path) -> None:
        self.paths = StorePaths(root)

    def cell_paths(self, cell: Cell) -> CellPaths:
        return self.paths.cell(cell.id, cell.kind == BASELINE)

    def is_done(self, cell: Cell) -> bool:
        """Whether the cell's replies are there; a damaged record is put aside, told, and counts as missing."""
        return self.record(cell) is not None

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's record, or None."""
        paths = self.cell_paths(cell)
        if not paths.directory.is_dir():
            return None
        with contextlib.suppress(ValueError, KeyError, TypeError, FileNotFoundError):
            record = read_json(paths.record)
            size = paths.replies.stat().st_size
            # Records of before `replies_bytes` do not say.
            if record["id"] == cell.id and record.get("replies_bytes", size) == size:
                return dict(record)
        self._put_aside(paths, cell)
        return None

    def _put_aside(self, paths: CellPaths, cell: Cell) -> None:
        aside = paths.directory.with_name(f".damaged-{cell.id}-{uuid.uuid4().hex[:8]}")
        log.warning("%s is damaged: moved to %s, to be run again", paths.record, aside.name)
        # Another process may have been faster.
        with contextlib.suppress(FileNotFoundError):
            paths.directory.rename(aside)

    def publish(
        self,
        cell: Cell,
        replies: Sequence[StoredReply],
        resolved: Resolved,
        provenance: Provenance,
        extras: dict[str, str] | None = None,
    ) -> bool:
        """Put a finished cell into the store; False where another worker was first.

        Args:
            cell: what was run.
            replies: all of its replies, in the order of the prompts, then samples.
            resolved: see there.
            provenance: see there.
            extras: further files by name (config.yaml, .hydra/overrides.yaml, ...), for people.
        """
        record = {
            "format": FORMAT,
            "id": cell.id,
            "kind": cell.kind,
            "baseline_id": cell.baseline_id,
            "control_key": cell.control_key if cell.vector else None,
            "vector_id": cell.vector_id if cell.vector else None,
            "n_prompts": len({reply.prompt_id for reply in replies}),
            "n_samples": cell.generation.n_samples,
            "n_tokens": sum(len(reply.tokens) for reply in replies),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "resolved": asdict(resolved),
            "provenance": asdict(provenance),
            "cell": cell.to_json(),
        }

        def write(directory: Path) -> None:
            paths = CellPaths(directory)
            paths.replies.write_text("".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in replies), encoding="utf-8")
            for name, content in (extras or {}).items():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (directory / name).write_text(content, encoding="utf-8")
            paths.scores.mkdir()
            whole = record | {"replies_bytes": paths.replies.stat().st_size}
            paths.record.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

        return publish_directory(self.cell_paths(cell).directory, write)

    def replies(self, cell: Cell) -> list[StoredReply]:
        """The replies of a cell that is done."""
        lines = self.cell_paths(cell).replies.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        return [StoredReply(r["prompt_id"], r["sample"], r["reply"], tuple(r["tokens"]), r["finished"]) for r in rows]

    def discard(self, cell: Cell) -> None:
        """Forget a cell, so that it is run again (`mode=force`)."""
        is_attribution = cell.kind == ATTRIBUTION
        directory = self.paths.attribution(cell.attribution_id) if is_attribution else self.cell_paths(cell).directory
        if directory.exists():
            directory.rename(directory.with_name(f".discarded-{cell.id}-{uuid.uuid4().hex[:8]}"))

    def scores(self, cell: Cell, key: str) -> dict[str, list[float]] | None:
        """Stored scores under a scorer's key, or None; damaged ones are removed, so that the scorer runs again."""
        path = self.cell_paths(cell).score(key)
        try:
            stored = read_json(path)
        except ValueError:
            log.warning("%s is damaged: removed, to be computed again", path)
            path.unlink(missing_ok=True)
            return None
        if stored is None:
            return None
        return {m: [math.nan if v is None else float(v) for v in values] for m, values in stored["metrics"].items()}

    def publish_scores(self, cell: Cell, key: str, facts: dict[str, Any], metrics: dict[str, list[float]]) -> None:
        """Keep what a scorer said of a cell's replies, beside them."""
        plain = {m: [float(v) if math.isfinite(v) else None for v in values] for m, values in metrics.items()}
        publish_json(self.cell_paths(cell).score(key), {**facts, "metrics": plain})

    def keep_texts(self, items: Sequence[Item]) -> str:
        """Keep what a cell's texts were when it was planned; their digest."""
        key = digest(items)
        path = self.paths.texts(key)
        if not path.exists():
            publish_file(path, to_json_lines(items))
        return key

    def prompts(self, key: str) -> list[Prompt]:
        return load_prompts(self.paths.texts(key))

    def contrastive_pairs(self, key: str) -> list[ContrastivePair]:
        return load_contrastive_pairs(self.paths.texts(key))

    def diagnostic_pairs(self, key: str) -> list[DiagnosticPair]:
        return load_diagnostic_pairs(self.paths.texts(key))

    def neutral_texts(self, key: str) -> list[NeutralText]:
        return load_neutral_texts(self.paths.texts(key))

    def obtain(self, key: str, claims: Claims, read: Callable[[], Made | None], make: Callable[[], None]) -> Made:
        """What `read` finds; where that is nothing, `make` it, unless another worker is at it already."""
        name = f"{key}.making"
        while (found := read()) is None:
            lease = claims.take(name)
            if lease is None:
                time.sleep(POLL_SECONDS)
                continue
            try:
                if read() is None:
                    make()
            finally:
                claims.release(lease)
        return found


def short_hash(data: Any) -> str:
    """A hash of plain data, for keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:10]
