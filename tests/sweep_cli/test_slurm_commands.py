"""`emosteer-sweep` on made-up sweeps whose jobs SLURM has, had, or says nothing of: a double stands in for SLURM's commands."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made_up_sweep import made_up_cell, publish, settings
from typer.testing import CliRunner, Result

from emosteer.records.cell import Cell
from emosteer.records.publish import publish_json
from emosteer.records.store import Store
from emosteer.records.sweep import Command, Sweep, Task
from emosteer.records.workers import WorkerState
from emosteer.slurm.client import NoSlurm, SlurmAway, SlurmRefused
from emosteer.slurm.following import View
from emosteer.slurm.options import SlurmOptions
from emosteer.sweep_cli import app

NAME = "emosteer-mine-aaaa"
HOUR = 3600.0


@dataclass
class Slurm:
    """Stands in for SLURM's commands."""

    jobs: dict[str, tuple[str, str, str, str]] = field(default_factory=dict)
    """id -> name, state, reason, node."""
    accounts: dict[str, str] | None = None
    """id -> state; None where the site has no accounting."""
    is_away: bool = False
    refusal: str = ""
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, *command: str, seconds: float = 0) -> str:
        self.asked.append(command)
        if self.is_away:
            raise SlurmAway("Unable to contact slurm controller (connect failure)")
        if command[0] == "squeue":
            return "".join(f"{id_}|{'|'.join(job)}\n" for id_, job in self.jobs.items())
        if command[0] == "sbatch" and self.refusal:
            raise SlurmRefused(self.refusal)
        if command[:2] == ("sbatch", "--parsable"):
            id_ = str(90 + len(self.jobs))
            self.has(f"{id_}_0", "RUNNING", name=Path(command[-1]).stem)
            return f"{id_}\n"
        if command[0] == "sacct":
            if self.accounts is None:
                raise NoSlurm("SLURM's sacct is not on PATH")
            return "".join(f"{id_}|{NAME}-0|{state}|n1\n" for id_, state in self.accounts.items())
        return ""

    def has(self, id_: str, state: str, reason: str = "None", node: str = "n1", name: str = f"{NAME}-0") -> None:
        self.jobs[id_] = (name, state, reason, node)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    found = Slurm()
    monkeypatch.setattr("emosteer.slurm.client.ask", found)
    return found


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep of three cells in outputs/, of which the first is done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # nothing here has to survive a power cut
    sweep = Sweep(tmp_path / "outputs" / "mine", Store(tmp_path / "outputs" / "store"))
    cells = [made_up_cell(sweep.store, n_prompts=2, coefficient=value) for value in (0.1, 0.2, 0.3)]
    line = ["emosteer", "-m", "coefficient=0.1,0.2,0.3"]
    sweep.add(Command(line, settings(), {"host": "here", "directory": str(tmp_path)}, [Task(cell) for cell in cells]))
    publish(sweep.store, sweep.scorers(), cells[0])
    return sweep


def cells_of(sweep: Sweep) -> list[Cell]:
    return [task.cell for task in sweep.tasks()]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False, prog_name="emosteer-sweep")


def data(*arguments: str | Path, code: int = 0) -> Any:
    done = call(*arguments, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def submitted(sweep: Sweep, n_workers: int = 1, array: str = "7", token: str = "aaaa", **changes: Any) -> None:
    """A submission: an array of workers, and the job 8 behind it."""
    options = {**vars(SlurmOptions(workers=n_workers)), "partition": "long"}
    store, here = str(sweep.store.paths.root), str(Path.cwd())
    facts = {
        "token": token, "name": f"emosteer-mine-{token}", "options": options, "store": store, "directory": here, "code": None,
        "version": "0", "time": time.time(), "arrays": {array: n_workers}, "finaliser": "8", "is_whole": True, "ended": None,
    }  # fmt: skip
    publish_json(sweep.paths.slurm.submission(token), facts | changes)


def says(sweep: Sweep, age: float, job: str = "7_0", restarts: int = 0, node: str = "n1", **changes: Any) -> None:
    """What a worker wrote so many seconds ago."""
    now = time.time()
    facts = {"stage": "generating", "published": 3, "tokens_per_second": 1234.0} | changes
    pid = facts.pop("pid", 4321 + restarts)
    WorkerState(job, restarts, "aaaa", node, node, pid, now - age - 60, now - age, **facts).write(sweep.paths.slurm)


def holds(sweep: Sweep, cell: Cell, silent: float = 0.0, job: str = "7_0", pid: int = 4321) -> Path:
    """The lease of a worker on another machine."""
    path = sweep.store.paths.claims / cell.id
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"host": "n1", "node": "n1", "pid": pid, "job": job, "token": "x", "attempt": 1}))
    os.utime(path, (time.time() - silent,) * 2)
    return path


