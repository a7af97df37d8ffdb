"""Whatever happens to the disk, the process, the paths and the files: nothing is lost, and the same command goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from desk import Desk, Done
from disks import copied, heed_permissions, read_only, resize, small_disk
from test_survival import wait

GRID = ("-m", "layer=1,2", "coefficient=0.1,0.2", "worker.cells_per_claim=2", "worker.lease_seconds=2")
"""4 cells, 4 controls, 1 baseline."""
N_RECORDS = 9
LONG = ("generation.max_new_tokens=60", "generation.min_new_tokens=60", "worker.cells_per_claim=1", "layer=0,1,2,3")
"""17 records that take their time."""
COUNTING = """
import os
if "PUBLISHED" in os.environ:
    import emosteer.records.store as store
    publish = store.Store.publish

    def counted(self, cell, *arguments, **options):
        with open(os.environ["PUBLISHED"], "a") as file:
            file.write(f"{cell.id} {os.getpid()}\\n")
        return publish(self, cell, *arguments, **options)

    store.Store.publish = counted
"""
"""Writes down each cell that was generated, and by whom."""


@pytest.fixture(scope="module")
def counting_library(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Path:
    directory = tmp_path_factory.mktemp("counting")
    (directory / "sitecustomize.py").write_text((library / "sitecustomize.py").read_text() + COUNTING)
    return directory


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, counting_library: Path) -> Desk:
    """A sweep that has run undisturbed."""
    desk = Desk(tmp_path_factory.mktemp("swept"), tiny_directory, counting_library)
    desk.environment["PUBLISHED"] = str(desk.directory / "published")
    done = desk.run(*GRID)
    assert done.code == 0, done.text
    assert len(desk.records()) == N_RECORDS
    return desk


@pytest.fixture
def after(swept: Desk, tmp_path: Path) -> Desk:
    """A copy of that sweep, to go on with."""
    copied(swept.directory, tmp_path / "after")
    environment = {"PUBLISHED": str(tmp_path / "published-after")}
    return Desk(tmp_path / "after", swept.model, swept.library, environment=environment)


def published(desk: Desk) -> list[str]:
    """The cells that were generated there, one entry each time."""
    path = Path(desk.environment["PUBLISHED"])
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def sweep_command(desk: Desk, *arguments: str) -> Done:
    """Run `emosteer-sweep`."""
    done = subprocess.run(
        [sys.executable, "-c", "from emosteer.sweep_cli import main; main()", *arguments],
        cwd=desk.directory,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONPATH": str(desk.library)},
    )
    return Done(done.returncode, done.stdout, done.stderr, False)


def assert_no_traceback(done: Done) -> None:
    assert "Traceback" not in done.text, done.text
    assert "Exception ignored" not in done.text, done.text


@pytest.mark.slow
def test_a_disk_that_fills_again_and_again(swept: Desk, tmp_path: Path) -> None:
    """Among the records and at the tables; the unit tests say more of each file."""
    desk = Desk(tmp_path, swept.model, swept.library)
    kept: list[dict[str, int]] = [{}]
    with small_disk(tmp_path / "outputs", "200k") as disk:
        for size in ("200k", "500k"):
            resize(disk, size)
            done = desk.run(*GRID)
            assert done.code not in (0, 130), (size, done.text)
            assert_no_traceback(done)
            lines = [line for line in done.err.splitlines() if "No space left on device" in line]
            assert lines, done.text
            assert str(disk) in lines[-1]
            assert "make room there and give the same command again" in lines[-1]
            assert list(disk.glob("tiny/failures/*")) == [], "a full disk is no cell's fault"
            kept.append(desk.times())
            assert kept[-2].items() <= kept[-1].items(), "a finished cell stays as it is"
        assert len(kept[-1]) > len(kept[1]) or len(kept[1]) == N_RECORDS
        resize(disk, "8m")
        done = desk.run(*GRID)

        assert done.code == 0, done.text
        assert kept[-1].items() <= desk.times().items()
        assert desk.replies() == swept.replies()
        assert desk.unfinished() == []
        assert desk.results()["status"].eq("done").all()


STOPS: tuple[tuple[str, int, list[signal.Signals]], ...] = (
    ("SIGTERM", 143, [signal.SIGTERM]),
    ("SIGHUP", 129, [signal.SIGHUP]),
    ("ctrl-C twice", 130, [signal.SIGINT, signal.SIGINT]),
)


@pytest.mark.slow
def test_however_it_is_stopped_the_same_command_goes_on(swept: Desk, tmp_path: Path) -> None:
    desk = Desk(tmp_path, swept.model, swept.library, environment={"PUBLISHED": str(tmp_path / "published")})
    for name, code, signals in STOPS:
        before = desk.times()
        process = desk.popen(*GRID[:1], *LONG, "coefficient=0.1,0.2", preexec_fn=default_signals)
        wait(process, 120, lambda before=before: len(desk.records()) > len(before) + 1)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.002)
        out, err = process.communicate(timeout=60)

        assert process.returncode == code, (name, out, err)
        assert "Interrupted. Finished cells are kept" in err, name
        assert_no_traceback(Done(process.returncode, out, err, False))
        assert list((desk.store / "claims").iterdir()) == [], f"{name}: its leases are given back"
        assert before.items() <= desk.times().items()
        assert desk.unfinished() == []
    kept = desk.times()
    assert 6 <= len(kept) < 17

    # Who reads leaves after a line; the cells are run all the same.
    process = desk.popen(*GRID[:1], *LONG, "coefficient=0.1,0.2")
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=120)

    assert process.returncode == 0, err
    assert_no_traceback(Done(0, "", err, False))
    assert kept.items() <= desk.times().items()
    assert sorted(published(desk)) == sorted(desk.records()), "each was generated once"


def default_signals() -> None:
    """As a terminal starts a command; what runs behind a shell's & ignores them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def test_a_command_without_streams_works_and_writes_nothing_into_files_of_others(after: Desk) -> None:
    def close_all() -> None:
        for descriptor in (0, 1, 2):
            os.close(descriptor)

    process = after.popen(*GRID, "coefficient=0.1,0.2,0.3", preexec_fn=close_all)
    assert process.wait(timeout=120) == 0
    assert len(after.records()) == N_RECORDS + 4


