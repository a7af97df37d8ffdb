"""Tracking by a process of its own, which outlives the command that started it: `python -m emosteer.tracking.background SWEEP STORE`.

A command is done when its tables are written. Runs are then written and uploaded by this process, at a low priority, from the same
records; what becomes of it is in the sweep's logs. Killed, it leaves what `emosteer-sweep sync` completes.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from emosteer.records.store import Store
from emosteer.records.sweep import Sweep
from emosteer.tracking import priority

log = logging.getLogger("emosteer.tracking.background")  # by python -m the module's name is another

NICENESS = 10
"""So that the next command has the cores."""


def start(sweep: Sweep) -> None:
    """Leave a sweep's tracking to a process of its own, and return."""
    paths = sweep.paths
    paths.logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "emosteer.tracking.background", str(paths.root.resolve()), str(sweep.store.paths.root.resolve())]
    with paths.tracking_log.open("ab") as output:
        subprocess.Popen(  # noqa: S603 - our own command
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def ends_with_this_process() -> bool:
    """Whether what this process starts is ended when it ends, as SLURM does with a job's processes."""
    return "SLURM_JOB_ID" in os.environ


def main() -> None:
    """Log a sweep as its settings say."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    logging.getLogger("emosteer").setLevel(logging.INFO)
    priority.lower(NICENESS)
    from emosteer.tables import build
    from emosteer.tracking import log_now

    sweep = Sweep(Path(sys.argv[1]), Store(Path(sys.argv[2])))
    try:
        log_now(sweep, build(sweep))
    except Exception as error:
        log.warning("tracking failed, the results are safe: %s: %s", type(error).__name__, error)


if __name__ == "__main__":
    main()
