"""Where a process runs: machine, node and job, as leases, records, failures and logs name it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TypedDict


def job_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """The SLURM job of this process, as SLURM names it: `17`, or `17_3` for a task of an array; None outside of one."""
    if "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment.get('SLURM_ARRAY_JOB_ID', '?')}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def restarts(environment: Mapping[str, str] = os.environ) -> int:
    """How often SLURM has started this job again."""
    count = environment.get("SLURM_RESTART_COUNT", "0")
    return int(count) if count.isdecimal() else 0


def node(environment: Mapping[str, str] = os.environ) -> str:
    """The node's name as SLURM has it, elsewhere the host's."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


class Place(TypedDict):
    """Where something ran."""

    host: str
    node: str
    job: str | None


def here() -> Place:
    """Where this process runs."""
    return {"host": socket.gethostname(), "node": node(), "job": job_id()}
