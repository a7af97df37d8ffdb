"""What lies in a store and nobody reads.

A sweep names its store, and a store names no sweep: one that is not known here may still refer to a record. So there are two sorts.

- What no sweep can miss, known or not: unfinished writes of dead processes, records that `mode=force` replaced or that were found
  damaged, claims of dead processes, and old vectors, residual norms, stories and coefficients that were found, to which neither a
  record nor a known sweep refers (a worker that wants one makes it again).
- On request only: cells, baselines and attributions that no known sweep refers to, and the texts of which nothing would be left.

Scores of another scorer, or of another version of one, are left: a sweep that names that scorer still reads them, so does an older
emosteer, and they are small beside the model time that they cost.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR
from typing import Any

import psutil

from emosteer.records.cell import ATTRIBUTION, Cell, VectorSpec
from emosteer.records.leases import Holder, Process, holder, holders
from emosteer.records.paths import CellPaths, SweepPaths
from emosteer.records.publish import TEMPORARY, read_json
from emosteer.records.store import Store
from emosteer.records.sweep import Sweep

UNFINISHED, DISCARDED, DAMAGED, CLAIM = "unfinished", "discarded", "damaged", "claim"
VECTOR, NORMS, STORIES, STRENGTH = "vector", "residual norms", "stories", "strength"
CELL, BASELINE, TEXTS = "cell", "baseline", "texts"
PUT_ASIDE = {".discarded-": DISCARDED, ".damaged-": DAMAGED}
GRAVE = f"{TEMPORARY}dead-"

HOUR, DAY = 3600.0, 86400.0
UNFINISHED_SECONDS = HOUR
"""No write takes as long: what another host left unfinished for longer, it will not finish."""
BEAT_SECONDS = 15.0
"""A process that is known to be gone may have written for so long after it was seen last."""
CLAIM_SECONDS = DAY
"""A lease says neither whose sweep it is of nor when it expires: one that is silent for so long has, whatever the sweep's knob."""


@dataclass(frozen=True)
class Garbage:
    """One thing that may go: a record, a vector (two files), a claim, an unfinished write."""

    kind: str
    paths: tuple[Path, ...]
    n_bytes: int
    why: str
    stamps: tuple[tuple[int, int], ...]
    """Inode and time of change of each path when it was looked at."""


@dataclass
class Findings:
    """What a look at a store found."""

    garbage: list[Garbage] = field(default_factory=list)
    n_young: int = 0
    """Unreferenced things that are younger than asked for."""
    n_held: int = 0
    """Unreferenced things that a live process claims."""


@dataclass
class Deletion:
    """What became of the garbage."""

    deleted: list[Garbage] = field(default_factory=list)
    changed: list[Garbage] = field(default_factory=list)
    """Left alone: it vanished, or is no longer what was looked at."""
    failed: dict[Path, str] = field(default_factory=dict)
    """What could not be deleted, and why."""


@dataclass
class References:
    """The ids of what somebody refers to."""

    records: set[str] = field(default_factory=set)
    """Cells, controls and baselines."""
    attributions: set[str] = field(default_factory=set)
    vectors: set[str] = field(default_factory=set)
    norms: set[str] = field(default_factory=set)
    """Model and neutral texts, as `_norms_key` writes them."""
    strengths: set[str] = field(default_factory=set)
    stories: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)

    def add(self, cell: Cell) -> None:
        """All that a cell needs, itself included."""
        if cell.kind != ATTRIBUTION:
            self.records |= {cell.id, cell.baseline_id}
        if cell.vector:
            self.vectors |= {cell.vector_id, cell.vector.like}
            self._add_texts(cell.vector)
        if cell.strength:
            self.strengths.add(cell.strength_id)
            self.vectors.add(cell.owner().vector_id)
            self._add_texts(cell.strength.vector)
        if cell.pair:
            self.texts |= {cell.pair.texts, cell.pair.diagnostics}
        if cell.attribution:
            self.attributions.add(cell.attribution_id)
            self.texts.add(cell.attribution.diagnostics)
        self.stories |= set(cell.stories_ids.values())
        self.norms.add(_norms_key(cell.model.identity(), cell.neutral))
        self.texts |= {cell.prompts, cell.neutral}

    def _add_texts(self, vector: VectorSpec) -> None:
        self.texts |= {vector.texts, *vector.others, *(part.texts for part in (*vector.plus, *vector.without))}

    def add_sweep(self, sweep: Sweep) -> None:
        """All that the commands of a sweep refer to, whether it is there or not."""
        for manifest in sweep.manifests():
            for cell_id, task in manifest["tasks"].items():
                self.records.add(cell_id)
                self.add(Cell.from_json(task["cell"]))

    def add_record(self, record: dict[str, Any]) -> None:
        """All that a stored record needs: by the ids that were valid when it was written, and by those that are now."""
        self.records |= {record["id"], record["baseline_id"]}
        self.vectors.add(record["vector_id"] or "")
        self.add(Cell.from_json(record["cell"]))


