"""The whole command `emosteer -m` for the same cells, with everything that it does besides generating, and where its seconds go."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.player import BENCHMARKS


def run(arguments: Sequence[str], threads: int) -> dict[str, Any]:
    """Give the command in an empty directory, with an empty store.

    Returns:
        `seconds` of the whole process, `arithmetic`: of those in which the model computed, by what for (see
        `counted_command.py`), and `took`: the parts that the command itself tells.
    """
    with tempfile.TemporaryDirectory() as home:
        told = Path(home) / "seconds.json"
        paths = filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        started = time.perf_counter()
        command = [sys.executable, "-m", "engine.counted_command", str(told), "-m", *arguments]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(f"emosteer -m {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        took = [line.partition("took: ")[2] for line in done.stderr.splitlines() if "took: " in line]
        return {"seconds": seconds, "arithmetic": json.loads(told.read_text(encoding="utf-8")), "took": took}


def overhead(told: dict[str, Any]) -> float:
    """The share of the wall clock in which the model did not compute."""
    return 1 - sum(told["arithmetic"].values()) / told["seconds"]


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over runs."""
    parts = runs[0]["arithmetic"]
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "arithmetic": {part: statistics.median(run["arithmetic"][part] for run in runs) for part in parts},
        "overhead": statistics.median(map(overhead, runs)),
        "runs": list(runs),
    }
