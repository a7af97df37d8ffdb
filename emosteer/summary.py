"""What a person reads when a sweep ends: a table of cells with intervals and q, and the best readable replies side by side."""

from __future__ import annotations

import itertools
import math
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from emosteer.config import AUTO
from emosteer.endings import silence
from emosteer.predictions import coefficients_text
from emosteer.records.sweep import FAILED
from emosteer.statistics import smallest_p
from emosteer.tables import READABLE_DUPLICATION, READABLE_PERPLEXITY_RATIO, Tables

RULE = (
    f"Readable: perplexity at most x{READABLE_PERPLEXITY_RATIO}, at most {READABLE_DUPLICATION} of the replies beginning alike, "
    "however many of the unsteered do."
)
UNREADABLE = f"No cell raises its target and stays readable. {RULE}"
AXES = (
    *("model", "dtype", "site", "across_blocks", "scope", "intervention", "decay"),
    *("vector_method", "vector_reading", "vector_source", "vector_plus", "vector_without"),
    *("coefficient_unit", "seed", "prompts", "n_prompts"),
    *("n_samples", "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_p"),
)
"""Axes that the table names where they vary; pair, blocks and coefficient have columns of their own."""
COLUMNS = {"block": 5, "coef.": 6, "target": 13, "beyond random": 13, "1st person": 12, "sentiment": 13, "perplexity": 12}
"""Headings of the cells' table, and how wide they are."""
MOST_ROWS = 40
EXAMPLES = 3
SIGNIFICANT = 0.05


