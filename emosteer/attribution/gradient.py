"""Attribution patching: every component's effect from one gradient instead of one run per component.

A component's score is `(clean - corrupted activation) . d metric / d activation`, the first-order estimate of what patching its
clean activation into the corrupted run would do to the metric (Nanda 2023; Syed et al. 2023). At the last position one
gradient, at the corrupted run, agrees with exact patching. Elsewhere it does not, and the gradient is averaged over steps on
the way from the corrupted to the clean embeddings (integrated gradients, Hanna et al. 2024).

AtP* (Kramár et al. 2024) takes one gradient everywhere, and mends two ways in which it fails. Of queries and keys, attention
probabilities are computed anew (`emosteer.attribution.attention_fix`). And where a component's direct and indirect effects nearly
cancel, a small error of either decides: gradients are taken again with each block's addition left out of the backward pass
(GradDrop), and the absolute scores averaged. Ours keep the sign of the plain score, as what carries the expression is told from
what works against it.

Up to the first token that differs both runs are one, and nothing is to be scored: that part is read once, without a graph. Over the
rest the graph begins at the embeddings, holds no weight's gradient, and ends in one position's logits.

Memory, for each scored token: the clean and corrupted activations' difference at 4 sites of every block, in the model's dtype; and
the graph: all that blocks keep for the backward pass, or where that does not fit, what enters each block (activation checkpointing,
at the price of one more forward). Gradients are reduced as they arise, and none is kept. With 80 blocks of width 8,192 in bfloat16
(70B) that is 5.2 MB of differences, and 19 MB of graph, or 1.3 MB with checkpointing: for the last 20 tokens of a prompt 0.5 GB, or
0.13 GB, and for a full batch of 256 tokens 6.2 GB, or 1.7 GB.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from emosteer.attribution.attention_fix import ALL, LAST, AttentionFix
from emosteer.attribution.case import MIN_PAIRS, Case
from emosteer.attribution.graph import checkpointed, dropping, frozen
from emosteer.attribution.runs import Plan, Run, measured, plan, runs_of, scored_places
from emosteer.attribution.scores import ADDING_SITES, DENOISING, NOISING, ROLES, SITES, Attribution, Neurons
from emosteer.config import ATTRIBUTION_METHODS, DIRECTIONS
from emosteer.errors import EmosteerError
from emosteer.model.anatomy import BEFORE, HEAD, KEY, NEURON, QUERY
from emosteer.model.attention import attended, opened, with_open_attention
from emosteer.model.batches import Progress, run_in_batches, silent
from emosteer.model.capture import Place, replace_output, watching
from emosteer.model.heads import parted, with_heads, with_neurons
from emosteer.model.language_model import LanguageModel
from emosteer.model.memory import give_back, is_out_of_memory

log = logging.getLogger(__name__)

PATCHING, ATP_STAR, _ = ATTRIBUTION_METHODS

SUMMED = (*ADDING_SITES, HEAD, QUERY, KEY, NEURON)
"""Sites that are scored over all positions at once, where they are scored."""
STEPS_LAST = 1
STEPS_ELSEWHERE = 5


def attribute(
    model: LanguageModel,
    cases: Sequence[Case],
    steps: int | None = None,
    on_progress: Progress = silent,
    checkpoints: bool | None = None,
    direction: str = DENOISING,
    method: str = PATCHING,
    neurons: int = 0,
) -> Attribution:
    """Score the residual stream, attention, MLP and, where they can be told, heads of every block, and the embeddings.

    AtP* scores queries and keys of every head too. Neurons of the MLPs are scored all, and the strongest kept.

    Args:
        model: the language model.
        cases: at least 8, of which at least 8 aligned.
        steps: gradients averaged between the corrupted and the clean run; None takes 1 at the last position, 5 elsewhere, of AtP* 1.
        on_progress: told the cases that are done, and how many there are.
        checkpoints: whether each block is computed again for the backward pass, to hold less memory; None where that is needed.
        direction: denoising, clean activations into the corrupted run; or noising, the way back.
        method: attribution_patching; or atp_star, which takes as many forwards and backwards more as there are blocks.
        neurons: how many of the strongest MLP neurons are kept, at the last position and over all.

    Raises:
        EmosteerError: fewer than 8 pairs are aligned under the model's tokenizer, `steps` is less than 1, or AtP* is asked of a
            model whose heads can't be told or whose attention can't be opened, or neurons of one where they can't be told.
    """
    if method not in (PATCHING, ATP_STAR):
        raise EmosteerError(f"attribution.method={method}: choose one of {PATCHING}, {ATP_STAR}")
    if direction not in DIRECTIONS:
        raise EmosteerError(f"attribution.direction={direction}: choose one of {', '.join(DIRECTIONS)}")
    if direction == NOISING:
        back = attribute(model, [case.swapped() for case in cases], steps, on_progress, checkpoints, method=method, neurons=neurons)
        return replace(back, direction=NOISING, metric_clean=-back.metric_corrupted, metric_corrupted=-back.metric_clean)
    if steps is not None and steps < 1:
        raise EmosteerError(f"attribution.steps={steps}: give at least 1, or null for the default")
    aligned = [case for case in cases if case.is_aligned]
    if len(aligned) < MIN_PAIRS:
        raise EmosteerError(
            f"{len(aligned)} of {len(cases)} diagnostic pairs have prompts of equal length for {model.name}'s tokenizer; "
            f"{MIN_PAIRS} are needed: write pairs that are aligned for it, or set attribution=none"
        )
    model, no_heads = _anatomised(model, method)
    if neurons:
        model = with_neurons(model)
    with frozen(model.model), opened(model) if method == ATP_STAR else nullcontext():
        patching = _Patching(model, _plan(model, cases, checkpoints, method), steps, method)
        n_done = 0
        # Aligned and other cases apart: only the aligned can be interpolated.
        for group in (aligned, [case for case in cases if not case.is_aligned]):
            for_all = partial(_told_of_all, on_progress, n_done, len(cases))
            run_in_batches(partial(patching.score_some, group), [patching.plan.size(case) for case in group], 1.0, for_all)
            n_done += len(group)
    return _gather(patching.scores, cases, aligned, no_heads, neurons)


def _anatomised(model: LanguageModel, method: str) -> tuple[LanguageModel, str]:
    """The model with all parts found that a method scores; and why heads are left out."""
    if method == ATP_STAR:
        try:
            return with_open_attention(with_heads(model)), ""
        except EmosteerError as error:
            raise EmosteerError(f"attribution.method={ATP_STAR}: {error}; choose attribution.method={PATCHING}") from None
    try:
        return with_heads(model), ""
    except EmosteerError as error:
        log.info("attribution leaves out heads: %s", error)
        return model, str(error)


def _plan(model: LanguageModel, cases: Sequence[Case], checkpoints: bool | None, method: str) -> Plan:
    found = plan(model, cases, checkpoints)
    # Of attention probabilities, which are in the graph, three differences are held beside.
    return replace(found, tokens=found.tokens / 4) if method == ATP_STAR else found


def _told_of_all(on_progress: Progress, before: int, total: int, done: int, _of: int) -> None:
    on_progress(before + done, total)


@dataclass(frozen=True)
class _Scores:
    """Of one case."""

    metric_clean: Tensor
    metric_corrupted: Tensor
    last: dict[str, Tensor]
    """[block] for each site, [block, head] for the heads, queries and keys."""
    everywhere: dict[str, Tensor]
    """The same, for `SUMMED`; empty for a case that is not aligned."""
    by_position: dict[str, Tensor]
    """[block, position] for each site: the last ones, from where the prompts begin to differ; only block 0 before the blocks."""


class _Patching:
    """Scores cases batch by batch, and holds what was found."""

    def __init__(self, model: LanguageModel, plan: Plan, steps: int | None, method: str) -> None:
        self.model, self.plan, self.steps, self.method = model, plan, steps, method
        self.scores: dict[str, _Scores] = {}
        """By the case's id."""

    def score_some(self, cases: Sequence[Case], chosen: Sequence[int]) -> None:
        """Score some of the cases; out of memory, blocks hold less for this and all later batches."""
        batch = [cases[index] for index in chosen]
        if not self.plan.checkpoints:
            try:
                self._score(batch)
                return
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            give_back()
            log.warning("out of memory with %d pairs at once: going on with blocks that are computed twice", len(batch))
            self.plan = replace(self.plan, checkpoints=True)
        self._score(batch)

    def _score(self, cases: Sequence[Case]) -> None:
        is_aligned = cases[0].is_aligned
        clean, corrupted = runs_of(self.model, cases, self.plan.in_parts, head=self.plan.head)
        tally = _Tally(self.model, corrupted.ids.shape[1] if is_aligned else 1, self.method)
        metric_clean = tally.read_clean(clean, cases)
        # The first gradient is the corrupted run's own, so that one step is plain attribution patching. Against exact patching on
        # SmolLM2 the sum that begins there was as close as the midpoints' or closer.
        metric_corrupted = self._add_gradient(tally, corrupted, cases)
        at_once = 1 if self.method == ATP_STAR else STEPS_ELSEWHERE
        steps_last, steps = (self.steps or STEPS_LAST, self.steps or at_once) if is_aligned else (1, 1)
        last = {site: tally.scores(site, 1)[..., LAST] for site in tally.sites} if steps_last == 1 else {}
        self._add_way(tally, clean, corrupted, cases, steps)
        scores = {site: tally.scores(site, steps) for site in tally.sites}
        if self.method == ATP_STAR:
            scores = self._without_cancellation(scores, tally, clean, corrupted, cases, steps)
            last = {}
        last = last or {site: found[..., LAST] for site, found in scores.items()}
        if not is_aligned:  # their rotations belong to other positions
            last |= {site: torch.full_like(last[site], torch.nan) for site in (QUERY, KEY) if site in last}
        for row, case in enumerate(cases):
            self.scores[case.id] = _Scores(
                metric_clean[row],
                metric_corrupted[row],
                {site: found[row] for site, found in last.items() if site != BEFORE},
                {site: _over_all(site, scores[site][row]) for site in SUMMED if site in scores} if is_aligned else {},
                {site: scores[site][row] for site in (BEFORE, *SITES)},
            )

    def _add_way(self, tally: _Tally, clean: Run, corrupted: Run, cases: Sequence[Case], steps: int) -> None:
        """Add the gradients of all steps after the first."""
        for step in range(1, steps):
            with _interpolated(self.model, corrupted, clean, step / steps):
                self._add_gradient(tally, corrupted, cases)

    def _without_cancellation(
        self, plain: dict[str, Tensor], tally: _Tally, clean: Run, corrupted: Run, cases: Sequence[Case], steps: int
    ) -> dict[str, Tensor]:
        """The means of absolute scores over gradients that each leave out one block's addition, with the signs of the plain ones."""
        n_blocks = self.model.n_blocks
        if n_blocks == 1:  # nothing comes after what is in it
            return plain
        sums = {site: torch.zeros_like(scores) for site, scores in plain.items()}
        for block in self.model.anatomy.blocks:
            tally.forget()
            with dropping(block):
                self._add_gradient(tally, corrupted, cases)
                self._add_way(tally, clean, corrupted, cases, steps)
            for site, total in sums.items():
                total += tally.scores(site, steps).abs()
        # What is inside of a block has no gradient when that one is left out.
        means = {site: total / (n_blocks - (site not in (BEFORE, "residual"))) for site, total in sums.items()}
        return {site: torch.where(plain[site] < 0, -mean, mean) for site, mean in means.items()}

    def _add_gradient(self, tally: _Tally, run: Run, cases: Sequence[Case]) -> Tensor:
        """The metric [case]; its gradient goes into the tally."""
        with checkpointed(self.model.anatomy.blocks) if self.plan.checkpoints else nullcontext():
            return tally.add_gradient(run, cases)


