"""Garbage is what nobody reads: everything that somebody may still want stays, whatever is asked for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_up_sweep import join, made_up_cell, publish, with_company

from emosteer.records.cell import ATTRIBUTION, Cell, VectorSpec
from emosteer.records.claims import Claims
from emosteer.records.garbage import DAY, HOUR, References, delete, find
from emosteer.records.publish import publish_directory, publish_file, publish_json
from emosteer.records.store import Store
from emosteer.records.sweep import Sweep

HERE = socket.gethostname()
WEEK = 7 * DAY


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # nothing here has to survive a power cut
    return Store(tmp_path / "outputs" / "store")


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def make(path: Path, age: float = 0.0) -> Path:
    """A file that was changed so many seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x" * 10)
    os.utime(path, (time.time() - age,) * 2)
    return path


def age_all(root: Path, seconds: float) -> None:
    """Let all below a directory have been changed so long ago."""
    for path in [root, *root.rglob("*")]:
        os.utime(path, (time.time() - seconds,) * 2)


def found(store: Store, *sweeps: Sweep, older_than: float = DAY, unreferenced: bool = False) -> set[Path]:
    """What may go."""
    references = References()
    for sweep in sweeps:
        references.add_sweep(sweep)
    return {path for one in find(store, references, older_than, unreferenced).garbage for path in one.paths}


def everything(store: Store) -> set[Path]:
    return set(store.paths.root.rglob("*"))


def keep_resources(store: Store, cell: Cell) -> list[Path]:
    """What a worker leaves beside a cell's record: its vector, the model's residual norms, the attribution."""
    paths = store.paths
    publish_file(paths.vector(cell.vector_id), b"directions")
    publish_json(paths.vector_facts(cell.vector_id), {"id": cell.vector_id})
    norms = paths.residual_norms(f"norms-{cell.model.fingerprint[-6:]}-{cell.neutral}")
    publish_json(norms, {"model": cell.model.identity(), "neutral_texts": cell.neutral, "residual_norm": [1.0]})
    if cell.attribution:
        paths.attribution(cell.attribution_id).mkdir(parents=True, exist_ok=True)
        publish_json(paths.attribution_summary(cell.attribution_id), {"id": cell.attribution_id})
    return [paths.vector(cell.vector_id), paths.vector_facts(cell.vector_id), norms]


def run(sweep: Sweep, *cells: Cell) -> None:
    """Join cells and their company to a sweep, and leave what a worker would."""
    company = [*with_company(cells), *(Cell(ATTRIBUTION, c.model, pair=c.pair, attribution=c.attribution) for c in cells)]
    join(sweep, company)
    for cell in company:
        if cell.kind != ATTRIBUTION:
            publish(sweep.store, sweep.scorers(), cell)
        if cell.vector:
            keep_resources(sweep.store, cell)


def cell_of(store: Store, number: int) -> Cell:
    """Cells that share neither prompts nor seed nor texts."""
    return made_up_cell(store, ("joy_sadness", "trust_disgust", "anger_fear")[number], n_prompts=3 + number, seed=number)


# --- what no sweep can miss


def test_a_store_in_use_has_no_garbage(store: Store) -> None:
    run(Sweep(store.paths.root.parent / "mine", store), cell_of(store, 0))
    age_all(store.paths.root, WEEK)

    assert found(store) == set(), "records refer to everything, also where no sweep is known"


@pytest.mark.parametrize("place", ["cells", "baselines", "vectors", "texts", "attributions", "residual_norms", "cells/a/scores"])
def test_unfinished_writes_go_when_their_writer_is_dead(store: Store, place: str, dead: int) -> None:
    root = store.paths.root / place
    gone = {
        make(root / f".tmp-a.json.{HERE}.{dead}.0123abcd"),
        make(root / f".tmp-b.json.elsewhere.{dead}.0123abcd", 2 * HOUR),
        make(root / ".tmp-of-who-knows", 2 * HOUR),
    }
    make(root / f".tmp-c.json.{HERE}.{os.getpid()}.0123abcd", WEEK)
    make(root / f".tmp-d.json.elsewhere.{dead}.0123abcd", HOUR / 2)
    make(root / ".tmp-of-who-knows-new")

    assert found(store) == gone


