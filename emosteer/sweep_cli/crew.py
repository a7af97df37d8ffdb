"""The workers of a sweep as one sees them from outside: what they said of themselves, and what SLURM says of their jobs.

Neither is believed alone. A worker that was killed says for ever that it works; SLURM may have given up a node whose processes live
on, and forgets jobs some minutes after their end. Where the two contradict each other, and the worker wrote a moment ago, it is not
known.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from emosteer.overview import STAGES, Overview
from emosteer.records.leases import Process
from emosteer.records.sweep import Sweep
from emosteer.records.workers import WorkerState, workers
from emosteer.slurm.client import SURE, JobState, NoSlurm, SlurmAway, SlurmRefused, accounted
from emosteer.slurm.following import SILENT_SECONDS, duration
from emosteer.slurm.submission import Submission, jobs, submissions

WAITING, STARTING, RUNNING, SILENT = "waiting", "starting", "running", "silent"
ENDED, CANCELLED, LOST, UNKNOWN = "ended", "cancelled", "lost", "not known"
LIVE = (RUNNING, STARTING, SILENT, WAITING, UNKNOWN)
"""Of these there may come more."""
PAST = (LOST, CANCELLED, ENDED)
ORDER = (RUNNING, SILENT, STARTING, WAITING, UNKNOWN, LOST, CANCELLED, ENDED)
FRESH_SECONDS = 30.0
"""A worker beats every 5 s, and a network file system may show a file so late: what it wrote earlier tells nothing of now."""


@dataclass(frozen=True)
class Member:
    """One worker: each start of a job is one of its own."""

    state: str
    """One of `ORDER`."""
    detail: str
    """What it does, why it waits, or how it ended."""
    job: str | None
    """As SLURM names it; None of a process outside of SLURM."""
    slurm: str | None = None
    """SLURM's own word for the job; None where it says none."""
    node: str | None = None
    said: WorkerState | None = None
    """What it wrote last; None where it has written nothing."""
    process: Process | None = None
    n_running: int = 0
    """Tasks that it holds now."""
    is_own: bool = True
    """Whether it is of a job that was submitted for this sweep; else it is known by what it holds alone."""

    def as_data(self) -> dict[str, Any]:
        """Plain data; times are UTC, ISO 8601."""
        said = self.said
        return {
            "job": self.job,
            "start": said.restarts + 1 if said else None,
            "state": self.state,
            "detail": self.detail,
            "slurm": self.slurm,
            "node": self.node,
            "host": self.process.host if self.process else None,
            "pid": self.process.pid if self.process else None,
            "running": self.n_running,
            "published": said.published if said else None,
            "failed": said.failed if said else None,
            "tokens": said.tokens if said else None,
            "tokens_per_second": said.tokens_per_second if said else None,
            "rows": said.rows if said else None,
            "batch_rows": said.batch_rows if said else None,
            "engine_path": said.engine_path if said else None,
            "engine_reason": said.engine_reason if said else None,
            "spent": said.spent if said else None,
            "stage": said.stage if said else None,
            "started": _iso(said.started) if said else None,
            "seen": _iso(said.seen) if said else None,
            "seconds": round(said.seen - said.started, 1) if said else None,
            "exit_code": said.exit_code if said else None,
        }


@dataclass(frozen=True)
class Crew:
    """All who work on a sweep, or did."""

    members: list[Member] = field(default_factory=list)
    finaliser: Member | None = None
    """The job behind the workers, of the newest submission that has one."""
    silence: str | None = None
    """Why SLURM says nothing; None where it answers, or was not asked."""
    is_submitted: bool = False
    """Whether the sweep has ever been submitted to SLURM; else SLURM is not asked."""
    interrupted: list[Submission] = field(default_factory=list)
    """Submissions that are under way, or whose submitter died before it wrote down all ids."""

    @property
    def is_live(self) -> bool:
        """Whether jobs work or wait, or may do so."""
        behind = [self.finaliser] if self.finaliser else []
        return any(one.state in LIVE for one in [*self.members, *behind] if one.is_own)

    @property
    def gone(self) -> dict[Process, float]:
        """Processes of jobs that have ended for certain, and when they wrote last, in seconds since 1970."""
        living = {one.process for one in self.members if one.state in LIVE}
        ended = (one for one in self.members if one.state in (ENDED, LOST) and one.process and one.said)
        return {one.process: one.said.seen for one in ended if one.process not in living and one.process and one.said}

    def counts(self) -> dict[str, int]:
        """Workers by state."""
        found = Counter(one.state for one in self.members)
        return {state: found[state] for state in ORDER if found[state]}

    def with_tasks(self, seen: Overview) -> Crew:
        """The same with what each holds now, and with those who work outside of SLURM."""
        running = [(one.holder.process, one.stage) for one in seen.standings if one.holder and one.state == RUNNING]
        held = Counter(process for process, _ in running)
        own = [replace(one, n_running=held.pop(one.process, 0)) if one.process else one for one in self.members]
        others = [
            Member(
                RUNNING,
                _at(stage for by, stage in running if by == process),
                process.job,
                node=process.host,
                process=process,
                n_running=n,
                is_own=False,
            )
            for process, n in sorted(held.items(), key=lambda item: (item[0].host, item[0].pid))
        ]
        return replace(self, members=_in_order([*own, *others]))


