"""A script: writes the runs that a JSON-lines file describes into a new trackio directory.

It runs in a process of its own (see `trackio_runs`), and so imports nothing of emosteer.

    TRACKIO_DIR=DIRECTORY python -P trackio_writer.py RUNS.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import trackio

QUIET = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}


def main(runs: Path) -> None:
    """Write all runs, one after the other."""
    with runs.open(encoding="utf-8") as lines:
        for line in lines:
            write(json.loads(line))


def write(run: dict[str, Any]) -> None:
    """One run: what it says at step 0, and, as a step has one picture of a name, each further picture at a step of its own."""
    facts = {"job_type": run["job_type"], "tags": ", ".join(run["tags"]), "notes": run["notes"], "exit_code": run["exit_code"]}
    trackio.init(
        project=run["project"], name=run["name"], group=run["group"], config={**run["config"], **facts}, resume="never", **QUIET
    )
    tables = {key: trackio.Table(columns=table["columns"], data=table["rows"]) for key, table in run["tables"].items()}
    trackio.log({**run["summary"], **tables, **pictures(run, 0)}, step=0)
    for step in range(1, max(map(len, run["images"].values()), default=0)):
        trackio.log(pictures(run, step), step=step)
    trackio.finish()


def pictures(run: dict[str, Any], step: int) -> dict[str, Any]:
    """The pictures of a step by what they show."""
    there = {key: images[step] for key, images in run["images"].items() if step < len(images)}
    return {key: trackio.Image(image["path"], caption=image["caption"]) for key, image in there.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
