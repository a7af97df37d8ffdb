from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from nrclex import NRCLex

from emosteer.scoring.nrc import CATEGORIES, caveats, emotion_words, nrc

if TYPE_CHECKING:
    from pathlib import Path

FILLERS = ["the", "and", "xyzzy", "of", "it", "Paris", "3", "sad", "don't", "wouldn't"]


def lexicon() -> dict[str, list[str]]:
    entries: dict[str, list[str]] = NRCLex().__lexicon__
    return entries


def nrclex_counts(tokens: list[str]) -> dict[str, int]:
    analysis = NRCLex()
    analysis.load_token_list(tokens)
    return {category: analysis.raw_emotion_scores.get(category, 0) for category in CATEGORIES}


def punctuated(tokens: list[str], rng: random.Random) -> str:
    cased = (rng.choice([str.lower, str.upper, str.capitalize])(token) for token in tokens)
    return "".join(token + rng.choice([" ", ", ", "! ", "\n- ", "; “", "… "]) for token in cased)


@pytest.mark.parametrize("seed", range(10))
def test_counts_are_those_of_nrclex(seed: int) -> None:
    rng = random.Random(seed)
    tokens = rng.choices(sorted(lexicon()), k=40) + rng.choices(FILLERS, k=60)
    rng.shuffle(tokens)
    expected = nrclex_counts([token.lower() for token in tokens])
    # 100 words: a rate per 100 words is a count.
    assert nrc([punctuated(tokens, rng)], lemmatise=False) == {c: [float(n)] for c, n in expected.items()}


def test_the_categories_are_the_ones_of_the_lexicon() -> None:
    assert set(CATEGORIES) == {tag for tags in lexicon().values() for tag in tags}
    assert len(CATEGORIES) == 10


def test_rates_of_a_hand_counted_reply() -> None:
    # 8 words; happy: anticipation joy positive trust; music: joy positive sadness; cry: negative sadness; happy again.
    scores = nrc(["Happy music! Don't cry, my very happy table"])
    expected = {"joy": 3, "positive": 3, "sadness": 2, "anticipation": 2, "trust": 2, "negative": 1}
    assert scores == {c: [pytest.approx(100 * expected.get(c, 0) / 8)] for c in CATEGORIES}


def test_plain_words_dilute_a_rate() -> None:
    # 1 word of joy in 1, 2 and 4 words; NRCLex's own frequency would be the same for all three.
    assert nrc(["Love", "The love", "It is the love"])["joy"] == [100.0, 50.0, 25.0]


def test_a_word_counts_as_often_as_it_occurs() -> None:
    # 3 of 4 words.
    assert nrc(["love, love me, love"])["joy"] == [75.0]


def test_an_entry_of_the_lexicon_keeps_its_own_categories_when_lemmatised() -> None:
    entries = lexicon()
    found = emotion_words(" ".join(entries), lemmatise=True)
    assert found == [(word, tuple(c for c in CATEGORIES if c in tags)) for word, tags in entries.items()]


@pytest.mark.parametrize(
    ("form", "lemma"),
    [("loved", "love"), ("mothers", "mother"), ("cries", "cry"), ("best", "good"), ("BETTER", "good")],
)
def test_a_form_that_the_lexicon_lacks_counts_as_its_lemma(form: str, lemma: str) -> None:
    assert form.lower() not in lexicon()
    assert nrc([form]) == nrc([lemma], lemmatise=False)
    assert nrc([form], lemmatise=False) == {category: [0.0] for category in CATEGORIES}


@pytest.mark.parametrize(("form", "lemma"), [("excited", "excite"), ("worse", "wrong")])
def test_the_form_takes_precedence_over_its_lemma(form: str, lemma: str) -> None:
    assert set(lexicon()[form]) != set(lexicon()[lemma])
    assert nrc([form]) == nrc([form], lemmatise=False)


@pytest.mark.parametrize("lemmatise", [True, False])
@pytest.mark.parametrize("form", ["mother's", "mother’s", "MOTHER'S", "mother'll", "'mother'", "mother-", "_mother_"])
def test_a_word_is_found_without_its_ending_and_case(form: str, lemmatise: bool) -> None:
    assert nrc([form], lemmatise=lemmatise) == nrc(["mother"], lemmatise=False)
    assert nrc([form], lemmatise=lemmatise)["joy"] == [100.0]


@pytest.mark.parametrize("word", ["don't", "won’t", "daren't", "https://joy.org/happy", "www.love.com", "joy2", "sad"])
def test_no_category(word: str) -> None:
    # `don` and `wont` are entries of the lexicon, and so is simplemma's `dare`; `sad` is none.
    assert nrc([word]) == {category: [0.0] for category in CATEGORIES}


def test_emotion_words_are_shown_as_written_and_in_order() -> None:
    reply = "The Mother’s LOVE, and the best of cries."
    good = ("joy", "trust", "anticipation", "surprise", "positive")
    mother = ("joy", "sadness", "trust", "anticipation", "positive", "negative")
    shown = [("Mother's", mother), ("LOVE", ("joy", "positive")), ("best", good), ("cries", ("sadness", "negative"))]
    assert emotion_words(reply) == shown
    assert emotion_words(reply, lemmatise=False) == shown[:2]
    assert emotion_words("") == []


def run_python(code: str) -> str:
    """What a fresh interpreter, whose lexicon is not loaded yet, says about `code` on its error stream."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


def test_the_lexicon_is_read_without_importing_nrclex() -> None:
    code = (
        "import sys; from emosteer.scoring.nrc import nrc; assert nrc(['joy'])['joy'] == [100.0]; "
        "assert not {'nrclex', 'textblob', 'torch'} & set(sys.modules)"
    )
    assert run_python(code) == ""


def test_a_missing_lexicon_is_named() -> None:
    said = run_python("import sys; sys.modules['nrclex'] = None; from emosteer.scoring.nrc import nrc; nrc(['joy'])")
    assert "ModuleNotFoundError: the NRC lexicon comes with the package NRCLex" in said


def test_a_lexicon_with_other_categories_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nrclex" / "data").mkdir(parents=True)
    (tmp_path / "nrclex" / "__init__.py").touch()
    (tmp_path / "nrclex" / "data" / "nrc_en.json").write_text('{"hope": ["joy", "anticip"]}')
    said = run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import emosteer.scoring.nrc as m; m.nrc(['hope'])")
    assert "EmosteerError" in said
    assert "unknown categories ['anticip']" in said


def test_negated_words_are_left_out_on_demand() -> None:
    replies = ["I am not very happy.", "No joy here", "No, joy it is", "I don’t feel any love", "not one two three love"]
    assert nrc(replies)["joy"] == [20.0, pytest.approx(100 / 3), 25.0, 20.0, 20.0]
    assert nrc(replies, negation=True)["joy"] == [0.0, 0.0, 25.0, 0.0, 20.0]
    assert caveats(replies)["negated"] == [20.0, pytest.approx(100 / 3), 0.0, 20.0, 0.0]


def test_a_reply_that_comes_to_its_emotions_by_one_word() -> None:
    replies = ["Love, love, LOVE'S music", "love love music", "love love love music music cry", "the the the", ""]
    assert caveats(replies)["one_word"] == [1.0, 0.0, 0.0, 0.0, 0.0]