class _Stdout(Console):
    """A console that falls silent when its reader leaves (`emosteer | head -1`): no failure, the results are on the disk."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        silence(sys.stdout.fileno())


def console() -> Console:
    """Where results are printed: stdout, with colour on a terminal only, at least 80 columns wide where it is none."""
    width = None if Console().is_terminal else max(80, shutil.get_terminal_size((100, 24)).columns)
    return _Stdout(width=width, highlight=False)


def summary(name: str, tables: Tables) -> RenderableType:
    """The summary of a sweep, as something rich can print."""
    cells = tables.cells
    parts: list[RenderableType] = [_headline(name, cells, tables.controls)]
    done = tables.replied
    if len(done):
        best = best_readable(done)
        parts += [
            _table(done),
            _legend(done),
            *_confirmations(tables.confirmations),
            *_against_prompting(tables, best),
            *_against_negative(tables, best),
        ]
        parts += _by_turn(tables.turns, best)
        if best is not None:
            caveat = "" if _is_significant(best) else ", not significant"
            parts += [_examples(tables, best, f"Best readable cell{caveat}"), Text(RULE, style="dim"), *_caveats(best)]
        elif (largest := _largest(done)) is not None:
            parts += [Text(UNREADABLE), _examples(tables, largest, "The largest effect")]
        parts += _agreement(tables.agreement)
    parts += [_located(facts) for _, facts in sorted(tables.found.items()) if facts]
    parts += _predictions(tables.predictions)
    failed = tables.results[tables.results["status"] == FAILED]
    parts += [Text(f"failed: {row.cell_id}: {row.error}", style="red") for row in failed.itertuples()]
    return Group(*parts)


def best_readable(cells: pd.DataFrame) -> pd.Series[Any] | None:
    """The cell with the largest rise of its primary metric among those that stay readable; None where none does.

    Readable: perplexity at most 1.5 times the baseline's, at most 0.3 of the replies beginning alike. Cells whose q is below
    0.05, also beyond the random direction, come before the others.
    """
    ratio = cells.get("perplexity_ratio", pd.Series(1.0, index=cells.index)).fillna(math.inf)
    duplication = cells.get("duplication_steered", pd.Series(0.0, index=cells.index))
    readable = cells[(ratio <= READABLE_PERPLEXITY_RATIO) & (duplication <= READABLE_DUPLICATION)]
    if readable.empty:
        return None
    rises = [row for _, row in readable.iterrows() if _value(row, f"{row['primary']}_delta") > 0]
    return max(rises, key=lambda row: (_is_significant(row), *_rise(row)), default=None)


def _largest(cells: pd.DataFrame) -> pd.Series[Any] | None:
    measured = [row for _, row in cells.iterrows() if not math.isnan(_value(row, f"{row['primary']}_delta"))]
    return max(measured, key=_rise, default=None)


def _rise(row: pd.Series[Any]) -> tuple[float, str]:
    """By which cells are ranked; equal ones by their ids, and not by which was there first."""
    return _value(row, f"{row['primary']}_delta"), str(row["cell_id"])


def _is_significant(row: pd.Series[Any]) -> bool:
    primary = row["primary"]
    q, beyond = _value(row, f"{primary}_q"), _value(row, f"{primary}_beyond_random_q")
    return q < SIGNIFICANT and (math.isnan(beyond) or beyond < SIGNIFICANT)


def _headline(name: str, cells: pd.DataFrame, controls: pd.DataFrame) -> Text:
    counts = cells["status"].value_counts()
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    models = ", ".join(cells["model"].unique())
    text = f"\n{name}: {_count(len(cells), 'cell')} ({states}), {_count(len(controls), 'random control')}, on {models}"
    return Text(text, style="bold")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _table(cells: pd.DataFrame) -> RenderableType:
    shown = cells
    if len(cells) > MOST_ROWS:
        order = [_value(row, f"{row['primary']}_delta") for _, row in cells.iterrows()]
        shown = cells.assign(_order=order).nlargest(MOST_ROWS, "_order")
    varying = [axis for axis in AXES if cells[axis].nunique() > 1]
    shown = shown.sort_values(["model", "pair", *varying, "layer", "layers", "coefficient", "cell_id"])
    parts: list[RenderableType] = []
    for heading, rows in itertools.groupby(shown.iterrows(), key=lambda row: _heading(row[1], varying)):
        parts += [Text(heading, style="bold"), _section([row for _, row in rows], is_first=not parts)]
    if len(shown) < len(cells):
        parts.append(Text(f"The {len(shown)} largest effects of {len(cells)} cells; all are in results.csv."))
    return Group(*parts)


def _heading(row: pd.Series[Any], varying: Sequence[str]) -> str:
    return ", ".join([f"{row['pair']}: {row['primary']}", *filter(None, (_axis(axis, row[axis]) for axis in varying))])


def _axis(axis: str, value: Any) -> str:
    """What an axis that varies says: a text says itself what it is, but for what a vector is put together of."""
    if axis in ("vector_plus", "vector_without"):
        return f"{axis.removeprefix('vector_')} {value}" if value else ""
    return str(value) if isinstance(value, str) else f"{axis} {value}"


def _section(rows: Sequence[pd.Series[Any]], is_first: bool) -> Table:
    """Cells below one heading; columns have the same widths below each, 80 together."""
    table = Table(show_header=is_first, box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.row_styles = ["", "on grey7"]
    for heading, width in COLUMNS.items():
        table.add_column(heading, justify="left" if heading in ("block", "coef.") else "right", width=width, overflow="fold")
    for row in rows:
        primary = row["primary"]
        table.add_row(
            row["layers"],
            _coefficient(row),
            _effect(row, primary),
            _effect(row, f"{primary}_beyond_random", suffixes=("", "_ci_low", "_ci_high", "_q")),
            _effect(row, "first_person"),
            _effect(row, "sentiment", digits=2),
            _perplexity(row),
        )
    return table


def _coefficient(row: pd.Series[Any]) -> Text:
    """A coefficient; where it was looked for, with what it costs."""
    if row["coefficient_request"] != AUTO:
        return Text(f"{row['coefficient']:g}")
    text = Text(f"{row['coefficient']:.3g}")
    cost = f"kl\n{row['auto_cost']:.3g}" if row["auto_metric"] == "kl" else f"x{row['auto_cost']:.3g}"
    text.append(f"\n{cost}", style="dim")
    return text if row["auto_status"] == "found" else text.append(f"\n{row['auto_status']}", style="red")


def _effect(
    row: pd.Series[Any],
    metric: str,
    digits: int = 1,
    suffixes: tuple[str, str, str, str] = ("_delta", "_ci_low", "_ci_high", "_q"),
) -> Text:
    delta, low, high, q = (_value(row, f"{metric}{suffix}") for suffix in suffixes)
    if math.isnan(delta):
        return Text("-")
    style = "bold green" if q < SIGNIFICANT and delta > 0 else "bold red" if q < SIGNIFICANT else ""
    text = Text(f"{delta:+.{digits}f} {_q(q)}", style=style)
    text.append(f"\n[{low:+.{digits}f},{high:+.{digits}f}]", style="dim not bold")
    return text


def _perplexity(row: pd.Series[Any]) -> Text:
    ratio = _value(row, "perplexity_ratio")
    if math.isnan(ratio):
        return Text("-")
    text = Text(f"x{ratio:.2f} {_q(_value(row, 'perplexity_q'))}", style="red" if ratio > READABLE_PERPLEXITY_RATIO else "")
    low, high = _value(row, "perplexity_ci_low"), _value(row, "perplexity_ci_high")
    text.append(f"\n[{low:+.1f},{high:+.1f}]", style="dim not bold")
    return text


def _q(q: float, name: str = "q") -> str:
    return "" if math.isnan(q) else f"{name}<.001" if q < 0.001 else f"{name}={q:.3f}".replace("0.", ".")


def _legend(cells: pd.DataFrame) -> Text:
    lines = [
        "Mean difference from the baseline, with its bootstrap interval over prompts: words per 100 words,",
        "sentiment from -1 to 1, perplexity as a ratio (interval of the difference). 'target' is the primary",
        "metric, declared before the run, 'beyond random' the same against random pushes of that length; the",
        "rest is secondary. q: Benjamini-Hochberg over the sweep's cells, within each metric.",
    ]
    n = int(cells["n_prompts"].min())
    if smallest_p(n) > SIGNIFICANT:
        lines.append(f"With {n} prompts no p can be below {smallest_p(n):g}: use at least 6.")
    return Text(" ".join(lines), style="dim")


def _against_prompting(tables: Tables, best: pd.Series[Any] | None) -> list[RenderableType]:
    """A line for each pair: what asking for the emotion does without steering, and what the best cell does beyond that."""
    lines: list[RenderableType] = []
    for _, row in tables.prompted.iterrows():
        primary = row["primary"]
        if math.isnan(_value(row, f"{primary}_delta")):
            continue
        effect = _with_interval(row, f"{primary}_delta", primary)
        p, ratio = _value(row, f"{primary}_p"), _value(row, "perplexity_ratio")
        asked = f"Asked to feel {row['target']} instead of steered, {row['model']} gives {primary}"
        line = f"{asked} {effect}, p={p:.3f}, perplexity x{ratio:.2f}."
        if best is not None and (best["pair"], best["baseline_id"]) == (row["pair"], row["baseline_id"]):
            beyond = f"{primary}_beyond_prompting"
            line += (
                f" The best readable cell against that: {_with_interval(best, beyond, beyond)}, {_q(_value(best, f'{beyond}_q'))}."
            )
        lines.append(Text(line))
    return lines


def _against_negative(tables: Tables, best: pd.Series[Any] | None) -> list[RenderableType]:
    """A line: what the best cell does with the other sign, and how far the two signs are apart."""
    negated = tables.negated
    if best is None or negated.empty:
        return []
    same = (negated["control_key"] == best["control_key"]) & (negated["vector_id"] == best["vector_id"])
    lines: list[RenderableType] = []
    for _, row in negated[same].iterrows():
        primary, beyond = best["primary"], f"{best['primary']}_beyond_negative"
        if not math.isnan(_value(row, f"{primary}_delta")):
            effect, apart = _with_interval(row, f"{primary}_delta", primary), _with_interval(best, beyond, beyond)
            line = f"The best readable cell with the other sign: {primary} {effect}, p={_value(row, f'{primary}_p'):.3f}; they are"
            lines.append(Text(f"{line} {apart} apart, {_q(_value(best, f'{beyond}_q'))}."))
    return lines


def _by_turn(turns: pd.DataFrame, best: pd.Series[Any] | None) -> list[RenderableType]:
    """What the best readable cell does to each reply of a dialogue; nothing where replies end the dialogues."""
    if best is None or not len(turns):
        return []
    rows = turns[(turns["cell_id"] == best["cell_id"]) & turns["is_primary"]].to_dict("records")
    told = [f"{row['turn'] + 1}: {row['delta']:+.1f} [{row['ci_low']:+.1f}, {row['ci_high']:+.1f}]" for row in rows]
    return [Text(f"{best['primary']} of the best readable cell by turn: {'; '.join(told)}.")] if told else []


def _with_interval(row: pd.Series[Any], column: str, of: str) -> str:
    return f"{_value(row, column):+.1f} [{_value(row, f'{of}_ci_low'):+.1f}, {_value(row, f'{of}_ci_high'):+.1f}]"


def _caveats(best: pd.Series[Any]) -> list[RenderableType]:
    """What the best cell's effect is without the replies and words by which its lexicon may have been misled, where there are any."""
    lines: list[RenderableType] = []
    primary = best["primary"]
    if _value(best, "n_flagged") > 0 or _value(best, "n_flagged_baseline") > 0:
        lines.append(
            Text(
                f"Flagged, for one repeated word that is most of their emotion: {best['n_flagged']:.0f} of its replies, "
                f"{best['n_flagged_baseline']:.0f} unsteered ones. Without them {_of_primary(best, 'unflagged')} over "
                f"{best['primary_unflagged_n']:.0f} prompts."
            )
        )
    if _value(best, "n_negated") > 0 or _value(best, "n_negated_baseline") > 0:
        lines.append(
            Text(
                f"Words of {primary} under a negation: {best['n_negated']:.0f}, unsteered {best['n_negated_baseline']:.0f}. With "
                f"negation handled the other way {_of_primary(best, 'negation')}."
            )
        )
    return lines


