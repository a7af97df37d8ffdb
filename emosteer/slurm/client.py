"""SLURM's own commands, each with a time limit, and with patience while the controller is away."""

from __future__ import annotations

import logging
import math
import os
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from emosteer.errors import EmosteerError

log = logging.getLogger(__name__)

COMMAND_SECONDS = 30.0
"""One command gets so long: SLURM's own give up at 10 to 15 s where nobody answers."""
PATIENCE_SECONDS = 300.0
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Between tries; the last one again and again."""
AWAY = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Connection (?:refused|timed out|reset by peer)|Broken pipe|"
    r"Zero Bytes were transmitted|(?:connection|send|receive|shutdown) failure|Transport endpoint is not connected|"
    r"Slurm backup controller in standby|Resource temporarily unavailable|temporarily unable to accept",
    re.IGNORECASE,
)
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT", "REVOKED")
)
"""States from which a job does not come back by itself. PREEMPTED and NODE_FAIL may be shown for seconds before a requeue."""
SURE = frozenset(("CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"))
"""Ends at which SLURM has seen the processes go. Those of a lost node may live on."""
NOT_HERE = "SLURM's {} is not on PATH: give the command on a login node of the cluster, or leave the launcher local"


class SlurmAway(EmosteerError):  # noqa: N818 - what became of it
    """The controller does not answer. Whether it has carried out what it was asked is not known."""


class SlurmRefused(EmosteerError):  # noqa: N818
    """SLURM's own reason why it does not do what it was asked."""


class NoSlurm(EmosteerError):  # noqa: N818
    """SLURM's commands are not on this machine."""


@dataclass(frozen=True)
class JobState:
    """One job, or one task of an array, as SLURM sees it."""

    id: str
    """`17`, or `17_3` for a task of an array."""
    name: str
    state: str
    """SLURM's word: PENDING, RUNNING, COMPLETED, ..."""
    reason: str
    """Why it is pending; empty where the accounting tells the state."""
    node: str

    @property
    def is_ended(self) -> bool:
        return self.state in ENDED


def ask(*command: str, seconds: float = COMMAND_SECONDS) -> str:
    """What a command of SLURM's prints.

    Raises:
        SlurmAway: nobody answers.
        SlurmRefused: with what it says.
        NoSlurm: there is no such command here.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment(), check=False)  # noqa: S603
    except FileNotFoundError:
        raise NoSlurm(NOT_HERE.format(command[0])) from None
    except subprocess.TimeoutExpired:
        raise SlurmAway(f"{command[0]} gave no answer for {seconds:.0f} s") from None
    if done.returncode == 0:
        # --test-only says what it has to say on stderr.
        return done.stdout or done.stderr
    said = _said(done.stderr or done.stdout) or f"{command[0]} ended with {done.returncode}"
    raise SlurmAway(said) if AWAY.search(said) else SlurmRefused(said)


def ask_patiently(*command: str, patience: float = PATIENCE_SECONDS) -> str:
    """What a command prints that may be given twice; while the controller is away, it is given again."""
    started, tries = time.monotonic(), 0
    while True:
        try:
            return ask(*command)
        except SlurmAway as away:
            wait_for_controller(away, started, tries, patience)
            tries += 1


def wait_for_controller(away: SlurmAway, started: float, tries: int, patience: float = PATIENCE_SECONDS) -> None:
    """Pause before the next try, and say so at the first; raises SlurmAway when patience ends."""
    if time.monotonic() - started > patience:
        raise SlurmAway(f"{away}; tried for {patience:.0f} s") from away
    if not tries:
        log.warning("the SLURM controller does not answer (%s): trying again for %.0f s", away, patience)
    time.sleep(PAUSES[min(tries, len(PAUSES) - 1)])


def environment() -> dict[str, str]:
    """This process's environment without what SLURM tells it of its own job: a job that it submits would take that for its own."""
    kept = ("SLURM_CONF",)
    return {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key in kept}


def queue(*filters: str) -> list[JobState]:
    """The jobs in SLURM's queue, a line for each task of an array; ended ones stay there for some minutes.

    Args:
        filters: of squeue, such as `--name=...`.

    Raises:
        SlurmAway: nobody answers.
    """
    try:
        printed = ask("squeue", "--noheader", "--array", "--states=all", "--format=%i|%j|%T|%r|%N", *filters)
    except SlurmRefused as refused:
        if "Invalid job id" in str(refused):
            return []  # forgotten by now
        raise
    return [_job(line.split("|")) for line in printed.splitlines() if line.count("|") == 4]


