"""The report's first section: of each pair the best cell, what it does, what it costs, and among how many it was chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from emosteer.records.sweep import FAILED
from emosteer.report.words import UNITS, count, digits_of, interval, number, probability, signed
from emosteer.summary import RULE, SIGNIFICANT, best_readable
from emosteer.tables import Tables

GROUP = ["pair", "primary", "model", "dtype", "prompts", "baseline_id"]
"""Cells that agree in these columns are compared with each other; a confirmation is of the same."""
RIVALS = {
    "random": "Beyond a random direction of the same length",
    "shuffled": "Beyond vectors from the same texts with exchanged labels",
    "prompting": "Beyond asking for the emotion",
}
"""What `results` compares a cell with besides its baseline -> how a sentence about that begins."""


@dataclass
class Answer:
    """What came out for one pair, in sentences."""

    pair: str
    where: str
    """On which model, and what else tells this answer from others."""
    verdict: str
    """In a few words; the heading's second half."""
    is_good: bool
    """Whether the verdict is a cell that raises its target, significantly, and stays readable."""
    cell_id: str = ""
    """Of the cell that the sentences are about; empty where there is none."""
    facts: list[tuple[str, str]] = field(default_factory=list)
    """What is told -> how it is."""


def answers(tables: Tables) -> list[Answer]:
    """One for each pair, model and baseline, in the order of their names; none where the sweep has no cells."""
    cells = tables.cells
    if cells.empty or not set(GROUP) <= set(cells):
        return []
    groups = list(cells.groupby(GROUP, dropna=False))
    told = [axis for axis in ("model", "dtype", "prompts") if cells[axis].nunique() > 1 or axis == "model"]
    several = {tuple(keys[:-1]) for keys, _ in groups if sum(other[:-1] == keys[:-1] for other, _ in groups) > 1}
    found = []
    for keys, rows in groups:
        where = ", ".join(str(rows.iloc[0][axis]) for axis in told)
        if tuple(keys[:-1]) in several:
            where += f" ({_apart(cells, rows)})"
        found.append(_answer(tables, str(keys[0]), where, rows))
    return found


