"""How probable given replies are under the unsteered model, over the same shared prefixes as generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emosteer.engine.cache import join_rows
from emosteer.engine.engine import Engine
from emosteer.model.padding import pad_left, positions

LOGITS_BYTES = 1 << 28
"""Most memory for one forward's logits, which hold every position of every row."""

Text = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt's and a reply's token ids."""


def mean_log_probabilities(engine: Engine, texts: Sequence[Text]) -> list[float]:
    """Mean log-probability (nats) of each reply's tokens after its prompt; NaN for a reply without tokens.

    Equal texts are computed once, and get equal values.
    """
    known: dict[Text, float] = {text: float("nan") for text in texts if not text[1]}
    rest = sorted({text for text in texts if text[1]}, key=lambda text: len(text[1]))
    vocabulary = engine.model.model.config.get_text_config().vocab_size
    start = 0
    while start < len(rest):
        stop = start + 1
        while stop < len(rest) and (stop + 1 - start) * len(rest[stop][1]) * vocabulary * 8 <= LOGITS_BYTES:
            stop += 1
        known.update(zip(rest[start:stop], _forward(engine, rest[start:stop]), strict=True))
        start = stop
    return [known[text] for text in texts]


@torch.no_grad()
def _forward(engine: Engine, texts: Sequence[Text]) -> list[float]:
    longest = max(len(reply) for _, reply in texts)
    # The last prompt token predicts the first of the reply, whose last token predicts nothing that is asked for.
    rows = [[prompt[-1], *reply[:-1]] for prompt, reply in texts]
    logits = _cached_logits(engine, texts, rows, longest) if engine.use_cache else _plain_logits(engine, texts, longest)
    target = torch.tensor([[*reply, *[0] * (longest - len(reply))] for _, reply in texts], device=logits.device)
    chosen = logits.gather(2, target[:, :, None])[:, :, 0].float() - logits.float().logsumexp(-1)
    return [float(chosen[row, : len(reply)].double().mean()) for row, (_, reply) in enumerate(texts)]


def _cached_logits(engine: Engine, texts: Sequence[Text], rows: list[list[int]], longest: int) -> Tensor:
    model = engine.model
    prefixes = engine.prefixes([prompt for prompt, _ in texts])
    padding = max(prefix.length for prefix in prefixes)
    # Padding after a reply is read by nothing before it.
    ids = torch.tensor([row + [model.pad_token_id] * (longest - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (padding - p.length) + [1] * (p.length + longest) for p in prefixes], device=model.device)
    output = model.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask)[:, -longest:],
        past_key_values=join_rows(model.model.config, prefixes, longest),
        use_cache=True,
    )
    return output.logits


def _plain_logits(engine: Engine, texts: Sequence[Text], longest: int) -> Tensor:
    model = engine.model
    logits = []
    for prompt, reply in texts:
        batch = pad_left([[*prompt, *reply[:-1]]], model.pad_token_id, model.device)
        own = model.model(**batch.inputs(), use_cache=False).logits[:, -len(reply) :]
        logits.append(torch.nn.functional.pad(own, (0, 0, 0, longest - len(reply))))
    return torch.cat(logits)
