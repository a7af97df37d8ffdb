"""The metrics that `attribution.metric` names, for a model and a pair of emotions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from emosteer.attribution.metrics import Measure, hits, nearness, projection, single_tokens, whole_words, word_sets
from emosteer.datasets import ContrastivePair
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.scoring.nrc import emotion_words, words_of
from emosteer.vectors.making import read_states
from emosteer.vectors.methods import mean_difference

log = logging.getLogger(__name__)

NATS, PER_HUNDRED, LENGTH = "nats", "per 100 tokens", "residual length"


@dataclass(frozen=True)
class Explained:
    """A metric that attribution explains."""

    measure: Measure | None
    """None for the words that come with each diagnostic pair."""
    text: str
    """As a summary tells it."""
    unit: str


OWN_WORDS = Explained(None, "log p(expressive words) - log p(counterpart words) as the next token, in nats", NATS)


def nrc_words(model: LanguageModel, target: str, counterpart: str) -> Explained:
    """The log-probability of the NRC lexicon's words for one emotion minus that of its words for another, of each alone.

    Only words that are one token of the model's count; the others are left out, and how many is told.

    Args:
        model: the language model.
        target: a category of the lexicon.
        counterpart: another.

    Raises:
        EmosteerError: no word of one of them is one token.
    """
    own, other = set(words_of(target)), set(words_of(counterpart))
    sides, told = [], []
    for emotion, words in ((target, own - other), (counterpart, other - own)):
        tokens, several = single_tokens(model, sorted(words))
        if not tokens:
            raise EmosteerError(
                f"attribution.metric=nrc_words: none of the {len(words)} words of {emotion} is a single token of {model.name}"
            )
        sides.append(tokens)
        told.append(f"{len(tokens)} words of {emotion} ({len(several)} of several tokens left out)")
    if shared := set(sides[0]) & set(sides[1]):
        sides = [[token for token in side if token not in shared] for side in sides]
    log.info("attribution.metric=nrc_words: %s", ", ".join(told))
    return Explained(word_sets(*sides), f"log p({told[0]}) - log p({told[1]}) as the next token, in nats", NATS)


def nrc_score(model: LanguageModel, category: str) -> Explained:
    """The surrogate of an NRC score that has a gradient: words of a category expected in 100 next tokens.

    Every token of the vocabulary that is a space and a whole word counts as the scorer counts that word, by its lemma too. Words of
    several tokens do not count.

    Raises:
        EmosteerError: no token is such a word.
    """
    tokens = [token for word, token in whole_words(model).items() if any(category in found for _, found in emotion_words(word))]
    if not tokens:
        raise EmosteerError(f"attribution.metric=nrc_score: no token of {model.name} is a word of {category}")
    return Explained(hits(tokens), f"words of {category} expected in 100 next tokens, by {len(tokens)} tokens", PER_HUNDRED)


def on_vector(model: LanguageModel, pairs: Sequence[ContrastivePair]) -> Explained:
    """The projection of the residual stream after the last block on the mean difference of contrastive pairs there."""
    direction = mean_difference(read_states(model, pairs))[-1]
    return Explained(projection(direction), "projection of the residual stream after the last block on the emotion vector", LENGTH)


NEARNESS = Explained(nearness, "minus the KL divergence of the next token's distribution from the clean run's, in nats", NATS)


def explained(
    metric: str, model: LanguageModel, target: str, counterpart: str, primary: str, pairs: Sequence[ContrastivePair]
) -> Explained:
    """What a name in `attribution.metric` means for a pair; arguments that it does not need are not looked at."""
    if metric == "nrc_words":
        return nrc_words(model, target, counterpart)
    if metric == "nrc_score":
        return nrc_score(model, primary)
    if metric == "projection":
        return on_vector(model, pairs)
    return NEARNESS if metric == "kl" else OWN_WORDS
