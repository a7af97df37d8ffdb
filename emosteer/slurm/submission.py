"""What was submitted for a sweep, as its directory keeps it, and what SLURM's queue has of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emosteer.errors import EmosteerError
from emosteer.records import whereabouts
from emosteer.records.claims import Claims
from emosteer.records.publish import publish_json, read_json
from emosteer.records.sweep import Sweep
from emosteer.records.workers import workers
from emosteer.slurm import client
from emosteer.slurm.client import JobState
from emosteer.slurm.options import SlurmOptions

log = logging.getLogger(__name__)

LOCK_SECONDS = 60.0
FINALISER = "-end"
"""How the name of the job behind the workers ends."""


@dataclass
class Submission:
    """What one call of `submit_workers` asked SLURM for, kept in the sweep's directory."""

    token: str
    """Unique; part of the jobs' names."""
    name: str
    """Of its jobs, before their endings."""
    options: dict[str, Any]
    """As `SlurmOptions`."""
    store: str
    directory: str
    """Where the command was given: relative paths are meant from there."""
    code: str | None
    """Directory of the code that the jobs run; None for an installed emosteer."""
    version: str
    attempt: int = 1
    """How many rounds in a row, this one included, found as much left as the one before."""
    n_workers: int = 1
    """That share the sweep, those of earlier submissions included."""
    n_unsettled: int | None = None
    """Tasks that the sweep lacked then."""
    submitter: dict[str, Any] = field(default_factory=dict)
    """Host, node, job and number of the process that submitted it."""
    time: float = field(default_factory=time.time)
    arrays: dict[str, int] = field(default_factory=dict)
    """Ids of the workers' arrays, and how many tasks each has."""
    finaliser: str | None = None
    """Id of the job that builds the results."""
    is_whole: bool = False
    """Whether all of it was submitted."""
    ended: str | None = None
    """Why it came to nothing, or was cancelled; None else."""

    @property
    def ids(self) -> list[str]:
        """Of all its jobs."""
        return [*self.arrays, *([self.finaliser] if self.finaliser else [])]

    @property
    def finaliser_name(self) -> str:
        return f"{self.name}{FINALISER}"

    def slurm_options(self) -> SlurmOptions:
        return SlurmOptions(**self.options)


def submissions(sweep: Sweep) -> list[Submission]:
    """All submissions of a sweep, oldest first; raises EmosteerError where one is damaged."""
    paths = [path for path in sweep.paths.slurm.submissions.glob("*.json") if not path.name.startswith(".")]
    return sorted((_read(path) for path in paths), key=lambda one: one.time)


def read_submission(sweep: Sweep, token: str) -> Submission:
    """One submission; raises EmosteerError where it is missing or damaged."""
    return _read(sweep.paths.slurm.submission(token))


def write_submission(sweep: Sweep, submission: Submission) -> None:
    publish_json(sweep.paths.slurm.submission(submission.token), asdict(submission))


def _read(path: Path) -> Submission:
    try:
        return Submission(**read_json(path))
    except (ValueError, TypeError):
        raise EmosteerError(f"{path} is damaged: restore or remove it (`squeue --me` shows the jobs that it named)") from None


def jobs(sweep: Sweep) -> dict[str, JobState]:
    """What SLURM's queue says of a sweep's jobs, by id, a task of an array each; raises SlurmAway."""
    own = submissions(sweep)
    return queued(own, [id_ for one in own for id_ in one.ids])


def live_workers(sweep: Sweep) -> list[JobState]:
    """The workers of a sweep that wait in SLURM's queue, or run and may take more cells; raises SlurmAway.

    One that is about to end takes none: who counts on it waits in vain.
    """
    own = submissions(sweep)
    arrays = [array for one in own for array in one.arrays]
    last = {worker.job: worker for worker in sorted(workers(sweep.paths.slurm), key=lambda worker: worker.restarts)}

    def may_work(job: JobState) -> bool:
        if job.is_ended or job.state == "COMPLETING":
            return False
        return job.state == "PENDING" or job.id not in last or not last[job.id].has_left

    return [job for job in queued(own, arrays).values() if may_work(job)]


def live_finalisers(own: list[Submission]) -> list[JobState]:
    finalisers = queued(own, [one.finaliser for one in own if one.finaliser])
    return [job for job in finalisers.values() if not job.is_ended]


def queued(own: list[Submission], ids: list[str]) -> dict[str, JobState]:
    """Those of a sweep's jobs that are in SLURM's queue. Their names tell: where the directory has come to another cluster, or SLURM
    counts from the beginning again, a job of the same number is somebody else's work.
    """
    names = tuple(f"{one.name}-" for one in own)
    return {id_: job for id_, job in client.queued(ids).items() if job.name.startswith(names)}


def look_up(submission: Submission) -> None:
    """Add the jobs that bear the submission's name; raises SlurmAway."""
    for job in client.queue("--me"):
        if job.name.startswith(submission.name):
            note_job(submission, job.id, is_finaliser=job.name == submission.finaliser_name)


def note_job(submission: Submission, job_id: str, is_finaliser: bool) -> None:
    base, _, task = job_id.partition("_")
    if is_finaliser:
        submission.finaliser = base
    else:
        submission.arrays[base] = max(submission.arrays.get(base, 0), int(task) + 1 if task.isdecimal() else 1)


def keep_open(sweep: Sweep) -> None:
    """Let workers wait for the cells that a search brings next, until `close`."""
    publish_json(sweep.paths.slurm.search, whereabouts.here())


def close(sweep: Sweep) -> None:
    """Let workers leave when every cell is settled: no search brings more."""
    sweep.paths.slurm.search.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(sweep: Sweep, what: str) -> Iterator[None]:
    """Do something that no other process does to the sweep meanwhile: `submitting`, `finalising`.

    A dead process's lock is taken over: at once where it died on this host.
    """
    claims, is_told = Claims(sweep.paths.slurm.locks, LOCK_SECONDS), False
    while (lease := claims.take(what)) is None:
        if not is_told:
            log.info("another process is %s %s: waiting for it", what, sweep.name)
            is_told = True
        time.sleep(0.5)
    try:
        with claims.heartbeat():
            yield
    finally:
        claims.release(lease)
