"""`emosteer-sweep` on made-up sweeps: what it prints, what it leaves on the disk, and how it ends."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_up_sweep import PROVENANCE, join, made_up_cell, publish, random_replies, settings, with_company
from typer.testing import CliRunner, Result

import emosteer
from emosteer.records.cell import ATTRIBUTION, BASELINE, CELL, CONTROL, Cell
from emosteer.records.claims import Claims
from emosteer.records.store import Resolved, Store
from emosteer.records.sweep import Command, Sweep, Task
from emosteer.sweep_cli import app

COMMANDS = ("ls", "status", "watch", "logs", "report", "figures", "power", "retry", "cancel", "workers", "gc")
DAY = 86400.0
STRANGE = "two words 'quoted' \"twice\" été 雪"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which commands are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # nothing here has to survive a power cut
    return tmp_path


def call(*arguments: str | Path) -> Result:
    """What the command does with these arguments, in this process; errors in the code itself are raised."""
    return CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False, prog_name="emosteer-sweep")


def data(*arguments: str | Path, code: int = 0) -> Any:
    """The JSON that a command prints; nothing else may be on stdout."""
    done = call(*arguments, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def sweep_of(outputs: Path, name: str = "mine", store: str = "store") -> Sweep:
    return Sweep(outputs / name, Store(outputs / store))


def grid(store: Store, *coefficients: float, **changes: Any) -> list[Cell]:
    return [made_up_cell(store, n_prompts=4, coefficient=coefficient, **changes) for coefficient in coefficients]


def fill(sweep: Sweep, cells: Sequence[Cell], line: Sequence[str] = ("emosteer", "-m", "layer=2,4"), **more: Any) -> list[Cell]:
    """Join cells with their company, and publish all of them."""
    company = with_company(cells)
    add(sweep, company, line, **more)
    for cell in company:
        publish(sweep.store, sweep.scorers(), cell)
    return company


def add(sweep: Sweep, cells: Sequence[Cell], line: Sequence[str] = ("emosteer", "-m", "layer=2,4"), **more: Any) -> None:
    directory = more.pop("directory", str(Path.cwd()))
    sweep.add(Command(list(line), settings(**more), {"host": "here", "directory": directory}, [Task(cell) for cell in cells]))


def fail(sweep: Sweep, cell: Cell, message: str = "no more memory") -> None:
    facts = {"exception": "RuntimeError", "message": message, "traceback": "Traceback ...", "attempt": 1, "host": "n1", "time": "now"}
    sweep.record_failure(cell, facts)


def damage(sweep: Sweep, content: str = "{broken") -> Path:
    """Spoil the sweep's oldest manifest."""
    path = min(sweep.paths.commands.glob("*.json"))
    path.write_text(content)
    return path


def contents(root: Path) -> dict[Path, bytes | None]:
    """All below a directory."""
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


# --- help


def test_alone_it_explains_itself(desk: Path) -> None:
    alone, asked = call(), call("--help")

    assert alone.exit_code == asked.exit_code == 0
    assert alone.stdout == asked.stdout
    for command in COMMANDS:
        assert re.search(rf"^  {command}  +[A-Z].*\.$", alone.stdout, re.MULTILINE), command
    assert "--install-completion" in alone.stdout


@pytest.mark.parametrize("command", [*COMMANDS[:-2], "workers add", "workers list", "gc"])
def test_every_help_teaches(desk: Path, command: str) -> None:
    done = call(*command.split(), "--help")

    assert done.exit_code == 0
    text = " ".join(done.stdout.split())
    for part in ("Examples: emosteer-sweep " + command, "Exit codes: 0 ", "JSON: ", "disk", "--json"):
        assert part in text, part
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_version(desk: Path) -> None:
    assert call("--version").stdout == f"emosteer-sweep {emosteer.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("status",), ("status", "a", "b"), ("gc", "--older-than", "soon"), ("ls", "--wrong")]
)
def test_wrong_arguments_end_with_two(desk: Path, arguments: tuple[str, ...]) -> None:
    done = call(*arguments)

    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Error: " in done.stderr


# --- ls


