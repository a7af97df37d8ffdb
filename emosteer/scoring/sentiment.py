"""Sentiment of a reply by VADER."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from emosteer.scoring.scorer import Scores, versioned
from emosteer.scoring.text import straighten_apostrophes

if TYPE_CHECKING:
    from collections.abc import Sequence

# VADER strips ASCII punctuation only. An ellipsis or a quotation mark hides the word that it touches, an em dash the
# two that it joins.
_TYPOGRAPHY: Final = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2026": "...", "\u2014": " "})


@lru_cache(maxsize=1)
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def _compound(reply: str) -> float:
    text = straighten_apostrophes(reply).translate(_TYPOGRAPHY)
    return float(_analyzer().polarity_scores(text)["compound"])


@versioned(1, per_reply=True)
def sentiment(replies: Sequence[str]) -> Scores:
    """VADER's compound score of the whole reply, -1 (negative) to 1 (positive), to four decimals.

    Hutto and Gilbert, *VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text*, ICWSM
    2014. Typographic apostrophes, quotation marks, ellipses and em dashes are first replaced by what a keyboard types,
    since VADER reads `isn’t good` as good (its issue 66) and does not see the last word of `“I am happy”`.

    0.0 for a reply without a word of VADER's English lexicon, an empty one included. The compound score adds up over
    the reply and is then squeezed: it says less of long replies, which come out near -1 or 1.
    """
    return {"sentiment": [_compound(reply) for reply in replies]}