def _at(stages: Iterable[str | None]) -> str:
    """What a worker that says nothing of itself is at: the first thing that the store lacks for what it holds."""
    lacking = set(stages)
    return next((f"at {stage}" for stage in STAGES if stage in lacking), "holds tasks")


@dataclass(frozen=True)
class _Slurm:
    """What SLURM says of a sweep's jobs."""

    queue: Mapping[str, JobState]
    accounts: Mapping[str, JobState]
    answers: bool

    def word(self, job: str) -> JobState | None:
        """Its word for a job: the queue's, else how it ended by the accounting."""
        ended = self.accounts.get(job)
        return self.queue.get(job) or (ended if ended is not None and ended.is_ended else None)


def crew(sweep: Sweep, ask_slurm: bool = True) -> Crew:
    """Look at the workers of a sweep; SLURM is asked where it was submitted there, and may stay silent.

    Args:
        sweep: whose workers.
        ask_slurm: False where it is known that SLURM does not answer: asking it once more would take half a minute.

    Raises:
        EmosteerError: the file of a submission is damaged.
    """
    own = submissions(sweep)
    if not own:
        return Crew()
    said: dict[str, list[WorkerState]] = defaultdict(list)
    for worker in sorted(workers(sweep.paths.slurm), key=lambda worker: worker.restarts):
        said[worker.job].append(worker)
    slurm, silence = _asked(sweep, own, said) if ask_slurm else (_Slurm({}, {}, answers=False), "it was not asked again")
    cancelled = {id_ for one in own if one.ended is not None for id_ in one.ids}
    members = [
        member for job in _job_ids(own, said, slurm) for member in _members(job, said.get(job, []), slurm, _base(job) in cancelled)
    ]
    behind = [_finaliser(one.finaliser, slurm, one.finaliser in cancelled) for one in own if one.finaliser]
    interrupted = [one for one in own if not one.is_whole and one.ended is None]
    return Crew(_in_order(members), behind[-1] if behind else None, silence, True, interrupted)


def _asked(sweep: Sweep, own: list[Submission], said: Mapping[str, list[WorkerState]]) -> tuple[_Slurm, str | None]:
    """What SLURM says, and why it says nothing. The accounting is asked only for ends that nobody else tells."""
    try:
        queue = jobs(sweep)
    except (SlurmAway, SlurmRefused, NoSlurm) as error:
        return _Slurm({}, {}, answers=False), str(error)
    told = {job for job, starts in said.items() if starts[-1].ended is not None}
    finalisers = [one.finaliser for one in own if one.finaliser]
    doubtful = {_base(job) for job in [*_array_tasks(own), *said, *finalisers] if job not in told and job not in queue}
    return _Slurm(queue, accounted(doubtful) or {}, answers=True), None


def _members(job: str, starts: list[WorkerState], slurm: _Slurm, is_cancelled: bool) -> Iterator[Member]:
    """The starts of a job, and the one that is still to write."""
    for said in starts:
        state, detail = _judged(said, said is starts[-1], slurm)
        word = slurm.word(job)
        process = Process(said.host, said.pid, said.job)
        yield Member(state, detail, job, word.state if word else None, said.node or said.host, said, process)
    if not starts or _starts_again(starts[-1], slurm):
        yield _unheard(job, slurm, is_cancelled)


