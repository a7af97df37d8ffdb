"""Every method of attribution against exact patching of the same components: agreement first, then seconds.

    python benchmarks/attribution.py [--pair joy_sadness] [--limit N] [--threads 1] [--quick] [--json FILE]

Methods are attribution patching with one gradient and, as a sweep does, with 5 where positions are summed, and AtP*. Both they and
exact patching read what prompts begin with once, and batch as they do in a sweep; exact patching also skips the blocks before the one
that is patched. One attribution scores every component of the table; exact patching takes a row of a run for each. Correlations are
over components, of means over the aligned pairs; of neurons, over the 50 that attribution patching keeps and 50 random ones at each
position. CPU seconds are counted: on a machine that others use they are the steadier ones.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from extraction import SMOLLM2
from scipy import stats
from torch import Tensor

from emosteer.attribution import Attribution, Case, attribute, prepare
from emosteer.attribution.exact import patch_components, patch_exactly
from emosteer.datasets import SHIPPED, load_diagnostic_pairs
from emosteer.model.capture import Place, every_place
from emosteer.model.heads import with_neurons
from emosteer.model.language_model import LanguageModel, load

T = TypeVar("T")


METHODS: dict[str, dict[str, Any]] = {"1 gradient": {"steps": 1}, "default": {}, "atp_star": {"method": "atp_star"}}
N_NEURONS = 50


@dataclass(frozen=True)
class Comparison:
    """One site at one position."""

    site: str
    position: str
    components: int
    pearson: dict[str, float]
    """By method, of those that score it."""
    spearman: dict[str, float]
    seconds: float
    """Of exact patching."""


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="joy_sadness", help="name of a shipped emotion pair")
    parser.add_argument("--limit", type=int, help="only so many diagnostic pairs (at least 8)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="without the two rows of each token, which take most of the time")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(SMOLLM2)
    pairs = load_diagnostic_pairs(SHIPPED / "diagnostics" / f"{options.pair}.jsonl")[: options.limit]
    cases = [case for case in prepare(model, pairs) if case.is_aligned]
    attribute(model, cases[:8])  # warms up
    found, seconds = {}, {}
    for name, how in METHODS.items():
        found[name], seconds[name] = _timed(partial(attribute, model, cases, **how))
    print(f"{SMOLLM2.name}, {options.pair}, {len(cases)} pairs, {options.threads} thread(s); attribution of all:")
    print("".join(f"- {name}: {took:.1f} s\n" for name, took in seconds.items()))
    columns = [f"{kind} {name}" for name in METHODS for kind in ("r", "rho")]
    print(f"| site | position | components | {' | '.join(columns)} | exact, seconds |\n|{'---|' * (len(columns) + 4)}")
    rows = []
    for row in _comparisons(model, cases, found, options.quick):
        own = [row.pearson.get(name) for name in METHODS], [row.spearman.get(name) for name in METHODS]
        numbers = [f"{number:.3f}" if number is not None else "" for both in zip(*own, strict=True) for number in both]
        print(f"| {row.site} | {row.position} | {row.components} | {' | '.join(numbers)} | {row.seconds:.1f} |", flush=True)
        rows.append(row)
    exact = sum(row.seconds for row in rows if "default" in row.pearson)
    print(f"\nexact patching of what the default scores: {exact:.1f} s, {exact / seconds['default']:.1f} times the attribution's")
    if options.json:
        figures = {"pair": options.pair, "pairs": len(cases), "attribution_seconds": seconds, "exact": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _comparisons(model: LanguageModel, cases: list[Case], found: dict[str, Attribution], is_quick: bool) -> Iterator[Comparison]:
    for position in ("last", "all"):
        scores = {name: own.last if position == "last" else own.everywhere for name, own in found.items()}
        for site in ("attention", "mlp", "head", "query", "key"):
            exact, seconds = _timed(partial(patch_exactly, model, cases, site, position))
            means = {name: own[site].mean(0) for name, own in scores.items() if site in own}
            yield _compare(site, position, means, exact.mean(0), seconds)
        yield _neurons(model, cases, position)
    if is_quick:
        return
    places = every_place(model.anatomy, ("residual",))
    embeddings = {name: _embeddings(own) for name, own in found.items()}
    yield _by_position(model, cases, "embeddings", embeddings, [("before", 0)])
    yield _by_position(model, cases, "residual", {name: own.residual_by_position for name, own in found.items()}, places)


def _embeddings(found: Attribution) -> Tensor:
    assert found.embeddings_by_position is not None
    return found.embeddings_by_position[:, None]


def _neurons(model: LanguageModel, cases: list[Case], position: str) -> Comparison:
    """The strongest and as many random ones, which have to be told apart."""
    kept = with_neurons(model).anatomy.down[0].get_parameter("weight")
    n = model.n_blocks * int(kept.shape[1])
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    means, places = {}, None
    for name, how in METHODS.items():
        # All of them are kept, to look up the same ones by every method.
        found = attribute(model, cases, neurons=n, **how)
        own = found.neurons_last if position == "last" else found.neurons_everywhere
        assert own is not None
        score = dict(zip(own.places, own.scores.mean(0).tolist(), strict=True))
        if places is None:
            ordered = sorted(score)
            others = [ordered[i] for i in drawn.tolist() if ordered[i] not in own.places[:N_NEURONS]][:N_NEURONS]
            places = [*own.places[:N_NEURONS], *others]
        means[name] = torch.tensor([score[place] for place in places])
    assert places is not None
    exact, seconds = _timed(partial(patch_components, model, cases, [("neuron", *place) for place in places], position))
    return _compare("neuron", position, means, exact.mean(0), seconds)


def _by_position(
    model: LanguageModel, cases: list[Case], site: str, scores: dict[str, Tensor], components: list[Place]
) -> Comparison:
    """Each position from the end by itself; before the first token that differs nothing is to be scored."""
    own: dict[str, list[Tensor]] = {name: [] for name in scores}
    true, seconds = [], 0.0
    for at in range(-max(case.n_scored for case in cases), 0):
        reach = [row for row, case in enumerate(cases) if case.n_scored >= -at]
        exact, took = _timed(partial(patch_components, model, [cases[row] for row in reach], components, at))
        for name, found in scores.items():
            own[name].append(found[reach][..., at].mean(0))
        true.append(exact.mean(0))
        seconds += took
    return _compare(site, "each", {name: torch.stack(means) for name, means in own.items()}, torch.stack(true), seconds)


def _compare(site: str, position: str, own: dict[str, Tensor], true: Tensor, seconds: float) -> Comparison:
    b = true.flatten().numpy()
    pearson = {name: float(stats.pearsonr(means.flatten().numpy(), b).statistic) for name, means in own.items()}
    spearman = {name: float(stats.spearmanr(means.flatten().numpy(), b).statistic) for name, means in own.items()}
    return Comparison(site, position, len(b), pearson, spearman, seconds)


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    return run(), time.process_time() - started


if __name__ == "__main__":
    main()
