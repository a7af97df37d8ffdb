"""The control table, from results that are made up."""

from __future__ import annotations

import pandas as pd
from controls import table


def row(method: str, coefficient: float | None, joy: float, kl: float = 0.1) -> dict[str, object]:
    return {
        "vector_method": method,
        "layers": None if coefficient is None else "9",
        "coefficient": coefficient,
        "joy_delta": joy,
        "joy_p": 0.0312,
        "first_person_delta": -joy,
        "first_person_p": 0.5,
        "perplexity_ratio": 1 + kl,
        "kl_steered": kl,
    }


def test_each_control_stands_below_its_cell_and_several_as_their_mean_and_range() -> None:
    results = pd.DataFrame(
        [
            row("negative", -0.1, -1.0),
            *(row("random", 0.1, joy, kl) for joy, kl in ((0.5, 0.1), (-1.0, 0.2), (2.0, 0.6))),
            row("mean_difference", 0.2, 5.0),
            row("prompting", None, 2.0, 0.4),
            row("mean_difference", 0.1, 3.0),
            {**row("mean_difference", 0.1, 1.0), "layers": "13"},
        ]
    )
    _, _, *lines = table(results)
    assert lines == [
        "| 9 | 0.1 | joy's vector | +3.0 (p 0.031) | -3.0 (p 0.500) | 1.10 | 0.10 |",
        "| 9 | 0.1 | random direction, 3 | +0.5 (-1.0 to +2.0) | -0.5 (-2.0 to +1.0) | 1.30 (1.10 to 1.60) | 0.30 (0.10 to 0.60) |",
        "| 9 | 0.1 | other sign | -1.0 (p 0.031) | +1.0 (p 0.500) | 1.10 | 0.10 |",
        "| 9 | 0.2 | joy's vector | +5.0 (p 0.031) | -5.0 (p 0.500) | 1.10 | 0.10 |",
        "| 13 | 0.1 | joy's vector | +1.0 (p 0.031) | -1.0 (p 0.500) | 1.10 | 0.10 |",
        "|  |  | asked to feel joy | +2.0 (p 0.031) | -2.0 (p 0.500) | 1.40 | 0.40 |",
    ]
