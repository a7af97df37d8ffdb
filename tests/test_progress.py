"""What a person reads while a sweep runs, where stderr is no terminal."""

from __future__ import annotations

import logging
import time

import pytest

from emosteer.progress import LINE_SECONDS, reporting


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
