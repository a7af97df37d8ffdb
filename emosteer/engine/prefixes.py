"""Prompts without their last token, read once: what they leave in the model's memory, shared by all rows that reply to them.

What prompts have in common (a system prompt, the chat template) is read once too: a tree of stems. A steered prompt branches off
the unsteered one at the first block whose output is pushed, and shares all below.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from emosteer.engine.account import Account
from emosteer.engine.body import Body, from_block, noting, puts_out_tuples
from emosteer.engine.cache import State, holds_states, join_rows, prefill_cache
from emosteer.model.language_model import LanguageModel
from emosteer.model.memory import free_memory
from emosteer.model.prefix import common_beginning
from emosteer.steering import Interventions, Steering

PREFILL_TOKENS = 4096
"""Tokens that are prefilled together."""
LEAST_STEM = 8
"""Tokens that prompts must share, beyond what they are known to share, for a forward of their own."""
KEPT_SHARE = 8
"""Prefixes that later rows may want are kept in this part of the memory that is free: an eighth."""

Tokens = tuple[int, ...]
Key = tuple[Tokens, Steering | None]


@dataclass(frozen=True, eq=False)
class Prefix:
    """What reading a prompt left: keys and values per layer, [head, position, width], without padding."""

    length: int
    keys: tuple[Tensor | None, ...]
    """None for a layer that keeps a state instead."""
    values: tuple[Tensor | None, ...]
    states: tuple[State | None, ...] = ()
    """Of layers with a convolution or a recurrence: one row."""
    is_steered: bool = False
    own_from: int = 0
    """Where it is steered: the first block whose keys and values are its own; those before are the unsteered prompt's."""
    trunk: Prefix | None = None
    """Where blocks are shared with it: the unsteered prompt."""
    outputs: dict[int, Tensor] = field(default_factory=dict)
    """Of blocks at which steered prompts branch off: [position, width]."""

    @property
    def shared(self) -> Prefix | None:
        """The unsteered prompt that all its rows share, at least in some blocks; None where it shares nothing."""
        return self.trunk if self.is_steered else self

    @property
    def outline(self) -> Prefix:
        """What it is, without what it left."""
        return replace(self, keys=(), values=(), states=(), outputs={})

    @property
    def bytes(self) -> int:
        """Memory that it holds alone."""
        own = [t for t in (*self.keys[self.own_from :], *self.values[self.own_from :], *self.outputs.values()) if t is not None]
        return sum(t.numel() * t.element_size() for t in own)


