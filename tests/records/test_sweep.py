"""A sweep is the union of its commands; a cell's state follows from records alone."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from made_up_sweep import SCORED, join, made_up_cell, publish, settings, with_company

from emosteer.errors import EmosteerError
from emosteer.records import sweep as sweeps
from emosteer.records.cell import ATTRIBUTION, Cell
from emosteer.records.publish import publish_json, read_json
from emosteer.records.store import Store
from emosteer.records.sweep import DONE, FAILED, PENDING, Command, Sweep, Task


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def sweep(tmp_path: Path, store: Store) -> Sweep:
    return Sweep(tmp_path / "mine", store)


def grid(store: Store, *coefficients: float) -> list[Cell]:
    return [made_up_cell(store, coefficient=coefficient) for coefficient in coefficients]


def summary(sweep: Sweep) -> dict[str, dict[str, object]]:
    return dict(json.loads(sweep.paths.summary.read_text()))


def test_two_commands_make_the_union(sweep: Sweep, store: Store) -> None:
    join(sweep, grid(store, 0.1, 0.2))
    join(sweep, grid(store, 0.2, 0.3))

    assert [task.cell.coefficient for task in sweep.tasks()] == [0.1, 0.2, 0.3]
    assert [task.cell for task in sweep.tasks()] == grid(store, 0.1, 0.2, 0.3)
    assert sweep.tasks()[0].overrides == ("coefficient=0.1",)


def test_the_newest_command_settles_scorers_and_statistics(sweep: Sweep, store: Store) -> None:
    join(sweep, grid(store, 0.1))
    only = {"words": {"_target_": "emosteer.scoring.fluency.words"}}
    join(sweep, grid(store, 0.1), scorers=only, statistics={"n_resamples": 5, "confidence": 0.9})

    assert sweep.settings()["statistics"] == {"n_resamples": 5, "confidence": 0.9}
    assert [scorer.name for scorer in sweep.scorers()] == ["words"]


def test_commands_of_the_same_second_keep_their_order(sweep: Sweep, store: Store) -> None:
    for number in range(20):
        join(sweep, grid(store, 0.1), number=number)

    assert [manifest["settings"]["number"] for manifest in sweep.manifests()] == list(range(20))


def test_sweep_json_grows_and_never_shrinks(sweep: Sweep, store: Store) -> None:
    join(sweep, grid(store, 0.1))
    first = summary(sweep)
    join(sweep, grid(store, 0.2))
    second = summary(sweep)

    assert first["id"] == "mine"
    assert set(first["cells"]) == {cell.id for cell in grid(store, 0.1)}
    assert set(second["cells"]) == {cell.id for cell in grid(store, 0.1, 0.2)}
    assert len(second["commands"]) == 2
    assert second["commands"][0] == first["commands"][0]  # type: ignore[index]


def test_commands_that_are_given_at_once_lose_nothing(sweep: Sweep, store: Store) -> None:
    cells = grid(store, *(i / 10 for i in range(1, 9)))
    start = threading.Barrier(8)

    def add(cell: Cell) -> None:
        start.wait()
        join(Sweep(sweep.paths.root, store), [cell])

    threads = [threading.Thread(target=add, args=(cell,)) for cell in cells]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {task.cell.id for task in sweep.tasks()} == {cell.id for cell in cells}
    sweep.write_summary()
    assert set(summary(sweep)["cells"]) == {cell.id for cell in cells}


def test_a_task_keeps_hydras_files(sweep: Sweep, store: Store) -> None:
    task = Task(grid(store, 0.1)[0], ("layer=2",), {".hydra/overrides.yaml": "- layer=2\n- é\n"})
    sweep.add(Command(["emosteer"], settings(), {}, [task]))

    assert Sweep(sweep.paths.root, store).tasks() == [task]


def test_states_follow_the_records(sweep: Sweep, store: Store) -> None:
    cell = grid(store, 0.1)[0]
    join(sweep, [cell])
    scorers = sweep.scorers()
    assert sweep.state(cell, scorers) == PENDING

    sweep.record_failure(cell, {"exception": "RuntimeError", "message": "no luck", "attempt": 1})
    assert sweep.state(cell, scorers) == FAILED
    assert sweep.unsettled(sweep.tasks(), scorers) == []
    assert sweep.failure(cell) == {
        "id": cell.id,
        "kind": "cell",
        "exception": "RuntimeError",
        "message": "no luck",
        "attempt": 1,
    }

    sweep.forget_failure(cell)
    sweep.forget_failure(cell)
    assert sweep.failure(cell) is None
    assert sweep.unsettled(sweep.tasks(), scorers) == sweep.tasks()

    publish(store, scorers, cell)
    assert sweep.state(cell, scorers) == DONE
    assert sweep.unsettled(sweep.tasks(), scorers) == []

    sweep.record_failure(cell, {})
    assert sweep.state(cell, scorers) == DONE, "a record outweighs an old failure"


def test_a_failure_is_of_the_sweep_and_not_of_the_store(sweep: Sweep, store: Store, tmp_path: Path) -> None:
    cell = grid(store, 0.1)[0]
    other = Sweep(tmp_path / "other", store)
    join(sweep, [cell])
    join(other, [cell])

    sweep.record_failure(cell, {})

    assert sweep.state(cell, sweep.scorers()) == FAILED
    assert other.state(cell, other.scorers()) == PENDING


def test_replies_without_all_scores_are_not_done(sweep: Sweep, store: Store) -> None:
    cell = grid(store, 0.1)[0]
    join(sweep, [cell])
    scorers = sweep.scorers()
    publish(store, scorers[:-1], cell)

    assert sweep.state(cell, scorers) == PENDING
    assert sweep.unscored(cell, scorers) == scorers[-1:]
    assert [scorer.name for scorer in scorers] == list(SCORED)
    assert sweep.state(cell, scorers[:-1]) == DONE


def test_every_kind_of_task_can_be_done(sweep: Sweep, store: Store) -> None:
    cell = made_up_cell(store)
    attribution = Cell(ATTRIBUTION, cell.model, pair=cell.pair, attribution=cell.attribution)
    join(sweep, [*with_company([cell]), attribution])
    scorers = sweep.scorers()
    for one in with_company([cell]):
        publish(store, scorers, one)

    assert [task.cell for task in sweep.unsettled(sweep.tasks(), scorers)] == [attribution]

    publish_json(store.paths.attribution_summary(attribution.attribution_id), {})
    assert sweep.unsettled(sweep.tasks(), scorers) == []


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"tasks": {"a": {}}}', "\x00\xff"])
def test_a_damaged_manifest_is_told_and_the_others_read(
    sweep: Sweep, store: Store, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for coefficient in (0.1, 0.2, 0.3):
        join(sweep, grid(store, coefficient), number=coefficient)
    newest = max(sweep.paths.commands.iterdir())
    whole = newest.read_bytes()
    newest.write_bytes(damage.encode("latin-1") or whole[: len(whole) // 2])
    again = Sweep(sweep.paths.root, store)

    assert [task.cell for task in again.tasks()] == grid(store, 0.1, 0.2)
    assert again.settings()["number"] == 0.2
    again.write_summary()
    assert len(caplog.messages) == 1
    assert str(newest) in caplog.text
    assert "give the command again" in caplog.text

    join(again, grid(store, 0.3))
    assert [task.cell for task in again.tasks()] == grid(store, 0.1, 0.2, 0.3)


def test_a_sweep_without_a_readable_command_says_so(sweep: Sweep, store: Store) -> None:
    join(sweep, grid(store, 0.1))
    next(iter(sweep.paths.commands.iterdir())).write_text("{")

    with pytest.raises(EmosteerError, match=r"mine/commands has no command that can be read; give the sweep's command again"):
        Sweep(sweep.paths.root, store).settings()


@pytest.mark.parametrize("damage", ["", "{", "[1]", "3", "{}"])
def test_a_damaged_failure_is_a_failure_for_an_unknown_reason(sweep: Sweep, store: Store, damage: str) -> None:
    cell = grid(store, 0.1)[0]
    join(sweep, [cell])
    sweep.record_failure(cell, {"exception": "RuntimeError", "message": "no luck"})
    sweep.paths.failure(cell.id).write_text(damage)

    failure = sweep.failure(cell)

    assert failure is not None
    assert failure["exception"] == "unknown"
    assert "the reason" in failure["message"]
    assert sweep.state(cell, sweep.scorers()) == FAILED
    sweep.forget_failure(cell)
    assert sweep.failure(cell) is None


@pytest.mark.parametrize("jump", [-6 * 3600, 6 * 3600])
def test_commands_keep_their_order_when_the_clock_jumps(
    sweep: Sweep, store: Store, jump: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, real = [0], time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + now[0] * 10**9)
    join(sweep, grid(store, 0.1), number=0)
    now[0] = jump
    join(sweep, grid(store, 0.1), number=1)
    now[0] = 0
    join(Sweep(sweep.paths.root, store), grid(store, 0.1), number=2)

    assert [manifest["settings"]["number"] for manifest in Sweep(sweep.paths.root, store).manifests()] == [0, 1, 2]
    assert Sweep(sweep.paths.root, store).settings()["number"] == 2


def test_a_command_reuses_nothing_that_was_edited(sweep: Sweep, store: Store) -> None:
    cells = grid(store, 0.1, 0.2, 0.3)
    join(sweep, cells[:1])
    scorers = sweep.scorers()
    for cell in cells:
        publish(store, scorers, cell)
    replies = store.cell_paths(cells[0]).replies
    replies.write_text(replies.read_text().replace("Reply", "Repli"))
    store.cell_paths(cells[1]).score(scorers[0].key).write_text('{"metrics": {"joy": [1.0]}}')

    join(sweep, cells)

    assert [store.is_done(cell) for cell in cells] == [False, True, True]
    assert [sweep.state(cell, scorers) for cell in cells] == [PENDING, PENDING, DONE]


def test_many_tasks_are_looked_at_by_listings(sweep: Sweep, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same is found as by looking at each, at the cost of those that have begun."""
    cells = with_company(grid(store, *(i / 100 for i in range(1, 61))))
    attributions = [
        Cell(ATTRIBUTION, one.model, pair=one.pair, attribution=one.attribution)
        for one in (made_up_cell(store), made_up_cell(store, "trust_disgust"), made_up_cell(store, "anger_fear"))
    ]
    join(sweep, [*cells, *attributions])
    scorers = sweep.scorers()
    for cell in (cells[0], cells[1], cells[5]):
        publish(store, scorers, cell)
    publish(store, scorers[:-1], cells[7])
    sweep.record_failure(cells[9], {})
    sweep.record_failure(attributions[0], {})
    publish_json(store.paths.attribution_summary(attributions[1].attribution_id), {})

    tasks = sweep.tasks()
    one_by_one = [task for task in tasks if sweep.state(task.cell, scorers) == PENDING]
    looked = []
    state = sweep.state
    monkeypatch.setattr(sweep, "state", lambda cell, scorers: looked.append(cell.id) or state(cell, scorers))

    assert sweep.unsettled(tasks, scorers) == one_by_one
    assert len(one_by_one) == len(tasks) - 6
    assert len(looked) == 7


def test_a_manifest_is_read_once(sweep: Sweep, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 10,000 cells takes a second; what another process adds is seen all the same."""
    join(sweep, grid(store, 0.1))
    mine = Sweep(sweep.paths.root, store)
    mine.tasks()
    join(sweep, grid(store, 0.2))
    read: list[Path] = []
    monkeypatch.setattr(sweeps, "read_json", lambda path: read.append(path) or read_json(path))

    for _ in range(3):
        assert [task.cell for task in mine.tasks()] == grid(store, 0.1, 0.2)
        assert len(mine.manifests()) == 2
        mine.settings()

    assert read == sorted(sweep.paths.commands.iterdir())[-1:]
