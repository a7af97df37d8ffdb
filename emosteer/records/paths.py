"""Every file name that emosteer writes. Nobody else joins a path inside the store or a sweep."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

LONGEST = 120
"""Bytes of a name that somebody else chose: with a hash, our own endings and a host's name it stays below 255."""
UNSAFE = re.compile(r"[/\x00-\x1f\x7f]|^\.")


def in_name(text: str, longest: int = LONGEST) -> str:
    """What of a user's name stands in a file's name: one component of a path, not hidden, and not too long; most stay as they are."""
    return UNSAFE.sub("_", text).encode(errors="replace")[:longest].decode(errors="ignore")


@dataclass(frozen=True)
class CellPaths:
    """The directory of one cell or baseline in the store."""

    directory: Path

    @property
    def record(self) -> Path:
        return self.directory / "record.json"

    @property
    def replies(self) -> Path:
        return self.directory / "replies.jsonl"

    @property
    def config(self) -> Path:
        return self.directory / "config.yaml"

    @property
    def hydra(self) -> Path:
        return self.directory / ".hydra"

    @property
    def scores(self) -> Path:
        return self.directory / "scores"

    def score(self, key: str) -> Path:
        return self.scores / f"{key}.json"


@dataclass(frozen=True)
class StorePaths:
    """What sweeps share."""

    root: Path

    @property
    def cells(self) -> Path:
        return self.root / "cells"

    @property
    def baselines(self) -> Path:
        return self.root / "baselines"

    @property
    def attributions(self) -> Path:
        return self.root / "attributions"

    @property
    def answers(self) -> Path:
        """What slow scorers said of texts."""
        return self.root / "answers"

    @property
    def kinds(self) -> dict[str, Path]:
        """Where things of each kind lie, one file or directory each (a vector has two)."""
        records, parts = ("cells", "baselines", "attributions"), ("vectors", "residual_norms", "stories", "strengths", "texts")
        names = (*records, *parts, "answers", "claims")
        return {name: self.root / name for name in names}

    def cell(self, cell_id: str, is_baseline: bool = False) -> CellPaths:
        return CellPaths((self.baselines if is_baseline else self.cells) / cell_id)

    @property
    def claims(self) -> Path:
        return self.root / "claims"

    def vector(self, vector_id: str) -> Path:
        return self.root / "vectors" / f"{vector_id}.safetensors"

    def vector_facts(self, vector_id: str) -> Path:
        return self.root / "vectors" / f"{vector_id}.json"

    def residual_norms(self, norms_id: str) -> Path:
        return self.root / "residual_norms" / f"{norms_id}.json"

    def strength(self, strength_id: str) -> Path:
        return self.root / "strengths" / f"{strength_id}.json"

    def stories(self, stories_id: str) -> Path:
        return self.root / "stories" / f"{stories_id}.json"

    def attribution(self, attribution_id: str) -> Path:
        return self.attributions / attribution_id

    def attribution_scores(self, attribution_id: str) -> Path:
        return self.attribution(attribution_id) / "scores.safetensors"

    def attribution_summary(self, attribution_id: str) -> Path:
        return self.attribution(attribution_id) / "summary.json"

    def attribution_heatmap(self, attribution_id: str) -> Path:
        return self.attribution(attribution_id) / "heatmap.png"

    def texts(self, digest: str) -> Path:
        return self.root / "texts" / f"{digest}.jsonl"


@dataclass(frozen=True)
class ExportPaths:
    """The vector of a chosen cell, for use elsewhere."""

    directory: Path

    @property
    def vector(self) -> Path:
        return self.directory / "vector.safetensors"

    @property
    def gguf(self) -> Path:
        return self.directory / "control_vector.gguf"

    @property
    def card(self) -> Path:
        """The model card, by the name under which hubs look for one."""
        return self.directory / "README.md"


@dataclass(frozen=True)
class SweepPaths:
    """One sweep's own directory."""

    root: Path

    @property
    def summary(self) -> Path:
        return self.root / "sweep.json"

    @property
    def commands(self) -> Path:
        return self.root / "commands"

    @property
    def results_parquet(self) -> Path:
        return self.root / "results.parquet"

    @property
    def results_csv(self) -> Path:
        return self.root / "results.csv"

    @property
    def trends_csv(self) -> Path:
        return self.root / "trends.csv"

    @property
    def turns_csv(self) -> Path:
        return self.root / "turns.csv"

    @property
    def confirmations_csv(self) -> Path:
        return self.root / "confirmations.csv"

    @property
    def predictions_csv(self) -> Path:
        return self.root / "predictions.csv"

    @property
    def agreement_csv(self) -> Path:
        return self.root / "agreement.csv"

    @property
    def replies(self) -> Path:
        return self.root / "replies.parquet"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def paper(self) -> Path:
        return self.root / "paper"

    @property
    def wandb(self) -> Path:
        return self.root / "wandb"

    def export(self, cell_id: str) -> ExportPaths:
        return ExportPaths(self.root / "exports" / cell_id)

    @property
    def trackio(self) -> Path:
        return self.root / "trackio"

    @property
    def dashboard(self) -> Path:
        return self.wandb / "dashboard.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def tracking_log(self) -> Path:
        return self.logs / "tracking.log"

    @property
    def failures(self) -> Path:
        return self.root / "failures"

    def failure(self, cell_id: str) -> Path:
        return self.failures / f"{cell_id}.json"

    @property
    def losses(self) -> Path:
        return self.root / "losses"

    def loss(self, cell_id: str, token: str) -> Path:
        return self.losses / f"{cell_id}.{token}.json"

    @property
    def slurm(self) -> SlurmPaths:
        return SlurmPaths(self.root / "slurm")

    @property
    def written(self) -> list[Path]:
        """Every directory in which files are published; the locks, which are made otherwise, have rules of their own."""
        slurm = self.slurm
        parts = (slurm.submissions, slurm.workers, slurm.script("any").parent, slurm.code("any").parent)
        return [self.root, self.commands, self.failures, self.losses, self.figures, self.paper, *parts]


@dataclass(frozen=True)
class SlurmPaths:
    """What a sweep keeps of its SLURM jobs."""

    root: Path

    @property
    def submissions(self) -> Path:
        return self.root / "submissions"

    def submission(self, token: str) -> Path:
        return self.submissions / f"{token}.json"

    def script(self, name: str) -> Path:
        return self.root / "scripts" / f"{name}.sh"

    @property
    def workers(self) -> Path:
        return self.root / "workers"

    def worker(self, job: str, restarts: int) -> Path:
        return self.workers / f"{job}.{restarts}.json"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    def code(self, digest: str) -> Path:
        return self.root / "code" / digest

    def diff(self, token: str) -> Path:
        return self.submissions / f"{token}.diff"

    @property
    def search(self) -> Path:
        """There while a search goes on, whose sweeper will bring more cells."""
        return self.root / "search"

    @property
    def output(self) -> Path:
        """What the batch scripts and the workers print: `<job>_<task>_0_log.out` and `.err`."""
        return self.root / "output"
