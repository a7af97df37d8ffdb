"""Leases: one process at a time holds a cell, and a dead one's is taken over."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from emosteer.records.claims import Claims, Lease

MINUTE = 60.0


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    return Claims(tmp_path / "claims", MINUTE)


def taken(claims: Claims, cell_id: str) -> Lease:
    lease = claims.take(cell_id)
    assert lease is not None
    return lease


def owner(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def rewrite(path: Path, **values: Any) -> None:
    """Change who holds a lease, keeping when it was touched."""
    state = path.stat()
    path.write_text(json.dumps({**owner(path), **values}))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def age(path: Path, seconds: float) -> None:
    """Make a lease look as if it had not been touched for a while."""
    touched = path.stat().st_mtime - seconds
    os.utime(path, (touched, touched))


def ticks(pid: int) -> int:
    """The start of a process in clock ticks since the boot: field 22 of its `stat`, see proc(5)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[22 - 3])


def ended_process() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lease_names_its_owner(claims: Claims) -> None:
    lease = taken(claims, "cell")

    assert lease.attempt == 1
    assert owner(lease.path)["pid"] == os.getpid()
    assert owner(lease.path)["token"] == lease.token


def test_one_holder_at_a_time(claims: Claims) -> None:
    lease = taken(claims, "cell")

    assert claims.take("cell") is None
    assert Claims(claims.directory, MINUTE).take("cell") is None
    assert claims.take("another") is not None

    claims.release(lease)
    assert taken(claims, "cell").attempt == 1


def race(directory: Path, start: Any, cells: int, found: Any) -> None:
    claims = Claims(directory, MINUTE)
    start.wait()
    found.put([cell for cell in range(cells) if claims.take(f"cell-{cell}")])
    start.wait()  # alive until all have tried


