from __future__ import annotations

import random

import pytest

from emosteer.errors import EmosteerError
from emosteer.scoring.fluency import distinct, duplication, repetition, words


def repetition_by_hand(tokens: list[str], n: int) -> float:
    """Share of the n-grams for which an equal one starts further to the left, found by comparing all pairs."""
    starts = range(len(tokens) - n + 1)
    seen = [any(tokens[i : i + n] == tokens[j : j + n] for j in range(i)) for i in starts]
    return sum(seen) / len(seen) if seen else 0.0


def test_number_of_words() -> None:
    replies = ["", "  ", "🙂", "Yes.", "I don't know, well-being?", "1,000 joys\n- two"]
    assert words(replies) == {"words": [0.0, 0.0, 0.0, 1.0, 5.0, 3.0]}


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_repetition_agrees_with_comparing_all_pairs(n: int) -> None:
    rng = random.Random(n)
    lists = [rng.choices("abc", k=rng.randrange(0, 40)) for _ in range(50)]
    values = repetition([" ".join(tokens) for tokens in lists], n=n)["repetition"]
    assert values == pytest.approx([repetition_by_hand(tokens, n) for tokens in lists])


def test_hand_counted_repetition() -> None:
    # "so very happy" starts at words 1 and 4: of the 4 runs of three, 1 occurred before. Case and commas do not matter.
    assert repetition(["So very happy, so VERY happy!"])["repetition"] == [pytest.approx(0.25)]
    assert repetition(["joy " * 10]) == {"repetition": [pytest.approx(7 / 8)]}


@pytest.mark.parametrize("reply", ["", "🙂 🙂 🙂", "no", "no no", "one two three"])
def test_a_short_reply_does_not_repeat(reply: str) -> None:
    assert repetition([reply]) == {"repetition": [0.0]}


@pytest.mark.parametrize("n", [0, -1])
def test_repetition_needs_a_length(n: int) -> None:
    with pytest.raises(EmosteerError, match=f"n is {n}"):
        repetition(["a b c"], n=n)


def test_duplication_is_of_the_first_four_words() -> None:
    replies = [
        "I am so happy today",
        "Nothing in common",
        "I AM SO HAPPY, and you?",
        "I am so sad today",
        "Oh, I am so happy today",
    ]
    assert duplication(replies) == {"duplication": [1.0, 0.0, 1.0, 0.0, 0.0]}
    assert duplication(replies, first=3) == {"duplication": [1.0, 0.0, 1.0, 1.0, 0.0]}
    assert duplication(replies, first=5) == {"duplication": [0.0, 0.0, 0.0, 0.0, 0.0]}


def test_a_short_reply_is_duplicated_by_an_equal_one_only() -> None:
    assert duplication(["I am", "I am so happy", "i am!", "I"]) == {"duplication": [1.0, 0.0, 1.0, 0.0]}


def test_replies_without_words_duplicate_one_another() -> None:
    assert duplication(["", "Yes", " ", "🙂"]) == {"duplication": [1.0, 0.0, 1.0, 1.0]}
    assert duplication(["", "Yes"]) == {"duplication": [0.0, 0.0]}


@pytest.mark.parametrize("first", [0, -3])
def test_duplication_needs_a_length(first: int) -> None:
    with pytest.raises(EmosteerError, match=f"first is {first}"):
        duplication(["a", "b"], first=first)


def test_distinct_words_and_pairs_by_hand() -> None:
    # 6 words, of which the, cat, sat, on are distinct; the 5 pairs are all distinct. "no no no" has one pair, twice.
    scores = distinct(["The cat sat on the cat", "no no no", "no", ""])
    assert scores["distinct_1"] == [pytest.approx(4 / 6), pytest.approx(1 / 3), 1.0, 1.0]
    assert scores["distinct_2"] == [pytest.approx(4 / 5), pytest.approx(1 / 2), 1.0, 1.0]