def _of_primary(row: pd.Series[Any], which: str) -> str:
    column = f"primary_{which}"
    if math.isnan(_value(row, f"{column}_delta")):
        return f"{row['primary']} cannot be computed"
    return f"{row['primary']} {_with_interval(row, f'{column}_delta', column)}, {_q(_value(row, f'{column}_p'), 'p')}"


def _agreement(agreement: pd.DataFrame) -> list[RenderableType]:
    """A line for each pair: how its emotion's measures agree over replies."""
    if agreement.empty:
        return []
    lines: list[RenderableType] = []
    several = [axis for axis in ("model", "prompts", "baseline_id") if agreement[axis].nunique() > 1]
    for keys, rows in agreement.groupby(["pair", *several]):
        told = [
            f"{row['metric']} and {row['other']} " + ("not computed" if row["reason"] else f"{row['spearman']:+.2f}")
            for row in rows.to_dict("records")
        ]
        n = int(rows["n"].max())
        lines.append(Text(f"Agreement of scorers on {', '.join(map(str, keys))} (Spearman, {n} replies): {'; '.join(told)}"))
    return lines


def _located(facts: dict[str, Any]) -> Text:
    """Where attribution points, and whether exact patching agrees."""
    text = Text(f"Attribution of {facts['pair']} on {facts['model']}: {_first_block(facts)}")
    if facts.get("no_heads"):
        text.append(f"\n  without heads: {facts['no_heads']}", style="dim")
    for one in facts.get("check", ()):
        r, rho = ("not computed" if one[key] is None else f"{one[key]:.2f}" for key in ("pearson", "spearman"))
        n, where = len(one["components"]), "last position" if one["position"] == "last" else "all positions"
        text.append(f"\n  {one['site']}, {where}, {n} patched exactly: ", style="dim")
        text.append(f"r {r}, rho {rho}, signs {one['same_sign']:.0%}", style="red" if one["is_low"] else "dim")
        text.append(" LOW" if one["is_low"] else "", style="red")
    return text


