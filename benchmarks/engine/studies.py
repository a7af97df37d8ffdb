"""What is measured: the main table, and how the cost depends on cells, prompts, rows and scope."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import command, roofline
from engine.comparison import DifferentWorkError, Judge
from engine.making import Kitchen, kitchen
from engine.measuring import Race, Result, players, race
from engine.player import EMOSTEER, LOOP, Player
from engine.work import Order, Row, Work

Found = dict[str, Any]
"""What a study found, as JSON has it."""


@dataclass(frozen=True)
class Options:
    """How much is done. See `generation.py` for what they mean to a person."""

    layers: tuple[int, ...] = (6, 10, 14)
    coefficients: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, -0.1, -0.2, -0.3)
    prompts: int = 16
    new_tokens: int = 40
    rounds: int = 3
    threads: int = 1
    variants: tuple[str, ...] = (EMOSTEER, LOOP)
    loop_cells: int = 0
    processes: int = 2
    commands: bool = False
    points: tuple[int, ...] = ()
    """Of the study's own axis."""
    scope: str = "generated"
    model: str | None = None


@contextmanager
def _weights(options: Options) -> Iterator[tuple[Kitchen, Path]]:
    with tempfile.TemporaryDirectory(prefix="emosteer-benchmark-") as directory:
        yield kitchen(Path(directory), options.model), Path(directory)


def table(options: Options) -> Found:
    """All variants, the machine's own speed and the whole command, in the same rounds."""
    with _weights(options) as (made, directory):
        work = made.work(
            made.grid(options.layers, options.coefficients, options.scope), made.prompts(options.prompts), options.new_tokens
        )
        return _against(work, directory, options)


def lengths(options: Options) -> Found:
    """Prompts of `points` tokens, against the loop."""
    with _weights(options) as (made, directory):
        cells = made.grid(options.layers, options.coefficients, options.scope)
        works = {n: made.work(cells, made.prompts_of_length(options.prompts, n), options.new_tokens) for n in options.points}
        return _curve(works, directory, options)


def cells(options: Options) -> Found:
    """`points` cells, each with a direction of its own, and the baseline, against the loop."""
    with _weights(options) as (made, directory):
        prompts, every = made.prompts(options.prompts), made.random_cells(max(options.points))
        baseline = made.grid((), ())
        works = {n: made.work(baseline + every[:n], prompts, options.new_tokens) for n in options.points}
        return _curve(works, directory, options)


def _curve(works: dict[int, Work], directory: Path, options: Options) -> Found:
    found = {}
    with players(options.variants, next(iter(works.values())).weights, options.threads) as running:
        for point, work in works.items():
            print(f"{point}", file=sys.stderr, flush=True)
            path = str(work.write(directory, f"work-{point}"))
            found[point] = _told(work, race(work, path, running, options.variants, options))
    return {"points": found}


def _against(work: Work, directory: Path, options: Options) -> Found:
    machine_told: list[Found] = []
    commands: list[Found] = []
    path = str(work.write(directory))
    with (
        players(options.variants, work.weights, options.threads) as running,
        Player("machine", work.weights, threads=options.threads) as machine,
    ):

        def between(runs: Race) -> None:
            account = runs.results[EMOSTEER].more[-1]["account"]
            machine_told.append(machine.run(Order(path, batch_rows=roofline.rows_of(account))))
            if options.commands:
                commands.append(command.run(command_line(options), options.threads))

        results = race(work, path, running, options.variants, options, between)
    accounts = [more["account"] for more in results[EMOSTEER].more]
    found = _told(work, results) | {"roofline": roofline.summary(accounts, machine_told)}
    return found | ({"command": {"line": command_line(options), **command.summary(commands)}} if commands else {})


def _told(work: Work, results: dict[str, Result]) -> Found:
    size = {"cells": len(work.cells) - 1, "prompts": len(work.prompts), "new_tokens": work.new_tokens, "scope": work.cells[-1].scope}
    mean = statistics.mean(map(len, work.prompts))
    return {"work": size | {"prompt_tokens": mean}, "variants": {name: result.to_json() for name, result in results.items()}}


