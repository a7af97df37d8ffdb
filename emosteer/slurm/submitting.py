"""Bringing workers to a sweep, so that nothing is half submitted and nothing is submitted twice.

What is about to be submitted is written down first, then sbatch is asked, then the ids are added. Who finds a submission without
ids whose submitter is dead looks its job name up in SLURM's queue. One submitter at a time: a lease in the sweep's directory.

The order is: workers, then the finaliser, which waits for their end (`afterany`). Where SLURM refuses either, all of it is cancelled.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import emosteer
from emosteer.errors import EmosteerError
from emosteer.records import whereabouts
from emosteer.records.sweep import Sweep
from emosteer.records.workers import workers
from emosteer.slurm import client
from emosteer.slurm.client import SlurmAway, SlurmRefused
from emosteer.slurm.code import keep_code, keep_diff
from emosteer.slurm.options import SlurmOptions
from emosteer.slurm.refusal import check_not_for_ever
from emosteer.slurm.script import write_script
from emosteer.slurm.submission import (
    Submission,
    live_finalisers,
    live_workers,
    look_up,
    note_job,
    one_at_a_time,
    queued,
    submissions,
    write_submission,
)

log = logging.getLogger(__name__)

ROOM_SECONDS = 1.0
"""After so long a job that was cancelled no longer counts."""
LONGEST_NAME = 60
TOO_MANY = re.compile(r"submit limit|MaxSubmit|violates accounting/QOS policy|maximum number of jobs", re.IGNORECASE)
"""What SLURM says where a site takes no more jobs of one user: fewer workers do."""


@dataclass(frozen=True)
class Submitted:
    """What a call came to."""

    submission: Submission
    new_workers: int
    live_workers: int
    """Of earlier submissions, pending ones included."""


def submit_workers(
    sweep: Sweep,
    options: SlurmOptions,
    directory: str,
    attempt: int = 1,
    more: int = 0,
) -> Submitted:
    """Bring a sweep to as many workers as its options say, and a finaliser behind them.

    Args:
        sweep: whose directory holds its cells already.
        options: what is asked of SLURM.
        directory: where the command was given.
        attempt: how many rounds in a row, this one included, found as much left as the one before.
        more: so many workers on top of those that are there, instead of as many as the options say in all.

    Raises:
        SlurmRefused: SLURM's own reason; nothing of this call is left in its queue.
        SlurmAway: no answer for some minutes; what was submitted until then is cancelled when SLURM is back, by the next command.
    """
    code = keep_code(sweep.paths.slurm, _own_functions(sweep))
    with one_at_a_time(sweep, "submitting"):
        _adopt(sweep)
        live = live_workers(sweep)
        n_unsettled = len(sweep.unsettled(sweep.tasks(), sweep.scorers()))
        # More workers than cells would find nothing to do.
        wanted = more or min(options.workers, n_unsettled) - len(live)
        earlier = submissions(sweep)
        finalisers = live_finalisers(earlier)
        if wanted <= 0 and finalisers:
            return Submitted(earlier[-1], 0, len(live))
        submission = _draft(sweep, options, directory, code)
        submission.attempt = attempt
        submission.n_workers = max(1, len(live) + wanted)
        submission.n_unsettled = n_unsettled
        keep_diff(sweep.paths.slurm, submission.token)
        write_submission(sweep, submission)
        try:
            _submit(sweep, submission, max(wanted, 0), {job.id.partition("_")[0] for job in live})
        except BaseException as error:
            _take_back(sweep, submission, error)
            raise
        # The new one waits for all workers: an earlier one would start when the first of them have ended.
        client.cancel([job.id for job in finalisers if job.state == "PENDING"])
    return Submitted(submission, sum(submission.arrays.values()), len(live))


def cancel(sweep: Sweep) -> list[str]:
    """Cancel all jobs of a sweep, and none but these; the ids of those that had not ended.

    Raises:
        SlurmAway: no answer; the call may be repeated.
    """
    with one_at_a_time(sweep, "submitting"):
        _adopt(sweep)
        own = submissions(sweep)
        # The finaliser first: it would submit again what it finds unfinished.
        finalisers = [one.finaliser for one in own if one.finaliser]
        arrays = [array for one in own for array in one.arrays]
        live = [job.id for job in queued(own, [*finalisers, *arrays]).values() if not job.is_ended]
        client.cancel([one for one in finalisers if one in live])
        client.cancel(sorted({id_.partition("_")[0] for id_ in live} & set(arrays)))
        for one in own:
            if one.ended is None and any(id_.partition("_")[0] in one.ids for id_ in live):
                one.ended = "cancelled"
                write_submission(sweep, one)
    return sorted(live)


def _adopt(sweep: Sweep) -> None:
    """Find the jobs of submissions whose submitter died before it wrote down their ids, by their names.

    Called by who holds the lock, so that no submitter is at work. Raises SlurmAway.
    """
    for one in submissions(sweep):
        if one.is_whole or one.ended is not None:
            continue
        look_up(one)
        for worker in workers(sweep.paths.slurm):
            if worker.submission == one.token:
                note_job(one, worker.job, is_finaliser=False)
        one.is_whole = True
        one.ended = None if one.ids else "its submitter ended before SLURM had it"
        log.warning("the submission of %s was interrupted: %s", one.name, one.ended or f"its jobs {', '.join(one.ids)} are taken on")
        write_submission(sweep, one)


def _submit(sweep: Sweep, submission: Submission, n_workers: int, live_arrays: set[str]) -> None:
    """Submit workers and finaliser, writing down each id as it comes."""
    size = min(n_workers, client.most_array_tasks())
    while (left := n_workers - sum(submission.arrays.values())) > 0 and size > 0:
        size = min(size, left)
        name = f"{submission.name}-{len(submission.arrays)}"
        script = _worker_script(sweep, submission, name, size)
        try:
            array = _submitted(script, name)
        except SlurmRefused as refused:
            if not TOO_MANY.search(str(refused)):
                raise
            # A site's limit on submitted jobs: fewer workers do the same work.
            size //= 2
            if not size and not submission.arrays and not live_arrays:
                raise
            continue
        submission.arrays[array] = size
        write_submission(sweep, submission)
    _submit_finaliser(sweep, submission, live_arrays)
    check_not_for_ever(submission)
    submission.is_whole = True
    write_submission(sweep, submission)


def _submit_finaliser(sweep: Sweep, submission: Submission, live_arrays: set[str]) -> None:
    """Submit the job behind all workers; where the site takes no more jobs, a worker makes room for it."""
    script = _finaliser_script(sweep, submission)
    while submission.finaliser is None:
        ends = sorted(set(submission.arrays) | live_arrays)
        after = [f"--dependency=afterany:{':'.join(ends)}"] if ends else []
        try:
            submission.finaliser = _submitted(script, submission.finaliser_name, *after)
        except SlurmRefused as refused:
            if not TOO_MANY.search(str(refused)) or sum(submission.arrays.values()) < 2:
                raise
            array, size = submission.arrays.popitem()
            client.cancel([f"{array}_{size - 1}"])
            submission.arrays |= {array: size - 1} if size > 1 else {}
            time.sleep(ROOM_SECONDS)
        write_submission(sweep, submission)


def _submitted(script: Path, name: str, *options: str) -> str:
    """Submit a script once, also when SLURM's answer is lost: its name is looked up before it is submitted again."""
    started, tries = time.monotonic(), 0
    while True:
        try:
            # Only who was told that there is no such job may submit it again.
            return (_id_of(name) if tries else None) or client.submit(script, *options)
        except SlurmAway as away:
            client.wait_for_controller(away, started, tries)
            tries += 1


