"""The store gives back what was put into it, and takes nothing damaged for a result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_sweep import PROVENANCE, made_up_cell, made_up_prompts, random_replies

from emosteer.errors import Damaged, EmosteerError
from emosteer.records.cell import ATTRIBUTION, Cell
from emosteer.records.claims import Claims
from emosteer.records.publish import publish_file, publish_json, read_json
from emosteer.records.store import Resolved, Store, StoredReply

NASTY = ["", "\n", "a\nb\r\nc", "\u2028\u2029\x85\x0b", "\U0001f600 é ß", '"\\', "\x00", "NaN"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def cell(store: Store) -> Cell:
    return made_up_cell(store)


def put(store: Store, cell: Cell, replies: list[StoredReply] | None = None) -> bool:
    return store.publish(
        cell, replies or random_replies(store, cell, 0), Resolved((2,), 3.0, 0.2), PROVENANCE, {".hydra/a.yaml": "a"}
    )


def test_replies_round_trip(store: Store, cell: Cell) -> None:
    replies = [StoredReply(f"p{i}", 0, text, (i, 70_000), i % 2 == 0) for i, text in enumerate(NASTY)]
    put(store, cell, replies)

    assert store.replies(cell) == replies
    assert Store(store.paths.root).replies(Cell.from_json(cell.to_json())) == replies


def test_the_record_says_what_was_run(store: Store, cell: Cell) -> None:
    assert store.record(cell) is None
    put(store, cell)
    record = store.record(cell)

    assert record is not None
    assert Cell.from_json(record["cell"]) == cell
    assert record["id"] == cell.id
    assert (record["baseline_id"], record["control_key"], record["vector_id"]) == (cell.baseline_id, cell.control_key, cell.vector_id)
    assert (record["n_prompts"], record["n_samples"], record["n_tokens"]) == (10, 1, 50)
    assert record["resolved"] == {"layers": [2], "coefficient_raw": 3.0, "coefficient_fraction": 0.2, "found": None}
    assert record["provenance"]["attempt"] == 1
    assert (store.cell_paths(cell).directory / ".hydra" / "a.yaml").read_text() == "a"


def test_baselines_lie_apart(store: Store, cell: Cell) -> None:
    put(store, cell.baseline())

    assert [path.name for path in (store.paths.root / "baselines").iterdir()] == [cell.baseline_id]
    assert store.is_done(cell.baseline())
    assert not store.is_done(cell)


def test_the_first_to_publish_stays(store: Store, cell: Cell) -> None:
    first = random_replies(store, cell, 1)
    assert put(store, cell, first)
    assert not put(store, cell, random_replies(store, cell, 2))

    assert store.replies(cell) == first


DAMAGES = {
    "record truncated": lambda d: (d / "record.json").write_text((d / "record.json").read_text()[:100]),
    "record empty": lambda d: (d / "record.json").write_text(""),
    "record of something else": lambda d: (d / "record.json").write_text("[]"),
    "record of another cell": lambda d: (d / "record.json").write_text(json.dumps({"id": "another"})),
    "record without id": lambda d: (d / "record.json").write_text("{}"),
    "record not text": lambda d: (d / "record.json").write_bytes(b"\xff\xfe\x00"),
    "record gone": lambda d: (d / "record.json").unlink(),
    "replies gone": lambda d: (d / "replies.jsonl").unlink(),
    "replies truncated": lambda d: (d / "replies.jsonl").write_bytes((d / "replies.jsonl").read_bytes()[:-20]),
    "replies empty": lambda d: (d / "replies.jsonl").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cell_is_put_aside_told_and_run_again(
    store: Store, cell: Cell, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, cell)
    directory = store.cell_paths(cell).directory
    DAMAGES[damage](directory)

    with caplog.at_level(logging.WARNING):
        assert not store.is_done(cell)

    assert "damaged" in caplog.text
    assert not directory.exists()
    assert [path.name.startswith(f".damaged-{cell.id}-") for path in directory.parent.iterdir()] == [True]
    assert put(store, cell), "there is room for the cell again"
    assert store.is_done(cell)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


EDITS: dict[str, Callable[[Path], object]] = {
    "a letter of a reply": lambda d: (d / "replies.jsonl").write_text((d / "replies.jsonl").read_text().replace("Reply", "Repli")),
    "a token": lambda d: (d / "replies.jsonl").write_text(
        re.sub(r"(\"tokens\": \[)\d", r"\g<1>7", (d / "replies.jsonl").read_text())
    ),
    "replies in another order": lambda d: (d / "replies.jsonl").write_text(
        "\n".join([*reversed((d / "replies.jsonl").read_text().split("\n")[:-1]), ""])
    ),
    "the record's coefficient": lambda d: edit_json(d / "record.json", lambda r: r["cell"].update(coefficient=0.3)),
    "the record's layers": lambda d: edit_json(d / "record.json", lambda r: r["cell"].update(layers=[3])),
    "the record's prompts": lambda d: edit_json(d / "record.json", lambda r: r["cell"].update(prompts="others")),
    "no cell in the record": lambda d: edit_json(d / "record.json", lambda r: r.pop("cell")),
}
"""None of them changes the size of the replies."""


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_seen_where_the_replies_are_read(store: Store, cell: Cell, edit: str, caplog: pytest.LogCaptureFixture) -> None:
    put(store, cell)
    directory = store.cell_paths(cell).directory
    size = store.cell_paths(cell).replies.stat().st_size
    EDITS[edit](directory)
    assert store.cell_paths(cell).replies.stat().st_size == size

    with caplog.at_level(logging.WARNING), pytest.raises(Damaged, match="give the same command again"):
        store.replies(cell)

    assert len(caplog.messages) == 1
    assert str(directory) in caplog.text
    assert not directory.exists()
    assert [path.name.startswith(f".damaged-{cell.id}-") for path in directory.parent.iterdir()] == [True]
    assert put(store, cell)
    assert len(store.replies(cell)) == 10


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_about_to_be_reused_is_looked_through(store: Store, cell: Cell, edit: str) -> None:
    store.check(cell)
    put(store, cell)
    store.check(cell)
    assert store.is_done(cell)
    EDITS[edit](store.cell_paths(cell).directory)

    store.check(cell)

    assert not store.is_done(cell)


def test_a_state_at_a_glance_reads_no_replies(store: Store, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, cell)
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read") if path.name == "replies.jsonl" else read(path))

    assert store.is_done(cell)


def test_what_a_newer_version_wrote_is_left_alone(store: Store, cell: Cell) -> None:
    put(store, cell)
    record = store.cell_paths(cell).record
    edit_json(record, lambda data: data.update(format=data["format"] + 1, replies_bytes="elsewhere"))

    with pytest.raises(EmosteerError, match=r"record.json is of format 3, of a newer emosteer: update"):
        store.is_done(cell)
    assert record.exists()


def test_replies_of_format_1_are_counted(store: Store, cell: Cell) -> None:
    """They have no digest; what is there must be as much as the record says."""
    put(store, cell)
    paths = store.cell_paths(cell)
    edit_json(paths.record, lambda record: [record.pop(key) for key in ("replies_sha256", "replies_bytes")])
    assert len(store.replies(cell)) == 10

    paths.replies.write_text("\n".join(paths.replies.read_text().split("\n")[:-2]))
    with pytest.raises(Damaged, match="missing"):
        store.replies(cell)


def test_two_who_find_the_same_damage_do_not_stumble(store: Store, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, cell)
    record = store.cell_paths(cell).record
    record.write_text("{")
    rename = Path.rename

    def raced(path: Path, target: Path) -> Path:
        if path == record.parent:
            rename(path, target.with_name(".damaged-by-another"))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", raced)

    assert not store.is_done(cell)


def test_a_discarded_cell_runs_again(store: Store, cell: Cell) -> None:
    store.discard(cell)
    put(store, cell)

    store.discard(cell)

    assert not store.is_done(cell)
    assert put(store, cell)
    assert store.is_done(cell)


def test_a_discarded_attribution_runs_again(store: Store, cell: Cell) -> None:
    attribution = attribution_of(cell)
    put_attribution(store, attribution)

    store.discard(attribution)

    assert store.attribution_summary(attribution.attribution_id) is None
    put_attribution(store, attribution)
    assert store.attribution_summary(attribution.attribution_id) is not None


def test_what_a_discarded_cell_was_made_with_is_made_again(store: Store, cell: Cell) -> None:
    """`mode=force`: who distrusts the replies has no reason to trust the vector. What was there is kept for a look."""
    behind = [store.paths.vector(cell.vector_id), store.paths.vector_facts(cell.vector_id), store.paths.residual_norms(cell.norms_id)]
    for path in behind:
        publish_file(path, "old")
    store.discard(cell.baseline())
    assert all(path.exists() for path in behind), "a baseline has no vector"

    store.discard(cell)

    assert not any(path.exists() for path in behind)
    kept = [next(path.parent.glob(f".discarded-{path.name}-*")) for path in behind]
    assert [path.read_text() for path in kept] == ["old"] * 3


def attribution_of(cell: Cell) -> Cell:
    return Cell(ATTRIBUTION, cell.model, pair=cell.pair, attribution=cell.attribution)


def put_attribution(store: Store, attribution: Cell, **more: str) -> None:
    key = attribution.attribution_id
    publish_file(store.paths.attribution_scores(key), b"scores")
    publish_json(store.paths.attribution_summary(key), {"id": key, "scores_sha256": hashlib.sha256(b"scores").hexdigest(), **more})


@pytest.mark.parametrize(
    "damage",
    [
        lambda summary, scores: summary.write_text("{"),
        lambda summary, scores: summary.write_text("[]"),
        lambda summary, scores: summary.write_text('{"id": "another"}'),
        lambda summary, scores: summary.unlink(),
        lambda summary, scores: scores.write_bytes(b"scared"),
        lambda summary, scores: scores.unlink(),
    ],
)
def test_a_damaged_attribution_is_put_aside(
    store: Store, cell: Cell, damage: Callable[[Path, Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    attribution = attribution_of(cell)
    key = attribution.attribution_id
    put_attribution(store, attribution)
    store.check(attribution)
    assert store.attribution_summary(key) is not None
    damage(store.paths.attribution_summary(key), store.paths.attribution_scores(key))

    store.check(attribution)

    assert len(caplog.messages) == 1
    assert store.attribution_summary(key) is None
    assert [path.name.startswith(f".damaged-{key}-") for path in store.paths.attributions.iterdir()] == [True]


def test_scores_round_trip_with_nan(store: Store, cell: Cell) -> None:
    put(store, cell)
    assert store.scores(cell, "mine-v1") is None

    values = [1.0, math.nan, -0.25, 1e-300, 1 / 3]
    store.publish_scores(cell, "mine-v1", {"scorer": "mine"}, {"a": values, "b": [0.0] * 5})
    back = store.scores(cell, "mine-v1")

    assert back is not None
    assert list(back) == ["a", "b"]
    assert [math.isnan(v) for v in back["a"]] == [False, True, False, False, False]
    assert [v for v in back["a"] if not math.isnan(v)] == [1.0, -0.25, 1e-300, 1 / 3]
    assert store.scores(cell, "mine-v2") is None


def test_damaged_scores_count_as_missing(store: Store, cell: Cell) -> None:
    put(store, cell)
    store.publish_scores(cell, "mine-v1", {}, {"a": [1.0]})
    path = store.cell_paths(cell).score("mine-v1")
    path.write_text(path.read_text()[:20])

    assert store.scores(cell, "mine-v1") is None
    assert not path.exists(), "else a scorer would never look at the replies again"


@pytest.mark.parametrize(
    "stored",
    [
        "[]",
        "{}",
        '{"metrics": 3}',
        '{"metrics": {"a": 3}}',
        '{"metrics": {"a": ["1.0", 2]}}',
        '{"metrics": {"a": [true, 2]}}',
        '{"metrics": {"a": [1.0, 2.0], "b": [1.0]}}',
        '{"metrics": {"a": [1.0, 2.0, 3.0]}}',
    ],
)
def test_what_is_no_score_of_each_reply_is_put_aside(store: Store, cell: Cell, stored: str, caplog: pytest.LogCaptureFixture) -> None:
    put(store, cell)
    path = store.cell_paths(cell).score("mine-v1")
    path.write_text(stored)

    assert store.scores(cell, "mine-v1", 2) is None
    assert len(caplog.messages) == 1
    assert str(path) in caplog.text
    assert [other.name.startswith(".damaged-mine-v1.json-") for other in path.parent.iterdir()] == [True]


@pytest.mark.parametrize("damage", [lambda text: text[:-5], lambda text: text.replace("Prompt 0", "Prompt 9"), lambda _: ""])
def test_damaged_texts_are_put_aside_and_kept_anew(
    store: Store, damage: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    prompts = made_up_prompts(3)
    key = store.keep_texts(prompts)
    path = store.paths.texts(key)
    path.write_text(damage(path.read_text()))

    with pytest.raises(Damaged, match="give the same command again"):
        Store(store.paths.root).prompts(key)
    with pytest.raises(Damaged, match="gone"):
        Store(store.paths.root).prompts(key)
    assert len(caplog.messages) == 1
    assert store.keep_texts(prompts) == key
    assert Store(store.paths.root).prompts(key) == prompts

    path.write_text(damage(path.read_text()))
    Store(store.paths.root).keep_texts(prompts)
    assert Store(store.paths.root).prompts(key) == prompts, "planning mends them without a word of complaint"


def test_texts_are_kept_by_content(store: Store) -> None:
    prompts = made_up_prompts(3)
    key = store.keep_texts(prompts)

    assert store.prompts(key) == prompts
    assert store.keep_texts(list(prompts)) == key
    assert store.keep_texts(prompts[:2]) != key
    assert store.keep_texts([dataclasses.replace(p, category="other") for p in prompts]) == key


def test_of_many_who_need_a_thing_one_makes_it(store: Store, tmp_path: Path) -> None:
    path, made, got = tmp_path / "vector.json", [], []
    start = threading.Barrier(4)

    def make() -> None:
        made.append(1)
        time.sleep(0.2)
        publish_json(path, {"made": len(made)})

    def need() -> None:
        claims = Claims(store.paths.claims, 60.0)
        start.wait()
        got.append(store.obtain("vector", claims, lambda: read_json(path), make))

    threads = [threading.Thread(target=need) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)

    assert made == [1]
    assert got == [{"made": 1}] * 4
    assert list(store.paths.claims.iterdir()) == []


def test_a_disk_that_forgets_is_told_and_not_asked_for_ever(store: Store) -> None:
    with pytest.raises(EmosteerError, match=r"vector cannot be read back from .*store; look at that disk"):
        store.obtain("vector", Claims(store.paths.claims, 60.0), lambda: None, lambda: None)


def test_what_making_raises_frees_the_claim(store: Store) -> None:
    claims = Claims(store.paths.claims, 60.0)

    def broken() -> None:
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        store.obtain("vector", claims, lambda: None, broken)
    assert list(store.paths.claims.iterdir()) == []