class Prefixes:
    """Makes prefixes, and keeps those that later rows may want.

    Args:
        model: unsteered.
        body: the same model.
        account: is told of the time that it takes.
        branches: whether the model can be run from a block on (see `body.from_block`).
    """

    def __init__(self, model: LanguageModel, body: Body, account: Account, branches: bool = True) -> None:
        self.model, self.body, self.account, self.branches = model, body, account, branches
        self.has_states = holds_states(model.model.config)
        self._kept: OrderedDict[Key, Prefix] = OrderedDict()
        self._as_tuple: bool | None = None

    def forget(self) -> None:
        """Give the memory back."""
        self._kept.clear()

    def of(self, keys: Sequence[Key]) -> list[Prefix]:
        """The prefixes of token ids, each under a steering of the prompt or none; equal ones are one object."""
        with self.account.timing("prefill"):
            wanted = dict.fromkeys(keys)
            branching = {
                self._first_own(steering) - 1 for _, steering in wanted if steering is not None and self._first_own(steering)
            }
            plain = dict.fromkeys(tokens for tokens, steering in wanted if steering is None or self._first_own(steering))
            found: dict[Key, Prefix] = {
                (tokens, None): prefix for tokens, prefix in self._unsteered(list(plain), sorted(branching)).items()
            }
            for steering, group in groupby(sorted((k for k in wanted if k[1] is not None), key=lambda k: id(k[1])), lambda k: k[1]):
                assert steering is not None
                found.update(self._steered(steering, [tokens for tokens, _ in group], found))
            self._trim()
            return [found[key] for key in keys]

    def _first_own(self, steering: Steering) -> int:
        """The first block that a steering makes different: 0 where nothing below it can be shared."""
        if not self.branches or self.has_states:
            return 0
        return steering.first_block

    def _unsteered(self, prompts: list[Tokens], outputs: list[int]) -> dict[Tokens, Prefix]:
        found: dict[Tokens, Prefix] = {}

        def is_known(tokens: Tokens) -> bool:
            kept = self._known((tokens, None))
            if kept is not None and all(block in kept.outputs for block in outputs):
                found[tokens] = kept
            return tokens in found

        for level in self._levels([tokens for tokens in prompts if not is_known(tokens)]):
            jobs = [_Job(tokens, found[stem] if stem is not None else None) for tokens, stem in level if not is_known(tokens)]
            for batch in self._batches(jobs):
                for job, prefix in zip(batch, self._read(batch, outputs), strict=True):
                    found[job.tokens] = self._kept[job.tokens, None] = prefix
        return found

    def _known(self, key: Key) -> Prefix | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _steered(self, steering: Steering, prompts: list[Tokens], known: dict[Key, Prefix]) -> dict[Key, Prefix]:
        first = self._first_own(steering)
        trunks = {tokens: known.get((tokens, None)) for tokens in prompts}
        asked = set(prompts)
        found: dict[Tokens, Prefix] = {}
        for level in self._levels(prompts):
            jobs = []
            for tokens, stem in level:
                if (kept := self._known((tokens, steering))) is not None:
                    found[tokens] = kept
                    continue
                if first and tokens not in trunks:  # a stem: the unsteered one was made on the way to the prompts
                    trunks[tokens] = self._unsteered([tokens], [first - 1])[tokens]
                jobs.append(_Job(tokens, found[stem] if stem is not None else None, trunks.get(tokens)))
            for batch in self._batches(jobs):
                for job, prefix in zip(batch, self._read(batch, [], steering, first), strict=True):
                    found[job.tokens] = prefix
                    if job.tokens not in asked:  # a stem serves later rows too, a steered prompt one
                        self._kept[job.tokens, steering] = prefix
        return {(tokens, steering): found[tokens] for tokens in prompts}

    def _levels(self, prompts: Sequence[Tokens]) -> Iterator[list[tuple[Tokens, Tokens | None]]]:
        """Stems, and at last the prompts: what is read at a time, each with the stem that it goes on from."""
        if self.has_states:  # those go on from one token to the next only
            yield [(tokens, None) for tokens in prompts]
            return
        level = _grow(sorted(set(prompts)), 0, None)
        depth: dict[Tokens | None, int] = {None: 0}
        for tokens, stem in level:
            depth[tokens] = depth[stem] + 1
        for number in range(1, max(depth.values(), default=0) + 1):
            yield [(tokens, stem) for tokens, stem in level if depth[tokens] == number]

    def _batches(self, jobs: list[_Job]) -> Iterator[list[_Job]]:
        """Jobs that are read together: of like length, so that little is padding."""
        batch: list[_Job] = []
        for job in sorted(jobs, key=lambda job: (len(job.tail), job.past)):
            too_much = len(job.tail) * (len(batch) + 1) > PREFILL_TOKENS
            if batch and (too_much or (self.has_states and len(job.tail) != len(batch[0].tail))):
                yield batch
                batch = []
            batch.append(job)
        if batch:
            yield batch

    @torch.no_grad()
    def _read(self, jobs: list[_Job], outputs: list[int], steering: Steering | None = None, first: int = 0) -> list[Prefix]:
        """Read the jobs' tails after their stems.

        Args:
            outputs: blocks whose outputs are kept.
            steering: pushes at every position.
            first: the block from which on the model runs; below it all is the trunk's.
        """
        config, device = self.model.model.config, self.model.device
        longest = max(1, *(len(job.tail) for job in jobs))
        pasts = [job.stem for job in jobs]
        cache = join_rows(config, pasts, longest) if any(pasts) else prefill_cache(config)
        padding = max(job.past for job in jobs)
        # Padding on the right: no token looks there, and without padding on the left there is no mask to make.
        ids = torch.tensor([[*job.tail, *[self.model.pad_token_id] * (longest - len(job.tail))] for job in jobs], device=device)
        starts = torch.tensor([[job.past] for job in jobs], device=device)
        mask = None
        if any(job.past != padding for job in jobs):
            mask = torch.tensor([[0] * (padding - job.past) + [1] * (job.past + longest) for job in jobs], device=device)
        seen: dict[int, Tensor] = {}
        blocks = self.model.anatomy.blocks
        interventions = Interventions.alike(steering, device, self.model.dtype)
        kinds, handle = puts_out_tuples(blocks[-1])
        try:
            with interventions.applied(self.model.anatomy), noting(blocks, outputs, seen):
                inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": starts + torch.arange(longest, device=device)}
                if first:
                    states = _padded([job.branching(first - 1) for job in jobs], longest)
                    assert self._as_tuple is not None
                    with from_block(blocks, first, states, self._as_tuple):
                        self.body.run(cache, **inputs)
                else:
                    self.body.run(cache, **inputs)
        finally:
            handle.remove()
        self._as_tuple = kinds[-1]
        self.account.prefill_tokens += sum(len(job.tail) for job in jobs)
        return [self._cut(job, row, cache.layers, padding, seen, steering, first) for row, job in enumerate(jobs)]

    def _cut(
        self, job: _Job, row: int, layers: Sequence[Any], padding: int, seen: dict[int, Tensor], steering: Steering | None, first: int
    ) -> Prefix:
        """One row's prefix out of a batch's cache."""
        stop, length = padding + len(job.tail), len(job.tokens)
        keys: list[Tensor | None] = []
        values: list[Tensor | None] = []
        states: list[State | None] = []
        for number, layer in enumerate(layers):
            if job.trunk is not None and number < first:
                keys.append(job.trunk.keys[number])
                values.append(job.trunk.values[number])
                states.append(None)
                continue
            states.append(State.of_row(layer, row, not job.tail) if isinstance(layer, LinearAttentionLayer) else None)
            holds = isinstance(layer, DynamicLayer) and layer.is_initialized
            # Copies, so that a prefix that is kept does not keep its whole batch alive.
            keys.append(layer.keys[row, :, stop - length : stop].clone() if holds else None)
            values.append(layer.values[row, :, stop - length : stop].clone() if holds else None)
        outputs = {block: self._whole_output(job, output[row, : len(job.tail)], block) for block, output in seen.items()}
        prefix = Prefix(length, tuple(keys), tuple(values), tuple(states), steering is not None, first, job.trunk, outputs)
        return prefix if any(states) else replace(prefix, states=())

    @staticmethod
    def _whole_output(job: _Job, tail: Tensor, block: int) -> Tensor:
        return torch.cat([job.stem.outputs[block], tail]) if job.stem is not None else tail.clone()

    def _trim(self) -> None:
        """Forget what was wanted longest ago, beyond the memory that there is for it."""
        if not self._kept:
            return
        held = sum(prefix.bytes for prefix in self._kept.values())
        most = (free_memory(self.model.device) + held) // KEPT_SHARE
        while held > most and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            held -= oldest.bytes


