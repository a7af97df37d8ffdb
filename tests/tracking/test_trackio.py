"""trackio gets every run once, without a network, and its dashboard shows them in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_wandb_runs import grow, make_sweep
from typer.testing import CliRunner

from emosteer.records.sweep import Sweep
from emosteer.sweep_cli import app
from emosteer.tables import build
from emosteer.tracking import trackio_runs
from emosteer.tracking.run import Destination
from emosteer.tracking.sweep_runs import sweep_runs

PINS = Path(__file__).with_name("trackio.txt")
TRACKIO = {"name": "trackio", "project": "emotions"}


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with trackio, which wants an older pillow than the project's own has."""
    directory = tmp_path_factory.mktemp("trackio")
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    subprocess.run([directory / "bin" / "pip", "install", "--quiet", "--requirement", PINS], check=True)
    return directory / "bin" / "python"


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return make_sweep(tmp_path, **TRACKIO)


@pytest.fixture
def logged(sweep: Sweep, python: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.setattr(trackio_runs, "INTERPRETER", str(python))
    monkeypatch.setattr(trackio_runs, "is_installed", lambda _: True)
    trackio_runs.log_to_trackio(sweep, build(sweep))
    return sweep


def held(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Run name -> its config and what was logged, as the file has them."""
    with sqlite3.connect(sweep.paths.trackio / "emotions.db") as database:
        configs = {name: json.loads(config) for name, config in database.execute("select run_name, config from configs")}
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    assert len(rows) == len({(name, step) for name, step, _ in rows}), "each step once"
    found = {name: {"config": config, "metrics": {}} for name, config in configs.items()}
    for name, _, metrics in rows:
        found[name]["metrics"] |= json.loads(metrics)
    return found


def assert_whole(sweep: Sweep) -> None:
    to = Destination("emotions", None, sweep.name, ["ours", "two words"])
    runs = {run.name: run for run in sweep_runs(sweep, build(sweep), to)}
    there = held(sweep)
    assert set(there) == set(runs)
    for name, run in runs.items():
        config, metrics = there[name]["config"], there[name]["metrics"]
        assert {key: config[key] for key in run.config} == run.config
        assert (config["_Group"], config["job_type"], config["exit_code"]) == (sweep.name, run.job_type, run.exit_code)
        assert {key: metrics[key] for key in run.summary} == pytest.approx(run.summary)
        for key, table in run.tables.items():
            rows = [[row.get(column) for column in table.columns] for row in metrics[key]["_value"]]
            assert rows == table.rows


@pytest.mark.slow
def test_every_run_once_and_whole_also_when_the_sweep_grows(logged: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_whole(logged)
    before = (logged.paths.trackio / "emotions.db").stat().st_mtime_ns
    trackio_runs.log_to_trackio(logged, build(logged))
    assert (logged.paths.trackio / "emotions.db").stat().st_mtime_ns == before
    grow(logged, **TRACKIO)
    result = CliRunner().invoke(app, ["sync", str(logged.paths.root), "--json"])
    assert (result.exit_code, json.loads(result.stdout)["n_left"]) == (0, 0)
    assert_whole(logged)
    assert not list(logged.paths.root.glob(".tmp*"))


@contextmanager
def dashboard(sweep: Sweep, python: Path) -> Iterator[str]:
    """The address of trackio's own dashboard over the sweep's file."""
    environment = os.environ | {
        "TRACKIO_DIR": str(sweep.paths.trackio),
        "HF_HUB_OFFLINE": "1",
        "BROWSER": "true",
        "PYTHONUNBUFFERED": "1",
    }
    command = [python.with_name("trackio"), "show", "--project", "emotions"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        said = ""
        for line in server.stdout:
            said += line
            if found := re.search(r"http://127\.0\.0\.1:\d+\S*", line):
                yield found[0]
                return
        pytest.fail(said)
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
def test_the_dashboard_shows_the_runs_in_a_browser(logged: Sweep, python: Path) -> None:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "apt-get install chromium"
    names = [run.name for run in sweep_runs(logged, build(logged), Destination("emotions", None, logged.name, []))]
    with dashboard(logged, python) as url, sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        for name in names:
            page.get_by_text(name, exact=True).first.wait_for(timeout=60_000)
        page.get_by_text("primary_delta").first.wait_for(timeout=60_000)
        assert errors == []
        browser.close()


def test_trackio_that_is_not_installed_is_told(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackio_runs, "is_installed", lambda _: False)
    result = CliRunner().invoke(app, ["sync", str(sweep.paths.root)])
    assert (result.exit_code, result.stderr) == (2, 'trackio is missing: pip install "emosteer[trackio]"\n')
    trackio_runs.log_to_trackio(sweep, build(sweep))
    assert not sweep.paths.trackio.exists()
