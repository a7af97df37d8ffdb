"""The rule of docs/replication.md, on tables whose truth is written in them."""

from __future__ import annotations

import pandas as pd
import pytest
from replication import judge


def a_cell(
    *, q: float = 0.01, beyond_q: float = 0.01, ratio: float = 1.1, first_q: float = 0.5, first_beyond_q: float = 0.5
) -> dict[str, object]:
    return {
        "pair": "joy_sadness",
        "perplexity_ratio": ratio,
        "duplication_steered": 0.1,
        "joy_delta": 2.0,
        "joy_q": q,
        "joy_beyond_random": 1.0,
        "joy_beyond_random_q": beyond_q,
        "first_person_delta": 1.0,
        "first_person_q": first_q,
        "first_person_beyond_random": 0.5,
        "first_person_beyond_random_q": first_beyond_q,
    }


def verdicts(*cells: dict[str, object], confirmed: float = 1.0, p: float = 0.001) -> list[str]:
    row = {"pair": "joy_sadness", "primary": "joy", "confirmed": confirmed, "ci_low": confirmed - 1, "ci_high": confirmed + 1, "p": p}
    other = {**row, "pair": "trust_disgust", "primary": "joy", "p": 0.04}
    return [one.verdict for one in judge(pd.DataFrame(cells), pd.DataFrame([row, other]))][:2]


@pytest.mark.parametrize(
    ("cell", "confirmed", "expected"),
    [
        ({}, {}, "reproduced"),
        ({"beyond_q": 0.2}, {}, "rises, but not beyond a random push"),
        ({"q": 0.2}, {}, "rises, but not beyond a random push"),
        ({"ratio": 1.6}, {}, "rises, but not beyond a random push"),
        ({}, {"p": 0.03}, "not shown"),  # twice that by Holm
        ({}, {"confirmed": -1.0}, "not shown"),
    ],
)
def test_an_emotion_rises_only_where_confirmed_and_beyond_a_push(
    cell: dict[str, float], confirmed: dict[str, float], expected: str
) -> None:
    assert verdicts(a_cell(**cell), **confirmed)[0] == expected


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ({}, "not shown"),
        ({"first_q": 0.01}, "rises, but not beyond a random push"),
        ({"first_q": 0.01, "first_beyond_q": 0.01}, "reproduced"),
        ({"first_q": 0.01, "first_beyond_q": 0.01, "ratio": 1.6}, "not shown"),
    ],
)
def test_the_first_person_rises_only_in_a_readable_cell_beyond_a_push(cell: dict[str, float], expected: str) -> None:
    assert verdicts(a_cell(**cell))[1] == expected
