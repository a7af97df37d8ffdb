"""A disk that fills: nothing half-written is taken for whole, the error says where and what to do, and there is a way on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from disks import fill, small_disk
from made_up_sweep import PROVENANCE, join, made_up_cell, publish, random_replies, with_company
from PIL import Image

from emosteer import finaliser
from emosteer.errors import Unwritable
from emosteer.records.claims import Claims
from emosteer.records.publish import TEMPORARY
from emosteer.records.store import Resolved, Store
from emosteer.records.sweep import Sweep
from emosteer.tables import Tables, build

NO_ROOM = r"cannot write .*/{}.*: No space left on device; make room there and give the same command again"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "2m") as at:
        yield at


@pytest.fixture
def sweep(disk: Path) -> Sweep:
    """A cell and its company, of which nothing is there yet."""
    sweep = Sweep(disk / "mine", Store(disk / "store"))
    join(sweep, with_company([made_up_cell(sweep.store)]))
    return sweep


def leftovers(disk: Path) -> list[Path]:
    return [path for path in disk.rglob(f"{TEMPORARY}*") if path.is_file()]


def test_replies_that_do_not_fit_are_no_cell(disk: Path, sweep: Sweep) -> None:
    cell, store = sweep.tasks()[0].cell, sweep.store
    replies = random_replies(store, cell, 0)
    stuffing = fill(disk)

    with pytest.raises(Unwritable, match=NO_ROOM.format(cell.id)):
        store.publish(cell, replies, Resolved((2,), 3.0, 0.2), PROVENANCE)
    assert not store.is_done(cell)
    assert sweep.unsettled(sweep.tasks(), sweep.scorers()) == sweep.tasks()
    assert leftovers(disk) == []

    stuffing.unlink()
    assert store.publish(cell, replies, Resolved((2,), 3.0, 0.2), PROVENANCE)
    assert store.replies(cell) == replies


def room_for(disk: Path, pages: int) -> None:
    """Leave so much room on a full disk."""
    stuffing = fill(disk)
    with stuffing.open("r+b") as file:
        file.truncate(stuffing.stat().st_size - 4096 * pages)


@pytest.mark.parametrize("pages", range(1, 8))
def test_a_record_that_fits_in_part_is_no_cell(disk: Path, sweep: Sweep, pages: int) -> None:
    """The disk fills at one file after another of the directory, whose entries are what a reader looks for."""
    cell, store = sweep.tasks()[0].cell, sweep.store
    replies = random_replies(store, cell, 0) * 10
    files = {".hydra/overrides.yaml": "- a=1\n" * 1000, "config.yaml": "a: 1\n" * 1000}
    room_for(disk, pages)

    with pytest.raises(Unwritable, match="No space left"):
        store.publish(cell, replies, Resolved((2,), 3.0, 0.2), PROVENANCE, files)
    assert not store.cell_paths(cell).directory.exists()
    assert leftovers(disk) == []


def test_scores_that_do_not_fit_leave_the_replies_and_the_other_scores(disk: Path, sweep: Sweep) -> None:
    cell, store, scorers = sweep.tasks()[0].cell, sweep.store, sweep.scorers()
    publish(store, scorers[:2], cell)
    stuffing = fill(disk)

    with pytest.raises(Unwritable, match=NO_ROOM.format(scorers[2].key)):
        store.publish_scores(cell, scorers[2].key, {}, {"a": [1.0] * 10})
    assert sweep.unscored(cell, scorers) == scorers[2:]
    assert len(store.replies(cell)) == 10
    assert leftovers(disk) == []
    stuffing.unlink()


WRITES: dict[str, Callable[[Sweep], object]] = {
    "a lease": lambda sweep: Claims(sweep.store.paths.claims, 60.0).take("cell"),
    "a command": lambda sweep: join(sweep, []),
    "texts": lambda sweep: made_up_cell(sweep.store, n_prompts=11),
    "a failure": lambda sweep: sweep.record_failure(sweep.tasks()[0].cell, {}),
}


@pytest.mark.parametrize("write", WRITES)
def test_whatever_does_not_fit_is_told_in_one_line(disk: Path, sweep: Sweep, write: str) -> None:
    (sweep.store.paths.claims).mkdir()
    fill(disk)

    with pytest.raises(Unwritable, match=NO_ROOM.format("")) as caught:
        WRITES[write](sweep)
    assert "\n" not in str(caught.value)
    assert leftovers(disk) == []
    assert sweep.store.paths.claims.exists()
    assert list(sweep.store.paths.claims.iterdir()) == []


def test_tables_and_figures_that_do_not_fit_keep_the_old_ones(disk: Path, sweep: Sweep) -> None:
    scorers = sweep.scorers()
    for task in sweep.tasks():
        publish(sweep.store, scorers, task.cell)
    tables = build(sweep)
    finaliser.write_tables(sweep, tables)
    old = {path: path.read_bytes() for path in (sweep.paths.results_parquet, sweep.paths.results_csv, sweep.paths.replies)}
    room_for(disk, 10)
    more = Tables(pd.concat([tables.results] * 9), tables.replies, tables.trends)

    for write in (finaliser.write_tables, finaliser.draw):
        with pytest.raises(Unwritable, match="No space left"):
            write(sweep, more)
    assert {path: path.read_bytes() for path in old} == old
    for picture in sweep.paths.figures.iterdir():
        Image.open(picture).load()  # those that still fitted are whole
    assert leftovers(disk) == []


LIMITED = """
import resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from made_up_sweep import *
store = Store(Path(sys.argv[1]))
cell = made_up_cell(store)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
publish(store, [], cell)
"""


def test_a_quota_on_files_is_no_other_thing(tmp_path: Path) -> None:
    """Works without root, too."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "store"), str(Path(__file__).parent.parent)], capture_output=True, text=True
    )

    assert done.returncode == 1
    assert "Unwritable: cannot write" in done.stderr
    assert "File too large; make room there" in done.stderr
    assert list((tmp_path / "store" / "cells").iterdir()) == []
