"""What each task of the workers' array runs: `python -m emosteer.slurm.worker_job SWEEP TOKEN`.

Told that its time ends, or that another job is to have its node, it gives its cells back and asks SLURM to start it again. A worker
of which a cell failed ends with 1, so that SLURM shows it as FAILED.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import emosteer
from emosteer.cores import prepare_openmp
from emosteer.endings import Stopped, stopped_by_signals
from emosteer.errors import EmosteerError, MachineFault
from emosteer.launcher import logging_to, open_sweep
from emosteer.progress import Reporter, reporting
from emosteer.records import whereabouts
from emosteer.records.beating import beating
from emosteer.records.sweep import Sweep
from emosteer.records.workers import UNFINISHED, WorkerState
from emosteer.slurm import client
from emosteer.slurm.submission import Submission, read_submission
from emosteer.timesheet import IMPORTING, WAITING, Timesheet

if TYPE_CHECKING:
    from emosteer.worker import Worker

log = logging.getLogger("emosteer.slurm.worker_job")  # by python -m the module's name is another

BEAT_SECONDS = 5.0
LINGER_SECONDS, LINGER_PAUSE = 120.0, 0.5
"""So long a search's workers wait for its next cells; a search that died does not hold them for ever."""
TIME_ENDS = signal.SIGUSR2
"""What submitit's scripts have SLURM send before the time limit, and before a preemption where the site says so."""
SOME_CELL_FAILED, CANNOT = 1, 2
"""Exit codes, beside UNFINISHED."""
CACHES = ("MPLCONFIGDIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
"""Where libraries write that would write below the home directory."""


@dataclass
class Told:
    """A reporter that passes all on, and keeps what `emosteer-sweep watch` shows."""

    to: Reporter
    state: WorkerState
    _since: float = field(default_factory=time.monotonic)
    _tokens: int = 0

    def stage(self, text: str) -> None:
        if text != self.state.stage:
            self.state.stage = text
            self._since, self._tokens = time.monotonic(), 0
            self.to.stage(text)

    def tokens(self, n: int, rows: float) -> None:
        self._tokens += n
        self.state.tokens += n
        self.state.tokens_per_second = round(self._tokens / max(time.monotonic() - self._since, 1e-3), 1)
        self.to.tokens(n, rows)

    def settled(self, n: int) -> None:
        self.to.settled(n)


def main() -> None:
    """Run a worker; exits with 0 where all that it ran is done, 1 where a cell failed, 2 where it cannot work."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("emosteer").setLevel(logging.INFO)
    root, token = Path(sys.argv[1]), sys.argv[2]
    keep_out_of_a_closed_home()
    prepare_openmp()
    try:
        sweep, submission = opened(root, token)
        sys.exit(run(sweep, submission))
    except EmosteerError as error:
        log.error("%s", error)
        sys.exit(CANNOT)


def opened(root: Path, token: str) -> tuple[Sweep, Submission]:
    """The sweep and the submission that a job was started for, in the directory in which its command was given.

    Raises:
        EmosteerError: there is no such submission, or this is another emosteer than that which submitted it.
    """
    submission = read_submission(open_sweep(str(root / "store"), root), token)
    if submission.version != emosteer.__version__:
        raise EmosteerError(
            f"this is emosteer {emosteer.__version__} ({Path(emosteer.__file__).parent}), and the sweep was submitted by "
            f"{submission.version}: install that for the nodes, or cancel the sweep and submit it again"
        )
    if Path(submission.directory).is_dir():
        os.chdir(submission.directory)  # a relative model.path is meant from there
    return open_sweep(submission.store, root), submission


def run(sweep: Sweep, submission: Submission) -> int:
    """Work until the sweep is settled, or SLURM wants the node back; the exit code."""
    place, now = whereabouts.here(), time.time()
    job = place["job"] or f"pid-{os.getpid()}"
    state = WorkerState(job, whereabouts.restarts(), submission.token, place["host"], place["node"], os.getpid(), now, now)
    beat = Beat(sweep, state)
    with logging_to(sweep), stopped_by_signals(TIME_ENDS), beat.kept():
        log.info("worker %s on %s, start %d", job, state.node, state.restarts + 1)
        try:
            state.exit_code, state.ended = _work(sweep, submission, beat), "every cell is settled"
        except Stopped as stopped:
            state.exit_code, state.ended = _hand_over(beat, stopped, submission)
        except MachineFault as error:
            if beat.worker is not None:
                beat.worker.give_up(str(error), has_headway=False)
            state.exit_code, state.ended = CANNOT, str(error)
            raise
        except BaseException as error:
            state.exit_code, state.ended = CANNOT, f"{type(error).__name__}: {error}"
            raise
    # Until Python has ended, which takes a second, SLURM may still tell that time ends, and by itself that kills.
    signal.signal(TIME_ENDS, signal.SIG_IGN)
    if state.exit_code == UNFINISHED and client.requeue(job):
        return 0  # SLURM ends this process, and starts the job again
    return state.exit_code


def may_start_again(state: WorkerState, submission: Submission) -> bool:
    """Whether a worker that SLURM has stopped asks for another start: not the one that never gets as far as a cell.

    The finaliser brings others in its place, and counts the rounds in which nothing is done.
    """
    return state.published > 0 or state.restarts < submission.slurm_options().max_attempts


def _work(sweep: Sweep, submission: Submission, beat: Beat) -> int:
    sheet = Timesheet()
    with sheet.on(IMPORTING):
        # Here, as it brings torch, and a signal may come while that is loaded.
        from emosteer.worker import Worker

    tasks = sweep.tasks()
    n_settled = len(tasks) - len(sweep.unsettled(tasks, sweep.scorers()))
    with reporting(len(tasks), n_settled) as shown:
        beat.worker = Worker(sweep, Told(shown, beat.state), n_workers=submission.n_workers, sheet=sheet)
        try:
            beat.worker.run()
            while _more_comes(sweep, beat.state, sheet):
                beat.worker.run()
        finally:
            log.info("took: %s", sheet)
    return SOME_CELL_FAILED if beat.worker.n_failed else 0


def _more_comes(sweep: Sweep, state: WorkerState, sheet: Timesheet) -> bool:
    """Wait for the cells that a search brings next, so that the model stays loaded; whether there are some."""
    end = time.monotonic() + LINGER_SECONDS
    while sweep.paths.slurm.search.exists() and time.monotonic() < end:
        state.stage = "waiting for the search's next cells"
        if sweep.unsettled(sweep.tasks(), sweep.scorers()):
            return True
        with sheet.on(WAITING):
            time.sleep(LINGER_PAUSE)
    return False


def _hand_over(beat: Beat, stopped: Stopped, submission: Submission) -> tuple[int, str]:
    """Exit code, and why this worker leaves: its cells are given back by now."""
    if stopped.exit_code == 128 + TIME_ENDS or client.is_preempted(beat.state.job):
        if beat.worker is not None:
            beat.worker.give_up("its time ended, or its node was wanted, before it had finished a single cell")
            beat.state.published = beat.worker.n_published
        if may_start_again(beat.state, submission):
            return UNFINISHED, "its time ended, or its node was wanted: the job is to start again"
        starts = beat.state.restarts + 1
        log.error("stopped %d times before it had finished a cell: timeout_min or signal_delay_s is too short", starts)
        return CANNOT, f"stopped {starts} times before it had finished a cell: timeout_min or signal_delay_s is too short"
    return stopped.exit_code, f"signal {stopped.exit_code - 128}"


class Beat:
    """Writes down every few seconds what a worker does."""

    def __init__(self, sweep: Sweep, state: WorkerState) -> None:
        self.sweep, self.state = sweep, state
        self.worker: Worker | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Beat while the work inside goes on, and once more at its end."""
        self._write()
        try:
            with beating(BEAT_SECONDS, self._write, "beat"):
                yield
        finally:
            self._write()

    def _write(self) -> None:
        if self.worker is not None:
            self.state.published, self.state.failed = self.worker.n_published, self.worker.n_failed
            vars(self.state).update(self.worker.sheet.facts())
        self.state.seen = time.time()
        try:
            self.state.write(self.sweep.paths.slurm)
        except OSError as error:
            # Only people read it. The work tells by itself where the disk is full.
            log.debug("not written: %s", error)


def keep_out_of_a_closed_home() -> None:
    """Let libraries keep their caches elsewhere where the home directory cannot be written, as on the nodes of some sites."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home raises where there is none
    if not os.access(home, os.W_OK | os.X_OK):
        elsewhere = Path(tempfile.gettempdir()) / f"emosteer-{os.getuid()}"
        for variable in CACHES:
            os.environ.setdefault(variable, str(elsewhere / variable.lower()))


if __name__ == "__main__":
    main()
