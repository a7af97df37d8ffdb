"""First-person pronouns: how much a reply speaks of its speaker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emosteer.scoring.scorer import Scores, versioned
from emosteer.scoring.text import per_hundred_words, split_words, without_clitics

if TYPE_CHECKING:
    from collections.abc import Sequence

SINGULAR: Final = frozenset({"i", "me", "my", "mine", "myself"})
PLURAL: Final = frozenset({"we", "us", "our", "ours", "ourselves", "let's"})


def is_first_person(word: str, is_shouted: bool = False) -> bool:
    """Whether a word of a reply (`split_words`) counts for `first_person`; shouted where the whole reply is in capitals."""
    stem = word if word.lower() == "let's" else without_clitics(word)
    return (is_shouted or stem != "US") and stem.lower() in SINGULAR | PLURAL


def _pronoun_forms(reply: str, words: Sequence[str]) -> list[str]:
    """The words as they are compared with the pronouns: lower-cased, without contracted endings."""
    stems = (word if word.lower() == "let's" else without_clitics(word) for word in words)
    shouted = reply.isupper()
    return [stem.lower() for stem in stems if shouted or stem != "US"]


@versioned(1, per_reply=True)
def pronouns(replies: Sequence[str]) -> Scores:
    """First-person pronouns per 100 words of the reply: `first_person`, the sum of the two others, and
    `first_person_singular` (I, me, my, mine, myself) and `first_person_plural` (we, us, our, ours, ourselves).

    Case does not matter, and a contraction counts once, as its pronoun (I'm, I'd've, we'll; curly apostrophes as
    straight ones). `let's` is `let us` and counts as plural; `lets` does not. `US` in capitals is the country, unless
    the whole reply is in capitals.

    Values: 0 to 100; 0.0 for a reply without words. Known limits: the numeral (World War I), an initial or a list
    letter `I`, the noun `mine`, and words of other languages that are spelled alike (`i`, `me`) count as pronouns;
    contractions typed without an apostrophe (`Im`) do not.
    """
    scores: Scores = {"first_person": [], "first_person_singular": [], "first_person_plural": []}
    for reply in replies:
        words = split_words(reply)
        forms = _pronoun_forms(reply, words)
        singular = sum(form in SINGULAR for form in forms)
        plural = sum(form in PLURAL for form in forms)
        scores["first_person"].append(per_hundred_words(singular + plural, len(words)))
        scores["first_person_singular"].append(per_hundred_words(singular, len(words)))
        scores["first_person_plural"].append(per_hundred_words(plural, len(words)))
    return scores
