"""Whether the scorers of each pair's emotion agree over replies: their correlations, and what these mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emosteer.agreement import SENTIMENT
from emosteer.report.words import interval, left_open, number, signed
from emosteer.tables import Tables

HIGH, LOW = 0.7, 0.4
"""A rank correlation is called high from here on, and low below."""
WHERE = ("model", "dtype", "prompts", "baseline_id")
"""Columns that are told besides the pair where they vary."""


@dataclass(frozen=True)
class Agreed:
    """Two measures of one emotion."""

    pair: str
    """And what else tells its replies from others'."""
    measures: str
    n: int
    """Replies on which both are defined."""
    spearman: str
    pearson: str
    words: str


def agreed(tables: Tables) -> list[Agreed]:
    """A row for each pair, baseline and two measures; none where no correlation could be computed."""
    rows = tables.agreement
    if rows.empty or rows["spearman"].isna().all():
        return []
    varying = [column for column in WHERE if rows[column].nunique() > 1]
    return [
        Agreed(
            ", ".join(str(row[column]) for column in ("pair", *varying)),
            f"{row['metric']} and {row['other']}",
            int(row["n"]),
            _correlation(row, "spearman"),
            _correlation(row, "pearson"),
            words_of(row),
        )
        for row in rows.to_dict("records")
    ]


def _correlation(row: Mapping[Any, Any], name: str) -> str:
    value, low, high = (number(row[column]) for column in (name, f"{name}_ci_low", f"{name}_ci_high"))
    return f"{signed(value, 2)} {interval(low, high, 2)}".rstrip()


def words_of(row: Mapping[Any, Any]) -> str:
    """What the rank correlation of a row of `agreement` means."""
    if row["reason"]:
        return f"Not computed: {row['reason']}."
    rho, low, high = (number(row[f"spearman{end}"]) for end in ("", "_ci_low", "_ci_high"))
    if math.isnan(low):
        return f"Not certain. {left_open(low, high)}"
    if low <= 0 <= high:
        meaning = "Not shown: these replies do not tell whether the two agree."
    elif rho < 0:
        meaning = "Opposite: where one is high, the other is low."
        if SENTIMENT in (row["metric"], row["other"]):
            meaning += " Of an unpleasant emotion and sentiment that is agreement."
    elif rho >= HIGH:
        meaning = "High: the two put the replies into much the same order; whether both show an effect is another question."
    elif rho >= LOW:
        meaning = "Moderate: the two agree on the whole, and differ on many replies; look at both."
    else:
        meaning = "Low: the two have little in common over these replies; an effect that only one of them shows hangs on the measure."
    return f"{meaning} {left_open(low, high)}".rstrip()
