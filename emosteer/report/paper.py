"""The report's figures for a paper, as matplotlib draws them, and the table of cells as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from emosteer import figures
from emosteer.checks import near
from emosteer.errors import EmosteerError
from emosteer.records.paths import in_name
from emosteer.records.store import Store
from emosteer.report.grid import SLICE, metric_names
from emosteer.report.locus import loci
from emosteer.report.words import UNITS, digits_of, number, probability
from emosteer.tables import READABLE_DUPLICATION, Tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONG = 40
"""A table of more rows breaks over pages."""
_SPECIAL = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def checked_metric(tables: Tables, metric: str | None) -> str | None:
    """A metric that the results have; None stands for each pair's primary one.

    Raises:
        EmosteerError: nobody computed it, or the sweep has no cell with replies.
    """
    known = metric_names(tables.cells)
    if not len(tables.replied) or not known:
        raise EmosteerError("no cell has replies and scores: there is nothing to draw; `emosteer-sweep status` tells why")
    if metric is not None and metric not in known:
        raise EmosteerError(f"--metric {metric}: nobody computed it{near(metric, known)}; the sweep has {', '.join(known)}")
    return metric


def paper_figures(store: Store, tables: Tables, metric: str | None = None) -> Iterator[tuple[str, Figure]]:
    """File name and figure: per pair (and what else tells its cells apart) heatmap, dose-response and trade-off; per attribution one.

    Args:
        store: of the sweep, for the attributions' scores.
        tables: the sweep's.
        metric: instead of each pair's primary one.
    """
    cells = tables.replied
    slices = list(cells.groupby([column for column in SLICE if column in cells], dropna=False))
    models = [(rows.iloc[0]["pair"], rows.iloc[0]["model"]) for _, rows in slices]
    for at, (_, rows) in enumerate(slices, start=1):
        first = rows.iloc[0]
        shown = metric or str(first["primary"])
        if f"{shown}_delta" not in rows or rows[f"{shown}_delta"].isna().all():
            continue
        is_one = models.count((first["pair"], first["model"])) == 1
        name = in_name(f"{first['pair']}-{first['model']}-{shown}") + ("" if is_one else f"-{at}")
        unit = f" [{UNITS[shown]}]" if shown in UNITS else ""
        title = f"{first['pair']} on {first['model']}: {shown}{unit}"
        controls = tables.controls[tables.controls["control_key"].isin(rows["control_key"])]
        yield f"heatmap-{name}", figures.effect_heatmap(rows, shown, f"{title}, difference from the baseline (* q < 0.05)")
        yield f"dose-response-{name}", figures.dose_response(rows, controls, shown, title)
        if "perplexity_ratio" in rows and rows["perplexity_ratio"].notna().any():
            yield f"trade-off-{name}", figures.trade_off(rows, shown, title, READABLE_DUPLICATION)
    for locus in loci(store, tables):
        if locus["heatmaps"]:
            name = in_name(f"{locus['pair']}-{locus['id'].rsplit('-', 1)[-1]}")
            yield f"attribution-{name}", figures.locus(locus, f"{locus['pair']} on {locus['model']}")


def latex_table(tables: Tables, metric: str | None = None) -> str:
    r"""The cells that have replies, for `\input`: needs the package booktabs, and longtable where there are many."""
    rows = tables.replied.sort_values(["pair", "layer", "layers", "coefficient", "cell_id"])
    beyond = [name for name in ("random", "shuffled", "prompting") if _has(rows, name, metric)]
    headings = ["pair", "block", "coefficient", "metric", "difference", "$q$", *(f"beyond {name}" for name in beyond), "perplexity"]
    body = [" & ".join(_cells(row, metric, beyond)) + r" \\" for _, row in rows.iterrows()]
    columns = "llrl" + "r" * (len(headings) - 4)
    kind = "longtable" if len(rows) > LONG else "tabular"
    head = " & ".join(headings) + r" \\"
    ends = r"\endhead" if kind == "longtable" else ""
    lines = [
        "% Mean difference from the unsteered replies to the same prompts, with its bootstrap interval; q: Benjamini-Hochberg over",
        "% the sweep's cells, within each metric; perplexity as a multiple of the baseline's. Needs \\usepackage{booktabs}"
        + (" and {longtable}." if ends else "."),
        rf"\begin{{{kind}}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule" + ends,
        *body,
        r"\bottomrule",
        rf"\end{{{kind}}}",
    ]
    return "\n".join(lines) + "\n"


def _has(rows: pd.DataFrame, name: str, metric: str | None) -> bool:
    metrics = {metric} if metric else set(rows["primary"])
    return any(rows.get(f"{one}_beyond_{name}", pd.Series(dtype=float)).notna().any() for one in metrics)


def _cells(row: pd.Series[Any], metric: str | None, beyond: list[str]) -> list[str]:
    shown = metric or str(row["primary"])
    ratio = number(row.get("perplexity_ratio"))
    return [
        latex(row["pair"]),
        latex(row["layers"]),
        f"${row['coefficient']:g}$",
        latex(shown),
        _effect(row, f"{shown}_delta", shown, digits_of(shown)),
        f"${_bare(probability('q', number(row.get(f'{shown}_q'))))}$",
        *(_effect(row, f"{shown}_beyond_{name}", f"{shown}_beyond_{name}", digits_of(shown)) for name in beyond),
        "--" if pd.isna(ratio) else f"${ratio:.2f}$",
    ]


def _effect(row: pd.Series[Any], column: str, ends: str, digits: int) -> str:
    value, low, high = (number(row.get(name)) for name in (column, f"{ends}_ci_low", f"{ends}_ci_high"))
    return "--" if pd.isna(value) else f"${value:+.{digits}f}$ $[{low:+.{digits}f}, {high:+.{digits}f}]$"


def _bare(told: str) -> str:
    """`q = .012` without its name; `q < .001` keeps its sign."""
    return re.sub(r"^q (= )?", "", told).replace("not computed", r"\textrm{--}")


def latex(text: object) -> str:
    """Text in which nothing is a command of LaTeX."""
    return "".join(_SPECIAL.get(character, character) for character in str(text))
