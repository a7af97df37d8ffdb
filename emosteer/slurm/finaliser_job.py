"""What the job behind the workers runs: `python -m emosteer.slurm.finaliser_job SWEEP TOKEN`.

It starts when all workers have ended, however they did. What the cluster lost it submits again; else it builds the results.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from emosteer.errors import EmosteerError
from emosteer.launcher import failed_tasks, logging_to
from emosteer.records.garbage import CLAIM, UNFINISHED, delete, find
from emosteer.records.leases import Process
from emosteer.records.sweep import Sweep, Task
from emosteer.records.workers import workers
from emosteer.slurm.client import SURE
from emosteer.slurm.following import SILENT_SECONDS
from emosteer.slurm.submission import Submission, jobs, one_at_a_time
from emosteer.slurm.submitting import submit_workers
from emosteer.slurm.worker_job import CANNOT, SOME_CELL_FAILED, keep_out_of_a_closed_home, opened

log = logging.getLogger("emosteer.slurm.finaliser_job")  # by python -m the module's name is another


def main() -> None:
    """Build a sweep's results, or bring it new workers; exits with 1 where a cell failed or was never run, 2 where it cannot work."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("emosteer").setLevel(logging.INFO)
    keep_out_of_a_closed_home()
    try:
        sweep, submission = opened(Path(sys.argv[1]), sys.argv[2])
        with logging_to(sweep):
            sys.exit(finish(sweep, submission))
    except EmosteerError as error:
        log.error("%s", error)
        sys.exit(CANNOT)


def finish(sweep: Sweep, submission: Submission) -> int:
    """Submit what the cluster lost, or build the results; the exit code."""
    left = unsettled(sweep)
    if left and may_go_on(sweep, submission, len(left)):
        return 0
    lost, most = sweep.attempts(), submission.slurm_options().max_attempts
    for task in left:
        if lost[task.cell.id] >= most:
            sweep.give_up(task)  # one that has cost fewer workers was merely not reached
    from emosteer.finaliser import finalise

    clean(sweep)
    with one_at_a_time(sweep, "finalising"):
        finalise(sweep)
    for task in left:
        log.error("%s was not run: its workers were lost; `emosteer-sweep retry %s` runs it", task.cell.id, sweep.name)
    return SOME_CELL_FAILED if left or failed_tasks(sweep) else 0


def unsettled(sweep: Sweep) -> list[Task]:
    """What is neither done nor failed."""
    return sweep.unsettled(sweep.tasks(), sweep.scorers())


def clean(sweep: Sweep) -> None:
    """Remove what workers left that were killed: unfinished files, and leases."""
    try:
        found = find(sweep.store, None, older_than=0, sweeps=[sweep.paths], gone=gone(sweep)).garbage
        deletion = delete(sweep.store, [one for one in found if one.kind in (UNFINISHED, CLAIM)], [sweep.paths])
    except OSError as error:
        log.warning("leftovers of killed workers stay until `emosteer-sweep gc`: %s", error)
        return
    if deletion.deleted:
        log.info("removed %d unfinished files and claims of workers that were killed", len(deletion.deleted))


def gone(sweep: Sweep) -> dict[Process, float]:
    """The workers that have ended, and when they wrote last.

    One says so, has been silent for long, or SLURM has seen its job go. Of a job's earlier starts SLURM says nothing: a worker on a
    node that it gave up may live on beside the next start.
    """
    try:
        sure = {id_ for id_, job in jobs(sweep).items() if job.state in SURE}
    except EmosteerError as error:
        log.warning("SLURM does not say which workers have ended: %s", error)
        sure = set()
    everybody = workers(sweep.paths.slurm)
    newest = {one.job: one.restarts for one in everybody}  # oldest first: the last one stays
    return {
        Process(one.host, one.pid, one.job): one.seen
        for one in everybody
        if one.ended is not None or time.time() - one.seen > SILENT_SECONDS or (one.job in sure and one.restarts == newest[one.job])
    }


def may_go_on(sweep: Sweep, submission: Submission, n_left: int) -> bool:
    """Bring new workers for what is left, unless so many rounds in a row got nothing done; whether there are any."""
    has_headway = submission.n_unsettled is None or n_left < submission.n_unsettled
    attempt = 1 if has_headway else submission.attempt + 1
    options = submission.slurm_options()
    if attempt > options.max_attempts:
        log.error("%d rounds of workers in a row got nothing done: not submitted again", submission.attempt)
        return False
    log.warning("%d cells are left, as workers were lost: submitting again", n_left)
    try:
        submit_workers(sweep, options, submission.directory, attempt)
    except EmosteerError as error:
        # Some sites let no job submit another.
        log.error("cannot submit from here (%s): give the command again, or `emosteer-sweep retry --all`", error)
        return False
    return True


if __name__ == "__main__":
    main()
