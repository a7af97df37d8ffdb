"""Weights & Biases: a run per cell and one per sweep, written offline from the records and uploaded where the user is logged in.

Nothing of this happens while cells run, so that a network can neither fail nor stall a cell. wandb itself is imported only in
processes of its own, one that writes (about 80 ms a run) and `wandb sync`, which are given up when they stand still: this process
keeps its environment, its directory, its terminal and any run that it has open. An offline run cannot be continued; each is written
once, whole, and written anew when its content changes.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emosteer.errors import EmosteerError
from emosteer.records.claims import Claims
from emosteer.records.publish import TEMPORARY
from emosteer.records.sweep import Sweep
from emosteer.tables import Tables
from emosteer.tracking.child import run_child
from emosteer.tracking.run import Destination, Run
from emosteer.tracking.sweep_runs import sweep_runs
from emosteer.tracking.wandb_directory import CONTENT, PREFIX, RunDirectory, run_directories, tidy
from emosteer.tracking.wandb_login import (
    AUTO,
    DISABLED,
    OFFLINE,
    ONLINE,
    is_logged_in,
    resolve,
    resolve_mode,
    upload_environment,
    writer_environment,
)

log = logging.getLogger(__name__)

PROJECT = "emosteer"
UPLOAD_PATIENCE = 60.0
"""Seconds without an uploaded run after which the upload is given up, where the settings do not say it."""
WRITE_PATIENCE = 120.0
"""Seconds without a written run: importing wandb alone takes many on a busy file server."""
RUN_SECONDS = 0.08
"""To write a run (measured), for the message."""
LEASE = "writing"
LEASE_SECONDS = 60.0
POLL_SECONDS = 0.5
WAIT_SECONDS = 600.0
"""For another process that writes the same sweep's runs."""


def log_to_wandb(sweep: Sweep, tables: Tables) -> None:
    """Write what is new or changed as offline runs into the sweep's directory, then upload what is not uploaded yet.

    An upload that fails is a warning. Raises EmosteerError where runs cannot be written.
    """
    settings = sweep.settings()["tracking"]
    mode = resolve_mode(settings.get("mode", AUTO))
    if mode == DISABLED:
        return
    if not _is_installed():
        log.warning('W&B runs are not written, wandb is missing: pip install "emosteer[wandb]", or switch it off with tracking=none')
        return
    directories = write_runs(sweep.paths.wandb, sweep_runs(sweep, tables, _destination(sweep, settings)))
    waiting = [directory for directory in directories if not directory.is_uploaded]
    if not waiting:
        return
    root = sweep.paths.wandb
    if mode == OFFLINE or not is_logged_in():
        login = "" if mode == OFFLINE else "wandb login; "
        level = logging.WARNING if mode == ONLINE else logging.INFO
        log.log(level, "W&B: %d runs are not uploaded; to do it: %s%s", len(waiting), login, by_hand(root))
        return
    upload(root, waiting, float(settings.get("upload_patience", UPLOAD_PATIENCE)))


def write_runs(root: Path, runs: Iterable[Run]) -> list[RunDirectory]:
    """Write the runs that are not there as they should be; the directories of all, exactly one for each."""
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        there = {(directory.id, directory.content()) for directory in run_directories(root)}
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=root) as draft:
            wanted, missing = _describe(runs, there, Path(draft) / "runs.jsonl")
            if missing:
                log.info("W&B: writing %d of %d runs into %s, about %.0f s", missing, len(wanted), root, 3 + RUN_SECONDS * missing)
                _write(root, Path(draft) / "runs.jsonl")
        kept = tidy(root, wanted)
    return [kept[key] for key in wanted]


def upload(root: Path, directories: Sequence[RunDirectory], patience: float) -> None:
    """Upload runs with `wandb sync`; whatever goes wrong is a warning with the command to run by hand.

    Args:
        root: the `wandb` directory.
        directories: the runs, below it.
        patience: seconds without an uploaded run after which it is given up.
    """
    log.info("W&B: uploading %d runs", len(directories))
    command = [sys.executable, "-P", "-m", "wandb", "sync", *(f"{root.name}/{d.path.name}" for d in directories)]
    ending = run_child(command, upload_environment(), root.parent, lambda: sum(d.is_uploaded for d in directories), patience)
    left = sum(not directory.is_uploaded for directory in directories)
    if left:
        why = f"no progress for {patience:g} s" if ending.code is None else ending.last_line
        log.warning(
            "W&B: %d of %d runs are not uploaded (%s). They are safe; to try again: %s", left, len(directories), why, by_hand(root)
        )


def by_hand(root: Path) -> str:
    """The command that uploads what is left."""
    return f"wandb sync {shlex.quote(str(root))}/{PREFIX}*"


def _describe(runs: Iterable[Run], there: set[tuple[str, str | None]], path: Path) -> tuple[dict[str, str], int]:
    """Put those that are missing into a file, one by one, since all of a large sweep's would fill the memory.

    Returns each run's content by its id, and how many were missing.
    """
    wanted: dict[str, str] = {}
    missing = 0
    with path.open("w", encoding="utf-8") as file:
        for run in runs:
            wanted[run.id] = run.content()
            if (run.id, wanted[run.id]) not in there:
                file.write(json.dumps(run.to_json() | {"content": wanted[run.id]}, allow_nan=False) + "\n")
                missing += 1
    return wanted, missing


def _write(root: Path, path: Path) -> None:
    command = [
        sys.executable,
        "-P",
        str(Path(__file__).with_name("wandb_writer.py")),
        str(path.resolve()),
        str(root.resolve()),
        CONTENT,
    ]
    environment = writer_environment(path.parent.resolve())
    # From the sweep's directory, where `upload` runs too: the paths of artifacts' files start there.
    ending = run_child(command, environment, root.parent, lambda: sum(1 for _ in root.iterdir()), WRITE_PATIENCE)
    if ending.code != 0:
        why = f"no progress for {WRITE_PATIENCE:g} s" if ending.code is None else ending.last_line
        raise EmosteerError(f"W&B runs could not be written: {why}")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the lease on a sweep's `wandb` directory; raises EmosteerError where another process does not let go of it."""
    claims = Claims(root, LEASE_SECONDS)
    until = time.monotonic() + WAIT_SECONDS
    while (lease := claims.take(LEASE)) is None:
        if time.monotonic() > until:
            raise EmosteerError(f"W&B runs are not written: another process is still at it ({root / LEASE})")
        time.sleep(POLL_SECONDS)
    try:
        with claims.heartbeat():
            yield
    finally:
        claims.release(lease)


def _destination(sweep: Sweep, settings: dict[str, Any]) -> Destination:
    project = resolve("project", settings.get("project")) or PROJECT
    return Destination(project, resolve("entity", settings.get("entity")), group=sweep.name, tags=list(settings.get("tags", [])))


def _is_installed() -> bool:
    """A folder `wandb` in the current directory, as wandb itself makes them, is no installation."""
    spec = importlib.util.find_spec("wandb")
    return spec is not None and spec.origin is not None
