"""Near ties in float32 settled the same way however rows were packed.

Sums in float32 come out a little different by batch size, padding and threads. Where two tokens' scores lie closer than that, the
packing would choose between them. Such a row is read again, whole, alone and by one thread, which is the same computation whatever
was beside it, and that decides. It happens once in some thousands of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from emosteer.engine.request import Request
from emosteer.engine.sampling import checked, choose_tokens
from emosteer.engine.whole import logits_of_whole
from emosteer.model.language_model import LanguageModel


def are_settled(model: LanguageModel) -> bool:
    """Whether near ties are settled: in float32. In narrower formats rounding is too large, and ties too many."""
    return model.dtype == torch.float32


def settled(model: LanguageModel, request: Request, reply: Sequence[int]) -> int:
    """The token after a request's prompt and the reply so far, by reading the whole text alone."""
    with _one_thread():
        logits = logits_of_whole(model, [request], [reply])[:, -1]
    return checked(choose_tokens(logits, [request], [len(reply)], model.stop_tokens).tokens.tolist())[0]


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
