"""What a person reads while a sweep runs or a command works."""

from __future__ import annotations

import io
import logging
import re
import sys
import time

import pytest

from emosteer.progress import LINE_SECONDS, reporting, working


def test_lines_say_cells_tokens_per_second_and_rows(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, "emosteer")
    with reporting(total=10, done=2) as report:
        report.stage("generating")
        for _ in range(101):
            report.tokens(50, rows=112.0)
            now[0] += (LINE_SECONDS + 1) / 100
        report.settled(3)
        report.stage("scoring")
        now[0] += 1000
        report.stage("generating")
        report.tokens(64, rows=0.0)
        now[0] += 2
        report.tokens(64, rows=0.0)
        report.settled(5)
    # After 15.04 s, at the 95th 50 tokens; then 128 in 2 s, whatever came between, of an engine that does not say how many rows.
    assert [line for line in caplog.messages if "cells" in line] == [
        "2 of 10 cells, 316 tokens/s, 112 rows", "10 of 10 cells, 64 tokens/s"
    ]  # fmt: skip


class Terminal(io.StringIO):
    """A stderr that is one."""

    def isatty(self) -> bool:
        return True


def test_work_is_a_line_a_stage_where_stderr_is_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "emosteer")
    with working() as work:
        work.stage("building the tables")
        for n in range(10):
            work.count("uploading runs", n, 10)
    assert caplog.messages == ["building the tables"]


def test_work_is_drawn_on_a_terminal_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "emosteer")
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with working() as work:
        work.stage("building [the] tables")
        time.sleep(0.3)
        work.count("uploading runs", 3, 9)
        time.sleep(0.3)
    drawn = terminal.getvalue()
    assert "building [the] tables" in drawn, "brackets are no markup"
    assert re.search(r"uploading runs.*3/9", drawn)
    assert drawn.rstrip().endswith("\x1b[2K"), "the line is wiped at the end"
    assert caplog.messages == []
    assert capfd.readouterr().out == ""
