"""What tracking costs a sweep's wall clock, whatever the server does: python benchmarks/tracking.py [--rounds 3] [--prompts 8]

    python benchmarks/tracking.py [--rounds 3] [--prompts 8] [--tokens 40] [--modes answers 429] [--directory DIR] [--json FILE]

Each round gives, for each way in which a server may behave, and without tracking, two commands in a row under one name, with
SmolLM2, in a fresh directory whose store has vector and baseline already: while the second one steers, the first one's runs are
written and uploaded by wandb, to a stand-in for its server (tests/wandb_stand_in.py) that answers, refuses (429, 500), hangs or
drops connections. The two commands' wall clock together is divided by that without tracking in the same round, and so is their
processor time, which other work on the machine disturbs less; the order turns from round to round. Then the server is mended: after
`emosteer-sweep sync` it must hold every run, once.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from wandb_stand_in import ANSWERS, FAULTS, KEY, stand_in

Numbers = dict[str, list[float]]
"""Of each way in which a server behaves, a number a round."""
OFF = "off"
MODES = (ANSWERS, *FAULTS)
LAYERS = ("9,13", "17,21")
"""Of the first command and of the second."""


def main() -> None:
    """Measure, and print the table."""
    options = _options()
    modes = (OFF, *options.modes)
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    worked: dict[str, list[float]] = {mode: [] for mode in modes}
    requests: dict[str, list[int]] = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory(dir=options.directory) as prepared:
        _prepare(Path(prepared), options)
        _rounds(Path(prepared), options, seconds, worked, requests)
    _print(options, seconds, worked, requests)


def _rounds(prepared: Path, options: argparse.Namespace, seconds: Numbers, worked: Numbers, requests: dict[str, list[int]]) -> None:
    modes = list(seconds)
    for number in range(options.rounds):
        first = number % len(modes)
        for mode in modes[first:] + modes[:first]:
            took, cpu, seen = _measure(mode, prepared, options)
            seconds[mode].append(took)
            worked[mode].append(cpu)
            requests[mode].append(seen)
            print(f"round {number + 1}, {mode}: {took:.1f} s, {seen} requests, load {os.getloadavg()[0]:.1f}", file=sys.stderr)


def _print(options: argparse.Namespace, seconds: Numbers, worked: Numbers, requests: dict[str, list[int]]) -> None:
    ratios, work = ({m: [a / b for a, b in zip(of[m], of[OFF], strict=True)] for m in of} for of in (seconds, worked))
    print(f"{'server':10} {'seconds':>8} {'ratio':>7} {'least':>7} {'most':>7} {'of CPU':>7} {'requests meanwhile':>19}")
    for mode in seconds:
        middle = statistics.median(ratios[mode])
        ends = f"{min(ratios[mode]):7.3f} {max(ratios[mode]):7.3f} {statistics.median(work[mode]):7.3f}"
        ends += f" {statistics.median(requests[mode]):19.0f}"
        print(f"{mode:10} {statistics.median(seconds[mode]):8.1f} {middle:7.3f} {ends}")
    if options.json:
        options.json.write_text(json.dumps({"seconds": seconds, "cpu_seconds": worked, "requests": requests}, indent=1))


def _prepare(directory: Path, options: argparse.Namespace) -> None:
    """Make what all commands share, the vector and the baseline, so that they only steer."""
    environment = os.environ | {"HOME": str(directory), "EMOSTEER_CACHE": str(_cache())}
    _run([*_command(options), "layer=5", "coefficient=0.1", "tracking=none"], str(directory), environment)


def _measure(mode: str, prepared: Path, options: argparse.Namespace) -> tuple[float, float, int]:
    """Wall clock and processor time of two commands, and how many requests came to the server before the second had ended."""
    with tempfile.TemporaryDirectory(dir=options.directory) as directory, _server(mode) as server:
        shutil.copytree(prepared / "outputs" / "store", Path(directory, "outputs", "store"))
        environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        environment |= {"HOME": directory, "EMOSTEER_CACHE": str(_cache())}
        if server:
            environment |= {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
        tracking = ["tracking=none"] if server is None else ["tracking=wandb", "tracking.upload_patience=60"]
        began, cpu = time.perf_counter(), _cpu_seconds()
        for layers in LAYERS:
            _run([*_command(options), f"layer={layers}", "coefficient=0.1,0.2", *tracking], directory, environment)
        took, cpu = time.perf_counter() - began, _cpu_seconds() - cpu
        seen = server.requests if server else 0
        if server:
            assert seen > 0, f"{mode}: no request came while the sweep ran"
            _check_sync(server, directory, environment)
        return took, cpu, seen


def _cpu_seconds() -> float:
    """Of the commands that have ended; the process that tracks is not among them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _check_sync(server: Any, directory: str, environment: dict[str, str]) -> None:
    """Mend the server; it must hold each run once and whole then."""
    server.mode = ANSWERS
    told = json.loads(_run([sys.executable, "-m", "emosteer.sweep_cli", "sync", "default", "--json"], directory, environment))
    runs = {path.name.rpartition("-")[2] for path in Path(directory, "outputs/default/wandb").glob("offline-run-*")}
    assert told["n_left"] == 0, told
    assert set(server.held) == runs
    assert len(runs) == told["n_runs"]
    assert all(run.exit_code == 0 and set(run.history) == {0} for run in server.held.values())


def _command(options: argparse.Namespace) -> list[str]:
    size = [
        f"prompts.limit={options.prompts}",
        f"generation.max_new_tokens={options.tokens}",
        "attribution=none",
        "vector.method=random",
    ]
    return [sys.executable, "-m", "emosteer.main", "-m", *size]


def _run(command: list[str], directory: str, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def _server(mode: str) -> Iterator[Any]:
    if mode == OFF:
        yield None
        return
    with stand_in(mode) as server:
        yield server


def _cache() -> Path:
    """Where the converted weights are: one place for all commands, of which none shall convert them."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("EMOSTEER_CACHE") or user_cache_path("emosteer"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="how the server behaves")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
