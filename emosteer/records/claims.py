"""Leases on cells, so that workers do not do the same work twice.

They save work and are no more than advice: publishing is idempotent, so that a cell which runs twice is waste and no damage.
A lease is a file made exclusively, touched by its owner's heartbeat, and taken over when it has not been touched for a while,
measured on the file server's clock. The dead lease of a process on this host is taken over at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


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
                return lease
            owner = _owner(path)
            if not owner and not path.exists():
                continue  # its holder was done just now
            if not self._is_dead(path, owner):
                return None
            attempt = int(owner.get("attempt", 1)) + 1
            self._bury(path, owner)
        return None

    def release(self, lease: Lease) -> None:
        """Give a cell back, unless another process has taken it over."""
        with self._lock:
            self._held.pop(lease.cell_id, None)
        if _owner(lease.path).get("token") == lease.token:
            lease.path.unlink(missing_ok=True)

    def release_all(self) -> None:
        """Give back everything that this process holds."""
        for lease in list(self._held.values()):
            self.release(lease)

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Touch this process's leases from a thread, as long as the work inside goes on."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self.lease_seconds / 5):
                self._touch()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _touch(self) -> None:
        with self._lock:
            leases = list(self._held.values())
        for lease in leases:
            try:
                os.utime(lease.path)
            except OSError:
                # Taken over, or the file server is away: correctness does not rest on leases.
                continue

    def _create(self, lease: Lease) -> bool:
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "token": lease.token,
            "attempt": lease.attempt,
        }
        # Written first and linked into its place: a reader never sees a lease without its owner.
        draft = self.directory / f".tmp-{lease.token}"
        draft.write_text(json.dumps(owner), encoding="utf-8")
        try:
            os.link(draft, lease.path)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def _is_dead(self, path: Path, owner: dict[str, Any]) -> bool:
        if owner.get("host") == socket.gethostname() and not _is_alive(owner):
            return True
        try:
            touched = path.stat().st_mtime
        except FileNotFoundError:
            return True
        return self._server_time() - touched > self.lease_seconds

    def _server_time(self) -> float:
        """Now, by the clock of the file system that stamps the leases."""
        probe = self.directory / f".tmp-clock-{uuid.uuid4().hex}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def _bury(self, path: Path, owner: dict[str, Any]) -> None:
        """Take a dead lease away; of several processes that try, all go on to claim, and one gets it."""
        grave = self.directory / f".tmp-dead-{uuid.uuid4().hex}"
        try:
            path.rename(grave)
        except FileNotFoundError:
            return
        if _owner(grave).get("token") != owner.get("token"):
            # Another process was faster, and this is its fresh lease: back to its place, if that is still free.
            with contextlib.suppress(FileExistsError):
                os.link(grave, path)
        grave.unlink()


def _owner(path: Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_alive(owner: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(int(owner["pid"]))
        return abs(process.create_time() - float(owner["started"])) < 2.0
    except (psutil.NoSuchProcess, KeyError, ValueError, TypeError):
        return False
