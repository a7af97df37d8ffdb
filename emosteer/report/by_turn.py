"""The report's dialogues: what a cell does to each of their replies, in words, and the numbers that the script draws."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from emosteer.report.answers import Answer, place
from emosteer.report.grid import plain
from emosteer.report.words import UNITS, count, digits_of, interval, number, signed
from emosteer.tables import Tables

MEASURES = ("n", "baseline", "steered", "delta", "ci_low", "ci_high")


@dataclass(frozen=True)
class ByTurn:
    """The cell that an answer is about, over the replies of its dialogues."""

    pair: str
    where: str
    cell_id: str
    metric: str
    sentence: str


def turn_numbers(tables: Tables) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """Plain data: cell id -> metric -> measure -> its value at each turn, from the first on."""
    turns = tables.turns
    found: dict[str, dict[str, dict[str, list[Any]]]] = {}
    if turns.empty:
        return found
    columns = {measure: plain(turns[measure]) for measure in MEASURES}
    for i, (cell_id, metric) in enumerate(zip(turns["cell_id"], turns["metric"], strict=True)):
        own = found.setdefault(cell_id, {}).setdefault(metric, {measure: [] for measure in MEASURES})
        for measure, values in columns.items():
            own[measure].append(values[i])
    return found


def by_turn(tables: Tables, answers: Iterable[Answer]) -> list[ByTurn]:
    """One for each answer about a cell whose dialogues have several replies."""
    turns = tables.turns
    if turns.empty:
        return []
    cells = tables.cells
    found = []
    for answer in answers:
        rows = turns[(turns["cell_id"] == answer.cell_id) & turns["is_primary"]].to_dict("records")
        if rows:
            cell, metric = cells[cells["cell_id"] == answer.cell_id].iloc[0], str(rows[0]["metric"])
            found.append(
                ByTurn(answer.pair, answer.where, answer.cell_id, metric, f"{place(cell).capitalize()}: {_sentence(rows, metric)}")
            )
    return found


def _sentence(rows: list[dict[Any, Any]], metric: str) -> str:
    digits = digits_of(metric)
    values = [[number(row[name]) for name in ("delta", "ci_low", "ci_high")] for row in rows]
    told = "; ".join(
        f"reply {at} {signed(delta, digits)} {interval(low, high, digits)}".rstrip()
        for at, (delta, low, high) in enumerate(values, start=1)
    )
    unit = f" [{UNITS[metric]}]" if metric in UNITS else ""
    unsure = [at for at, (_, low, high) in enumerate(values, start=1) if math.isnan(low) or low <= 0 <= high]
    if not unsure:
        is_one_way = len({delta > 0 for delta, *_ in values}) == 1
        meaning = f"Every interval is on one side of 0{'' if is_one_way else ', not always the same one'}."
    elif len(unsure) == len(values):
        meaning = "No interval is on one side of 0: reply by reply no effect is shown."
    else:
        names = f"reply {unsure[0]}" if len(unsure) == 1 else f"replies {', '.join(map(str, unsure))}"
        meaning = f"At {names} no effect is shown: the interval is not on one side of 0."
    n = int(min(row["n"] for row in rows))
    return f"{metric} beside the unsteered dialogues{unit}, over {count(n, 'prompt')}: {told}. {meaning}"
