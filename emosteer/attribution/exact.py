"""Exact activation patching: the truth that attribution patching estimates, at one run per component.

Source: Vig et al. 2020; Meng et al. 2022 (causal tracing). Here from clean to corrupted: the clean activation is put into the
corrupted run, and the score is by how much the metric rises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from emosteer.attribution.case import Case, metric
from emosteer.errors import EmosteerError
from emosteer.model.capture import capture, replace_output
from emosteer.model.language_model import LanguageModel
from emosteer.model.padding import pad_left

LAST = "last"
ALL = "all"
FIRST_DIFFERENCE = "first_difference"


def patch_exactly(
    model: LanguageModel,
    cases: Sequence[Case],
    site: str,
    at: str = LAST,
    on_run: Callable[[int], None] = lambda n: None,
) -> Tensor:
    """Scores of one site at every block [case, block], in units of the metric.

    Args:
        model: the language model.
        cases: aligned ones, unless `at` is the last position.
        site: residual, attention or mlp.
        at: `last` (position), `all` positions at once, or each case's `first_difference`.
        on_run: told after each of the `n_blocks` runs, for a progress bar.

    Raises:
        EmosteerError: positions other than the last are asked for with prompts of unequal length.
    """
    if at != LAST and (unequal := [case.id for case in cases if not case.is_aligned]):
        raise EmosteerError(f"patching at {at} needs prompts of equal length; unequal: {', '.join(unequal)}")
    clean = pad_left([case.clean for case in cases], model.pad_token_id, model.device)
    corrupted = pad_left([case.corrupted for case in cases], model.pad_token_id, model.device)
    with torch.no_grad(), capture(model.anatomy, (site,)) as seen:
        model.model(**clean.inputs(), use_cache=False, logits_to_keep=1)
    clean_states = dict(seen)
    scores = []
    with torch.no_grad():
        start = metric(model.model(**corrupted.inputs(), use_cache=False, logits_to_keep=1).logits[:, -1], cases)
        for layer in range(model.n_blocks):
            patch = _patch(clean_states[site, layer], cases, at)
            with replace_output(model.anatomy.module(site, layer), patch):
                patched = model.model(**corrupted.inputs(), use_cache=False, logits_to_keep=1).logits[:, -1]
            scores.append(metric(patched, cases) - start)
            on_run(1)
    return torch.stack(scores, dim=1).cpu()


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
