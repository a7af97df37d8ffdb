"""Emotion vectors: directions in a model's activations, one per decoder block, and how long a push along them is.

A vector is kept raw in float32, with the model's residual norms beside it, so that any reader can scale it. A new method is one
function from contrastive pairs to a tensor, named in `METHODS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emosteer.datasets import ContrastivePair, NeutralText
from emosteer.dotted import find_function
from emosteer.errors import EmosteerError
from emosteer.model.capture import capture
from emosteer.model.dialogue import Reading
from emosteer.model.language_model import LanguageModel
from emosteer.model.padding import pad_left

READING_BATCH = 16


@dataclass(frozen=True)
class EmotionVector:
    """One direction per block, as measured: positive minus negative, not normalised."""

    directions: Tensor
    """[block, width] float32, on the CPU."""
    residual_norm: Tensor
    """[block] float32: the usual length of the residual stream after each block."""
    site: str = "residual"
    """Whose output the directions were read from, and are added to: residual, attention or mlp."""

    def __repr__(self) -> str:
        return f"<EmotionVector of {self.directions.shape[0]} blocks, width {self.directions.shape[1]}, site {self.site}>"

    def added(self, layer: int, coefficient: float, unit: str) -> Tensor:
        """What steering adds at a block [width]: `coefficient` residual norms long, or that many raw vectors."""
        direction = self.directions[layer]
        if unit == "raw":
            return coefficient * direction
        return coefficient * self.residual_norm[layer] * direction / direction.norm()

    def raw_coefficient(self, layer: int, coefficient: float, unit: str) -> float:
        """The multiple of the raw vector that `coefficient` in `unit` stands for."""
        if unit == "raw":
            return coefficient
        return float(coefficient * self.residual_norm[layer] / self.directions[layer].norm())

    def fraction(self, layer: int, coefficient: float, unit: str) -> float:
        """The added vector's length in residual norms that `coefficient` in `unit` stands for."""
        if unit == "fraction":
            return coefficient
        return float(coefficient * self.directions[layer].norm() / self.residual_norm[layer])


Method = Callable[[LanguageModel, Sequence[ContrastivePair], str], Tensor]
"""Makes directions [block, width] at a site."""


def mean_difference(model: LanguageModel, pairs: Sequence[ContrastivePair], site: str = "residual") -> Tensor:
    """The mean over positive texts minus the mean over negative texts, each text averaged over its own tokens.

    One pass over the texts serves every block.
    Source: *Conversations: Love Them, Hate Them, Steer Them* (Chebrolu, Yeo, Jaidka).

    Returns:
        Directions [block, width], float32.
    """
    readings = [model.dialogue.reading(text) for pair in pairs for text in (pair.positive, pair.negative)]
    means = token_means(model, readings, site)
    return means[0::2].mean(0) - means[1::2].mean(0)


METHODS: dict[str, Method] = {"mean_difference": mean_difference}


def emotion_vector(
    model: LanguageModel,
    pairs: Sequence[ContrastivePair],
    residual_norm: Tensor,
    method: str = "mean_difference",
    site: str = "residual",
) -> EmotionVector:
    """Build an emotion vector by a named method.

    Raises:
        EmosteerError: unknown method, or a vector of another shape, not finite, or without length at some block.
    """
    return checked(EmotionVector(find_method(method)(model, pairs, site), residual_norm, site))


def find_method(name: str) -> Method:
    """The method of a name in `METHODS`, or at a dotted path; raises EmosteerError where there is none."""
    if name in METHODS:
        return METHODS[name]
    if "." not in name:
        raise EmosteerError(f"vector.method={name}: choose one of {', '.join((*METHODS, 'random'))}, or give a dotted path")
    return find_function("vector.method", name)


def checked(vector: EmotionVector, n_blocks: int | None = None, width: int | None = None) -> EmotionVector:
    """The vector itself, where it can steer a model of `n_blocks` blocks and that width (None: of any).

    Raises:
        EmosteerError: another shape, a norm that is no positive number, or a direction that is not finite or has no length.
    """
    directions, norms = vector.directions, vector.residual_norm
    expected = (n_blocks or directions.shape[0], width or directions.shape[-1])
    if directions.shape != expected or norms.shape != expected[:1]:
        raise EmosteerError(
            f"the emotion vector is {list(directions.shape)} with {norms.numel()} residual norms: the model needs {list(expected)}"
        )
    if bad := _bad(norms):
        raise EmosteerError(f"the residual norm is no positive number at blocks {bad}; look at the neutral texts")
    if bad := _bad(directions.norm(dim=1)):
        raise EmosteerError(f"the emotion vector is not finite or has no length at blocks {bad}; look at the pairs' texts")
    return vector


def _bad(lengths: Tensor) -> list[int]:
    return [int(b) for b in torch.nonzero(~torch.isfinite(lengths) | (lengths <= 0)).flatten()]


def random_direction(seed: int, index: int, n_blocks: int, width: int) -> Tensor:
    """Directions [block, width] of unit length, uniform over the sphere, drawn by a hash of seed, index and block.

    The same on every machine and device; a block's direction does not depend on how many blocks there are.
    """
    rows = []
    for block in range(n_blocks):
        key = hashlib.sha256(f"random direction {seed} {index} {block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        rows.append(torch.randn(width, generator=generator, dtype=torch.float64))
    directions = torch.stack(rows)
    return (directions / directions.norm(dim=1, keepdim=True)).float()


def residual_norms(model: LanguageModel, texts: Sequence[NeutralText]) -> Tensor:
    """The usual length of the residual stream after each block [block], float32.

    The median of the Euclidean norm over the texts' own tokens: without the first token of all, an attention sink with a norm a
    hundred times the others', and without the template's tokens.
    """
    readings = [model.dialogue.reading(text.text) for text in texts]
    norms: list[list[Tensor]] = [[] for _ in range(model.n_blocks)]
    for batch in _batches(readings):
        for layer, states in enumerate(_read(model, batch, "residual")):
            for reading, row in zip(batch, states, strict=True):
                own = _own(row, reading)
                norms[layer].append(own[1:].norm(dim=1) if reading.start == 0 else own.norm(dim=1))
    return torch.stack([torch.cat(layer).median() for layer in norms])


def token_means(model: LanguageModel, readings: Sequence[Reading], site: str = "residual") -> Tensor:
    """Each text's activation averaged over its own tokens: [text, block, width], float32 on the CPU."""
    means = []
    for batch in _batches(readings):
        states = _read(model, batch, site)
        means += [torch.stack([_own(layer[row], reading).mean(0) for layer in states]) for row, reading in enumerate(batch)]
    return torch.stack(means)


def _batches(readings: Sequence[Reading]) -> list[list[Reading]]:
    return [list(readings[i : i + READING_BATCH]) for i in range(0, len(readings), READING_BATCH)]


def _read(model: LanguageModel, readings: Sequence[Reading], site: str) -> list[Tensor]:
    """Activations of a batch, per block: [row, position, width] float32 on the CPU."""
    batch = pad_left([reading.tokens for reading in readings], model.pad_token_id, model.device)
    with torch.no_grad(), capture(model.anatomy, (site,)) as seen:
        model.model(**batch.inputs(), use_cache=False, logits_to_keep=1)
    return [seen[site, layer].float().cpu() for layer in range(model.n_blocks)]


def _own(row: Tensor, reading: Reading) -> Tensor:
    """The text's own tokens of a left-padded row."""
    shift = row.shape[0] - len(reading.tokens)
    return row[shift + reading.start : shift + reading.stop]
