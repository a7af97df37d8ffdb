"""What commands print while they work: on a terminal how far they are, elsewhere two lines at most, and on stdout nothing of it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_sweep import join, made_up_cell, publish, random_scores, with_company
from wandb_stand_in import KEY, stand_in

import emosteer
from emosteer.records.store import Store
from emosteer.records.sweep import Sweep
from emosteer.vectors import EmotionVector

VECTOR = EmotionVector(torch.randn(8, 16, generator=torch.Generator().manual_seed(3)), torch.arange(1.0, 9.0))
LINE = re.compile(r"\d\d:\d\d:\d\d INFO ")
TRACKING = {"name": "wandb", "project": "emotions", "entity": None, "mode": "auto", "tags": [], "upload_patience": 60, "wait": True}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return made(tmp_path_factory.mktemp("shown"), TRACKING)


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return made(tmp_path_factory.mktemp("untracked"), {"name": "none"})


def made(root: Path, tracking: dict[str, Any]) -> Sweep:
    sweep = Sweep(root / "mine", Store(root / "store"))
    cells = with_company([made_up_cell(sweep.store)])
    join(sweep, cells, tracking=tracking)
    for number, cell in enumerate(cells):
        scores = random_scores(10, number) | {"duplication": [0.0] * 10, "perplexity": [10.0 + i / 7 for i in range(10)]}
        publish(sweep.store, sweep.scorers(), cell, scores)
        if cell.vector:
            path = sweep.store.paths.vector(cell.vector_id)
            emosteer.save_vector(VECTOR, path)
            path.with_suffix(".json").write_text(
                json.dumps({"n_pairs": 24, "split_half": [0.9] * 8, "auc": [None] * 8, "site": "residual"})
            )
    return sweep


@dataclass
class Done:
    """What a command printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        """What it said of its work, one line each."""
        return [LINE.sub("", line) for line in self.stderr.splitlines() if LINE.match(line)]


def run(sweep: Sweep, words: list[str], on_terminal: bool, **variables: str) -> Done:
    """A command in a process of its own, whose stderr is a terminal or a pipe."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"HOME": str(sweep.paths.root.parent), "TERM": "xterm", "COLUMNS": "120", **variables}
    command = [sys.executable, "-m", "emosteer.sweep_cli", *words]
    if not on_terminal:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return Done(done.returncode, done.stdout, done.stderr)
    ours, its = pty.openpty()
    said: list[bytes] = []

    def read() -> None:
        while True:
            try:
                said.append(os.read(ours, 1 << 16))
            except OSError:  # Nobody has the other end any more.
                return

    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=its, text=True)
    os.close(its)
    reader = threading.Thread(target=read)
    reader.start()
    stdout, _ = child.communicate()
    reader.join()
    os.close(ours)
    return Done(child.returncode, stdout, b"".join(said).decode(errors="replace"))


def export(sweep: Sweep, to: Path) -> list[str]:
    cell = sweep.tasks()[0].cell.id
    return ["export", str(sweep.paths.root), cell, "--to", str(to), "--json"]


def test_export_shows_on_a_terminal_what_goes_on(sweep: Sweep, tmp_path: Path) -> None:
    done = run(sweep, export(sweep, tmp_path), on_terminal=True)
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["cell_id"] == sweep.tasks()[0].cell.id
    assert "building the tables of mine" in done.stderr
    assert done.lines == []


def test_export_says_a_line_elsewhere(sweep: Sweep, tmp_path: Path) -> None:
    done = run(sweep, export(sweep, tmp_path), on_terminal=False)
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["cell_id"] == sweep.tasks()[0].cell.id
    assert done.lines == ["building the tables of mine, for the card"]
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_cell_is_told_in_one_line_all_the_same(sweep: Sweep) -> None:
    done = run(sweep, ["export", str(sweep.paths.root), "nobody"], on_terminal=False)
    assert (done.code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("on_terminal", [True, False])
def test_sync_shows_how_many_runs_are_uploaded(sweep: Sweep, on_terminal: bool, tmp_path: Path) -> None:
    with stand_in() as server:
        words = ["sync", str(sweep.paths.root), "--json", "--project", f"shown-{on_terminal}"]
        done = run(sweep, words, on_terminal, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    n = told["n_uploaded"]
    assert told["n_left"] == 0 < n
    if on_terminal:
        for text in ("building the tables of mine", "writing runs", "uploading runs"):
            assert text in done.stderr
        assert re.search(rf"uploading runs.*0/{n}", done.stderr)
        assert done.lines == []
    else:
        assert done.lines == ["building the tables of mine", "writing and uploading the runs that are missing"]
        assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("on_terminal", [True, False])
def test_dashboard_shows_that_it_works(sweep: Sweep, on_terminal: bool) -> None:
    done = run(sweep, ["dashboard", str(sweep.paths.root), "--only-show"], on_terminal)
    assert done.code == 0, done.stderr
    assert {"workspace", "report"} <= set(json.loads(done.stdout))
    assert "putting together the view and the report of mine" in done.stderr
    assert len(done.lines) == (0 if on_terminal else 1)


@pytest.mark.parametrize("on_terminal", [True, False])
@pytest.mark.parametrize(
    ("words", "stages"),
    [
        (["report", "--json"], ["building the tables of mine", "drawing the figures and writing the report"]),
        (["figures", "--json"], ["building the tables of mine", "drawing the figures"]),
        (["compare", "--json"], ["lining up the cells of mine and mine"]),
        (["power", "--json", "--effect", "1"], ["reading the scores of mine"]),
    ],
    ids=lambda value: value[0] if "--json" in value else "",
)
def test_what_reads_a_whole_sweep_shows_that_it_works(
    untracked: Sweep, words: list[str], stages: list[str], on_terminal: bool
) -> None:
    which = [str(untracked.paths.root)] * (2 if words[0] == "compare" else 1)
    done = run(untracked, [words[0], *which, *words[1:]], on_terminal)
    assert done.code == 0, done.stderr
    json.loads(done.stdout)
    if on_terminal:
        assert all(text in done.stderr for text in stages)
        assert done.lines == []
    else:
        assert done.lines == stages
        assert len(done.stderr.splitlines()) == len(stages)


@pytest.mark.parametrize("on_terminal", [True, False])
def test_the_summary_stands_alone_on_stdout(untracked: Sweep, on_terminal: bool) -> None:
    done = run(untracked, ["report", str(untracked.paths.root)], on_terminal)
    assert done.code == 0, done.stderr
    assert done.stdout.lstrip().startswith("mine: ")
    assert "building" not in done.stdout


def test_without_json_stdout_has_the_answer_alone(sweep: Sweep, tmp_path: Path) -> None:
    cell = sweep.tasks()[0].cell.id
    done = run(sweep, ["export", str(sweep.paths.root), cell, "--to", str(tmp_path)], on_terminal=True)
    assert done.stdout.splitlines()[0] == f"{cell}:"
    assert "building" not in done.stdout