@dataclass(frozen=True)
class _Job:
    """Something to read: `tokens`, of which a stem was read before."""

    tokens: Tokens
    stem: Prefix | None = None
    trunk: Prefix | None = None

    @property
    def past(self) -> int:
        return self.stem.length if self.stem is not None else 0

    @property
    def tail(self) -> Tokens:
        return self.tokens[self.past :]

    def branching(self, block: int) -> Tensor:
        """What the unsteered prompt's block put out for the tail [position, width]."""
        assert self.trunk is not None
        return self.trunk.outputs[block][self.past :]


def _grow(prompts: list[Tokens], depth: int, stem: Tokens | None) -> list[tuple[Tokens, Tokens | None]]:
    """The tree above sorted prompts that share their first `depth` tokens: (tokens, its stem), stems before what grows on them."""
    found: list[tuple[Tokens, Tokens | None]] = []
    for whole, group in groupby(prompts, key=lambda tokens: tokens[depth : depth + 1]):
        together = list(group)
        if len(together) == 1 or not whole:
            found += [(tokens, stem) for tokens in together]
            continue
        common = common_beginning((together[0], together[-1]))  # of sorted ones: that of all
        held = len(stem) if stem else 0
        if common - held >= LEAST_STEM:
            trunk = together[0][:common]
            found.append((trunk, stem))
            found += _grow([tokens for tokens in together if tokens != trunk], common, trunk)
        else:
            found += _grow(together, common, stem)
    return found


def _padded(rows: Sequence[Tensor], longest: int) -> Tensor:
    """Rows [position, width] in one batch, padded on the right."""
    joined = torch.zeros(len(rows), longest, rows[0].shape[-1], dtype=rows[0].dtype, device=rows[0].device)
    for row, states in enumerate(rows):
        joined[row, : len(states)] = states
    return joined