def _judged(said: WorkerState, is_last: bool, slurm: _Slurm) -> tuple[str, str]:
    """State and detail of a worker that has written something."""
    silent = max(0.0, time.time() - said.seen)
    word = slurm.word(said.job)
    if said.ended is not None:
        return ENDED, said.ended
    if not is_last:
        return _contradicted(silent, "SLURM started its job again")
    if not slurm.answers:
        return _by_its_own_word(silent)
    if word is None:
        return _contradicted(silent, "SLURM no longer has its job")
    if word.state in SURE:
        return LOST, f"SLURM: {word.state}"
    if word.is_ended:
        return _contradicted(silent, f"SLURM: {word.state}")
    if _is_of_next_start(word, said):
        return _contradicted(silent, "SLURM starts its job again")
    if silent > SILENT_SECONDS:
        return SILENT, f"wrote nothing for {duration(silent)}; SLURM: {word.state}"
    return RUNNING, said.stage


def _by_its_own_word(silent: float) -> tuple[str, str]:
    if silent > FRESH_SECONDS:
        return UNKNOWN, f"wrote nothing for {duration(silent)}, and SLURM does not answer"
    return RUNNING, f"by its own word {duration(silent)} ago; SLURM does not answer"


def _contradicted(silent: float, why: str) -> tuple[str, str]:
    """Of a worker of which SLURM says that it has ended, and which has not said so."""
    return (LOST, why) if silent > SILENT_SECONDS else (UNKNOWN, f"{why}, but it wrote {duration(silent)} ago")


def _is_of_next_start(word: JobState, said: WorkerState) -> bool:
    """Whether what SLURM says is of a later start than what the worker says."""
    return word.state == "PENDING" or (bool(word.node) and word.node != said.node)


def _starts_again(said: WorkerState, slurm: _Slurm) -> bool:
    """Whether a job has a start of which nothing is written yet, after one that has written."""
    queued = slurm.queue.get(said.job)
    if queued is None or queued.is_ended:
        return False
    return _is_of_next_start(queued, said) or (said.ended is not None and not said.has_left)


def _unheard(job: str, slurm: _Slurm, is_cancelled: bool) -> Member:
    """A worker that has written nothing."""
    word = slurm.word(job)
    if word is None:
        return _of_no_word(job, slurm, is_cancelled, "it wrote nothing, and SLURM no longer has it")
    if word.state == "PENDING":
        return Member(WAITING, word.reason, job, word.state)
    if word.state == "CANCELLED":
        return Member(CANCELLED, "SLURM: CANCELLED", job, word.state, word.node or None)
    if word.is_ended:
        return Member(
            ENDED,
            f"SLURM: {word.state}, before it wrote anything: `logs --worker {job}` has what it printed",
            job,
            word.state,
            word.node or None,
        )
    return Member(STARTING, f"SLURM: {word.state}", job, word.state, word.node or None)


def _finaliser(job: str, slurm: _Slurm, is_cancelled: bool) -> Member:
    """The job behind the workers, of which SLURM alone tells."""
    word = slurm.word(job)
    if word is None:
        return _of_no_word(job, slurm, is_cancelled, "SLURM no longer has it")
    if word.is_ended:
        return Member(CANCELLED if word.state == "CANCELLED" else ENDED, f"SLURM: {word.state}", job, word.state, word.node or None)
    return Member(WAITING if word.state == "PENDING" else RUNNING, word.reason, job, word.state, word.node or None)


def _of_no_word(job: str, slurm: _Slurm, is_cancelled: bool, otherwise: str) -> Member:
    """A job of which nobody says anything."""
    if is_cancelled:
        return Member(CANCELLED, "", job)
    return Member(ENDED, otherwise, job) if slurm.answers else Member(UNKNOWN, "SLURM does not answer", job)


def _job_ids(own: list[Submission], said: Mapping[str, Any], slurm: _Slurm) -> list[str]:
    """Of all workers that there are or should be, in the order of submission; after an interrupted one some are known by their word
    alone.
    """
    behind = {one.finaliser for one in own}
    found = [*_array_tasks(own), *said, *(job for job in slurm.queue if job not in behind)]
    return list(dict.fromkeys(found))


def _array_tasks(own: list[Submission]) -> list[str]:
    return [f"{array}_{task}" for one in own for array, n in one.arrays.items() for task in range(n)]


def _base(job: str) -> str:
    return job.partition("_")[0]


def _in_order(members: list[Member]) -> list[Member]:
    """The living first; the rest as it was."""
    return sorted(members, key=lambda one: ORDER.index(one.state))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
