"""A simulation, and no measurement, of a sweep at scale: 100,000 cells and 256 workers over one file system.

    python benchmarks/simulation.py [--cells 200] [--of 100000] [--workers 256] [--per-claim 32] [--json FILE]

What is measured: a small run of the real code (a worker, claims, records; the model's call costs nothing, see stub_model.py), in
which every call to the file system is counted. What is extrapolated from it:

- per cell: what a cell costs for itself (claim, replies, scores) times the cells that a second settles, for given seconds a cell;
- per round: a worker's look before each claim, with listings whose length grows with the sweep;
- heartbeats: a touch of each lease that is held, five in the time after which it would be taken for dead.

A network file system answers a call that changes something, or looks something up, with a round trip; what clients keep in their
caches is left out, so that these are upper bounds. Supported are 10,000 cells a sweep: the rest shows what would break first.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import stub_model
import sweep as overhead

CALLS = {
    "create": (),
    "open": (),
    "link": ("link",),
    "rename": ("rename", "replace"),
    "remove": ("unlink", "remove", "rmdir"),
    "mkdir": ("mkdir",),
    "stat": ("stat", "lstat"),
    "list": ("scandir", "listdir"),
    "utime": ("utime",),
    "fsync": ("fsync",),
}
"""What is counted, and the functions of `os` behind it; opened files are told apart by their mode."""
LEASE_SECONDS = 300.0
CELL_SECONDS = (1.0, 10.0, 60.0)
"""Of a worker for one cell."""
NAME_BYTES = 60
"""Of a name in a listing."""


def main() -> None:
    """Count, extrapolate, and print the tables."""
    options = _options()
    with tempfile.TemporaryDirectory() as home:
        counted = count(options.cells, options.per_claim, Path(home))
    _print(counted, options)
    if options.json:
        options.json.write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=200, type=int, help="of the run in which calls are counted")
    parser.add_argument("--of", default=100_000, type=int, help="cells of the sweep that is simulated")
    parser.add_argument("--workers", default=256, type=int)
    parser.add_argument("--per-claim", default=32, type=int)
    parser.add_argument("--json", type=Path, help="write the counts there too")
    return parser.parse_args()


def count(number: int, per_claim: int, home: Path) -> dict[str, Any]:
    """Calls of one worker in a run of `number` cells, by what it was doing."""
    from emosteer.records.claims import Claims
    from emosteer.records.sweep import Sweep
    from emosteer.resources import Resources
    from emosteer.worker import Worker

    overhead.submit(stub_model.grid(number), stub_model.save(home / "model"), home)
    sweep = overhead.sweep_in(home)
    cell = sweep.tasks()[0].cell
    bench = stub_model.bench_of(cell)
    assert bench.loaded is not None
    Resources(sweep.store, Claims(sweep.store.paths.claims, LEASE_SECONDS), bench.loaded.model).residual_norm(cell)
    manifest = sum(path.stat().st_size for path in sweep.paths.commands.iterdir())
    worker = Worker(sweep, bench=bench)
    worker.settings["worker"]["cells_per_claim"] = per_claim
    with counting() as calls:
        looks = _counted_within(calls, Sweep, "attempts", Sweep, "unsettled", Claims, "taken")
        worker.run()
    n_tasks = worker.n_published
    return {
        "records": n_tasks,
        "manifest bytes a record": manifest / n_tasks,
        "rounds": looks.pop("rounds"),
        "looks": looks,
        "whole": dict(calls),
    }


def _counted_within(calls: Counter[str], *methods: Any) -> Counter[str]:
    """Count, from now on, what of `calls` is made within some methods (class, name, class, name, ...), and the first one's calls."""
    within: Counter[str] = Counter()
    depth = 0

    def watched(method: Callable[..., Any], is_first: bool) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal depth
            before = Counter(calls)
            depth += 1
            try:
                return method(*arguments, **options)
            finally:
                depth -= 1
                if not depth:
                    within.update(calls - before)
                    within["rounds"] += is_first

        return run

    for index, (owner, name) in enumerate(zip(methods[::2], methods[1::2], strict=True)):
        setattr(owner, name, watched(getattr(owner, name), is_first=index == 0))
    return within


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count this process's calls to the file system by kind, and the bytes of files that it writes."""
    calls: Counter[str] = Counter()
    originals = {name: getattr(os, name) for names in CALLS.values() for name in names} | {"open": os.open}

    def counted(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            calls[kind] += 1
            if kind == "list" and str(arguments[0]).endswith("/cells"):
                calls["list of all cells"] += 1
            return call(*arguments, **options)

        return run

    io_open = io.open

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not isinstance(file, int):
            calls["open" if mode.strip("bt") == "r" else "create"] += 1
        return io_open(file, mode, *arguments, **options)

    for kind, names in CALLS.items():
        for name in names:
            setattr(os, name, counted(kind, originals[name]))
    os.open = counted("open", originals["open"])
    io.open = opened
    try:
        yield calls
    finally:
        io.open = io_open
        for name, call in originals.items():
            setattr(os, name, call)


def _print(counted: dict[str, Any], options: argparse.Namespace) -> None:
    n, rounds, manifest = counted["records"], counted["rounds"], counted["manifest bytes a record"]
    kinds = [kind for kind in CALLS if counted["whole"].get(kind)]
    own = {kind: (counted["whole"][kind] - counted["looks"].get(kind, 0)) / n for kind in kinds}
    per_round = {kind: counted["looks"].get(kind, 0) / rounds for kind in kinds}
    listings = counted["looks"]["list of all cells"] / rounds
    print(f"Counted in a run of {n} records, {rounds} rounds of one worker; {manifest:,.0f} B of manifest each\n")
    print("| calls | " + " | ".join(kinds) + " | all |\n|---" + "|---" * (len(kinds) + 1) + "|")
    for label, row in (("a cell, for itself", own), ("a round, for looking", per_round)):
        print(f"| {label} | " + " | ".join(f"{row[kind]:.1f}" for kind in kinds) + f" | {sum(row.values()):.1f} |")
    print(f"\nA round lists all records {listings:.1f} times. Simulated: half of them are there, and every lease is held.")
    cells, workers, per_claim = options.of, options.workers, options.per_claim
    print(f"{cells:,} cells, {workers} workers, {per_claim} cells a claim; what the file system bears in a second:\n")
    print("| seconds a cell | cells | their calls | fsyncs among them | names in listings | MB of names | heartbeats |")
    print("|---" * 7 + "|")
    beats = workers * per_claim / (LEASE_SECONDS / 5)
    for seconds in CELL_SECONDS:
        rate = workers / seconds
        names = rate / per_claim * (listings * cells / 2 + workers * per_claim)
        values = (rate, rate * sum(own.values()), rate * own["fsync"], names, names * NAME_BYTES / 1e6, beats)
        print(f"| {seconds:g} | " + " | ".join(f"{value:,.0f}" for value in values) + " |")
    reading = cells * manifest / 1e6
    print(f"\nEvery worker reads and holds {reading:,.0f} MB of manifests: {workers * reading / 1e3:,.1f} GB when all start.")


if __name__ == "__main__":
    main()