NASTY = "a 'b' \"c\" = $d {e} ü \U0001f600 (f), [g] #h\nnew line"


@pytest.mark.slow
def test_paths_of_all_kinds(swept: Desk, tmp_path: Path) -> None:
    here = tmp_path / NASTY
    model = copied(swept.model, here / "models" / f"my {NASTY}")
    desk = Desk(here, model, swept.library)
    pairs = here / f"{NASTY} pairs.jsonl"
    pairs.write_text(
        "".join(json.dumps({"id": str(i), "positive": f"So happy {i}!", "negative": f"So sad {i}."}) + "\n" for i in range(3))
    )

    def quoted(path: Path) -> str:
        """As Hydra's grammar wants a text: see its documentation, 'Quoted values'."""
        return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'

    options = (
        f"model.path={quoted(model)}",
        f"hydra.sweep.dir={quoted(here / f'sweep {NASTY}')}",
        f"store={quoted(here / f'store {NASTY}')}",
        "pair=custom",
        "pair.target=joy",
        "pair.counterpart=sadness",
        "pair.primary=joy",
        f"pair.path={quoted(pairs)}",
    )
    done = desk.run("-m", "layer=1", "coefficient=0.1", *options)
    assert done.code == 0, done.text
    results = pd.read_parquet(here / f"sweep {NASTY}" / "results.parquet")
    assert results["status"].tolist() == ["done", "done"]
    cells = [path.name for path in (here / f"store {NASTY}" / "cells").iterdir()]
    assert len(cells) == 2
    assert not any("/" in name or "\n" in name for name in cells)

    again = desk.run("-m", "layer=1", "coefficient=0.1", *options)
    assert "Nothing to run" in again.text
    report = sweep_command(desk, "report", str(here / f"sweep {NASTY}"))
    assert report.code == 0, report.text


def test_a_home_and_caches_that_cannot_be_written(swept: Desk, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".cache").mkdir(parents=True)
    places = {"HOME": home, "EMOSTEER_CACHE": home / "emosteer", "HF_HOME": home / "hf", "XDG_CACHE_HOME": home / ".cache"}
    (home / "emosteer").mkdir()
    desk = Desk(tmp_path / "desk", swept.model, swept.library, environment={key: str(path) for key, path in places.items()})
    desk.directory.mkdir()
    with read_only(home):
        process = desk.popen("-m", "layer=1", "coefficient=0.1", preexec_fn=heed_permissions)
        out, err = process.communicate(timeout=120)

    assert process.returncode == 0, err
    assert_no_traceback(Done(0, out, err, False))
    assert len(desk.records()) == 3
    assert sorted(path.name for path in home.rglob("*")) == [".cache", "emosteer"]


def test_a_store_that_cannot_be_written_says_so(after: Desk) -> None:
    with read_only(after.store):
        process = after.popen(*GRID, "coefficient=0.4", preexec_fn=heed_permissions)
        out, err = process.communicate(timeout=120)

    assert process.returncode == 1
    assert_no_traceback(Done(1, out, err, False))
    assert str(after.store) in err
    assert "Permission denied" in err or "not writable" in err or "cannot be written" in err


