"""`emosteer-sweep` on a real SLURM: a worker is killed, another added, all cancelled; what fails is explained, mended, retried."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from desk import Desk
from typer.testing import CliRunner, Result

from emosteer.sweep_cli import app

LAUNCH = Path(__file__).parent.parent.parent / "launch"
SLURM = ("-m", "hydra/launcher=slurm", "hydra.launcher.mem_gb=0.5", "hydra.launcher.cpus_per_task=1")
SLOW = ("generation=sampled", "generation.n_samples=60", "generation.max_new_tokens=100", "generation.min_new_tokens=100")
SCORER = """
from pathlib import Path

def measured(replies):
    if not Path(__file__).parent.joinpath("mended").exists() and not Path({mended!r}).exists():
        raise ValueError("the scorer is broken")
    return {{"measured": [1.0 for _ in replies]}}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a fake GPU each."""
    sys.path.insert(0, str(LAUNCH))
    try:
        from dev_cluster.cluster import Cluster
        from dev_cluster.settings import Settings
    finally:
        sys.path.remove(str(LAUNCH))
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as directory, Cluster(directory, Settings()) as up:
        yield up


@pytest.fixture
def here(desk: Desk, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The desk, where SLURM's commands speak to the cluster."""
    desk.environment |= cluster.environment
    monkeypatch.chdir(desk.directory)
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(desk.library))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(str(desk.library))
    return desk


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False, prog_name="emosteer-sweep")


def data(*arguments: str) -> Any:
    done = call(*arguments, "--json")
    return json.loads(done.stdout)


def eventually(is_so: Callable[[Any], bool], look: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What is seen when it is so."""
    deadline = time.monotonic() + seconds
    while not is_so(seen := look()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.3)
    return seen


def states(seen: Any) -> list[str]:
    return [one["state"] for one in seen["workers"]]


def test_a_worker_is_killed_another_added_and_all_cancelled(here: Desk, cluster: Any) -> None:
    other = cluster.run("sbatch", "--parsable", "--mem=100", "--job-name=emosteer-not-ours", "--wrap=sleep 600").stdout.strip()
    grid = ("layer=0,1,2", "coefficient=0.1,0.2", "prompts.limit=40", "worker.cells_per_claim=2", "hydra.launcher.workers=3")
    done = here.run(*SLURM, *SLOW, *grid)
    assert done.code == 0, done.text

    def look() -> Any:
        return data("status", "tiny")

    seen = eventually(lambda seen: seen["counts"]["running"] == 4, look)
    assert states(seen) == ["running", "running", "waiting"]
    assert {one["node"] for one in seen["workers"][:2]} == {"n1", "n2"}
    assert seen["workers"][2]["detail"] == "Resources"
    assert (seen["slurm"]["finaliser"]["state"], seen["slurm"]["finaliser"]["detail"]) == ("waiting", "Dependency")
    rows = [one for one in seen["cells"] if one["state"] == "running"]
    assert {one["job"] for one in rows} == {one["job"] for one in seen["workers"][:2]}

    killed = seen["workers"][0]
    os.kill(killed["pid"], signal.SIGKILL)
    seen = eventually(lambda seen: "lost" in states(seen), look, 20)
    assert [one["job"] for one in seen["workers"] if one["state"] == "lost"] == [killed["job"]]
    assert not [one for one in seen["cells"] if one["state"] == "running" and one["job"] == killed["job"]]
    assert "Killed" in call("logs", "tiny", "--worker", killed["job"]).stdout
    assert {item["kind"] for item in data("gc", "tiny")["items"]} == {"claim"}

    added = data("workers", "add", "tiny", "1")["submitted"]
    assert (added["workers"], added["earlier_workers"]) == (1, 2)
    listed = data("workers", "list", "tiny")["workers"]
    assert len(listed) == 4
    assert f"{added['jobs'][0]}_0" in [one["job"] for one in listed]

    cancelled = data("cancel", "tiny")["cancelled"]
    assert other not in cancelled
    assert killed["job"] not in cancelled
    assert len(cancelled) == 4, "two workers, one in the queue, and the job behind them all"
    left = eventually(lambda jobs: len(jobs) == 1, cluster.jobs, 20)
    assert [(job.id, job.state) for job in left] == [(other, "RUNNING")]
    seen = look()
    assert (seen["counts"]["running"], seen["slurm"]["live"]) == (0, False)
    # One that had not written yet is told as cancelled.
    assert states(seen)[0] == "lost"
    assert set(states(seen)[1:]) <= {"cancelled", "ended"}
    assert call("cancel", "tiny").stdout.startswith("tiny: nothing to cancel")
    cluster.run("scancel", other)


def test_what_failed_is_explained_mended_and_retried(here: Desk, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    (here.library / "of_mine.py").write_text(SCORER.format(mended=str(mended)))
    done = here.run(*SLURM, "layer=1", "coefficient=0.1", "hydra.launcher.workers=1", "+scorers.of_mine._target_=of_mine.measured")
    assert done.code == 0, done.text
    watched = call("watch", "tiny")
    assert watched.exit_code == 1, watched.output

    seen = data("status", "tiny")
    assert seen["counts"] == {"done": 0, "failed": 3, "running": 0, "pending": 0, "total": 3}
    job = seen["workers"][0]["job"]
    assert {(one["job"], one["attempt"], one["message"]) for one in seen["failures"]} == {(job, 1, "the scorer is broken")}
    text = call("logs", "tiny", "joy_sadness").stdout
    assert "ValueError: the scorer is broken" in text
    assert "of_mine.py" in text

    mended.touch()
    one = data("retry", "tiny", "joy_sadness")
    assert (len(one["retried"]), one["submitted"]["workers"], one["counts"]["failed"]) == (1, 1, 2)
    rest = data("retry", "tiny")
    assert (len(rest["retried"]), rest["submitted"]["earlier_workers"]) == (2, 1)
    lines = [json.loads(line) for line in call("watch", "tiny", "--json").stdout.splitlines()]
    assert (lines[-1]["counts"]["done"], lines[-1]["settled"]) == (3, True)
    assert data("status", "tiny")["counts"]["failed"] == 0
    eventually(lambda seen: not seen["slurm"]["live"], lambda: data("status", "tiny"), 30)
    assert here.results()["status"].tolist().count("done") == len(here.results())