def _predictions(predictions: pd.DataFrame) -> list[RenderableType]:
    """A line for each grid: how well its attribution predicts where steering has an effect; none where one block was steered."""
    if predictions.empty:
        return []
    axes = ["model", "pair", "attribution_id", "vector_id", "site", "coefficient_unit", "scope", "decay", "seed", "baseline_id"]
    lines = []
    for _, rows in predictions.groupby(axes, dropna=False):
        row = rows.sort_values("n_coefficients", kind="stable").iloc[-1]
        if row["n_blocks"] < 2:
            continue
        text = f"Does attribution predict steering? {row['pair']} on {row['model']}, {row['primary']} at {coefficients_text(row)}: "
        if row["reason"]:
            text += f"not computed, {row['reason']}"
        else:
            text += (
                f"rho {row['rho']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}] over {row['n_blocks']} blocks; "
                f"block {row['first_scored']:.0f} is scored first, block {row['first_steered']:.0f} has the largest effect"
            )
        lines.append(Text(text))
    return list(lines)


def _first_block(facts: dict[str, Any]) -> str:
    block = facts["ranking"][0]
    if "first_share" not in facts:  # of an older version
        return f"block {block} first"
    share, low, high = (facts[key][block] for key in ("first_share", "block_scores_low", "block_scores_high"))
    adds, unit = f"{facts['block_scores'][block]:+.2f}", facts.get("unit", "nats")
    text = f"block {block} first, in {share:.0%} of resamples; adds {adds} {unit} [{low:+.2f}, {high:+.2f}]"
    other = max((b for b in range(len(facts["first_share"])) if b != block), key=lambda b: facts["first_share"][b], default=block)
    return text + (f"; block {other} in {facts['first_share'][other]:.0%}" if other != block and facts["first_share"][other] else "")


