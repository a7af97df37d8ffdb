"""The view and the report name keys that runs have, of the runs of their sweep, and are saved once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_wandb_runs import make_sweep
from wandb_stand_in import ENTITY, KEY, Server, stand_in

from emosteer.records.sweep import Sweep
from emosteer.tables import build
from emosteer.tracking import run as run_module
from emosteer.tracking.axes import CONFIG_KEYS
from emosteer.tracking.run import Destination
from emosteer.tracking.sweep_runs import sweep_runs


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return make_sweep(tmp_path_factory.mktemp("dashboard"))


def command(sweep: Sweep, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which wandb changes for good."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"HOME": str(sweep.paths.root.parent), **variables}
    words = [sys.executable, "-m", "emosteer.sweep_cli", "dashboard", str(sweep.paths.root), *options]
    return subprocess.run(words, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def shown(sweep: Sweep) -> dict[str, Any]:
    """What would be saved, where no server is."""
    done = command(sweep, "--only-show")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def texts(data: Any) -> Iterator[str]:
    """Every text in plain data."""
    if isinstance(data, dict):
        for value in data.values():
            yield from texts(value)
    elif isinstance(data, list):
        for value in data:
            yield from texts(value)
    elif isinstance(data, str):
        yield data


def panels(shown: dict[str, Any]) -> list[dict[str, Any]]:
    sections = shown["workspace"]["section"]["panelBankConfig"]["sections"]
    grids = [block["metadata"] for block in shown["report"]["blocks"] if block["type"] == "panel-grid"]
    return [panel for one in sections for panel in one["panels"]] + [
        panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]
    ]


def test_every_panel_shows_what_runs_have(shown: dict[str, Any], sweep: Sweep) -> None:
    runs = list(sweep_runs(sweep, build(sweep), Destination("p", None, sweep.name, [])))
    cells = [run for run in runs if run.job_type == "cell"]
    in_config = re.compile(r"config:(\w+)\.value")
    in_summary = re.compile(r"summary:(\w+)")
    kinds = set()
    for panel in panels(shown):
        kinds.add(panel["viewType"])
        for text in texts(panel["config"]):
            assert all(key in CONFIG_KEYS for key in in_config.findall(text)), text
            assert all(key in cells[0].summary for key in in_summary.findall(text)), text
        if panel["viewType"] == "Run History Line Plot":
            config = panel["config"]
            assert (config["xAxis"], config["metrics"]) == ("coefficient", ["primary_delta"])
            assert config["groupBy"].removesuffix(".value") in CONFIG_KEYS
    assert kinds == {"Scatter Plot", "Run History Line Plot", "Parallel Coordinates Plot", "Weave", "Media Browser"}
    tables = {name for run in runs for name in run.tables}
    whole = json.dumps(shown)
    assert {name for name in ("replies", "grid") if f'"{name}"' in whole} <= tables


def test_only_runs_of_the_sweep_and_a_grid_for_each_pair(shown: dict[str, Any], sweep: Sweep) -> None:
    sets = [*shown["workspace"]["section"]["runSets"]]
    sets += [one for block in shown["report"]["blocks"] if block["type"] == "panel-grid" for one in block["metadata"]["runSets"]]
    for one in sets:
        wanted = {(item["key"]["section"], item["key"]["name"]): item["value"] for item in one["filters"]["filters"]}
        assert wanted.pop(("run", "group")) == sweep.name
        assert {name for _, name in wanted} <= set(CONFIG_KEYS)
    pairs = [
        value for one in sets for item in one["filters"]["filters"] if (value := item["value"]) in ("joy_sadness", "trust_disgust")
    ]
    assert pairs == ["joy_sadness", "trust_disgust"]


def test_a_sweep_of_more_cells_than_are_drawn_says_so() -> None:
    program = (
        "from emosteer.tracking.wandb_dashboard import dashboard\nfrom emosteer.tracking.run import Destination\n"
        "print(dashboard(Destination('p', None, 's', []), 'me', ['joy_sadness'], 1001).specification())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "draws 1,000 of a sweep's 1,001 cells" in done.stdout
    assert run_module.MAX_TABLE_ROWS > 1001


def saved(server: Server) -> list[tuple[str, str, str]]:
    return [(view["type"], view["entityName"], view["projectName"]) for view in server.views.values()]


def test_saves_once_and_tells_the_addresses_again(sweep: Sweep) -> None:
    with stand_in() as server:
        variables = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
        first, second = (command(sweep, "--json", **variables) for _ in range(2))
        assert first.returncode == 0, first.stderr
        assert json.loads(second.stdout) == json.loads(first.stdout)
        assert saved(server) == [("project-view", ENTITY, "emotions"), ("runs", ENTITY, "emotions")]
        assert server.unknown == []
        for view in server.views.values():
            assert json.loads(view["spec"])
        told = json.loads(first.stdout)
        assert told["report"].startswith(f"{server.url}/{ENTITY}/emotions/reports/")


def test_a_missing_key_a_wrong_one_and_a_missing_library_are_told(sweep: Sweep, tmp_path: Path) -> None:
    sweep.paths.dashboard.unlink(missing_ok=True)
    done = command(sweep)
    assert (done.returncode, done.stderr) == (2, "no key for https://api.wandb.ai: `wandb login`, or set WANDB_API_KEY\n")
    with stand_in() as server:
        done = command(sweep, WANDB_API_KEY="x" * 40, WANDB_BASE_URL=server.url)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"{server.url} did not take the dashboard")
    assert "x" * 40 not in done.stderr
    program = "import sys; sys.modules['wandb_workspaces'] = None; import importlib.util\n"
    program += (
        "find = importlib.util.find_spec; importlib.util.find_spec = lambda n, *a: None if n == 'wandb_workspaces' else find(n, *a)\n"
    )
    program += f"sys.argv[1:] = ['dashboard', {str(sweep.paths.root)!r}, '--only-show']; from emosteer.sweep_cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, 'wandb-workspaces is missing: pip install "emosteer[dashboard]"\n')
