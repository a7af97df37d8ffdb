"""The ways for models whose attention cannot be replaced: rows with a copy of their prefix each, or read anew at every step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from emosteer.engine.body import Body
from emosteer.engine.cache import JoinedLayer, join_rows
from emosteer.engine.prefixes import Prefix
from emosteer.engine.request import Request
from emosteer.engine.rows import Extent, Fed
from emosteer.engine.whole import logits_of_whole
from emosteer.model.language_model import LanguageModel


class StockRows:
    """Rows whose prefixes are copied side by side, left-padded, and attended to by the model's own attention.

    Args:
        model: the model.
        body: the same.
        n_rows: of the batch; all are to be `put`, in order, before the first step.
        extent: of all requests that may come.
    """

    blocks_spared = 0

    def __init__(self, model: LanguageModel, body: Body, n_rows: int, extent: Extent) -> None:
        self.model, self.body, self.extent = model, body, extent
        self.fed = Fed(model, n_rows, extent)
        self.mask = torch.zeros(n_rows, 0, dtype=torch.long, device=model.device)
        """[row, position]: 1 where there is something of the row's past."""
        self.cache: DynamicCache | None = None

    @property
    def _layers(self) -> list[JoinedLayer]:
        assert self.cache is not None
        return list(self.cache.layers)

    def put(self, rows: Sequence[int], requests: Sequence[Request], prefixes: Sequence[Prefix]) -> None:
        """Let rows reply to other requests, from the beginning."""
        index = torch.tensor(rows, device=self.model.device)
        self.fed.put(rows, requests)
        if self.cache is None:
            self.cache = join_rows(self.model.model.config, prefixes, self.extent.reply)
            longest = max(prefix.length for prefix in prefixes)
            self.mask = torch.zeros(len(self.mask), longest, dtype=torch.long, device=self.model.device)
        else:
            self._make_room(max(prefix.length for prefix in prefixes))
        self.mask[index] = 0
        for row, prefix in zip(rows, prefixes, strict=True):
            self.mask[row, self.mask.shape[1] - prefix.length :] = 1
            for number, layer in enumerate(self._layers):
                keys, values = prefix.keys[number], prefix.values[number]
                assert keys is not None
                assert values is not None
                layer.put(row, keys, values)

    def _make_room(self, needed: int) -> None:
        """Have `needed` positions behind the rows' ends, and a reply's before them."""
        width = self.mask.shape[1]
        held = int(self.mask.sum(1).max())
        if width < needed:  # every row moves to the right
            for layer in self._layers:
                layer.widen(needed - width)
            self.mask = torch.nn.functional.pad(self.mask, (needed - width, 0))
            width = needed
        if self._layers[0].room < self.extent.reply:
            dropped = width - max(held, needed)
            for layer in self._layers:
                layer.move(dropped, 2 * self.extent.reply)
            self.mask = self.mask[:, dropped:]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(rows, device=self.model.device)
        for layer in self._layers:
            layer.keep(index)
        self.mask = self.mask[index]
        self.fed.keep(index)

    @torch.no_grad()
    def step(self) -> Iterator[tuple[slice, Tensor]]:
        """Run the rows' newest tokens; logits of the next ones, a few rows at a time: (rows, [those rows, vocabulary])."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        with self.fed.interventions.applied(self.model.anatomy):
            states = self.body.run(
                self.cache,
                input_ids=self.fed.tokens,
                attention_mask=self.mask,
                position_ids=self.mask.sum(1, keepdim=True) - 1,
            )
        yield from self.body.in_chunks(states[:, -1])

    def append(self, tokens: Tensor) -> None:
        """Give each row its next token [row]."""
        self.fed.append(tokens)


class RereadRows:
    """Rows whose whole text is read again at every step: slow, and right for any decoder."""

    blocks_spared = 0

    def __init__(self, model: LanguageModel, n_rows: int) -> None:
        self.model = model
        self.requests: list[Request | None] = [None] * n_rows
        self.replies: list[list[int]] = [[] for _ in range(n_rows)]

    def put(self, rows: Sequence[int], requests: Sequence[Request], prefixes: Sequence[Prefix]) -> None:
        """Let rows reply to other requests, from the beginning; the prefixes are not read."""
        for row, request in zip(rows, requests, strict=True):
            self.requests[row], self.replies[row] = request, []

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self.requests, self.replies = [self.requests[row] for row in rows], [self.replies[row] for row in rows]

    def step(self) -> Iterator[tuple[slice, Tensor]]:
        """Read the rows' texts; logits of the next tokens: (all rows, [row, vocabulary])."""
        # Texts of one length together, so that there is no padding, which some models take for text.
        by_length: dict[int, list[tuple[int, Request]]] = defaultdict(list)
        for row, (request, reply) in enumerate(zip(self.requests, self.replies, strict=True)):
            assert request is not None
            by_length[len(request.prompt) + len(reply)].append((row, request))
        found: dict[int, Tensor] = {}
        for together in by_length.values():
            rows, requests = zip(*together, strict=True)
            logits = logits_of_whole(self.model, requests, [self.replies[row] for row in rows])
            found.update(zip(rows, logits[:, -1], strict=True))
        yield slice(0, len(self.replies)), torch.stack([found[row] for row in range(len(self.replies))])

    def append(self, tokens: Tensor) -> None:
        """Give each row its next token [row]."""
        for reply, token in zip(self.replies, tokens.tolist(), strict=True):
            reply.append(token)
