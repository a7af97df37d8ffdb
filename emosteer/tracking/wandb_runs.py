"""Weights & Biases: a run per cell and one per sweep, written offline from the records and uploaded where the user is logged in.

Nothing of this happens while cells run, so that a network can neither fail nor stall a cell. wandb itself is imported only in
processes of its own, one that writes (about 80 ms a run) and `wandb sync`, which are given up when they stand still: this process
keeps its environment, its directory, its terminal and any run that it has open. An offline run cannot be continued; each is written
once, whole, and written anew when its content changes.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from emosteer.errors import EmosteerError
from emosteer.progress import Work
from emosteer.records.claims import Claims
from emosteer.records.publish import TEMPORARY
from emosteer.records.sweep import Sweep
from emosteer.tables import Tables
from emosteer.tracking.child import run_child
from emosteer.tracking.run import Destination, Run, Synced, is_installed
from emosteer.tracking.sweep_runs import sweep_runs
from emosteer.tracking.wandb_directory import CONTENT, RunDirectory, run_directories, tidy
from emosteer.tracking.wandb_failure import diagnosis
from emosteer.tracking.wandb_login import (
    AUTO,
    DISABLED,
    OFFLINE,
    ONLINE,
    is_logged_in,
    resolve,
    resolve_mode,
    server,
    upload_environment,
    writer_environment,
)

log = logging.getLogger(__name__)

PROJECT = "emosteer"
MISSING = 'wandb is missing: pip install "emosteer[wandb]"'
UPLOAD_PATIENCE = 60.0
"""Seconds without an uploaded run after which the upload is given up, where the settings do not say it."""
WRITE_PATIENCE = 120.0
"""Seconds without a written run: importing wandb alone takes many on a busy file server."""
RUN_SECONDS = 0.08
"""To write a run (measured), for the message."""
WRITING, UPLOADING = "writing", "uploading"
"""What only one process does at a time."""
MOST_ARGUMENTS = 500
"""Runs for one `wandb sync`."""
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
    if not is_installed("wandb"):
        log.warning("W&B runs are not written: %s; or switch it off with tracking=none", MISSING)
        return
    root = sweep.paths.wandb
    waiting = [one for one in write_runs(root, sweep_runs(sweep, tables, destination(sweep))) if not one.is_uploaded]
    if not waiting:
        return
    by_hand = f"emosteer-sweep sync {shlex.quote(str(sweep.paths.root))}"
    if mode == OFFLINE or not is_logged_in():
        login = "" if mode == OFFLINE else "wandb login; "
        level = logging.WARNING if mode == ONLINE else logging.INFO
        log.log(level, "W&B: %d runs are not uploaded; to do it: %s%s", len(waiting), login, by_hand)
        return
    log.info("W&B: uploading %d runs", len(waiting))
    if why := upload(root, waiting, float(settings.get("upload_patience", UPLOAD_PATIENCE))):
        left = sum(not one.is_uploaded for one in waiting)
        log.warning("W&B: %d of %d runs are not uploaded (%s). They are safe; to try again: %s", left, len(waiting), why, by_hand)


def sync_to_wandb(
    sweep: Sweep, tables: Tables, project: str | None = None, entity: str | None = None, at_a_time: int = 8, work: Work | None = None
) -> Synced:
    """Write what is missing, and upload what is not uploaded yet, because somebody asks for it, whatever `tracking.mode` says.

    Args:
        sweep: whose runs.
        tables: made from its records.
        project: another one than the sweep's.
        entity: likewise.
        at_a_time: so many runs.
        work: is told how many are written and uploaded.

    Raises:
        EmosteerError: wandb is missing or disabled, there is no key, or runs cannot be written.
    """
    settings = sweep.settings()["tracking"]
    if not is_installed("wandb"):
        raise EmosteerError(MISSING)
    if resolve_mode(AUTO) == DISABLED:
        raise EmosteerError("wandb is disabled, by WANDB_MODE or `wandb disabled`: nothing is uploaded")
    if not is_logged_in():
        raise EmosteerError(f"no key for {server()}: `wandb login`, or set WANDB_API_KEY")
    to = destination(sweep, {key: value for key, value in (("project", project), ("entity", entity)) if value})
    directories = write_runs(sweep.paths.wandb, sweep_runs(sweep, tables, to), work)
    waiting = [one for one in directories if not one.is_uploaded]
    patience = float(settings.get("upload_patience", UPLOAD_PATIENCE))
    why = upload(sweep.paths.wandb, waiting, patience, at_a_time, work) if waiting else ""
    left = sum(not one.is_uploaded for one in waiting)
    return Synced(len(directories), len(waiting) - left, left, why if left else "", to.project, to.entity)


def write_runs(root: Path, runs: Iterable[Run], work: Work | None = None) -> list[RunDirectory]:
    """Write the runs that are not there as they should be; the directories of all, exactly one for each.

    `work` is told how many are written; without it a line of the log says how many there are to write.
    """
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root, WRITING):
        there = {(directory.id, directory.content()) for directory in run_directories(root)}
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=root) as draft:
            wanted, missing = _describe(runs, there, Path(draft) / "runs.jsonl")
            if missing:
                if work is None:
                    seconds = 3 + RUN_SECONDS * missing
                    log.info("W&B: writing %d of %d runs into %s, about %.0f s", missing, len(wanted), root, seconds)
                _write(root, Path(draft) / "runs.jsonl", missing, work)
        kept = tidy(root, wanted)
    return [kept[key] for key in wanted]


def upload(root: Path, directories: Sequence[RunDirectory], patience: float, at_a_time: int = 8, work: Work | None = None) -> str:
    """Upload runs with `wandb sync`; why some are left, or nothing.

    Of two processes that would upload the same runs, one waits, and finds them uploaded. Ended at any moment, it goes on next time
    with the runs that are left: each is marked when the server has it.

    Args:
        root: the `wandb` directory.
        directories: the runs, below it.
        patience: seconds without an uploaded run after which it is given up.
        at_a_time: so many runs.
        work: is told how many are uploaded.
    """
    with _alone(root, UPLOADING):
        left = [directory for directory in directories if not directory.is_uploaded]
        for start in range(0, len(left), MOST_ARGUMENTS):
            batch = left[start : start + MOST_ARGUMENTS]
            names = [f"{root.name}/{directory.path.name}" for directory in batch]
            command = [sys.executable, "-P", "-m", "wandb", "sync", "-n", str(at_a_time), *names]
            before = len(directories) - len(left) + start
            progress = _told(work, "uploading runs", partial(_n_uploaded, batch), before, len(directories))
            ending = run_child(command, upload_environment(), root.parent, progress, patience)
            if _n_uploaded(batch) < len(batch):
                return diagnosis(ending, patience)
    return ""


def _told(work: Work | None, text: str, count: Callable[[], int], before: int, total: int) -> Callable[[], int]:
    """A count that `work` is told of, with what was there before, whenever somebody looks at it."""

    def counted() -> int:
        n = count()
        if work is not None:
            work.count(text, before + n, total)
        return n

    return counted


def _n_uploaded(directories: Sequence[RunDirectory]) -> int:
    return sum(directory.is_uploaded for directory in directories)


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


def _write(root: Path, path: Path, total: int, work: Work | None) -> None:
    before = _n_entries(root)
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
    progress = _told(work, "writing runs", lambda: _n_entries(root) - before, 0, total)
    ending = run_child(command, environment, root.parent, progress, WRITE_PATIENCE)
    if ending.code != 0:
        why = f"no progress for {WRITE_PATIENCE:g} s" if ending.code is None else ending.last_line
        raise EmosteerError(f"W&B runs could not be written: {why}")


def _n_entries(root: Path) -> int:
    return sum(1 for _ in root.iterdir())


@contextmanager
def _alone(root: Path, work: str) -> Iterator[None]:
    """Hold a lease on a sweep's `wandb` directory; raises EmosteerError where another process does not let go of it."""
    claims = Claims(root, LEASE_SECONDS)
    until = time.monotonic() + WAIT_SECONDS
    while (lease := claims.take(work)) is None:
        if time.monotonic() > until:
            raise EmosteerError(f"another process is still {work} this sweep's W&B runs ({root / work})")
        time.sleep(POLL_SECONDS)
    try:
        with claims.heartbeat():
            yield
    finally:
        claims.release(lease)


def destination(sweep: Sweep, instead: Mapping[str, str] | None = None) -> Destination:
    """Where a sweep's runs go, by its newest command, or by the keys that are given instead."""
    settings: dict[str, Any] = {**sweep.settings()["tracking"], **(instead or {})}
    project = resolve("project", settings.get("project")) or PROJECT
    return Destination(project, resolve("entity", settings.get("entity")), group=sweep.name, tags=list(settings.get("tags", [])))
