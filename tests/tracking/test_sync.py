"""`emosteer-sweep sync` brings each run to the server once and whole, through faults, interruptions and a `kill -9`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from made_up_sweep import join, made_up_cell, publish
from test_wandb_runs import grow, make_sweep, put_vector, tracking
from typer.testing import CliRunner
from wandb_stand_in import ANSWERS, BROKEN, DROPS, HANGS, KEY, TOO_MANY, Server, stand_in

from emosteer.records.sweep import Sweep
from emosteer.sweep_cli import app
from emosteer.sweep_cli.sync import FOLLOW_SECONDS
from emosteer.tables import build
from emosteer.tracking import wandb_runs
from emosteer.tracking.sweep_runs import sweep_runs


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """With vectors, so that there are artifacts."""
    made = make_sweep(tmp_path, upload_patience=60)
    for cell in {task.cell.vector_id: task.cell for task in made.tasks() if task.cell.vector}.values():
        put_vector(made.store, cell)
    return made


def connect(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)


def sync(sweep: Sweep, *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, what was printed as JSON, and stderr."""
    result = CliRunner().invoke(app, ["sync", str(sweep.paths.root), "--json", *options])
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout) if result.stdout else {}, result.stderr


def assert_holds_each_run_once_and_whole(server: Server, sweep: Sweep, project: str = "emotions") -> None:
    """As the records have them: nothing is missing on the server, and nothing is there that is not theirs."""
    to = wandb_runs.destination(sweep, {"project": project})
    expected = {run.id: run for run in sweep_runs(sweep, build(sweep), to)}
    assert set(server.held) == set(expected)
    for key, run in expected.items():
        held = server.held[key]
        assert (held.made["displayName"], held.made["jobType"]) == (run.name, run.job_type)
        assert (held.made["project"], held.made["groupName"]) == (project, sweep.name)
        assert held.config == run.config
        assert set(held.history) == {0}
        assert {name: held.summary.get(name) for name in run.summary} == pytest.approx(run.summary)
        assert {name: held.history[0].get(name) for name in run.summary} == pytest.approx(run.summary)
        assert held.exit_code == run.exit_code
        for name, table in run.tables.items():
            # A run that was logged anew keeps the old file beside the one that it points to.
            assert len(json.loads(held.files[held.summary[name]["path"]])["data"]) == len(table.rows)
        assert {artifact.partition(":")[0] for artifact in held.uses} == {artifact.name for artifact in run.uses}
        assert {artifact.partition(":")[0] for artifact in held.makes} == {artifact.name for artifact in run.makes}
    artifacts = {artifact.name: artifact for run in expected.values() for artifact in (*run.uses, *run.makes)}
    assert {name.partition(":")[0] for name in server.artifacts} == set(artifacts)
    for key, kept in server.artifacts.items():
        assert kept["state"] == "COMMITTED"
        files = {file.name: Path(file.path).read_bytes() for file in artifacts[key.partition(":")[0]].files}
        assert {name: data for name, data in kept["files"].items() if name != "wandb_manifest.json"} == files
    assert server.unknown == []


