from __future__ import annotations

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from emosteer.scoring.sentiment import sentiment

PLAIN = [
    "I am so happy to see you!",
    "This isn't good at all.",
    "I HATE this :( but the rest is great :)",
    "The table has four legs.",
    "😀 What a day",
    "To die for, 'really'... \"the best\" day -- ever",
]


def vader(reply: str) -> float:
    return float(SentimentIntensityAnalyzer().polarity_scores(reply)["compound"])


def test_plain_text_scores_as_in_vader() -> None:
    assert sentiment(PLAIN)["sentiment"] == [vader(reply) for reply in PLAIN]


def test_sign() -> None:
    joyful, neutral, sad = sentiment(["I love it, wonderful!", "It is a table.", "I am miserable."])["sentiment"]
    assert -1 <= sad < neutral == 0 < joyful <= 1


@pytest.mark.parametrize("reply", ["", "  \n", "......", "стол", "桌子"])
def test_no_sentiment_is_zero(reply: str) -> None:
    assert sentiment([reply]) == {"sentiment": [0.0]}


@pytest.mark.parametrize(
    ("typographic", "typed"),
    [
        ("This isn’t good", "This isn't good"),
        ("They said “great” and left", 'They said "great" and left'),
        ("I was ‘happy’", "I was 'happy'"),
        ("So happy… then not", "So happy... then not"),
        ("I am happy—truly", "I am happy truly"),
    ],
)
def test_typography_does_not_hide_words(typographic: str, typed: str) -> None:
    assert vader(typographic) != vader(typed)
    assert sentiment([typographic])["sentiment"] == [vader(typed)]
