"""What a person sees while a sweep runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

LINE_SECONDS = 15.0


class Reporter(Protocol):
    """Is told what a worker does."""

    def stage(self, text: str) -> None:
        """What goes on now."""

    def tokens(self, n: int) -> None:
        """So many tokens more were generated."""

    def settled(self, n: int) -> None:
        """So many cells more are done or failed."""


@dataclass
class Silent:
    """Tells nobody."""

    def stage(self, text: str) -> None: ...

    def tokens(self, n: int) -> None: ...

    def settled(self, n: int) -> None: ...


@dataclass
class Timed:
    """Passes all on to another reporter, and keeps how long each stage took."""

    to: Reporter
    seconds: dict[str, float] = field(default_factory=dict)
    _stage: str = ""
    _since: float = field(default_factory=time.monotonic)

    def stage(self, text: str) -> None:
        self._close()
        self._stage = text
        self.to.stage(text)

    def tokens(self, n: int) -> None:
        self.to.tokens(n)

    def settled(self, n: int) -> None:
        self.to.settled(n)

    def __str__(self) -> str:
        self._close()
        return ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())

    def _close(self) -> None:
        now = time.monotonic()
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._since = now


@dataclass
class _Rate:
    """Tokens per second while tokens come."""

    started: float | None = None
    total: int = 0

    def add(self, n: int) -> None:
        self.started = self.started or time.monotonic()
        self.total += n

    def __str__(self) -> str:
        if self.started is None or (seconds := time.monotonic() - self.started) < 1.0:
            return ""
        return f"{self.total / seconds:,.0f} tokens/s"


class _Bar:
    def __init__(self, bar: Progress, total: int, done: int) -> None:
        self.bar, self.rate = bar, _Rate()
        self.task = bar.add_task("starting", total=total, completed=done, rate="")

    def stage(self, text: str) -> None:
        self.bar.update(self.task, description=text)

    def tokens(self, n: int) -> None:
        self.rate.add(n)
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
        self.last = time.monotonic()

    def tokens(self, n: int) -> None:
        self.rate.add(n)
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
