"""A desk on a cluster: sweeps that are submitted to it, workers that can be held at a cell, and how a sweep must end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from desk import Desk, Done
from dev_cluster import Cluster, ClusterError, Job
from same_results import assert_same_results

PATIENCE_SECONDS = 300.0
"""For anything that a test waits for: three sweeps may share a busy core meanwhile."""
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "PREEMPTED", "TIMEOUT")
PACED = '''
"""A scorer of the user's own, which takes its time, and can be held."""

import os
import time
from pathlib import Path


def letters(replies):
    """Letters of a reply."""
    is_long = ascii(replies) == os.environ.get("PACED_LONG")
    time.sleep(300 if is_long else float(os.environ.get("PACED_SECONDS", 0)))
    while is_held(Path(os.environ.get("PACED_HOLD", "/nowhere"))):
        time.sleep(0.02)
    return {"letters": [float(len(reply)) for reply in replies]}


def is_held(hold):
    """Whether workers are to stop by now: the file says after how many cells."""
    try:
        after = int(hold.read_text() or 0)
    except FileNotFoundError:
        return False
    return not after or len(list(hold.parent.glob("outputs/store/cells/*/scores/paced-*"))) >= after


def raises(model, pairs, site):
    """A vector method that has a bug."""
    raise ZeroDivisionError("a bug of the user's own")
