"""Sweeps whose records are made up, so that tables and their like are tested without a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

import emosteer
from emosteer.config import AttributionConfig, GenerationConfig, ModelConfig
from emosteer.datasets import Prompt
from emosteer.records.cell import CELL, AttributionSpec, Cell, ModelSpec, PairSpec, VectorSpec
from emosteer.records.store import Provenance, Resolved, Store, StoredReply
from emosteer.records.sweep import Command, Sweep, Task
from emosteer.scoring.scorer import Scorer

EMOTIONS = ("joy", "sadness", "trust", "disgust", "anger", "fear", "anticipation", "surprise")
SCORED = {
    "nrc": (*EMOTIONS, "positive", "negative"),
    "caveats": ("negated", "one_word"),
    "sentiment": ("sentiment",),
    "pronouns": ("first_person",),
    "words": ("words",),
    "repetition": ("repetition",),
    "distinct": ("distinct_1", "distinct_2"),
    "duplication": ("duplication",),
    "perplexity": ("perplexity",),
}
"""Scorer -> its metrics, as the configuration ships them."""
METRICS = tuple(metric for metrics in SCORED.values() for metric in metrics)
SCORERS: dict[str, Any] = OmegaConf.to_container(  # type: ignore[assignment]
    OmegaConf.load(Path(emosteer.__file__).parent / "conf" / "scorers" / "default.yaml")
)
PROVENANCE = Provenance(attempt=1, seconds=1.5, host="here", device="cpu", versions={"torch": "0"})


def settings(**changes: Any) -> dict[str, Any]:
    """What a command says besides its cells."""
    return {
        "scorers": SCORERS,
        "statistics": {"n_resamples": 99, "confidence": 0.95},
        "tracking": {"name": "none"},
        "engine": {"batch_rows": None, "threads": None},
        "worker": {"cells_per_claim": 8, "lease_seconds": 60.0},
        **changes,
    }


def made_up_prompts(n: int) -> list[Prompt]:
    return [Prompt(f"p{i}", f"Prompt {i}?", "daily", ({"role": "user", "content": f"Prompt {i}?"},)) for i in range(n)]


def made_up_cell(store: Store, pair: str = "joy_sadness", n_prompts: int = 10, n_samples: int = 1, **changes: Any) -> Cell:
    """A cell of a model that is nowhere."""
    target, counterpart = pair.split("_")
    return dataclasses.replace(
        Cell(
            kind=CELL,
            model=ModelSpec(ModelConfig(name="made-up", path="/nowhere"), "sha256:made-up", 8),
            prompts=store.keep_texts(made_up_prompts(n_prompts)),
            prompts_name="made-up",
            generation=GenerationConfig(do_sample=n_samples > 1, n_samples=n_samples),
            pair=PairSpec(pair, target, counterpart, target, f"texts of {pair}", f"diagnostics of {pair}"),
            vector=VectorSpec("mean_difference", f"texts of {pair}"),
            neutral="neutral",
            layers=(2,),
            coefficient=0.2,
            attribution=AttributionSpec(f"diagnostics of {pair}", AttributionConfig()),
        ),
        **changes,
    )


def random_replies(store: Store, cell: Cell, seed: int) -> list[StoredReply]:
    """Replies in the order of prompts, then samples, then turns."""
    chance = np.random.default_rng(seed)
    return [
        StoredReply(
            prompt.id,
            sample,
            f"Reply \u2028 {chance.integers(1000)} é \U0001f600",
            tuple(map(int, chance.integers(99, size=5))),
            True,
            turn,
            f"said {turn}" if turn else "",
        )
        for prompt in store.prompts(cell.prompts)
        for sample in range(cell.generation.n_samples)
        for turn in range(prompt.n_replies)
    ]


def random_scores(n: int, seed: int, shift: float = 0.0) -> dict[str, list[float]]:
    """Metric -> values, rounded so that there are ties and zeros, as counts of words have."""
    chance = np.random.default_rng(seed)
    scores = {metric: [float(v) for v in np.round(chance.normal(5 + shift, 2, n) * 2) / 2] for metric in METRICS}
    scores["duplication"] = [abs(v) / 100 for v in scores["duplication"]]
    return scores


def publish(
    store: Store,
    scorers: Sequence[Scorer],
    cell: Cell,
    scores: dict[str, list[float]] | None = None,
    *,
    seed: int = 0,
    shift: float = 0.0,
    layers: tuple[int, ...] | None = None,
    found: dict[str, Any] | None = None,
) -> None:
    """Put replies and scores of a cell into the store."""
    replies = random_replies(store, cell, seed)
    scores = scores or random_scores(len(replies), seed, shift)
    resolved = Resolved(layers or cell.layers or (), 3.0, cell.coefficient, found) if cell.vector else Resolved()
    store.publish(cell, replies, resolved, PROVENANCE)
    for scorer in scorers:
        store.publish_scores(cell, scorer.key, scorer.facts(), {m: scores[m] for m in SCORED[scorer.name]})


def join(sweep: Sweep, cells: Sequence[Cell], **changes: Any) -> None:
    """Add cells to a sweep by a command."""
    tasks = [Task(cell, overrides=(f"coefficient={cell.coefficient}",)) for cell in cells]
    sweep.add(Command(["emosteer", "-m"], settings(**changes), {"host": "here"}, tasks))


def with_company(cells: Sequence[Cell], n_controls: int = 1) -> list[Cell]:
    """Cells with their baseline and controls, each once."""
    both = [one for cell in cells for one in (cell, cell.baseline(), *(cell.control(i) for i in range(n_controls)))]
    return list({cell.id: cell for cell in both}.values())