def queued(ids: Iterable[str]) -> dict[str, JobState]:
    """The tasks of jobs that are in SLURM's queue, by their ids.

    Args:
        ids: of jobs; of an array the array's.
    """
    wanted = sorted(set(ids))
    return {job.id: job for job in queue(f"--jobs={','.join(wanted)}")} if wanted else {}


def accounted(ids: Iterable[str]) -> dict[str, JobState] | None:
    """What the accounting says of jobs' tasks, ended ones too; None where the site has no accounting, or it is away."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    options = ("--noheader", "--parsable2", "--allocations", "--array", "--format=JobID,JobName,State,NodeList")
    try:
        printed = ask("sacct", *options, f"--jobs={','.join(wanted)}")
    except EmosteerError:
        return None
    rows = [line.split("|") for line in printed.splitlines() if line.count("|") == 3]
    # Of a cancelled one the state says by whom: "CANCELLED by 1000".
    return {row[0]: JobState(row[0], row[1], row[2].split()[0], "", row[3]) for row in rows}


def settings() -> dict[str, str]:
    """`scontrol show config`, by name."""
    pairs = (line.partition("=") for line in ask_patiently("scontrol", "show", "config").splitlines())
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def most_array_tasks() -> int:
    """How many tasks an array may have here: `MaxArraySize`, whose highest index is one less."""
    found = settings().get("MaxArraySize", "")
    return int(found) if found.isdecimal() else 1001


def submit(script: Path, *options: str) -> str:
    """Submit a batch script; the job's id.

    Raises:
        SlurmAway: nobody answers; it may have been submitted all the same.
        SlurmRefused: with SLURM's reason.
    """
    printed = ask("sbatch", "--parsable", *options, str(script))
    return printed.strip().splitlines()[-1].partition(";")[0]


def would_run(script: Path, *options: str) -> None:
    """Raise SlurmRefused with SLURM's reason where it would not take a script, or could never start it."""
    started, tries = time.monotonic(), 0
    while True:
        try:
            ask("sbatch", "--test-only", *options, str(script))
            return
        except SlurmAway as away:
            wait_for_controller(away, started, tries)
            tries += 1


def time_limits() -> dict[str, float]:
    """Each partition's longest time in minutes, infinite where it has none; that of the default partition also under ``."""
    limits = {}
    for line in ask_patiently("sinfo", "--noheader", "--format=%P|%l").splitlines():
        name, _, limit = line.partition("|")
        limits[name.rstrip("*")] = minutes = _minutes(limit)
        if name.endswith("*"):
            limits[""] = minutes
    return limits


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs; of those that have ended nothing is said."""
    if ids:
        ask_patiently("scancel", "--quiet", *sorted(set(ids)))


def requeue(job_id: str) -> bool:
    """Ask SLURM to start this process's own job again; False where it does not."""
    try:
        ask("scontrol", "requeue", job_id)
    except EmosteerError as error:
        if str(error).endswith("ended with -15"):
            return True  # it was so quick that it ended the command too, which is a child of the job
        log.warning("SLURM does not start job %s again: %s", job_id, error)
        return False
    return True


def is_preempted(job_id: str) -> bool:
    """Whether SLURM is taking a running job's node away for another job."""
    try:
        shown = ask("scontrol", "show", "job", job_id, seconds=10)
    except EmosteerError:
        return False
    found = re.search(r"PreemptTime=(\S+)", shown)
    return found is not None and found[1] not in ("None", "Unknown")


def _job(fields: Sequence[str]) -> JobState:
    id_, name, state, reason, node = fields
    return JobState(id_, name, state, "" if reason == "None" else reason, node)


def _minutes(limit: str) -> float:
    """SLURM's `days-hours:minutes:seconds` in minutes."""
    days, _, clock = limit.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in parts):
        return math.inf  # infinite, n/a
    seconds = sum(int(part) * 60**place for place, part in enumerate(reversed(parts)))
    return (int(days or 0) * 86400 + seconds) / 60


def _said(text: str) -> str:
    """What a command said, in one line, without its name before each."""
    lines = (re.sub(r"^(?:\w+: )?(?:error|allocation failure)?:? ?", "", line.strip()) for line in text.splitlines())
    return "; ".join(dict.fromkeys(line for line in lines if line))
