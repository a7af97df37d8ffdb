"""A variant at work: a process that has loaded its model, and generates when it is told to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.environments import interpreter
from engine.work import Order

BENCHMARKS = Path(__file__).parent.parent


class PlayerFailedError(Exception):
    """A variant's process ended before it answered."""


@dataclass(frozen=True)
class Variant:
    """A way to generate a sweep's replies."""

    label: str
    """For the table."""
    module: str
    """Of `engine.variants`."""
    environment: str | None = None
    """The library whose environment it runs in; None is this process's own."""
    is_loop: bool = True
    """Runs one cell after the other, so that some of them tell what all would take."""


EMOSTEER, LOOP, PROCESS = "emosteer", "loop", "process"
VARIANTS = {
    EMOSTEER: Variant("emosteer", "emosteer_engine", is_loop=False),
    LOOP: Variant("a loop over cells, `generate` and a hook", "loop"),
    "steering-vectors": Variant("steering-vectors in that loop", "steering_vectors_loop", "steering-vectors"),
    "repeng": Variant("repeng in that loop", "repeng_loop", "repeng"),
    PROCESS: Variant("one process per cell, `generate` and a hook", "loop"),
}


class Player:
    """The process of a variant. A context manager: it ends when that is left.

    Args:
        module: of `engine.variants`, served by its `serve`.
        weights: what it loads.
        environment: see `Variant`.
        threads: of torch.
    """

    def __init__(self, module: str, weights: str, environment: str | None = None, threads: int = 1) -> None:
        self.module = module
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        python = interpreter(environment) if environment else Path(sys.executable)
        self._process = subprocess.Popen(
            [str(python), "-m", f"engine.variants.{module}", weights],
            cwd=BENCHMARKS,
            env=_surroundings(threads, is_ours=environment is None),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._about: dict[str, Any] | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What it says of itself when it has loaded its model: `versions`, `memory_mib`."""
        if self._about is None:
            self._about = self._hear()
        return self._about

    def run(self, order: Order) -> dict[str, Any]:
        """Do one order: `seconds`, `tokens` of each row, `memory_mib`, and what the variant says besides."""
        self.about  # noqa: B018 - the first thing that it says is not the answer
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(order.to_json() + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise self._failure()
        return json.loads(line)

    def _failure(self) -> PlayerFailedError:
        code = self._process.wait()
        self._errors.seek(0)
        told = self._errors.read().decode(errors="replace")
        return PlayerFailedError(f"{self.module} ended with {code}:\n{told[-4000:]}")

    def __enter__(self) -> Player:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._process.kill()
        # Its orders end, and so does it.
        self._process.communicate()
        self._errors.close()


def _surroundings(threads: int, is_ours: bool) -> dict[str, str]:
    """Equal for all: threads, and no look at a model hub. Another environment must not find this one's packages."""
    kept = {name: value for name, value in os.environ.items() if is_ours or name not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


def one_process_per_cell(cells: Sequence[int], work: str, weights: str, threads: int) -> dict[str, Any]:
    """Start the loop's process anew for each cell, let it do that one, and end it: interpreter, imports and loading are counted."""
    started = time.perf_counter()
    answers = []
    for cell in cells:
        with Player(VARIANTS[PROCESS].module, weights, threads=threads) as player:
            answers.append(player.run(Order(work, (cell,))))
    return {
        "seconds": time.perf_counter() - started,
        "tokens": [reply for answer in answers for reply in answer["tokens"]],
        "memory_mib": max(answer["memory_mib"] for answer in answers),
    }
