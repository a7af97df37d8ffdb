"""Texts read whole by the model's own forward, without a cache: slow, and what every other way is held to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emosteer.engine.request import Request
from emosteer.model.language_model import LanguageModel
from emosteer.steering import SteeringPlan


@torch.no_grad()
def logits_of_whole(model: LanguageModel, requests: Sequence[Request], replies: Sequence[Sequence[int]], n_last: int = 1) -> Tensor:
    """Logits after the last positions [row, position, vocabulary] of texts of equal length, each steered as its request says.

    Args:
        model: the model.
        requests: one for each row.
        replies: token ids that follow each request's prompt.
        n_last: positions.
    """
    texts = [[*request.prompt, *reply] for request, reply in zip(requests, replies, strict=True)]
    strengths = [_strengths(request, len(text)) for request, text in zip(requests, texts, strict=True)]
    plan = SteeringPlan([request.steering for request in requests], model.device, model.dtype)
    with plan.applied(model.anatomy, torch.tensor(strengths, device=model.device)):
        ids = torch.tensor(texts, device=model.device)
        logits: Tensor = model.model(input_ids=ids, use_cache=False, logits_to_keep=n_last).logits
    return logits[:, -n_last:]


def _strengths(request: Request, n_tokens: int) -> list[float]:
    """By how much each position of a row's text is steered."""
    return request.steering.strengths(len(request.prompt), n_tokens) if request.steering else [0.0] * n_tokens
