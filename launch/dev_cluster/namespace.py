"""A program that gives a command a host name of its own: python namespace.py NAME COMMAND [ARGUMENT ...]

The command, and all that it starts, sees NAME as the machine's name (a UTS namespace); nothing else sees it. Root may do so
everywhere; another user needs a user namespace besides, in which they are who they are and have no more rights than before. Where
the system allows neither, the command runs all the same, under the machine's own name.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
from pathlib import Path

CLONE_NEWUTS = 0x04000000
CLONE_NEWUSER = 0x10000000


def unshare(flags: int) -> None:
    """Leave namespaces for new ones; os.unshare came with Python 3.12. Raises OSError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def take_name(name: str) -> None:
    """Give this process a host name of its own. Raises OSError where that is not allowed."""
    user, group = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUTS if user == 0 else CLONE_NEWUTS | CLONE_NEWUSER)
    if user != 0:
        # The rights that come with the namespace are lost when the command starts, as its user is not root in there.
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    socket.sethostname(name)


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        take_name(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606
