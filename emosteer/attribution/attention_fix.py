"""Scores of queries and keys, for which attention probabilities are computed anew.

A gradient takes softmax for linear: where attention is saturated, it is nearly 0 however much another query would change. AtP*
(Kramár et al. 2024, section 3.1) recomputes the probabilities with the clean query or key, and only what comes after them is taken
for linear: `(patched - corrupted probabilities) . d metric / d probabilities`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from emosteer.model.anatomy import KEY, QUERY
from emosteer.model.attention import Attending
from emosteer.model.language_model import LanguageModel

ALL, LAST = 0, -1
"""Places in the scores of keys: with all keys patched at once, and with the last alone."""


class AttentionFix:
    """Sums over gradients at every block, for one batch.

    Args:
        model: the language model, its attention opened.
        n_positions: scored, counted from the end.
    """

    def __init__(self, model: LanguageModel, n_positions: int) -> None:
        self.n_positions, self.n_key_heads = n_positions, model.anatomy.n_key_heads
        self._clean: dict[int, tuple[Tensor, Tensor]] = {}
        """Queries and keys as `Attending.own` gives them, until the corrupted run has come by."""
        self._changes: dict[tuple[str, int], Tensor] = {}
        """Of the probabilities, by clean queries [row, head, position, column], and by clean keys, all of them and the last
        [2, row, head, position, column]."""
        self._products: dict[tuple[str, int], Tensor] = {}
        """Of queries [row, head, position], of keys [row, head of keys, 2]; float32."""

    def look_at_clean(self, block: int, one: Attending) -> Tensor:
        """Keep a clean run's queries and keys."""
        self._clean[block] = (one.own(QUERY)[:, -self.n_positions :].clone(), one.own(KEY)[:, -self.n_positions :].clone())
        return one.probabilities()

    def look_at(self, block: int, one: Attending) -> Tensor:
        """Of a run with a graph, the first of which is the corrupted one: its probabilities' gradient will be summed."""
        probabilities = one.probabilities()
        if block in self._clean:
            self._note_changes(block, one, probabilities.detach(), *self._clean.pop(block))
        probabilities.register_hook(partial(self._add, block))  # type: ignore[no-untyped-call] # torch's
        return probabilities

    def forget(self) -> None:
        """Begin the sums anew."""
        for product in self._products.values():
            product.zero_()

    def scores(self, site: str, n: int) -> Tensor:
        """The means over so many gradients, on the CPU: of queries [row, block, head, position], of keys [row, block, head, 2]."""
        blocks = sorted(block for own, block in self._products if own == site)
        return torch.stack([self._products[site, block].cpu() for block in blocks], dim=1) / n

    @torch.no_grad()
    def _note_changes(self, block: int, one: Attending, own: Tensor, query: Tensor, key: Tensor) -> None:
        n = self.n_positions
        last_key = one.own(KEY).clone()
        last_key[:, -1] = key[:, -1]
        asked = one.having(QUERY, torch.cat([one.own(QUERY)[:, :-n], query], dim=1))
        self._changes[QUERY, block] = (asked.probabilities() - own)[:, :, -n:]
        self._changes[KEY, block] = torch.stack([one.having(KEY, keys).probabilities() - own for keys in (key, last_key)])
        rows, heads = own.shape[:2]
        self._products[QUERY, block] = torch.zeros(rows, heads, n, device=own.device)
        self._products[KEY, block] = torch.zeros(rows, self.n_key_heads, 2, device=own.device)

    def _add(self, block: int, slope: Tensor) -> None:
        slope = slope.float()
        self._products[QUERY, block] += (slope[:, :, -self.n_positions :] * self._changes[QUERY, block]).sum(-1)
        by_head = (slope * self._changes[KEY, block]).sum((-1, -2))
        # The heads that share a key.
        self._products[KEY, block] += by_head.reshape(*by_head.shape[:2], self.n_key_heads, -1).sum(-1).permute(1, 2, 0)
