"""Emotion vectors of every method and source on SmolLM2: what each does at a few blocks, what it costs, and how sure it is.

    python benchmarks/vectors.py [--pair joy_sadness] [--blocks 6 10 14] [--coefficient 0.1] [--prompts 8] [--tokens 40] [--json FILE]

A push is as long at a block whatever the vector. The effect is in words of the pair's target emotion (NRC) per 100 words of the
reply, less those without steering; the cost is the replies' mean perplexity to the unsteered model, by that of the unsteered ones.
The same push along a random direction comes last. The grand mean of stories is left out: the other emotions' stories would take as
long to write each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from extraction import SMOLLM2
from torch import Tensor

from emosteer.config import GenerationConfig
from emosteer.datasets import SHIPPED, Prompt, load_contrastive_pairs, load_neutral_texts, load_prompts, shipped_pairs
from emosteer.engine import Engine, Reply, Request, requests_for
from emosteer.model.language_model import LanguageModel, load
from emosteer.scoring.nrc import CATEGORIES, nrc
from emosteer.scoring.perplexity import perplexity
from emosteer.scoring.scorer import Context
from emosteer.sources import lexicon_pairs, persona_prompts
from emosteer.steering import steering_along
from emosteer.stories import write_stories
from emosteer.vectors import METHODS, EmotionVector, Quality, Reader, emotion_vector, random_direction, residual_norms


@dataclass(frozen=True)
class Row:
    """One vector at one block."""

    source: str
    method: str
    block: int
    effect: float
    """Words of the target emotion per 100, less those of the baseline."""
    cost: float
    """Ratio of perplexities."""
    split_half: float | None
    auc: float | None
    cosine: float
    """With the mean difference of the contrastive pairs."""


@dataclass(frozen=True)
class Made:
    """A vector, and how sure it is."""

    source: str
    method: str
    vector: EmotionVector
    quality: Quality | None


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="joy_sadness", help="name of a shipped emotion pair, of two emotions of the NRC lexicon")
    parser.add_argument("--blocks", type=int, nargs="+", default=[6, 10, 14])
    parser.add_argument("--coefficient", type=float, default=0.1, help="length of the push in residual norms")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=40, help="of each reply")
    parser.add_argument("--sources", nargs="+", default=["pairs", "lexicon", "persona", "stories"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(SMOLLM2)
    engine = Engine(model)
    norms = residual_norms(model, load_neutral_texts())
    with Reader(model).in_use():
        vectors = [made for source in options.sources for made in _vectors(engine, norms, source, options.pair, options.methods)]
    default = emotion_vector(model, load_contrastive_pairs(shipped_pairs()[options.pair]), norms)
    vectors.append(Made("random", "random", EmotionVector(random_direction(0, 0, model.n_blocks, model.width), norms), None))
    print(
        f"{SMOLLM2.name}, {options.pair}, coefficient {options.coefficient:g}, {options.prompts} prompts, {options.tokens} tokens\n"
    )
    print("| source | method | block | effect | cost | split half | AUC | cosine |\n|---|---|---|---|---|---|---|---|")
    rows = _rows(engine, vectors, default, options)
    for row in rows:
        sure = " | ".join("" if value is None else f"{value:.2f}" for value in (row.split_half, row.auc))
        print(f"| {row.source} | {row.method} | {row.block} | {row.effect:+.1f} | {row.cost:.2f} | {sure} | {row.cosine:.2f} |")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def _vectors(engine: Engine, norms: Tensor, source: str, pair: str, methods: Sequence[str]) -> list[Made]:
    """A source's vectors by each method, its other emotions from the same source."""
    methods = [method for method in methods if (source, method) != ("stories", "grand_mean")]
    names = [name for name in shipped_pairs() if source in ("pairs", "persona") or set(name.split("_")) <= set(CATEGORIES)]
    texts = {name: _texts(engine, source, name) for name in names if name == pair or "grand_mean" in methods}
    others = [own for name, own in texts.items() if name != pair]
    reading = "assistant_prefix" if source == "persona" else "token_mean"
    made = []
    for method in methods:
        qualities: list[Quality] = []
        vector = emotion_vector(
            engine.model, texts[pair], norms, method, "residual", reading,
            others=others, neutral=load_neutral_texts(), told=qualities.append,
        )  # fmt: skip
        made.append(Made(source, method, vector, qualities[0]))
    return made


def _texts(engine: Engine, source: str, name: str) -> Any:
    if source == "pairs":
        return load_contrastive_pairs(shipped_pairs()[name])
    target, counterpart = name.split("_")
    if source == "stories":
        written = write_stories(engine, target, counterpart)
        print(f"stories of {name}: {written.facts()}\n", flush=True)
        return written.pairs()
    return {"lexicon": lexicon_pairs, "persona": persona_prompts}[source](target, counterpart)


def _rows(engine: Engine, vectors: Sequence[Made], default: EmotionVector, options: argparse.Namespace) -> list[Row]:
    """Every vector at every block, all in common batches; the unsteered replies come first."""
    model, target = engine.model, options.pair.partition("_")[0]
    prompts = load_prompts(SHIPPED / "prompts" / "conversation.jsonl", options.prompts)
    generation = GenerationConfig(max_new_tokens=options.tokens)
    cells = [None, *((made, block) for made in vectors for block in options.blocks)]
    requests: list[Request] = []
    for cell in cells:
        steering = steering_along(cell[0].vector, [cell[1]], options.coefficient) if cell else None
        requests += requests_for(model, prompts, generation, 0, steering)
    replies = dict(engine.generate(requests))
    n = len(prompts)
    scored = [_scores(engine, prompts, [replies[at * n + i] for i in range(n)], target) for at in range(len(cells))]
    rows = []
    for cell, (words, perplexities) in zip(cells[1:], scored[1:], strict=True):
        assert cell is not None
        made, block = cell
        rows.append(
            Row(
                made.source,
                made.method,
                block,
                words - scored[0][0],
                perplexities / scored[0][1],
                made.quality.split_half[block] if made.quality and made.quality.split_half else None,
                made.quality.auc[block] if made.quality and made.quality.auc else None,
                float(torch.cosine_similarity(made.vector.directions[block], default.directions[block], dim=0)),
            )
        )
    return rows


def _scores(engine: Engine, prompts: Sequence[Prompt], replies: Sequence[Reply], target: str) -> tuple[float, float]:
    """Words of an emotion per 100, and perplexity: means over replies."""
    model: LanguageModel = engine.model
    texts = [model.dialogue.reply(reply.tokens) for reply in replies]
    context = Context(engine, [model.dialogue.prompt(prompt.messages) for prompt in prompts], [reply.tokens for reply in replies])
    return mean(nrc(texts)[target]), mean(perplexity(texts, context=context)["perplexity"])


if __name__ == "__main__":
    main()
