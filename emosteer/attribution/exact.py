"""Exact activation patching: the truth that attribution patching estimates, at one run per component.

Source: Vig et al. 2020; Meng et al. 2022 (causal tracing). Here from clean to corrupted: the clean activation is put into the
corrupted run, and the score is by how much the metric rises. What comes before the positions that are patched is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from emosteer.attribution.case import Case, metric
from emosteer.attribution.runs import Run, runs_of
from emosteer.errors import EmosteerError
from emosteer.model.batches import Progress, run_in_batches, silent
from emosteer.model.capture import Place, every_place, replace_output, watching
from emosteer.model.language_model import LanguageModel
from emosteer.model.prefix import agrees

LAST = "last"
ALL = "all"
FIRST_DIFFERENCE = "first_difference"

BATCH_TOKENS = 2048
"""Patched together, padding included."""


def patch_exactly(model: LanguageModel, cases: Sequence[Case], site: str, at: str = LAST, on_progress: Progress = silent) -> Tensor:
    """Scores of one site at every block [case, block], in units of the metric.

    Memory: of a batch, the clean activations that are put in, at every block; no graph.

    Args:
        model: the language model.
        cases: aligned ones, unless `at` is the last position.
        site: residual, attention or mlp.
        at: `last` (position), `all` positions at once, or each case's `first_difference`.
        on_progress: told the scores that are there; each takes a run.

    Raises:
        EmosteerError: positions other than the last are asked for with prompts of unequal length.
    """
    if at != LAST and (unequal := [case.id for case in cases if not case.is_aligned]):
        raise EmosteerError(f"patching at {at} needs prompts of equal length; unequal: {', '.join(unequal)}")
    scores = torch.empty(len(cases), model.n_blocks)
    longest = max(cases, key=lambda case: len(case.clean))
    n_last = 1 if at == LAST else longest.n_scored
    in_parts = agrees(model, longest.clean, len(longest.clean) - n_last)
    n_done = 0

    def run(rows: list[int]) -> None:
        nonlocal n_done
        batch = [cases[row] for row in rows]
        clean, corrupted = runs_of(model, batch, in_parts, 1 if at == LAST else None)
        for layer, score in enumerate(_scores(model, batch, clean, corrupted, site, at)):
            scores[rows, layer] = score
            on_progress(n_done * model.n_blocks + (layer + 1) * len(rows), scores.numel())
        n_done += len(rows)

    run_in_batches(run, [max(len(case.clean), len(case.corrupted)) for case in cases], BATCH_TOKENS)
    return scores


@torch.no_grad()
def _scores(model: LanguageModel, cases: Sequence[Case], clean: Run, corrupted: Run, site: str, at: str) -> Iterator[Tensor]:
    """Scores [case] of block after block."""
    kept: dict[Place, Tensor] = {}

    def keep(place: Place, states: Tensor) -> None:
        kept[place] = states[:, -1:].clone() if at == LAST else states.clone()

    with watching(model.anatomy, every_place(model.anatomy, (site,)), keep):
        clean.last_logits(model)
    start = metric(corrupted.last_logits(model), cases)
    for layer in range(model.n_blocks):
        with replace_output(model.anatomy.module(site, layer), _patch(kept.pop((site, layer)), cases, at)):
            patched = metric(corrupted.last_logits(model), cases)
        yield (patched - start).cpu()


def _patch(clean: Tensor, cases: Sequence[Case], at: str) -> Callable[[Tensor], Tensor]:
    def put(states: Tensor) -> Tensor:
        if at == ALL:
            return clean
        states = states.clone()
        if at == LAST:
            states[:, -1] = clean[:, -1]
            return states
        for row, case in enumerate(cases):
            states[row, case.first_difference] = clean[row, case.first_difference]
        return states

    return put
