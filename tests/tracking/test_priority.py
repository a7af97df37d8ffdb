"""What is left to the background is at a low priority as the kernel reckons it: by session, wandb's own sessions among them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_background import until
from test_sync import connect
from test_wandb_runs import make_sweep
from wandb_stand_in import HANGS, stand_in

from emosteer import tracking as trackers
from emosteer.tables import build
from emosteer.tracking import background, child, priority

pytestmark = pytest.mark.skipif(
    priority.of_session(os.getpid()) is None, reason="this kernel does not weigh processes by session (no /proc/self/autogroup)"
)
LOWERED = "import os; from emosteer.tracking import priority; priority.lower(7); "
LEADER = "import subprocess, sys, time; print('there', flush=True); "
OF_ITS_OWN = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(10)'], start_new_session=True); time.sleep(60)"


def in_file(pid: int) -> str:
    """What the kernel itself says of a process's session."""
    return Path(f"/proc/{pid}/autogroup").read_text(encoding="ascii").split(" nice ")[1].strip()


def test_a_session_is_as_nice_as_the_process_that_leads_it() -> None:
    command = [sys.executable, "-c", LOWERED + "print(open('/proc/self/autogroup').read(), os.nice(0))"]
    told = subprocess.run(command, start_new_session=True, check=True, capture_output=True, text=True).stdout
    assert told.split()[2:] == ["7", "7"]


def test_nobody_elses_session_is_touched() -> None:
    before = in_file(os.getpid())
    subprocess.run([sys.executable, "-c", LOWERED], check=True)
    assert in_file(os.getpid()) == before
    # Nor that of a child, where this process is not nice itself.
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as other:
        priority.pass_on(other.pid)
        assert in_file(other.pid) == str(max(os.nice(0), 0))
        other.kill()


def test_a_process_that_is_gone_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    priority.pass_on(gone.pid)
    assert priority.of_session(gone.pid) is None


def test_a_child_and_a_session_that_it_opens_are_as_nice_as_who_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(priority, "_own", lambda: 7)
    seen: set[tuple[str, ...]] = set()

    def progress() -> int:
        started = psutil.Process().children(recursive=True)
        seen.add(tuple(in_file(one.pid) for one in started if os.getsid(one.pid) == one.pid))
        return 0

    ending = child.run_child([sys.executable, "-c", LEADER + OF_ITS_OWN], os.environ, tmp_path, progress, 3.0)
    assert (ending.code, ending.last_line) == (None, "there")
    assert ("7", "7") in seen


def test_wandb_and_its_core_are_reached_in_their_own_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    sweep = make_sweep(tmp_path, upload_patience=240)
    niceness = str(min(os.nice(0) + background.NICENESS, 19))
    with stand_in(HANGS) as server:
        connect(monkeypatch, server)
        before = psutil.Process().children()
        trackers.log_sweep(sweep, build(sweep))
        (tracker,) = set(psutil.Process().children()) - set(before)
        try:
            # Uploading, wandb waits for its server: there are the tracker, `wandb sync` and wandb-core.
            until(lambda: server.requests > 0)
            started = [tracker, *tracker.children(recursive=True)]
            assert "wandb-core" in [one.name() for one in started]
            # wandb-core is reached at the next look.
            time.sleep(2 * child.LOOK_SECONDS)
            assert len({os.getsid(one.pid) for one in started}) == 3
            assert [in_file(one.pid) for one in started] == [niceness] * len(started)
        finally:
            for one in [*tracker.children(recursive=True), tracker]:
                one.kill()
            tracker.wait()
