"""NRC emotions: how many words of a reply the NRC Word-Emotion Association Lexicon ties to each category.

The lexicon is that of Mohammad and Turney, *Crowdsourcing a Word-Emotion Association Lexicon*, Computational
Intelligence 29(3), 2013: 6,468 English words with at least one of ten categories, as the package NRCLex ships it.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import simplemma

from emosteer.errors import EmosteerError
from emosteer.scoring.scorer import Scores, versioned
from emosteer.scoring.text import are_negated, per_hundred_words, split_words, without_clitics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CATEGORIES: Final = (
    "joy",
    "sadness",
    "trust",
    "disgust",
    "anger",
    "fear",
    "anticipation",
    "surprise",
    "positive",
    "negative",
)
"""The eight emotions and two polarities of the lexicon, in the order in which they are listed everywhere."""


MANY_TIMES: Final = 3
"""So often a word must occur to be what a reply's emotions come from."""


def _lexicon_file() -> Path:
    # Found, not imported: the data is all that is wanted of the package.
    spec = find_spec("nrclex")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the NRC lexicon comes with the package NRCLex, which is missing: pip install NRCLex")
    return Path(spec.submodule_search_locations[0], "data", "nrc_en.json")


@lru_cache(maxsize=1)
def _lexicon() -> Mapping[str, tuple[str, ...]]:
    """Lower-cased word -> its categories, each once, in the order of `CATEGORIES`."""
    tags_of: dict[str, list[str]] = json.loads(_lexicon_file().read_text(encoding="utf-8"))
    unknown = sorted({tag for tags in tags_of.values() for tag in tags}.difference(CATEGORIES))
    if unknown:
        raise EmosteerError(f"{_lexicon_file()} has unknown categories {unknown}: this NRCLex is not supported, 4.1 is")
    return {word: tuple(c for c in CATEGORIES if c in tags) for word, tags in tags_of.items()}


def words_of(category: str) -> list[str]:
    """The lexicon's words of a category, lower-cased, in alphabetical order."""
    return sorted(word for word, categories in _lexicon().items() if category in categories)


@lru_cache(maxsize=65536)
def _categories(word: str, lemmatise: bool) -> tuple[str, ...]:
    form = without_clitics(word).lower()
    if form in _lexicon() or not lemmatise or not form.isalpha():
        return _lexicon().get(form, ())
    return _lexicon().get(simplemma.lemmatize(form, lang="en").lower(), ())


def categories_of(word: str, lemmatise: bool = True) -> tuple[str, ...]:
    """The categories that a word of a reply (`split_words`) counts for in `nrc`, in the order of `CATEGORIES`."""
    return _categories(word, lemmatise)


def emotion_words(reply: str, lemmatise: bool = True) -> list[tuple[str, tuple[str, ...]]]:
    """The words of `reply` that count for `nrc`, as written and in order, each with the categories it counts for."""
    found = ((word, _categories(word, lemmatise)) for word in split_words(reply))
    return [(word, categories) for word, categories in found if categories]


@versioned(1, per_reply=True)
def nrc(replies: Sequence[str], *, lemmatise: bool = True, negation: bool = False) -> Scores:
    """The number of words of each NRC category per 100 words of the reply: ten metrics, named as in `CATEGORIES`.

    NRCLex's own frequencies are another measure: they divide by the number of matched tags, which mixes in `positive`
    and `negative`, and which makes one joyful word among a thousand plain ones as joyful as a reply of joy alone.

    A word (`split_words`) is looked up lower-cased and without a possessive or contracted ending (`mother's` as
    `mother`; words in n't, such as `don't`, are in no category). If it is not in the lexicon and `lemmatise` is true,
    its English lemma by simplemma is looked up. So the form as written takes precedence, because its categories are
    what people said of that very form: `excited` (trust among others) is not `excite` (anger and fear among others),
    and `worse` is not simplemma's `wrong`; but `loved` counts as `love`, and `best` and `better` as `good`. A word
    counts once for each of its categories, and as often as it occurs.

    With `negation`, a word under a negation (`are_negated`: `not happy`, `never felt any joy`) counts for nothing; without, as
    the lexicon's users count, for its categories all the same. `caveats` tells how many such words there are.

    Values: 0 to 100; 0.0 for a reply without words. Known limits: the lexicon is English, and words are counted without
    their context: names such as Grace and Joy count as joy.

    Raises ModuleNotFoundError if NRCLex is not installed, EmosteerError if its lexicon has categories other than the ten.
    """
    scores: Scores = {category: [] for category in CATEGORIES}
    for reply in replies:
        words = split_words(reply)
        counted = [w for w, is_negated in zip(words, are_negated(reply), strict=True) if not is_negated] if negation else words
        counts = Counter(category for word in counted for category in _categories(word, lemmatise))
        for category in CATEGORIES:
            scores[category].append(per_hundred_words(counts[category], len(words)))
    return scores


@versioned(1, per_reply=True)
def caveats(replies: Sequence[str], *, lemmatise: bool = True) -> Scores:
    """What may be wrong with a reply's NRC emotions: `negated` and `one_word`.

    `negated`: words of any category that stand under a negation (`are_negated`), per 100 words, 0 to 100. `nrc` counts them unless
    it is told otherwise.

    `one_word`: 1.0 where the reply comes to its emotions by one word: the same word (case-folded, without clitics), at least three
    times, is more than half of its words of any category; else 0.0. A lexicon can be gamed by one repeated word.
    """
    scores: Scores = {"negated": [], "one_word": []}
    for reply in replies:
        words = split_words(reply)
        pairs = [
            (word, is_negated) for word, is_negated in zip(words, are_negated(reply), strict=True) if _categories(word, lemmatise)
        ]
        times = Counter(without_clitics(word).casefold() for word, _ in pairs)
        most = max(times.values(), default=0)
        scores["negated"].append(per_hundred_words(sum(is_negated for _, is_negated in pairs), len(words)))
        scores["one_word"].append(float(most >= MANY_TIMES and 2 * most > len(pairs)))
    return scores
