"""What attribution found: a score for every component, prompt pair by prompt pair."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from emosteer.config import DIRECTIONS
from emosteer.errors import EmosteerError
from emosteer.model.anatomy import HEAD, KEY, QUERY

ADDING_SITES = ("attention", "mlp")
"""The sites that add to the residual stream, which is only their sum."""
SITES = ("residual", *ADDING_SITES)


DENOISING, NOISING = DIRECTIONS
"""From the clean run into the corrupted one, which shows what suffices, and the way back, which shows what is needed (Heimersheim
and Nanda 2024)."""
ROLES = ("template", "system", "user", "assistant")
"""Whose a token is; the assistant's is the beginning that is put into its mouth."""


@dataclass(frozen=True)
class Certainty:
    """How sure a ranking of blocks is, by the bootstrap over prompt pairs (Efron 1979): they are drawn anew, with replacement."""

    first_share: Tensor
    """Share of the resamples in which a block is the first [block]; they add up to 1."""
    low: Tensor
    """Lower end of the percentile interval of a block's score [block], in nats. It is not widened for having chosen the largest."""
    high: Tensor
    """Upper end [block]."""


@dataclass(frozen=True)
class Neurons:
    """The MLP neurons with the largest scores, by the absolute value of their mean over pairs, the largest first."""

    places: tuple[tuple[int, int], ...]
    """(block, neuron): its number among what the MLP's last matrix reads."""
    scores: Tensor
    """[pair, neuron of these]"""


