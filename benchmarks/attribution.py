"""Attribution by integrated gradients against exact patching of the same components: agreement first, then seconds as a ratio.

    python benchmarks/attribution.py [--pair joy_sadness] [--limit N] [--threads 1] [--json FILE]

Both read what prompts begin with once, and batch as they do in a sweep; exact patching also skips the blocks before the one that is
patched. One attribution scores every component of the table; exact patching takes a row of a run for each. Correlations are over
components, of means over the aligned pairs. CPU seconds are counted: on a machine that others use they are the steadier ones.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from extraction import SMOLLM2
from scipy import stats
from torch import Tensor

from emosteer.attribution import Attribution, Case, attribute, prepare
from emosteer.attribution.exact import patch_components, patch_exactly
from emosteer.datasets import SHIPPED, load_diagnostic_pairs
from emosteer.model.capture import Place, every_place
from emosteer.model.language_model import LanguageModel, load

T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """One site at one position."""

    site: str
    position: str
    components: int
    pearson: float
    spearman: float
    seconds: float
    """Of exact patching."""


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="joy_sadness", help="name of a shipped emotion pair")
    parser.add_argument("--limit", type=int, help="only so many diagnostic pairs (at least 8)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(SMOLLM2)
    pairs = load_diagnostic_pairs(SHIPPED / "diagnostics" / f"{options.pair}.jsonl")[: options.limit]
    cases = [case for case in prepare(model, pairs) if case.is_aligned]
    attribute(model, cases[:8])  # warms up
    found, seconds = _timed(lambda: attribute(model, cases))
    print(f"{SMOLLM2.name}, {options.pair}, {len(cases)} pairs, {options.threads} thread(s): attribution of all in {seconds:.1f} s\n")
    print("| site | position | components | r | rho | exact, seconds |\n|---|---|---|---|---|---|")
    rows = []
    for row in _comparisons(model, cases, found):
        numbers = f"{row.components} | {row.pearson:.3f} | {row.spearman:.3f} | {row.seconds:.1f}"
        print(f"| {row.site} | {row.position} | {numbers} |", flush=True)
        rows.append(row)
    exact = sum(row.seconds for row in rows)
    print(f"\nexact patching of all: {exact:.1f} s, {exact / seconds:.1f} times the attribution's")
    if options.json:
        figures = {"pair": options.pair, "pairs": len(cases), "attribution_seconds": seconds, "exact": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _comparisons(model: LanguageModel, cases: list[Case], found: Attribution) -> Iterator[Comparison]:
    for position, scores in (("last", found.last), ("all", found.everywhere)):
        for site in ("attention", "mlp", "head"):
            exact, seconds = _timed(partial(patch_exactly, model, cases, site, position))
            yield _compare(site, position, scores[site].mean(0), exact.mean(0), seconds)
    assert found.embeddings_by_position is not None
    places = every_place(model.anatomy, ("residual",))
    for site, own, components in (
        ("embeddings", found.embeddings_by_position[:, None], [("before", 0)]),
        ("residual", found.residual_by_position, places),
    ):
        yield _by_position(model, cases, site, own, components)


def _by_position(model: LanguageModel, cases: list[Case], site: str, scores: Tensor, components: list[Place]) -> Comparison:
    """Each position from the end by itself; before the first token that differs nothing is to be scored."""
    own, true, seconds = [], [], 0.0
    for at in range(-max(case.n_scored for case in cases), 0):
        reach = [row for row, case in enumerate(cases) if case.n_scored >= -at]
        exact, took = _timed(partial(patch_components, model, [cases[row] for row in reach], components, at))
        own.append(scores[reach][..., at].mean(0))
        true.append(exact.mean(0))
        seconds += took
    return _compare(site, "each", torch.stack(own), torch.stack(true), seconds)


def _compare(site: str, position: str, own: Tensor, true: Tensor, seconds: float) -> Comparison:
    a, b = own.flatten().numpy(), true.flatten().numpy()
    return Comparison(site, position, len(a), float(stats.pearsonr(a, b).statistic), float(stats.spearmanr(a, b).statistic), seconds)


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    return run(), time.process_time() - started


if __name__ == "__main__":
    main()