def find(
    store: Store,
    references: References | None,
    older_than: float,
    unreferenced: bool = False,
    sweeps: Sequence[SweepPaths] = (),
    gone: Mapping[Process, float] | None = None,
) -> Findings:
    """What may go of a store, and of what its sweeps' writers left unfinished; nothing is changed.

    Args:
        store: whose directory is looked through. Symbolic links in it are passed by.
        references: of every sweep that is known; None where they cannot be known: then no reference is judged.
        older_than: seconds; what is referred to by nobody and was changed since then stays.
        unreferenced: whether records and texts that no known sweep refers to may go too.
        sweeps: in whose own directories unfinished writes are looked for.
        gone: processes on other hosts that are known to have ended, and when they wrote last, in seconds since 1970: what they
            left need not be old.
    """
    dead = _Dead(gone or {})
    claims = [store.paths.claims, *(paths.slurm.locks for paths in sweeps)]
    findings = Findings([*_unfinished(store, sweeps, dead), *_put_aside(store), *_dead_claims(claims, dead)])
    if references is not None:
        _Unreferenced(store, references, older_than, findings, dead).look(unreferenced)
    return findings


def delete(store: Store, garbage: Iterable[Garbage], sweeps: Iterable[SweepPaths] = ()) -> Deletion:
    """Delete what `find` found, save what changed since.

    Records leave their place by a rename, so that a reader sees all of one or nothing, and a second call ends what this one
    may have to leave.
    """
    roots, deletion = [store.paths.root.resolve(), *(paths.root.resolve() for paths in sweeps)], Deletion()
    for one in garbage:
        is_same = True
        for path, stamp in zip(one.paths, one.stamps, strict=True):
            try:
                is_same &= _delete(path, stamp, roots)
            except OSError as error:
                deletion.failed[path] = error.strerror or str(error)
        if not any(path in deletion.failed for path in one.paths):
            (deletion.deleted if is_same else deletion.changed).append(one)
    return deletion


def _delete(path: Path, stamp: tuple[int, int], roots: Iterable[Path]) -> bool:
    """Whether the path was still what was looked at, and is gone."""
    if not any(path.parent.resolve().is_relative_to(root) for root in roots) or _stamp(path) != stamp:
        return False
    try:
        if not path.is_dir():
            path.unlink()
            return True
        if not path.name.startswith("."):
            path = path.rename(path.with_name(f".discarded-{path.name}-{uuid.uuid4().hex[:8]}"))
        shutil.rmtree(path)
    except FileNotFoundError:
        # Somebody else deletes it too.
        return False
    return True


