"""Every attribution checked by itself: exact patching of a few components, the strongest and random ones, on a sample of pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy import stats

from emosteer.attribution.case import Case
from emosteer.attribution.exact import ALL, LAST, patch_components
from emosteer.attribution.scores import ADDING_SITES, Attribution
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
    blocks: tuple[int, ...]
    """First the strongest by attribution, then random ones."""
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
    """Compare an attribution with exact patching of each site's k strongest components and k random others.

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
    by_id = {case.id: case for case in cases}
    sample = [by_id[name] for name in ids]
    agreements = []
    for at in (LAST, ALL) if k else ():
        # All sites together: what comes before the patched positions is then read once.
        scores, order = (found.last, found.pair_ids) if at == LAST else (found.everywhere, found.aligned_ids)
        blocks = {site: _chosen(scores[site].mean(0), k, generator) for site in ADDING_SITES}
        places = [(site, block) for site in ADDING_SITES for block in blocks[site]]
        exact = dict(zip(places, patch_components(model, sample, places, at, on_progress).mean(0).tolist(), strict=True))
        rows = [order.index(name) for name in ids]
        for site in ADDING_SITES:
            own = scores[site][rows][:, blocks[site]].mean(0).tolist()
            true = [exact[site, block] for block in blocks[site]]
            agreements.append(Agreement(site, at, tuple(blocks[site]), tuple(own), tuple(true), len(ids)))
    return agreements


def _chosen(scores: torch.Tensor, k: int, generator: torch.Generator) -> list[int]:
    by_strength = scores.abs().argsort(descending=True, stable=True).tolist()
    others = by_strength[k:]
    return by_strength[:k] + [others[i] for i in torch.randperm(len(others), generator=generator)[:k].tolist()]


def _correlation(of: Any, a: Sequence[float], b: Sequence[float]) -> float | None:
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    value = float(of(a, b).statistic)
    return value if math.isfinite(value) else None
