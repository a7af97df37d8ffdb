"""The fast way: rows of a prompt share its keys and values, inside the model's own forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from emosteer.engine.attention import Crowd, SharedLayer, View, installed
from emosteer.engine.body import Body, narrowed
from emosteer.engine.cache import StateRows
from emosteer.engine.prefixes import Prefix
from emosteer.engine.recording import Inputs, Recorder, Recordings
from emosteer.engine.request import Request
from emosteer.engine.rows import Extent, Fed
from emosteer.engine.stages import Stages
from emosteer.model.language_model import LanguageModel

COLUMNS_RECORDED = 64
"""A recorded step looks at so many columns, or a multiple."""
SIDE_RECORDED = 8
"""In a recorded step so many rows of a prompt stand side by side, or a multiple."""


class SharedRows:
    """Rows over shared prefixes.

    A row's own keys and values lie in a ring of columns, which all rows write at the same column in a step: rows of any age go
    together, and a new one needs no room cleared.

    Args:
        model: the model.
        body: the same.
        n_rows: of the batch; each is to be `put` before the first step.
        extent: of all requests that may come.
        like: a prefix, of which the sizes are taken.
        expands: the model makes keys and values of what its cache keeps.
        recorder: makes recordings of the steps, where that gains something.
        narrows: rows that have read the same are one below the first steered block.
    """

    def __init__(
        self,
        model: LanguageModel,
        body: Body,
        n_rows: int,
        extent: Extent,
        like: Prefix,
        expands: bool = False,
        recorder: Recorder | None = None,
        narrows: bool = False,
    ) -> None:
        self.model, self.body, self.extent = model, body, extent
        device = model.device
        self.fed = Fed(model, n_rows, extent)
        self.starts = torch.zeros(n_rows, dtype=torch.long, device=device)
        """Length of each row's prefix."""
        self.ages = torch.zeros(n_rows, dtype=torch.long, device=device)
        """Tokens of each row that are in the ring."""
        self.prefixes: list[Prefix] = [like] * n_rows
        self.written = 0
        """Steps so far: the ring's columns that hold something."""
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        """Of the ring, where the next tokens go."""
        self.layers: list[CacheLayerMixin] = [
            self._layer(number, n_rows, like, expands) for number in range(max(len(like.keys), len(like.states)))
        ]
        self.cache = DynamicCache(config=model.model.config)
        self.cache.layers = self.layers
        self._pool: list[Prefix | None] = []
        """Prompts whose keys and values the layers share, by their number there."""
        self._crowd: Crowd | None = None
        self._prompt_of: list[int] = [0] * n_rows
        """Of each row, its prompt's number there."""
        self.stages = Stages(extent.cuts if narrows and n_rows > 1 and not like.states else (), self.keyed, n_rows)
        self.own_from = torch.zeros(n_rows, dtype=torch.long, device=device)
        """Of each row, the first layer at which its prefix is its own."""
        # A state would go on with every run of a recording's making.
        self.recordings = Recordings(None if like.states else recorder)
        self._multiple = 1 if self.recordings.recorder is None else SIDE_RECORDED

    def _layer(self, number: int, n_rows: int, like: Prefix, expands: bool) -> CacheLayerMixin:
        if like.states and (state := like.states[number]) is not None:
            return StateRows(state, n_rows)
        keys, values = like.keys[number], like.values[number]
        assert keys is not None
        assert values is not None
        return SharedLayer(n_rows, self.extent.reply, self.extent.private, (keys, values), expands)

    @property
    def keyed(self) -> list[tuple[int, SharedLayer]]:
        """The layers with keys and values, by number."""
        return [(number, layer) for number, layer in enumerate(self.layers) if isinstance(layer, SharedLayer)]

    def put(self, rows: Sequence[int], requests: Sequence[Request], prefixes: Sequence[Prefix]) -> None:
        """Let rows reply to other requests, from the beginning."""
        index = torch.tensor(rows, device=self.model.device)
        self.fed.put(rows, requests)
        self.starts[index] = torch.tensor([prefix.length for prefix in prefixes], device=self.model.device)
        self.ages[index] = 0
        self.stages.put(rows, requests, prefixes)
        for row, prefix in zip(rows, prefixes, strict=True):
            # A steered one is copied to its row below, and needed no more.
            self.prefixes[row] = prefix.outline if prefix.is_steered else prefix
        for number, layer in enumerate(self.layers):
            if isinstance(layer, StateRows):
                states = [prefix.states[number] for prefix in prefixes]
                layer.put(rows, [state for state in states if state is not None])
            elif isinstance(layer, SharedLayer):
                for row, prefix in zip(rows, prefixes, strict=True):
                    if _is_private(prefix, number):
                        layer.put(self.stages.slot(number, row), _there(prefix.keys[number]), _there(prefix.values[number]))
        self._arrange()

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(rows, device=self.model.device)
        self.recordings.forget()
        self.fed.keep(index)
        self.starts, self.ages = self.starts[index], self.ages[index]
        self.prefixes = [self.prefixes[row] for row in rows]
        self.stages.keep(rows)
        for number, layer in enumerate(self.layers):
            if number >= self.stages.stop:
                layer.keep(index)
        self._arrange()

    def _arrange(self) -> None:
        """Put rows of a prompt side by side, and say which layers' prefixes are whose."""
        trunks = [prefix.shared for prefix in self.prefixes]
        self._pool_in({id(trunk): trunk for trunk in trunks if trunk is not None})
        number = {id(trunk): number for number, trunk in enumerate(self._pool) if trunk is not None}
        # Who shares nothing may stand in any line: at no layer he looks there.
        self._prompt_of = [number.get(id(trunk), 0) for trunk in trunks]
        self._crowd = Crowd.seated(self._prompt_of, self._n_places, self.model.device, self._multiple)
        self.stages.seat(self._prompt_of, self._n_places, self.model.device)
        self.own_from = torch.tensor(
            [prefix.own_from if prefix.is_steered else len(self.layers) for prefix in self.prefixes], device=self.model.device
        )
        for layer_number, layer in self.keyed:
            private = [_is_private(prefix, layer_number) for prefix in self.prefixes]
            layer.any_private, layer.all_private = any(private), all(private)

    def _pool_in(self, wanted: dict[int, Prefix]) -> None:
        """Have the layers hold the wanted prompts' keys and values, in place of those that no row wants any more."""
        self._pool = [trunk if trunk is not None and id(trunk) in wanted else None for trunk in self._pool]
        held = {id(trunk) for trunk in self._pool if trunk is not None}
        free = [number for number, trunk in enumerate(self._pool) if trunk is None]
        for key, fresh in wanted.items():
            if key in held:
                continue
            if free:
                self._pool[free.pop()] = fresh
            else:
                self._pool.append(fresh)
        while self._pool and self._pool[-1] is None:
            self._pool.pop()
        for layer_number, layer in self.keyed:
            if layer.make_room(len(self._pool), self._n_shared):
                self.recordings.forget()
            for number, trunk in enumerate(self._pool):
                if trunk is not None and id(trunk) not in held:
                    layer.share(number, _there(trunk.keys[layer_number]), _there(trunk.values[layer_number]))

    def _view(self, inputs: Inputs, n_columns: int) -> View:
        """What the rows see with the tokens that run now."""
        device = self.model.device
        starts, ages, column = inputs["starts"], inputs["ages"], inputs["column"]
        shared, private = torch.arange(self._n_shared, device=device), torch.arange(self.extent.private, device=device)
        back = (column - torch.arange(n_columns, device=device)) % self.extent.reply  # steps since a column was written
        now = starts + ages
        prompt = torch.cat([shared, private]).expand(len(starts), -1)
        positions = torch.cat([prompt, now[:, None] - back], 1)
        seen = torch.cat([prompt < starts[:, None], back <= ages[:, None]], 1)
        crowd = Crowd(inputs["rows"], inputs["places"], inputs.get("prompts"))
        return View(crowd, seen, positions, now, self._n_shared, self.extent.private, n_columns, column)

    @property
    def _n_columns(self) -> int:
        """Columns of the ring that are looked at: those written, but for a recorder, which wants the same number for long."""
        if self.recordings.recorder is None:
            return min(self.written + 1, self.extent.reply)
        return min((self.written // COLUMNS_RECORDED + 1) * COLUMNS_RECORDED, self.extent.reply)

    @property
    def _n_places(self) -> int:
        """For prompts."""
        return max(1, len(self._pool))

    @property
    def _n_shared(self) -> int:
        return max((trunk.length for trunk in self._pool if trunk is not None), default=0)

    @property
    def blocks_spared(self) -> int:
        """That the coming step need not run, summed over all rows."""
        return self.stages.blocks_spared

    @torch.no_grad()
    def step(self) -> Iterator[tuple[slice, Tensor]]:
        """Run the rows' newest tokens; logits of the next ones, a few rows at a time: (rows, [those rows, vocabulary])."""
        assert self._crowd is not None
        n_columns = self._n_columns
        inputs = {
            "tokens": self.fed.tokens,
            "starts": self.starts,
            "ages": self.ages,
            "own_from": self.own_from,
            "column": self.column,
            **self._crowd.tensors,
        }
        shapes = tuple((name, tensor.shape) for name, tensor in inputs.items())
        key = (shapes, n_columns, self._n_shared, tuple((layer.any_private, layer.all_private) for _, layer in self.keyed))
        states = self.recordings.run(key, lambda given: self._forward(given, n_columns), inputs)
        yield from self.body.in_chunks(states)

    def _forward(self, inputs: Inputs, n_columns: int) -> Tensor:
        """The last hidden states [row, width]; nothing but the inputs may differ from step to step."""
        view = self._view(inputs, n_columns)
        for number, layer in self.keyed:
            layer.view = view
            layer.is_private = inputs["own_from"] <= number if layer.any_private else None
        narrowings = self.stages.look(view, inputs["own_from"])
        with (
            installed(self.model.model, self.layers, view),
            self.fed.interventions.applied(self.model.anatomy, self.stages.rows_at),
            narrowed(self.model.anatomy.blocks, narrowings),
        ):
            states = self.body.run(
                self.cache,
                input_ids=inputs["tokens"],
                position_ids=view.query_positions[:, None],
            )
        return states[:, -1]

    def append(self, tokens: Tensor) -> None:
        """Give each row its next token [row]."""
        self.fed.append(tokens)
        self.stages.part(tokens, self._prompt_of, self._n_places)
        self.ages += 1
        self.written += 1
        self.column = (self.column + 1) % self.extent.reply


def _is_private(prefix: Prefix, layer: int) -> bool:
    return prefix.is_steered and layer >= prefix.own_from


def _there(states: Tensor | None) -> Tensor:
    assert states is not None
    return states
