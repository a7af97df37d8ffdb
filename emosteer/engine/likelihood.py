"""How probable given replies are under the unsteered model, and how far steering moved what it expects, over shared prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from emosteer.engine.cache import join_rows
from emosteer.engine.engine import Engine
from emosteer.engine.paths import REREAD
from emosteer.engine.request import Origin
from emosteer.engine.rows import prefix_key
from emosteer.model.memory import is_out_of_memory
from emosteer.model.padding import positions
from emosteer.model.past import is_keyed
from emosteer.steering import SteeringPlan

TOKENS_AT_ONCE = 4096
"""Tokens of replies that one forward reads, padding included."""

Text = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt's and a reply's token ids."""
_Row = tuple[Origin, tuple[int, ...]]
"""What a reply came from, and its token ids."""
_Compared = tuple[Text, Origin]
"""A text as the unsteered model reads it, and what its reply came from."""
_Item = TypeVar("_Item", Text, _Compared)


def mean_log_probabilities(engine: Engine, texts: Sequence[Text]) -> list[float]:
    """Mean log-probability (nats) of each reply's tokens after its prompt; NaN for a reply without tokens.

    Equal texts are computed once, and get equal values. Those that `mean_divergences` has just read are not read again.
    """
    known: dict[Text, float] = {text: math.nan for text in texts if not text[1]}
    known |= {text: engine.likelihoods[text] for text in texts if text in engine.likelihoods}
    rest = sorted({text for text in texts if text not in known}, key=lambda text: (len(text[1]), text))
    shares = _choose_path(engine, (len(prompt) + len(reply) for prompt, reply in rest))
    for batch in _batches(rest, lambda text: len(text[1]), shares):
        known.update(zip(batch, _halved(engine, batch, lambda own: _likelihoods(engine, own, shares)), strict=True))
    return [known[text] for text in texts]


def mean_divergences(engine: Engine, texts: Sequence[Text], origins: Sequence[Origin]) -> list[float]:
    """Kullback-Leibler divergence KL(steered || unsteered) of the next token, in nats, mean over each reply's tokens.

    Both models read the reply's own tokens: the steered one after the prompt that it came from, the unsteered one after the text's.
    Exactly 0 where nothing was done, NaN for a reply without tokens. Equal texts of one origin are computed once. How probable the
    unsteered model finds the texts comes of it too, and is noted in `engine.likelihoods`, in place of what was noted before.

    Args:
        engine: the model.
        texts: prompts, as the unsteered model reads them, and replies.
        origins: what each reply came from.
    """
    asked = list(zip(texts, origins, strict=True))
    known: dict[_Compared, float] = {}
    for text, origin in asked:
        if not text[1]:
            known[text, origin] = math.nan
        elif origin.steering is None and origin.prompt == text[0]:
            known[text, origin] = 0.0
    rest = sorted(dict.fromkeys(one for one in asked if one not in known), key=lambda one: (len(one[0][1]), one[0]))
    longest = (max(len(text[0]), len(origin.prompt)) + len(text[1]) for text, origin in rest)
    shares = _choose_path(engine, longest)
    engine.likelihoods.clear()
    for batch in _batches(rest, lambda one: len(one[0][1]), shares):
        known.update(zip(batch, _halved(engine, batch, lambda own: _divergences(engine, own, shares)), strict=True))
    return [known[one] for one in asked]


def _choose_path(engine: Engine, lengths: Iterable[int]) -> bool:
    """Settle the way through the model for texts of these lengths; whether it shares what prompts leave behind."""
    if longest := max(lengths, default=0):
        engine.chooser.choose(longest)
    return engine.path != REREAD and is_keyed(engine.model.model.config)


def _batches(items: Sequence[_Item], length: Callable[[_Item], int], shares: bool) -> Iterator[list[_Item]]:
    """Items that are read together: sorted by the reply's length, so that little is padding."""
    batch: list[_Item] = []
    for item in items:
        if batch and (not shares or length(item) * (len(batch) + 1) > TOKENS_AT_ONCE):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _halved(engine: Engine, items: Sequence[_Item], measure: Callable[[Sequence[_Item]], list[float]]) -> list[float]:
    """What `measure` says of each item; where there is no memory for all at once, for half of them at a time."""
    # Of a whole text that is read anew, the prompt is read too.
    with engine.account.timing("likelihood"):
        try:
            return measure(items)
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(items) == 1:
                raise
    half = len(items) // 2
    return _halved(engine, items[:half], measure) + _halved(engine, items[half:], measure)