def test_the_names_that_publishing_gives_are_understood(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process writes stays while it lives, and is garbage once it is dead."""
    seen = []

    def write(directory: Path) -> None:
        (directory / "replies.jsonl").write_text("half")
        age_all(directory, WEEK)
        seen.append(found(store))
        with monkeypatch.context() as patched:
            patched.setattr("psutil.pid_exists", lambda pid: False)
            seen.append(found(store))
        raise KeyboardInterrupt

    store.paths.kinds["cells"].mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        publish_directory(store.paths.cell("x").directory, write)

    assert seen[0] == set()
    assert [path.name[: len(".tmp-x.")] for path in seen[1]] == [".tmp-x."]


def test_an_unfinished_directory_is_as_old_as_its_youngest_file(store: Store) -> None:
    unfinished = store.paths.kinds["cells"] / ".tmp-a.elsewhere.1.0123abcd"
    make(unfinished / "replies.jsonl", WEEK)
    os.utime(unfinished, (time.time() - WEEK,) * 2)
    assert found(store) == {unfinished}

    make(unfinished / "scores" / "nrc.json")
    os.utime(unfinished, (time.time() - WEEK,) * 2)
    assert found(store) == set()


def test_what_was_put_aside_goes(store: Store) -> None:
    cell, other = cell_of(store, 0), cell_of(store, 1)
    sweep = Sweep(store.paths.root.parent / "mine", store)
    run(sweep, cell, other)
    store.discard(cell)
    store.cell_paths(other).record.write_text("{broken")
    assert store.record(other) is None

    names = sorted(path.name.rsplit("-", 1)[0] for path in found(store, sweep) if path.parent == store.paths.kinds["cells"])
    assert names == [f".damaged-{other.id}", f".discarded-{cell.id}"]


def test_claims_of_the_dead_go_and_those_of_the_living_stay(store: Store, dead: int) -> None:
    claims = Claims(store.paths.claims, 60.0)
    leases = {
        name: claims.take(name) for name in ("mine", "stopped", "gone", "elsewhere", "elsewhere-silent", "x.making", "says-nothing")
    }

    def edit(name: str, age: float = 0.0, **changes: object) -> None:
        path = store.paths.claims / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        os.utime(path, (time.time() - age,) * 2)

    edit("stopped", WEEK)
    edit("gone", pid=dead)
    edit("x.making", pid=dead)
    edit("elsewhere", HOUR, host="elsewhere", pid=dead)
    edit("elsewhere-silent", 2 * DAY, host="elsewhere")
    make(store.paths.claims / "says-nothing", 2 * DAY)

    assert all(leases.values())
    assert {path.name for path in found(store)} == {"gone", "x.making", "elsewhere-silent", "says-nothing"}


def test_drafts_probes_and_graves_among_the_claims(store: Store, dead: int) -> None:
    claims = store.paths.claims
    owner = {"host": HERE, "pid": dead, "started": 0.0, "token": "t", "attempt": 1}
    make(claims / ".tmp-draft-of-the-dead").write_text(json.dumps(owner))
    make(claims / ".tmp-draft-elsewhere").write_text(json.dumps(owner | {"host": "elsewhere"}))
    make(claims / ".tmp-clock-old", 2 * HOUR)
    make(claims / ".tmp-clock-new")
    # A grave has the time of its lease's last touch; it was dug just now.
    make(claims / ".tmp-dead-new", 2 * HOUR)

    assert {path.name for path in found(store)} == {".tmp-draft-of-the-dead", ".tmp-clock-old"}


def test_vectors_and_norms_go_where_neither_record_nor_sweep_refers_to_them(store: Store) -> None:
    pending, forgotten = cell_of(store, 0), made_up_cell(store, "trust_disgust", neutral="other texts")
    sweep = Sweep(store.paths.root.parent / "mine", store)
    join(sweep, [pending])
    keep_resources(store, pending)
    files = keep_resources(store, forgotten)
    assert found(store, sweep) == set(), "young"

    age_all(store.paths.root, 2 * DAY)
    assert found(store, sweep) == set(files), "neither texts nor attributions, which cannot be made again from the store"
    assert found(store, sweep, older_than=WEEK) == set()

    publish(store, sweep.scorers(), forgotten)
    assert found(store, sweep) == set(), "the record of a forgotten sweep keeps what it was made of"
    assert not find(store, None, 0.0).garbage, "nothing is judged where references are not known"


# --- what no known sweep refers to


def test_records_go_on_request_only(store: Store) -> None:
    mine, other = (Sweep(store.paths.root.parent / name, store) for name in ("mine", "other"))
    run(mine, cell_of(store, 0))
    of_mine = everything(store)
    run(other, cell_of(store, 1))
    age_all(store.paths.root, 2 * DAY)

    assert found(store, mine) == set()
    assert found(store, mine, other, unreferenced=True) == set()
    gone = found(store, mine, unreferenced=True)
    assert gone.isdisjoint(of_mine)
    left = [path for path in everything(store) - of_mine - gone if not any(path.is_relative_to(one) for one in gone)]
    assert left == [], "all that the other sweep alone had"


def test_young_records_stay_with_all_that_they_need(store: Store) -> None:
    cell = cell_of(store, 0)
    run(Sweep(store.paths.root.parent / "forgotten", store), cell)
    age_all(store.paths.root, 2 * DAY)
    assert store.paths.attribution(cell.attribution_id) in found(store, unreferenced=True)

    publish(store, [], made_up := made_up_cell(store, n_prompts=3, seed=0, coefficient=0.5))
    kept = found(store, unreferenced=True)
    assert store.cell_paths(cell).directory in kept
    for path in (
        store.cell_paths(made_up).directory,
        store.cell_paths(made_up.baseline()).directory,
        store.paths.attribution(cell.attribution_id),
        store.paths.vector(cell.vector_id),
        store.paths.texts(cell.prompts),
    ):
        assert path not in kept
        assert path.exists()


def test_new_scores_make_a_record_young(store: Store) -> None:
    cell = cell_of(store, 0)
    publish(store, [], cell)
    age_all(store.paths.root, 2 * DAY)
    assert store.cell_paths(cell).directory in found(store, unreferenced=True)

    store.publish_scores(cell, "mine-v1", {}, {"words": [1.0]})
    assert store.cell_paths(cell).directory not in found(store, unreferenced=True)


@pytest.mark.parametrize("name", ["{cell}", "attribution-{attribution}", "{attribution}.making"])
def test_what_a_live_process_claims_stays(store: Store, name: str) -> None:
    cell = cell_of(store, 0)
    run(Sweep(store.paths.root.parent / "forgotten", store), cell)
    age_all(store.paths.root, 2 * DAY)
    claims = Claims(store.paths.claims, 60.0)
    lease = claims.take(name.format(cell=cell.id, attribution=cell.attribution_id))
    assert lease is not None
    held = store.cell_paths(cell).directory if name == "{cell}" else store.paths.attribution(cell.attribution_id)

    assert held not in found(store, unreferenced=True)
    claims.release(lease)
    assert held in found(store, unreferenced=True)


def test_ids_of_an_older_algorithm_are_references_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(store.paths.root.parent / "mine", store)
    with monkeypatch.context() as patched:
        patched.setattr("emosteer.records.cell.ALGORITHM", 0)
        run(sweep, cell_of(store, 0))
    age_all(store.paths.root, 2 * DAY)

    records = {path for name in ("cells", "baselines", "vectors") for path in store.paths.kinds[name].iterdir()}
    assert len(records) == 7
    assert records.isdisjoint(found(store, sweep, unreferenced=True))


def test_a_cell_refers_to_its_baseline_and_to_its_pairs_texts(store: Store) -> None:
    """Also where it is joined alone, and where its direction is random, so that the texts make no vector."""
    cell = made_up_cell(store, vector=VectorSpec("random", index=-1), attribution=None)
    references = References()
    references.add(cell)

    assert references.records == {cell.id, cell.baseline().id}
    assert {cell.prompts, cell.neutral, "texts of joy_sadness", "diagnostics of joy_sadness"} <= references.texts


# --- deleting


def test_what_was_found_is_deleted_and_the_rest_stays(store: Store, dead: int) -> None:
    mine, other = (Sweep(store.paths.root.parent / name, store) for name in ("mine", "other"))
    run(mine, cell_of(store, 0))
    kept = everything(store)
    run(other, cell_of(store, 1))
    make(store.paths.kinds["cells"] / f".tmp-a.{HERE}.{dead}.0123abcd" / "half")
    age_all(store.paths.root, 2 * DAY)
    references = References()
    references.add_sweep(mine)
    findings = find(store, references, DAY, unreferenced=True)
    done = delete(store, findings.garbage)

    assert done.deleted == findings.garbage
    assert not done.failed
    assert everything(store) == kept
    assert not find(store, references, DAY, unreferenced=True).garbage
    assert sum(one.n_bytes for one in findings.garbage) > 0


def test_what_changed_since_it_was_found_stays(store: Store, dead: int) -> None:
    claims = Claims(store.paths.claims, 60.0)
    lease = claims.take("taken over")
    assert lease is not None
    lease.path.write_text(json.dumps(json.loads(lease.path.read_text()) | {"pid": dead}))
    vanished = make(store.paths.kinds["vectors"] / ".tmp-a", 2 * HOUR)
    grown = make(store.paths.kinds["vectors"] / ".tmp-b", 2 * HOUR)
    cell = cell_of(store, 0)
    publish(store, [], cell)
    age_all(store.cell_paths(cell).directory, 2 * DAY)
    garbage = find(store, References(), DAY, unreferenced=True).garbage
    assert len(garbage) == 4

    assert claims.take("taken over") is not None
    vanished.unlink()
    grown.write_text("more")
    store.discard(cell)
    publish(store, [], cell)
    done = delete(store, garbage)

    assert (done.deleted, done.failed) == ([], {})
    assert len(done.changed) == 4
    assert lease.path.exists()
    assert grown.exists()
    assert store.is_done(cell)


def test_what_cannot_be_deleted_is_told_and_the_rest_goes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, other = (make(store.paths.kinds["vectors"] / name, 2 * HOUR) for name in (".tmp-a", ".tmp-b"))
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == stuck:
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    done = delete(store, find(store, None, DAY).garbage)

    assert done.failed == {stuck: "Permission denied"}
    assert [one.paths for one in done.deleted] == [(other,)]


def test_links_are_neither_followed_nor_deleted(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    make(outside / ".tmp-a", WEEK)
    make(outside / ".discarded-b" / "record.json", WEEK)
    kinds = store.paths.kinds
    kinds["cells"].mkdir(parents=True)
    kinds["vectors"].symlink_to(outside)
    (kinds["cells"] / ".tmp-link").symlink_to(outside)
    (kinds["cells"] / "cell").symlink_to(outside)
    held = kinds["cells"] / ".discarded-c"
    held.mkdir()
    (held / "link").symlink_to(outside)
    before = set(outside.rglob("*"))

    assert found(store, older_than=0.0, unreferenced=True) == {held}
    findings = find(store, References(), 0.0, unreferenced=True)
    delete(store, findings.garbage)
    assert not held.exists()
    assert set(outside.rglob("*")) == before
    assert (kinds["cells"] / ".tmp-link").is_symlink()


def test_a_directory_that_became_a_link_is_left(store: Store, tmp_path: Path) -> None:
    place = store.paths.kinds["vectors"]
    make(place / ".tmp-a", 2 * HOUR)
    garbage = find(store, None, DAY).garbage
    place.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")

    assert len(delete(store, garbage).changed) == 1
    assert (tmp_path / "moved" / ".tmp-a").exists()


def test_an_interrupted_deletion_leaves_what_the_next_one_takes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of(store, 0)
    publish(store, [], cell)
    age_all(store.paths.root, 2 * DAY)

    def interrupted(path: Path) -> None:
        (path / "record.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("emosteer.records.garbage.shutil.rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            delete(store, find(store, References(), DAY, unreferenced=True).garbage)
    assert not store.cell_paths(cell).directory.exists(), "a reader sees all of a record or nothing"

    delete(store, find(store, References(), DAY).garbage)
    assert list(store.paths.kinds["cells"].iterdir()) == []


def test_unknown_things_in_a_store_stay(store: Store) -> None:
    notes = make(store.paths.root / "notes.txt", WEEK)
    other = make(store.paths.root / "mine" / ".tmp-a", WEEK)

    assert found(store, older_than=0.0, unreferenced=True) == set()
    assert notes.exists()
    assert other.exists()
