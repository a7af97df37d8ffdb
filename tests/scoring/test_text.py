from __future__ import annotations

import random
import time
import unicodedata
from typing import TYPE_CHECKING

import pytest

from emosteer.scoring.fluency import distinct, duplication, repetition, words
from emosteer.scoring.nrc import CATEGORIES, caveats, nrc
from emosteer.scoring.pronouns import pronouns
from emosteer.scoring.sentiment import sentiment
from emosteer.scoring.text import are_negated, per_hundred_words, split_words, without_clitics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from emosteer.scoring.scorer import Scores

METRICS_OF: dict[Callable[[Sequence[str]], Scores], set[str]] = {
    nrc: set(CATEGORIES),
    sentiment: {"sentiment"},
    pronouns: {"first_person", "first_person_singular", "first_person_plural"},
    words: {"words"},
    repetition: {"repetition"},
    distinct: {"distinct_1", "distinct_2"},
    duplication: {"duplication"},
    caveats: {"negated", "one_word"},
}
SCORERS = pytest.mark.parametrize("scorer", METRICS_OF, ids=lambda scorer: scorer.__name__)

NASTY = [
    "",
    " \t\n\u00a0\u2003",
    "😀🎉❤️👨\u200d👩\u200d👧",
    "...!!??—…",
    "I",
    "happy",
    "'",
    "''''s",
    "’s",
    "12345",
    "1. Joy\n2. Trust\n- us\n\n* me",
    "https://example.com/happy?mother=love#joy",
    "我很高兴，我们也是。",
    "Я очень рад, мы тоже!",
    "مرحبا يا صديقي، أنا سعيد",
    "אֲנִי שָׂמֵחַ",
    "हिन्दी में बहुत खुश हूँ",
    "می\u200cخواهم",
    "e\u0301tude cafe\u0301",
    "\u0301\u0301",
    "z" + "\u0335" * 200 + "algo",
    "\x00\x1b[31m\ud800",
    "İstanbul ẞ ﬁne",
    "a" * 5000,
    "joy " * 500,
    "I'd've we'll let's US us",
    "HELP US NOW",
    "**bold** _italic_ `code` <b>joy</b> &amp;",
    "\ufefffirst hap\u00adpy",
]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("", []),
        (" \n\t\u00a0", []),
        ("... ?! — * ' ’", []),
        ("🙂🙂 👍🏽 👨\u200d👩\u200d👧 ❤️", []),
        ("Hello, world!", ["Hello", "world"]),
        ("one\ntwo\r\nthree\tfour", ["one", "two", "three", "four"]),
        ("don't I'd've rock'n'roll", ["don't", "I'd've", "rock'n'roll"]),
        ("'happy' the dogs' tails, 'tis singin'", ["happy", "the", "dogs", "tails", "tis", "singin"]),
        ("“I’m ‘so’ happy”", ["I'm", "so", "happy"]),
        ("I\u02bcm I\uff07m", ["I'm", "I'm"]),
        ("well-being and/or joy—truly", ["well", "being", "and", "or", "joy", "truly"]),
        ("_happy_ **glad** #joy snake_case", ["happy", "glad", "joy", "snake", "case"]),
        ("3 of 1,000 at 10:30, 3.5kg, 2nd, 24/7.", ["3", "of", "1,000", "at", "10:30", "3.5kg", "2nd", "24/7"]),
        ("1. Smile\n2) Wave\n- Bow", ["1", "Smile", "2", "Wave", "Bow"]),
        ("i.e. in the U.S., at 5 p.m.", ["i.e", "in", "the", "U.S", "at", "5", "p.m"]),
        ("It is.I think so do I.Yes", ["It", "is", "I", "think", "so", "do", "I", "Yes"]),
        ("See https://a.io/x-y/joy?z=1, ok", ["See", "https://a.io/x-y/joy?z=1", "ok"]),
        ("[fun](HTTP://a.io/love). www.joy.org!", ["fun", "HTTP://a.io/love", "www.joy.org"]),
        ("(see https://a.io)or <www.joy.org>or", ["see", "https://a.io", "or", "www.joy.org", "or"]),
        ("http:// www. joy", ["http", "www", "joy"]),
        ("Привет, как дела?", ["Привет", "как", "дела"]),
        ("我很高兴，谢谢", ["我很高兴", "谢谢"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("x\u0335\u0336y z", ["x\u0335\u0336y", "z"]),
        ("hap\u00adpy glad\u2060ly \ufeffjoy", ["happy", "gladly", "joy"]),
    ],
)
def test_words_of_a_reply(reply: str, expected: list[str]) -> None:
    assert split_words(reply) == [unicodedata.normalize("NFC", word) for word in expected]


