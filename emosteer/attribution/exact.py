"""Exact activation patching: the truth that attribution patching estimates, at one row of a run per component.

Source: Vig et al. 2020; Meng et al. 2022 (causal tracing). Here from clean to corrupted: the clean activation is put into the
corrupted run, and the score is by how much the metric rises. What comes before the positions that are patched is read once, and
rows of one batch have different components patched. Blocks before the first patched one do not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from emosteer.attribution.case import Case
from emosteer.attribution.graph import skipping
from emosteer.attribution.runs import Run, common_head, measured, runs_of
from emosteer.errors import EmosteerError
from emosteer.model.anatomy import HEAD, KEY, NEURON, QUERY, TOLERANCE, hidden
from emosteer.model.attention import opened, with_open_attention
from emosteer.model.batches import Progress, run_in_batches, silent
from emosteer.model.capture import Place, every_place, watching
from emosteer.model.heads import n_parts, parted, with_heads, with_neurons
from emosteer.model.language_model import LanguageModel
from emosteer.model.prefix import agrees

LAST = "last"
ALL = "all"
FIRST_DIFFERENCE = "first_difference"

Component = tuple[str, int] | tuple[str, int, int]
"""A site at a block; of heads and neurons with their number."""

BATCH_TOKENS = 1024
"""In all rows that are patched together, what is read before and padding included."""
CASE_TOKENS = 64
"""Of the cases that are read together, behind what is read before; each stands there once for every component."""


def patch_exactly(
    model: LanguageModel, cases: Sequence[Case], site: str, at: str | int = LAST, on_progress: Progress = silent
) -> Tensor:
    """Scores of one site at every block [case, block], of heads [case, block, head], in units of the metric.

    Args:
        model: the language model.
        cases: aligned ones, unless `at` is the last position.
        site: residual, attention or mlp, before (the residual stream before the block), head, or query or key (of each head).
        at: `last` (position), `all` positions at once, each case's `first_difference`, or a position counted from the end (-1).
        on_progress: told the scores that are there; each takes a row of a run.

    Raises:
        EmosteerError: positions other than the last are asked for with prompts of unequal length, heads can't be told, or attention
            can't be opened.
    """
    if site not in (HEAD, QUERY, KEY):
        return patch_components(model, cases, every_place(model.anatomy, (site,)), at, on_progress)
    model = with_heads(model) if site == HEAD else with_open_attention(with_heads(model))
    heads = [(site, block, head) for block in range(model.n_blocks) for head in range(n_parts(model.anatomy, site))]
    return patch_components(model, cases, heads, at, on_progress).view(len(cases), model.n_blocks, -1)


def patch_components(
    model: LanguageModel, cases: Sequence[Case], components: Sequence[Component], at: str | int = LAST, on_progress: Progress = silent
) -> Tensor:
    """Scores of some components [case, component], each patched alone, in units of the metric.

    Memory: of a batch, the clean activations that are put in, and keys and values of what comes before; no graph.

    Args:
        model: the language model.
        cases: aligned ones, unless `at` is the last position.
        components: a site at a block each, as of `patch_exactly`; of heads and MLP neurons with their number.
        at: `last` (position), `all` positions at once, each case's `first_difference`, or a position counted from the end (-1).
        on_progress: told the scores that are there; each takes a row of a run.

    Raises:
        EmosteerError: positions other than the last are asked for with prompts of unequal length, heads can't be told, or attention
            can't be opened.
    """
    sites = {component[0] for component in components}
    if sites & {HEAD, QUERY, KEY}:
        model = with_heads(model)
    if NEURON in sites:
        model = with_neurons(model)
    if sites & {QUERY, KEY}:
        model = with_open_attention(model)
        with opened(model):
            return _patch(model, cases, components, at, on_progress)
    return _patch(model, cases, components, at, on_progress)


def _patch(
    model: LanguageModel, cases: Sequence[Case], components: Sequence[Component], at: str | int, on_progress: Progress
) -> Tensor:
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
        for numbers, found in _scores(model, batch, clean, corrupted, components, at):
            scores[torch.tensor(rows)[:, None], torch.tensor(numbers)] = found
            n_done += found.numel()
            on_progress(n_done, scores.numel())

    # Cases with as many positions to read go together: those are most of the work.
    read = [(1 if at == LAST else case.n_scored, max(len(case.clean), len(case.corrupted))) for case in cases]
    run_in_batches(run, [max(n / CASE_TOKENS, whole / BATCH_TOKENS) for n, whole in read], 1.0)
    return scores


@torch.no_grad()
def _scores(
    model: LanguageModel, cases: Sequence[Case], clean: Run, corrupted: Run, components: Sequence[Component], at: str | int
) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers and scores [case, component] of as many components as go together, and then of the next."""
    kept: dict[Place, Tensor] = {}

    def keep(place: Place, states: Tensor) -> None:
        kept[place] = states[:, -1:].clone() if at == LAST else states.clone()

    with watching(model.anatomy, {component[:2] for component in components}, keep):
        clean.last_logits(model)
    lots = _lots(components, max(1, BATCH_TOKENS // (corrupted.length * len(cases))))
    beginnings = _Beginnings(model, {components[lot[0]][1] for lot in lots})
    with beginnings.recorded():
        start = measured(model, corrupted, cases)
    beginnings.try_with(lambda: measured(model, corrupted, cases), start)
    for lot in lots:
        some = [components[number] for number in lot]

        def put(place: Place, states: Tensor, some: Sequence[Component] = some) -> Tensor:
            states = states.clone()
            for rows, component in zip(torch.split(states, len(cases)), some, strict=True):
                if component[:2] == place:
                    _put(_own(model, rows, component), _own(model, kept[place], component), cases, at)
            return states

        with beginnings.skipped(some[0][1], len(some)), watching(model.anatomy, {component[:2] for component in some}, put):
            patched = measured(model, corrupted.times(len(some)), list(cases) * len(some))
        yield lot, (patched.view(len(some), len(cases)) - start).T.cpu()


def _lots(components: Sequence[Component], size: int) -> list[list[int]]:
    """Numbers of the components that go together, by block: so that those before the first need not run."""
    order = sorted(range(len(components)), key=lambda number: components[number][1])
    return [order[first : first + size] for first in range(0, len(order), size)]


class _Beginnings:
    """What the blocks of the corrupted run put out before the first that is patched: no patch changes it.

    Args:
        model: the language model.
        firsts: blocks before which to skip.
    """

    def __init__(self, model: LanguageModel, firsts: set[int]) -> None:
        self.blocks = model.anatomy.blocks
        self.outputs: dict[int, Any] = dict.fromkeys(first for first in firsts if first)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep the outputs of the run inside."""

        def hook_of(first: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                self.outputs[first] = output

            return hook

        handles = [self.blocks[first - 1].register_forward_hook(hook_of(first)) for first in self.outputs]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def try_with(self, run: Callable[[], Tensor], expected: Tensor) -> None:
        """Give up skipping where it changes an unpatched run: blocks may hand on more than the residual stream."""
        if self.outputs:
            with self.skipped(max(self.outputs), 1):
                found = run()
            if not torch.allclose(found, expected, atol=TOLERANCE[torch.float32], rtol=TOLERANCE[torch.float32]):
                self.outputs.clear()

    def skipped(self, first: int, n: int) -> AbstractContextManager[None]:
        """Inside, blocks before the first do not run; their output is that of the rows n times over."""
        if first not in self.outputs:
            return nullcontext()
        output = self.outputs[first]
        states = hidden(output).repeat(n, 1, 1)
        return skipping(self.blocks[:first], (states, *output[1:]) if isinstance(output, tuple | list) else states)


def _own(model: LanguageModel, states: Tensor, component: Component) -> Tensor:
    """Of a place's states what is the component, as a view."""
    if len(component) == 2:
        return states
    if component[0] == NEURON:
        return states[..., component[2] : component[2] + 1]
    return parted(states, n_parts(model.anatomy, component[0]))[..., component[2], :]


def _put(states: Tensor, clean: Tensor, cases: Sequence[Case], at: str | int) -> None:
    """Put clean activations into rows of the corrupted run [case, position, width], in place."""
    if at == ALL:
        states.copy_(clean)
    elif isinstance(at, int):
        states[:, at] = clean[:, at]
    elif at == LAST:
        states[:, -1] = clean[:, -1]
    else:
        for row, case in enumerate(cases):
            states[row, case.first_difference] = clean[row, case.first_difference]