class _Unreferenced:
    """The look for what nobody refers to, from records to what they are made of: what goes no longer counts as a reference."""

    def __init__(self, store: Store, references: References, older_than: float, findings: Findings, dead: _Dead) -> None:
        self.store, self.references, self.findings = store, references, findings
        self.since = time.time() - older_than
        self.held = {name for name, one in holders(store.paths.claims).items() if not dead.is_holder(one)}

    def look(self, with_records: bool) -> None:
        """Judge the store's records, where asked for, then what they are made of."""
        kinds, known = self.store.paths.kinds, self.references
        for kind, place in ((CELL, kinds["cells"]), (BASELINE, kinds["baselines"])):
            for directory in _visible(place):
                if not (with_records and self._goes(kind, directory.name, [directory], known.records)):
                    self._count_record(directory)
        if with_records:
            for directory in _visible(kinds["attributions"]):
                self._goes(ATTRIBUTION, directory.name, [directory], known.attributions)
            for path in _visible(kinds["texts"]):
                self._goes(TEXTS, path.stem, [path], known.texts)
        self._look_at_vectors(kinds["vectors"])
        for path in _visible(kinds["stories"]):
            self._goes(STORIES, path.stem, [path], known.stories)
        for path in _visible(kinds["residual_norms"]):
            self._goes(NORMS, path.stem, [path], {path.stem} if _key_of_norms(path) in known.norms else set())
        for path in _visible(kinds["strengths"]):
            self._goes(STRENGTH, path.stem, [path], known.strengths)

    def _look_at_vectors(self, place: Path) -> None:
        files: dict[str, list[Path]] = {}
        for path in _visible(place):
            files.setdefault(path.stem, []).append(path)
        for vector_id, paths in files.items():
            self._goes(VECTOR, vector_id, paths, self.references.vectors)

    def _goes(self, kind: str, name: str, paths: list[Path], references: set[str]) -> bool:
        """Whether a thing may go; it is among the findings then."""
        if name in references:
            return False
        if {name, f"{name}.making", f"{ATTRIBUTION}-{name}", f"residual_norms-{name}.making", f"stories-{name}.making"} & self.held:
            self.findings.n_held += 1
            return False
        one, newest = _measured(kind, paths, "no record or known sweep refers to it")
        if newest > self.since:
            self.findings.n_young += 1
            return False
        self.findings.garbage.append(one)
        return True

    def _count_record(self, directory: Path) -> None:
        """A record that stays keeps what it needs. One that cannot be read will be run again, and keeps nothing."""
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, OSError):
            self.references.add_record(read_json(CellPaths(directory).record))


@dataclass(frozen=True)
class _Dead:
    """Which processes have ended: this host's that are no more, others where it is known, or where they are silent for long."""

    gone: Mapping[Process, float]

    def is_holder(self, one: Holder) -> bool:
        """Whether who holds a lease has ended."""
        # A silent process on this host may have been stopped for the night: while it lives, what it claims is its own.
        if one.host == socket.gethostname():
            return one.is_gone
        return one.process in self.gone or one.silent_seconds > CLAIM_SECONDS

    def is_writer(self, path: Path, newest: float) -> bool:
        """Whether who wrote a temporary file has ended. A later process may have the number of one that is gone: the time tells."""
        place, pid = _writer(path)
        if pid is not None and place.endswith(f".{socket.gethostname()}"):
            return not psutil.pid_exists(pid)
        lasts = [last for process, last in self.gone.items() if process.pid == pid and place.endswith(f".{process.host}")]
        return newest < max(lasts, default=0.0) + BEAT_SECONDS or time.time() - newest > UNFINISHED_SECONDS


def _unfinished(store: Store, sweeps: Iterable[SweepPaths], dead: _Dead) -> Iterator[Garbage]:
    """Temporary files and directories whose writers are dead."""
    kinds = store.paths.kinds
    places = [place for name, place in kinds.items() if name != "claims"]
    scores = [CellPaths(directory).scores for name in ("cells", "baselines") for directory in _visible(kinds[name])]
    for path in _beginning(TEMPORARY, *places, *scores, *(place for paths in sweeps for place in paths.written)):
        one, newest = _measured(UNFINISHED, [path], "its writer is dead")
        if dead.is_writer(path, newest):
            yield one
    for path in _beginning(TEMPORARY, kinds["claims"], *(paths.slurm.locks for paths in sweeps)):
        if _is_left(path):
            yield _measured(UNFINISHED, [path], "its writer is dead")[0]