def fail(sweep: Sweep, cell: Cell, **facts: Any) -> None:
    traceback = "Traceback (most recent call last):\n  here\nValueError: bad"
    known = {"exception": "ValueError", "message": "bad\nvalue", "traceback": traceback, "attempt": 2, "time": "now"}
    sweep.record_failure(cell, {**known, "host": "n1", "node": "n1", "job": "7_0", **facts})


# --- workers: what they said, and what SLURM says


@pytest.mark.parametrize(
    ("said", "in_queue", "accounted", "expected"),
    [
        # Nothing written yet.
        (None, "PENDING", None, "waiting"),
        (None, "RUNNING", None, "starting"),
        (None, "FAILED", None, "ended"),
        (None, "CANCELLED", None, "cancelled"),
        (None, None, "OUT_OF_MEMORY", "ended"),
        (None, None, None, "ended"),
        (None, "away", None, "not known"),
        # It said that it leaves.
        ({"ended": "every cell is settled", "exit_code": 0}, None, None, "ended"),
        ({"ended": "every cell is settled", "exit_code": 0}, "COMPLETING", None, "ended"),
        ({"ended": "every cell is settled", "exit_code": 0}, "away", None, "ended"),
        # It says that it works, a moment ago.
        ({"age": 3}, "RUNNING", None, "running"),
        ({"age": 3}, "away", None, "running"),
        ({"age": 3}, "FAILED", None, "lost"),
        ({"age": 3}, "CANCELLED", None, "lost"),
        ({"age": 3}, "NODE_FAIL", None, "not known"),
        ({"age": 3}, "PENDING", None, "not known and waiting"),
        ({"age": 3}, None, None, "not known"),
        ({"age": 3}, None, "OUT_OF_MEMORY", "lost"),
        # It said so an hour ago.
        ({"age": HOUR}, "RUNNING", None, "silent"),
        ({"age": HOUR}, "PENDING", None, "lost and waiting"),
        ({"age": HOUR}, "away", None, "not known"),
        ({"age": HOUR}, "NODE_FAIL", None, "lost"),
        ({"age": HOUR}, None, None, "lost"),
        ({"age": HOUR}, None, "TIMEOUT", "lost"),
        ({"age": HOUR}, None, "RUNNING", "lost"),
    ],
)  # fmt: skip
def test_the_state_of_a_worker(
    sweep: Sweep, slurm: Slurm, said: dict[str, Any] | None, in_queue: str | None, accounted: str | None, expected: str
) -> None:
    submitted(sweep)
    if said is not None:
        says(sweep, **{"age": 3, **said})
    slurm.is_away = in_queue == "away"
    slurm.accounts = {"7_0": accounted} if accounted else None
    if in_queue is not None:
        slurm.has("7_0", in_queue, node="" if in_queue == "PENDING" else "n1")

    states = [one["state"] for one in data("status", "mine", code=3)["workers"]]
    assert sorted(states) == sorted(expected.split(" and "))


