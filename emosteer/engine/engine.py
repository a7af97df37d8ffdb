"""Replies to many requests at once: any mixture of prompts, layers, coefficients, vectors, scopes and samples in a batch.

Each prompt is read once, all but its last token, and shared by every row that replies to it unsteered up to there (scope
`generated`, and the baseline). The last prompt token is every row's first decoding step. Rows that end are replaced.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from emosteer.engine.account import Account
from emosteer.engine.body import Body
from emosteer.engine.memory import fitting_rows, most_rows
from emosteer.engine.paths import REREAD, SHARED, STOCK, Chooser
from emosteer.engine.prefixes import Prefix, Prefixes
from emosteer.engine.request import Reply, Request
from emosteer.engine.rows import Extent, Rows, prefix_key
from emosteer.engine.sampling import checked, choose_tokens
from emosteer.engine.shared import SharedRows
from emosteer.engine.stock import RereadRows, StockRows
from emosteer.engine.ties import are_settled, settled
from emosteer.model.language_model import LanguageModel
from emosteer.model.memory import give_back, is_out_of_memory

log = logging.getLogger(__name__)

REPLACED_AT = 1 / 16
"""Share of ended rows at which a batch takes new ones in their place."""
DROPPED_AT = 1 / 8
"""Share of ended rows at which a batch drops them, where there are no new ones."""


class Engine:
    """Generates replies with one model.

    Args:
        model: the language model.
        batch_rows: rows decoded together; None chooses by device and free memory. Changes no reply in float32.
        path: `shared`, `stock` or `reread`, from fast to slow (see `docs/engine.md`); None takes the first that the model bears.

    Raises:
        EmosteerError: a path that there is not, or that the model does not bear.
    """

    def __init__(self, model: LanguageModel, batch_rows: int | None = None, path: str | None = None) -> None:
        self.model = model
        self.batch_rows = batch_rows
        self.account = Account()
        self.likelihoods: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
        """By prompt and reply, the mean log-probabilities that were noted last; see `likelihood.mean_divergences`."""
        self.body = Body(model)
        self.chooser = Chooser(model, self.body, path)
        self._prefixes: Prefixes | None = None
        self._choose(0)

    @property
    def path(self) -> str:
        """The way through the model."""
        return self.chooser.path

    def _choose(self, longest: int) -> None:
        """Settle the path for rows of up to `longest` tokens: it may be another once rows are longer than a window."""
        self.chooser.choose(longest)
        self.account.path, self.account.reason = self.chooser.path, self.chooser.reason

    @property
    def prefixes(self) -> Prefixes:
        """The prompts that were read so far."""
        branches = self.chooser.branches
        if self._prefixes is None or self._prefixes.branches != branches:
            self._prefixes = Prefixes(self.model, self.body, self.account, branches)
        return self._prefixes

    def generate(self, requests: Sequence[Request], on_tokens: Callable[[int], None] = lambda n: None) -> Iterator[tuple[int, Reply]]:
        """Yield (index of request, reply) as replies end.

        Args:
            requests: each with a prompt of at least one token.
            on_tokens: told the number of tokens generated in each step, for a progress bar.
        """
        if not requests:
            return
        self._choose(max(len(request.prompt) + request.decoding.max_new_tokens for request in requests))
        waiting = deque(range(len(requests)))
        extent = Extent.of(requests)
        most = self.batch_rows or fitting_rows(self.model, self._positions(requests, extent), self.body.logit_rows)
        while waiting:
            rows = min(most, len(waiting))
            if rows != self.account.batch_rows:
                log.info("batches of %d rows, %s", rows, self.account.path)
                self.account.batch_rows = rows
            batch = _Batch(self, requests, waiting, extent, rows)
            try:
                yield from batch.run(on_tokens)
            except RuntimeError as error:
                if not is_out_of_memory(error) or rows == 1:
                    raise
                most = self._halve(rows)
                waiting.extendleft(reversed(batch.unfinished()))

    def stream(self, request: Request) -> Iterator[int]:
        """Yield the tokens of one reply as they are chosen: those that `generate` gives, whatever else is asked."""
        self._choose(len(request.prompt) + request.decoding.max_new_tokens)
        batch = _Batch(self, [request], deque([0]), Extent.of([request]), 1)
        yield from batch.stream()

    def _positions(self, requests: Sequence[Request], extent: Extent) -> int:
        """Positions that a row costs: its own, and its share in those of the prompts."""
        if self.path == SHARED:
            # Of a full batch, where all prompts are of the longest's length.
            sharing = min(len(requests), most_rows(self.model.device))
            return extent.positions + extent.prefix * len({request.prompt for request in requests}) // sharing
        return extent.prefix + extent.reply

    def _halve(self, rows: int) -> int:
        log.warning("out of memory with %d rows in a batch: going on with %d", rows, rows // 2)
        self.batch_rows = rows // 2
        self.prefixes.forget()
        give_back()
        return rows // 2

    def rows(self, n_rows: int, extent: Extent, like: Prefix | None) -> Rows:
        """An empty batch."""
        if self.path == SHARED:
            assert like is not None
            chooser = self.chooser
            return SharedRows(self.model, self.body, n_rows, extent, like, chooser.expands, chooser.recorder, chooser.narrows)
        if self.path == STOCK:
            return StockRows(self.model, self.body, n_rows, extent)
        assert self.path == REREAD
        return RereadRows(self.model, n_rows)


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


class _Batch:
    """Rows that run together, taken from those that wait."""

    def __init__(self, engine: Engine, requests: Sequence[Request], waiting: deque[int], extent: Extent, n_rows: int) -> None:
        self.engine, self.requests, self.waiting, self.extent = engine, requests, waiting, extent
        self.model, self.account = engine.model, engine.account
        self.rows = self._next(n_rows)
        self.batch: Rows | None = None
        self._settles = are_settled(engine.model)

    def unfinished(self) -> list[int]:
        """Requests that were begun and have no reply."""
        return [row.index for row in self.rows if not row.ended]

    def run(self, on_tokens: Callable[[int], None]) -> Iterator[tuple[int, Reply]]:
        """Decode until nothing is left, here and among those that wait."""
        self._put(list(range(len(self.rows))), self.rows)
        while self.rows:
            fresh, replies = 0, []
            for row, token in zip(self.rows, self._advance(), strict=True):
                fresh += not row.ended
                reply = row.take(token, self.model.stop_tokens)
                if reply is not None:
                    replies.append((row.index, reply))
            self.account.tokens += fresh
            on_tokens(fresh)
            yield from replies
            self._refill()

    def stream(self) -> Iterator[int]:
        """Decode the only row, a token at a time."""
        (row,) = self.rows
        self._put([0], self.rows)
        while not row.ended:
            there = len(row.tokens)
            (token,) = self._advance()
            row.take(token, self.model.stop_tokens)
            self.account.tokens += len(row.tokens) - there
            yield from row.tokens[there:]

    def _advance(self) -> list[int]:
        """Every row's next token."""
        assert self.batch is not None
        with self.account.timing("decode"):
            tokens = self._step(self.batch)
            chosen = checked(tokens.tolist())
            self.batch.append(tokens)
        return chosen

    def _step(self, batch: Rows) -> Tensor:
        """The rows' next tokens [row]."""
        chosen = []
        requests, steps = [row.request for row in self.rows], [len(row.tokens) for row in self.rows]
        self.account.blocks_spared += batch.blocks_spared
        for rows, logits in batch.step():
            own = choose_tokens(logits, requests[rows], steps[rows], self.model.stop_tokens)
            chosen.append(own.tokens)
            if self._settles:
                self._settle(own.tokens, self.rows[rows], own.is_near)
        self.account.steps += 1
        self.account.row_steps += len(self.rows)
        return torch.cat(chosen)

    def _settle(self, tokens: Tensor, rows: Sequence[_Row], is_near: Tensor) -> None:
        """Decide near ties, in place."""
        for number in torch.nonzero(is_near)[:, 0].tolist():
            if not rows[number].ended:
                tokens[number] = settled(self.model, rows[number].request, rows[number].tokens)
                self.account.ties += 1

    def _refill(self) -> None:
        """Put new rows in the place of ended ones, or drop those, once that is worth the while."""
        ended = [number for number, row in enumerate(self.rows) if row.ended]
        if not ended or len(ended) < len(self.rows) * (REPLACED_AT if self.waiting else DROPPED_AT):
            return
        fresh = self._next(len(ended))
        places, rest = ended[: len(fresh)], set(ended[len(fresh) :])
        for number, row in zip(places, fresh, strict=True):
            self.rows[number] = row
        if rest and len(rest) < len(self.rows):
            kept = [number for number in range(len(self.rows)) if number not in rest]
            moved = {number: at for at, number in enumerate(kept)}
            assert self.batch is not None
            with self.account.timing("decode"):
                self.batch.keep(kept)
            places = [moved[number] for number in places]
        self.rows = [row for number, row in enumerate(self.rows) if number not in rest]
        if fresh:
            self._put(places, fresh)

    def _next(self, n: int) -> list[_Row]:
        return [_Row(index, self.requests[index]) for index in (self.waiting.popleft() for _ in range(min(n, len(self.waiting))))]

    def _put(self, places: list[int], rows: Sequence[_Row]) -> None:
        requests = [row.request for row in rows]
        reads = self.engine.path != REREAD
        prefixes = self.engine.prefixes.of([prefix_key(request) for request in requests]) if reads else []
        with self.account.timing("decode"):
            if self.batch is None:
                self.batch = self.engine.rows(len(rows), self.extent, prefixes[0] if prefixes else None)
            self.batch.put(places, requests, prefixes)