'''
GRID = (
    "-m",
    "layer=1,2,3",
    "coefficient=0.05,0.08,0.1,0.15,0.2,0.25,0.3,0.35",
    "controls=none",
    "+scorers.paced._target_=paced.letters",
    # Long enough that a busy machine does not take a worker for dead, short enough to wait for.
    "worker.lease_seconds=6",
    "worker.cells_per_claim=1",
    "generation.max_new_tokens=16",
)
"""24 cells and a baseline; a worker holds one at a time."""
N_RECORDS = 25
N_RUNS = N_RECORDS + 2
"""W&B's: of each record, of the vector, and the summary."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class Holder:
    """A worker that holds a cell, as its lease says."""

    cell: str
    job: str
    node: str
    host: str
    pid: int


@dataclass
class SlurmDesk(Desk):
    """A directory in which commands are given to a cluster."""

    cluster: Cluster = field(kw_only=True)
    name: str = field(kw_only=True)
    notes: list[str] = field(default_factory=list)
    """What was seen, for the report of the test."""

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.options = (*(option for option in self.options if not option.startswith("name=")), f"name={self.name}")
        self.environment = {**self.cluster.environment, "PACED_HOLD": str(self._hold), **self.environment}
        self._started = time.monotonic()

    @property
    def sweep(self) -> Path:
        return self.directory / "outputs" / self.name

    @property
    def _hold(self) -> Path:
        return self.directory / "hold"

    def note(self, text: str) -> None:
        """Keep what was seen, with the seconds since the desk was set up."""
        self.notes.append(f"{self.name} {time.monotonic() - self._started:5.1f} s: {text}")

    # Giving commands

    def slurm(self, *launcher: str, workers: int = 2, grid: tuple[str, ...] = GRID) -> tuple[str, ...]:
        """The words that submit a grid. A worker gets a fake GPU and two CPUs."""
        options = {"workers": workers, "cpus_per_task": 2, "signal_delay_s": 30} | dict(one.split("=", 1) for one in launcher)
        return (*grid, "hydra/launcher=slurm", *(f"hydra.launcher.{key}={value}" for key, value in options.items()))

    def submit(self, *launcher: str, workers: int = 2, overrides: tuple[str, ...] = (), grid: tuple[str, ...] = GRID) -> Done:
        """Submit a grid; it must be taken, without loading torch. It ends with 0 unless cells had failed by then."""
        done = self.run(*self.slurm(*launcher, workers=workers, grid=grid), *overrides)
        assert done.code == ("cells failed; see" in done.text), done.text
        assert not done.imported_torch
        self.note("submitted")
        return done

    def sweep_command(self, *words: str) -> Done:
        """Give an `emosteer-sweep` command."""
        done = subprocess.run(
            [sys.executable, "-m", "emosteer.sweep_cli", *words],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(self.library), "OMP_NUM_THREADS": "1", "COLUMNS": "100", **self.environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        return Done(done.returncode, done.stdout, done.stderr, imported_torch=False)

    def status(self) -> dict[str, Any]:
        """What `emosteer-sweep status` says, its exit code included."""
        done = self.sweep_command("status", self.name, "--json")
        assert done.out, done.err
        return {**json.loads(done.out), "exit_code": done.code}

    def _sure_status(self) -> dict[str, Any] | None:
        said = self.status()
        return None if "not known" in {worker["state"] for worker in said["workers"]} else said

    def cancel(self) -> None:
        """End the sweep's jobs."""
        done = self.sweep_command("cancel", self.name)
        assert done.code == 0, done.text

    # Looking

    def wait_for(self, look: Callable[[], Found], what: str, patience: float = PATIENCE_SECONDS) -> Found:
        """Look until there is something; fails, with what SLURM and the workers say, when patience ends."""
        end = time.monotonic() + patience
        while True:
            with ignoring_silence():
                if found := look():
                    self.note(what)
                    return found
            if time.monotonic() > end:
                raise AssertionError(f"not so after {patience:.0f} s: {what}\n{self.diagnosis()}")
            time.sleep(0.05)

    def jobs(self, ended: bool = True) -> dict[str, Job]:
        """The sweep's own jobs that SLURM knows, a task of an array each, by id."""
        return {job.id: job for job in self.cluster.jobs(ended) if job.name.startswith(f"emosteer-{self.name}-")}

    def states(self) -> dict[str, str]:
        """SLURM's word for each of the sweep's jobs."""
        return {id_: job.state for id_, job in self.jobs().items()}

    def holders(self) -> list[Holder]:
        """Who holds a cell, one for each worker, in the order of their jobs."""
        found = {}
        for path in (self.store / "claims").glob("[!.]*"):
            try:
                owner = json.loads(path.read_text())
            except (FileNotFoundError, ValueError):
                continue
            if owner["job"] and not path.name.startswith("residual_norms") and "mean_difference" not in path.name:
                found[owner["job"], owner["pid"]] = Holder(path.name, owner["job"], owner["node"], owner["host"], owner["pid"])
        return [found[key] for key in sorted(found)]

    def submissions(self) -> list[dict[str, Any]]:
        """What the sweep keeps of each submission, oldest first."""
        paths = (self.sweep / "slurm" / "submissions").glob("[!.]*.json")
        return sorted((json.loads(path.read_text()) for path in paths), key=lambda one: one["time"])

    def failures(self) -> list[dict[str, Any]]:
        """What the sweep keeps of each failed cell."""
        return [json.loads(path.read_text()) for path in sorted((self.sweep / "failures").glob("[!.]*.json"))]

    def losses(self) -> list[dict[str, Any]]:
        """What the sweep keeps of each worker that ended with a cell in its hands."""
        return [json.loads(path.read_text()) for path in sorted((self.sweep / "losses").glob("[!.]*.json"))]

    def nodes(self) -> set[str]:
        """The nodes that published a record."""
        return {json.loads(path.read_text())["provenance"]["node"] for path in self.records().values()}

    def diagnosis(self) -> str:
        """What SLURM knows, and how the logs end."""
        said = [*self.notes, str(self.cluster.run("squeue", "--array", "--states=all", check=False).stdout)]
        logs = [*(self.sweep / "slurm" / "output").glob("*"), *(self.sweep / "logs").glob("*")]
        said += [f"{path.name}: ...{path.read_text(errors='replace')[-1500:]}" for path in logs if path.is_file()]
        return "\n".join(said)

    # Disturbing

    def hold(self, after: int = 0) -> None:
        """A worker stops at the cell that it holds, before the cell is done: the first one, or when so many cells are done."""
        self._hold.write_text(str(after))

    def let_go(self) -> None:
        """Workers go on."""
        self._hold.unlink(missing_ok=True)
        self.note("let go")

    def at_work(self, n: int) -> list[Holder]:
        """Wait until so many workers hold a cell."""
        return self.wait_for(lambda: found if len(found := self.holders()) >= n else [], f"{n} at work")

    def kill(self, holder: Holder) -> None:
        """Kill a worker's Python, as the kernel does where memory runs out."""
        os.kill(holder.pid, signal.SIGKILL)

    # How it must end

    def wait_until_ended(self, patience: float = PATIENCE_SECONDS) -> dict[str, str]:
        """Wait until no job of the sweep is left in the queue; the last states of those that SLURM still knows."""
        seen: dict[str, str] = {}

        def is_over() -> bool:
            now = self.states()
            seen.update(now)
            return bool(now) and all(state in ENDED for state in now.values())

        # A job that is requeued may look ended for a moment: twice nothing is nothing.
        self.wait_for(lambda: is_over() and not time.sleep(1.0) and is_over(), "all jobs ended", patience)
        return seen

    def ends_as(self, reference: Desk) -> dict[str, str]:
        """Wait for the end, and compare with an undisturbed run; the last states of the jobs."""
        states, n_records = self.wait_until_ended(), len(reference.records())
        self.note(f"states {states}, losses {len(self.losses())}, submissions {len(self.submissions())}")
        assert len(self.records()) == n_records, self.diagnosis()
        assert self.failures() == [], self.diagnosis()
        assert_same_results(self, reference)
        self.has_left_nothing()
        self.says_the_truth(0, done=n_records)
        return states

    def says_the_truth(self, exit_code: int, **counts: int) -> None:
        """Of a sweep whose jobs have ended `emosteer-sweep status` tells so many tasks of each state, and no worker at work."""
        # Of a start on a node that SLURM lost it is not known for a minute: it may live on.
        said = self.wait_for(self._sure_status, "of every worker it is known what became of it")
        expected = {"done": 0, "failed": 0, "running": 0, "pending": 0, **counts}
        expected["total"] = sum(expected.values())
        assert (said["exit_code"], said["counts"]) == (exit_code, expected), f"{said}\n{self.diagnosis()}"
        assert {worker["state"] for worker in said["workers"]} <= {"ended", "lost", "cancelled"}, said["workers"]
        assert not said["slurm"]["live"]

    def has_left_nothing(self) -> None:
        """No job, no temporary file, no lease, and each W&B run once."""
        assert self.jobs(ended=False) == {}
        assert self.unfinished() == []
        assert list((self.store / "claims").iterdir()) == []
        assert list((self.sweep / "slurm" / "locks").iterdir()) == []
        assert len(set(self.wandb_runs())) == len(self.wandb_runs())

    def wandb_runs(self) -> list[str]:
        """Ids of the W&B runs in the sweep's directory: one for each record and vector, and the summary."""
        return [path.name.rsplit("-", 1)[-1] for path in (self.sweep / "wandb").glob("*run-*") if path.is_dir()]


@contextmanager
def ignoring_silence() -> Iterator[None]:
    """A controller that does not answer is what some tests are about."""
    try:
        yield
    except ClusterError:
        time.sleep(0.2)
