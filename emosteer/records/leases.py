"""Who holds which of a store's leases, for those who only look: nothing is written here, and no lease is taken.

The rule is that of `claims`: the process that holds a lease touches its file; one that no longer runs on this host is dead.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from emosteer.records.claims import _is_alive, _is_of_this_machine, _owner
from emosteer.records.publish import TEMPORARY


class Process(NamedTuple):
    """Who held something: a job's process is told apart from a later one of the same number."""

    host: str
    pid: int
    job: str | None


@dataclass(frozen=True)
class Holder:
    """The process behind a lease."""

    host: str
    """Empty where the lease does not say."""
    pid: int
    is_gone: bool
    """It ran on this host, and does so no more. Of other hosts only the silence tells."""
    silent_seconds: float
    """Since it last touched the lease, by this host's clock."""
    node: str = ""
    """As SLURM names it; else the host."""
    job: str | None = None
    """Its SLURM job."""

    @property
    def process(self) -> Process:
        return Process(self.host, self.pid, self.job)

    def is_live(self, lease_seconds: float) -> bool:
        """Whether others leave its cell alone."""
        return not self.is_gone and self.silent_seconds <= lease_seconds


def holders(claims: Path) -> dict[str, Holder]:
    """The holder of every lease below a store's claims, by the name of what is held."""
    try:
        names = [entry.name for entry in os.scandir(claims) if not entry.name.startswith(TEMPORARY)]
    except FileNotFoundError:
        return {}
    found = {name: holder(claims / name) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def holder(lease: Path) -> Holder | None:
    """Who holds a lease; None where nobody does."""
    # Read before its age is asked: opening it is what makes a network file system look at the server.
    owner = _owner(lease)
    try:
        touched = lease.stat().st_mtime
    except FileNotFoundError:
        return None
    host, pid = str(owner.get("host", "")), owner.get("pid", 0)
    is_gone = _is_of_this_machine(owner) and not _is_alive(owner)
    job = owner.get("job")
    return Holder(
        host,
        pid if isinstance(pid, int) else 0,
        is_gone,
        time.time() - touched,
        node=str(owner.get("node") or host),
        job=None if job is None else str(job),
    )