def _apart(cells: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What of seed and decoding tells these cells from those with another baseline."""
    axes = ("seed", "n_samples", "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_p", "n_prompts")
    return (
        ", ".join(f"{axis} {rows.iloc[0][axis]}" for axis in axes if axis in cells and cells[axis].nunique() > 1)
        or "another baseline"
    )


def _answer(tables: Tables, pair: str, where: str, rows: pd.DataFrame) -> Answer:
    primary = str(rows.iloc[0]["primary"])
    replied = tables.replied
    done = rows[rows.index.isin(replied.index)]
    measured = done[done[f"{primary}_delta"].notna()] if f"{primary}_delta" in done else done.iloc[:0]
    tested = _tested(tables, rows, measured, primary)
    if measured.empty:
        why = _why_not(rows, done, primary)
        return Answer(pair, where, f"nothing to say: {why}", False, facts=[("Tested", tested)])
    best = best_readable(measured)
    if best is None:
        best = measured.nlargest(1, f"{primary}_delta").iloc[0]
        verdict, is_good = f"no cell raises {primary} and stays readable", False
        first = ("Largest effect", _effect(best, primary))
    else:
        is_good = _is_significant(best, primary)
        verdict = f"{place(best)} raises {primary} by {signed(number(best[f'{primary}_delta']), digits_of(primary))}"
        verdict += "" if is_good else ", not significantly"
        first = ("Best readable cell", _effect(best, primary))
    facts = [
        first,
        *_beyond(best, primary),
        ("Cost", _cost(best)),
        *_caveats(best, primary),
        *_confirmation(tables, rows),
        ("Tested", tested),
    ]
    return Answer(pair, where, verdict, is_good, str(best["cell_id"]), facts)


def _why_not(rows: pd.DataFrame, done: pd.DataFrame, primary: str) -> str:
    if (rows["status"] == FAILED).all():
        return "every cell failed"
    return "no cell has replies and scores yet" if done.empty else f"its primary metric {primary} was not computed"


def _is_significant(row: pd.Series[Any], primary: str) -> bool:
    q, beyond = (number(row.get(f"{primary}{end}")) for end in ("_q", "_beyond_random_q"))
    return q < SIGNIFICANT and (math.isnan(beyond) or beyond < SIGNIFICANT)


def place(row: pd.Series[Any]) -> str:
    """Block and coefficient, as in a sentence."""
    blocks = f"{'blocks' if '+' in str(row['layers']) else 'block'} {row['layers']}"
    if row["intervention"] == "ablate":
        return f"{blocks}, ablated,"
    unit = "" if row["coefficient_unit"] == "fraction" else " (raw)"
    return f"{blocks} {'set to' if row['intervention'] == 'set' else 'at coefficient'} {row['coefficient']:g}{unit}"


def _effect(row: pd.Series[Any], primary: str) -> str:
    digits = digits_of(primary)
    delta, low, high, d = (number(row.get(f"{primary}_{end}")) for end in ("delta", "ci_low", "ci_high", "effect_size"))
    before, after = (number(row.get(f"{primary}_{end}")) for end in ("baseline", "steered"))
    unit = f" {UNITS[primary]}" if primary in UNITS else ""
    return (
        f"{place(row)}: {primary} {signed(delta, digits)} {interval(low, high, digits)}{unit}, from {before:.{digits}f} to "
        f"{after:.{digits}f}; {probability('q', number(row.get(f'{primary}_q')))}, effect size d {signed(d, 2)}."
    )


def _beyond(row: pd.Series[Any], primary: str) -> Iterator[tuple[str, str]]:
    digits = digits_of(primary)
    for name, beginning in RIVALS.items():
        column = f"{primary}_beyond_{name}"
        value, low, high, q = (number(row.get(column + end)) for end in ("", "_ci_low", "_ci_high", "_q"))
        if not math.isnan(value):
            yield beginning, f"{primary} {signed(value, digits)} {interval(low, high, digits)}, {probability('q', q)}."


def _cost(row: pd.Series[Any]) -> str:
    """What the push cost in fluency."""
    parts = []
    ratio = number(row.get("perplexity_ratio"))
    if not math.isnan(ratio):
        before, after, q = (number(row.get(f"perplexity_{end}")) for end in ("baseline", "steered", "q"))
        parts.append(f"perplexity \u00d7{ratio:.2f}, from {before:.1f} to {after:.1f}, {probability('q', q)}")
        if number(row.get("perplexity_p_equivalence")) < SIGNIFICANT:
            parts.append("within the margin of no cost that was declared before the run")
    duplication, before = (number(row.get(f"duplication_{end}")) for end in ("steered", "baseline"))
    if not math.isnan(duplication):
        parts.append(f"{duplication:.0%} of the replies begin alike (baseline {before:.0%})")
    return f"{'; '.join(parts)}." if parts else "not measured: neither perplexity nor duplication is among the scorers."


def _caveats(row: pd.Series[Any], primary: str) -> Iterator[tuple[str, str]]:
    """What is left of the effect where its lexicon may have been misled; nothing where it has not been."""
    flagged, negated = ([number(row.get(f"n_{name}{end}")) for end in ("", "_baseline")] for name in ("flagged", "negated"))
    if max(flagged) > 0:
        seen = f"{flagged[0]:.0f} of its replies and {flagged[1]:.0f} unsteered ones are flagged for one repeated word"
        yield "Without replies of one word", f"{_otherwise(row, primary, 'unflagged')}; {seen}."
    if max(negated) > 0:
        seen = f"{negated[0]:.0f} words of {primary} stand under a negation, {negated[1]:.0f} in unsteered replies"
        yield "With negation handled the other way", f"{_otherwise(row, primary, 'negation')}; {seen}."


def _otherwise(row: pd.Series[Any], primary: str, which: str) -> str:
    value, low, high, p = (number(row.get(f"primary_{which}_{end}")) for end in ("delta", "ci_low", "ci_high", "p"))
    if math.isnan(value):
        return f"{primary} cannot be computed"
    digits = digits_of(primary)
    return f"{primary} {signed(value, digits)} {interval(low, high, digits)}, {probability('p', p)}"


def _confirmation(tables: Tables, rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """What the choice of the best cell is worth on prompts that did not choose it."""
    found = tables.confirmations
    if found.empty:
        return
    first = rows.iloc[0]
    for row in found[(found["pair"] == first["pair"]) & (found["baseline_id"] == first["baseline_id"])].to_dict("records"):
        if row["n_cells"] < 2:
            continue
        label, digits = "On prompts that did not choose it", digits_of(str(row["primary"]))
        if row["reason"]:
            yield label, f"not confirmed: {row['reason']}."
            continue
        text = (
            f"{row['primary']} {signed(row['confirmed'], digits)} {interval(row['ci_low'], row['ci_high'], digits)}, "
            f"{probability('p', row['p'])}; of the {row['n_halves']} halves of the prompts on which a cell is readable "
            f"{row['agreement']:.0%} choose block {row['layers']} at {row['coefficient']:g}."
        )
        yield label, text


def _tested(tables: Tables, rows: pd.DataFrame, measured: pd.DataFrame, primary: str) -> str:
    family = tables.cells[f"{primary}_p"].notna().sum() if f"{primary}_p" in tables.cells else 0
    text = f"{count(len(measured), 'cell')} of this pair" + (f" (of {len(rows)})" if len(measured) < len(rows) else "")
    if measured.empty:
        return f"{text}."
    below = int((measured[f"{primary}_q"] < SIGNIFICANT).sum()) if f"{primary}_q" in measured else 0
    prompts = count(int(measured["n_prompts"].min()), "prompt")
    return f"{text}, on {prompts}; {below} with q < .05. q is over the {count(int(family), 'cell')} of the sweep."


RULES = (
    f"{RULE} Among readable cells those with q < .05, also beyond the random direction, come first, then the largest rise. "
    "An effect is the mean difference from the unsteered replies to the same prompts, with its bootstrap interval; q is Benjamini "
    "and Hochberg's, within each metric. The primary metric was declared before the run; all others are secondary."
)