@dataclass(frozen=True)
class Attribution:
    """Scores in units of the metric (nats): how much it would rise if the component had its clean activation in the corrupted run.

    With the direction noising: how much it would fall if the component had its corrupted activation in the clean run.

    Metric: log p(expressive words) - log p(counterpart words) as the next token. Positive scores carry the expression.
    """

    pair_ids: tuple[str, ...]
    aligned_ids: tuple[str, ...]
    """The pairs whose prompts have equal lengths: only these serve elsewhere than at the last position."""
    metric_clean: Tensor
    """[pair]"""
    metric_corrupted: Tensor
    """[pair]"""
    last: dict[str, Tensor]
    """At the last prompt position, per site: [pair, block]; for `head`, where heads can be told, [pair, block, head]; of AtP* for
    `query` and `key` likewise, NaN for pairs of unequal length."""
    everywhere: dict[str, Tensor]
    """Summed over all positions, for attention and mlp: [aligned pair, block]; for `head`, `query` and `key` [aligned pair, block,
    head]."""
    residual_by_position: Tensor
    """[aligned pair, block, position counted from the end]: index -1 is the last; NaN before a prompt's beginning."""
    embeddings_by_position: Tensor | None = None
    """What enters block 0 [aligned pair, position]. None in attributions of before emosteer scored it."""
    added_by_position: dict[str, Tensor] = field(default_factory=dict)
    """What attention and mlp add [aligned pair, block, position]; summed over positions it is `everywhere`. Empty in older ones."""
    roles: Tensor | None = None
    """Whose a position is [aligned pair, position], by its place in `ROLES`; -1 before a prompt. None where that is not known."""
    direction: str = DENOISING
    """denoising or noising."""
    no_heads: str = ""
    """Why there are no scores of heads, where there are none."""
    neurons_last: Neurons | None = None
    """The strongest at the last position; None where none were asked for."""
    neurons_everywhere: Neurons | None = None
    """The strongest over all positions, on the aligned pairs."""

    @property
    def n_dropped(self) -> int:
        """Pairs of unequal length, which served at the last position only."""
        return len(self.pair_ids) - len(self.aligned_ids)

    def block_scores(self) -> Tensor:
        """What each block adds at the last position [block]: mean over pairs of its attention's and MLP's scores.

        The residual stream's own score there only accumulates with depth, and says nothing of the block.
        """
        return self._added().mean(0)

    def _added(self) -> Tensor:
        """[pair, block]"""
        return self.last["attention"] + self.last["mlp"]

    def ranking(self) -> list[int]:
        """Blocks, the one that adds most to the expression first."""
        return [int(block) for block in self.block_scores().argsort(descending=True, stable=True)]

    def certainty(self, n_resamples: int = 4999, confidence: float = 0.95, seed: int = 0) -> Certainty:
        """How sure `block_scores` and the first of `ranking` are.

        Args:
            n_resamples: of the prompt pairs.
            confidence: level of the intervals.
            seed: of the resamples.
        """
        added = self._added().double()
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(added), (n_resamples, len(added)), generator=generator)
        counts = torch.zeros(n_resamples, len(added), dtype=added.dtype).scatter_add_(
            1, drawn, torch.ones_like(drawn, dtype=added.dtype)
        )
        means = counts @ added / len(added)
        firsts = means.sort(dim=1, descending=True, stable=True).indices[:, 0]
        tail = (1 - confidence) / 2
        low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=added.dtype), dim=0)
        return Certainty(firsts.bincount(minlength=added.shape[1]) / n_resamples, low, high)

    def tensors(self) -> dict[str, Tensor]:
        """All scores under names that a safetensors file can hold."""
        named = {f"last.{site}": scores for site, scores in self.last.items()}
        named |= {f"everywhere.{site}": scores for site, scores in self.everywhere.items()}
        named |= {"residual_by_position": self.residual_by_position}
        named |= {f"{site}_by_position": scores for site, scores in self.added_by_position.items()}
        for at, neurons in (("last", self.neurons_last), ("everywhere", self.neurons_everywhere)):
            if neurons is not None:
                named[f"{at}.neuron"] = neurons.scores
                named[f"{at}.neuron_places"] = torch.tensor(neurons.places, dtype=torch.int32).view(-1, 2)
        if self.roles is not None:
            named["roles"] = self.roles
        if self.embeddings_by_position is not None:
            named["embeddings_by_position"] = self.embeddings_by_position
        named |= {"metric.clean": self.metric_clean, "metric.corrupted": self.metric_corrupted}
        return {name: tensor.contiguous() for name, tensor in named.items()}

    @classmethod
    def from_tensors(
        cls,
        tensors: dict[str, Tensor],
        pair_ids: tuple[str, ...],
        aligned_ids: tuple[str, ...],
        no_heads: str = "",
        direction: str = DENOISING,
    ) -> Attribution:
        """The inverse of `tensors`; what older attributions lack is absent."""
        heads = tuple(site for site in (HEAD, QUERY, KEY) if f"last.{site}" in tensors)
        return cls(
            pair_ids=pair_ids,
            aligned_ids=aligned_ids,
            metric_clean=tensors["metric.clean"],
            metric_corrupted=tensors["metric.corrupted"],
            last={site: tensors[f"last.{site}"] for site in (*SITES, *heads)},
            everywhere={site: tensors[f"everywhere.{site}"] for site in (*ADDING_SITES, *heads)},
            residual_by_position=tensors["residual_by_position"],
            embeddings_by_position=tensors.get("embeddings_by_position"),
            added_by_position={site: tensors[f"{site}_by_position"] for site in ADDING_SITES if f"{site}_by_position" in tensors},
            roles=tensors.get("roles"),
            direction=direction,
            no_heads=no_heads,
            neurons_last=_neurons(tensors, "last"),
            neurons_everywhere=_neurons(tensors, "everywhere"),
        )

    def residual_before_by_position(self) -> Tensor:
        """The residual stream before each block [aligned pair, block, position]: the embeddings, then what the blocks before put out.

        Raises:
            EmosteerError: an attribution of before emosteer scored the embeddings.
        """
        if self.embeddings_by_position is None:
            raise EmosteerError("this attribution is older than scores of the embeddings: run it again, with mode=force")
        return torch.cat([self.embeddings_by_position[:, None], self.residual_by_position[:, :-1]], dim=1)

    def by_role(self) -> dict[str, dict[str, Tensor]]:
        """Site -> role -> scores summed over that role's positions [aligned pair, block]; nothing where roles are not known.

        Sites are attention, mlp, residual, and the embeddings, which have one block.
        """
        if self.roles is None or self.embeddings_by_position is None:
            return {}
        sites = {"embeddings": self.embeddings_by_position[:, None], **self.added_by_position, "residual": self.residual_by_position}
        own = {role: (self.roles == number)[:, None] for number, role in enumerate(ROLES)}
        return {
            site: {role: scores.where(mask, 0.0).sum(-1) for role, mask in own.items() if bool(mask.any())}
            for site, scores in sites.items()
        }

    def residual_profile(self) -> Tensor:
        """The residual stream's scores by position from the end, mean over the pairs that reach it: [block, position]."""
        return torch.nanmean(self.residual_by_position, dim=0)


def _neurons(tensors: dict[str, Tensor], at: str) -> Neurons | None:
    if f"{at}.neuron" not in tensors:
        return None
    places = tensors[f"{at}.neuron_places"].tolist()
    return Neurons(tuple((block, number) for block, number in places), tensors[f"{at}.neuron"])
