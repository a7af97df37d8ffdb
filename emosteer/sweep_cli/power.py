"""`emosteer-sweep power`: how many prompts an effect needs, from how much a sweep's prompts differ."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emosteer.checks import near
from emosteer.errors import EmosteerError
from emosteer.progress import working
from emosteer.records.cell import CELL
from emosteer.records.sweep import Sweep
from emosteer.sweep_cli.arguments import JsonOption, SweepArgument
from emosteer.sweep_cli.finding import open_sweep
from emosteer.sweep_cli.printing import count, print_json, print_table

if TYPE_CHECKING:
    from emosteer.scored import Scored

HEADINGS = ("pair", "metric", "block", "coef.", "prompts", "sd", "sees", "needed", "safely")


def power(
    sweep: SweepArgument,
    effect: Annotated[float, typer.Option(help="The mean difference that shall be seen, in the metric's unit.")],
    metric: Annotated[str | None, typer.Option(help="Whose difference; by default each pair's primary metric.")] = None,
    wanted: Annotated[float, typer.Option("--power", help="The chance of seeing it.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="The level of the two-sided test.")] = 0.05,
    corrected: Annotated[bool, typer.Option("--corrected", help="Divide alpha by the number of cells.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say how many prompts a stated effect needs.

    For each cell that is done: how much its prompts' differences from the baseline vary (sd), the effect that its prompts see at this
    power, and how many prompts --effect needs. "safely" takes the deviation's upper limit (of 80 % assurance) instead of what these
    prompts happened to show. Paired t-test; Wilcoxon's needs some 5 % more of normal differences. --corrected asks what Holm's
    correction asks of the smallest p. Nothing is changed on disk.

    \b
    Examples:
      emosteer-sweep power default --effect 1.5
      emosteer-sweep power default --effect 1 --metric first_person
      emosteer-sweep power default --effect 2 --power 0.9 --corrected --json

    \b
    JSON:
      sweep, effect, power, alpha (after correction), n_tests
      cells  a list of {cell_id, pair, metric, layers, coefficient, n, sd,
             sees, needed, needed_safely}; what cannot be computed is null,
             and then there is a `reason`

    \b
    Exit codes:
      0  computed
      2  no such sweep or metric, no cell is done, a wrong number
    """  # noqa: D301 - \b keeps the lines of a paragraph
    if not effect or not math.isfinite(effect):
        raise EmosteerError(f"--effect {effect:g}: give a number other than 0, in the metric's unit")
    for option, value in (("--power", wanted), ("--alpha", alpha)):
        if not 0 < value < 1:
            raise EmosteerError(f"{option} {value:g}: give a number between 0 and 1")
    opened = open_sweep(sweep)
    with working() as work:
        work.stage(f"reading the scores of {opened.name}")
        found = _differences(opened, metric)
        level = alpha / len(found) if corrected else alpha
        cells = [_planned(one, of, row, effect, wanted, level) for one, of, row in found]
    if as_json:
        print_json({"sweep": sweep, "effect": effect, "power": wanted, "alpha": level, "n_tests": len(found), "cells": cells})
        return
    print_table(HEADINGS, [_row(cell) for cell in cells], numbers=HEADINGS[3:])
    by_pair: dict[str, list[int | None]] = {}
    for cell in cells:
        by_pair.setdefault(f"{cell['pair']}, {cell['metric']}", []).append(cell["needed"])
    for pair, needed in by_pair.items():
        typer.echo(f"{pair}: {_in_words(needed)}")
    for cell in cells:
        if "reason" in cell:
            typer.echo(f"{cell['cell_id']}: not computed: {cell['reason']}", err=True)


def _differences(sweep: Sweep, metric: str | None) -> list[tuple[Scored, str, list[float]]]:
    """Each cell that is done, its metric, and the difference at each prompt where that is defined."""
    # Here, so that the other commands do not wait for pandas.
    from emosteer.scored import scored_cells

    _, scored = scored_cells(sweep)
    done = [one for one in scored.values() if one.cell.kind == CELL and one.cell.baseline_id in scored]
    if not done:
        raise EmosteerError(f"{sweep.name}: no cell is done yet, whose prompts could say how much they vary")
    measured = sorted({name for one in done for name in one.metrics})
    found = []
    for one in sorted(
        done,
        key=lambda one: (one.cell.pair.name if one.cell.pair else "", one.cell.layers or (), one.coefficient),
    ):
        of = metric or (one.cell.pair.primary if one.cell.pair else "")
        if of not in measured:
            given = f"--metric {of}" if metric else f"primary metric {of}"
            raise EmosteerError(f"{given}: not measured in {sweep.name}{near(of, measured)}; choose of {', '.join(measured)}")
        baseline = scored[one.cell.baseline_id]
        (differences,) = one.matrix([of], baseline.prompts) - baseline.matrix([of], baseline.prompts)
        found.append((one, of, [float(value) for value in differences if not math.isnan(value)]))
    return found


def _planned(one: Scored, metric: str, differences: list[float], effect: float, wanted: float, alpha: float) -> dict[str, Any]:
    import numpy as np

    from emosteer.statistics import prompts_needed, smallest_effect, upper_deviation

    assert one.cell.pair is not None
    n = len(differences)
    line: dict[str, Any] = {
        "cell_id": one.cell.id,
        "pair": one.cell.pair.name,
        "metric": metric,
        "layers": "+".join(map(str, one.record["resolved"]["layers"])),
        "coefficient": one.coefficient,
        "n": n,
    }
    if n < 2 or len(set(differences)) == 1:
        reason = "two prompts or more show a deviation" if n < 2 else "the difference is the same at every prompt"
        return line | {"sd": None, "sees": None, "needed": None, "needed_safely": None, "reason": f"{reason} (prompts: {n})"}
    deviation = float(np.std(differences, ddof=1))
    options = {"wanted": wanted, "alpha": alpha}
    return line | {
        "sd": deviation,
        "sees": smallest_effect(n, deviation, **options),
        "needed": prompts_needed(effect, deviation, **options),
        "needed_safely": prompts_needed(effect, upper_deviation(deviation, n), **options),
    }


def _row(cell: dict[str, Any]) -> list[str | int]:
    numbers = [f"{cell[key]:.2f}" if cell[key] is not None else "-" for key in ("sd", "sees")]
    prompts = [_number(cell[key]) for key in ("needed", "needed_safely")] if cell["sd"] is not None else ["-", "-"]
    return [cell["pair"], cell["metric"], cell["layers"], f"{cell['coefficient']:g}", cell["n"], *numbers, *prompts]


def _number(prompts: int | None) -> str:
    return ">1,000,000" if prompts is None else f"{prompts:,}"


def _in_words(needed: list[int | None]) -> str:
    known = sorted(n for n in needed if n is not None)
    if not known:
        return "not computed for any cell"
    return f"{known[(len(known) - 1) // 2]:,} prompts are enough in half of {count(len(known), 'cell')}, {known[-1]:,} in all"