def test_a_sweep_without_jobs_asks_slurm_nothing(sweep: Sweep, slurm: Slurm) -> None:
    for command in (
        ("status", "mine"),
        ("workers", "list", "mine"),
        ("cancel", "mine"),
        ("gc",),
        ("logs", "mine", cells_of(sweep)[0].id),
    ):
        assert call(*command).exit_code in (0, 3), command
    assert slurm.asked == []
    assert data("status", "mine", code=3)["slurm"] is None


def test_status_tells_jobs_workers_and_reasons(sweep: Sweep, slurm: Slurm) -> None:
    submitted(sweep, 3)
    says(sweep, 2)
    slurm.has("7_0", "RUNNING")
    slurm.has("7_1", "PENDING", "Priority", "")
    slurm.has("7_2", "PENDING", "Priority", "")
    slurm.has("8", "PENDING", "Dependency", "", name=f"{NAME}-end")
    holds(sweep, cells_of(sweep)[1])

    text = call("status", "mine").stdout
    assert "SLURM: workers 1 running, 2 waiting; job 8 for the results: waiting, Dependency\n" in text
    assert "waiting: 2 workers, as SLURM says: Priority\n" in text
    assert "7_0         1  n1    running      1          3       0     1,234     -  generating\n" in text
    assert "watch:   emosteer-sweep watch mine\n" in text
    assert "goes on: " not in text
    found = data("status", "mine", code=3)
    assert [(one["job"], one["state"], one["detail"], one["running"]) for one in found["workers"]] == [
        ("7_0", "running", "generating", 1), ("7_1", "waiting", "Priority", 0), ("7_2", "waiting", "Priority", 0)
    ]  # fmt: skip
    assert (found["slurm"]["answers"], found["slurm"]["live"], found["slurm"]["finaliser"]["state"]) == (True, True, "waiting")


@pytest.mark.parametrize("how", ["away", "not here", "refuses"])
def test_slurm_that_says_nothing_is_told_and_is_no_error(
    sweep: Sweep, slurm: Slurm, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(sweep, 2)
    says(sweep, HOUR)
    holds(sweep, cells_of(sweep)[1])
    errors = {
        "away": SlurmAway("Unable to contact"),
        "not here": NoSlurm("squeue is not on PATH"),
        "refuses": SlurmRefused("bad config"),
    }

    def ask(*command: str, seconds: float = 0) -> str:
        raise errors[how]

    monkeypatch.setattr("emosteer.slurm.client.ask", ask)
    done = call("status", "mine")
    assert done.exit_code == 3
    assert f"SLURM: not known, it does not answer ({errors[how]})\n" in done.stdout
    found = data("status", "mine", code=3)
    assert [one["state"] for one in found["workers"]] == ["not known", "not known"]
    assert found["slurm"] | {"finaliser": None} == {
        "answers": False, "why": str(errors[how]), "finaliser": None, "live": True, "interrupted": []
    }  # fmt: skip
    assert found["counts"]["running"] == 1, "its lease is live, and nobody knows better"
    listed = call("workers", "list", "mine")
    assert (listed.exit_code, listed.stderr) == (0, f"SLURM does not answer: {errors[how]}\n")


def test_what_a_lost_worker_holds_is_pending_and_what_one_holds_that_may_live_is_running(sweep: Sweep, slurm: Slurm) -> None:
    """The first was killed; the node of the second is lost to SLURM, and it goes on writing."""
    submitted(sweep, 2)
    says(sweep, 2, "7_0")
    says(sweep, 2, "7_1", restarts=1)
    slurm.has("7_0", "OUT_OF_MEMORY")
    slurm.has("7_1", "NODE_FAIL")
    first, second = cells_of(sweep)[1:]
    holds(sweep, first, 20.0, "7_0", 4321)
    holds(sweep, second, 20.0, "7_1", 4322)

    found = data("status", "mine", code=3)
    assert [found["states"][cell.id] for cell in (first, second)] == ["pending", "running"]
    why = {one["id"]: one["why"] for one in found["cells"]}
    assert "7_0" in why[first.id]
    assert why[second.id] is None
    assert "lost" in call("status", "mine").stdout


def test_what_workers_time_goes_to_is_shown(sweep: Sweep, slurm: Slurm) -> None:
    submitted(sweep, 2)
    engine = {"engine_path": "shared", "engine_reason": "it may", "batch_rows": 256, "rows": 211.4}
    says(sweep, 2, "7_0", spent={"loading": 10.0, "decode": 80.0, "other": 0.1}, **engine)
    says(sweep, 2, "7_1", spent={"decode": 20.0, "scoring": 90.0, "waiting": 0.0})
    slurm.has("7_0", "RUNNING")
    slurm.has("7_1", "RUNNING")

    shown = call("status", "mine").stdout
    assert "their time: decode 50%, scoring 45%, loading 5%\n" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("7_0 ")]
    assert line.split()[-3:] == ["1,234", "211", "generating"]
    (said,) = [one for one in data("status", "mine", code=3)["workers"] if one["job"] == "7_0"]
    assert {key: said[key] for key in engine} == engine
    assert said["spent"]["decode"] == 80.0


