"""What a sweeper that searches is told of a cell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest

from emosteer.config import ObjectiveConfig
from emosteer.errors import EmosteerError
from emosteer.objective import objective_values
from emosteer.tables import Tables


@dataclass(frozen=True)
class Named:
    """Stands for a cell, of which only the id counts here."""

    id: str


CELLS: Any = [Named("good"), Named("better"), Named("over"), Named("far over"), Named("unknown")]
RESULTS = pd.DataFrame(
    {
        "cell_id": [cell.id for cell in CELLS],
        "joy_beyond_random": [1.0, 2.0, 30.0, 300.0, 5.0],
        "perplexity_ratio": [0.9, 1.3, 1.4, 5.0, math.nan],
    }
)
TABLES = Tables(RESULTS, pd.DataFrame(), pd.DataFrame())


def test_without_an_objective_it_is_the_id() -> None:
    assert objective_values(TABLES, CELLS[:2], ObjectiveConfig()) == ["good", "better"]


def test_within_the_limits_it_is_the_value_and_over_them_worse_than_any() -> None:
    values = objective_values(TABLES, CELLS, ObjectiveConfig("joy_beyond_random", at_most={"perplexity_ratio": 1.3}))

    good, better, over, far_over, unknown = map(float, values)
    assert (good, better) == (1.0, 2.0)
    assert better > good > over > far_over, "the further over a limit, the worse"
    assert unknown < good
    assert over == pytest.approx(-1000 * (1 + 0.1 / 1.3))


def test_to_minimise_a_cell_over_the_limits_is_the_largest() -> None:
    objective = ObjectiveConfig("joy_beyond_random", "minimize", {"perplexity_ratio": 1.3})

    good, better, over, far_over, _ = map(float, objective_values(TABLES, CELLS, objective))
    assert (good, better) == (1.0, 2.0)
    assert far_over > over > better


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        (ObjectiveConfig("joy_beyond"), "objective.column=joy_beyond: results have no such column; for example joy_beyond_random"),
        (ObjectiveConfig("joy_beyond_random", at_most={"speed": 1}), "objective.at_most=speed: results have no such column"),
        (ObjectiveConfig("perplexity_ratio"), "objective.column=perplexity_ratio: cell unknown has no number there"),
    ],
)
def test_what_is_not_there_is_told(objective: ObjectiveConfig, told: str) -> None:
    with pytest.raises(EmosteerError) as raised:
        objective_values(TABLES, CELLS, objective)

    assert str(raised.value).startswith(told)
