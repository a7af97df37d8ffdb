"""From texts to an emotion vector, by a method of ours or of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from emosteer.config import VectorConfig
from emosteer.datasets import ContrastivePair
from emosteer.dotted import find_vector_method
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.vectors.methods import METHODS, States
from emosteer.vectors.reading import token_means
from emosteer.vectors.vector import EmotionVector, checked

OwnMethod = Callable[..., Tensor]
"""A user's own: makes directions [block, width] of a model, contrastive pairs and a site, and of a `reading` where it takes one."""


def emotion_vector(
    model: LanguageModel,
    pairs: Sequence[ContrastivePair],
    residual_norm: Tensor,
    method: str = "mean_difference",
    site: str = "residual",
    reading: str = VectorConfig.reading,
) -> EmotionVector:
    """Build an emotion vector by a named method.

    Args:
        model: the language model.
        pairs: texts that tell two emotions apart.
        residual_norm: the model's [block], from `residual_norms`.
        method: a name in `METHODS`, or the dotted path of a function.
        site: whose output is read.
        reading: which state stands for a text; see `emosteer.model.dialogue.Dialogue.reading`.

    Raises:
        EmosteerError: unknown method, or a vector of another shape, not finite, or without length at some block.
    """
    if method in METHODS:
        directions = METHODS[method](read_states(model, pairs, site, reading))
    else:
        asked = {} if reading == VectorConfig.reading else {"reading": reading}
        directions = find_method(method, reading)(model, pairs, site, **asked)
    return checked(EmotionVector(directions, residual_norm, site))


def read_states(model: LanguageModel, pairs: Sequence[ContrastivePair], site: str, reading: str = VectorConfig.reading) -> States:
    """The states of pairs of texts at every block; a `Reader` in use remembers those of earlier calls."""
    texts = [text for pair in pairs for text in (pair.positive, pair.negative)]
    means = token_means(model, [model.dialogue.reading(text, reading) for text in texts], site)
    return States(means[0::2], means[1::2])


def find_method(name: str, reading: str = VectorConfig.reading) -> OwnMethod:
    """The user's own method at a dotted path; raises EmosteerError where there is none, or it takes no `reading` and needs one."""
    if "." not in name:
        raise EmosteerError(f"vector.method={name}: choose one of {', '.join((*METHODS, 'random'))}, or give a dotted path")
    return find_vector_method(name, reading)