class _Tally:
    """Sums of differences times gradients at every place, for one batch.

    Args:
        model: the language model.
        n_positions: scored, counted from the end.
        method: atp_star sums queries and keys too.
    """

    def __init__(self, model: LanguageModel, n_positions: int, method: str) -> None:
        self.model, self.n_positions = model, n_positions
        self.places = scored_places(model)
        self.fix = AttentionFix(model, n_positions) if method == ATP_STAR else None
        self.sites = tuple(dict.fromkeys([*(site for site, _ in self.places), *((QUERY, KEY) if self.fix else ())]))
        self._differences: dict[Place, Tensor] = {}
        """Clean minus corrupted activation [row, position, width], in the model's dtype; at first the clean one."""
        self._products: dict[Place, Tensor] = {}
        """[row, position], for heads [row, head, position], for neurons [row, neuron, 2]; float32."""
        self._is_first = True

    def read_clean(self, run: Run, cases: Sequence[Case]) -> Tensor:
        """The clean run's metric [case]; its activations are kept until the corrupted run has come by."""

        def keep(place: Place, states: Tensor) -> None:
            self._differences[place] = self._scored(states).clone()

        with torch.no_grad(), self._attending(clean=True), watching(self.model.anatomy, self.places, keep):
            return measured(self.model, run, cases).cpu()

    def add_gradient(self, run: Run, cases: Sequence[Case]) -> Tensor:
        """The run's metric [case]; differences times its gradient are added. The first run must be the corrupted one."""
        seen: set[Place] = set()
        begins: list[Tensor] = []

        def look(place: Place, states: Tensor) -> Tensor | None:
            # A checkpointed block comes by once more; its tensors are then of no graph that anything flows back through.
            if self._is_first and place not in seen:
                self._differences[place] -= self._scored(states.detach())
            seen.add(place)
            # Nothing flows back from a component that the metric does not hang on.
            self._products.setdefault(place, torch.zeros(states.shape[0], *self._shape(place, states), device=states.device))
            copy = None
            if not states.requires_grad:
                # The weights are frozen, so the graph begins here. The model goes on with a copy, as it may change it in place.
                begin = states.detach().requires_grad_(True)
                states = copy = begin.clone()
                begins.append(begin)
            states.register_hook(partial(self._add, place))  # type: ignore[no-untyped-call] # torch's
            return copy

        with torch.enable_grad(), self._attending(), watching(self.model.anatomy, self.places, look):
            value = measured(self.model, run, cases)
            torch.autograd.grad(value.sum(), begins, allow_unused=True)
        self._is_first = False
        return value.detach().cpu()

    def scores(self, site: str, steps: int) -> Tensor:
        """Differences times the gradients' mean over so many steps, on the CPU.

        Returns:
            [row, block, position], and for heads and queries [row, block, head, position]. For keys [row, block, head of keys, 2]:
            all positions at once, and the last; for neurons likewise.
        """
        if self.fix and site in (QUERY, KEY):
            return self.fix.scores(site, steps)
        # Blocks may lie on different devices.
        products = [self._products[place].cpu() for place in self.places if place[0] == site]
        return torch.stack(products, dim=1) / steps

    def forget(self) -> None:
        """Begin the sums anew."""
        for product in self._products.values():
            product.zero_()
        if self.fix:
            self.fix.forget()

    def _attending(self, clean: bool = False) -> AbstractContextManager[None]:
        if self.fix is None:
            return nullcontext()
        return attended(self.model.anatomy, self.fix.look_at_clean if clean else self.fix.look_at)

    def _shape(self, place: Place, states: Tensor) -> tuple[int, ...]:
        """Of a row's products."""
        if place[0] == NEURON:
            return states.shape[-1], 2
        return (self.model.anatomy.n_heads, self.n_positions) if place[0] == HEAD else (self.n_positions,)

    def _add(self, place: Place, slope: Tensor) -> None:
        product = self._differences[place].float() * self._scored(slope).float()
        if place[0] == NEURON:
            self._products[place] += torch.stack([product.sum(1), product[:, -1]], dim=-1)
            return
        if place[0] == HEAD:
            product = parted(product, self.model.anatomy.n_heads).transpose(1, 2)
        self._products[place] += product.sum(-1)

    def _scored(self, states: Tensor) -> Tensor:
        return states[:, -self.n_positions :]


