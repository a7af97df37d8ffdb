"""A tiny model on disk, and the command `emosteer` as a person runs it: in a process and a directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tiny_models import bare_model, tokenizer_of
from warm import run_warm

from emosteer.records.publish import TEMPORARY

SMALL = (
    "model=custom",
    "model.device=cpu",
    "attribution=none",
    "tracking=none",
    "prompts.limit=6",
    "generation.max_new_tokens=8",
    "statistics.n_resamples=199",
    "engine.threads=1",
    "name=tiny",
)
GUARD = """
import importlib.abc, os, sys

class Guard(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            open(os.environ["TORCH_MARKER"], "a").write("torch was imported\\n")

if "TORCH_MARKER" in os.environ:
    sys.meta_path.insert(0, Guard())
"""
"""A sitecustomize.py that leaves a mark where torch is imported."""


@dataclass
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str
    imported_torch: bool

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass
class Desk:
    """A directory in which commands are given, with a model and a library of the user's own beside it."""

    directory: Path
    model: Path
    library: Path
    options: tuple[str, ...] = SMALL
    environment: dict[str, str] = field(default_factory=dict)

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `emosteer` with the small settings; later arguments outweigh them."""
        return subprocess.Popen(
            [sys.executable, "-m", "emosteer.main", *self._arguments(arguments)],
            cwd=self.directory,
            env=self._environment(),
            text=True,
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", subprocess.PIPE),
            **options,
        )

    def _arguments(self, given: tuple[str, ...]) -> list[str]:
        keys = {argument.lstrip("+~").partition("=")[0] for argument in given}
        small = [option for option in (*self.options, f"model.path={self.model}") if option.partition("=")[0] not in keys]
        # Hydra takes its flags before the overrides only.
        return sorted((*small, *given), key=lambda a: not a.startswith("-"))

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(self.library), os.environ.get("PYTHONPATH")))),
            "TORCH_MARKER": str(self.marker),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "100",
            **self.environment,
        }

    def run(self, *arguments: str) -> Done:
        """Run `emosteer` to its end."""
        self.marker.unlink(missing_ok=True)
        process = self.popen(*arguments)
        try:
            out, err = process.communicate(timeout=180)
        finally:
            process.kill()
        return Done(process.returncode, out, err, self.marker.exists())

    def run_warm(self, *arguments: str) -> Done:
        """Run `emosteer` to its end where how it starts is not what is tested: with what it imports imported already."""
        done = run_warm("emosteer.main", self._arguments(arguments), self.directory, self._environment())
        return Done(done.returncode, done.stdout, done.stderr, imported_torch=True)

    @property
    def marker(self) -> Path:
        return self.library / "torch-was-imported"

    @property
    def sweep(self) -> Path:
        return self.directory / "outputs" / "tiny"

    @property
    def store(self) -> Path:
        return self.directory / "outputs" / "store"

    def results(self) -> pd.DataFrame:
        return pd.read_parquet(self.sweep / "results.parquet")

    def records(self) -> dict[str, Path]:
        """Every record of a cell, control or baseline in the store, by id."""
        return {path.parent.name: path for path in self.store.glob("*/*/record.json") if not path.parent.name.startswith(".")}

    def replies(self) -> dict[str, str]:
        """The replies of every record, as they lie on the disk."""
        return {cell_id: path.with_name("replies.jsonl").read_text() for cell_id, path in self.records().items()}

    def times(self) -> dict[str, int]:
        """When each record was written."""
        return {cell_id: path.stat().st_mtime_ns for cell_id, path in self.records().items()}

    def overrides(self) -> dict[str, list[str]]:
        """What was swept, by cell id."""
        cells = json.loads((self.sweep / "sweep.json").read_text())["cells"]
        return {cell_id: cell["overrides"] for cell_id, cell in cells.items()}

    def unfinished(self) -> list[Path]:
        """Temporary files that somebody left."""
        return list((self.directory / "outputs").rglob(f"{TEMPORARY}*"))


def save_tiny_model(directory: Path, seed: int) -> Path:
    """Put a tiny random LLaMA with tokenizer and chat template into a directory."""
    bare_model("llama", seed).save_pretrained(directory)
    tokenizer_of().save_pretrained(directory)
    return directory
