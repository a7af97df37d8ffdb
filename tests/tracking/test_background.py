"""A command does not wait for its tracker: that goes on in a process of its own, whatever the server does to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_sweep import join
from test_sync import assert_holds_each_run_once_and_whole, connect, sync
from test_wandb_runs import make_sweep, tracking
from wandb_stand_in import ANSWERS, BROKEN, DROPS, HANGS, TOO_MANY, stand_in

from emosteer import tracking as trackers
from emosteer.records.sweep import Sweep
from emosteer.tables import build
from emosteer.tracking import background

WAIT_SECONDS = 240.0
"""On a busy machine."""


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def told(sweep: Sweep) -> str:
    return sweep.paths.tracking_log.read_text(encoding="utf-8")


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("mode", [HANGS, *(pytest.param(mode, marks=pytest.mark.slow) for mode in (TOO_MANY, BROKEN, DROPS))])
def test_no_server_is_waited_for_and_none_loses_a_run(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make_sweep(tmp_path, upload_patience=15)
    tables = build(sweep)
    with stand_in(mode) as server:
        connect(monkeypatch, server)
        began = time.monotonic()
        trackers.log_sweep(sweep, tables)
        # Importing wandb alone takes longer.
        assert time.monotonic() - began < 1.0
        until(lambda: "runs are not uploaded" in told(sweep))
        assert server.requests > 0
        server.mode = ANSWERS
        join(sweep, [], **tracking(upload_patience=60))
        assert sync(sweep)[0] == 0
        assert_holds_each_run_once_and_whole(server, sweep)


@pytest.mark.slow
def test_what_goes_on_in_the_background_ends_with_every_run_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make_sweep(tmp_path)
    with stand_in() as server:
        connect(monkeypatch, server)
        trackers.log_sweep(sweep, build(sweep))
        until(lambda: len(server.held) == 6 and all(run.exit_code == 0 for run in server.held.values()))
        # One that asks meanwhile waits for it, and finds nothing left to do.
        assert sync(sweep)[0] == 0
        assert_holds_each_run_once_and_whole(server, sweep)
        assert "tracking failed" not in told(sweep)


@pytest.mark.parametrize("why", ["wait", "slurm"])
def test_waits_where_asked_and_where_nothing_outlives_the_job(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make_sweep(tmp_path, wait=why == "wait")
    if why == "slurm":
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    done: list[Sweep] = []
    monkeypatch.setattr(trackers, "log_now", lambda sweep, tables: done.append(sweep))
    monkeypatch.setattr(background, "start", lambda sweep: pytest.fail("left to the background"))
    trackers.log_sweep(sweep, build(sweep))
    assert done == [sweep]
