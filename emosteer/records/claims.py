"""Leases on cells, so that workers do not do the same work twice.

They save work and are no more than advice: publishing is idempotent, so that a cell which runs twice is waste and no damage.
A lease is a file made exclusively, touched by its owner's heartbeat, and taken over when it has not been touched for a while. The
dead lease of a process on this machine is taken over at once.

No clock is trusted alone, since clocks jump. Who waits for a lease sees by his own monotonic clock that it stays untouched; at the
first look, where that cannot be known yet, the age by the file server's clock tells what was left behind long ago, but never of a
process that is alive on this machine. A process is known by its number and its start in ticks since the boot, which no clock moves.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from emosteer.records import whereabouts
from emosteer.records.beating import beating
from emosteer.records.publish import names_in, naming

ENDED = ("Z", "X")
"""States of processes that have ended and whose parent has not looked yet."""

Owner = dict[str, Any]
"""Who holds a lease, as its file says."""


@dataclass(frozen=True)
class Lease:
    """This process's claim on a cell."""

    cell_id: str
    path: Path
    token: str
    attempt: int
    """1, or one more than the attempt that this one took over from."""


class Claims:
    """The leases of a store, as one process sees them.

    Args:
        directory: beside the store's cells, on the same file system.
        lease_seconds: a lease that is not touched for so long is taken over.
    """

    def __init__(self, directory: Path, lease_seconds: float) -> None:
        self.directory = directory
        self.lease_seconds = lease_seconds
        self._held: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[Any, float]] = {}
        """Of each lease of others: its last state, and when it was first seen so, by this process's monotonic clock."""
        self.buried: dict[str, Owner] = {}
        """By cell, who held the dead lease that `take` has taken away, whoever got the cell then. The caller takes them out."""
        directory.mkdir(parents=True, exist_ok=True)

    def take(self, cell_id: str) -> Lease | None:
        """Claim a cell; None while another live process holds it."""
        path = self.directory / cell_id
        attempt = 1
        for _ in range(3):
            lease = Lease(cell_id, path, uuid.uuid4().hex, attempt)
            if self._create(lease):
                with self._lock:
                    self._held[cell_id] = lease
                self._seen.pop(cell_id, None)
                return lease
            owner = _owner(path)
            if not owner and not path.exists():
                continue  # its holder was done just now
            if not self._is_dead(path, owner):
                return None
            attempt = _attempt(owner) + 1
            if self._bury(path, owner):
                self.buried[cell_id] = owner
        return None

    def release(self, lease: Lease) -> None:
        """Give a cell back, unless another process has taken it over."""
        with self._lock:
            self._held.pop(lease.cell_id, None)
        if _owner(lease.path).get("token") == lease.token:
            lease.path.unlink(missing_ok=True)

    def tidy(self, cell_ids: Iterable[str]) -> None:
        """Take away the dead leases on cells that nobody will claim again: who held them was killed when all but this was done."""
        for cell_id in self.taken().intersection(cell_ids):
            path = self.directory / cell_id
            owner = _owner(path)
            if self._is_dead(path, owner):
                self._bury(path, owner)

    def release_all(self) -> None:
        """Give back everything that this process holds."""
        for lease in list(self._held.values()):
            self.release(lease)

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Touch this process's leases from a thread, as long as the work inside goes on."""
        with beating(self.lease_seconds / 5, self._touch, "heartbeat"):
            yield

    def _touch(self) -> None:
        with self._lock:
            leases = list(self._held.values())
        for lease in leases:
            try:
                os.utime(lease.path)
            except OSError:
                # Taken over, or the file server is away: correctness does not rest on leases.
                continue

    def taken(self) -> set[str]:
        """The cells that anybody holds, dead or alive, at one look."""
        return names_in(self.directory)

    def _create(self, lease: Lease) -> bool:
        owner = {**_here(), "token": lease.token, "attempt": lease.attempt}
        # Written first and linked into its place: a reader never sees a lease without its owner.
        draft = self.directory / f".tmp-{lease.token}"
        with naming(lease.path):
            try:
                draft.write_text(json.dumps(owner), encoding="utf-8")
                os.link(draft, lease.path)
            except FileExistsError:
                # Over NFS a link whose answer was lost is sent again, and then finds itself.
                return _owner(lease.path).get("token") == lease.token
            finally:
                draft.unlink(missing_ok=True)
        return True

    def _is_dead(self, path: Path, owner: Owner) -> bool:
        is_here = _is_of_this_machine(owner)
        if is_here and not _is_alive(owner):
            return True
        try:
            touched = path.stat().st_mtime_ns
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            return True
        state, now = (owner.get("token"), touched), time.monotonic()
        known, since = self._seen.setdefault(path.name, (state, now))
        if known != state:
            self._seen[path.name] = (state, now)
        elif now - since > self.lease_seconds:
            return True
        return not is_here and self._server_time() - touched / 1e9 > self.lease_seconds

    def _server_time(self) -> float:
        """Now, by the clock of the file system that stamps the leases."""
        probe = self.directory / f".tmp-clock-{uuid.uuid4().hex}"
        with naming(probe):
            probe.touch()
            try:
                return probe.stat().st_mtime
            finally:
                probe.unlink()

    def _bury(self, path: Path, owner: Owner) -> bool:
        """Take a dead lease away; of several processes that try, one does, all go on to claim, and one gets it."""
        grave = self.directory / f".tmp-dead-{uuid.uuid4().hex}"
        try:
            path.rename(grave)
        except FileNotFoundError:
            return False
        is_it = _owner(grave).get("token") == owner.get("token")
        if not is_it:
            # Another process was faster, and this is its fresh lease: back to its place, if that is still free.
            with contextlib.suppress(FileExistsError):
                os.link(grave, path)
        grave.unlink()
        return is_it


def _owner(path: Path) -> Owner:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _attempt(owner: Owner) -> int:
    attempt = owner.get("attempt")
    return attempt if isinstance(attempt, int) and attempt > 0 else 1


@lru_cache
def _machine() -> dict[str, str]:
    """What tells machines, boots and containers apart in which a process's number would be judged."""
    found = {"host": socket.gethostname()}
    with contextlib.suppress(OSError):  # only Linux has them
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        found["processes"] = str(Path("/proc/self/ns/pid").readlink())
    return found


def _here() -> Owner:
    """This process."""
    pid = os.getpid()
    process = {"pid": pid, "started": psutil.Process(pid).create_time(), "ticks": _ticks(pid)}
    return {**_machine(), **process, "node": whereabouts.node(), "job": whereabouts.job_id()}


def _is_of_this_machine(owner: Owner) -> bool:
    """Whether the owner's number can be looked up here. Leases of before `boot` say no more than the host's name."""
    here = _machine()
    return owner.get("host") == here["host"] and all(owner.get(key, value) == value for key, value in here.items())


def _is_alive(owner: Owner) -> bool:
    try:
        pid = int(owner["pid"])
        if owner.get("ticks") is not None:
            return _ticks(pid) == owner["ticks"]
        # By the wall clock, which moves when it is set: only where there are no ticks.
        return abs(psutil.Process(pid).create_time() - float(owner["started"])) < 2.0
    except (psutil.NoSuchProcess, KeyError, ValueError, TypeError, OverflowError):
        return False


def _ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine's boot; None where it has ended, or the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The program's name stands in parentheses, and may hold some itself.
    state, *numbers = stat.rpartition(")")[2].split()
    return None if state in ENDED else int(numbers[18])
