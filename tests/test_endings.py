"""Signals, readers that leave and closed streams end a command in order."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

PROGRAM = """
import sys, time
from contextlib import nullcontext
from emosteer.endings import *
open_streams()
grace = float(sys.argv[1])
import emosteer.endings as endings
endings.GRACE_SECONDS = grace
try:
    with stopped_by_signals(), leaving(sys.argv[2]) if len(sys.argv) > 2 else nullcontext():
        try:
            print("ready", flush=True)
            time.sleep(30)
        finally:
            time.sleep(0.5)
            print("given back", flush=True)
except Stopped as stopped:
    say_goodbye(stopped)
    sys.exit(stopped.exit_code)
"""


def stop(
    *signals: signal.Signals, grace: float = 2.0, before: Callable[[], None] = lambda: None, pause: float = 0.01, leaves: str = ""
) -> tuple[int, str, str]:
    """The exit code and output of a command that gets signals."""

    def as_a_terminal_starts_it() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        before()

    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(grace), *([leaves] if leaves else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_a_terminal_starts_it,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in signals:
            process.send_signal(number)
            time.sleep(pause)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGHUP], 129),
        ([signal.SIGINT] * 5, 130),
        ([signal.SIGTERM, signal.SIGINT], 143),
        ([signal.SIGHUP, signal.SIGTERM], 129),
    ],
)
def test_the_first_signal_ends_the_command_in_order_and_says_which_it_was(signals: Sequence[signal.Signals], code: int) -> None:
    returned, out, err = stop(*signals)

    assert (returned, out) == (code, "given back\n")
    assert err == "\nInterrupted. Finished cells are kept: the same command goes on from there.\n"


def test_what_leaves_something_else_behind_says_so() -> None:
    returned, _, err = stop(signal.SIGINT, leaves="Nothing is kept.")

    assert (returned, err) == (130, "\nInterrupted. Nothing is kept.\n")


def test_who_insists_need_not_wait() -> None:
    returned, out, err = stop(signal.SIGINT, signal.SIGINT, grace=0.1, pause=0.3)

    assert (returned, out, err) == (130, "", "")


def test_what_nohup_ignores_stays_ignored() -> None:
    returned, out, _ = stop(signal.SIGHUP, signal.SIGTERM, before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN) and None)

    assert (returned, out) == (143, "given back\n")


CLOSED = """
import os, sys
for descriptor in map(int, sys.argv[2:]):
    os.close(descriptor)
os.execv(sys.executable, [sys.executable, "-c", '''
import logging, sys
from emosteer.endings import open_streams
open_streams()
mine = open(sys.argv[1], "w")
print("to nowhere")
print("to nowhere", file=sys.stderr)
import os
os.write(1, b"of a library")
os.write(2, b"of a library")
mine.write("mine")
''', sys.argv[1]])
"""


@pytest.mark.parametrize("closed", [[], [1], [2], [0, 1, 2]])
def test_a_closed_stream_is_nobodys_file(tmp_path: Path, closed: list[int]) -> None:
    done = subprocess.run([sys.executable, "-c", CLOSED, str(tmp_path / "mine"), *map(str, closed)], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "mine").read_text() == "mine"


READER = """
import sys
from emosteer.summary import console
out = console()
for _ in range(10000):
    out.print("a long line " * 8)
sys.exit(7)
"""


def test_a_reader_that_leaves_does_not_change_what_the_command_says_at_its_end() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{READER}' | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.startswith("a long line")
