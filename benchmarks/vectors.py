"""Emotion vectors of every method and source on SmolLM2: what each does at a few blocks, what it costs, and how sure it is.

    python benchmarks/vectors.py [--pair joy_sadness] [--blocks 10 14] [--coefficient 0.1] [--prompts 48] [--json FILE]

A push is as long at a block whatever the vector. The effect is in words of the pair's target emotion (NRC) per 100 words of the
reply, less those without steering; the cost is the replies' mean perplexity to the unsteered model, by that of the unsteered ones.
The same push along random directions comes first; p is of the effect beyond their mean, prompt by prompt (Wilcoxon, two-sided, not
corrected for the number of rows). The grand mean of stories is left out: the other emotions' stories would take as long to write
each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extraction import SMOLLM2
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from emosteer.config import GenerationConfig
from emosteer.datasets import SHIPPED, load_contrastive_pairs, load_neutral_texts, load_prompts, shipped_pairs
from emosteer.engine import Engine, requests_for
from emosteer.model.language_model import load
from emosteer.scoring.nrc import CATEGORIES, nrc
from emosteer.scoring.perplexity import perplexity
from emosteer.scoring.scorer import Context
from emosteer.sources import lexicon_pairs, persona_prompts
from emosteer.steering import Steering, steering_along
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
    p: float | None
    """Of the effect beyond that of the random directions."""
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


@dataclass(frozen=True)
class Replied:
    """What the replies of one steering came to."""

    words: NDArray[np.float64]
    """Of the target emotion, per 100, prompt by prompt."""
    perplexity: float
    """Mean over prompts."""


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="joy_sadness", help="name of a shipped emotion pair, of two emotions of the NRC lexicon")
    parser.add_argument("--blocks", type=int, nargs="+", default=[10, 14])
    parser.add_argument("--coefficient", type=float, default=0.1, help="length of the push in residual norms")
    parser.add_argument("--pairs", type=int, default=32, help="of each source, at most")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=32, help="of each reply")
    parser.add_argument("--random", type=int, default=5, help="random directions")
    parser.add_argument("--sources", nargs="+", default=["pairs", "persona", "stories", "lexicon"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(SMOLLM2)
    engine, norms = Engine(model), residual_norms(model, load_neutral_texts())
    print(
        f"{SMOLLM2.name}, {options.pair}, coefficient {options.coefficient:g}, {options.prompts} prompts, {options.tokens} tokens\n"
    )
    print(
        "| source | method | block | effect | p | cost | split half | AUC | cosine |\n|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    rows = list(_rows(engine, norms, options))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def _rows(engine: Engine, norms: Tensor, options: argparse.Namespace) -> Iterator[Row]:
    """The rows of one source after the other, printed as they come."""
    model = engine.model
    baseline = _replied(engine, [None], options)[0]
    pairs = load_contrastive_pairs(shipped_pairs()[options.pair])
    with Reader(model).in_use():
        default = emotion_vector(model, pairs[: options.pairs], norms)
        rivals: dict[int, NDArray[np.float64]] = {}
        for source in ["random", *options.sources]:
            vectors = _vectors(engine, norms, source, options)
            cells = [(made, block) for made in vectors for block in options.blocks]
            steerings = [steering_along(made.vector, [block], options.coefficient) for made, block in cells]
            replied = _replied(engine, steerings, options)
            for (made, block), found in zip(cells, replied, strict=True):
                row = _row(made, block, found, baseline, default, rivals.get(block))
                sure = " | ".join("" if value is None else f"{value:.2f}" for value in (row.split_half, row.auc))
                p = "" if row.p is None else f"{row.p:.3f}"
                numbers = f"{row.effect:+.1f} | {p} | {row.cost:.2f} | {sure} | {row.cosine:.2f}"
                print(f"| {row.source} | {row.method} | {row.block} | {numbers} |", flush=True)
                yield row
            if source == "random":
                at_block = {
                    block: [one for (_, own), one in zip(cells, replied, strict=True) if own == block] for block in options.blocks
                }
                rivals = {block: np.mean([one.words for one in found], axis=0) for block, found in at_block.items()}


def _row(made: Made, block: int, found: Replied, baseline: Replied, default: EmotionVector, rival: NDArray[np.float64] | None) -> Row:
    quality = made.quality
    return Row(
        made.source,
        made.method,
        block,
        float((found.words - baseline.words).mean()),
        found.perplexity / baseline.perplexity,
        float(stats.wilcoxon(found.words - rival).pvalue) if rival is not None else None,
        quality.split_half[block] if quality and quality.split_half else None,
        quality.auc[block] if quality and quality.auc else None,
        float(torch.cosine_similarity(made.vector.directions[block], default.directions[block], dim=0)),
    )


def _vectors(engine: Engine, norms: Tensor, source: str, options: argparse.Namespace) -> list[Made]:
    """A source's vectors by each method, its other emotions from the same source."""
    model = engine.model
    if source == "random":
        directions = [random_direction(0, index, model.n_blocks, model.width) for index in range(options.random)]
        return [Made("random", str(index), EmotionVector(one, norms), None) for index, one in enumerate(directions)]
    methods = [method for method in options.methods if (source, method) != ("stories", "grand_mean")]
    names = [name for name in shipped_pairs() if source in ("pairs", "persona") or set(name.split("_")) <= set(CATEGORIES)]
    wanted = names if "grand_mean" in methods else [options.pair]
    texts = {name: _texts(engine, source, name, options.pairs) for name in wanted}
    others = [own for name, own in texts.items() if name != options.pair]
    reading = "assistant_prefix" if source == "persona" else "token_mean"
    made = []
    for method in methods:
        qualities: list[Quality] = []
        vector = emotion_vector(
            model, texts[options.pair], norms, method, "residual", reading,
            others=others, neutral=load_neutral_texts(), told=qualities.append,
        )  # fmt: skip
        made.append(Made(source, method, vector, qualities[0]))
    return made


def _texts(engine: Engine, source: str, name: str, most: int) -> Any:
    if source == "pairs":
        return load_contrastive_pairs(shipped_pairs()[name])[:most]
    target, counterpart = name.split("_")
    if source == "stories":
        written = write_stories(engine, target, counterpart)
        print(f"stories of {name}: {written.facts()}", file=sys.stderr, flush=True)
        return written.pairs()[:most]
    if source == "persona":
        return persona_prompts(target, counterpart)[: 2 * most]
    return lexicon_pairs(target, counterpart)[:most]


def _replied(engine: Engine, steerings: Sequence[Steering | None], options: argparse.Namespace) -> list[Replied]:
    """The replies of each steering, all in common batches."""
    prompts = load_prompts(SHIPPED / "prompts" / "conversation.jsonl", options.prompts)
    generation = GenerationConfig(max_new_tokens=options.tokens)
    requests = [one for steering in steerings for one in requests_for(engine.model, prompts, generation, 0, steering)]
    replies = dict(engine.generate(requests))
    tokens = [replies[i].tokens for i in range(len(requests))]
    texts = [engine.model.dialogue.reply(own) for own in tokens]
    context = Context(engine, [request.prompt for request in requests], tokens)
    words, perplexities = nrc(texts)[options.pair.partition("_")[0]], perplexity(texts, context=context)["perplexity"]
    n = len(prompts)
    return [Replied(np.array(words[at : at + n]), float(np.mean(perplexities[at : at + n]))) for at in range(0, len(requests), n)]


if __name__ == "__main__":
    main()
