"""A sweep is the union of its commands; a cell's state follows from records alone."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from made_up_sweep import SCORED, join, made_up_cell, publish, settings, with_company

from emosteer.records.cell import ATTRIBUTION, Cell
from emosteer.records.publish import publish_json
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