def test_a_start_of_the_same_job_is_a_worker_of_its_own(sweep: Sweep, slurm: Slurm) -> None:
    submitted(sweep)
    says(sweep, 300, restarts=0, ended="SLURM wants its node back: the job is to start again", exit_code=75)
    slurm.has("7_0", "PENDING", "BeginTime", "")
    assert [(one["start"], one["state"]) for one in data("status", "mine", code=3)["workers"]] == [(None, "waiting"), (1, "ended")]

    says(sweep, 1, restarts=1, node="n2")
    slurm.has("7_0", "RUNNING", node="n2")
    assert [(one["start"], one["state"]) for one in data("status", "mine", code=3)["workers"]] == [(2, "running"), (1, "ended")]


def test_a_start_that_has_the_process_number_of_the_one_before_keeps_what_it_holds(sweep: Sweep, slurm: Slurm) -> None:
    submitted(sweep)
    says(sweep, 300, restarts=0)
    says(sweep, 1, restarts=1, pid=4321)
    slurm.has("7_0", "RUNNING")
    lease = holds(sweep, cells_of(sweep)[1], 1.0)

    found = data("status", "mine", code=3)
    assert [(one["start"], one["state"]) for one in found["workers"]] == [(2, "running"), (1, "lost")]
    assert found["states"][lease.name] == "running"
    assert data("gc")["items"] == []


def test_a_job_of_the_same_number_and_another_name_is_none_of_ours(sweep: Sweep, slurm: Slurm) -> None:
    """The directory has come to another cluster."""
    submitted(sweep)
    slurm.has("7_0", "RUNNING", name="somebodys-work")

    assert [one["state"] for one in data("status", "mine", code=3)["workers"]] == ["ended"]
    assert data("cancel", "mine")["cancelled"] == []
    assert not [command for command in slurm.asked if command[0] == "scancel"]


def test_the_accounting_is_asked_only_for_ends_that_nobody_tells(sweep: Sweep, slurm: Slurm) -> None:
    submitted(sweep, 2, finaliser=None)
    slurm.accounts = {"7_1": "OUT_OF_MEMORY"}
    says(sweep, 100, "7_0", ended="every cell is settled", exit_code=0)
    slurm.has("7_1", "RUNNING")
    call("status", "mine")
    assert not [command for command in slurm.asked if command[0] == "sacct"]

    slurm.jobs.clear()
    says(sweep, 100, "7_1")
    assert "SLURM: OUT_OF_MEMORY" in call("status", "mine").stdout


def test_many_workers_that_ended_are_cut_on_the_terminal_only(sweep: Sweep, slurm: Slurm) -> None:
    submitted(sweep, 30)
    for task in range(30):
        says(sweep, 100, f"7_{task}", ended="every cell is settled", exit_code=0)

    text = call("status", "mine").stdout
    assert text.count("every cell is settled") == 12
    assert "and 18 more that ended; `emosteer-sweep workers list mine` has all" in text
    assert call("workers", "list", "mine").stdout.count("every cell is settled") == 30
    assert len(data("status", "mine", code=3)["workers"]) == 30


