"""What is added to the activations of each row of a batch, and the hooks that add it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from emosteer.model.anatomy import Anatomy
from emosteer.model.capture import Place, replace_output


@dataclass(frozen=True, eq=False)
class Push:
    """One vector added at one place."""

    site: str
    layer: int
    vector: Tensor
    """[width] float32, at its full length."""


@dataclass(frozen=True, eq=False)
class Steering:
    """What is done to one row: its pushes, and at which positions.

    Scopes: `generated` is the last prompt position, which emits the first token of the reply, and every later one; `prompt` is
    every prompt position; `all` is both.
    """

    pushes: tuple[Push, ...]
    scope: str = "generated"

    @property
    def touches_prefix(self) -> bool:
        """Whether prompt positions before the last are steered."""
        return self.scope in ("prompt", "all")

    @property
    def touches_reply(self) -> bool:
        """Whether positions after the prompt are steered."""
        return self.scope in ("generated", "all")

    def mask(self, n_prompt: int, n_tokens: int) -> list[int]:
        """1 for each of a row's first `n_tokens` positions that is steered, where the prompt has `n_prompt`."""
        first = 0 if self.touches_prefix else n_prompt - 1
        stop = n_tokens if self.touches_reply else n_prompt
        return [int(first <= position < stop) for position in range(n_tokens)]


@dataclass(frozen=True)
class _PlacePlan:
    rows: Tensor
    """[steered row] indices into the batch."""
    vectors: Tensor
    """[steered row, width]"""


class SteeringPlan:
    """The pushes of a batch's rows, gathered by place, so that any mixture of cells runs in one forward.

    Args:
        steerings: one per row; None leaves the row alone.
        device: where the model runs.
        dtype: of its activations.
    """

    def __init__(self, steerings: Sequence[Steering | None], device: torch.device, dtype: torch.dtype) -> None:
        gathered: dict[Place, tuple[list[int], list[Tensor]]] = defaultdict(lambda: ([], []))
        for row, steering in enumerate(steerings):
            for push in steering.pushes if steering else ():
                rows, vectors = gathered[push.site, push.layer]
                rows.append(row)
                vectors.append(push.vector)
        self.places = {
            place: _PlacePlan(torch.tensor(rows, device=device), torch.stack(vectors).to(device, dtype))
            for place, (rows, vectors) in gathered.items()
        }

    @contextmanager
    def applied(self, anatomy: Anatomy, mask: Tensor | None = None) -> Iterator[None]:
        """Add the vectors while the model runs inside: at every position, or where `mask` [row, position] is 1."""
        with ExitStack() as stack:
            for (site, layer), plan in self.places.items():
                stack.enter_context(replace_output(anatomy.module(site, layer), _adder(plan, mask)))
            yield


class Additions:
    """What is added at each place to each row of a batch whose rows come and go, at every position.

    The tables stay where they are in memory, so that a recorded forward can be replayed after rows have changed.

    Args:
        tables: by place, [row or 1, width]; one row serves the whole batch.
    """

    def __init__(self, tables: dict[Place, Tensor]) -> None:
        self.tables = tables

    @classmethod
    def nothing(cls, places: Iterable[Place], n_rows: int, width: int, device: torch.device, dtype: torch.dtype) -> Additions:
        """Tables of zeros."""
        return cls({place: torch.zeros(n_rows, width, device=device, dtype=dtype) for place in places})

    @classmethod
    def alike(cls, steering: Steering | None, device: torch.device, dtype: torch.dtype) -> Additions:
        """The same for every row."""
        tables: dict[Place, Tensor] = {}
        for push in steering.pushes if steering else ():
            vector = push.vector.to(device, dtype)[None]
            place = (push.site, push.layer)
            tables[place] = tables[place] + vector if place in tables else vector
        return cls(tables)

    def put(self, rows: Sequence[int], steerings: Sequence[Steering | None]) -> None:
        """Give rows other steerings; None leaves a row alone."""
        index = torch.tensor(rows)
        for table in self.tables.values():
            table[index.to(table.device)] = 0
        for row, steering in zip(rows, steerings, strict=True):
            for push in steering.pushes if steering else ():
                table = self.tables[push.site, push.layer]
                table[row] += push.vector.to(table.device, table.dtype)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.tables = {place: table[rows.to(table.device)] for place, table in self.tables.items()}

    @contextmanager
    def applied(self, anatomy: Anatomy) -> Iterator[None]:
        """Add while the model runs inside."""
        with ExitStack() as stack:
            for (site, layer), table in self.tables.items():
                stack.enter_context(replace_output(anatomy.module(site, layer), _table_adder(table)))
            yield


def _table_adder(table: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda states: states + table.to(states.device)[:, None]


def _adder(plan: _PlacePlan, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    def add(states: Tensor) -> Tensor:
        rows, vectors = plan.rows.to(states.device), plan.vectors.to(states.device)
        added = vectors[:, None, :].expand(-1, states.shape[1], -1)
        if mask is not None:
            added = added * mask.to(states.device)[rows][:, :, None].to(added.dtype)
        return states.index_add(0, rows, added)

    return add