def test_of_eight_processes_one_gets_each_cell(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(8), context.Queue()
    processes = [context.Process(target=race, args=(tmp_path / "claims", start, 60, found)) for _ in range(8)]
    for process in processes:
        process.start()
    cells = sorted(cell for _ in processes for cell in found.get(timeout=60))
    for process in processes:
        process.join()

    assert cells == list(range(60))


def test_of_eight_processes_one_takes_over_each_dead_lease(tmp_path: Path, claims: Claims) -> None:
    """A burial must not take a fresh lease with it, or two would get a cell."""
    pid = ended_process()
    for cell in range(60):
        rewrite(taken(claims, f"cell-{cell}").path, pid=pid)
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(8), context.Queue()
    processes = [context.Process(target=race, args=(claims.directory, start, 60, found)) for _ in range(8)]
    for process in processes:
        process.start()
    cells = sorted(cell for _ in processes for cell in found.get(timeout=60))
    for process in processes:
        process.join()

    # A third process between a burial and its undoing may still get a second lease: rare, waste and no damage.
    assert set(cells) == set(range(60))
    assert len(cells) <= 62
    assert not list(claims.directory.glob(".tmp-*"))


def test_an_expired_lease_of_another_host_is_taken_over_with_the_next_attempt(claims: Claims) -> None:
    path = taken(claims, "cell").path
    rewrite(path, host="elsewhere", pid=1, attempt=3)

    age(path, MINUTE - 10)
    assert Claims(claims.directory, MINUTE).take("cell") is None

    age(path, 20)
    lease = Claims(claims.directory, MINUTE).take("cell")
    assert lease is not None
    assert lease.attempt == 4
    assert owner(path)["token"] == lease.token


def test_the_lease_of_a_dead_process_on_this_host_is_taken_over_at_once(claims: Claims) -> None:
    path = taken(claims, "cell").path
    rewrite(path, pid=ended_process())

    assert taken(Claims(claims.directory, MINUTE), "cell").attempt == 2


def test_a_new_process_under_the_old_number_does_not_keep_a_lease_alive(claims: Claims) -> None:
    path = taken(claims, "cell").path
    rewrite(path, ticks=owner(path)["ticks"] - 1000)

    assert taken(Claims(claims.directory, MINUTE), "cell").attempt == 2


def test_a_lease_of_an_older_version_tells_the_process_by_its_start(claims: Claims) -> None:
    path = taken(claims, "cell").path
    rewrite(path, ticks=None, boot=owner(path)["boot"])
    assert Claims(claims.directory, MINUTE).take("cell") is None

    rewrite(path, started=psutil.Process().create_time() - 1000)
    assert taken(Claims(claims.directory, MINUTE), "cell").attempt == 2


def test_the_lease_of_a_live_process_is_left_alone(claims: Claims) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        path = taken(claims, "cell").path
        rewrite(path, pid=process.pid, ticks=ticks(process.pid))

        assert Claims(claims.directory, MINUTE).take("cell") is None

        process.communicate(b"\n")
    assert Claims(claims.directory, MINUTE).take("cell") is not None


def test_a_damaged_lease_expires_like_any_other(claims: Claims) -> None:
    path = taken(claims, "cell").path
    path.write_text('{"host": "els')
    assert Claims(claims.directory, MINUTE).take("cell") is None

    age(path, 2 * MINUTE)
    assert Claims(claims.directory, MINUTE).take("cell") is not None


def test_a_heartbeat_keeps_leases(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims", 0.5)
    path = taken(claims, "cell").path
    rewrite(path, host="elsewhere")
    others = Claims(tmp_path / "claims", 0.5)

    with claims.heartbeat():
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert others.take("cell") is None
            time.sleep(0.05)
    time.sleep(0.7)

    assert others.take("cell") is not None


def test_a_heartbeat_survives_a_lease_that_was_taken_away(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims", 0.2)
    gone, kept = taken(claims, "gone"), taken(claims, "kept")
    with claims.heartbeat():
        gone.path.unlink()
        before = kept.path.stat().st_mtime_ns
        time.sleep(0.3)

        assert kept.path.stat().st_mtime_ns > before
        assert not gone.path.exists()


def test_a_released_lease_is_not_touched_again(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims", 0.2)
    with claims.heartbeat():
        lease = taken(claims, "cell")
        claims.release(lease)
        time.sleep(0.2)

        assert not lease.path.exists()


def test_only_ones_own_lease_is_released(claims: Claims) -> None:
    lease = taken(claims, "cell")
    age(lease.path, 2 * MINUTE)
    rewrite(lease.path, host="elsewhere")
    other = Claims(claims.directory, MINUTE)
    theirs = taken(other, "cell")

    claims.release(lease)
    assert owner(theirs.path)["token"] == theirs.token

    other.release(theirs)
    assert not theirs.path.exists()


def test_everything_held_is_given_back(claims: Claims) -> None:
    for cell in range(3):
        taken(claims, f"cell-{cell}")

    claims.release_all()

    assert list(claims.directory.iterdir()) == []


def test_dead_leases_on_settled_cells_are_tidied_away_and_live_ones_stay(claims: Claims) -> None:
    other = Claims(claims.directory, MINUTE)
    for cell_id in ("settled", "another sweep's", "live"):
        taken(other, cell_id)
    for cell_id in ("settled", "another sweep's"):
        rewrite(claims.directory / cell_id, pid=ended_process())

    claims.tidy(["settled", "live", "never held"])

    assert claims.taken() == {"another sweep's", "live"}


def test_a_burial_that_comes_late_puts_a_fresh_lease_back(claims: Claims) -> None:
    """Two saw the dead lease; one buried it and claimed anew before the other buried."""
    path = taken(claims, "cell").path
    rewrite(path, pid=ended_process())
    dead = owner(path)
    fresh = taken(Claims(claims.directory, MINUTE), "cell")

    Claims(claims.directory, MINUTE)._bury(path, dead)

    assert owner(path)["token"] == fresh.token
    assert not list(claims.directory.glob(".tmp-*"))


def test_who_buries_a_dead_lease_tells_of_it_though_another_gets_the_cell(claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody would: who gets the cell in the moment between finds no lease there."""
    dead = taken(claims, "cell")
    rewrite(dead.path, pid=ended_process())
    slow, fast = Claims(claims.directory, MINUTE), Claims(claims.directory, MINUTE)
    bury = slow._bury

    def bury_and_wait(path: Path, holder: dict[str, Any]) -> bool:
        buried = bury(path, holder)
        assert fast.take("cell") is not None
        return buried

    monkeypatch.setattr(slow, "_bury", bury_and_wait)
    assert slow.take("cell") is None
    assert slow.buried["cell"]["token"] == dead.token
    assert fast.buried == {}


def test_of_two_that_bury_one_tells(claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = taken(claims, "cell")
    rewrite(dead.path, pid=ended_process())
    late = Claims(claims.directory, MINUTE)
    bury = late._bury

    def come_late(path: Path, holder: dict[str, Any]) -> bool:
        assert claims.take("cell") is not None
        return bury(path, holder)

    monkeypatch.setattr(late, "_bury", come_late)
    assert late.take("cell") is None
    assert claims.buried["cell"]["token"] == dead.token
    assert late.buried == {}


def test_a_lease_that_is_released_meanwhile_is_no_earlier_attempt(claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner finished between the failed creation and the look at it: nobody crashed."""
    lease = taken(claims, "cell")
    other = Claims(claims.directory, MINUTE)
    create = other._create

    def create_then_vanish(mine: Lease) -> bool:
        made = create(mine)
        claims.release(lease)
        return made

    monkeypatch.setattr(other, "_create", create_then_vanish)

    assert taken(other, "cell").attempt == 1


HOUR = 3600.0


@pytest.mark.parametrize("jump", [-5 * HOUR, 5 * HOUR])
def test_a_clock_that_jumps_takes_no_lease_from_a_live_process(claims: Claims, jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day, and with it the boot time from which psutil reckons when a process started."""
    path = taken(claims, "cell").path
    age(path, jump)
    started = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: started(process) + jump)
    monkeypatch.setattr(time, "time", lambda: jump)

    assert Claims(claims.directory, MINUTE).take("cell") is None
    assert owner(path)["attempt"] == 1


@pytest.mark.parametrize("jump", [0.0, 5 * HOUR])
@pytest.mark.parametrize("host", [{}, {"host": "elsewhere"}])
def test_a_lease_from_the_future_does_not_live_for_ever(tmp_path: Path, host: dict[str, str], jump: float) -> None:
    """Also one whose process hangs here: who waits sees that it stays untouched."""
    claims, watcher = Claims(tmp_path / "claims", 0.3), Claims(tmp_path / "claims", 0.3)
    path = taken(claims, "cell").path
    rewrite(path, **host)
    age(path, -jump)

    assert watcher.take("cell") is None
    time.sleep(0.4)
    lease = watcher.take("cell")

    assert lease is not None
    assert lease.attempt == 2


def test_a_lease_that_is_touched_is_alive_whatever_the_clock_says(tmp_path: Path) -> None:
    claims, watcher = Claims(tmp_path / "claims", 0.3), Claims(tmp_path / "claims", 0.3)
    path = taken(claims, "cell").path
    rewrite(path, host="elsewhere")
    until = time.monotonic() + 0.9
    touches = 0
    while time.monotonic() < until:
        touches += 1
        stamp = path.stat().st_mtime + HOUR + touches
        os.utime(path, (stamp, stamp))  # its owner's heartbeat, by a clock that runs ahead
        assert watcher.take("cell") is None
        time.sleep(0.05)


@pytest.mark.parametrize("key", ["boot", "processes"])
def test_a_number_of_another_boot_or_container_is_not_looked_up_here(claims: Claims, key: str) -> None:
    """Machines may share a name, and containers count their processes by themselves: such a lease expires by its age."""
    path = taken(claims, "cell").path
    rewrite(path, pid=ended_process(), **{key: "another"})

    assert Claims(claims.directory, MINUTE).take("cell") is None
    age(path, 2 * MINUTE)
    assert Claims(claims.directory, MINUTE).take("cell") is not None


def test_a_process_that_has_ended_and_was_not_collected_is_dead(claims: Claims) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        path = taken(claims, "cell").path
        rewrite(path, pid=process.pid, ticks=ticks(process.pid))
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

        assert Claims(claims.directory, MINUTE).take("cell") is not None


def test_a_link_whose_answer_was_lost_is_ones_own(claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of a network file system sends it again, and is told that the name is there."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)

    assert taken(claims, "cell").attempt == 1
    assert [path.name for path in claims.directory.iterdir()] == ["cell"]


def test_a_stale_handle_is_a_lease_that_is_gone(claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    path = taken(claims, "cell").path
    rewrite(path, host="elsewhere")
    stat = Path.stat

    def stale(self: Path, **options: Any) -> os.stat_result:
        if self == path:
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", stale)
    other = Claims(claims.directory, MINUTE)
    assert other._is_dead(path, owner(path))


def test_what_is_held_is_seen_at_one_look(claims: Claims) -> None:
    for cell in "ab":
        taken(claims, cell)

    assert claims.taken() == {"a", "b"}