def test_an_interrupted_submission_is_told(sweep: Sweep, slurm: Slurm) -> None:
    submitted(sweep, arrays={}, finaliser=None, is_whole=False, submitter={"host": "login1", "pid": 99})

    assert f"process 99 on login1 is submitting {NAME}, or ended" in call("status", "mine").stdout
    assert data("status", "mine", code=3)["slurm"]["interrupted"] == [NAME]


# --- cells


def test_cells_have_attempt_place_and_reason(sweep: Sweep, slurm: Slurm) -> None:
    submitted(sweep)
    done, failed, left = cells_of(sweep)
    fail(sweep, failed)
    for token in ("a", "b"):
        sweep.record_loss(left, token, {"host": "n1", "node": "n1", "job": f"7_{token}", "pid": 1, "reason": f"reason {token}"})
        os.utime(sweep.paths.loss(left.id, token), (time.time() + ord(token),) * 2)

    rows = {one["id"]: one for one in data("status", "mine", code=1)["cells"]}
    assert [rows[done.id][key] for key in ("state", "attempt", "node", "job", "seconds", "lost", "why")] == [
        "done", 1, "here", None, 1.5, 0, None
    ]  # fmt: skip
    assert [rows[failed.id][key] for key in ("state", "attempt", "node", "job", "seconds", "why")] == [
        "failed", 2, "n1", "7_0", None, "ValueError: bad\nvalue"
    ]  # fmt: skip
    assert [rows[left.id][key] for key in ("state", "attempt", "lost", "why")] == [
        "pending", None, 2, "2 workers lost, the last one 7_b on n1: reason b"
    ]  # fmt: skip
    holds(sweep, left)
    slurm.has("7_0", "RUNNING")
    rows = {one["id"]: one for one in data("status", "mine", code=1)["cells"]}
    assert [rows[left.id][key] for key in ("state", "attempt", "node", "job")] == ["running", 3, "n1", "7_0"]
    lines = call("status", "mine", "--cells").stdout.splitlines()
    assert next(line for line in lines if line.startswith(failed.id)).split()[1:5] == ["failed", "2", "n1", "7_0"]
    assert sum(line.startswith(tuple(rows)) for line in lines) == 3


# --- cancel


def test_cancel_ends_own_jobs_and_says_how_to_go_on(sweep: Sweep, slurm: Slurm) -> None:
    submitted(sweep, 2)
    slurm.has("7_0", "RUNNING")
    slurm.has("7_1", "COMPLETED")
    slurm.has("8", "PENDING", "Dependency", "", name=f"{NAME}-end")

    done = call("cancel", "mine")
    assert (done.exit_code, done.stdout) == (
        0,
        "cancelled: 1 worker (7_0)\ncancelled: job 8 for the results\n2 tasks left; goes on: emosteer-sweep retry mine --all\n",
    )
    assert [command[-1] for command in slurm.asked if command[0] == "scancel"] == ["8", "7"], "else the finaliser would submit again"
    slurm.jobs.clear()
    assert call("cancel", "mine").stdout == "mine: nothing to cancel, none of its jobs is in SLURM's queue\n"
    assert [one["state"] for one in data("status", "mine", code=3)["workers"]] == ["cancelled", "cancelled"]
    assert "goes on: emosteer-sweep retry mine --all\n" in call("status", "mine").stdout


def test_cancel_of_a_sweep_that_was_never_submitted(sweep: Sweep, slurm: Slurm) -> None:
    assert call("cancel", "mine").stdout == "mine: nothing to cancel, it was never submitted to SLURM\n"


# --- logs


def log(sweep: Sweep, name: str, text: str) -> Path:
    directory = sweep.paths.logs if name.endswith(".log") else sweep.paths.slurm.output
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)
    return directory / name


