"""`emosteer-sweep compare`: two sweeps cell by cell."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from emosteer.errors import EmosteerError
from emosteer.progress import working
from emosteer.records.publish import publish_file
from emosteer.sweep_cli.arguments import JsonOption, sweep_argument
from emosteer.sweep_cli.finding import open_sweep
from emosteer.sweep_cli.printing import count, print_json

if TYPE_CHECKING:
    from emosteer.alignment import Alignment, Compared

WIDTH = 80
SIGNIFICANT = 0.05
MOST_NAMED = 8
SHOWN_ALWAYS = ("pair", "layers", "coefficient")
"""Axes with columns of their own."""
OTHER_SIZE = "Another model's residual stream is pushed another way by the same coefficient: compare at equal cost in fluency."


def compare(
    first: Annotated[str, sweep_argument("FIRST")],
    second: Annotated[str, sweep_argument("SECOND")],
    metric: Annotated[str | None, typer.Option(help="Whose effect; by default each pair's primary metric.")] = None,
    by_depth: Annotated[
        bool, typer.Option("--by-depth", help="Line blocks up by their depth, in models with other numbers of blocks.")
    ] = False,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write all that is lined up to FILE, too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Line two sweeps up, cell by cell.

    They may be of other models, data or methods: cells stand side by side that are equal in all but what the sweeps differ in as a
    whole, which is said. For each: the effect in both (mean over prompts of steered less baseline), and the second's less the
    first's, with its bootstrap interval: paired over prompts that both have, unpaired where they share none. q: Benjamini-Hochberg
    over all that is lined up. Cells without a counterpart are named. Nothing is changed on disk, but for --csv.

    \b
    Examples:
      emosteer-sweep compare demo demo-qwen --by-depth
      emosteer-sweep compare mean pca --metric first_person --csv both.csv

    \b
    JSON:
      first, second  names
      differ_in  axis -> [values of the first, values of the second]
      warnings   why numbers may not be comparable
      cells      a list of {first_cell_id, second_cell_id, first_pair,
                 second_pair, first_coefficient, second_coefficient,
                 first_layers, second_layers, metric, how (paired, unpaired),
                 n_first, n_second (prompts), first_effect, second_effect,
                 difference, ci_low, ci_high, p, q, first_perplexity_ratio,
                 second_perplexity_ratio}; null where it is not defined
      alone      a list of {sweep, cell_id, reason}

    \b
    Exit codes:
      0  compared
      2  no such sweep or metric, no cell is done, nothing lines up
    """  # noqa: D301 - \b keeps the lines of a paragraph
    if csv is not None and not csv.absolute().parent.is_dir():
        raise EmosteerError(f"--csv {csv}: no directory {csv.absolute().parent}; make it")
    one, other = open_sweep(first), open_sweep(second)
    with working() as work:
        # Here, so that the other commands do not wait for pandas.
        from emosteer.alignment import align

        work.stage(f"lining up the cells of {one.name} and {other.name}")
        found = align(one, other, metric, by_depth)
    if csv is not None:
        publish_file(csv, _as_csv(found))
    if as_json:
        print_json(_as_data(first, second, found))
    else:
        console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
        _print(console, first, second, found)
    if not found.compared:
        raise EmosteerError(f"nothing lines up between {first} and {second}: {_why(found)}")


def _as_data(first: str, second: str, found: Alignment) -> dict[str, Any]:
    cells = [{key: _or_null(value) for key, value in one.as_data().items()} for one in found.compared]
    alone = [{"sweep": one.sweep, "cell_id": one.cell_id, "reason": one.reason} for one in found.left_over]
    differing = {axis: list(values) for axis, values in found.differing.items()}
    return {
        "first": first,
        "second": second,
        "differ_in": differing,
        "warnings": found.warnings,
        "cells": cells,
        "alone": alone,
    }


def _as_csv(found: Alignment) -> str:
    import pandas as pd

    from emosteer.alignment import COLUMNS

    return pd.DataFrame([one.as_data() for one in found.compared], columns=COLUMNS).to_csv(index=False)


