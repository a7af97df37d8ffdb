"""`wandb leet` shows a sweep's runs in a terminal, from its directory alone."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from test_wandb_runs import directories, make_sweep

from emosteer.tables import build
from emosteer.tracking.wandb_runs import log_to_wandb

SECONDS = 90.0
COLOURS = re.compile(rb"\x1b\[[0-9;?<>=]*[a-zA-Z]")
WINDOW = struct.pack("HHHH", 40, 160, 0, 0)
"""Rows and columns."""


@pytest.mark.slow
def test_leet_lists_the_runs_and_shows_what_the_first_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    sweep = make_sweep(tmp_path, mode="offline")
    log_to_wandb(sweep, build(sweep))
    newest = directories(sweep)[-1].name
    wanted = [newest[:26], "Project: emotions", "Config [", f"wandb dir: {sweep.paths.wandb}"[:40]]

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, WINDOW)
    command = [sys.executable, "-m", "wandb", "leet", str(sweep.paths.wandb)]
    environment = os.environ | {"TERM": "xterm-256color"}
    shown = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True)
    os.close(theirs)
    try:
        seen, until = b"", time.monotonic() + SECONDS
        missing = wanted
        while time.monotonic() < until and missing:
            if select.select([ours], [], [], 0.5)[0]:
                seen += os.read(ours, 65536)
            missing = [text for text in wanted if text.encode() not in COLOURS.sub(b"", seen)]
        assert missing == []
    finally:
        os.killpg(shown.pid, signal.SIGKILL)  # wandb's own core with it, which draws
        shown.wait()
        os.close(ours)
