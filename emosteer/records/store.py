"""The store: replies, scores, vectors and attributions by content, shared by all sweeps.

Records are the truth: a cell is done when its directory with a readable `record.json` and replies is there, and nothing else says so.

What lies here may be truncated or edited by others than us. `record` looks at what costs nothing (the id, the size of the replies),
so that the state of thousands of cells is known at a glance; `replies`, which reads them all anyway, compares their digest, and the
cell in the record with its id. `check` does that for what a command is about to reuse. What is damaged is put aside, told, and made
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from emosteer.errors import Damaged, EmosteerError
from emosteer.records.cell import ATTRIBUTION, BASELINE, Cell
from emosteer.records.claims import Claims
from emosteer.records.paths import CellPaths, StorePaths
from emosteer.records.publish import parse_json, publish_directory, publish_file, publish_json, put_aside, read_bytes, read_json

log = logging.getLogger(__name__)

FORMAT = 2
"""Of `record.json`: 1 had no digest of the replies, and its first records no size either. Both are read."""
POLL_SECONDS = 0.5
DISCARDED = ".discarded-"
"""How the name of everything begins that `mode=force` replaces."""

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
        self._texts: dict[str, list[Any]] = {}

    def cell_paths(self, cell: Cell) -> CellPaths:
        return self.paths.cell(cell.id, cell.kind == BASELINE)

    def is_done(self, cell: Cell) -> bool:
        """Whether the cell's replies are there; a damaged record is put aside, told, and counts as missing."""
        return self.record(cell) is not None

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's record, or None; its id and the size of the replies are checked, and no more.

        Raises:
            EmosteerError: a newer emosteer has written it; it stays where it is.
        """
        paths = self.cell_paths(cell)
        if not paths.directory.is_dir():
            return None
        try:
            record = read_json(paths.record)
            size = paths.replies.stat().st_size
            # Records of before `replies_bytes` do not say.
            written = int(record["format"])
            if written <= FORMAT and record["id"] == cell.id and record.get("replies_bytes", size) == size:
                return dict(record)
            reason = "the replies have another size" if record["id"] == cell.id else f"it is of {record['id']}"
        except FileNotFoundError:
            reason, written = "the replies are gone", FORMAT
        except (ValueError, KeyError, TypeError, AttributeError):
            reason, written = "the record is no record", FORMAT
        if written > FORMAT:
            raise EmosteerError(f"{paths.record} is of format {written}, of a newer emosteer: update, or give another store")
        put_aside(paths.directory, reason, "the cell is run again")
        return None

    def check(self, cell: Cell, score_keys: Iterable[str] = ()) -> None:
        """Look through all that is kept of a cell before it is reused: what is damaged is put aside and told, and is run again."""
        if cell.kind == ATTRIBUTION:
            self.attribution_summary(cell.attribution_id)
        elif self.cell_paths(cell).directory.is_dir():
            with contextlib.suppress(Damaged):
                n_replies = len(self.replies(cell))
                for key in score_keys:
                    self.scores(cell, key, n_replies)

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
        lines = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in replies).encode()
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
            "replies_bytes": len(lines),
            "replies_sha256": hashlib.sha256(lines).hexdigest(),
        }

        def write(directory: Path) -> None:
            paths = CellPaths(directory)
            paths.replies.write_bytes(lines)
            for name, content in (extras or {}).items():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (directory / name).write_text(content, encoding="utf-8")
            paths.scores.mkdir()
            paths.record.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

        return publish_directory(self.cell_paths(cell).directory, write)

    def replies(self, cell: Cell) -> list[StoredReply]:
        """The replies of a cell that is done, each byte of them as it was written.

        Raises:
            Damaged: they were edited, or the record is of another cell than its id says; both are put aside by then.
        """
        paths, record = self.cell_paths(cell), self.record(cell)
        data = None if record is None else read_bytes(paths.replies)
        if record is None or data is None:
            raise Damaged(f"{cell.id} has no replies in {paths.directory.parent}; give the same command again")
        try:
            replies = [_reply(parse_json(line)) for line in data.decode().split("\n") if line]
            reason = _wrong_with(record, data, replies)
        except (ValueError, KeyError, TypeError, AttributeError):
            reason = "it does not read"
        if reason:
            put_aside(paths.directory, reason, "the cell is run again")
            raise Damaged(f"{paths.directory} was damaged: {reason}; give the same command again")
        return replies

    def discard(self, cell: Cell) -> None:
        """Forget a cell and what it was made with, so that all of it is made again (`mode=force`).

        Its vector and the model's residual norms too: who distrusts the replies has no reason to trust those.
        """
        for path in self._all_of(cell):
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(f"{DISCARDED}{path.name}-{uuid.uuid4().hex[:8]}"))

    def _all_of(self, cell: Cell) -> Iterator[Path]:
        if cell.kind == ATTRIBUTION:
            yield self.paths.attribution(cell.attribution_id)
            return
        yield self.cell_paths(cell).directory
        if cell.vector is not None:
            yield self.paths.vector(cell.vector_id)
            yield self.paths.vector_facts(cell.vector_id)
            yield self.paths.residual_norms(cell.norms_id)

    def scores(self, cell: Cell, key: str, n_replies: int | None = None) -> dict[str, list[float]] | None:
        """Stored scores under a scorer's key, or None; damaged ones are put aside, so that the scorer runs again.

        Args:
            cell: whose replies were scored.
            key: of the scorer.
            n_replies: how many values each metric must have; None where the caller does not know.
        """
        path = self.cell_paths(cell).score(key)
        try:
            stored = read_json(path)
            if stored is None and not path.exists():
                return None
            scores = {str(m): [_number(v) for v in values] for m, values in stored["metrics"].items()}
            reason = next((f"{m} has {len(v)} values" for m, v in scores.items() if n_replies not in (None, len(v))), "")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            reason = "these are no scores"
        if reason:
            put_aside(path, reason, "the scorer runs again")
            return None
        return scores

    def attribution_summary(self, key: str) -> dict[str, Any] | None:
        """The summary of a stored attribution, or None; one that is damaged, or whose scores are, is put aside with them."""
        directory, path = self.paths.attribution(key), self.paths.attribution_summary(key)
        if not directory.is_dir():
            return None
        try:
            summary = dict(read_json(path))
            scores = read_bytes(self.paths.attribution_scores(key)) or b""
            # Those of format 1 do not say the digest.
            if summary["id"] == key and scores and summary.get("scores_sha256", _sha256(scores)) == _sha256(scores):
                return summary
            reason = "its scores are not those that were written" if summary["id"] == key else f"it is of {summary['id']}"
        except (ValueError, KeyError, TypeError):
            reason = "its summary does not read"
        put_aside(directory, reason)
        return None

    def publish_scores(self, cell: Cell, key: str, facts: dict[str, Any], metrics: dict[str, list[float]]) -> None:
        """Keep what a scorer said of a cell's replies, beside them."""
        plain = {m: [float(v) if math.isfinite(v) else None for v in values] for m, values in metrics.items()}
        publish_json(self.cell_paths(cell).score(key), {**facts, "metrics": plain})

    def keep_texts(self, items: Sequence[Item]) -> str:
        """Keep what a cell's texts were when it was planned; their digest."""
        key = digest(items)
        path = self.paths.texts(key)
        if path.exists():
            with contextlib.suppress(Damaged):
                self._read_texts(key, LOADERS[type(items[0])])
        if not path.exists():
            publish_file(path, to_json_lines(items))
        return key

    def prompts(self, key: str) -> list[Prompt]:
        return self._read_texts(key, load_prompts)

    def contrastive_pairs(self, key: str) -> list[ContrastivePair]:
        return self._read_texts(key, load_contrastive_pairs)

    def diagnostic_pairs(self, key: str) -> list[DiagnosticPair]:
        return self._read_texts(key, load_diagnostic_pairs)

    def neutral_texts(self, key: str) -> list[NeutralText]:
        return self._read_texts(key, load_neutral_texts)

    def _read_texts(self, key: str, load: Callable[[Path], list[Item]]) -> list[Item]:
        """Kept texts, read once a process; raises Damaged where they are no longer what their digest says."""
        if key not in self._texts:
            path = self.paths.texts(key)
            if read_bytes(path) is None:
                raise Damaged(f"{path} is gone; give the same command again: it keeps its texts anew")
            try:
                items = load(path)
                intact = digest(items) == key
            except EmosteerError:
                intact = False
            if not intact:
                put_aside(path, "its digest is another", "the next command keeps its texts anew")
                raise Damaged(f"{path} was edited or truncated; give the same command again: it keeps its texts anew")
            self._texts[key] = items
        return list(self._texts[key])

    def obtain(self, key: str, claims: Claims, read: Callable[[], Made | None], make: Callable[[], None]) -> Made:
        """What `read` finds; where that is nothing, `make` it, unless another worker is at it already.

        Raises:
            EmosteerError: what this process has just made does not read: a disk that forgets is no place for results.
        """
        name, is_made = f"{key}.making", False
        while (found := read()) is None:
            if is_made:
                raise EmosteerError(f"{key} cannot be read back from {self.paths.root}; look at that disk")
            lease = claims.take(name)
            if lease is None:
                time.sleep(POLL_SECONDS)
                continue
            try:
                if read() is None:
                    make()
                    is_made = True
            finally:
                claims.release(lease)
        return found


LOADERS: dict[type, Callable[[Path], list[Any]]] = {
    Prompt: load_prompts,
    ContrastivePair: load_contrastive_pairs,
    DiagnosticPair: load_diagnostic_pairs,
    NeutralText: load_neutral_texts,
}


def _wrong_with(record: dict[str, Any], data: bytes, replies: Sequence[StoredReply]) -> str:
    """What tells that a record and its replies are not as they were written; empty where they are."""
    if Cell.from_json(record["cell"]).id != record["id"]:
        return "its cell is not the one that its id names"
    if "replies_sha256" in record:
        return "" if record["replies_sha256"] == _sha256(data) else "the replies were edited"
    # Of format 1.
    counts = (len(replies), sum(len(reply.tokens) for reply in replies))
    return "" if counts == (record["n_prompts"] * record["n_samples"], record["n_tokens"]) else "replies are missing"


def _reply(row: dict[str, Any]) -> StoredReply:
    return StoredReply(row["prompt_id"], row["sample"], row["reply"], tuple(row["tokens"]), row["finished"])


def _number(value: Any) -> float:
    """A stored score: null stands for NaN. Raises TypeError where it is none."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
