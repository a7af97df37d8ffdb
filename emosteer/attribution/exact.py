"""Exact activation patching: the truth that attribution patching estimates, at one row of a run per component.

Source: Vig et al. 2020; Meng et al. 2022 (causal tracing). Here from clean to corrupted: the clean activation is put into the
corrupted run, and the score is by how much the metric rises. What comes before the positions that are patched is read once, and
rows of one batch have different components patched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from emosteer.attribution.case import Case, metric
from emosteer.attribution.runs import Run, common_head, runs_of
from emosteer.errors import EmosteerError
from emosteer.model.batches import Progress, run_in_batches, silent
from emosteer.model.capture import Place, every_place, watching
from emosteer.model.language_model import LanguageModel
from emosteer.model.prefix import agrees

LAST = "last"
ALL = "all"
FIRST_DIFFERENCE = "first_difference"

BATCH_TOKENS = 2048
"""Patched together, padding included."""


def patch_exactly(model: LanguageModel, cases: Sequence[Case], site: str, at: str = LAST, on_progress: Progress = silent) -> Tensor:
    """Scores of one site at every block [case, block], in units of the metric.

    Args:
        model: the language model.
        cases: aligned ones, unless `at` is the last position.
        site: residual, attention or mlp.
        at: `last` (position), `all` positions at once, or each case's `first_difference`.
        on_progress: told the scores that are there; each takes a row of a run.

    Raises:
        EmosteerError: positions other than the last are asked for with prompts of unequal length.
    """
    return patch_components(model, cases, every_place(model.anatomy, (site,)), at, on_progress)


def patch_components(
    model: LanguageModel, cases: Sequence[Case], components: Sequence[Place], at: str = LAST, on_progress: Progress = silent
) -> Tensor:
    """Scores of some components [case, component], each patched alone, in units of the metric.

    Memory: of a batch, the clean activations that are put in, and keys and values of what comes before; no graph.

    Args:
        model: the language model.
        cases: aligned ones, unless `at` is the last position.
        components: a site (residual, attention or mlp) at a block each.
        at: `last` (position), `all` positions at once, or each case's `first_difference`.
        on_progress: told the scores that are there; each takes a row of a run.

    Raises:
        EmosteerError: positions other than the last are asked for with prompts of unequal length.
    """
    if at != LAST and (unequal := [case.id for case in cases if not case.is_aligned]):
        raise EmosteerError(f"patching at {at} needs prompts of equal length; unequal: {', '.join(unequal)}")
    scores = torch.empty(len(cases), len(components))
    longest = max(cases, key=lambda case: len(case.clean))
    n_last = 1 if at == LAST else longest.n_scored
    in_parts = agrees(model, longest.clean, len(longest.clean) - n_last)
    head = common_head(model, cases) if in_parts else None
    n_done = 0

    def run(rows: list[int]) -> None:
        nonlocal n_done
        batch = [cases[row] for row in rows]
        clean, corrupted = runs_of(model, batch, in_parts, 1 if at == LAST else None, head)
        first = 0
        for found in _scores(model, batch, clean, corrupted, components, at):
            scores[rows, first : first + found.shape[1]] = found
            first += found.shape[1]
            on_progress((n_done * len(components)) + first * len(rows), scores.numel())
        n_done += len(rows)

    run_in_batches(run, [max(len(case.clean), len(case.corrupted)) for case in cases], BATCH_TOKENS)
    return scores


@torch.no_grad()
def _scores(
    model: LanguageModel, cases: Sequence[Case], clean: Run, corrupted: Run, components: Sequence[Place], at: str
) -> Iterator[Tensor]:
    """Scores [case, component] of as many components as go together, and then of the next."""
    kept: dict[Place, Tensor] = {}

    def keep(place: Place, states: Tensor) -> None:
        kept[place] = states[:, -1:].clone() if at == LAST else states.clone()

    with watching(model.anatomy, dict.fromkeys(components), keep):
        clean.last_logits(model)
    start = metric(corrupted.last_logits(model), cases)
    n_together = max(1, BATCH_TOKENS // (corrupted.length * len(cases)))
    for first in range(0, len(components), n_together):
        some = components[first : first + n_together]
        turn = {place: n for n, place in enumerate(some)}

        def put(place: Place, states: Tensor, turn: dict[Place, int] = turn) -> Tensor:
            states = states.clone()
            _put(states[turn[place] * len(cases) :][: len(cases)], kept[place], cases, at)
            return states

        with watching(model.anatomy, some, put):
            logits = corrupted.times(len(some)).last_logits(model)
        patched = metric(logits, list(cases) * len(some))
        yield (patched.view(len(some), len(cases)) - start).T.cpu()


def _put(states: Tensor, clean: Tensor, cases: Sequence[Case], at: str) -> None:
    """Put clean activations into rows of the corrupted run [case, position, width], in place."""
    if at == ALL:
        states.copy_(clean)
    elif at == LAST:
        states[:, -1] = clean[:, -1]
    else:
        for row, case in enumerate(cases):
            states[row, case.first_difference] = clean[row, case.first_difference]
