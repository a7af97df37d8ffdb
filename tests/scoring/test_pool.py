"""Cells whose replies are measured together have the values that they have alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from made_up_sweep import SCORERS
from tiny_models import random_tokens, tiny_model

from emosteer.engine import Engine
from emosteer.errors import Damaged, EmosteerError
from emosteer.scoring.pool import CellReplies, measure_together
from emosteer.scoring.scorer import Context, Scorer, Scores, find_scorers, versioned

WORDS = ("I", "we're", "happy", "sad", "the garden", "lovely!", "no, not", "don't", "\U0001f600", "US", "3.5kg", "awful")


def no_model() -> Context:
    raise AssertionError("it asks for no model")


def scorer(function: Callable[..., Scores], **options: Any) -> Scorer:
    return Scorer("mine", "my.scorer", options, 1, function)


def made_up_cells(seed: int) -> list[CellReplies]:
    """Cells of different sizes whose replies repeat within and across cells, an empty one among them."""
    chance = random.Random(seed)
    replies = ["", *(" ".join(chance.choices(WORDS, k=chance.randint(1, 9))) for _ in range(6))]
    return [CellReplies(chance.choices(replies, k=n), no_model) for n in (5, 1, 8, 0, 5)]


@pytest.mark.parametrize("name", [name for name in SCORERS if name != "perplexity"])
@pytest.mark.parametrize("seed", range(3))
def test_shipped_scorers_say_the_same_of_each_cell_alone(name: str, seed: int) -> None:
    (shipped,) = find_scorers({name: SCORERS[name]})
    cells = made_up_cells(seed)
    assert list(measure_together(shipped, cells)) == [shipped.measure(cell.texts, no_model) for cell in cells]


def test_all_shipped_scorers_are_per_reply_but_the_one_that_compares_replies() -> None:
    assert [one.name for one in find_scorers(SCORERS) if not one.is_per_reply] == ["duplication"]


def test_perplexity_is_that_of_each_cell_alone() -> None:
    (perplexity,) = find_scorers({"perplexity": SCORERS["perplexity"]})
    engine = Engine(tiny_model())
    prompts, replies = random_tokens(4, 9, 2, seed=1), [*random_tokens(7, 1, 12, 5, 3, seed=2), ()]
    chance = random.Random(0)

    def cell(n: int) -> CellReplies:
        own = [(chance.choice(prompts), chance.choice(replies)) for _ in range(n)]
        return CellReplies(
            [str(reply) for _, reply in own], lambda: Context(engine, [prompt for prompt, _ in own], [reply for _, reply in own])
        )

    cells = [cell(n) for n in (6, 2, 9)]
    together = list(measure_together(perplexity, cells))
    for one, found in zip(cells, together, strict=True):
        assert isinstance(found, dict)
        # The last of four digits may be another where padding moves a value over its edge.
        assert found["perplexity"] == pytest.approx(perplexity.measure(one.texts, one.context)["perplexity"], rel=2e-3, nan_ok=True)
    assert any(math.isnan(value) for found in together if isinstance(found, dict) for value in found["perplexity"])


def test_one_call_brings_each_reply_once() -> None:
    calls: list[list[str]] = []

    @versioned(1, per_reply=True)
    def length(replies: Sequence[str]) -> Scores:
        calls.append(list(replies))
        return {"length": [len(reply) if reply else math.nan for reply in replies]}

    cells = [CellReplies(["a", "bb", "a"], no_model), CellReplies(["bb", ""], no_model), CellReplies([], no_model)]
    one, other, none = measure_together(scorer(length), cells)
    assert calls == [["a", "bb", ""]]
    assert one == {"length": [1.0, 2.0, 1.0]}
    assert isinstance(other, dict)
    assert other["length"][0] == 2.0
    assert math.isnan(other["length"][1])
    assert none == {"length": []}


def test_equal_texts_of_other_tokens_are_other_replies() -> None:
    """Two prompts, and two ways to write one text in tokens."""
    engine = Engine(tiny_model())
    asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    @versioned(1, per_reply=True)
    def place(replies: Sequence[str], *, context: Context) -> Scores:
        assert context.engine is engine
        assert (context.turns, context.said) == ([], []), "those of one cell would be another's"
        asked.extend(zip(context.prompts, context.replies, strict=True))
        return {"place": [float(100 * prompt[0] + reply[0]) for prompt, reply in zip(context.prompts, context.replies, strict=True)]}

    def cell(prompt: int, *replies: int) -> CellReplies:
        return CellReplies(
            ["same"] * len(replies),
            lambda: Context(engine, [(prompt,)] * len(replies), [(r,) for r in replies], [0] * len(replies), [""] * len(replies)),
        )

    found = list(measure_together(scorer(place), [cell(1, 5, 6), cell(2, 5), cell(1, 6)]))
    assert found == [{"place": [105.0, 106.0]}, {"place": [205.0]}, {"place": [106.0]}]
    assert len(asked) == 3


def test_one_that_says_nothing_sees_one_cell_at_a_time() -> None:
    calls: list[list[str]] = []

    def rank(replies: Sequence[str]) -> Scores:
        calls.append(list(replies))
        return {"rank": [float(sorted(replies).index(reply)) for reply in replies]}

    cells = [CellReplies(["b", "a"], no_model), CellReplies(["b", "b"], no_model)]
    assert list(measure_together(scorer(rank), cells)) == [{"rank": [1.0, 0.0]}, {"rank": [0.0, 0.0]}]
    assert calls == [["b", "a"], ["b", "b"]]


@pytest.mark.parametrize("bad", ["raise", "short"])
def test_a_reply_that_cannot_be_measured_fails_its_cell_alone(bad: str) -> None:
    @versioned(1, per_reply=True)
    def picky(replies: Sequence[str]) -> Scores:
        if "bad" in replies and bad == "raise":
            raise ValueError("bad reply")
        return {"length": [float(len(reply)) for reply in replies if reply != "bad"]}

    cells = [CellReplies(texts, no_model) for texts in (["good"], ["a", "bad"], ["a"])]
    one, other, last = measure_together(scorer(picky), cells)
    assert one == {"length": [4.0]}
    assert last == {"length": [1.0]}
    assert isinstance(other, ValueError if bad == "raise" else EmosteerError)
    assert ("bad reply" if bad == "raise" else "1 values for 2 replies") in str(other)


def test_damaged_prompts_are_no_cells_fault() -> None:
    def damaged() -> Context:
        raise Damaged("texts were edited")

    for is_per_reply in (True, False):

        @versioned(1, per_reply=is_per_reply)
        def needs(replies: Sequence[str], *, context: Context) -> Scores:
            return {"n": [0.0 for _ in context.replies]}

        with pytest.raises(Damaged):
            list(measure_together(scorer(needs), [CellReplies(["a"], damaged)] * 2))


def test_the_key_does_not_hang_on_it() -> None:
    """Scores that are stored stay valid when a scorer says that it is per reply."""

    def plain(replies: Sequence[str]) -> Scores:
        return {"none": [0.0 for _ in replies]}

    @versioned(1, per_reply=True)
    def pooled(replies: Sequence[str]) -> Scores:
        return {"none": [0.0 for _ in replies]}

    assert scorer(plain).key == scorer(pooled).key
    assert scorer(pooled).is_per_reply
    assert not scorer(plain).is_per_reply
