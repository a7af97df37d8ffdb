"""What tells two emotions apart where nobody wrote contrastive pairs: the NRC lexicon's words for them.

Everything comes as contrastive pairs, so that every vector method takes it.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256

from emosteer.datasets import ContrastivePair
from emosteer.errors import EmosteerError
from emosteer.scoring.nrc import CATEGORIES, words_of

MOST_WORDS = 64
"""Of each emotion; a direction seldom needs more pairs."""


@lru_cache(maxsize=64)
def lexicon_pairs(target: str, counterpart: str) -> tuple[ContrastivePair, ...]:
    """Words of the target emotion against words of its counterpart, one a text, that are in the NRC lexicon for one of them alone.

    At most `MOST_WORDS` of each, as many of the one as of the other, in the order of a hash: a fair choice among all, the same
    everywhere. Which word stands against which means nothing.

    Args:
        target: a category of the lexicon, such as joy.
        counterpart: another.

    Raises:
        EmosteerError: the lexicon has no such emotion, or no word that is of one of them alone.
    """
    for key, emotion in (("pair.target", target), ("pair.counterpart", counterpart)):
        if emotion not in CATEGORIES:
            raise EmosteerError(
                f"{key}={emotion}: vector.source=lexicon needs words of it, and the NRC lexicon has {', '.join(CATEGORIES)}; "
                "choose a pair of these, or vector.source=pairs"
            )
    words, others = set(words_of(target)), set(words_of(counterpart))
    sides = [sorted(own, key=lambda word: sha256(word.encode()).digest())[:MOST_WORDS] for own in (words - others, others - words)]
    if not all(sides):
        raise EmosteerError(f"vector.source=lexicon: no word is of {target} or {counterpart} alone; choose another pair")
    return tuple(ContrastivePair(f"word-{i:03}", *both) for i, both in enumerate(zip(*sides, strict=False), 1))