@torch.no_grad()
def _likelihoods(engine: Engine, texts: Sequence[Text], shares: bool) -> list[float]:
    states = _states(engine, [(Origin(prompt), reply) for prompt, reply in texts], shares)
    targets = _targets(texts, states.device)
    chosen = []
    for rows, logits in engine.body.in_chunks(states):
        own = logits.float()
        chosen.append(own.gather(1, targets[rows, None])[:, 0] - own.logsumexp(-1))
    return _means(torch.cat(chosen), texts)


@torch.no_grad()
def _divergences(engine: Engine, items: Sequence[_Compared], shares: bool) -> list[float]:
    texts = [text for text, _ in items]
    steered = _states(engine, [(origin, reply) for (_, reply), origin in items], shares)
    plain = _states(engine, [(Origin(prompt), reply) for prompt, reply in texts], shares)
    targets = _targets(texts, plain.device)
    divergences, chosen = [], []
    # So many tables of probabilities are there at a time.
    at_once = max(1, engine.body.logit_rows // 4)
    for start in range(0, len(plain), at_once):
        rows = slice(start, start + at_once)
        own = engine.body.logits(steered[rows]).float().log_softmax(-1)
        other = engine.body.logits(plain[rows]).float().log_softmax(-1)
        chosen.append(other.gather(1, targets[rows, None])[:, 0])
        # A token that the steered model rules out adds nothing, even where the other rules it out too.
        probabilities = own.exp()
        divergences.append(torch.where(probabilities > 0, probabilities * (own - other), 0).sum(-1))
    engine.likelihoods.update(zip(texts, _means(torch.cat(chosen), texts), strict=True))
    return _means(torch.cat(divergences), texts)


def _targets(texts: Sequence[Text], device: torch.device) -> Tensor:
    """The replies' tokens [token], one text after the other."""
    return torch.tensor([token for _, reply in texts for token in reply], device=device)


def _means(values: Tensor, texts: Sequence[Text]) -> list[float]:
    """The mean over each reply's tokens, of values [token]."""
    return [float(own.mean()) for own in torch.split(values.double(), [len(reply) for _, reply in texts])]


def _states(engine: Engine, rows: Sequence[_Row], shares: bool) -> Tensor:
    """The states [token, width] before each of the replies' tokens, steered as they were, one row after the other."""
    return _after_prompts(engine, rows) if shares else _whole(engine, *rows[0])


def _after_prompts(engine: Engine, rows: Sequence[_Row]) -> Tensor:
    """Each reply read after its prompt's keys and values."""
    model, config = engine.model, engine.model.model.config
    longest = max(len(reply) for _, reply in rows)
    prefixes = engine.prefixes.of([prefix_key(origin) for origin, _ in rows])
    padding = max(prefix.length for prefix in prefixes)
    # The last prompt token predicts the first of the reply, whose last token predicts nothing that is asked for.
    # Padding after a reply is read by nothing before it.
    ids = [[origin.prompt[-1], *reply[:-1], *[model.pad_token_id] * (longest - len(reply))] for origin, reply in rows]
    mask = torch.tensor([[0] * (padding - p.length) + [1] * (p.length + longest) for p in prefixes], device=model.device)
    with _steered(engine, [(origin, len(origin.prompt) - 1) for origin, _ in rows], longest):
        states = engine.body.run(
            join_rows(config, prefixes, longest),
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=mask,
            position_ids=positions(mask)[:, -longest:],
        )
    return torch.cat([states[row, : len(reply)] for row, (_, reply) in enumerate(rows)])


def _whole(engine: Engine, origin: Origin, reply: tuple[int, ...]) -> Tensor:
    """A text read alone without a cache."""
    ids = [*origin.prompt, *reply[:-1]]
    with _steered(engine, [(origin, 0)], len(ids)):
        return engine.body.run(input_ids=torch.tensor([ids], device=engine.model.device))[0, -len(reply) :]


def _steered(engine: Engine, rows: Sequence[tuple[Origin, int]], n_positions: int) -> AbstractContextManager[None]:
    """Steer rows, of each of which some tokens were read before, over the next positions while the model runs inside."""
    if all(origin.steering is None for origin, _ in rows):
        return nullcontext()
    strengths = [
        [0.0] * n_positions if origin.steering is None else origin.steering.strengths(len(origin.prompt), past + n_positions)[past:]
        for origin, past in rows
    ]
    model = engine.model
    plan = SteeringPlan([origin.steering for origin, _ in rows], model.device, model.dtype)
    return plan.applied(model.anatomy, torch.tensor(strengths, device=model.device))
