"""What a person sees while a sweep runs, or a command works: a bar on a terminal, a line now and then elsewhere; all on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

log = logging.getLogger(__name__)

LINE_SECONDS = 15.0


class Reporter(Protocol):
    """Is told what a worker does."""

    def stage(self, text: str) -> None:
        """What goes on now."""

    def tokens(self, n: int, rows: float) -> None:
        """So many tokens more were generated, with so many rows in a forward; 0 where the engine does not say."""

    def settled(self, n: int) -> None:
        """So many cells more are done or failed."""


@dataclass
class Silent:
    """Tells nobody."""

    def stage(self, text: str) -> None: ...

    def tokens(self, n: int, rows: float) -> None: ...

    def settled(self, n: int) -> None: ...


@dataclass
class _Rate:
    """Tokens per second in a stage, from its first ones on, and rows in a forward."""

    started: float | None = None
    total: int = 0
    rows: float = 0.0

    def add(self, n: int, rows: float) -> None:
        self.started = self.started or time.monotonic()
        self.total += n
        self.rows = rows

    def __str__(self) -> str:
        if self.started is None or (seconds := time.monotonic() - self.started) < 1.0:
            return ""
        rows = f", {self.rows:.0f} rows" if self.rows else ""
        return f"{self.total / seconds:,.0f} tokens/s{rows}"


class _Bar:
    def __init__(self, bar: Progress, total: int, done: int) -> None:
        self.bar, self.rate = bar, _Rate()
        self.task = bar.add_task("starting", total=total, completed=done, rate="")

    def stage(self, text: str) -> None:
        self.rate = _Rate()
        self.bar.update(self.task, description=text, rate="")

    def tokens(self, n: int, rows: float) -> None:
        self.rate.add(n, rows)
        self.bar.update(self.task, rate=str(self.rate))

    def settled(self, n: int) -> None:
        self.bar.advance(self.task, n)


@dataclass
class _Lines:
    total: int
    done: int
    rate: _Rate = field(default_factory=_Rate)
    last: float = field(default_factory=time.monotonic)

    def stage(self, text: str) -> None:
        log.info("%s", text)
        self.last, self.rate = time.monotonic(), _Rate()

    def tokens(self, n: int, rows: float) -> None:
        self.rate.add(n, rows)
        if time.monotonic() - self.last > LINE_SECONDS:
            self._line()

    def settled(self, n: int) -> None:
        self.done += n
        if self.done == self.total or time.monotonic() - self.last > LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        self.last = time.monotonic()
        rate = f", {self.rate}" if str(self.rate) else ""
        log.info("%d of %d cells%s", self.done, self.total, rate)


@contextmanager
def reporting(total: int, done: int) -> Iterator[Reporter]:
    """A reporter for `total` cells of which `done` are there already: a bar where stderr is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield _Lines(total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cells"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar, total, done)


class Work(Protocol):
    """Is told what a command does."""

    def stage(self, text: str) -> None:
        """What goes on now: a line where stderr is no terminal."""

    def count(self, text: str, n: int, total: int) -> None:
        """What goes on within it, and how far: shown on a terminal alone."""


class _Spinner:
    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task = bar.add_task("starting", total=None)

    def stage(self, text: str) -> None:
        self.bar.update(self.task, description=text, total=None, completed=0)

    def count(self, text: str, n: int, total: int) -> None:
        self.bar.update(self.task, description=text, total=total, completed=n)


class _Told:
    def stage(self, text: str) -> None:
        log.info("%s", text)

    def count(self, text: str, n: int, total: int) -> None: ...


class _HowFar(MofNCompleteColumn):
    """`3/9`; nothing of what is not counted."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


@contextmanager
def working() -> Iterator[Work]:
    """Who is told what a command does: a spinner where stderr is a terminal, which leaves nothing behind, else a line a stage."""
    if not sys.stderr.isatty():
        yield _Told()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), _HowFar(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Spinner(bar)