@pytest.mark.slow
def test_two_sweeps_share_a_store_and_the_tree_moves(swept: Desk, tmp_path: Path) -> None:
    desk = Desk(tmp_path / "first place", swept.model, swept.library, environment={"PUBLISHED": str(tmp_path / "published")})
    desk.directory.mkdir()
    processes = [desk.popen(*GRID, f"name={name}") for name in ("tiny", "other")]
    ends = [process.communicate(timeout=120) for process in processes]

    assert [process.returncode for process in processes] == [0, 0], ends
    assert sorted(published(desk)) == sorted(desk.records()) == sorted(swept.records()), "each was generated once"
    assert desk.replies() == swept.replies()
    for name in ("tiny", "other"):
        results = pd.read_parquet(desk.directory / "outputs" / name / "results.parquet")
        alone = swept.results()
        drop = ["sweep", "seconds", "attempt"]
        # Ranks of rounded perplexities may change with the batch: see test_survival.
        drop += [column for column in alone if column.startswith("perplexity") and column.split("_")[-1] in ("p", "q", "perm")]
        pd.testing.assert_frame_equal(
            results.drop(columns=drop).set_index("cell_id").sort_index(), alone.drop(columns=drop).set_index("cell_id").sort_index()
        )

    # The tree moves.
    moved = Desk(tmp_path / "second place", swept.model, swept.library, environment=desk.environment)
    desk.directory.rename(moved.directory)
    report = sweep_command(moved, "report", "tiny")
    assert report.code == 0, report.text
    assert not desk.directory.exists()
    done = moved.run(*GRID)
    assert "Nothing to run" in done.text

    # The store moves alone.
    store = tmp_path / "third place" / "my store"
    store.parent.mkdir()
    moved.store.rename(store)
    done = moved.run(*GRID, f"store={store}")
    assert done.code == 0, done.text
    assert "Nothing to run" in done.text
    assert not moved.store.exists()
    report = sweep_command(moved, "report", "tiny")
    assert report.code == 0, report.text
    assert len(published(moved)) == N_RECORDS, "nothing ran again"
    assert len(pd.read_parquet(moved.sweep / "results.parquet")) == 8


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.slow
def test_what_was_edited_or_truncated_is_told_and_made_again(swept: Desk, after: Desk) -> None:
    ids = sorted(cell_id for cell_id in after.records() if not cell_id.startswith(("random", "baseline")))
    cells = after.store / "cells"
    edited(cells / ids[0] / "replies.jsonl", '"sample": 0', '"sample": 1')
    edited(cells / ids[1] / "record.json", '"coefficient": ', '"coefficient": 1')
    score = next((cells / ids[2] / "scores").glob("words-*"))
    score.write_text(score.read_text()[:-20])
    baseline = next((after.store / "baselines").iterdir())
    (baseline / "record.json").write_text("{")
    for texts in (after.store / "texts").iterdir():
        texts.write_text(texts.read_text()[:-3])
    for vector in (after.store / "vectors").glob("*.safetensors"):
        vector.write_bytes(vector.read_bytes()[:-3])
    for norms in (after.store / "residual_norms").iterdir():
        norms.write_text("[]")
    (after.sweep / "sweep.json").write_text("{")

    first = after.run(*GRID)

    assert_no_traceback(first)
    assert first.code == 0, first.text
    assert first.err.count("is damaged") == 3 + 1 + 3 + 2, "texts, scores, cells, and what the vector needs again"
    told = [line for line in first.err.splitlines() if "is damaged" in line]
    for name in (ids[0], ids[1], baseline.name):
        assert len([line for line in told if f"/{name} is damaged" in line]) == 1, first.err
    assert sorted(published(after)) == sorted([ids[0], ids[1], baseline.name])
    assert after.replies() == swept.replies()
    assert after.results()["status"].eq("done").all()
    assert after.results()["words_delta"].notna().all()

    # And once more into a pipe whose reader leaves after a line.
    command = shlex.join([sys.executable, "-m", "emosteer.main", *GRID, *after.options, f"model.path={after.model}"])
    head = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"],
        cwd=after.directory,
        env={**os.environ, "PYTHONPATH": str(after.library), "OMP_NUM_THREADS": "1", **after.environment},
        capture_output=True,
        text=True,
    )
    assert head.returncode == 0, head.stderr
    assert_no_traceback(Done(0, head.stdout, head.stderr, False))
    assert "Nothing to run" in head.stderr


@pytest.mark.slow
def test_force_makes_vectors_again(after: Desk, swept: Desk) -> None:
    def vectors() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (after.store / "vectors").glob("[!.]*")}

    before, times = vectors(), after.times()
    done = after.run(*GRID, "mode=force")

    assert done.code == 0, done.text
    now = vectors()
    assert now.keys() == before.keys()
    assert all(now[name] > before[name] for name in now)
    assert all(after.times()[cell_id] > times[cell_id] for cell_id in times)
    assert after.replies() == swept.replies()
    assert sorted(published(after)) == sorted(after.records())
