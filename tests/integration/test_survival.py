"""A sweep that is killed, interrupted or shared ends as if nothing had happened."""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from desk import Desk
from same_results import assert_same_results

SWEEP = (
    "-m",
    "layer=1,2,3",
    "coefficient=0.05,0.1,0.2,0.3",
    "worker.lease_seconds=2",
    "worker.cells_per_claim=1",
    "generation.max_new_tokens=60",
    "generation.min_new_tokens=60",
)
"""12 cells, 12 controls, 1 baseline."""
N_RECORDS = 25
KILLS = 10


def wait(process: subprocess.Popen[str], seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Wait so long, until something is so, or until the process ends."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None and not until():
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, library: Path) -> tuple[Desk, float, float]:
    """The sweep as it runs when nobody disturbs it, when its first record came, and how long it took, in seconds."""
    desk = Desk(tmp_path_factory.mktemp("undisturbed"), tiny_directory, library)
    started = time.monotonic()
    process = desk.popen(*SWEEP, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait(process, 120, lambda: bool(desk.records()))
    first = time.monotonic() - started
    assert process.wait(timeout=180) == 0
    assert len(desk.records()) == N_RECORDS
    return desk, first, time.monotonic() - started


def test_killed_at_ten_moments_it_ends_the_same(undisturbed: tuple[Desk, float, float], desk: Desk) -> None:
    reference, first, whole = undisturbed
    seed = secrets.randbits(32)
    print(f"seed {seed}: a run takes {whole:.1f} s, its first record comes after {first:.1f} s")
    chance = random.Random(seed)
    kept = [0]
    for number in range(KILLS):
        process = desk.popen(*SWEEP, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if number == 0 or kept[-1] == N_RECORDS:
            # Into the imports, or into the tables.
            wait(process, chance.uniform(0, whole / 3))
        else:
            # On a busy machine the clock does not say where a run is: from its first new record on it is at random work.
            wait(process, 120, lambda: len(desk.records()) > kept[-1])
            wait(process, chance.uniform(0, (whole - first) / N_RECORDS))
        process.kill()
        process.wait()
        kept.append(len(desk.records()))
    print(f"records after each kill: {kept}")
    done = desk.run(*SWEEP)

    assert done.code == 0, done.text
    assert kept == sorted(kept), "a finished cell is never lost"
    assert len(set(kept)) > 4, "the kills fell where there was work"
    assert_same_results(desk, reference)
    assert list((desk.store / "claims").glob("[!.]*")) == []
    again = desk.run(*SWEEP)
    assert "Nothing to run" in again.text
    # What a killed process was writing stays behind under a name that nobody reads.
    assert len(desk.unfinished()) <= 3 * KILLS


def test_ctrl_c_says_that_finished_cells_are_kept_and_the_same_command_goes_on(
    undisturbed: tuple[Desk, float, float], desk: Desk
) -> None:
    # As a terminal starts it: what runs behind a shell's & ignores the signal.
    process = desk.popen(*SWEEP, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait(process, 120, lambda: len(desk.records()) > 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130, out + err
    assert "Interrupted. Finished cells are kept" in err
    assert "Traceback" not in out + err
    assert desk.unfinished() == []
    assert list((desk.store / "claims").iterdir()) == [], "its leases are given back"
    before = desk.times()
    assert 0 < len(before) < N_RECORDS

    done = desk.run(*SWEEP)

    assert done.code == 0, done.text
    assert {cell_id: desk.times()[cell_id] for cell_id in before} == before
    assert_same_results(desk, undisturbed[0])


def test_two_processes_share_a_sweep(undisturbed: tuple[Desk, float, float], desk: Desk) -> None:
    processes = [desk.popen(*SWEEP) for _ in range(2)]
    ends = [process.communicate(timeout=180) for process in processes]

    assert [process.returncode for process in processes] == [0, 0], ends
    assert_same_results(desk, undisturbed[0])
    assert desk.unfinished() == []
    assert list((desk.store / "claims").iterdir()) == []


@pytest.mark.parametrize("packing", [("engine.batch_rows=5", "worker.cells_per_claim=32"), ("worker.cells_per_claim=4",)])
def test_replies_do_not_depend_on_how_the_work_was_packed(
    undisturbed: tuple[Desk, float, float], desk: Desk, packing: tuple[str, ...]
) -> None:
    given = {option.partition("=")[0] for option in packing}
    done = desk.run(*(option for option in SWEEP if option.partition("=")[0] not in given), *packing)

    assert done.code == 0, done.text
    assert_same_results(desk, undisturbed[0])