def command_line(options: Options) -> list[str]:
    """The arguments of `emosteer -m` for the table's cells."""
    axes = [f"layer={','.join(map(str, options.layers))}", f"coefficient={','.join(map(str, options.coefficients))}"]
    model = ["model=custom", f"model.path={options.model}", "attribution=none"] if options.model else []
    size = [f"prompts.limit={options.prompts}", f"generation.max_new_tokens={options.new_tokens}"]
    return [*axes, *size, "controls=none", "model.device=cpu", *model]


def whole_command(options: Options) -> Found:
    """The whole command alone."""
    runs = [command.run(command_line(options), options.threads) for _ in range(options.rounds)]
    return {"command": {"line": command_line(options), **command.summary(runs)}}


def rows(options: Options) -> Found:
    """The engine with `points` rows in a batch; the work has as many rows as the largest."""
    with _weights(options) as (made, directory):
        n_cells = -(-max(options.points) // options.prompts)
        work = made.work(made.grid((), ()) + made.random_cells(n_cells - 1), made.prompts(options.prompts), options.new_tokens)
        path = str(work.write(directory))
        orders = {n: Order(path, batch_rows=n) for n in options.points}
        runs = _in_turn(orders, work, options, _must_agree(work))
    return {"work": _told(work, {})["work"], "points": {n: _ours(of_point) for n, of_point in runs.items()}}


def mixture(options: Options) -> Found:
    """One batch of `points[0]` rows: as many distinct cells, against one cell in all of them; same prompts and lengths."""
    with _weights(options) as (made, directory):
        n = options.points[0]
        # Replies that all have the same length: otherwise the cells that end early would tell how long it takes.
        work = made.work(made.random_cells(n), made.prompts(options.prompts), options.new_tokens, options.new_tokens)
        path = str(work.write(directory))
        orders = {name: Order(path, rows=_batch(n, options.prompts, name), batch_rows=n) for name in ("repeated", "distinct")}
        runs = _in_turn(orders, work, options, _must_repeat)
    seconds = {name: [run["seconds"] for run in of_name] for name, of_name in runs.items()}
    ratios = [distinct / repeated for distinct, repeated in zip(seconds["distinct"], seconds["repeated"], strict=True)]
    size = {"rows": n, "prompts": options.prompts, "new_tokens": options.new_tokens}
    return {"work": size, "runs": {name: _ours(r) for name, r in runs.items()}, "ratios": ratios, "ratio": statistics.median(ratios)}


def _batch(n: int, prompts: int, name: str) -> tuple[Row, ...]:
    return tuple((row if name == "distinct" else 0, row % prompts) for row in range(n))


Check = Callable[[dict[Any, list[list[int]]]], None]
"""Looks at the replies of a round, by run."""


def _in_turn(orders: dict[Any, Order], work: Work, options: Options, check: Check) -> dict[Any, list[Found]]:
    """The engine's answers to several orders, in rounds that go through them forwards and backwards by turns."""
    runs: dict[Any, list[Found]] = {name: [] for name in orders}
    with players([EMOSTEER], work.weights, options.threads) as running:
        engine = running[EMOSTEER]
        engine.run(list(orders.values())[-1])  # unmeasured: a first call is slow
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            told = {name: engine.run(orders[name]) for name in list(orders)[:: -1 if number % 2 else 1]}
            check({name: told[name]["tokens"] for name in orders})
            for name, answer in told.items():
                runs[name].append({**answer, "tokens": sum(map(len, answer["tokens"]))})
    return runs


def _must_agree(work: Work) -> Check:
    judge = Judge(work)

    def check(replies: dict[Any, list[list[int]]]) -> None:
        first, *others = replies.values()
        for other in others:
            if wrong := [one for one in judge.differences(work.rows(), first, other) if not one.is_tie]:
                raise DifferentWorkError(f"batches of other sizes gave other replies, the first: {wrong[0]}")

    return check


def _must_repeat(replies: dict[Any, list[list[int]]]) -> None:
    lengths_of = {name: {len(reply) for reply in of_name} for name, of_name in replies.items()}
    if len({frozenset(found) for found in lengths_of.values()}) > 1:
        raise DifferentWorkError(f"the lengths of the replies differ: {lengths_of}")


def _ours(runs: Sequence[Found]) -> Found:
    seconds = statistics.median(run["seconds"] for run in runs)
    return {
        "seconds": [run["seconds"] for run in runs],
        "median": seconds,
        "tokens_per_second": runs[-1]["tokens"] / seconds,
        "runs": list(runs),
    }