def _id_of(name: str) -> str | None:
    """The job of a name, where SLURM has it; raises SlurmAway."""
    jobs = client.queue(f"--name={name}")
    return jobs[0].id.partition("_")[0] if jobs else None


def _take_back(sweep: Sweep, submission: Submission, error: BaseException) -> None:
    """Cancel what was submitted before an error, and say so in the submission."""
    submission.ended = f"{type(error).__name__}: {error}"
    try:
        # Interrupted, sbatch may have done its work without having said so.
        look_up(submission)
        client.cancel(submission.ids)
    except EmosteerError as away:
        submission.ended = None  # the next command adopts what SLURM has of it
        log.warning("SLURM does not answer: jobs %s may still run; `emosteer-sweep cancel` ends them (%s)", submission.ids, away)
    write_submission(sweep, submission)


def _worker_script(sweep: Sweep, submission: Submission, name: str, n_tasks: int | None) -> Path:
    options = submission.slurm_options()
    return _script(sweep, submission, name, "emosteer.slurm.worker_job", options.for_workers(), n_tasks)


def _finaliser_script(sweep: Sweep, submission: Submission) -> Path:
    options = submission.slurm_options()
    return _script(sweep, submission, submission.finaliser_name, "emosteer.slurm.finaliser_job", options.for_finaliser(), None)


def _script(sweep: Sweep, submission: Submission, name: str, module: str, parameters: dict[str, Any], n_tasks: int | None) -> Path:
    return write_script(
        sweep.paths.slurm,
        name,
        module,
        [str(sweep.paths.root), submission.token],
        parameters,
        submission.options["python"],
        Path(submission.code) if submission.code else None,
        n_tasks,
    )


def _draft(sweep: Sweep, options: SlurmOptions, directory: str, code: Path | None) -> Submission:
    token = uuid.uuid4().hex[:8]
    return Submission(
        token,
        f"emosteer-{_in_job_name(sweep.name)}-{token}",
        asdict(options),
        store=str(sweep.store.paths.root),
        directory=directory,
        code=str(code) if code else None,
        version=emosteer.__version__,
        submitter={**whereabouts.here(), "pid": os.getpid()},
    )


def _own_functions(sweep: Sweep) -> set[str]:
    """Dotted paths of the user's own that a sweep names."""
    methods = {task.cell.vector.method for task in sweep.tasks() if task.cell.vector is not None}
    return {path for path in (*methods, *(scorer.target for scorer in sweep.scorers())) if "." in path}


def _in_job_name(name: str) -> str:
    """A sweep's name as part of a job's: some sites' tools stumble over blanks and the like."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:LONGEST_NAME]
