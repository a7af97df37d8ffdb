"""The variants' side of the protocol: they say that they are ready, then answer each order, a JSON object a line.

Only the work itself is timed: interpreter, imports and model are there before the first order comes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine.work import Order

Run = Callable[[Order], dict[str, Any]]
"""Does an order: the `seconds` that it took, the `tokens` of each row, and what else there is to tell."""


def serve(libraries: tuple[str, ...], run: Run) -> None:
    """Answer orders from standard input until it ends.

    Args:
        libraries: whose versions are told.
        run: what it returns is the answer, to which the process's peak memory is added.
    """
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer | {"memory_mib": peak_memory()}), file=answers, flush=True)

    say({"versions": {name: version(name) for name in libraries}})
    for line in sys.stdin:
        say(run(Order.from_json(line)))


def peak_memory() -> float:
    """The most memory that this process has had, in MiB; files that it maps are counted."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        # getrusage would count what the parent had when it started this process.
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
