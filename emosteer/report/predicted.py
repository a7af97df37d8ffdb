"""Whether attribution predicted where steering works, of each attribution: a sentence, and the correlations as a table."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from emosteer.predictions import coefficients_text
from emosteer.report.words import interval, left_open, number, signed
from emosteer.tables import Tables

GRID = (
    *("primary", "dtype", "prompts", "site", "coefficient_unit", "scope", "decay", "seed", "vector_id", "baseline_id"),
    "attribution_id",
)
"""Columns in which the rows of one grid of blocks and coefficients agree."""
FEW_BLOCKS = 5
"""Up to so many are called few, and it is said how often chance alone finds the right order."""


@dataclass(frozen=True)
class Predicted:
    """One grid of blocks and coefficients."""

    apart: str
    """What tells it from the attribution's others; empty where there is one."""
    sentence: str
    rows: list[list[str]]
    """Coefficients, blocks, rho, its interval, first scored, first steered; none where nothing was computed."""


def predicted(tables: Tables) -> dict[str, list[Predicted]]:
    """By attribution, those that are there and of whose pair several blocks were steered one by one."""
    found: dict[str, list[Predicted]] = {}
    rows = tables.predictions
    if rows.empty:
        return found
    rows = rows[rows["attribution_id"].isin(tables.found) & (rows["n_blocks"] > 1)]
    for attribution_id, own in rows.groupby("attribution_id"):
        varying = [column for column in GRID if own[column].nunique(dropna=False) > 1]
        for _, grid in own.groupby(list(GRID), dropna=False):
            members = grid.to_dict("records")
            apart = ", ".join(f"{column} {members[0][column]}" for column in varying)
            computed = [_cells(row) for row in members if not row["reason"]]
            found.setdefault(str(attribution_id), []).append(Predicted(apart, _sentence(members), computed))
    return found


def _sentence(rows: list[dict[Hashable, Any]]) -> str:
    """Of the mean over most coefficients."""
    row = max(reversed(rows), key=lambda row: row["n_coefficients"])
    where = f"{row['primary']} at {'coefficients' if row['n_coefficients'] > 1 else 'coefficient'} {coefficients_text(row)}"
    if row["reason"]:
        return f"Does it predict where steering works? Not computed for {where}: {row['reason']}."
    rho, low, high = (number(row[end]) for end in ("rho", "ci_low", "ci_high"))
    n_blocks = int(row["n_blocks"])
    parts = [
        f"Does it predict where steering works? {_verdict(rho, low, high, n_blocks)}",
        f"The rank correlation of scores and steering effects ({where}) is {signed(rho, 2)} {interval(low, high, 2)}".rstrip()
        + f" over {n_blocks} blocks.",
        left_open(low, high),
        f"Of {n_blocks} blocks one order in {math.factorial(n_blocks)} is the right one by chance." if n_blocks <= FEW_BLOCKS else "",
        f"Block {row['first_scored']:.0f} is scored first, block {row['first_steered']:.0f} has the largest effect.",
    ]
    return " ".join(part for part in parts if part)


def _verdict(rho: float, low: float, high: float, n_blocks: int) -> str:
    here = "On these few blocks" if n_blocks <= FEW_BLOCKS else "Here"
    if math.isnan(low) or low <= 0 <= high:
        return "These cells do not tell."
    return (
        f"{here} it does: the higher a block's score, the larger the effect of steering there, by and large."
        if rho > 0
        else f"{here} it does not: the higher a block's score, the smaller the effect of steering there, by and large."
    )


def _cells(row: Mapping[Hashable, Any]) -> list[str]:
    rho, low, high = (number(row[end]) for end in ("rho", "ci_low", "ci_high"))
    first = [f"block {row[name]:.0f}" for name in ("first_scored", "first_steered")]
    return [coefficients_text(row), f"{row['n_blocks']:.0f}", signed(rho, 2), interval(low, high, 2), *first]
