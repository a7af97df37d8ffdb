"""Texts as a model reads them: a state per text and block, and the residual stream's usual length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

import torch
from torch import Tensor

from emosteer.datasets import NeutralText
from emosteer.model.batches import Progress, silent
from emosteer.model.dialogue import Reading
from emosteer.model.extraction import Extracted, extract
from emosteer.model.language_model import LanguageModel


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