def test_logs_of_a_failed_cell(sweep: Sweep) -> None:
    failed, other = cells_of(sweep)[1:]
    fail(sweep, failed)
    first = f"2026-01-01 10:00:01,123 ERROR emosteer.worker: {failed.id} failed: ValueError: bad"
    day = "2026-01-01 10:00:0"
    others = f"{day}0,123 INFO emosteer.worker: a", f"{day}2,123 INFO emosteer: {other.id} is fine"
    kept = log(sweep, "n1-4321.log", f"{others[0]}\n{first}\nvalue\n{others[1]}\n")
    again = f"10:00:03 WARNING {failed.id} again"
    same = f"10:00:01 ERROR {failed.id} failed: ValueError: bad"
    printed = log(sweep, "7_0_0_log.err", f"{same}\nvalue\n{again}\nTraceback\n10:00:04 INFO end\n")

    found = data("logs", "mine", failed.id)
    assert found["failure"]["traceback"].startswith("Traceback")
    assert found["lines"] == [
        {"file": str(kept), "lines": [first, "value"]},
        {"file": str(printed), "lines": [again, "Traceback"]},
    ]
    text = call("logs", "mine", failed.id).stdout
    assert text.startswith(f"{failed.id}: failed (attempt 2, job 7_0, on n1)\n\nTraceback (most recent call last):\n  here\n")
    assert "\n== outputs/mine/logs/n1-4321.log\n" in text
    assert "is fine" not in text


def test_logs_of_a_cell_whose_workers_were_lost(sweep: Sweep) -> None:
    left = cells_of(sweep)[1]
    sweep.record_loss(left, "x", {"host": "n1", "node": "n1", "job": "7_1", "pid": 1, "reason": "killed", "time": "noon"})
    sweep.record_loss(left, "y", {"host": "laptop", "node": "laptop", "job": None, "pid": 77, "reason": "killed too", "time": "one"})
    log(sweep, "7_1_0_log.err", "".join(f"10:00:00 INFO line {i}\n" for i in range(40)) + "slurmstepd: error: oom-kill\n")
    log(sweep, "7_10_0_log.err", "of another task\n")
    log(sweep, "laptop-77.log", "2026-01-01 10:00:00,123 INFO emosteer: last words\n")

    text = call("logs", "mine", left.id).stdout
    assert f"{left.id}: pending\n" in text
    assert "lost: worker 7_1 on n1, noon: killed\n\n== outputs/mine/slurm/output/7_1_0_log.err (its last 15 lines)\n" in text
    assert text.count("INFO line ") == 14
    assert "oom-kill" in text
    assert "last words" in text
    assert "of another task" not in text


def test_logs_of_a_cell_of_which_nobody_wrote(sweep: Sweep) -> None:
    done = call("logs", "mine", cells_of(sweep)[0].id)
    assert (done.exit_code, done.stdout.splitlines()[1:]) == (0, ["No line names it."])


def test_logs_of_a_worker(sweep: Sweep) -> None:
    says(sweep, 5)
    log(sweep, "7_0_0_log.err", "printed\n")
    log(sweep, "7_0_0_log.out", "")
    log(sweep, "n1-4321.log", "kept\n")
    log(sweep, "laptop-77.log", "at home \u2028 \n")

    assert [one["lines"] for one in data("logs", "mine", "--worker", "7_0")["files"]] == [["printed"], []]
    assert "at home" in call("logs", "mine", "--worker", "laptop-77").stdout
    for path in sweep.paths.slurm.output.iterdir():
        path.unlink()
    assert "kept" in call("logs", "mine", "--worker", "7_0").stdout, "what it printed is gone"


def test_logs_say_what_there_is(sweep: Sweep) -> None:
    log(sweep, "laptop-77.log", "")
    wrong = {"": "laptop-77", "--worker 9_9": "laptop-77", "nothing": "status mine --cells", "joy_sadness": "so begin joy_sadness"}
    for given, part in wrong.items():
        arguments = given.split()
        done = call("logs", "mine", *arguments)
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), arguments
        assert part in done.stderr
    unique = cells_of(sweep)[1].id[:-6]
    assert call("logs", "mine", unique).stdout.startswith(cells_of(sweep)[1].id)


