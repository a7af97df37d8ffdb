"""Child processes that are given up when they make no progress, so that a tracker can neither stall nor break a sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emosteer.tracking import priority

LOOK_SECONDS = 1.0
"""Between two looks at the progress: it may mean listing a directory on a file server."""


@dataclass(frozen=True)
class Ending:
    """How a child ended."""

    code: int | None
    """Its exit status; None where it was given up."""
    output: str
    """What it printed, stdout and stderr together."""

    @property
    def last_line(self) -> str:
        """The last line that says something, for a message of one line."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else "it printed nothing"


def run_child(command: Sequence[str], env: Mapping[str, str], cwd: Path, progress: Callable[[], int], patience: float) -> Ending:
    """Run a command without a terminal, and kill it with all that it started once it stands still.

    It and all that it starts are as nice as this process, in sessions of their own, too.

    Args:
        command: program and arguments.
        env: its whole environment.
        cwd: where it runs.
        progress: a number that changes as long as the work goes on.
        patience: seconds without a change after which the child is given up.
    """
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(  # noqa: S603 - our own command
            command, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = _wait(child, progress, patience)
        finally:
            _kill(child)
        output.seek(0)
        return Ending(code, output.read().decode(errors="replace"))


def _wait(child: subprocess.Popen[bytes], progress: Callable[[], int], patience: float) -> int | None:
    seen, moved = progress(), time.monotonic()
    while time.monotonic() - moved < patience:
        priority.pass_on(child.pid)
        try:
            return child.wait(timeout=min(LOOK_SECONDS, patience))
        except subprocess.TimeoutExpired:
            now = progress()
            if now != seen:
                seen, moved = now, time.monotonic()
    return None


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a child that still runs, with its session. wandb's service has one of its own, and ends when its parent does."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
