"""What older versions have left on people's disks still reads. `tests/fixtures/*/README.md` say how each was made."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from emosteer.records.cell import BASELINE, CELL, CONTROL
from emosteer.records.store import Store
from emosteer.records.sweep import DONE, Sweep
from emosteer.tables import build

FORMAT_1 = Path(__file__).parent.parent / "fixtures" / "store-format-1"


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    shutil.copytree(FORMAT_1, tmp_path / "outputs")
    return Sweep(tmp_path / "outputs" / "tiny", Store(tmp_path / "outputs" / "store"))


def test_every_cell_of_format_1_is_done_and_reads(sweep: Sweep, caplog: pytest.LogCaptureFixture) -> None:
    scorers, tasks = sweep.scorers(), sweep.tasks()

    assert sorted(task.cell.kind for task in tasks) == sorted([CELL, CONTROL, BASELINE])
    assert {sweep.state(task.cell, scorers) for task in tasks} == {DONE}
    for task in tasks:
        sweep.store.check(task.cell)
        record = sweep.store.record(task.cell)
        assert record is not None
        assert record["format"] == 1
        assert [reply.prompt_id for reply in sweep.store.replies(task.cell)] == [p.id for p in sweep.store.prompts(task.cell.prompts)]
        assert all(sweep.store.scores(task.cell, scorer.key, 3) for scorer in scorers)
    assert caplog.messages == []


def test_the_tables_of_format_1_come_out_as_they_did(sweep: Sweep) -> None:
    tables = build(sweep)
    with (FORMAT_1 / "tiny" / "results.csv").open() as file:
        then = {row["cell_id"]: row for row in csv.DictReader(file)}

    now = {str(row["cell_id"]): row for row in tables.results.to_dict("records")}
    assert list(now) == list(then)
    means = [key for key in next(iter(then.values())) if key.endswith(("_baseline", "_steered", "_delta"))]
    assert len(means) >= 3 * 16
    for cell_id, row in then.items():
        for key in means:
            assert float(now[cell_id][key]) == pytest.approx(float(row[key] or "nan"), nan_ok=True), (cell_id, key)
    assert len(tables.replies) == 9
