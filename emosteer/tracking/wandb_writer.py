"""A script: writes the runs that a JSON-lines file describes as W&B offline runs.

It runs in a process of its own (see `wandb_runs`), and so imports nothing of emosteer: whatever wandb does to its environment,
its threads and its terminal stays here. A run's directory is made below a temporary one and renamed once it is whole, so that what
stands in the target is complete by construction.

    python -P wandb_writer.py RUNS.jsonl TARGET_DIRECTORY CONTENT_FILE_NAME
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

STEP = "coefficient"
"""The axis over which cells' metrics are curves."""
SETTINGS = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "disable_code": True,
    "disable_job_creation": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "symlink": False,
}


def main(runs: Path, target: Path, content_name: str) -> None:
    """Write all runs, one after the other, and put each into its place as soon as it is whole."""
    drafts = runs.parent
    with runs.open(encoding="utf-8") as lines:
        for line in lines:
            run = json.loads(line)
            directory = write(run, drafts)
            (directory / content_name).write_text(run["content"], encoding="utf-8")
            place(directory, target / directory.name)


def write(run: dict[str, Any], drafts: Path) -> Path:
    """One offline run below `drafts`; its directory."""
    tracked = wandb.init(
        dir=str(drafts),
        mode="offline",
        reinit="create_new",
        force=False,
        settings=wandb.Settings(**{key: value for key, value in SETTINGS.items() if key in wandb.Settings.model_fields}),
        **{key: run[key] for key in ("id", "name", "project", "entity", "group", "job_type", "tags", "notes", "config")},
    )
    directory = Path(tracked.dir).parent
    logged = dict(run["summary"])
    if isinstance(dose := run["config"].get(STEP), float | int):
        logged[STEP] = dose
    for key, table in run["tables"].items():
        logged[key] = wandb.Table(columns=table["columns"], data=table["rows"], allow_mixed_types=True)
        # Bound first, a table is logged as a file of the run alone. Otherwise wandb also makes an artifact of it, whose file lies
        # in the user's home, and the run could be uploaded from this machine only.
        logged[key].bind_to_run(tracked, key, 0)
    for key, images in run["images"].items():
        logged[key] = [wandb.Image(picture, caption=caption) for picture, caption in on_one_canvas(images)]
    for artifact in run["uses"]:
        use(tracked, artifact)
    for artifact in run["makes"]:
        tracked.log_artifact(packed(artifact))
    if STEP in logged:
        # Runs that are grouped by layer make a dose-response curve over it. In the config it stands too, so not in the summary.
        tracked.define_metric(STEP, hidden=True, summary="none")
        tracked.define_metric("*", step_metric=STEP, step_sync=True)
    tracked.log(logged)
    tracked.finish(exit_code=run["exit_code"])
    return directory


def packed(described: dict[str, Any]) -> wandb.Artifact:
    """An artifact whose files stay where they are, under paths from the sweep's directory, in which runs are uploaded too.

    Neither copied to wandb's folders in the user's home nor kept there once uploaded: the store has them.
    """
    facts = {"description": described["description"], "metadata": described["facts"]}
    artifact = wandb.Artifact(described["name"], described["type"], **facts)
    for file in described["files"]:
        artifact.add_file(os.path.relpath(file["path"]), file["name"], policy="immutable", skip_cache=True)
    return artifact


def use(tracked: Any, described: dict[str, Any]) -> None:
    """Say that a run was made from an artifact.

    `use_artifact` refuses it offline, where no server can be asked; the record that it writes for an artifact which is not
    uploaded yet needs no server.
    """
    tracked._log_artifact(packed(described), is_user_created=True, use_after_commit=True)


def on_one_canvas(images: list[dict[str, str]]) -> list[tuple[Image.Image, str]]:
    """Pictures with captions, padded to one size: W&B shows all pictures of a list in the size of the first."""
    pictures = [Image.open(image["path"]).convert("RGB") for image in images]
    size = (max(picture.width for picture in pictures), max(picture.height for picture in pictures))
    padded = []
    for picture, image in zip(pictures, images, strict=True):
        canvas = Image.new("RGB", size, "white")
        canvas.paste(picture)
        padded.append((canvas, image["caption"]))
    return padded


def place(directory: Path, target: Path) -> None:
    """Move a whole run into its place, without the logs of writing it: they would be most of a sweep's files."""
    for name in ("logs", "tmp"):
        shutil.rmtree(directory / name, ignore_errors=True)
    # Only a run that is rewritten within one second of its first writing has the same name.
    shutil.rmtree(target, ignore_errors=True)
    directory.rename(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
