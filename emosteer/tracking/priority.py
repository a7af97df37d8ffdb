"""A low priority that counts, also under Linux's autogroups.

Where the kernel groups processes by session (`/proc/sys/kernel/sched_autogroup_enabled`, on desktops and many servers), a process's
niceness is weighed against the rest of its own session only, and the sessions against each other by a niceness of their own, which
every new session starts without: wandb's writer has a session, and wandb-core, which does most of the work, yet another. Any user
may raise a session's niceness, by writing it to `/proc/<pid>/autogroup` of one of its processes; elsewhere there is no such file,
and the processes' own niceness, which they inherit, is all that counts.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import psutil

PROC = Path("/proc")


def lower(by: int) -> None:
    """Make this process so much nicer, and its session as nice, where it leads one; what the kernel refuses stays as it is."""
    with contextlib.suppress(OSError):
        os.nice(by)
    if os.getsid(0) == os.getpid():
        pass_on(os.getpid())


def pass_on(pid: int) -> None:
    """Give this process's niceness to the sessions of another process and of all that it started."""
    if (niceness := _own()) <= 0:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))):
            _set_of_session(each, niceness)


def of_session(pid: int) -> int | None:
    """The niceness of a process's session; None where the kernel knows of none, or the process is gone."""
    try:
        found = re.search(r" nice (-?\d+)", (PROC / str(pid) / "autogroup").read_text(encoding="ascii"))
    except OSError:
        return None
    return int(found[1]) if found else None


def _own() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def _set_of_session(pid: int, niceness: int) -> None:
    if of_session(pid) in (None, niceness):
        return
    # The kernel takes few such writes a second from one who is not root (EAGAIN), and the process may be gone, or /proc read-only.
    with contextlib.suppress(OSError):
        (PROC / str(pid) / "autogroup").write_text(str(niceness), encoding="ascii")
