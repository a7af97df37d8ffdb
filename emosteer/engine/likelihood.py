"""How probable given replies are under the unsteered model, over the same shared prompts as generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from emosteer.engine.cache import join_rows
from emosteer.engine.engine import Engine
from emosteer.engine.paths import REREAD
from emosteer.model.memory import is_out_of_memory
from emosteer.model.padding import positions
from emosteer.model.past import is_keyed

TOKENS_AT_ONCE = 4096
"""Tokens of replies that one forward reads, padding included."""

Text = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt's and a reply's token ids."""


def mean_log_probabilities(engine: Engine, texts: Sequence[Text]) -> list[float]:
    """Mean log-probability (nats) of each reply's tokens after its prompt; NaN for a reply without tokens.

    Equal texts are computed once, and get equal values.
    """
    known: dict[Text, float] = {text: float("nan") for text in texts if not text[1]}
    rest = sorted({text for text in texts if text[1]}, key=lambda text: (len(text[1]), text))
    if rest:
        engine.chooser.choose(max(len(prompt) + len(reply) for prompt, reply in rest))
    shares = engine.path != REREAD and is_keyed(engine.model.model.config)
    for batch in _batches(rest, shares):
        known.update(zip(batch, _of_batch(engine, batch, shares), strict=True))
    return [known[text] for text in texts]


def _batches(texts: Sequence[Text], shares: bool) -> Iterator[list[Text]]:
    """Texts that are read together: sorted by the reply's length, so that little is padding."""
    batch: list[Text] = []
    for text in texts:
        if batch and (not shares or len(text[1]) * (len(batch) + 1) > TOKENS_AT_ONCE):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _of_batch(engine: Engine, texts: Sequence[Text], shares: bool) -> list[float]:
    """The texts' means; where there is no memory for all at once, for half of them at a time."""
    # Of a whole text that is read anew, the prompt is read too.
    with engine.account.timing("likelihood"):
        try:
            return _means(engine, texts, _after_prompts(engine, texts) if shares else _whole(engine, texts[0]))
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(texts) == 1:
                raise
    half = len(texts) // 2
    return _of_batch(engine, texts[:half], shares) + _of_batch(engine, texts[half:], shares)


@torch.no_grad()
def _means(engine: Engine, texts: Sequence[Text], states: Tensor) -> list[float]:
    """Mean log-probabilities from the states [token, width] before each of the replies' tokens, one text after the other."""
    targets = torch.tensor([token for _, reply in texts for token in reply], device=states.device)
    chosen = []
    for rows, logits in engine.body.in_chunks(states):
        own = logits.float()
        chosen.append(own.gather(1, targets[rows, None])[:, 0] - own.logsumexp(-1))
    each = torch.split(torch.cat(chosen).double(), [len(reply) for _, reply in texts])
    return [float(own.mean()) for own in each]


@torch.no_grad()
def _after_prompts(engine: Engine, texts: Sequence[Text]) -> Tensor:
    """Each reply read after its prompt's keys and values: the states [token, width] before its tokens."""
    model, config = engine.model, engine.model.model.config
    longest = max(len(reply) for _, reply in texts)
    prefixes = engine.prefixes.of([(prompt[:-1], None) for prompt, _ in texts])
    padding = max(prefix.length for prefix in prefixes)
    # The last prompt token predicts the first of the reply, whose last token predicts nothing that is asked for.
    # Padding after a reply is read by nothing before it.
    rows = [[prompt[-1], *reply[:-1], *[model.pad_token_id] * (longest - len(reply))] for prompt, reply in texts]
    mask = torch.tensor([[0] * (padding - p.length) + [1] * (p.length + longest) for p in prefixes], device=model.device)
    states = engine.body.run(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=mask,
        position_ids=positions(mask)[:, -longest:],
        past_key_values=join_rows(config, prefixes, longest),
        use_cache=True,
    )
    return torch.cat([states[row, : len(reply)] for row, (_, reply) in enumerate(texts)])


@torch.no_grad()
def _whole(engine: Engine, text: Text) -> Tensor:
    """A text read alone without a cache: the states [token, width] before each of the reply's tokens."""
    prompt, reply = text
    ids = torch.tensor([[*prompt, *reply[:-1]]], device=engine.model.device)
    return engine.body.run(input_ids=ids, use_cache=False)[0, -len(reply) :]
