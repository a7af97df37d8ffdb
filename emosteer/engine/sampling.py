"""Choosing the next token of every row, with randomness that belongs to the row.

Sampling is by Gumbel noise (the token with the largest `logit / temperature + noise` is a draw from the softmax; Gumbel 1954,
Maddison et al. 2014). The noise is a function of (seed, prompt, sample, step) alone, so a steered and an unsteered row
share it, and the packing of rows into batches cannot change a reply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from emosteer.engine.request import Request, RowSeed


def choose_tokens(logits: Tensor, requests: Sequence[Request], step: int, stop_tokens: frozenset[int]) -> Tensor:
    """The next token of each row [row].

    Args:
        logits: [row, vocabulary].
        requests: one per row.
        step: tokens that each row has generated so far.
        stop_tokens: suppressed while a row has fewer than its `min_new_tokens`.

    Raises:
        FloatingPointError: a row whose logits are not numbers, which a push too large for the dtype makes.
    """
    logits = logits.float()
    if bool(logits.isnan().any()):
        raise FloatingPointError("the logits are not numbers: the push is too large for this dtype")
    held_back = [row for row, request in enumerate(requests) if step < request.decoding.min_new_tokens]
    if held_back and stop_tokens:
        logits = logits.clone()
        logits[torch.tensor(held_back)[:, None], torch.tensor(sorted(stop_tokens))[None, :]] = -torch.inf
    chosen = logits.argmax(-1)
    for row, request in enumerate(requests):
        if request.decoding.do_sample:
            chosen[row] = _draw(logits[row], request, step)
    return chosen


def _draw(logits: Tensor, request: Request, step: int) -> Tensor:
    logits = logits / request.decoding.temperature
    if request.decoding.top_p < 1.0:
        logits = _nucleus(logits, request.decoding.top_p)
    return (logits + gumbel_noise(request.row_seed, step, logits.shape[-1]).to(logits.device)).argmax(-1)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Drop all tokens but the most probable ones that together reach `top_p` (Holtzman et al. 2020)."""
    ordered, order = logits.sort(descending=True)
    probabilities = ordered.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities >= top_p
    return logits.index_fill(0, order[outside], -torch.inf)


@lru_cache(maxsize=4096)
def _key(row_seed: RowSeed) -> int:
    text = f"{row_seed.seed}\0{row_seed.prompt_id}\0{row_seed.sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@lru_cache(maxsize=512)
def gumbel_noise(row_seed: RowSeed, step: int, vocabulary: int) -> Tensor:
    """Standard Gumbel noise [vocabulary], float32 on the CPU, the same on every machine.

    From the raw bits of a counter-based generator: numpy promises those to stay, and its distributions not.
    """
    bits = np.random.Philox(key=np.array([_key(row_seed), step], dtype=np.uint64)).random_raw(vocabulary)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return torch.from_numpy((-np.log(-np.log(uniform))).astype(np.float32))