# --- retry, workers add


def test_a_worker_that_leaves_is_not_counted_on(sweep: Sweep, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job is in the queue for some seconds more: what is retried then needs another."""
    monkeypatch.setattr("emosteer.slurm.submitting.keep_code", lambda *_: None)
    submitted(sweep)
    slurm.has("7_0", "RUNNING")
    says(sweep, 1)
    assert data("retry", "mine", "--all")["submitted"]["workers"] == 0
    says(sweep, 1, ended="every cell is settled", exit_code=0)
    assert data("retry", "mine", "--all")["submitted"]["workers"] == 1


def test_retry_takes_named_cells_only(sweep: Sweep) -> None:
    done, first, second = cells_of(sweep)
    fail(sweep, first)
    fail(sweep, second)

    assert data("retry", "mine", second.id, "--only-forget", code=1)["retried"] == [second.id]
    assert [sweep.state(cell, sweep.scorers()) for cell in (first, second)] == ["failed", "pending"]
    for arguments, part in (
        ((done.id,), "is done"),
        (("--workers", "3"), "--workers is for"),
        ((first.id, "--all"), "give cells, or"),
    ):
        refused = call("retry", "mine", *arguments)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert part in refused.stderr
    holds(sweep, second)
    assert "is running" in call("retry", "mine", second.id).stderr


def test_retry_all_takes_what_was_left_and_counts_its_attempts_from_one(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Sequence[Task]] = []
    monkeypatch.setattr("emosteer.launcher.work", lambda sweep: ran.append(sweep.unsettled(sweep.tasks(), sweep.scorers())))
    monkeypatch.setattr("emosteer.finaliser.write_views", lambda sweep, stage: None)
    monkeypatch.setattr("emosteer.finaliser.conclude", lambda sweep, tables, show: None)
    failed, left = cells_of(sweep)[1:]
    fail(sweep, failed)
    sweep.record_loss(left, "x", {"reason": "killed"})

    assert data("retry", "mine", "--all")["retried"] == [failed.id, left.id]
    assert [task.cell.id for task in ran[0]] == [failed.id, left.id]
    assert not sweep.attempts()


def test_where_slurm_refuses_the_workers_nothing_is_forgotten(sweep: Sweep, slurm: Slurm) -> None:
    submitted(sweep)
    slurm.refusal = "Invalid account"
    fail(sweep, failed := cells_of(sweep)[1])

    done = call("retry", "mine")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "Invalid account" in done.stderr
    assert sweep.failure(failed) is not None
    assert len(list(sweep.paths.slurm.submissions.glob("*.json"))) == 1


def test_a_sweep_goes_where_its_last_command_went(sweep: Sweep, slurm: Slurm) -> None:
    """Submitted yesterday, then continued on this machine: so is what is left."""
    submitted(sweep, time=time.time() - 24 * HOUR)
    assert "goes on: emosteer -m coefficient=0.1,0.2,0.3\n" in call("status", "mine").stdout
    submitted(sweep, token="bbbb")
    assert "goes on: emosteer-sweep retry mine --all\n" in call("status", "mine").stdout


def test_workers_add_needs_a_submission_and_something_to_do(sweep: Sweep, slurm: Slurm) -> None:
    never = call("workers", "add", "mine", "2")
    assert (never.exit_code, never.stdout, never.stderr.count("\n")) == (2, "", 1)
    assert "hydra/launcher=slurm" in never.stderr
    submitted(sweep)
    for cell in cells_of(sweep)[1:]:
        publish(sweep.store, sweep.scorers(), cell)
    assert "nothing is left to do" in call("workers", "add", "mine", "2").stderr
    assert call("workers", "add", "mine", "0").exit_code == 2
    assert slurm.asked == []


# --- watch


def test_watch_ends_with_the_sweep(sweep: Sweep) -> None:
    for cell in cells_of(sweep)[1:]:
        publish(sweep.store, sweep.scorers(), cell)
    done = call("watch", "mine")
    assert (done.exit_code, "3 done; 0 workers at work" in done.stdout) == (0, True)
    lines = [json.loads(line) for line in call("watch", "mine", "--json").stdout.splitlines()]
    assert [(line["counts"]["done"], line["settled"]) for line in lines] == [(3, True)]


def test_watch_of_a_sweep_on_which_nobody_works(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emosteer.slurm.following.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("emosteer.slurm.following.QUEUE_SECONDS", 0.02)
    done = call("watch", "mine")
    assert done.exit_code == 3
    assert "Nobody works on mine; 2 tasks not done: emosteer-sweep status mine" in done.stdout


def test_watch_tells_each_change_once(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emosteer.slurm.following.LOOK_SECONDS", 0.01)
    looks = 0
    counted = View.is_settled.fget

    def settled(view: View) -> bool:
        nonlocal looks
        looks += 1
        if looks in (4, 8):
            publish(sweep.store, sweep.scorers(), cells_of(sweep)[looks // 4])
        return bool(counted and counted(view))

    monkeypatch.setattr(View, "is_settled", property(settled))
    lines = [json.loads(line) for line in call("watch", "mine", "--json").stdout.splitlines()]
    assert [line["counts"]["done"] for line in lines] == [1, 2, 3]


def test_ctrl_c_ends_the_watching_only(sweep: Sweep, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("emosteer.slurm.following.views", interrupted)
    local = call("watch", "mine")
    assert (local.exit_code, local.stderr) == (130, "\nNo longer watching mine, which goes on\n")
    submitted(sweep)
    assert "its jobs end by: emosteer-sweep cancel mine" in call("watch", "mine").stderr
    assert not [command for command in slurm.asked if command[0] == "scancel"]


# --- gc


def test_gc_takes_what_a_worker_left_whose_job_has_ended(sweep: Sweep, slurm: Slurm) -> None:
    """Another host's lease and writes else wait for a day and an hour. What may be of a living process stays."""
    submitted(sweep, 2)
    says(sweep, 30, "7_0")
    says(sweep, 3, "7_1", restarts=1)
    slurm.has("7_0", "OUT_OF_MEMORY")
    slurm.has("7_1", "NODE_FAIL")
    first, second = cells_of(sweep)[1:]
    dead, alive = holds(sweep, first, 30.0, "7_0", 4321), holds(sweep, second, 30.0, "7_1", 4322)
    names = (".tmp-a.json.n1.4321.0a", ".tmp-b.json.n1.4322.0b", ".tmp-c.json.n1.4321.0c", ".tmp-d.json.other.4321.0d")
    left, written, later, strange = (sweep.paths.failures / name for name in names)
    left.parent.mkdir()
    for path, age in ((left, 30), (written, 3), (later, 0), (strange, 30)):
        path.write_text("{")
        os.utime(path, (time.time() - age,) * 2)

    listed = call("gc").stdout
    assert f"claim: claims/{dead.name} (" in listed
    assert "job 7_0 has ended" in listed
    assert f"unfinished: outputs/mine/failures/{left.name} (" in listed
    deleted = data("gc", "--delete")
    assert {path for one in deleted["items"] for path in one["paths"]} == {str(dead), str(left)}
    assert [path.exists() for path in (dead, left, alive, written, later, strange)] == [False, False, True, True, True, True]

    slurm.is_away = True
    assert data("gc")["items"] == []
    assert alive.exists()


def test_gc_finds_what_dead_writers_left_in_sweeps(sweep: Sweep) -> None:
    paths = sweep.paths
    old = [directory / ".tmp-x.json.elsewhere.1.0a" for directory in paths.written]
    young = paths.root / ".tmp-y.json.elsewhere.1.0b"
    for path in [*old, young]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    for path in old:
        os.utime(path, (time.time() - 2 * HOUR,) * 2)

    call("gc", "--delete")
    assert not [path for path in old if path.exists()]
    assert young.exists()
    assert call("status", "mine").exit_code == 3, "nothing else is gone"
