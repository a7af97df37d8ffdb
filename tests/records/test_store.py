"""The store gives back what was put into it, and takes nothing damaged for a result."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import threading
import time
from pathlib import Path

import pytest
from made_up_sweep import PROVENANCE, made_up_cell, made_up_prompts, random_replies

from emosteer.records.cell import ATTRIBUTION, Cell
from emosteer.records.claims import Claims
from emosteer.records.publish import publish_json, read_json
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
    assert record["resolved"] == {"layers": [2], "coefficient_raw": 3.0, "coefficient_fraction": 0.2}
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
    attribution = Cell(ATTRIBUTION, cell.model, pair=cell.pair, attribution=cell.attribution)
    summary = store.paths.attribution_summary(attribution.attribution_id)
    publish_json(summary, {"id": attribution.attribution_id})

    store.discard(attribution)

    assert not summary.exists()


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


def test_what_making_raises_frees_the_claim(store: Store) -> None:
    claims = Claims(store.paths.claims, 60.0)

    def broken() -> None:
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        store.obtain("vector", claims, lambda: None, broken)
    assert list(store.paths.claims.iterdir()) == []
