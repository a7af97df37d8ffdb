"""How the report writes numbers, units and what others have written."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd

UNITS = {
    **dict.fromkeys(
        ("joy", "sadness", "trust", "disgust", "anger", "fear", "anticipation", "surprise", "positive", "negative", "negated"),
        "words per 100",
    ),
    **dict.fromkeys(("first_person", "first_person_singular", "first_person_plural"), "words per 100"),
    "words": "words",
    "sentiment": "-1 to 1",
    **dict.fromkeys(("repetition", "distinct_1", "distinct_2", "duplication", "one_word"), "share"),
}
"""Of the shipped metrics; another one is shown without."""
FINE = ("share", "-1 to 1")
"""Units whose numbers are shown with two more digits."""
WIDE = 0.5
"""A correlation's interval that is longer is called wide: a quarter of what there is from -1 to 1."""
CONTROL_PICTURES = 0x2400
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: object) -> str:
    """Text with every control character but line break and tab as a visible sign, so that none acts on the page or is overlooked."""
    return _CONTROLS.sub(_picture, str(text).replace("\r\n", "\n"))


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(CONTROL_PICTURES + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def digits_of(metric: str) -> int:
    """After how many decimals a metric's numbers are rounded in a sentence."""
    return 3 if UNITS.get(metric) in FINE else 1


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign."""
    return "not computed" if math.isnan(value) else f"{value:+.{digits}f}".replace("-", "\u2212")


def interval(low: float, high: float, digits: int = 1) -> str:
    """The ends of an interval."""
    return "" if math.isnan(low) or math.isnan(high) else f"[{signed(low, digits)}, {signed(high, digits)}]"


def probability(name: str, value: float) -> str:
    """A p or q with its name."""
    if math.isnan(value):
        return f"{name} not computed"
    return f"{name} < .001" if value < 0.001 else f"{name} = {value:.3f}".replace("0.", ".", 1)


def left_open(low: float, high: float) -> str:
    """What its interval leaves open of a correlation, as a sentence; empty where it is narrow and on one side of 0."""
    if math.isnan(low) or math.isnan(high):
        return "There is no interval."
    is_wide = high - low > WIDE
    if low <= 0 <= high:
        return "The interval includes 0 and is wide." if is_wide else "The interval includes 0."
    return "The interval is wide." if is_wide else ""


def number(value: Any) -> float:
    """A table's number; NaN where there is none."""
    return math.nan if pd.isna(value) else float(value)


def count(n: int, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
