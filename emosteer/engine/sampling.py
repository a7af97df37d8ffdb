"""Choosing the next token of every row, with randomness that belongs to the row.

Sampling is by Gumbel noise (the token with the largest `logit / temperature + noise` is a draw from the softmax; Gumbel 1954,
Maddison et al. 2014). The noise is a function of (seed, prompt, sample, step) alone, so a steered and an unsteered row
share it, and the packing of rows into batches cannot change a reply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from emosteer.engine.request import Request, RowSeed

TIE = 1e-5
"""Two scores are a near tie where they differ by less than this part of the logits' size: float32's rounding, which depends on how
rows were packed, reaches a tenth of that (measured: see `docs/engine.md`)."""

NOT_A_NUMBER = -1
"""In place of a token where the logits are not numbers. Told so, because asking would stop a GPU once more in each step."""
SIZED = 256
"""Tokens whose logits, beside the best, tell how large a row's are: looking at all would cost as much as finding the best."""
NARROW = 1e-5
"""A nucleus whose probability lies this close to `top_p` may fall on either side by rounding."""


class Choice(NamedTuple):
    """What was chosen, and where rounding could have chosen otherwise."""

    tokens: Tensor
    """[row]; `NOT_A_NUMBER` where the logits are none: see `checked`"""
    is_near: Tensor
    """[row], boolean: another token's score lies within rounding."""


def choose_tokens(logits: Tensor, requests: Sequence[Request], steps: Sequence[int], stop_tokens: frozenset[int]) -> Choice:
    """The next token of each row.

    Args:
        logits: [row, vocabulary]; may be written into.
        requests: one per row.
        steps: tokens that each row has generated so far.
        stop_tokens: suppressed while a row has fewer than its `min_new_tokens`.
    """
    scores = logits.float()
    scale = scores[:, :SIZED].abs().amax(-1)
    held_back = [
        row for row, (request, step) in enumerate(zip(requests, steps, strict=True)) if step < request.decoding.min_new_tokens
    ]
    if held_back and stop_tokens:
        scores[
            torch.tensor(held_back, device=scores.device)[:, None], torch.tensor(sorted(stop_tokens), device=scores.device)
        ] = -torch.inf
    sampled = [row for row, request in enumerate(requests) if request.decoding.do_sample]
    greedy = [row for row, request in enumerate(requests) if not request.decoding.do_sample]
    if not sampled:
        tokens, gaps, best = _largest(scores)
    elif not greedy:
        tokens, gaps, best = _draw(scores, requests, steps)
    else:
        parts = zip(
            _largest(scores[greedy]), _draw(scores[sampled], [requests[r] for r in sampled], [steps[r] for r in sampled]), strict=True
        )
        back = torch.tensor([*greedy, *sampled]).argsort().to(scores.device)
        tokens, gaps, best = (torch.cat(both)[back] for both in parts)
    tokens = torch.where(gaps.isnan(), NOT_A_NUMBER, tokens)
    return Choice(tokens, gaps <= TIE * torch.maximum(scale, best).clamp(min=1.0))


def checked(tokens: list[int]) -> list[int]:
    """The tokens; raises FloatingPointError where logits were not numbers, which a push too large for the dtype makes."""
    if NOT_A_NUMBER in tokens:
        raise FloatingPointError("the logits are not numbers: the push is too large for this dtype")
    return tokens


def _largest(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest score's token, how far the next lies below (NaN where a score is), and its size: each [row]. Writes."""
    best, tokens = scores.max(-1)
    scores.scatter_(-1, tokens[:, None], -torch.inf)
    return tokens, best - scores.amax(-1), best.abs()


def _draw(logits: Tensor, requests: Sequence[Request], steps: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """A draw, by how much it won in the logits' units (0 where the nucleus is in doubt), and the largest logit's size; each [row]."""
    device, vocabulary = logits.device, logits.shape[-1]
    temperature = torch.tensor([request.decoding.temperature for request in requests], device=device)[:, None]
    logits = logits / temperature
    top_p = torch.tensor([request.decoding.top_p for request in requests], device=device)
    # Rows of many cells share their noise: the baseline's.
    keys = [(request.row_seed, step) for request, step in zip(requests, steps, strict=True)]
    distinct = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    noise = torch.stack([gumbel_noise(*key, vocabulary) for key in distinct]).to(device)
    scores = logits + noise[torch.tensor([distinct[key] for key in keys], device=device)]
    is_cut = top_p < 1.0
    narrow = torch.zeros_like(is_cut)
    if any(request.decoding.top_p < 1.0 for request in requests):
        narrow = _cut_to_nucleus(scores, logits, top_p, is_cut)
    tokens, gaps, _ = _largest(scores)
    return tokens, torch.where(narrow, 0.0, gaps * temperature[:, 0]), logits.amax(-1).abs() * temperature[:, 0]


def _cut_to_nucleus(scores: Tensor, logits: Tensor, top_p: Tensor, is_cut: Tensor) -> Tensor:
    """Strike winners outside the nucleus: the most probable tokens that together reach `top_p` (Holtzman et al. 2020).

    A token is inside where all that are more probable hold less than `top_p`. Only winners are asked, which needs no sorting.

    Args:
        scores: [row, vocabulary]; written into.
        logits: [row, vocabulary], by temperature.
        top_p: [row].
        is_cut: [row]: whose scores are cut.

    Returns:
        [row], boolean: whether rounding could have judged a token otherwise.
    """
    probabilities = logits.softmax(-1)
    narrow = torch.zeros_like(is_cut)
    left = torch.nonzero(is_cut)[:, 0]
    while len(left):
        winners = scores[left].max(-1).indices
        own = probabilities[left]
        own_p = own.gather(1, winners[:, None])
        above = torch.where(own > own_p, own, 0.0).sum(-1)
        narrow[left] |= (above - top_p[left]).abs() < NARROW
        outside = above >= top_p[left]
        left, winners = left[outside], winners[outside]
        scores[left, winners] = -torch.inf
    return narrow


@lru_cache(maxsize=4096)
def _key(row_seed: RowSeed) -> int:
    text = f"{row_seed.seed}\0{row_seed.prompt_id}\0{row_seed.sample}"
    text += f"\0{row_seed.turn}" if row_seed.turn else ""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@lru_cache(maxsize=512)
def gumbel_noise(row_seed: RowSeed, step: int, vocabulary: int) -> Tensor:
    """Standard Gumbel noise [vocabulary], float32 on the CPU, the same on every machine.

    From the raw bits of a counter-based generator: numpy promises those to stay, and its distributions not.
    """
    bits = np.random.Philox(key=np.array([_key(row_seed), step], dtype=np.uint64)).random_raw(vocabulary)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return torch.from_numpy((-np.log(-np.log(uniform))).astype(np.float32))
