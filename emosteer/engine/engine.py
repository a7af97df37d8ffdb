"""Replies to many requests at once: any mixture of prompts, layers, coefficients, vectors and scopes in a batch.

Each prompt is prefilled once, all but its last token, and its keys and values are shared by every row that replies to it
unsteered up to there (scope `generated`, and the baseline). The last prompt token is every row's first decoding step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import psutil
import torch
from torch import Tensor
from transformers import DynamicCache

from emosteer.engine.cache import Prefix, RowsLayer, is_cacheable, join_rows, prefill_cache, split_rows
from emosteer.engine.request import Reply, Request
from emosteer.engine.sampling import choose_tokens
from emosteer.model.language_model import LanguageModel
from emosteer.model.padding import pad_left, positions
from emosteer.steering import Steering, SteeringPlan

log = logging.getLogger(__name__)

MOST_ROWS = {"cpu": 128, "cuda": 256, "mps": 64}
"""Rows beyond which a batch gains nothing (measured on the CPU: saturated between 112 and 224)."""
PREFILL_TOKENS = 4096
"""Tokens that are prefilled together."""
COMPACT_AT = 0.125
"""Share of ended rows at which a batch drops them."""

PrefixKey = tuple[tuple[int, ...], Steering | None]


class Engine:
    """Generates replies with one model.

    Args:
        model: the language model.
        batch_rows: rows decoded together; None chooses by device and free memory. Changes no reply.
        use_cache: keep keys and values; None does where the model's memory is keys and values alone. Changes no reply.
    """

    def __init__(self, model: LanguageModel, batch_rows: int | None = None, use_cache: bool | None = None) -> None:
        self.model = model
        self.use_cache = is_cacheable(model.model.config) if use_cache is None else use_cache
        self.batch_rows = batch_rows
        self._prefixes: dict[PrefixKey, Prefix] = {}
        if not self.use_cache:
            log.warning("%s keeps more than keys and values: every step reads the whole text again", model.name)

    def generate(self, requests: Sequence[Request], on_tokens: Callable[[int], None] = lambda n: None) -> Iterator[tuple[int, Reply]]:
        """Yield (index of request, reply) as replies end.

        Args:
            requests: each with a prompt of at least one token.
            on_tokens: told the number of tokens generated in each step, for a progress bar.
        """
        waiting = list(range(len(requests)))
        rows = self.batch_rows or self._fitting_rows(requests)
        while waiting:
            taken = waiting[:rows]
            done: set[int] = set()
            try:
                for position, reply in self._run_batch([requests[i] for i in taken], on_tokens):
                    done.add(taken[position])
                    yield taken[position], reply
            except RuntimeError as error:
                if not _is_out_of_memory(error) or rows == 1:
                    raise
                rows = self._halve(rows)
            waiting = [i for i in waiting if i not in done]

    def _halve(self, rows: int) -> int:
        log.warning("out of memory with %d rows in a batch: going on with %d", rows, rows // 2)
        self.batch_rows = rows // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return rows // 2

    def _fitting_rows(self, requests: Sequence[Request]) -> int:
        """Rows whose keys and values, counted generously, fill a quarter of the memory that is free."""
        if not requests:
            return 1
        most = MOST_ROWS.get(self.model.device.type, 64)
        longest = max(len(r.prompt) + r.decoding.max_new_tokens for r in requests)
        config = self.model.model.config.get_text_config()
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or self.model.width // config.num_attention_heads
        per_position = 2 * self.model.n_blocks * kv_heads * head_width * self.model.dtype.itemsize
        logits = 3 * 4 * config.vocab_size
        fitting = int(self._free_memory() / 4 / (per_position * longest + logits))
        rows = max(1, min(most, fitting))
        log.debug("batches of %d rows", rows)
        return rows

    def _free_memory(self) -> int:
        if self.model.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.model.device)[0])
        return int(psutil.virtual_memory().available)

    def _run_batch(self, requests: Sequence[Request], on_tokens: Callable[[int], None]) -> Iterator[tuple[int, Reply]]:
        batch = self._start(requests)
        rows = [_Row(index, request) for index, request in enumerate(requests)]
        step = 0
        while rows:
            logits = batch.logits()
            chosen = choose_tokens(logits, [row.request for row in rows], step, self.model.stop_tokens)
            tokens = chosen.tolist()
            step += 1
            fresh = 0
            for row, token in zip(rows, tokens, strict=True):
                fresh += not row.ended
                reply = row.take(token, self.model.stop_tokens)
                if reply is not None:
                    yield row.index, reply
            on_tokens(fresh)
            batch.append(chosen)
            alive = [i for i, row in enumerate(rows) if not row.ended]
            if len(rows) - len(alive) >= COMPACT_AT * len(rows) or not alive:
                rows = [rows[i] for i in alive]
                if rows:
                    batch.keep(alive)

    def _start(self, requests: Sequence[Request]) -> CachedRows | RereadRows:
        if not self.use_cache:
            return RereadRows(self.model, requests)
        return CachedRows(self.model, requests, self._prefixes_of([_prefix_key(request) for request in requests]))

    def prefixes(self, prompts: Sequence[tuple[int, ...]]) -> list[Prefix]:
        """Keys and values of prompts without their last token, unsteered; computed once for each prompt."""
        return self._prefixes_of([(prompt[:-1], None) for prompt in prompts])

    def _prefixes_of(self, keys: Sequence[PrefixKey]) -> list[Prefix]:
        missing = [key for key in dict.fromkeys(keys) if key not in self._prefixes]
        fresh: dict[PrefixKey, Prefix] = {}
        for chunk in _chunks_by_tokens(missing):
            fresh.update(zip(chunk, self._prefill(chunk), strict=True))
        # A prefix that was steered serves one row; the others serve every later batch.
        self._prefixes.update({key: prefix for key, prefix in fresh.items() if key[1] is None})
        return [self._prefixes[key] if key in self._prefixes else fresh[key] for key in keys]

    @torch.no_grad()
    def _prefill(self, keys: Sequence[PrefixKey]) -> list[Prefix]:
        tokens = [list(key[0]) for key in keys]
        config = self.model.model.config
        # Prompts of one token have an empty prefix: a pad stands in, and split_rows leaves nothing of it.
        batch = pad_left([row or [self.model.pad_token_id] for row in tokens], self.model.pad_token_id, self.model.device)
        plan = SteeringPlan([key[1] for key in keys], self.model.device, self.model.dtype)
        cache = prefill_cache(config)
        with plan.applied(self.model.anatomy, batch.attention_mask):
            self.model.model(**batch.inputs(), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return split_rows(cache, [len(row) for row in tokens])


def _prefix_key(request: Request) -> PrefixKey:
    steering = request.steering
    return request.prompt[:-1], steering if steering is not None and steering.touches_prefix else None


def _chunks_by_tokens(keys: Sequence[PrefixKey]) -> Iterator[list[PrefixKey]]:
    chunk: list[PrefixKey] = []
    longest = 0
    for key in sorted(keys, key=lambda key: len(key[0])):
        longest = max(longest, len(key[0]))
        if chunk and longest * (len(chunk) + 1) > PREFILL_TOKENS:
            yield chunk
            chunk, longest = [], len(key[0])
        chunk.append(key)
    if chunk:
        yield chunk


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error)


@dataclass
class _Row:
    """A reply in the making."""

    index: int
    request: Request
    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    def take(self, token: int, stop_tokens: frozenset[int]) -> Reply | None:
        """Add a token; the reply, if that ended it."""
        if self.ended:
            return None
        if token in stop_tokens:
            self.ended = True
            return Reply(tuple(self.tokens), finished=True)
        self.tokens.append(token)
        self.ended = len(self.tokens) >= self.request.decoding.max_new_tokens
        return Reply(tuple(self.tokens), finished=False) if self.ended else None


class CachedRows:
    """A batch that decodes one token a step, over prefixes that were computed before."""

    def __init__(self, model: LanguageModel, requests: Sequence[Request], prefixes: Sequence[Prefix]) -> None:
        self.model = model
        self.steerings = [request.steering for request in requests]
        room = max(request.decoding.max_new_tokens for request in requests)
        self.cache: DynamicCache = join_rows(model.model.config, prefixes, room)
        longest = max(prefix.length for prefix in prefixes)
        self.mask = torch.tensor([[0] * (longest - p.length) + [1] * (p.length + 1) for p in prefixes], device=model.device)
        self.next = torch.tensor([[request.prompt[-1]] for request in requests], device=model.device)
        self.in_prompt = True
        self._plan = self._make_plan()

    def _make_plan(self) -> SteeringPlan:
        steered = [s if s is not None and (self.in_prompt or s.touches_reply) else None for s in self.steerings]
        return SteeringPlan(steered, self.model.device, self.model.dtype)

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Logits [row, vocabulary] after the rows' newest tokens."""
        position_ids = self.mask.sum(1, keepdim=True) - 1
        with self._plan.applied(self.model.anatomy):
            output = self.model.model(
                input_ids=self.next,
                attention_mask=self.mask,
                position_ids=position_ids,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return output.logits[:, -1]

    def append(self, tokens: Tensor) -> None:
        """Give each row its next token [row]."""
        self.next = tokens[:, None]
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        if self.in_prompt:
            self.in_prompt = False
            self._plan = self._make_plan()

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(rows, device=self.model.device)
        for layer in self.cache.layers:
            assert isinstance(layer, RowsLayer)
            layer.keep(index)
        self.mask, self.next = self.mask[index], self.next[index]
        self.steerings = [self.steerings[row] for row in rows]
        self._plan = self._make_plan()


class RereadRows:
    """A batch that reads every row's whole text at every step: slow, and right for any decoder."""

    def __init__(self, model: LanguageModel, requests: Sequence[Request]) -> None:
        self.model = model
        self.steerings = [request.steering for request in requests]
        self.prompt_lengths = [len(request.prompt) for request in requests]
        batch = pad_left([request.prompt for request in requests], model.pad_token_id, model.device)
        self.ids, self.mask = batch.input_ids, batch.attention_mask

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Logits [row, vocabulary] after the rows' newest tokens."""
        plan = SteeringPlan(self.steerings, self.model.device, self.model.dtype)
        with plan.applied(self.model.anatomy, self._steered()):
            output = self.model.model(
                input_ids=self.ids,
                attention_mask=self.mask,
                position_ids=positions(self.mask),
                use_cache=False,
                logits_to_keep=1,
            )
        return output.logits[:, -1]

    def _steered(self) -> Tensor:
        width = self.ids.shape[1]
        rows = []
        for steering, n_prompt, n_tokens in zip(self.steerings, self.prompt_lengths, self.mask.sum(1).tolist(), strict=True):
            own = steering.mask(n_prompt, n_tokens) if steering else [0] * n_tokens
            rows.append([0] * (width - n_tokens) + own)
        return torch.tensor(rows, device=self.model.device)

    def append(self, tokens: Tensor) -> None:
        """Give each row its next token [row]."""
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        self.ids, self.mask = self.ids[rows], self.mask[rows]
        self.steerings = [self.steerings[row] for row in rows]
        self.prompt_lengths = [self.prompt_lengths[row] for row in rows]
