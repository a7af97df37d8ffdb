"""Composing and planning a sweep's cells, against Hydra's own composition of every job: python benchmarks/composition.py [CELLS ...]

Prints seconds, and milliseconds a cell, for each number of cells (1,000 and 10,000 by default): how long it takes until a sweep of a
grid over blocks, coefficients and pairs is written down and could start. Hydra's own time is measured on 20 jobs.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.types import RunMode

from emosteer.composer import Composer
from emosteer.config import register
from emosteer.hydra_jobs import job
from emosteer.launcher import open_sweep, submit

PAIRS = ("joy_sadness", "trust_disgust", "anger_fear", "anticipation_surprise", "love_hate")
SAMPLE = 20


def grid(n: int) -> list[list[str]]:
    """The overrides of n cells."""
    coefficients = [f"{0.001 * step:g}" for step in range(1, 2 + n // (len(PAIRS) * 30))]
    points = itertools.product(PAIRS, range(30), coefficients)
    return [[f"pair={pair}", f"layer={layer}", f"coefficient={c}"] for pair, layer, c in itertools.islice(points, n)]


def main(numbers: Sequence[int]) -> None:
    """Measure, and print a line for each number of cells."""
    register()
    setup_globals()
    with initialize_config_module("emosteer.conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        started = time.perf_counter()
        for overrides in grid(SAMPLE):
            loader.load_sweep_config(master, overrides)
        by_hydra = (time.perf_counter() - started) / SAMPLE
        print(f"Hydra's own composition: {1000 * by_hydra:.1f} ms a job")
        for number in numbers:
            started = time.perf_counter()
            composer = Composer(loader, master)
            jobs = [job(composer.compose(overrides, i)) for i, overrides in enumerate(grid(number))]
            composed = time.perf_counter() - started
            with tempfile.TemporaryDirectory() as directory:
                submit(jobs, open_sweep(f"{directory}/store", Path(directory) / "sweep"))
            whole = time.perf_counter() - started
            print(
                f"{number:>6,} cells: composed in {composed:.1f} s, {1000 * composed / number:.2f} ms a cell "
                f"({by_hydra * number / composed:.0f} times as fast); planned and written down after {whole:.1f} s"
            )


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [1_000, 10_000])
