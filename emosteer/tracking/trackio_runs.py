"""trackio: the same runs as for W&B in one SQLite file of the sweep's directory, for people without an account.

The file is written anew, whole, whenever a run changes, and takes the old one's place: each run is in it once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from emosteer.errors import EmosteerError
from emosteer.records.publish import TEMPORARY
from emosteer.records.sweep import Sweep
from emosteer.tables import Tables
from emosteer.tracking.child import run_child
from emosteer.tracking.run import Destination, Synced, is_installed
from emosteer.tracking.sweep_runs import sweep_runs
from emosteer.tracking.wandb_directory import CONTENT

log = logging.getLogger(__name__)

PROJECT = "emosteer"
INTERPRETER = sys.executable
"""A Python that has trackio."""
WRITE_PATIENCE = 120.0
"""Seconds without a written run: importing trackio alone takes many on a busy file server."""
MISSING = 'trackio is missing: pip install "emosteer[trackio]"'


def log_to_trackio(sweep: Sweep, tables: Tables) -> None:
    """Write a sweep's runs, where they are not there yet. Raises EmosteerError where they cannot be written."""
    if not is_installed("trackio"):
        log.warning("trackio's runs are not written: %s; or switch it off with tracking=none", MISSING)
        return
    written = sync_to_trackio(sweep, tables)
    log.info("trackio: %d runs; to see them: %s", written.n_runs, how_to_see(sweep))


def sync_to_trackio(sweep: Sweep, tables: Tables, project: str | None = None) -> Synced:
    """The same, and what came of it.

    Raises:
        EmosteerError: trackio is missing, or runs cannot be written.
    """
    if not is_installed("trackio"):
        raise EmosteerError(MISSING)
    settings, root = sweep.settings()["tracking"], sweep.paths.trackio
    to = Destination(project or settings.get("project") or PROJECT, None, sweep.name, list(settings.get("tags", [])))
    sweep.paths.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=sweep.paths.root) as draft:
        n_runs, content = 0, hashlib.sha256()
        described, made = Path(draft) / "runs.jsonl", Path(draft) / "trackio"
        with described.open("w", encoding="utf-8") as file:
            for run in sweep_runs(sweep, tables, to):
                file.write(json.dumps(run.to_json(), allow_nan=False) + "\n")
                content.update(run.content().encode())
                n_runs += 1
        if n_runs and _content(root) != content.hexdigest():
            _write(described, made)
            (made / CONTENT).write_text(content.hexdigest(), encoding="utf-8")
            _put(made, root)
            return Synced(n_runs, n_runs, 0, "", to.project, None)
    return Synced(n_runs, 0, 0, "", to.project, None)


def how_to_see(sweep: Sweep) -> str:
    """The command that opens the dashboard."""
    return f"TRACKIO_DIR={shlex.quote(str(sweep.paths.trackio))} trackio show"


def _content(root: Path) -> str | None:
    try:
        return (root / CONTENT).read_text(encoding="utf-8")
    except OSError:
        return None


def _write(described: Path, made: Path) -> None:
    made.mkdir()
    script = str(Path(__file__).with_name("trackio_writer.py"))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TRACKIO_")}
    # Nothing goes to a hub, whatever the user's settings say.
    environment = kept | {"TRACKIO_DIR": str(made.resolve()), "HF_HUB_OFFLINE": "1"}
    command = [INTERPRETER, "-P", script, str(described.resolve())]
    ending = run_child(
        command, environment, made.parent, lambda: sum(path.stat().st_size for path in made.glob("*.db*")), WRITE_PATIENCE
    )
    if ending.code != 0:
        why = f"no progress for {WRITE_PATIENCE:g} s" if ending.code is None else ending.last_line
        raise EmosteerError(f"trackio's runs could not be written: {why}")


def _put(made: Path, root: Path) -> None:
    """Let what is made take the place of what was there."""
    old = made.with_name("old")
    if root.exists():
        root.rename(old)
    made.rename(root)
    shutil.rmtree(old, ignore_errors=True)