def test_ls_counts_every_sweep(desk: Path) -> None:
    first, second = sweep_of(desk / "outputs", "first"), sweep_of(desk / "outputs", "second")
    fill(first, grid(first.store, 0.1, 0.2))
    add(second, cells := [*grid(first.store, 0.1, 0.3), made_up_cell(first.store, "trust_disgust", n_prompts=4)])
    fail(second, cells[1])

    lines = {line["name"]: line for line in data("ls")}
    assert list(lines) == ["first", "second"], "the store is no sweep"
    assert lines["first"] | {"last_command": ""} == {
        "name": "first", "directory": str(desk / "outputs" / "first"), "done": 5, "failed": 0, "running": 0, "pending": 0, "total": 5,
        "models": ["made-up"], "pairs": ["joy_sadness"], "last_command": "",
    }  # fmt: skip
    assert [lines["second"][key] for key in ("done", "failed", "pending", "total")] == [1, 1, 1, 3]
    assert lines["second"]["pairs"] == ["joy_sadness", "trust_disgust"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", lines["first"]["last_command"])

    rows = [line.split("  ") for line in call("ls").stdout.splitlines()]
    assert [[part.strip() for part in row if part.strip()][:3] for row in rows] == [
        ["sweep", "done", "failed"], ["first", "5/5", "0"], ["second", "1/3", "1"]
    ]  # fmt: skip


def test_ls_in_a_pipe_is_aligned_and_never_cut(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs", "a" * 100)
    fill(sweep, grid(sweep.store, 0.1))
    short = sweep_of(desk / "outputs", "b")
    fill(short, grid(sweep.store, 0.1))

    header, *rows = call("ls").stdout.splitlines()
    assert rows[0].startswith("a" * 100 + "  ")
    assert len({row.index("made-up") for row in rows} | {header.index("models")}) == 1


@pytest.mark.parametrize("arguments", [("ls",), ("ls", "empty")])
def test_no_sweeps_says_where_it_looked_and_how_to_make_one(desk: Path, arguments: tuple[str, ...]) -> None:
    (desk / "empty" / "store" / "cells").mkdir(parents=True)
    done = call(*arguments)

    assert (done.exit_code, done.stdout) == (0, "")
    assert str(desk / (arguments[1:] or ("outputs",))[0]) in done.stderr
    assert "emosteer -m" in done.stderr
    assert data(*arguments) == []


def test_a_directory_that_is_not_there(desk: Path) -> None:
    (desk / "file").write_text("")
    for name in ("nowhere", "file"):
        done = call("ls", name)
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert name in done.stderr


def test_a_directory_that_cannot_be_read(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk / "closed").mkdir()
    iterdir = Path.iterdir

    def refuse(path: Path) -> Any:
        if "closed" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    for command in ("ls", "status"):
        done = call(command, "closed")
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert re.match(r".*closed.*: Permission denied\n", done.stderr)


@pytest.mark.parametrize("content", ["{broken", "[]", '{"store": 3}', '{"store": "/s", "tasks": {}, "line": []}'])
def test_a_damaged_manifest_leaves_the_other_lines(desk: Path, content: str) -> None:
    for name in ("a", "b", "c"):
        fill(sweep_of(desk / "outputs", name), grid(Store(desk / "outputs" / "store"), 0.1))
    path = damage(sweep_of(desk / "outputs", "b"), content)

    done = call("ls")
    assert done.exit_code == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [["a", "3/3"], ["b", "?"], ["c", "3/3"]]
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr
    assert [sorted(line) for line in data("ls", code=1)][1] == ["directory", "error", "name"]


def test_a_scorer_that_is_gone_leaves_the_other_lines(desk: Path) -> None:
    for name in ("a", "b"):
        sweep = sweep_of(desk / "outputs", name)
        fill(sweep, grid(sweep.store, 0.1))
    manifest = min(sweep.paths.commands.glob("*.json"))
    manifest.write_text(manifest.read_text().replace("emosteer.scoring.fluency.words", "module_that_is_gone.words"))

    done = call("ls")
    assert done.exit_code == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [["a", "3/3"], ["b", "?"]]
    assert "module_that_is_gone" in done.stderr


@pytest.mark.parametrize("where", ["outputs", STRANGE])
def test_strange_names(desk: Path, where: str) -> None:
    sweep = sweep_of(desk / where, STRANGE)
    fill(sweep, grid(sweep.store, 0.1))
    name = STRANGE if where == "outputs" else sweep.paths.root

    assert [line["name"] for line in data("ls", where)] == [STRANGE]
    assert STRANGE in call("ls", where).stdout
    assert data("status", name)["counts"]["done"] == 3
    assert data("report", name)["complete"]


def test_a_sweep_lists_itself(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs")
    fill(sweep, grid(sweep.store, 0.1))

    assert [line["name"] for line in data("ls", "outputs/mine")] == ["mine"]


# --- which sweep


def test_a_sweep_that_is_not_there(desk: Path) -> None:
    for name in ("first", "second"):
        sweep = sweep_of(desk / "outputs", name)
        fill(sweep, grid(sweep.store, 0.1))
    commands = ("status", "watch", "logs", "report", "retry", "cancel", "workers add", "workers list", "gc")
    for command in commands:
        done = call(*command.split(), "third", *(["1"] if command == "workers add" else []))
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), command
        for part in (str(desk / "third"), str(desk / "outputs" / "third"), "first, second"):
            assert part in done.stderr


def test_without_any_sweep_it_says_how_to_make_one(desk: Path) -> None:
    assert "emosteer -m" in call("status", "mine").stderr


@pytest.mark.parametrize("content", ["{broken", '{"store": "/s", "line": [], "settings": {}, "tasks": {"a": {"cell": {}}}}'])
@pytest.mark.parametrize("command", ["status", "report", "retry"])
def test_a_damaged_manifest_is_named(desk: Path, command: str, content: str) -> None:
    sweep = sweep_of(desk / "outputs")
    fill(sweep, grid(sweep.store, 0.1))
    add(sweep, grid(sweep.store, 0.2))
    path = damage(sweep, content)
    done = call(command, "mine")

    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert str(path) in done.stderr


def test_a_tree_that_was_moved_keeps_its_store(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs")
    fill(sweep, grid(sweep.store, 0.1))
    (desk / "outputs").rename(desk / "elsewhere")

    found = data("status", "elsewhere/mine")
    assert found["store"] == str(desk / "elsewhere" / "store")
    assert found["counts"]["done"] == 3
    assert data("gc", "elsewhere/mine")["store"] == str(desk / "elsewhere" / "store")


def test_a_store_elsewhere_is_found(desk: Path) -> None:
    sweep = Sweep(desk / "outputs" / "mine", Store(desk / "far" / "shared"))
    fill(sweep, grid(sweep.store, 0.1))
    (desk / "outputs" / "shared").mkdir()

    assert data("status", "mine")["store"] == str(desk / "far" / "shared")


# --- status


def test_status_splits_and_explains(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs")
    company = fill(sweep, grid(sweep.store, 0.1, 0.2))
    more = [*grid(sweep.store, 0.3, 0.4, 0.5), made_up_cell(sweep.store, "trust_disgust", n_prompts=4)]
    attribution = Cell(ATTRIBUTION, more[0].model, pair=more[0].pair, attribution=more[0].attribution)
    add(sweep, [*more, attribution], ["emosteer", "-m", "coefficient=0.3,0.4", "name=my sweep"], directory="/far away")
    fail(sweep, more[0], "first line\nsecond line")
    claims = Claims(sweep.store.paths.claims, 60.0)
    leases = [claims.take(more[1].id), claims.take(more[2].id), claims.take(company[0].id)]
    assert all(leases)
    os.utime(sweep.store.paths.claims / more[2].id, (time.time() - 120,) * 2)

    found = data("status", "mine", code=1)
    assert found["counts"] == {"done": 5, "failed": 1, "running": 1, "pending": 3, "total": 10}
    assert {kind: (counts["done"], counts["total"]) for kind, counts in found["kinds"].items()} == {
        CELL: (2, 6), CONTROL: (2, 2), BASELINE: (1, 1), ATTRIBUTION: (0, 1)
    }  # fmt: skip
    groups = {(one["model"], one["pair"]): (one["done"], one["failed"], one["running"], one["pending"]) for one in found["groups"]}
    assert groups == {
        ("made-up", "joy_sadness"): (2, 1, 1, 2),
        ("made-up", None): (3, 0, 0, 0),
        ("made-up", "trust_disgust"): (0, 0, 0, 1),
    }
    assert found["states"] == {cell.id: "done" for cell in company} | {
        more[0].id: "failed", more[1].id: "running", more[2].id: "pending", more[3].id: "pending", attribution.id: "pending"
    }  # fmt: skip
    workers = [{key: one[key] for key in ("host", "pid", "job", "state", "running")} for one in found["workers"]]
    assert workers == [{"host": os.uname().nodename, "pid": os.getpid(), "job": None, "state": "running", "running": 1}]
    assert found["slurm"] is None, "nothing was submitted, so that nothing is asked"
    assert found["goes_on"] == {"command": "emosteer -m coefficient=0.3,0.4 'name=my sweep'", "directory": "/far away"}
    failure = found["failures"][0]
    assert failure == {
        "id": more[0].id, "kind": CELL, "exception": "RuntimeError", "message": "first line\nsecond line", "host": "n1",
        "node": None, "job": None, "attempt": 1, "time": "now", "file": str(sweep.paths.failure(more[0].id)),
    }  # fmt: skip
    assert "Traceback" in Path(failure["file"]).read_text()

    text = call("status", "mine").stdout
    assert (
        f"failed: {more[0].id}: RuntimeError: first line second line (traceback: outputs/mine/failures/{more[0].id}.json)\n" in text
    )
    assert "goes on: cd '/far away' && emosteer -m coefficient=0.3,0.4 'name=my sweep'\n" in text
    assert f"running: 1 task by process {os.getpid()} on {os.uname().nodename}, at residual norms\n" in text
    assert re.search(r"^cells +2 +1 +1 +2 +6$", text, re.MULTILINE)


def test_status_says_what_a_process_is_at(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs")
    cells = grid(sweep.store, 0.1, 0.2)
    attribution = Cell(ATTRIBUTION, cells[0].model, pair=cells[0].pair, attribution=cells[0].attribution)
    add(sweep, [*cells, cells[0].baseline(), attribution])
    claims, paths = Claims(sweep.store.paths.claims, 60.0), sweep.store.paths
    leases = [claims.take(cell.id) for cell in (*cells, attribution)]

    def at() -> str:
        (worker,) = data("status", "mine", code=3)["workers"]
        assert f"on {os.uname().nodename}, {worker['detail']}\n" in call("status", "mine").stdout
        return str(worker["detail"])

    def put(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")

    assert at() == "at attribution", "what it does first for all that it holds"
    put(paths.attribution_summary(attribution.attribution_id))
    assert at() == "at residual norms"
    put(paths.residual_norms(cells[0].norms_id))
    assert at() == "at vectors"
    put(paths.vector(cells[0].vector_id))
    assert at() == "at replies"
    for cell in cells:
        sweep.store.publish(cell, random_replies(sweep.store, cell, 0), Resolved((2,), 3.0, cell.coefficient), PROVENANCE)
        assert at() == ("at replies" if cell == cells[0] else "at scores")
    assert all(leases)


def test_exit_codes_of_status(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs")
    fill(sweep, grid(sweep.store, 0.1))
    assert call("status", "mine").exit_code == 0
    assert data("status", "mine")["goes_on"] is None

    add(sweep, cells := grid(sweep.store, 0.2, 0.3))
    assert call("status", "mine").exit_code == 3
    fail(sweep, cells[0])
    assert call("status", "mine").exit_code == 1


def test_a_cell_that_lacks_a_score_is_pending(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs")
    cell = fill(sweep, grid(sweep.store, 0.1))[0]
    sweep.store.cell_paths(cell).score(sweep.scorers()[0].key).unlink()

    assert data("status", "mine", code=3)["states"][cell.id] == "pending"


def test_many_failures_are_cut_on_the_terminal_only(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs")
    add(sweep, cells := grid(sweep.store, *(i / 100 for i in range(1, 31))))
    for cell in cells:
        fail(sweep, cell)

    text = call("status", "mine").stdout
    assert text.count("failed: ") == 20
    assert "and 10 more failed" in text
    assert len(data("status", "mine", code=1)["failures"]) == 30


def test_a_damaged_failure_file_is_told(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs")
    add(sweep, cells := grid(sweep.store, 0.1))
    fail(sweep, cells[0])
    sweep.paths.failure(cells[0].id).write_text("{")

    assert "damaged" in data("status", "mine", code=1)["failures"][0]["message"]


@pytest.mark.parametrize("arguments", [("ls",), ("status", "mine"), ("status", "mine", "--json"), ("gc",), ("gc", "--unreferenced")])
def test_looking_changes_nothing(desk: Path, arguments: tuple[str, ...]) -> None:
    sweep = sweep_of(desk / "outputs")
    company = fill(sweep, grid(sweep.store, 0.1))
    sweep.store.discard(company[0])
    claims = Claims(sweep.store.paths.claims, 60.0)
    assert claims.take(company[0].id)
    before = contents(desk)
    call(*arguments)

    assert contents(desk) == before


# --- report


def test_report_twice_gives_the_same_files(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs")
    fill(sweep, grid(sweep.store, 0.1, 0.2))
    first = call("report", "mine")
    files = contents(sweep.paths.root)
    second = data("report", "mine")

    assert first.exit_code == 0
    assert "mine: 2 cells (2 done)" in first.stdout
    assert "Half done" not in first.stdout
    assert contents(sweep.paths.root) == files
    assert second["complete"]
    assert second["rows"] == {
        "results": 4,
        "replies": 5 * 4,
        "trends": second["rows"]["trends"],
        "confirmations": 1,
        "predictions": 3,
        "agreement": 1,
        "turns": 0,
    }
    listed = {Path(path).name for path in second["files"].values() if isinstance(path, str)}
    assert {path.name for path in sweep.paths.root.glob("*.csv")} == {name for name in listed if name.endswith(".csv")}
    assert all(
        Path(second["files"][name]).is_file()
        for name in (
            "summary",
            "results_parquet",
            "results_csv",
            "replies_parquet",
            "trends_csv",
            "confirmations_csv",
            "predictions_csv",
            "agreement_csv",
            "report_html",
        )
    )
    assert len(second["files"]["figures"]) == 2
    assert all(Path(path).is_file() for path in second["files"]["figures"])


def test_what_a_tracker_prints_stays_out_of_the_json(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(desk / "outputs")
    fill(sweep, grid(sweep.store, 0.1))
    monkeypatch.setattr("emosteer.tracking.log_sweep", lambda *_: print("wandb: syncing"))
    done = call("report", "mine", "--json")

    assert json.loads(done.stdout)["complete"]
    assert "wandb: syncing" in done.stderr


def test_report_of_a_half_done_sweep_says_so(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs")
    fill(sweep, grid(sweep.store, 0.1))
    add(sweep, cells := grid(sweep.store, 0.2, 0.3))
    fail(sweep, cells[0])
    done = call("report", "mine")

    assert done.exit_code == 0
    assert "Half done: of 5 tasks 1 failed, 1 pending." in done.stdout
    assert not data("report", "mine")["complete"]


def test_report_of_a_sweep_in_which_nothing_is_done(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs")
    add(sweep, with_company(grid(sweep.store, 0.1)))

    assert data("report", "mine")["rows"]["replies"] == 0
    assert call("report", "mine").exit_code == 0


# --- retry


class Work:
    """Stands in for the launcher's `work`: publishes what is pending, save what shall fail again."""

    def __init__(self, *failing: Cell) -> None:
        self.failing = {cell.id for cell in failing}
        self.ran: list[str] = []
        self.directory = Path()

    def __call__(self, sweep: Sweep) -> None:
        self.directory = Path.cwd()
        scorers = sweep.scorers()
        for task in sweep.unsettled(sweep.tasks(), scorers):
            self.ran.append(task.cell.id)
            if task.cell.id in self.failing:
                fail(sweep, task.cell, "again")
            else:
                publish(sweep.store, scorers, task.cell)


@pytest.fixture
def half_failed(desk: Path) -> tuple[Sweep, list[Cell]]:
    """A sweep of which two cells failed, and one is pending."""
    sweep = sweep_of(desk / "outputs")
    fill(sweep, grid(sweep.store, 0.1))
    add(sweep, cells := grid(sweep.store, 0.2, 0.3, 0.4), directory=str(desk / "outputs"))
    fail(sweep, cells[0])
    fail(sweep, cells[1])
    return sweep, cells


def test_retry_runs_what_failed_and_what_is_missing(
    desk: Path, half_failed: tuple[Sweep, list[Cell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, cells = half_failed
    worker = Work()
    monkeypatch.setattr("emosteer.launcher.work", worker)
    done = call("retry", "mine")

    assert done.exit_code == 0
    assert worker.ran == [cell.id for cell in cells]
    assert worker.directory == desk / "outputs", "where the last command was given"
    assert Path.cwd() == desk
    assert done.stdout.startswith(f"again: {cells[0].id}\nagain: {cells[1].id}\n")
    assert "2 tasks of mine retried, 0 failed again" in done.stdout
    assert sweep.paths.results_csv.exists()
    assert not list(sweep.paths.failures.iterdir())
    assert call("status", "mine").exit_code == 0


def test_retry_says_what_failed_again(half_failed: tuple[Sweep, list[Cell]], monkeypatch: pytest.MonkeyPatch) -> None:
    _, cells = half_failed
    monkeypatch.setattr("emosteer.launcher.work", Work(cells[1]))
    found = data("retry", "mine", code=1)

    assert found["retried"] == [cells[0].id, cells[1].id]
    assert [(one["id"], one["message"]) for one in found["failures"]] == [(cells[1].id, "again")]
    assert found["counts"] == {"done": 5, "failed": 1, "running": 0, "pending": 0, "total": 6}
    text = call("retry", "mine")
    assert text.exit_code == 1
    assert "1 task of mine retried, 1 failed again" in text.stdout


def test_retry_can_forget_only(half_failed: tuple[Sweep, list[Cell]], monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, cells = half_failed
    worker = Work()
    monkeypatch.setattr("emosteer.launcher.work", worker)
    done = call("retry", "mine", "--only-forget")

    assert done.exit_code == 0
    assert worker.ran == []
    assert "2 failures of mine forgotten; nothing was run" in done.stdout
    assert {sweep.state(cell, sweep.scorers()) for cell in cells} == {"pending"}
    assert not sweep.paths.results_csv.exists()


def test_nothing_to_retry(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Work()
    monkeypatch.setattr("emosteer.launcher.work", worker)
    sweep = sweep_of(desk / "outputs")
    fill(sweep, grid(sweep.store, 0.1))
    assert call("retry", "mine").stdout == "mine: nothing failed, nothing to retry\n"
    assert data("retry", "mine")["retried"] == []

    add(sweep, grid(sweep.store, 0.2), ["emosteer", "-m", "coefficient=0.2"])
    done = call("retry", "mine")
    assert (done.exit_code, worker.ran) == (0, [])
    assert "1 task not done yet; goes on: emosteer -m coefficient=0.2" in done.stdout


def test_retry_with_the_real_worker_fails_again_where_the_model_is_not_there(half_failed: tuple[Sweep, list[Cell]]) -> None:
    """The made-up model lies at /nowhere: the worker says so for every cell, and its lines stay off stdout."""
    _, cells = half_failed
    logging.getLogger("emosteer").setLevel(logging.INFO)
    found = data("retry", "mine", code=1)

    assert {one["id"] for one in found["failures"]} == {cell.id for cell in cells}
    assert {one["exception"] for one in found["failures"]} == {"EmosteerError"}
    assert "/nowhere" in found["failures"][0]["message"]


# --- gc


def age_all(root: Path, seconds: float) -> None:
    for path in [root, *root.rglob("*")]:
        os.utime(path, (time.time() - seconds,) * 2)


def test_gc_lists_and_deletes_only_when_told(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs")
    company = fill(sweep, grid(sweep.store, 0.1))
    kept = contents(desk)
    publish(sweep.store, [], forced := grid(sweep.store, 0.9)[0])
    sweep.store.discard(forced)
    unfinished = sweep.store.cell_paths(company[0]).scores / ".tmp-nrc.json.elsewhere.1.0123abcd"
    unfinished.write_text("half of it")
    os.utime(unfinished, (time.time() - 7200,) * 2)

    listed = call("gc")
    assert listed.exit_code == 0
    assert f"unfinished: cells/{company[0].id}/scores/{unfinished.name} (10 bytes; its writer is dead)" in listed.stdout
    assert re.search(r"^unfinished +1 +10 bytes$", listed.stdout, re.MULTILINE)
    assert re.search(r"^discarded +1 ", listed.stdout, re.MULTILINE)
    assert listed.stdout.splitlines()[1] == "sweeps: mine"
    command = listed.stdout[listed.stdout.index("To delete it:\n  ") :].splitlines()[1].split()
    assert command == ["emosteer-sweep", "gc", "--delete"]
    assert unfinished.exists()

    deleted = call(*command[1:])
    assert deleted.exit_code == 0
    assert "Deleted: 2 things, " in deleted.stdout
    assert contents(desk) == kept
    assert "Nothing to delete." in call("gc").stdout


def test_gc_repeats_its_own_options(desk: Path) -> None:
    sweep = Sweep(desk / STRANGE / "mine", Store(desk / "store"))
    fill(sweep, grid(sweep.store, 0.1))
    (sweep.store.paths.kinds["cells"] / ".discarded-x").mkdir()

    text = call("gc", desk / "store", "--unreferenced", "--sweeps", desk / STRANGE, "--older-than", "12h").stdout
    assert shlex.split(text[text.index("To delete it:\n") :].splitlines()[1]) == [
        "emosteer-sweep", "gc", str(desk / "store"), "--unreferenced", "--sweeps", str(desk / STRANGE), "--older-than", "12h",
        "--delete",
    ]  # fmt: skip


def test_gc_deletes_a_record_only_with_unreferenced_and_where_no_sweep_wants_it(desk: Path) -> None:
    """A sweep elsewhere is known where it is named, and only then."""
    near, far = sweep_of(desk / "outputs", "near"), Sweep(desk / "far" / "away", Store(desk / "outputs" / "store"))
    fill(near, grid(near.store, 0.1))
    fill(far, grid(near.store, 0.2, seed=5))
    age_all(near.store.paths.root, 3 * DAY)
    all_there = contents(near.store.paths.root)
    ids = {path.parent.name for path in near.store.paths.root.glob("*/*/record.json")}

    assert data("gc", "--delete", "--older-than", "0s")["items"] == []
    kept = data("gc", "--delete", "--unreferenced", "--sweeps", "far")
    assert kept["sweeps"] == [str(desk / "outputs" / "near"), str(desk / "far" / "away")]
    assert kept["items"] == data("gc", "--delete", "--unreferenced", "--sweeps", "far/away")["items"] == []
    young = data("gc", "--delete", "--unreferenced", "--older-than", "7d")
    assert (young["items"], young["young"]) == ([], 2), "a cell and its control, which keep their baseline"
    assert contents(near.store.paths.root) == all_there

    gone = data("gc", "--delete", "--unreferenced")
    assert gone["sweeps"] == [str(desk / "outputs" / "near")]
    assert gone["kinds"].keys() == {"cell", "baseline"}
    assert gone["deleted"]["count"] == 3
    assert gone["deleted"]["bytes"] > 0
    left = {path.parent.name for path in near.store.paths.root.glob("*/*/record.json")}
    assert ids - left == {Path(path).name for item in gone["items"] for path in item["paths"]}
    assert call("status", "near").exit_code == 0
    assert call("status", "far/away").exit_code == 3


def test_gc_finds_the_store_of_a_sweep(desk: Path) -> None:
    sweep = sweep_of(desk / "results", store="shared")
    fill(sweep, grid(sweep.store, 0.1))

    for target in ("results/shared", "results/mine"):
        assert data("gc", target)["store"] == str(sweep.store.paths.root)
    (desk / "results").rename(desk / "outputs")
    assert data("gc", "mine")["store"] == str(desk / "outputs" / "shared")


def test_gc_needs_every_sweep_for_unreferenced(desk: Path) -> None:
    sweep = sweep_of(desk / "outputs")
    fill(sweep, grid(sweep.store, 0.1))
    (sweep.store.paths.kinds["cells"] / ".discarded-x").mkdir()
    path = damage(sweep)

    refused = call("gc", "--unreferenced", "--delete")
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert str(path) in refused.stderr
    listed = call("gc", "--json")
    assert (listed.exit_code, [item["kind"] for item in json.loads(listed.stdout)["items"]]) == (0, ["discarded"])
    assert "left alone" in listed.stderr


@pytest.mark.parametrize(
    "arguments", [("gc",), ("gc", "nowhere"), ("gc", "store", "--sweeps", "empty"), ("gc", "store", "--sweeps", "no")]
)
def test_gc_without_a_store_or_sweeps(desk: Path, arguments: tuple[str, ...]) -> None:
    (desk / "store" / "cells").mkdir(parents=True)
    (desk / "empty").mkdir()
    done = call(*arguments)

    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_gc_says_what_it_could_not_delete(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(desk / "outputs")
    fill(sweep, grid(sweep.store, 0.1))
    stuck = sweep.store.paths.kinds["cells"] / ".discarded-x"
    stuck.mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("emosteer.records.garbage.shutil.rmtree", refuse)
    done = call("gc", "--delete")
    assert done.exit_code == 1
    assert f"{stuck}: Permission denied" in done.stderr


@pytest.mark.parametrize(
    ("age", "seconds"), [("30m", 1800), ("12h", 43200), ("7d", 604800), ("2w", 1209600), ("0s", 0), ("1.5h", 5400)]
)
def test_ages(desk: Path, age: str, seconds: float) -> None:
    (desk / "outputs" / "store" / "cells").mkdir(parents=True)
    assert data("gc", "--older-than", age)["older_than"] == seconds


# --- as a person runs it


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a sweep of which a record is damaged, and 300 others."""
    directory = tmp_path_factory.mktemp("desk")
    sweep = sweep_of(directory / "outputs")
    company = with_company(grid(sweep.store, 0.1))
    join(sweep, company)
    for cell in company:
        publish(sweep.store, sweep.scorers(), cell)
    sweep.store.cell_paths(company[0]).record.write_text("{broken")
    for number in range(300):
        shutil.copytree(sweep.paths.root, directory / "many" / f"sweep-{number}-{'x' * 200}")
    return directory


def run(place: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "emosteer.sweep_cli", *arguments],
        cwd=place,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
        **options,
    )


def test_in_a_process_stdout_is_pure_and_errors_are_one_line(place: Path) -> None:
    status = run(place, "status", "mine", "--json")
    assert status.returncode == 3
    assert json.loads(status.stdout)["counts"]["pending"] == 1
    assert "damaged" in status.stderr

    missing = run(place, "status", "yours")
    assert (missing.returncode, missing.stdout, missing.stderr.count("\n")) == (2, "", 1)
    assert missing.stderr.startswith("yours: no sweep there")


@pytest.mark.parametrize(("command", "reader", "expected"), [("ls many", "head -1", "sweep "), ("ls", "true", "")])
def test_a_closed_pipe_ends_quietly(place: Path, command: str, reader: str, expected: str) -> None:
    """Whether it closes in the midst of the output, or before so little that all of it waits in a buffer."""
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m emosteer.sweep_cli {command} | {reader}; exit "${{PIPESTATUS[0]}}"'],
        cwd=place, text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.startswith(expected)
    assert done.stderr == ""
    assert done.returncode == 141


def test_ctrl_c_ends_quietly(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(desk / "outputs")
    add(sweep, cells := grid(sweep.store, 0.1))
    fail(sweep, cells[0])

    def interrupted(sweep: Sweep) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("emosteer.launcher.work", interrupted)
    done = call("retry", "mine")
    assert done.exit_code == 130
    assert done.stderr == ""


def test_looking_imports_neither_torch_nor_pandas(place: Path) -> None:
    program = """
import contextlib, sys
from emosteer.sweep_cli import app
with contextlib.suppress(SystemExit):
    app(sys.argv[1:])
sys.exit(bool({"torch", "pandas", "matplotlib"} & set(sys.modules)))
"""
    for arguments in (["ls"], ["gc"], ["status", "mine", "--cells"], ["logs", "mine", "baseline"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=place, capture_output=True, timeout=60, check=False)
        assert (done.returncode, bool(done.stdout)) == (0, True), arguments


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("status fi", ["fifth", "first"]),
        ("workers list s", ["second"]),
        ("logs second joy_sadness-L2-c0.2", ["joy_sadness-L2-c0.2"]),
        ("retry second joy_sadness-L2-c0.1 joy_sadness-L2-c0.2", ["joy_sadness-L2-c0.2"]),
        ("logs third joy", []),
    ],
)
def test_names_and_ids_complete(desk: Path, words: str, expected: list[str]) -> None:
    for name in ("first", "fifth", "second"):
        sweep = sweep_of(desk / "outputs", name)
        add(sweep, grid(sweep.store, 0.1, 0.2))
    environment = {
        **os.environ,
        "_EMOSTEER_SWEEP_COMPLETE": "complete_bash",
        "COMP_WORDS": f"emosteer-sweep {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    done = subprocess.run(
        [sys.executable, "-c", "from emosteer.sweep_cli import main; main()"],
        env=environment, text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert [word.rpartition("-")[0] if "-L" in word else word for word in done.stdout.split()] == expected


def test_a_status_reads_each_record_once(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all of its time is spent on that, so that it grows with their number and no faster."""
    sweep = sweep_of(desk / "outputs")
    cell = grid(sweep.store, 0.1)[0]
    cells = [dataclasses.replace(cell, coefficient=i / 100) for i in range(1, 51)]
    add(sweep, cells, scorers={"words": {"_target_": "emosteer.scoring.fluency.words"}})
    (scorer,) = sweep.scorers()
    for cell in cells:
        paths = sweep.store.cell_paths(cell)
        paths.scores.mkdir(parents=True)
        paths.replies.touch()
        paths.record.write_text(json.dumps({"format": 1, "id": cell.id, "replies_bytes": 0, "cell": cell.to_json()}, indent=1))
        paths.score(scorer.key).touch()

    read: list[Cell] = []
    record = Store.record
    monkeypatch.setattr(Store, "record", lambda store, cell: read.append(cell) or record(store, cell))

    assert data("status", "mine")["counts"]["done"] == 50
    assert sorted(one.id for one in read) == sorted(one.id for one in cells)
