"""The number that a sweeper which searches (Optuna) is told of a cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from emosteer.config import ObjectiveConfig
from emosteer.errors import EmosteerError
from emosteer.records.cell import Cell
from emosteer.tables import Tables

OVER_LIMIT = 1000.0
"""A cell over a limit is so far below every effect that no search chooses it."""


def objective_values(tables: Tables, cells: Sequence[Cell], objective: ObjectiveConfig) -> list[float] | list[str]:
    """What a sweeper gets for each cell: its id where no objective is declared, else a number.

    Within all limits it is the cell's value in `objective.column`. Over one it is -1000 * (1 + excess) (1000 * (1 + excess) to
    minimise), with the excess over the limits as a share of them: the further over, the worse, so that the search finds back.

    Raises:
        EmosteerError: results have no such column, or no number for a cell.
    """
    if objective.column is None:
        return [cell.id for cell in cells]
    for key, column in (("objective.column", objective.column), *(("objective.at_most", name) for name in objective.at_most)):
        if column not in tables.results:
            numbers = [name for name in map(str, tables.results) if name.endswith(("_delta", "_beyond_random", "_ratio"))]
            raise EmosteerError(f"{key}={column}: results have no such column; for example {', '.join(numbers)}")
    rows = tables.results.set_index("cell_id")
    return [_value(rows.loc[cell.id], objective) for cell in cells]


def _value(row: Any, objective: ObjectiveConfig) -> float:
    value = float(row[str(objective.column)])
    if math.isnan(value):
        raise EmosteerError(f"objective.column={objective.column}: cell {row.name} has no number there")
    excess = sum(_excess(float(row[column]), limit) for column, limit in objective.at_most.items())
    if excess == 0:
        return value
    return (-1 if objective.direction == "maximize" else 1) * OVER_LIMIT * (1 + excess)


def _excess(value: float, limit: float) -> float:
    """How far over the limit, as a share of it; a value that is not known counts as twice the limit."""
    if math.isnan(value):
        return 1.0
    return max(0.0, value - limit) / max(abs(limit), 1e-9)
