"""Rounds: every variant does its work in each, tokens are compared before any time is kept, and medians are taken over the rounds."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from engine.comparison import Difference, DifferentWorkError, Judge
from engine.player import EMOSTEER, PROCESS, VARIANTS, Player, one_process_per_cell
from engine.work import Order, Row, Work


@dataclass
class Result:
    """What one variant took for the work, over the rounds."""

    rows: tuple[Row, ...]
    """The replies that it generated in each round."""
    scale: float
    """What its seconds are multiplied with to stand for all rows: a loop may do some of the cells."""
    seconds: list[float] = field(default_factory=list)
    """Of each round, scaled."""
    n_tokens: int = 0
    """Generated in a round, not scaled."""
    differences: list[Difference] = field(default_factory=list)
    """From emosteer's replies; ties all."""
    memory_mib: float = 0.0
    """The most that its process has had."""
    loaded_mib: float = 0.0
    """The most that it had had when its model was loaded."""
    versions: dict[str, str] = field(default_factory=dict)
    more: list[dict[str, Any]] = field(default_factory=list)
    """What it says of itself after each round."""

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.n_tokens * self.scale / self.median

    def to_json(self) -> dict[str, Any]:
        told = {key: value for key, value in vars(self).items() if key not in ("rows", "differences")}
        found = [one.to_json() for one in self.differences]
        return told | {
            "rows": len(self.rows),
            "differences": found,
            "median": self.median,
            "tokens_per_second": self.tokens_per_second,
        }


@contextmanager
def players(names: Sequence[str], weights: str, threads: int) -> Iterator[dict[str, Player]]:
    """A process for each variant that keeps one, all loaded."""
    with ExitStack() as stack:
        started = {}
        for name in names:
            if name != PROCESS:
                variant = VARIANTS[name]
                started[name] = stack.enter_context(Player(variant.module, weights, variant.environment, threads))
        for player in started.values():
            _ = player.about  # waits until it is ready
        yield started


def spread(n: int, among: int) -> tuple[int, ...]:
    """`n` indices out of `among`, evenly spread, the first one among them; all where n is 0 or too large."""
    if not 0 < n < among:
        return tuple(range(among))
    return tuple(i * among // n for i in range(n))


class Race:
    """Variants that do the same work, turn by turn.

    Args:
        work: what is to be generated, and `path`, where it is written.
        running: the processes, by variant.
        loop_cells: cells that a loop does in each round, and `processes` those that get a process each; 0 is all.
    """

    def __init__(
        self,
        work: Work,
        path: str,
        running: Mapping[str, Player],
        names: Sequence[str],
        threads: int,
        loop_cells: int,
        processes: int,
    ) -> None:
        self.work, self.path, self.running, self.threads = work, path, running, threads
        self.names = list(names)
        self.judge = Judge(work)
        self.cells: dict[str, tuple[int, ...]] = {}
        self.results: dict[str, Result] = {}
        n_cells = len(work.cells)
        for name in names:
            number = processes if name == PROCESS else loop_cells if VARIANTS[name].is_loop else 0
            self.cells[name] = spread(number, n_cells)
            rows = tuple((cell, prompt) for cell, prompt in work.rows() if cell in self.cells[name])
            self.results[name] = Result(rows, n_cells / len(self.cells[name]))

    def rehearse(self) -> None:
        """Let every variant do two cells, unmeasured: what is wrong shows before hours have passed, and first calls are slow."""
        rows = tuple(row for row in self.work.rows() if row[0] in spread(2, len(self.work.cells)))
        tokens = {name: self._run(name, spread(2, len(self.work.cells)), rows)["tokens"] for name in self.names if name != PROCESS}
        self._compare(tokens, dict.fromkeys(tokens, rows))

    def round(self, number: int) -> None:
        """One round. The order turns from round to round, so that a machine's drift hits all alike.

        Raises:
            DifferentWorkError: before anything of the round is kept.
        """
        turn = number % len(self.names)
        order = self.names[turn:] + self.names[:turn]
        answers = {name: self._run(name, self.cells[name], None) for name in order}
        rows = {name: self.results[name].rows for name in order}
        self._compare({name: answer["tokens"] for name, answer in answers.items()}, rows)
        for name, answer in answers.items():
            result = self.results[name]
            result.seconds.append(answer.pop("seconds") * result.scale)
            result.n_tokens = sum(map(len, answer.pop("tokens")))
            result.memory_mib = answer.pop("memory_mib")
            result.more.append(answer)
            if name in self.running:
                result.versions, result.loaded_mib = self.running[name].about["versions"], self.running[name].about["memory_mib"]

    def _run(self, name: str, cells: tuple[int, ...], rows: tuple[Row, ...] | None) -> dict[str, Any]:
        print(f"  {VARIANTS[name].label}", file=sys.stderr, flush=True)
        if name == PROCESS:
            return one_process_per_cell(cells, self.path, self.work.weights, self.threads)
        is_loop = VARIANTS[name].is_loop
        return self.running[name].run(Order(self.path, cells if is_loop else None, None if is_loop else rows))

    def _compare(self, tokens: Mapping[str, Any], rows: Mapping[str, tuple[Row, ...]]) -> None:
        """Compare all replies with emosteer's."""
        ours = dict(zip(rows[EMOSTEER], tokens[EMOSTEER], strict=True))
        for name in tokens:
            found = self.judge.differences(rows[name], [ours[row] for row in rows[name]], tokens[name])
            if wrong := [one for one in found if not one.is_tie]:
                raise DifferentWorkError(
                    f"{VARIANTS[name].label}: {len(wrong)} of {len(rows[name])} replies are others, first {wrong[0]}"
                )
            self.results[name].differences = found


def race(
    work: Work,
    path: str,
    running: Mapping[str, Player],
    names: Sequence[str],
    options: Any,
    between: Callable[[Race], None] | None = None,
) -> dict[str, Result]:
    """All rounds of a race; `between` is called after each, for what has to be measured in the same minutes."""
    runs = Race(work, path, running, names, options.threads, options.loop_cells, options.processes)
    runs.rehearse()
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        runs.round(number)
        if between:
            between(runs)
    return runs.results
