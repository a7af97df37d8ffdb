"""The marked words of a reply are those that the scorers count."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emosteer.report.replies import FIRST_PERSON, Marker, replies
from emosteer.scoring.nrc import CATEGORIES, nrc
from emosteer.scoring.pronouns import pronouns
from emosteer.scoring.text import place_words, split_words
from emosteer.tables import Tables

CURLY_AND_INVISIBLE = {0x2018: "'", 0x2019: "'", 0x2BC: "'", 0xFF07: "'", 0xAD: None, 0x2060: None, 0xFEFF: None}
PIECES = st.sampled_from(
    [
        "happy",
        "I",
        "I\u2019m",
        "we",
        "US",
        "us",
        "let's",
        "mine",
        "loved",
        "hap\u00adpy",
        "\ufeff",
        "mother's",
        "e\u0301",
        "don't",
        "abandoned",
    ]
)
BETWEEN = st.sampled_from([" ", ", ", "\n", "-", " '", "\U0001f600", "\u2028", "."])
TEXTS = st.lists(st.tuples(PIECES, BETWEEN), max_size=12).map(lambda pairs: "".join(word + gap for word, gap in pairs)) | st.text(
    max_size=40
)


@given(TEXTS)
def test_words_are_placed_where_they_stand(text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    places = place_words(text)

    assert [word for _, _, word in places] == split_words(text)
    assert all(before[1] <= after[0] for before, after in pairwise(places))
    for begins, ends, word in places:
        piece = text[begins:ends].translate(CURLY_AND_INVISIBLE)
        assert piece == word


@pytest.mark.parametrize("lemmatise", [True, False])
@settings(deadline=None)
@given(text=TEXTS)
def test_marks_add_up_to_the_scores(lemmatise: bool, text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    marker = Marker(lemmatise)
    marks = marker.marks(text)
    kinds = [marker.kinds[number] for number in marks[2::3]]
    n = len(split_words(text))

    scores = nrc([text], lemmatise=lemmatise)
    for category in CATEGORIES:
        assert sum(category in kind for kind in kinds) == pytest.approx(scores[category][0] * n / 100)
    assert sum(FIRST_PERSON in kind for kind in kinds) == pytest.approx(pronouns([text])["first_person"][0] * n / 100)


def test_later_turns_have_what_they_answer() -> None:
    rows = [
        {"cell_id": cell, "prompt_id": "p0", "sample": 0, "turn": turn, "prompt": said, "reply": f"{cell} {turn}", "joy": 1.5}
        for cell, later in (("one", "And then?"), ("base", "Oh?"))
        for turn, said in ((0, "Hello?"), (1, later))
    ]
    results = pd.DataFrame([{"cell_id": "one", "is_control": False, "primary": "joy", "baseline_id": "base", "joy_delta": 1.0}])
    data = replies(Tables(results, pd.DataFrame(rows), pd.DataFrame()))

    assert data["prompts"] == [["p0", "Hello?"]]
    assert data["groups"]["one"]["prompts"] == data["groups"]["base"]["prompts"] == [0, 0]
    assert data["groups"]["one"]["turns"] == [0, 1]
    assert data["groups"]["one"]["said"] == [None, "And then?"]
    assert data["groups"]["base"]["said"] == [None, "Oh?"]
    assert data["groups"]["one"]["texts"] == ["one 0", "one 1"]


def test_a_mark_says_how_far_how_long_and_what() -> None:
    marker = Marker()
    assert marker.marks("Well, I am happy.") == [6, 1, 0, 4, 5, 1]
    assert marker.kinds == [["first person"], ["joy", "trust", "anticipation", "positive"]]
