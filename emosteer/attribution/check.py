"""Every attribution checked by itself: exact patching of a few components, the strongest and random ones, on a sample of pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from emosteer.attribution.case import Case
from emosteer.attribution.exact import ALL, LAST, patch_components
from emosteer.attribution.scores import ADDING_SITES, NOISING, Attribution
from emosteer.model.anatomy import HEAD, KEY, NEURON, QUERY
from emosteer.model.batches import Progress, silent
from emosteer.model.language_model import LanguageModel

N_PAIRS = 8
"""Aligned pairs in the sample: no fewer than an attribution needs."""
LEAST_PEARSON, LEAST_SAME_SIGN = 0.8, 0.7
"""Agreement below either is low. Methods that fail gave r below 0.5 on SmolLM2; random signs agree in 0.5 of the components."""


@dataclass(frozen=True)
class Agreement:
    """Of one site at one position: attributed and exact scores of the same components, means over the same pairs."""

    site: str
    position: str
    """`last` or `all`."""
    components: tuple[tuple[int, ...], ...]
    """(block,), or of heads (block, head): first the strongest by attribution, then random ones. Of neurons (block, neuron): those
    that are kept."""
    attributed: tuple[float, ...]
    """In nats of the metric, as is `exact`."""
    exact: tuple[float, ...]
    n_pairs: int

    @property
    def pearson(self) -> float | None:
        """Correlation over the components; None where there are fewer than three, or one side is constant."""
        return _correlation(stats.pearsonr, self.attributed, self.exact)

    @property
    def spearman(self) -> float | None:
        """Rank correlation, likewise."""
        return _correlation(stats.spearmanr, self.attributed, self.exact)

    @property
    def same_sign(self) -> float:
        """Share of the components whose two scores are both positive, or both not."""
        same = [(a > 0) == (b > 0) for a, b in zip(self.attributed, self.exact, strict=True)]
        return sum(same) / len(same)

    @property
    def is_low(self) -> bool:
        """Whether r is below 0.8, or fewer than 0.7 of the signs agree."""
        return (self.pearson is not None and self.pearson < LEAST_PEARSON) or self.same_sign < LEAST_SAME_SIGN

    def __str__(self) -> str:
        r, rho = ("not computed" if value is None else f"{value:.2f}" for value in (self.pearson, self.spearman))
        return f"{self.site}, {self.position}: r {r}, rho {rho}, signs {self.same_sign:.0%}"

    def to_json(self) -> dict[str, Any]:
        """For the attribution's summary."""
        numbers = {"pearson": self.pearson, "spearman": self.spearman, "same_sign": self.same_sign, "is_low": self.is_low}
        return asdict(self) | numbers


def check(model: LanguageModel, cases: Sequence[Case], found: Attribution, k: int, on_progress: Progress = silent) -> list[Agreement]:
    """Compare an attribution with exact patching of each site's k strongest components and k random others, and of the kept neurons.

    The sample of pairs and the random components are the same each time.

    Args:
        model: the language model.
        cases: those of the attribution.
        found: what it found.
        k: components of either kind, at each site and position; 0 checks nothing.
        on_progress: told the scores that are there, at one position and then at the other.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(len(found.aligned_ids), generator=generator)[:N_PAIRS].tolist()
    ids = [found.aligned_ids[row] for row in sorted(drawn)]
    by_id = {case.id: case.swapped() if found.direction == NOISING else case for case in cases}
    sample = [by_id[name] for name in ids]
    agreements = []
    for at in (LAST, ALL) if k else ():
        # All sites together: what comes before the patched positions is then read once.
        order = found.pair_ids if at == LAST else found.aligned_ids
        rows = [order.index(name) for name in ids]
        chosen = _components(found, at, k, rows, generator)
        places: list[Any] = [(site, *component) for site, (components, _) in chosen.items() for component in components]
        exact = iter(patch_components(model, sample, places, at, on_progress).mean(0).tolist())
        for site, (components, own) in chosen.items():
            agreements.append(Agreement(site, at, components, own, tuple(islice(exact, len(components))), len(ids)))
    return agreements


def _components(
    found: Attribution, at: str, k: int, rows: Sequence[int], generator: torch.Generator
) -> dict[str, tuple[tuple[tuple[int, ...], ...], tuple[float, ...]]]:
    """Of each site the components to be patched, and their scores, means over the sample's rows. Of neurons those that are kept."""
    scores = found.last if at == LAST else found.everywhere
    chosen = {}
    for site in (site for site in (*ADDING_SITES, HEAD, QUERY, KEY) if site in scores):
        components = _chosen(scores[site].nanmean(0), k, generator)
        means = scores[site][rows].mean(0)
        chosen[site] = components, tuple(float(means[component]) for component in components)
    neurons = found.neurons_last if at == LAST else found.neurons_everywhere
    if neurons is not None:
        chosen[NEURON] = neurons.places, tuple(neurons.scores[rows].mean(0).tolist())
    return chosen


def _chosen(scores: Tensor, k: int, generator: torch.Generator) -> tuple[tuple[int, ...], ...]:
    """Indices into scores [block] or [block, head]."""
    by_strength = scores.flatten().abs().argsort(descending=True, stable=True)
    others = by_strength[k:]
    flat = torch.cat([by_strength[:k], others[torch.randperm(len(others), generator=generator)[:k]]])
    return tuple(tuple(index) for index in torch.stack(torch.unravel_index(flat, scores.shape), dim=1).tolist())


def _correlation(of: Any, a: Sequence[float], b: Sequence[float]) -> float | None:
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    value = float(of(a, b).statistic)
    return value if math.isfinite(value) else None
