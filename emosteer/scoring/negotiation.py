"""How a negotiation ended, read from what both sides said by fixed rules: whether they agreed, and on how much.

Rules, not a judge, so that the same dialogue always ends the same way. They miss agreements in other words than these, and take an
amount for what it says; who wants more adds a judge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from emosteer.scoring.scorer import Context, Scores, versioned

AMOUNT = re.compile(r"[€$£]\s?(\d[\d,]*(?:\.\d+)?)|(\d[\d,]*(?:\.\d+)?)\s?(?:[€$£]|(?:euro|dollar|pound|buck)s?\b)", re.IGNORECASE)
"""A number beside a currency."""
ACCEPTS = re.compile(
    r"^\W*(?:(?:ok|okay|yes|well|fine|great|good|alright|right|then)\W+){0,2}(?:(?:it|that)['’]?s a deal|a deal|deal|agreed|sold)\W*$"
    r"|\b(?:(?:we|you)(?:['’]ve got| have) (?:a deal|an agreement)|i(?:['’]ll| will| can)? accept|i(?:['’]ll| will) take it)\b",
    re.IGNORECASE,
)
"""A sentence by which one side accepts: nothing but a word for it, or these within others."""
DECLINES = re.compile(r"\b(?:no|not|never|cannot|nor|if|unless|until|would|could|once|before)\b|n['’]t\b", re.IGNORECASE)
"""A sentence with one of these accepts nothing, or not yet."""
ENDS = re.compile(r"(?<=[!?\n])|(?<=\.)(?!\d)")
"""Between sentences; not the point of a decimal."""

Spoken = tuple[bool, str]
"""Whether the model itself said it, and what."""


def amounts(text: str) -> list[float]:
    """The sums of money that a text names, in their order."""
    return [float((before or after).replace(",", "")) for before, after in AMOUNT.findall(text)]


def accepts(text: str) -> bool:
    """Whether a text accepts what was offered: a sentence with a word of acceptance, which neither asks, denies nor conditions."""
    return any(
        ACCEPTS.search(sentence) and not DECLINES.search(sentence) and not sentence.rstrip().endswith("?")
        for sentence in ENDS.split(text)
    )


@versioned(1)
def negotiation(replies: Sequence[str], *, context: Context) -> Scores:
    """agreed, price and offer of each dialogue, at its last reply; NaN at the others, so that a dialogue counts once.

    `agreed`: 1.0 where either side accepts, after the first message, else 0.0. `price`: the amount named last when it was accepted;
    NaN without an agreement, or where nobody named one. `offer`: the amount that the model itself named last; NaN for none.

    Args:
        replies: the model's, all of a cell.
        context: says which turns they are, and what they answer.
    """
    scores: Scores = {"agreed": [], "price": [], "offer": []}
    for dialogue in _dialogues(replies, context):
        agreed, price = _outcome(dialogue)
        own = [amount for is_own, text in dialogue if is_own for amount in amounts(text)]
        earlier = [math.nan] * (sum(is_own for is_own, _ in dialogue) - 1)
        for metric, value in (("agreed", agreed), ("price", price), ("offer", own[-1] if own else math.nan)):
            scores[metric] += [*earlier, value]
    return scores


def _dialogues(replies: Sequence[str], context: Context) -> Iterator[list[Spoken]]:
    begins = [number for number, turn in enumerate(context.turns) if turn == 0]
    for start, stop in zip(begins, [*begins[1:], len(replies)], strict=True):
        yield [spoken for n in range(start, stop) for spoken in ((False, context.said[n]), (True, replies[n]))]


def _outcome(dialogue: Sequence[Spoken]) -> tuple[float, float]:
    """Whether they agreed, and the price."""
    named = math.nan
    for number, (_, text) in enumerate(dialogue):
        named = next(reversed(amounts(text)), named)
        if number and accepts(text):
            return 1.0, named
    return 0.0, math.nan
