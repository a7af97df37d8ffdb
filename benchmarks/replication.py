"""The paper's claims, judged by the rule that docs/replication.md wrote down before the sweep ran.

    emosteer -m experiment=replication
    python benchmarks/replication.py outputs/replication

Reads `results.parquet` and `confirmations.csv` of the sweep; prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from emosteer.statistics import holm

ALPHA = 0.05
READABLE_PERPLEXITY_RATIO = 1.5
READABLE_DUPLICATION = 0.3
FIRST_PERSON = "first_person"
RIVALS = ("random", "prompting")


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    claim: str
    verdict: str
    because: str


def main() -> None:
    """Judge a sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="its directory")
    directory = parser.parse_args().sweep
    results, confirmations = directory / "results.parquet", directory / "confirmations.csv"
    for needed in (results, confirmations):
        if not needed.is_file():
            sys.exit(f"{needed}: not there; run `emosteer -m experiment=replication`, or `emosteer-sweep report {directory}`")
    cells = pd.read_parquet(results)
    cells = cells[~cells["is_control"]]
    print(cells_table(cells), "", verdicts_table(judge(cells, pd.read_csv(confirmations))), sep="\n")


def judge(cells: pd.DataFrame, confirmations: pd.DataFrame) -> list[Verdict]:
    """The verdicts on joy, trust and the first person."""
    corrected = holm(confirmations["p"].to_numpy(dtype=float))
    verdicts = []
    for (_, confirmed), p in zip(confirmations.iterrows(), corrected, strict=True):
        pair = str(confirmed["pair"])
        rows = cells[cells["pair"] == pair]
        verdicts += [_emotion(pair, rows, confirmed, float(p)), _first_person(pair, rows)]
    return verdicts


def _emotion(pair: str, cells: pd.DataFrame, confirmed: pd.Series[Any], p: float) -> Verdict:
    """Whether the primary metric rises, on prompts that did not choose the cell, and more than by any push."""
    primary = str(confirmed["primary"])
    rise = f"confirmed {confirmed['confirmed']:+.2f} [{confirmed['ci_low']:+.2f}, {confirmed['ci_high']:+.2f}], Holm p {p:.3f}"
    if not (confirmed["confirmed"] > 0 and p < ALPHA):
        return Verdict(f"{primary} rises ({pair})", "not shown", rise)
    both = [_beats(row, primary, "random") for _, row in readable(cells).iterrows()]
    beyond = f"; {sum(both)} of {len(both)} readable cells rise (q), also beyond random directions (q)"
    return Verdict(f"{primary} rises ({pair})", "reproduced" if any(both) else "rises, but not beyond a random push", rise + beyond)


def _first_person(pair: str, cells: pd.DataFrame) -> Verdict:
    """Whether the first-person rate rises in a readable cell, and more than by any push."""
    rows = [row for _, row in readable(cells).iterrows()]
    rises = [row[f"{FIRST_PERSON}_delta"] > 0 and row[f"{FIRST_PERSON}_q"] < ALPHA for row in rows]
    beats = [_beats(row, FIRST_PERSON, "random") for row in rows]
    verdict = "reproduced" if any(beats) else "rises, but not beyond a random push" if any(rises) else "not shown"
    because = f"{sum(rises)} of {len(rows)} readable cells rise (q), {sum(beats)} also beyond random directions (q)"
    return Verdict(f"first person rises ({pair})", verdict, because)


def _beats(row: pd.Series[Any], metric: str, rival: str) -> bool:
    """Whether a cell's metric rises from the baseline, and beyond a rival, both by q."""
    rises = row[f"{metric}_delta"] > 0 and row[f"{metric}_q"] < ALPHA
    return bool(rises and row[f"{metric}_beyond_{rival}"] > 0 and row[f"{metric}_beyond_{rival}_q"] < ALPHA)


def readable(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells whose perplexity is at most 1.5 times the baseline's, and of whose replies at most 0.3 begin alike."""
    return cells[(cells["perplexity_ratio"] <= READABLE_PERPLEXITY_RATIO) & (cells["duplication_steered"] <= READABLE_DUPLICATION)]


def cells_table(cells: pd.DataFrame) -> str:
    """All cells, readable or not."""
    lines = [
        "| pair | block | coefficient | target | beyond random | beyond asking | first person | beyond random | perplexity | alike |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for _, row in cells.sort_values(["pair", "layer", "layer_request", "coefficient"]).iterrows():
        primary = row["primary"]
        block = f"{row['layers']}" + (" (auto)" if row["layer_request"] == "auto" else "")
        effects = [_effect(row, primary, f"{primary}_delta", "q")]
        effects += [_effect(row, f"{primary}_beyond_{rival}", f"{primary}_beyond_{rival}", "q") for rival in RIVALS]
        effects += [_effect(row, FIRST_PERSON, f"{FIRST_PERSON}_delta", "q")]
        effects += [_effect(row, f"{FIRST_PERSON}_beyond_random", f"{FIRST_PERSON}_beyond_random", "q")]
        cost = [f"x{row['perplexity_ratio']:.2f}", f"{row['duplication_steered']:.2f}"]
        lines.append("| " + " | ".join([str(row["pair"]), block, f"{row['coefficient']:g}", *effects, *cost]) + " |")
    return "\n".join(lines)


def _effect(row: pd.Series[Any], stem: str, column: str, q: str) -> str:
    mark = "*" if row[f"{stem}_{q}"] < ALPHA else ""
    return f"{row[column]:+.1f}{mark} [{row[f'{stem}_ci_low']:+.1f}, {row[f'{stem}_ci_high']:+.1f}]"


def verdicts_table(verdicts: list[Verdict]) -> str:
    """The claims and what became of them."""
    lines = ["| claim | verdict | because |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {one.claim} | **{one.verdict}** | {one.because} |" for one in verdicts)])


if __name__ == "__main__":
    main()
