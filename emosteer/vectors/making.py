"""From texts to an emotion vector, by a method of ours or of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from emosteer.config import VectorConfig
from emosteer.datasets import ContrastivePair, NeutralText, Prompt
from emosteer.dotted import find_vector_method
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.vectors.composition import compose, composed, left
from emosteer.vectors.methods import METHODS, States
from emosteer.vectors.quality import Quality, quality
from emosteer.vectors.reading import token_means
from emosteer.vectors.vector import EmotionVector, checked

OwnMethod = Callable[..., Tensor]
"""A user's own: makes directions [block, width] of a model, contrastive pairs and a site, and of a `reading` where it takes one."""


Contrast = Sequence[ContrastivePair] | Sequence[Prompt]
"""Pairs of texts; or prompts, a positive and a negative one in turn, that are read as they would be before their reply."""


def emotion_vector(
    model: LanguageModel,
    pairs: Contrast,
    residual_norm: Tensor,
    method: str = "mean_difference",
    site: str = "residual",
    reading: str = VectorConfig.reading,
    *,
    others: Sequence[Contrast] = (),
    neutral: Sequence[NeutralText] = (),
    components: int = VectorConfig.components,
    plus: Sequence[tuple[float, Contrast]] = (),
    without: Sequence[Contrast] = (),
    told: Callable[[Quality], None] | None = None,
) -> EmotionVector:
    """Build an emotion vector by a named method.

    Args:
        model: the language model.
        pairs: what tells two emotions apart; only contrastive pairs for a method of the user's own.
        residual_norm: the model's [block], from `residual_norms`.
        method: a name in `METHODS`, or the dotted path of a function.
        site: whose output is read.
        reading: which state stands for a text; see `emosteer.model.dialogue.Dialogue.reading`.
        others: of `grand_mean`: the pairs of each further two emotions.
        neutral: of `neutral_projected`: texts without emotion.
        components: of `neutral_projected`: how many of their principal components are taken out.
        plus: weights and pairs of other emotions, whose vectors, made in the same way, are added; see `composition.compose`.
        without: pairs of other emotions, whose vectors are taken out.
        told: is given how sure the direction is, which takes some times as long as to find it; not of a method of the user's own.

    Raises:
        EmosteerError: unknown method, texts that it lacks, or a vector of another shape, not finite, or without length at some block.
    """
    if method in METHODS:
        states = read_states(
            model,
            pairs,
            site,
            reading,
            others=others if method == "grand_mean" else (),
            neutral=neutral if method == "neutral_projected" else (),
            components=components,
            plus=plus,
            without=without,
        )
        vector = _finished(composed(METHODS[method])(states), residual_norm, site, is_composed=bool(plus or without))
        if told is not None:
            told(quality(states, METHODS[method]))
        return vector
    own, asked = find_method(method, reading), {} if reading == VectorConfig.reading else {"reading": reading}

    def make(contrast: Contrast) -> Tensor:
        return own(model, contrast, site, **asked)

    directions = compose(make(pairs), [(weight, make(part)) for weight, part in plus], [make(part) for part in without])
    return _finished(directions, residual_norm, site, is_composed=bool(plus or without))


def _finished(directions: Tensor, residual_norm: Tensor, site: str, is_composed: bool) -> EmotionVector:
    return checked(EmotionVector(left(directions) if is_composed else directions, residual_norm, site))


def read_states(
    model: LanguageModel,
    pairs: Contrast,
    site: str = "residual",
    reading: str = VectorConfig.reading,
    *,
    others: Sequence[Contrast] = (),
    neutral: Sequence[NeutralText] = (),
    components: int = VectorConfig.components,
    plus: Sequence[tuple[float, Contrast]] = (),
    without: Sequence[Contrast] = (),
) -> States:
    """The states of pairs of texts, and of what else a method needs, at every block; arguments as for `emotion_vector`.

    A part's other emotions are the pair's own and `others`, without the part's.

    Raises:
        EmosteerError: states that are not finite.
    """

    def read(texts: Sequence[str | Prompt]) -> Tensor:
        found = [
            model.dialogue.asking(text.messages, reading) if isinstance(text, Prompt) else model.dialogue.reading(text, reading)
            for text in texts
        ]
        means = token_means(model, found, site)
        if bad := torch.nonzero(~means.isfinite().all(dim=2).all(dim=0)).flatten().tolist():
            raise EmosteerError(f"{model.name}: activations at blocks {bad} are not finite numbers; try model.dtype=float32")
        return means

    groups = [_in_turn(group) for group in (pairs, *others, *(part for _, part in plus), *without)]
    means = torch.split(read([text for group in groups for text in group]), [len(group) for group in groups])
    about = read([text.text for text in neutral]) if neutral else None
    emotions = range(1 + len(others))

    def states(at: int, further: Sequence[int]) -> States:
        centres = [texts.mean(0) for i in further for texts in (means[i][0::2], means[i][1::2])]
        return States(means[at][0::2], means[at][1::2], torch.stack(centres) if centres else None, about, components)

    parts = [states(at, [i for i in emotions if others and groups[i] != groups[at]]) for at in range(len(emotions), len(groups))]
    return replace(
        states(0, emotions[1:]),
        plus=tuple((weight, part) for (weight, _), part in zip(plus, parts, strict=False)),
        without=tuple(parts[len(plus) :]),
    )


def _in_turn(contrast: Contrast) -> list[str | Prompt]:
    """A positive and a negative text in turn."""
    texts: list[str | Prompt] = []
    for one in contrast:
        texts += [one] if isinstance(one, Prompt) else [one.positive, one.negative]
    return texts


def find_method(name: str, reading: str = VectorConfig.reading) -> OwnMethod:
    """The user's own method at a dotted path; raises EmosteerError where there is none, or it takes no `reading` and needs one."""
    if "." not in name:
        raise EmosteerError(f"vector.method={name}: choose one of {', '.join((*METHODS, 'random'))}, or give a dotted path")
    return find_vector_method(name, reading)
