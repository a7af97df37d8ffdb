"""What a sweep costs per cell besides the model, at 100, 1,000 and 10,000 cells: python benchmarks/sweep.py [CELLS ...]

    python benchmarks/sweep.py [CELLS ...] [--repeats 3] [--directory DIR] [--json FILE]

For each number of cells, in a fresh store: a grid over pairs, blocks and coefficients is composed and written down as the launchers
do it; two workers at once claim and publish it, with real claims, flushes and scorers, over a model whose call costs nothing
(stub_model.py); then tables, figures and the overview that `status` shows are built.

A disk is as fast as its flushes: how long one takes, alone and among others, stands above the table. Figures are medians over the
repeats; a cell of the grid brings 1.2 to 1.3 records, as controls and the baseline are records too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import stub_model

WORKERS = 2
WATCHED = {
    "looking what is left": ("emosteer.records.sweep", "Sweep.unsettled"),
    "claiming": ("emosteer.records.claims", "Claims.take"),
    "giving back": ("emosteer.records.claims", "Claims.release"),
    "publishing replies": ("emosteer.records.store", "Store.publish"),
    "publishing scores": ("emosteer.records.store", "Store.publish_all_scores"),
    "scorers themselves": ("emosteer.scoring.scorer", "Scorer.measure"),
}
"""What a worker's time goes to: methods, by what they are called here."""


def main() -> None:
    """Measure, and print the tables."""
    options = _options()
    if options.worker:
        _work(options.worker)
        return
    runs: dict[int, list[dict[str, Any]]] = {number: [] for number in options.cells}
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        disk = _flushes(Path(directory))
        model = stub_model.save(Path(directory) / "model")
        for _ in range(options.repeats):
            for number in options.cells:
                runs[number].append(run := _measure(number, model, options.directory))
                shown = {part: round(value, 2) for part, value in run.items() if part != "workers"}
                print(f"{number} cells, load {os.getloadavg()[0]:.1f}: {shown}", file=sys.stderr, flush=True)
    result = {"disk": disk, "load": os.getloadavg(), "cores": os.cpu_count(), "runs": runs}
    _print(result, {number: _medians(of_number) for number, of_number in runs.items()})
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", type=int, default=[100, 1_000, 10_000])
    parser.add_argument("--repeats", default=3, type=int)
    parser.add_argument("--directory", help="on the disk to be measured; the system's temporary directory by default")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(number: int, model: Path, directory: str | None) -> dict[str, Any]:
    """Seconds of each part for one sweep, and what its workers say of themselves."""
    with tempfile.TemporaryDirectory(dir=directory) as home:
        found: dict[str, Any] = _submit(number, model, Path(home))
        found |= _claim_and_publish(Path(home))
        found |= _summarise(Path(home))
    return found


def sweep_in(home: Path) -> Any:
    """The sweep of a benchmark's directory."""
    from emosteer.launcher import open_sweep

    return open_sweep(str(home / "store"), home / "outputs" / "sweep")


def _submit(number: int, model: Path, home: Path) -> dict[str, float]:
    return submit(stub_model.grid(number), model, home)


