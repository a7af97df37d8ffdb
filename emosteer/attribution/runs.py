"""How pairs of prompts are put through a model: the beginning that both share once, and together as many as memory has room for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from emosteer.attribution.case import PROJECTION, Case, metric
from emosteer.attribution.graph import Bytes, counting
from emosteer.attribution.scores import SITES
from emosteer.model.anatomy import BEFORE, HEAD, NEURON
from emosteer.model.capture import Place, enters_whole, every_place, watching
from emosteer.model.language_model import LanguageModel
from emosteer.model.memory import free_memory, give_back, is_out_of_memory
from emosteer.model.padding import PaddedBatch, pad_left
from emosteer.model.prefix import Prefix, agrees, common_beginning, inputs_after, read_prefix

log = logging.getLogger(__name__)

MOST_TOKENS = 256
"""Scored together at most, padding included: over so many a forward is bound by arithmetic on a CPU, and nearly so on a GPU."""
ENOUGH_TOKENS = 128
"""Where fewer fit, blocks are computed twice to hold less: a GPU waits for its weights half the time or more, and now reads them for
more tokens at once."""
MOST_TOKENS_BEFORE = 4096
"""Read before them at most, with no graph."""
MEMORY_SHARE = 0.5
"""Of the free memory that batches are planned for; the rest is for what a block needs while it runs, and for others."""


@dataclass(frozen=True)
class Run:
    """Rows of prompts, their ends aligned, of which the last positions [row, position] are read after the others."""

    ids: Tensor
    mask: Tensor
    prefix: Prefix | None
    """All positions before; None where there is none, or the model reads rows whole."""

    @property
    def length(self) -> int:
        """Positions of a row, those before and padding included."""
        return self.ids.shape[1] + (self.prefix.length if self.prefix else 0)

    def times(self, n: int) -> Run:
        """All rows n times over, one lot after the other."""
        return Run(self.ids.repeat(n, 1), self.mask.repeat(n, 1), self.prefix.times(n) if self.prefix else None)

    def last_logits(self, model: LanguageModel) -> Tensor:
        """Logits after each row [row, vocabulary]; none other are computed."""
        head = getattr(model.model, "get_output_embeddings", lambda: None)()
        # torch multiplies a slice of many positions row by row, and so would read the whole output matrix for each row.
        with enters_whole(head) if head is not None else nullcontext():
            return model.model(**inputs_after(model, self.prefix, self.ids, self.mask), logits_to_keep=1).logits[:, -1]


def runs_of(
    model: LanguageModel, cases: Sequence[Case], in_parts: bool, n_last: int | None = None, head: Prefix | None = None
) -> tuple[Run, Run]:
    """The clean and the corrupted run of cases.

    Args:
        model: the language model.
        cases: to go together.
        in_parts: whether the model may read what comes before the last positions at once, with no graph.
        n_last: how many those are; None for all that are to be scored.
        head: with which all prompts begin, read already.
    """
    clean = pad_left([case.clean for case in cases], model.pad_token_id, model.device)
    corrupted = pad_left([case.corrupted for case in cases], model.pad_token_id, model.device)
    if not in_parts:
        return Run(clean.input_ids, clean.attention_mask, None), Run(corrupted.input_ids, corrupted.attention_mask, None)
    n_last = n_last or max(case.n_scored for case in cases)
    before = _before(model, clean, n_last, head)
    is_common = all(case.is_aligned and case.n_scored <= n_last for case in cases)
    other = before if is_common else _before(model, corrupted, n_last, head)
    return _last(clean, n_last, before), _last(corrupted, n_last, other)


def _last(batch: PaddedBatch, n_last: int, prefix: Prefix | None) -> Run:
    return Run(batch.input_ids[:, -n_last:], batch.attention_mask[:, -n_last:], prefix)


def _before(model: LanguageModel, batch: PaddedBatch, n_last: int, head: Prefix | None) -> Prefix | None:
    """What comes before the last positions; after the head, and what rows with less after it have of the head."""
    ids, mask = batch.input_ids[:, :-n_last], batch.attention_mask[:, :-n_last]
    if not ids.shape[1]:
        return None
    if head is None:
        return read_prefix(model, ids, mask)
    lengths = mask.sum(1).tolist()
    n_fresh = max(length - min(length, head.length) for length in lengths)
    known = head.first([length - n_fresh for length in lengths])
    return read_prefix(model, ids[:, -n_fresh:], mask[:, -n_fresh:], known) if n_fresh else known


@dataclass(frozen=True)
class Plan:
    """How many cases go together, and how. A batch is full at size 1."""

    in_parts: bool
    """Whether what comes before the scored positions is read first, and once for all runs."""
    head: Prefix | None
    """With which all prompts begin, read once for all of them."""
    checkpoints: bool
    """Whether blocks are computed again for the backward pass."""
    tokens: float
    """Scored tokens in a full batch."""
    prefix_tokens: float
    """Tokens before them in a full batch of nothing else."""

    def size(self, case: Case) -> float:
        """What of a full batch a case takes."""
        if not self.in_parts:
            return max(len(case.clean), len(case.corrupted)) / self.tokens
        before = max(len(case.clean), len(case.corrupted)) - case.n_scored
        return case.n_scored / self.tokens + before / self.prefix_tokens


def measured(model: LanguageModel, run: Run, cases: Sequence[Case]) -> Tensor:
    """The metric [case] of a run, one case a row."""
    if cases[0].kind != PROJECTION:
        return metric(run.last_logits(model), cases)
    seen: list[Tensor] = []
    # A block that is computed again for the backward pass comes by once more.
    with watching(model.anatomy, [("residual", model.n_blocks - 1)], lambda _place, states: seen.append(states[:, -1])):
        run.last_logits(model)
    return metric(seen[0], cases)


def scored_places(model: LanguageModel) -> list[Place]:
    """All of which a score is taken: every site at every block, with heads and neurons if found, and what enters the first block."""
    sites = (*SITES, *([HEAD] if model.anatomy.n_heads else []), *([NEURON] if model.anatomy.down else []))
    return [(BEFORE, 0), *every_place(model.anatomy, sites)]


def plan(model: LanguageModel, cases: Sequence[Case], checkpoints: bool | None = None) -> Plan:
    """Measure with the longest aligned case what a batch takes, and see how much of it there is.

    Args:
        model: the language model.
        cases: at least one of them aligned.
        checkpoints: whether blocks shall be computed twice to hold less; None where memory asks for it.
    """
    longest = max((case for case in cases if case.is_aligned), key=lambda case: len(case.clean))
    in_parts = agrees(model, longest.clean, len(longest.clean) - longest.n_scored)
    held = _measure(model, longest, in_parts)
    if checkpoints is None:
        wanted = min(ENOUGH_TOKENS, sum(case.n_scored if in_parts else len(case.clean) for case in cases))
        checkpoints = _fitting(held.plain) < wanted
    tokens = min(MOST_TOKENS, _fitting(held.checkpointed if checkpoints else held.plain))
    before = min(MOST_TOKENS_BEFORE, _fitting(held.before))
    if checkpoints or tokens < MOST_TOKENS:
        log.info("attribution of %.0f tokens at once%s", tokens, ", blocks computed twice" if checkpoints else "")
    return Plan(in_parts, common_head(model, cases) if in_parts else None, checkpoints, tokens, before)


def common_head(model: LanguageModel, cases: Sequence[Case]) -> Prefix | None:
    """What all prompts of all cases begin with, read; None where that is nothing."""
    prompts = [prompt for case in cases for prompt in (case.clean, case.corrupted)]
    # At least the last token of each is read as its own.
    length = min(common_beginning(prompts), min(map(len, prompts)) - 1)
    if not length:
        return None
    batch = pad_left([prompts[0][:length]], model.pad_token_id, model.device)
    return read_prefix(model, batch.input_ids, batch.attention_mask)


@dataclass(frozen=True)
class _Held:
    """What a token takes, by device."""

    plain: Bytes
    checkpointed: Bytes
    before: Bytes
    """A token before the scored ones."""


def _measure(model: LanguageModel, case: Case, in_parts: bool) -> _Held:
    """Of a case's last tokens, so many as memory has room for."""
    n_tokens = case.n_scored if in_parts else len(case.corrupted)
    while True:
        try:
            return _measure_last(model, case, in_parts, n_tokens)
        except RuntimeError as error:
            if n_tokens == 1 or not is_out_of_memory(error):
                raise
        give_back()
        n_tokens //= 2