def _or_null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(console: Console, first: str, second: str, found: Alignment) -> None:
    console.print(Text(f"{second} against {first}: {count(len(found.compared), 'comparison')}", style="bold"))
    for axis, values in found.differing.items():
        one, other = (_several(of) for of in values)
        console.print(Text(f"  {axis}: {one} | {other}"))
    for warning in found.warnings:
        console.print(Text(warning, style="red"))
    if found.compared:
        console.print(_table(found))
        console.print(Text(_legend(first, second, found), style="dim"))
    for (sweep, reason), n in Counter((one.sweep, one.reason) for one in found.left_over).items():
        names = [one.cell_id for one in found.left_over if (one.sweep, one.reason) == (sweep, reason)]
        console.print(Text(f"Not lined up, {count(n, 'cell')} of {sweep}: {reason}", style="yellow"))
        console.print(Text(f"  {_several(names, ' ')}", style="dim"))


def _several(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return separator.join(names[:MOST_NAMED]) + more


def _table(found: Alignment) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("pair", overflow="fold", max_width=24)
    table.add_column("block", overflow="fold", max_width=11)
    table.add_column("coef.", overflow="fold", max_width=9)
    for heading in ("first", "second", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    rest = [axis for axis in found.varying if axis not in SHOWN_ALWAYS]
    for one in found.compared:
        names = Text(_both(_pair(one, 0), _pair(one, 1)))
        names.append(f"\n{one.metric}", style="dim")
        for axis in rest:
            names.append(f"\n{axis} {found.shown(axis, one)}", style="dim")
        table.add_row(
            names,
            _both(one.first_layers, one.second_layers),
            _both(f"{one.first.coefficient:g}", f"{one.second.coefficient:g}"),
            _effect(one.first_effect, one.first_perplexity_ratio),
            _effect(one.second_effect, one.second_perplexity_ratio),
            _difference(one),
        )
    return table


def _pair(one: Compared, place: int) -> str:
    cell = (one.first, one.second)[place]
    return cell.pair.name if cell.pair else ""


def _both(one: str, other: str) -> str:
    return one if one == other else f"{one} | {other}"


def _effect(effect: float, ratio: float) -> Text:
    text = Text("-" if math.isnan(effect) else f"{effect:+.2f}")
    return text.append("\nperplexity -" if math.isnan(ratio) else f"\nperpl. x{ratio:.2f}", style="dim")


def _difference(one: Compared) -> Text:
    if math.isnan(one.difference):
        return Text("-\nno prompts")
    q = "" if math.isnan(one.q) else "q<.001" if one.q < 0.001 else f"q={one.q:.3f}".replace("0.", ".")
    style = "" if not one.q < SIGNIFICANT else "bold green" if one.difference > 0 else "bold red"
    text = Text(f"{one.difference:+.2f} {q}", style=style)
    interval = "no interval" if math.isnan(one.ci_low) else f"[{one.ci_low:+.2f}, {one.ci_high:+.2f}]"
    return text.append(f"\n{interval}", style="dim not bold")


def _legend(first: str, second: str, found: Alignment) -> str:
    parts = [f"'first' is {first}, 'second' {second}: mean difference from their baselines, perplexity against theirs."]
    parts += [f"difference: second less first, {how}, with its bootstrap interval over prompts." for how in _how(found.compared)]
    parts.append("q: Benjamini-Hochberg over all that is lined up, within each metric.")
    if "model" in found.differing:
        parts.append(OTHER_SIZE)
    return " ".join(parts)


def _how(compared: Sequence[Compared]) -> list[str]:
    """In words, how differences were taken; several where cells differ in that."""
    said = []
    for one in compared:
        if one.how == "paired":
            said.append(f"paired over {count(one.n_first, 'prompt')} that both have")
        else:
            said.append(f"unpaired ({one.n_first} and {count(one.n_second, 'prompt')}, none in common)")
    return list(dict.fromkeys(said))


def _why(found: Alignment) -> str:
    return "; ".join(dict.fromkeys(f"{one.sweep}: {one.reason}" for one in found.left_over))
