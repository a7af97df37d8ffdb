"""How often the statistics err: sweeps are made up with an effect that is known, and analysed by emosteer's own code.

    python benchmarks/error_rates.py [--sweeps 1000] [--cells 12] [--prompts 32] [--json FILE]

A sweep's differences are those of emotion words per 100 in replies of 20 to 60 words, Poisson counts with a rate of the prompt's
own; all cells share the baseline, as in a real sweep. Without an effect, steered replies are drawn as the baseline's are. With
one, every cell adds as much, so that whichever is chosen, the truth about it is known. Perplexities are log-normal; for the test
of no cost their true ratio is the margin itself.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from emosteer.statistics import confirm, dose_response, equivalence_p, false_discovery_rate, holm, paired_effects, primary_effect

ALPHA = 0.05
RATE = 4.0
"""Emotion words per 100 without steering."""
EFFECT = 3.0
"""Words per 100 that every cell adds: d is 0.54."""
RESAMPLES = 999

Floats = NDArray[np.float64]


def main() -> None:
    """Simulate, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", default=1000, type=int)
    parser.add_argument("--cells", default=12, type=int)
    parser.add_argument("--prompts", default=32, type=int)
    parser.add_argument("--json", type=Path, help="write the rates there too")
    options = parser.parse_args()
    found = {
        "without an effect": without_effect(options.sweeps, options.cells, options.prompts),
        "with an effect": with_effect(options.sweeps, options.cells, options.prompts),
    }
    print(f"{options.sweeps:,} sweeps of {options.cells} cells x {options.prompts} prompts")
    for heading, rates in found.items():
        print(f"\n| {heading} | rate | of | 99 % interval |\n|---|---|---|---|")
        for name, (hits, tries) in rates.items():
            low, high = stats.binomtest(hits, tries).proportion_ci(0.99)
            print(f"| {name} | {hits / tries:.3f} | {tries:,} | {low:.3f} to {high:.3f} |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def without_effect(sweeps: int, cells: int, prompts: int) -> dict[str, tuple[int, int]]:
    """What is found -> how often at the level 0.05, and of how many times, where there is nothing to find."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for number in range(sweeps):
        chance = np.random.default_rng((1, number))
        steered, baseline = sweep(chance, np.zeros(cells), prompts)
        effects = paired_effects(steered, np.tile(baseline, (cells, 1)), seed=number, n_resamples=RESAMPLES)
        p = np.array([effect.p for effect in effects])
        first = primary_effect(steered[0], baseline, seed=number, n_resamples=RESAMPLES)
        counts["a cell's p (Wilcoxon)"] += list(p <= ALPHA)
        counts["a cell's p_perm (sign flips)"] += [effect.p_perm <= ALPHA for effect in effects]
        counts["a cell's p_t (paired t)"].append(first.p_t <= ALPHA)
        counts["the trend's p"].append(_trend_p(steered - baseline, number) <= ALPHA)
        counts["any cell: p"].append(bool((p <= ALPHA).any()))
        counts["any cell: q"].append(bool((false_discovery_rate(p) <= ALPHA).any()))
        counts["any cell: Holm's p"].append(bool((holm(p) <= ALPHA).any()))
        counts["the best cell's own p"].append(bool(p[(steered - baseline).mean(axis=1).argmax()] <= ALPHA))
        counts["the confirmation's p"].append(_confirmed(steered - baseline, number).p <= ALPHA)
        after, before = perplexities(chance, 1.1, prompts)
        counts["no cost (ratio is the margin, 1.1)"].append(equivalence_p(after, before, 1.1, of_ratio=True) <= ALPHA)
    return {name: (int(sum(hits)), len(hits)) for name, hits in counts.items()}


def with_effect(sweeps: int, cells: int, prompts: int) -> dict[str, tuple[int, int]]:
    """Which interval, or test -> how often it covers the truth, or finds the effect, and of how many times."""
    size = true_size()
    counts: dict[str, list[bool]] = defaultdict(list)
    for number in range(sweeps):
        chance = np.random.default_rng((2, number))
        steered, baseline = sweep(chance, np.full(cells, EFFECT), prompts)
        effects = paired_effects(steered, np.tile(baseline, (cells, 1)), seed=number, n_resamples=RESAMPLES)
        first = primary_effect(steered[0], baseline, seed=number, n_resamples=RESAMPLES)
        best = int((steered - baseline).mean(axis=1).argmax())
        counts["covers: percentile interval"] += [effect.ci_low <= EFFECT <= effect.ci_high for effect in effects]
        counts["covers: BCa interval"].append(first.ci_low_bca <= EFFECT <= first.ci_high_bca)
        counts["covers: BCa interval of d"].append(first.effect_size_ci_low <= size <= first.effect_size_ci_high)
        counts["covers: the best cell's own interval"].append(effects[best].ci_low <= EFFECT <= effects[best].ci_high)
        confirmed = _confirmed(steered - baseline, number)
        counts["covers: the confirmation's interval"].append(confirmed.ci_low <= EFFECT <= confirmed.ci_high)
        counts["finds: the best cell's own p"].append(effects[best].p <= ALPHA)
        counts["finds: the confirmation's p"].append(confirmed.p <= ALPHA)
        after, before = perplexities(chance, 1.0, prompts)
        counts["finds: no cost (ratio is 1, margin 1.1)"].append(equivalence_p(after, before, 1.1, of_ratio=True) <= ALPHA)
    return {name: (int(sum(hits)), len(hits)) for name, hits in counts.items()}


def sweep(chance: np.random.Generator, effects: Floats, prompts: int) -> tuple[Floats, Floats]:
    """Emotion words per 100: steered `[cell, prompt]`, and of the baseline `[prompt]`."""
    rates = chance.gamma(4, RATE / 4, prompts)
    return words(chance, rates + effects[:, np.newaxis]), words(chance, rates)


def words(chance: np.random.Generator, rates: Floats) -> Floats:
    """Matching words per 100 in replies of 20 to 60 words."""
    lengths = chance.integers(20, 61, rates.shape)
    return np.asarray(100 * chance.poisson(rates * lengths / 100) / lengths)


def perplexities(chance: np.random.Generator, ratio: float, prompts: int) -> tuple[Floats, Floats]:
    """Steered and unsteered; the geometric mean of their ratio is `ratio`."""
    before = chance.lognormal(1.5, 0.4, prompts)
    return before * ratio * chance.lognormal(0, 0.15, prompts), before


def _confirmed(differences: Floats, seed: int) -> Any:
    return confirm(differences, lambda half: np.ones(len(differences), dtype=np.bool_), seed=seed, n_flips=499)


def _trend_p(differences: Floats, seed: int) -> float:
    return dose_response([0.1, 0.2, 0.3], differences[:3], seed=seed, n_resamples=99).p


def true_size() -> float:
    """The d for paired data of a cell with the effect.

    The variance of words given the rate r and the length n is 100 r / n; the prompt's rate itself cancels in the difference.
    """
    per_length = float(np.mean(1 / np.arange(20, 61)))
    return EFFECT / math.sqrt(100 * per_length * (2 * RATE + EFFECT))


if __name__ == "__main__":
    main()