def _writer(path: Path) -> tuple[str, int | None]:
    """Of a temporary file, `.tmp-<name>.<host>.<number>.<token>`: all that stands before the number of its writer, and that number.

    Names and hosts may hold dots: what stands before ends with the host.
    """
    place, _, pid = path.name.rpartition(".")[0].rpartition(".")
    return place, int(pid) if pid.isdecimal() else None


def _is_left(path: Path) -> bool:
    """Whether a temporary file among the claims, which lives for milliseconds, was left by a process that died."""
    try:
        state = path.lstat()
    except FileNotFoundError:
        return False
    if path.name.startswith(GRAVE):
        # A dead lease on its way out has the time of its last touch: when it was renamed is what counts.
        return time.time() - max(state.st_mtime, state.st_ctime) > UNFINISHED_SECONDS
    owner = holder(path)
    if owner is None or owner.host != socket.gethostname():
        return time.time() - state.st_mtime > UNFINISHED_SECONDS
    return owner.is_gone


def _put_aside(store: Store) -> Iterator[Garbage]:
    """Records that `mode=force` replaced, or that were damaged."""
    whys = {DISCARDED: "mode=force, or an interrupted gc", DAMAGED: "could not be read, and is run again"}
    for beginning, kind in PUT_ASIDE.items():
        for path in _beginning(beginning, *store.paths.kinds.values()):
            yield _measured(kind, [path], whys[kind])[0]


def _dead_claims(directories: Iterable[Path], dead: _Dead) -> Iterator[Garbage]:
    """Leases of processes that are dead, or silent for so long that no sweep waits for them."""
    for path in (path for directory in directories for path in _visible(directory)):
        one = holder(path)
        if one is not None and dead.is_holder(one):
            yield _measured(CLAIM, [path], _why_dead(one, dead))[0]


def _why_dead(one: Holder, dead: _Dead) -> str:
    if one.is_gone:
        return f"process {one.pid} is gone"
    return f"job {one.job} has ended" if one.process in dead.gone else f"silent for {one.silent_seconds / DAY:.0f} days"


def _visible(directory: Path) -> list[Path]:
    """What lies in one of the store's directories under a name of its own, without symbolic links."""
    return [path for path in _entries(directory) if not path.name.startswith(".")]


def _beginning(beginning: str, *directories: Path) -> list[Path]:
    return [path for directory in directories for path in _entries(directory) if path.name.startswith(beginning)]


def _entries(directory: Path) -> list[Path]:
    if directory.is_symlink():
        return []
    try:
        with os.scandir(directory) as entries:
            return sorted(Path(entry.path) for entry in entries if not entry.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _measured(kind: str, paths: list[Path], why: str) -> tuple[Garbage, float]:
    """A thing with its size, and when it was changed last."""
    n_bytes, newest = 0, 0.0
    for path in paths:
        for state in _states(path):
            n_bytes += 0 if S_ISDIR(state.st_mode) else state.st_size
            newest = max(newest, state.st_mtime)
    return Garbage(kind, tuple(paths), n_bytes, why, tuple(_stamp(path) for path in paths)), newest


def _states(path: Path) -> Iterator[os.stat_result]:
    """Of a path and all below it; links are not followed, and what vanishes meanwhile is passed by."""
    try:
        yield path.lstat()
        if path.is_dir() and not path.is_symlink():
            for child in path.iterdir():
                yield from _states(child)
    except (FileNotFoundError, NotADirectoryError):
        return


def _stamp(path: Path) -> tuple[int, int]:
    try:
        state = path.lstat()
    except FileNotFoundError:
        return (0, 0)
    return state.st_ino, state.st_mtime_ns


def _norms_key(model: dict[str, Any], neutral: str) -> str:
    return json.dumps([model, neutral], sort_keys=True)


def _key_of_norms(path: Path) -> str | None:
    """The key of a file of residual norms, from what it says of itself."""
    with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
        stored = read_json(path)
        return _norms_key(stored["model"], stored["neutral_texts"])
    return None