def test_uploads_what_is_not_there_and_nothing_twice(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in() as server:
        connect(monkeypatch, server)
        code, told, _ = sync(sweep)
        assert (code, told["n_runs"], told["n_uploaded"], told["n_left"], told["reason"]) == (0, 9, 9, 0, "")
        assert_holds_each_run_once_and_whole(server, sweep)
        requests = server.requests
        assert sync(sweep)[1]["n_uploaded"] == 0
        assert server.requests == requests
        added = grow(sweep)
        told = sync(sweep)[1]
        assert told["n_uploaded"] == len(added) + 1
        assert_holds_each_run_once_and_whole(server, sweep)


@pytest.mark.slow
def test_of_two_at_once_one_uploads(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in() as server:
        connect(monkeypatch, server)
        command = [sys.executable, "-m", "emosteer.sweep_cli", "sync", str(sweep.paths.root), "--json"]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        told = [json.loads(child.communicate()[0]) for child in both]
        assert [child.returncode for child in both] == [0, 0]
        # Whether it was seen uploaded before or after it waited, no file went twice.
        assert all(one["n_runs"] == 9 and one["n_left"] == 0 for one in told)
        assert_holds_each_run_once_and_whole(server, sweep)
        assert {path: n for path, n in server.uploads.items() if path.startswith("/upload/") and n > 1} == {}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [TOO_MANY, BROKEN, DROPS])
def test_outlives_a_server_that_refuses_for_a_while(mode: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(mode, faults=25) as server:
        connect(monkeypatch, server)
        for _ in range(4):
            code, told, _ = sync(sweep)
            if code == 0:
                break
        assert (code, told["n_left"]) == (0, 0)
        assert server.faults == 0
        assert_holds_each_run_once_and_whole(server, sweep)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [TOO_MANY, BROKEN, HANGS, DROPS])
def test_a_server_that_does_not_recover_costs_its_patience(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make_sweep(tmp_path, upload_patience=15)
    with stand_in(mode) as server:
        connect(monkeypatch, server)
        began = time.monotonic()
        code, told, _ = sync(sweep)
        assert time.monotonic() - began < 90
        assert (code, told["n_left"], told["n_uploaded"]) == (1, 6, 0)
        assert f"no progress for 15 s, from {server.url}" in told["reason"]
        assert server.requests > 0
        server.mode = ANSWERS
        join(sweep, [], **tracking(upload_patience=60))
        assert sync(sweep)[0] == 0
        assert_holds_each_run_once_and_whole(server, sweep)


def test_killed_while_it_writes_or_uploads_the_records_rebuild_the_runs(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "emosteer.sweep_cli", "sync", str(sweep.paths.root)]
    with stand_in() as server:
        connect(monkeypatch, server)
        for is_far_enough in (lambda: len(runs_on_disk(sweep)) >= 2, lambda: any(run.made for run in server.held.values())):
            child = subprocess.Popen(command, start_new_session=True)
            while not is_far_enough():
                assert child.poll() is None
                time.sleep(0.02)
            for pid in family(child.pid):
                os.kill(pid, signal.SIGKILL)
            child.wait()
        code, told, _ = sync(sweep)
        assert (code, told["n_left"]) == (0, 0)
        assert_holds_each_run_once_and_whole(server, sweep)
        assert len(runs_on_disk(sweep)) == 9
        assert not list(sweep.paths.wandb.glob(".tmp*"))


def runs_on_disk(sweep: Sweep) -> list[Path]:
    return list(sweep.paths.wandb.glob("offline-run-*"))


def family(pid: int) -> list[int]:
    """A process and all that it started, they who did first."""
    import psutil

    parent = psutil.Process(pid)
    return [pid, *(child.pid for child in parent.children(recursive=True))]


@pytest.mark.parametrize(("wrong", "reason"), [("key", "the key is not one of http://127.0.0.1"), ("entity", "no such entity")])
def test_a_wrong_key_and_an_entity_that_is_not_are_told(
    wrong: str, reason: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in() as server:
        connect(monkeypatch, server)
        if wrong == "key":
            monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        code, told, _ = sync(sweep, *(("--entity", "nobody") if wrong == "entity" else ()))
    assert code == 1
    assert told["reason"].startswith(reason)
    assert "x" * 40 not in told["reason"]


def test_without_a_key_or_wandb_nothing_is_written(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, said = sync(sweep)
    assert (code, said) == (2, "no key for https://api.wandb.ai: `wandb login`, or set WANDB_API_KEY\n")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    code, _, said = sync(sweep)
    assert (code, "wandb is disabled" in said) == (2, True)
    monkeypatch.setattr(wandb_runs, "is_installed", lambda _: False)
    code, _, said = sync(sweep)
    assert (code, said) == (2, 'wandb is missing: pip install "emosteer[wandb]"\n')
    assert not sweep.paths.wandb.exists()


@pytest.mark.slow
def test_a_sweep_that_ran_untracked_or_elsewhere_goes_where_it_is_told(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    untracked = sweep.settings() | {"tracking": tracking()["tracking"] | {"name": "none"}}
    monkeypatch.setattr(Sweep, "settings", lambda self: untracked)
    with stand_in() as server:
        connect(monkeypatch, server)
        assert sync(sweep, "--project", "later")[1]["project"] == "later"
        assert_holds_each_run_once_and_whole(server, sweep, "later")


@pytest.mark.slow
def test_more_runs_than_one_command_takes(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_runs, "MOST_ARGUMENTS", 4)
    with stand_in() as server:
        connect(monkeypatch, server)
        assert sync(sweep)[1]["n_uploaded"] == 9
        assert_holds_each_run_once_and_whole(server, sweep)


@pytest.mark.slow
def test_follows_until_every_cell_is_settled(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = made_up_cell(sweep.store, n_prompts=6, coefficient=0.6)
    join(sweep, [cell], **tracking())
    sleep = time.sleep

    def finish_meanwhile(seconds: float) -> None:
        if seconds < FOLLOW_SECONDS:
            sleep(seconds)
        else:
            publish(sweep.store, sweep.scorers(), cell, seed=8)

    monkeypatch.setattr(time, "sleep", finish_meanwhile)
    with stand_in() as server:
        connect(monkeypatch, server)
        result = CliRunner().invoke(app, ["sync", str(sweep.paths.root), "--follow"])
        assert result.exit_code == 0
        assert [line.partition(",")[0] for line in result.stdout.splitlines()] == [
            "emotions: 9 runs uploaded",
            "emotions: 2 runs uploaded",
        ]
        assert_holds_each_run_once_and_whole(server, sweep)