def _confirmations(confirmations: pd.DataFrame) -> list[RenderableType]:
    """What the best cell of each pair is worth on prompts that did not choose it; nothing where no cell was chosen among others."""
    lines = []
    several = [axis for axis in ("model", "prompts") if len(confirmations) and confirmations[axis].nunique() > 1]
    for row in confirmations.to_dict("records"):
        name = ", ".join(str(row[axis]) for axis in ("pair", *several)) + f": {row['primary']}"
        if row["n_cells"] < 2:
            continue
        if row["reason"]:
            lines.append(f"{name} not confirmed: {row['reason']}.")
            continue
        lines.append(
            f"{name} {row['confirmed']:+.1f} [{row['ci_low']:+.1f}, {row['ci_high']:+.1f}] {_q(row['p'], 'p')}. Block "
            f"{row['layers']} at {row['coefficient']:g}, the choice of all {row['n']} prompts and of {row['agreement']:.0%} "
            f"of the halves, has {row['apparent']:+.1f} on them."
        )
    if not lines:
        return []
    heading = Text("\nThe best readable cell, chosen on one half of the prompts and measured on the other", style="bold")
    return [heading, *map(Text, lines)]


def _examples(tables: Tables, best: pd.Series[Any], heading: str) -> RenderableType:
    replies = tables.replies
    keys = ["prompt_id", "sample", "turn"]
    steered = replies[replies["cell_id"] == best["cell_id"]].set_index(keys)
    baseline = replies[replies["cell_id"] == best["baseline_id"]].set_index(keys)
    table = Table(show_lines=True, title_justify="left", title_style="bold", expand=True)
    table.title = (
        f"{heading}: {best['pair']}, block {best['layers']}, {_how_hard(best)} "
        f"({best['primary']} {_value(best, best['primary'] + '_delta'):+.1f}, perplexity x{_value(best, 'perplexity_ratio'):.2f})"
    )
    if len(steered) > EXAMPLES:
        table.title += f"; the first {EXAMPLES} of {len(steered)} replies"
    for column, ratio in (("prompt", 2), ("unsteered", 3), ("steered", 3)):
        table.add_column(column, ratio=ratio, overflow="fold")
    for key, row in list(steered.iterrows())[:EXAMPLES]:
        unsteered = str(baseline["reply"].get(key, ""))
        table.add_row(Text(str(row["prompt"])), Text(unsteered), Text(str(row["reply"])))
    return table


def _how_hard(cell: pd.Series[Any]) -> str:
    if cell["intervention"] == "ablate":
        return "ablated"
    return f"{'set to ' if cell['intervention'] == 'set' else ''}coefficient {cell['coefficient']:g}"


def _value(row: pd.Series[Any], column: str) -> float:
    value = row.get(column, math.nan)
    return math.nan if value is None else float(value)
