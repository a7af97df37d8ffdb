"""How a command ends when somebody wants it to: ctrl-C, a scheduler's SIGTERM, a terminal that goes away, a reader that leaves.

Finished cells are on the disk by then. What is left to do is to give leases back, and to say nothing that looks like a failure.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that ctrl-C ended, as a shell has it."""
GRACE_SECONDS = 2.0
"""So long after the first signal others count as the same one (a person taps ctrl-C twice, a wrapper passes it on once more)."""


CELLS_KEPT = "Finished cells are kept: the same command goes on from there."
PROBE_KEPT = "A probe keeps nothing before its end: the same command begins again."


class Stopped(KeyboardInterrupt):
    """A signal that asks the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number
        self.left = CELLS_KEPT
        """What it leaves behind, for the user."""


_asked: list[int] = []
"""The signal that has asked the work to end which is under way in this process, once there is one."""


def check_stopped() -> None:
    """Go on with the end that a signal has asked for.

    A library may catch `Stopped` with a bare `except:`, as if it were its own error, and go on or raise another: whoever is about to
    begin something, or to blame something for an error, calls this first.

    Raises:
        Stopped: a signal came.
    """
    if _asked:
        raise Stopped(_asked[0])


@contextmanager
def stopped_by_signals(*others: int) -> Iterator[None]:
    """Raise Stopped inside at the first SIGINT, SIGTERM, SIGHUP, or one of others; signals that the caller ignores (nohup, `&`)
    stay ignored.

    While the work inside winds up, further ones are no news; after `GRACE_SECONDS` one more ends the process at once.
    """
    first: list[float] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            _asked.append(number)
            raise Stopped(number)
        if time.monotonic() - first[0] > GRACE_SECONDS:
            os._exit(128 + number)

    numbers = [*(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)), *others]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        _asked.clear()
        # Once stopped the process is on its way out: a signal that comes later must not bring back what Python does by itself.
        if not first:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def leaving(what: str) -> Iterator[None]:
    """Whoever is stopped inside leaves this behind, as a sentence: no finished cells."""
    try:
        yield
    except Stopped as stopped:
        stopped.left = what
        raise


def say_goodbye(stopped: Stopped) -> None:
    """Tell what is left behind, to whoever still listens."""
    try:
        print(f"\nInterrupted. {stopped.left}", file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr.fileno())
    try:
        sys.stdout.flush()
    except OSError:
        silence(sys.stdout.fileno())


def open_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr the null device for them.

    Else the next file that is opened would get the number, and receive what libraries print. A log line that cannot be written
    is no reason for a traceback.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for the process's life
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    logging.raiseExceptions = False


def silence(descriptor: int) -> None:
    """Let what is still to be written to a stream go nowhere: its reader has left."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
