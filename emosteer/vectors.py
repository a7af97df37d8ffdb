"""Emotion vectors: directions in a model's activations, one per decoder block, and how long a push along them is.

A vector is kept raw in float32, with the model's residual norms beside it, so that any reader can scale it. A new method is one
function from contrastive pairs to a tensor, named in `METHODS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emosteer.datasets import ContrastivePair, NeutralText
from emosteer.dotted import find_function
from emosteer.errors import EmosteerError
from emosteer.model.batches import Progress, silent
from emosteer.model.dialogue import Reading
from emosteer.model.extraction import Extracted, extract
from emosteer.model.language_model import LanguageModel


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


def residual_norms(model: LanguageModel, texts: Sequence[NeutralText], on_progress: Progress = silent) -> Tensor:
    """The usual length of the residual stream after each block [block], float32.

    The median of the Euclidean norm over the texts' own tokens: without the first token of all, an attention sink with a norm a
    hundred times the others', and without the template's tokens.

    Args:
        model: the language model.
        texts: neutral ones.
        on_progress: told the texts that are read.
    """
    readings = [model.dialogue.reading(text.text) for text in texts]
    # Where the template puts nothing before a text, its first token is the first of all.
    readings = [replace(reading, start=1) if reading.start == 0 else reading for reading in readings]
    norms: list[Tensor] = []

    def take(found: Extracted) -> None:
        norms.append(found.by_site["residual"].transpose(0, 1)[:, found.own])

    extract(model, readings, ("residual",), _norms, take, on_progress)
    return torch.cat(norms, dim=1).median(dim=1).values


def _norms(states: Tensor, _own: Tensor) -> Tensor:
    """Length of each position's activation [row, position]."""
    return states.float().norm(dim=-1)


def token_means(model: LanguageModel, readings: Sequence[Reading], site: str = "residual") -> Tensor:
    """Each text's activation averaged over its own tokens: [text, block, width], float32 on the CPU.

    Equal texts are read once; a `Reader` in use also remembers those of earlier calls.
    """
    return _reader.get().means(model, readings, site)


class Reader:
    """Reads texts for a process that makes many vectors of one model: a text's means are kept for the next that asks for them.

    Nothing tells it that somebody changed the model's weights: it is for those who do not.

    Args:
        model: whose means are remembered; None remembers none.
        sites: read in the same pass as the one that is asked for.
        most_bytes: of means that are remembered; those asked for first are forgotten first.
    """

    def __init__(self, model: LanguageModel | None = None, sites: Sequence[str] = (), most_bytes: int = 1 << 30) -> None:
        self.model, self.sites, self.most_bytes = model, tuple(sites), most_bytes
        self.on_progress: Progress = silent
        self._means: dict[tuple[Reading, str], Tensor] = {}

    @contextmanager
    def in_use(self, on_progress: Progress = silent) -> Iterator[None]:
        """Let `token_means` read by this reader inside, and tell of the texts that are read."""
        self.on_progress = on_progress
        token = _reader.set(self)
        try:
            yield
        finally:
            _reader.reset(token)

    def means(self, model: LanguageModel, readings: Sequence[Reading], site: str) -> Tensor:
        """See `token_means`."""
        remembers = model is self.model
        known = self._means if remembers else {}
        if missing := [reading for reading in dict.fromkeys(readings) if (reading, site) not in known]:
            for own_site, means in self._read(model, missing, (site, *self.sites) if remembers else (site,)).items():
                # Copies, so that each can be forgotten without the others.
                known.update({(reading, own_site): own.clone() for reading, own in zip(missing, means, strict=True)})
        found = torch.stack([known[reading, site] for reading in readings])
        while known and len(known) * found[0].nbytes > self.most_bytes:
            del known[next(iter(known))]
        return found

    def _read(self, model: LanguageModel, readings: Sequence[Reading], sites: Sequence[str]) -> dict[str, Tensor]:
        means: dict[str, Tensor] = {}

        def take(found: Extracted) -> None:
            for site, own in found.by_site.items():
                means.setdefault(site, own.new_empty(len(readings), *own.shape[1:]))[found.rows] = own

        extract(model, readings, sites, _mean, take, self.on_progress)
        return means


def _mean(states: Tensor, own: Tensor) -> Tensor:
    """Mean over each text's own tokens [row, width], summed in float32."""
    own = own[:, :, None]
    # Not by a product with the mask: what stands at padding need not be finite.
    return states.float().masked_fill(~own, 0).sum(1) / own.sum(1)


_reader: ContextVar[Reader] = ContextVar("reader", default=Reader())  # noqa: B039 - the default remembers nothing
"""The reader in use: a vector method has no parameter for it."""