@contextmanager
def _interpolated(model: LanguageModel, start: Run, end: Run, way: float) -> Iterator[None]:
    """Inside, whatever the model reads is embedded as the point between two runs that is `way` (0 to 1) of the way to the end."""
    embedding = model.model.get_input_embeddings()
    with torch.no_grad():
        first, last = embedding(start.ids), embedding(end.ids)
        between = first + way * (last - first)
    with replace_output(embedding, lambda _states: between):
        yield


def _over_all(site: str, scores: Tensor) -> Tensor:
    """With all positions patched at once: the sum over them [..., position], or what keys and neurons have for that."""
    return scores[..., ALL] if site in (KEY, NEURON) else scores.sum(-1)


def _strongest(scores: Sequence[dict[str, Tensor]], k: int) -> Neurons | None:
    """Of neurons [block, neuron] of each case: those with the largest means in absolute value."""
    if not k:
        return None
    own = torch.stack([one[NEURON] for one in scores])
    order = own.mean(0).flatten().abs().argsort(descending=True, stable=True)[:k]
    blocks, numbers = torch.unravel_index(order, own.shape[1:])
    return Neurons(tuple(zip(blocks.tolist(), numbers.tolist(), strict=True)), own[:, blocks, numbers])


def _gather(scores: dict[str, _Scores], cases: Sequence[Case], aligned: Sequence[Case], no_heads: str, neurons: int) -> Attribution:
    found, of_aligned = [scores[case.id] for case in cases], [scores[case.id] for case in aligned]
    by_position = {site: _side_by_side([own.by_position[site] for own in of_aligned], aligned) for site in (BEFORE, *SITES)}
    return Attribution(
        pair_ids=tuple(case.id for case in cases),
        aligned_ids=tuple(case.id for case in aligned),
        metric_clean=torch.stack([own.metric_clean for own in found]),
        metric_corrupted=torch.stack([own.metric_corrupted for own in found]),
        last={site: torch.stack([own.last[site] for own in found]) for site in found[0].last if site != NEURON},
        everywhere={
            site: torch.stack([own.everywhere[site] for own in of_aligned]) for site in of_aligned[0].everywhere if site != NEURON
        },
        neurons_last=_strongest([own.last for own in found], neurons),
        neurons_everywhere=_strongest([own.everywhere for own in of_aligned], neurons),
        residual_by_position=by_position["residual"],
        embeddings_by_position=by_position[BEFORE][:, 0],
        added_by_position={site: by_position[site] for site in ADDING_SITES},
        roles=_roles(aligned),
        no_heads=no_heads,
    )


def _roles(cases: Sequence[Case]) -> Tensor | None:
    if not all(case.roles for case in cases):
        return None
    longest = max(len(case.clean) for case in cases)
    rows = [[-1] * (longest - len(case.clean)) + [ROLES.index(role) for role in case.roles] for case in cases]
    return torch.tensor(rows, dtype=torch.int8)


def _side_by_side(scores: Sequence[Tensor], cases: Sequence[Case]) -> Tensor:
    """Scores [block, position] of cases, ends aligned [case, block, position]: NaN before a prompt, 0 where both runs are one."""
    longest = max(len(case.clean) for case in cases)
    together = torch.full((len(cases), len(scores[0]), longest), torch.nan)
    for row, case, own in zip(together, cases, scores, strict=True):
        n_scored = min(own.shape[1], len(case.clean))
        row[:, longest - len(case.clean) :] = 0
        row[:, longest - n_scored :] = own[:, -n_scored:]
    return together
