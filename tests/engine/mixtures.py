"""Random mixtures of requests, drawn by hypothesis as plain data: they print well, shrink, and are looked up in a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from hypothesis import strategies as st
from reference import Reference
from tiny_models import random_tokens, random_vector
from zoo import ZOO, zoo_model, zoo_places

from emosteer.engine import Decoding, Reply, Request, RowSeed
from emosteer.model.capture import Place
from emosteer.model.language_model import LanguageModel
from emosteer.steering import Push, Steering

BEGINNINGS = random_tokens(16, 16, seed=1)
"""Texts of which prompts have the first tokens in common."""


@dataclass(frozen=True)
class PromptDraw:
    """Some first tokens of one of the beginnings, then others that no other prompt has."""

    beginning: int
    shared: int
    own: int

    def tokens(self, number: int) -> tuple[int, ...]:
        # A prompt has a token at least.
        (own,) = random_tokens(max(self.own, 1 - self.shared), seed=100 + number)
        return (*BEGINNINGS[self.beginning][: self.shared], *own)


@dataclass(frozen=True)
class RowDraw:
    """A request: the number of its prompt, its pushes as (place, seed of the vector, length, whether it is cleared), and the rest."""

    prompt: int
    pushes: tuple[tuple[Place, int, float, bool], ...]
    scope: str
    decay: float
    sample: int
    decoding: Decoding


@dataclass(frozen=True)
class Mixture:
    """Requests to one model."""

    prompts: tuple[PromptDraw, ...]
    rows: tuple[RowDraw, ...]
    batch_rows: int

    def requests(self) -> list[Request]:
        return [
            Request(
                self.prompts[row.prompt].tokens(row.prompt),
                RowSeed(7, str(row.prompt), row.sample),
                Steering(tuple(push_of(*push) for push in row.pushes), row.scope, row.decay) if row.pushes else None,
                row.decoding,
            )
            for row in self.rows
        ]


def push_of(place: Place, seed: int, length: float, is_cleared: bool) -> Push:
    """Something added; or a projection set to a length, which may be none."""
    return Push(*place, random_vector(seed, length), random_vector(seed, 1.0) if is_cleared else None)


@lru_cache
def stopping_model(name: str) -> LanguageModel:
    """A model of whose vocabulary every 5th, 13th or 40th token ends a reply, so that replies end all the time, often or seldom."""
    model, every = zoo_model(name), (5, 13, 40)[ZOO.index(name) % 3]
    return replace(model, stop_tokens=frozenset(range(0, model.model.config.vocab_size, every)))


@lru_cache(maxsize=256)
def expected_replies(name: str, mixture: Mixture) -> tuple[Reply, ...]:
    """The reference's, computed once for all ways through the model."""
    reference = Reference(stopping_model(name), zoo_places(name))
    return tuple(reference.reply(request) for request in mixture.requests())


@st.composite
def decodings(draw: st.DrawFn) -> Decoding:
    longest = draw(st.integers(1, 12))
    least = draw(st.sampled_from([0, 0, min(2, longest), longest]))
    if draw(st.booleans()):
        return Decoding(longest, least)
    return Decoding(longest, least, True, draw(st.sampled_from([0.5, 1.0, 1.7])), draw(st.sampled_from([1.0, 0.95, 0.7, 0.2])))


@st.composite
def rows(draw: st.DrawFn, n_prompts: int, places: Sequence[Place]) -> RowDraw:
    pushes = st.tuples(
        st.sampled_from(places),
        st.integers(0, 3),
        st.sampled_from([6.0, 2.0, 0.0, -4.0, 15.0]),
        st.sampled_from([False, False, True]),
    )
    drawn = draw(st.lists(pushes, max_size=3))
    where = [place for place, *_ in drawn]
    return RowDraw(
        draw(st.integers(0, n_prompts - 1)),
        tuple((place, seed, length, is_cleared and where.count(place) == 1) for place, seed, length, is_cleared in drawn),
        draw(st.sampled_from(["generated", "prompt", "all"])),
        draw(st.sampled_from([1.0, 1.0, 0.7, 0.0, 1.1])),
        draw(st.integers(0, 2)),
        draw(decodings()),
    )


@st.composite
def mixtures(draw: st.DrawFn, name: str) -> Mixture:
    """Mixtures for an architecture, at any of its places."""
    places = sorted(zoo_places(name))
    prompts = draw(st.lists(st.builds(PromptDraw, st.integers(0, 1), st.integers(0, 14), st.integers(0, 6)), min_size=2, max_size=5))
    requests = draw(st.lists(rows(len(prompts), places), min_size=5, max_size=8))
    return Mixture(tuple(prompts), tuple(requests), draw(st.integers(1, min(8, len(requests) - 1))))
