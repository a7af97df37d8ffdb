"""What the push cost, as far as the text alone can tell: length, repetition within a reply and across replies.

Four scorers, so that a change to the options of one leaves the stored scores of the others valid.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from emosteer.errors import EmosteerError
from emosteer.scoring.scorer import Scores, versioned
from emosteer.scoring.text import split_words

if TYPE_CHECKING:
    from collections.abc import Sequence


def _folded(reply: str) -> list[str]:
    return [word.casefold() for word in split_words(reply)]


def _repetition(words: Sequence[str], n: int) -> float:
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


@versioned(1, per_reply=True)
def words(replies: Sequence[str]) -> Scores:
    """The number of words of the reply (`split_words`); 0.0 for an empty one."""
    return {"words": [float(len(split_words(reply))) for reply in replies]}


@versioned(1, per_reply=True)
def repetition(replies: Sequence[str], *, n: int = 3) -> Scores:
    """The share of the reply's runs of `n` words that occurred before in the same reply: 1 - distinct / total.

    Words are compared case-folded, without punctuation. Values: 0 (every run is new) up to, but not including, 1;
    0.0 for a reply of fewer than `n` words. This is seq-rep-n of Welleck et al., *Neural Text Generation with
    Unlikelihood Training*, ICLR 2020, over words instead of a model's tokens, so that models compare.

    Raises EmosteerError if `n` is less than 1.
    """
    if n < 1:
        raise EmosteerError(f"n is {n}: repetition needs runs of at least 1 word")
    return {"repetition": [_repetition(_folded(reply), n) for reply in replies]}


@versioned(1, per_reply=True)
def distinct(replies: Sequence[str]) -> Scores:
    """distinct-1 and distinct-2: the reply's distinct words, and distinct runs of two words, each divided by how many there are.

    Words are compared case-folded, without punctuation. Values: above 0 up to 1; 1.0 for a reply that is too short to have any.
    After Li et al., *A Diversity-Promoting Objective Function for Neural Conversation Models*, NAACL 2016, within each reply instead
    of over all of them: a long reply repeats more words, so that compare it beside `words`.
    """
    folded = [_folded(reply) for reply in replies]
    return {f"distinct_{n}": [1.0 - _repetition(words, n) for words in folded] for n in (1, 2)}


@versioned(1)
def duplication(replies: Sequence[str], *, first: int = 4) -> Scores:
    """1.0 for a reply that begins with the same `first` words as another one of `replies`, else 0.0.

    The mean over a cell's replies is the share of them that another shares its beginning with: a model that is pushed
    too hard says the same thing to everyone. Unlike all other scorers this one looks across the replies, so it must be
    given the replies of one cell, and all of them; samples for the same prompt are replies like any other.

    Words are compared case-folded, without punctuation. A reply of fewer than `first` words begins with all of its
    words, and only an equal reply begins alike: `I am` is not the beginning of `I am so happy`. By the same rule
    replies without words (empty, emoji, punctuation) duplicate one another: saying nothing to everyone is saying the
    same thing.

    Raises EmosteerError if `first` is less than 1.
    """
    if first < 1:
        raise EmosteerError(f"first is {first}: duplication needs to compare at least 1 word")
    beginnings = [tuple(_folded(reply)[:first]) for reply in replies]
    times = Counter(beginnings)
    return {"duplication": [float(times[beginning] > 1) for beginning in beginnings]}