def submit(grid: Sequence[Sequence[str]], model: Path, home: Path) -> dict[str, float]:
    """Compose a grid and write it down, as our launchers do; seconds of each part."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import setup_globals
    from hydra.types import RunMode

    from emosteer.composer import Composer
    from emosteer.config import register
    from emosteer.hydra_jobs import job
    from emosteer.launcher import link_jobs
    from emosteer.launcher import submit as write_down

    register()
    setup_globals()
    fixed = [*stub_model.SETTINGS, f"model.path={model}"]
    with initialize_config_module("emosteer.conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [f"hydra.sweep.dir={home}/outputs/sweep"], run_mode=RunMode.MULTIRUN)
        started, processor = time.perf_counter(), time.process_time()
        composer = Composer(loader, master)
        jobs = [job(composer.compose([*fixed, *overrides], i)) for i, overrides in enumerate(grid)]
        composed = time.perf_counter()
        sweep = sweep_in(home)
        cells = write_down(jobs, sweep)
        written = time.perf_counter()
        link_jobs(jobs, cells, sweep)
    linked = time.perf_counter()
    manifests = sum(path.stat().st_size for path in sweep.paths.commands.iterdir())
    return {
        "composing": composed - started,
        "writing down": written - composed,
        "linking": linked - written,
        "processor until here": time.process_time() - processor,
        "manifest bytes": manifests,
    }


def _claim_and_publish(home: Path) -> dict[str, Any]:
    """Two workers at once, from the moment when both are ready."""
    command = [sys.executable, __file__, "--worker", str(home)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment))
            for _ in range(WORKERS)
        ]
        for worker in workers:
            # Left with an error, this must not wait for a worker that waits for a word.
            stack.callback(worker.kill)
            assert worker.stdout is not None
            if worker.stdout.readline() != "ready\n":
                raise SystemExit("a worker did not start")
        started = time.perf_counter()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        told = [json.loads(worker.communicate()[0]) for worker in workers]
        seconds = time.perf_counter() - started
    if any(worker.returncode for worker in workers):
        raise SystemExit("a worker failed")
    return {"claiming and publishing": seconds, "workers": told, "records": sum(one["published"] for one in told)}


def _work(home: Path) -> None:
    """A worker: say that it is ready, wait for a word, work, and print what it took."""
    from emosteer.records.claims import Claims
    from emosteer.resources import Resources
    from emosteer.worker import Worker

    sweep = sweep_in(home)
    cell = sweep.tasks()[0].cell
    bench = stub_model.bench_of(cell)
    assert bench.loaded is not None
    # The model's work, once a store.
    Resources(sweep.store, Claims(sweep.store.paths.claims, 60.0), bench.loaded.model).residual_norm(cell)
    seconds = _watched()
    worker = Worker(sweep_in(home), bench=bench, n_workers=WORKERS)
    print("ready", flush=True)
    sys.stdin.readline()
    started, cpu = time.perf_counter(), time.process_time()
    worker.run()
    whole = {"whole": time.perf_counter() - started, "processor": time.process_time() - cpu}
    print(json.dumps({"published": worker.n_published, "seconds": {**whole, **seconds}}))


def _watched() -> dict[str, float]:
    """Count, from now on, the seconds in each of `WATCHED`."""
    seconds: dict[str, float] = dict.fromkeys(WATCHED, 0.0)
    for label, (module, name) in WATCHED.items():
        owner_name, _, method_name = name.partition(".")
        owner = getattr(sys.modules[module], owner_name)
        setattr(owner, method_name, _timed(getattr(owner, method_name), label, seconds))
    return seconds


def _timed(method: Callable[..., Any], label: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            seconds[label] += time.perf_counter() - started

    return timed


def _summarise(home: Path) -> dict[str, float]:
    """Build what the finaliser builds, and what `status` shows, as a process of their own would: nothing is read yet."""
    from emosteer.finaliser import draw, write_tables
    from emosteer.overview import overview
    from emosteer.tables import build

    with _clock() as opening:
        sweep = sweep_in(home)
        sweep.tasks()
    with _clock() as building:
        tables = build(sweep)
    with _clock() as writing:
        sweep.write_summary()
        write_tables(sweep, tables)
    with _clock() as drawing, contextlib.redirect_stdout(io.StringIO()):
        draw(sweep, tables)
    with _clock() as looking:
        counts = overview(sweep).counts
    if counts["done"] != counts["total"] or len(tables.results) + 1 != counts["total"]:
        raise SystemExit(f"not all was done: {counts}")
    return {
        "reading manifests": opening(),
        "tables": building(),
        "writing tables": writing(),
        "figures": drawing(),
        "overview": looking(),
    }


@contextlib.contextmanager
def _clock() -> Iterator[Callable[[], float]]:
    started = time.perf_counter()
    ended: list[float] = []
    yield lambda: ended[0] - started
    ended.append(time.perf_counter())


def _flushes(directory: Path, n: int = 64) -> dict[str, float]:
    """Milliseconds of one flush of a new file: one after the other, and of eight threads at once."""
    files = [directory / f"flush-{i}" for i in range(2 * n)]
    for file in files:
        file.write_bytes(bytes(2000))

    def flush(file: Path) -> None:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())

    with _clock() as alone:
        for file in files[:n]:
            flush(file)
    with ThreadPoolExecutor(8) as pool, _clock() as together:
        list(pool.map(flush, files[n:]))
    return {"alone": 1000 * alone() / n, "among eight": 1000 * together() / n}


def _medians(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    keys = [key for key in runs[0] if key != "workers"]
    found = {key: statistics.median(run[key] for run in runs) for key in keys}
    for label in ("whole", "processor", *WATCHED):
        of_runs = [sum(worker["seconds"].get(label, 0.0) for worker in run["workers"]) for run in runs]
        found[f"workers: {label}"] = statistics.median(of_runs)
    return found


def _print(result: dict[str, Any], medians: dict[int, dict[str, float]]) -> None:
    disk = result["disk"]
    print(f"a flush: {disk['alone']:.2f} ms alone, {disk['among eight']:.2f} ms a file with eight at once")
    print(
        f"load {result['load'][0]:.1f} on {result['cores']} cores at the end; medians of {len(next(iter(result['runs'].values())))}\n"
    )
    numbers = list(medians)
    print("| ms a cell | " + " | ".join(f"{number:,} cells" for number in numbers) + " |")
    print("|---" * (1 + len(numbers)) + "|")
    sums = {"composing and submitting": ("composing", "writing down", "linking")}
    for label in (*sums, *next(iter(medians.values()))):
        parts = sums.get(label, (label,))
        unit = 1.0 if label.endswith("bytes") else 1000.0
        if label == "records":
            continue
        values = [unit * sum(medians[number][part] for part in parts) / number for number in numbers]
        print(f"| {label} | " + " | ".join(f"{value:,.2f}" for value in values) + " |")
    print("| records | " + " | ".join(f"{medians[number]['records']:,.0f}" for number in numbers) + " |")


if __name__ == "__main__":
    main()
