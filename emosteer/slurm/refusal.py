"""What SLURM would not take, or would take and never start: told before anything is submitted, with SLURM's own reason."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import Any

from emosteer.records.paths import SlurmPaths
from emosteer.records.sweep import Sweep
from emosteer.slurm import client
from emosteer.slurm.client import SlurmAway, SlurmRefused
from emosteer.slurm.options import SlurmOptions
from emosteer.slurm.script import write_script
from emosteer.slurm.submission import Submission

LOOK_SECONDS = 4.0
"""So long after a submission SLURM's scheduler has had its say on what would pend for ever."""
FOR_EVER = re.compile(
    r"BadConstraints|InvalidAccount|InvalidQOS|PartitionTimeLimit|PartitionNodeLimit|PartitionDown|PartitionInactive|"
    r"AccountNotAllowed|QOSNotAllowed|MaxMemPerLimit|(?:QOS|Assoc)Max\w*Per(?:Job|Node)"
)
"""Reasons for which a job pends until somebody changes the cluster or the job."""
LOOKED_AT = (
    "partition",
    "account",
    "qos",
    "constraint",
    "timeout_min",
    "mem_gb",
    "cpus_per_task",
    "gpus_per_node",
    "gres",
    "nodelist",
    "exclude",
    "mem_per_cpu",
    "mem_per_gpu",
    "additional_parameters",
)


def check_submittable(sweep: Sweep, options: SlurmOptions) -> None:
    """Ask SLURM whether it would take such workers, and such a finaliser; nothing is submitted.

    Raises:
        SlurmRefused: SLURM's own reason, with the keys to look at.
        EmosteerError: a value that no cluster takes, no SLURM here, no submitit.
    """
    options.check()
    limits = client.time_limits()
    for what, parameters in (("worker", options.for_workers()), ("finaliser", options.for_finaliser())):
        _check_time(what, parameters, limits)
    with tempfile.TemporaryDirectory() as directory:
        paths = SlurmPaths(Path(directory))
        for what, parameters in (("worker", options.for_workers()), ("finaliser", options.for_finaliser())):
            script = write_script(paths, what, "emosteer.slurm.worker_job", [str(sweep.paths.root)], parameters, options.python)
            try:
                client.would_run(script)
            except SlurmRefused as refused:
                raise SlurmRefused(f"SLURM would not run a {what}: {refused} (asked for {asked(parameters)})") from None


def _check_time(what: str, parameters: dict[str, Any], limits: dict[str, float]) -> None:
    """Raise SlurmRefused for more time than a partition gives: SLURM itself would take the job, and never start it."""
    names = str(parameters.get("partition") or "").split(",")
    known = [limits[name] for name in names if name in limits]
    if known and parameters["timeout_min"] > max(known):
        where = f"partition {','.join(names)}" if names != [""] else "the default partition"
        raise SlurmRefused(
            f"SLURM would leave a {what} pending for ever: PartitionTimeLimit ({where} gives {max(known):.0f} minutes, "
            f"timeout_min={parameters['timeout_min']}); lower hydra.launcher.timeout_min, or name another partition"
        )


def check_not_for_ever(submission: Submission) -> None:
    """Raise SlurmRefused where a worker would pend for ever, with SLURM's reason."""
    end = time.monotonic() + LOOK_SECONDS
    while submission.arrays:
        try:
            jobs = list(client.queued(submission.arrays).values())
        except SlurmAway:
            return  # it has taken them; what it thinks of them `status` shows
        stuck = next((job for job in jobs if job.state == "PENDING" and FOR_EVER.search(job.reason)), None)
        if stuck is not None:
            raise SlurmRefused(
                f"SLURM would leave the workers pending for ever: {stuck.reason} (asked for "
                f"{asked(submission.slurm_options().for_workers())}); nothing of it is left in the queue"
            )
        if time.monotonic() > end or any(job.state != "PENDING" or job.reason not in ("", "None") for job in jobs):
            return
        time.sleep(0.5)


def asked(parameters: dict[str, Any]) -> str:
    """The keys that SLURM judges by."""
    return ", ".join(f"{key}={parameters[key]}" for key in LOOKED_AT if parameters.get(key))