def _measure_last(model: LanguageModel, case: Case, in_parts: bool, n_tokens: int) -> _Held:
    batch = pad_left([case.corrupted], model.pad_token_id, model.device)
    run = _last(batch, n_tokens, _before(model, batch, n_tokens, None) if in_parts else None)
    differences, entering, blocks = Bytes(), Bytes(), Bytes()

    def look(place: Place, states: Tensor) -> Tensor | None:
        differences[states.device] += states.nbytes
        if place[0] == "residual":
            entering[states.device] += states.nbytes
            blocks[states.device] += 1
        return None if states.requires_grad else states.detach().requires_grad_(True).clone()

    weights = [*model.model.parameters(), *model.model.buffers()]
    places = scored_places(model)
    with torch.enable_grad(), counting(weights) as graph, watching(model.anatomy, places, look):
        measured(model, run, [case])
    one_block = Bytes({device: held // max(blocks[device], 1) for device, held in graph.items()})
    past = Bytes()
    for keys, values in run.prefix.layers if run.prefix else ():
        past[keys.device] += keys.nbytes + values.nbytes
    n_before = run.prefix.length if run.prefix else 1
    return _Held(
        _share(graph + differences, n_tokens),
        _share(entering + differences + one_block, n_tokens),
        # What a block needs while it reads a token is no more than what it would keep of it.
        _share(past, n_before) + _share(one_block, n_tokens),
    )


def _share(held: Bytes, n: int) -> Bytes:
    return Bytes({device: -(-bytes_ // n) for device, bytes_ in held.items()})


def _fitting(held: Bytes) -> float:
    """How many tokens fit into the free memory of every device."""
    return min((MEMORY_SHARE * free_memory(device) / bytes_ for device, bytes_ in held.items() if bytes_), default=float("inf"))