def test_a_word_does_not_depend_on_how_its_accents_are_encoded() -> None:
    word = "crème brûlée naïve"
    assert split_words(unicodedata.normalize("NFD", word)) == split_words(unicodedata.normalize("NFC", word))
    assert split_words(unicodedata.normalize("NFD", word)) == ["crème", "brûlée", "naïve"]


def test_every_mark_of_unicode_continues_a_word() -> None:
    marks = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)).startswith("M")]
    expected = [unicodedata.normalize("NFC", f"q{mark}q") for mark in marks]
    assert split_words(" ".join(f"q{mark}q" for mark in marks)) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("mother's", "mother"),
        ("MOTHER'S", "MOTHER"),
        ("I'd've", "I"),
        ("I'm", "I"),
        ("we're", "we"),
        ("she'll", "she"),
        ("won't", "won't"),
        ("o'clock", "o'clock"),
        ("rock'n'roll", "rock'n'roll"),
        ("ants", "ants"),
    ],
)
def test_clitics(word: str, expected: str) -> None:
    assert without_clitics(word) == expected


def test_per_hundred_words() -> None:
    assert per_hundred_words(3, 12) == pytest.approx(25.0)
    assert per_hundred_words(0, 0) == 0.0


@pytest.mark.parametrize("piece", ["a", "a.", "1", "1,", "a'", "www.", "http://", "\u0301", "a\u0301", "-", "1a.'"])
def test_time_grows_linearly_with_the_reply(piece: str) -> None:
    reply = piece * 100_000
    start = time.process_time()
    split_words(reply)
    # Linear takes hundredths of a second; quadratic would take minutes.
    assert time.process_time() - start < 5


@SCORERS
def test_every_scorer_gives_one_finite_value_per_reply(scorer: Callable[[Sequence[str]], Scores]) -> None:
    scores = scorer(NASTY)
    assert set(scores) == METRICS_OF[scorer]
    for values in scores.values():
        assert len(values) == len(NASTY)
        assert all(type(value) is float and abs(value) < float("inf") for value in values)


@SCORERS
def test_no_replies_no_values(scorer: Callable[[Sequence[str]], Scores]) -> None:
    assert scorer([]) == {metric: [] for metric in METRICS_OF[scorer]}


@SCORERS
def test_order_of_the_replies_does_not_matter(scorer: Callable[[Sequence[str]], Scores]) -> None:
    backwards = {metric: values[::-1] for metric, values in scorer(NASTY[::-1]).items()}
    assert backwards == scorer(NASTY)


@pytest.mark.parametrize("scorer", [s for s in METRICS_OF if s is not duplication], ids=lambda scorer: scorer.__name__)
def test_a_reply_scores_the_same_alone(scorer: Callable[[Sequence[str]], Scores]) -> None:
    together = scorer(NASTY)
    for index, reply in enumerate(NASTY):
        assert scorer([reply]) == {metric: [values[index]] for metric, values in together.items()}


@pytest.mark.parametrize("reply", ["", " \n", "🙂", "...", "—"])
def test_a_reply_without_words_has_rates_of_zero(reply: str) -> None:
    scorers = [nrc, pronouns, words, repetition, duplication]
    assert {value for scorer in scorers for values in scorer([reply]).values() for value in values} == {0.0}


@SCORERS
def test_a_scorer_carries_its_version(scorer: Callable[[Sequence[str]], Scores]) -> None:
    version = vars(scorer)["version"]
    assert type(version) is int
    assert version >= 1


@pytest.mark.parametrize("seed", range(20))
def test_there_is_a_word_on_negation_for_every_word(seed: int) -> None:
    rng = random.Random(seed)
    reply = "".join(
        rng.choice(["not ", "happy", "n't", "don’t ", ", ", ".", "\n", " 1,000 ", "U.S. ", "… ", ") ", "été"]) for _ in range(60)
    )
    assert len(are_negated(reply)) == len(split_words(reply))


def test_a_negation_reaches_three_words_and_not_beyond_its_clause() -> None:
    assert are_negated("I cannot a b c d") == [False, False, True, True, True, False]
    assert are_negated("not a, b") == [False, True, False]
    assert are_negated("NEVER mind (not me) you") == [False, True, False, True, False]
    assert are_negated("Nothing\nhappy") == [False, False]
