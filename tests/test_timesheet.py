"""Each second of a worker stands once on its sheet; on a clock that the test turns."""

from __future__ import annotations

import time

import pytest

from emosteer.engine.account import Account
from emosteer.timesheet import DECODE, LOADING, OTHER, PARTS, PREFILL, SCORING, WRITING, Timesheet


class Clock:
    """A clock that goes by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def spent(sheet: Timesheet) -> dict[str, float]:
    """What is not nothing."""
    return {part: seconds for part, seconds in sheet.seconds.items() if seconds}


def test_what_is_done_inside_is_not_counted_twice(clock: Clock) -> None:
    sheet = Timesheet()
    clock.pass_(1)
    with sheet.on(SCORING):
        clock.pass_(2)
        with sheet.on(WRITING):
            clock.pass_(4)
            assert spent(sheet) == {OTHER: 1, SCORING: 2, WRITING: 4}, "also while it goes on"
        clock.pass_(8)
    with sheet.on(WRITING):
        clock.pass_(16)
    clock.pass_(32)
    assert spent(sheet) == {OTHER: 33, SCORING: 10, WRITING: 20}
    assert sum(sheet.seconds.values()) == 63
    assert tuple(sheet.seconds) == PARTS


def test_time_counts_until_an_exception(clock: Clock) -> None:
    sheet = Timesheet()

    def fail() -> None:
        with sheet.on(LOADING):
            clock.pass_(2)
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fail()
    clock.pass_(1)
    assert spent(sheet) == {LOADING: 2, OTHER: 1}


def test_of_decoding_the_engine_says_what_was_prefill(clock: Clock) -> None:
    sheet, engine = Timesheet(), Account("shared", "it may", prefill_seconds=100.0)
    sheet.follow(engine)
    with sheet.on(DECODE):
        clock.pass_(3)
        engine.prefill_seconds += 2
        with sheet.on(WRITING):
            clock.pass_(4)
        clock.pass_(5)
        engine.prefill_seconds += 1
        assert spent(sheet) == {PREFILL: 3, DECODE: 5, WRITING: 4}
    with sheet.on(SCORING):
        # Prompts that scores need: that is scoring.
        clock.pass_(7)
        engine.prefill_seconds += 6
    with sheet.on(DECODE):
        clock.pass_(1)
    assert spent(sheet) == {PREFILL: 3, DECODE: 6, WRITING: 4, SCORING: 7}


def test_only_what_was_generated_meanwhile_counts_of_every_engine(clock: Clock) -> None:
    old, new = Account("stock", "of old", 8, tokens=500, steps=10, row_steps=90), Account("shared", "it may", 32)
    sheet = Timesheet()
    sheet.follow(old)
    with sheet.on(DECODE):
        clock.pass_(2)
        old.tokens, old.steps, old.row_steps = old.tokens + 100, old.steps + 20, old.row_steps + 100
    sheet.follow(old)
    sheet.follow(new)
    with sheet.on(DECODE):
        clock.pass_(3)
        new.prefill_seconds, new.tokens, new.steps, new.row_steps = 1.0, 400, 20, 600
    assert (sheet.generated.tokens, sheet.generated.steps, sheet.generated.rows) == (500, 40, 700 / 40)
    assert sheet.tokens_per_second == 100.0
    facts = sheet.facts()
    assert (facts["engine_path"], facts["engine_reason"], facts["batch_rows"], facts["rows"]) == ("shared", "it may", 32, 17.5)
    assert {part for part, seconds in facts["spent"].items() if seconds} == {PREFILL, DECODE}


def test_people_read_it_in_a_line(clock: Clock) -> None:
    sheet, engine = Timesheet(), Account("shared", "it may")
    sheet.follow(engine)
    with sheet.on(DECODE):
        clock.pass_(30)
        engine.tokens, engine.steps, engine.row_steps = 12_000, 100, 11_200
    with sheet.on(LOADING):
        clock.pass_(10)
    assert str(sheet) == (
        "40.0 s: loading 10.0 s (25%), decode 30.0 s (75%), "
        "12,000 tokens at 400 tokens/s, 112 rows in the mean forward, path shared (it may)"
    )
    idle = Timesheet()
    clock.pass_(2)
    assert str(idle) == "2.0 s: other 2.0 s (100%)"
