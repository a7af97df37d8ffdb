"""What attribution explains: a number that is read off a run at the last prompt position.

A measure completes a case with what its metric needs, and `measured` reads the metric off a run. Each metric is differentiable in
the run, and larger where the target emotion shows more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from emosteer.attribution.case import HITS, NEARNESS, PROJECTION, Case
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.model.padding import pad_left

SPACES = ("Ġ", "▁")
"""How vocabularies write a token's leading space: byte-level ones, and those of SentencePiece."""

Measure = Callable[[LanguageModel, Case], Case]
"""Completes a case."""


def word_sets(expressive: Sequence[int], counterpart: Sequence[int]) -> Measure:
    """The log-probability of one set of tokens minus that of another, the same for all cases, in nats.

    Raises:
        EmosteerError: a set is empty, or a token is in both.
    """
    if not expressive or not counterpart or set(expressive) & set(counterpart):
        raise EmosteerError("a metric of word sets needs tokens on both sides, and none that is on both")
    return lambda _model, case: replace(case, expressive=tuple(expressive), counterpart=tuple(counterpart))


def hits(tokens: Sequence[int]) -> Measure:
    """How many of 100 next tokens are expected to be one of these: the differentiable surrogate of a score that counts words.

    Raises:
        EmosteerError: there are none.
    """
    if not tokens:
        raise EmosteerError("a metric of expected hits needs at least one token")
    return lambda _model, case: replace(case, kind=HITS, expressive=tuple(tokens), counterpart=())


def projection(direction: Tensor) -> Measure:
    """The length of the residual stream after the last block along a direction [width], which need not have unit length.

    Raises:
        EmosteerError: the direction is without length or not finite.
    """
    length = direction.float().norm()
    if not (torch.isfinite(length) and length > 0):
        raise EmosteerError("a metric of projection needs a direction that is finite and has a length")
    unit = direction.float() / length
    return lambda _model, case: replace(case, kind=PROJECTION, reference=unit)


@torch.no_grad()
def nearness(model: LanguageModel, case: Case) -> Case:
    """Minus the Kullback-Leibler divergence of a run's next token from the clean run's, in nats: 0 is the clean run."""
    batch = pad_left([case.clean], model.pad_token_id, model.device)
    logits = model.model(**batch.inputs(), use_cache=False, logits_to_keep=1).logits[0, -1]
    return replace(case, kind=NEARNESS, reference=logits.float().log_softmax(-1).cpu())


def single_tokens(model: LanguageModel, words: Sequence[str]) -> tuple[list[int], list[str]]:
    """The tokens of those words that are one token behind a space, and the words that are several."""
    known = whole_words(model)
    return [known[word] for word in words if word in known], [word for word in words if word not in known]


def whole_words(model: LanguageModel) -> dict[str, int]:
    """Word -> token, of all tokens that are a space and then letters of the English alphabet, as they are written."""
    vocabulary = model.dialogue.tokenizer.get_vocab()
    words = ((text[1:], token) for text, token in vocabulary.items() if text.startswith(SPACES))
    return {word: token for word, token in sorted(words) if word.isascii() and word.isalpha()}
