"""What is done to the activations of each row of a batch, and the hooks that do it.

One formula serves every intervention. With `h` a state, `v` the vector that is added, `u` a unit direction (none where something is
only added) and `s` the strength at a position, the state becomes `h + s (v - (h . u) u)`: an addition without `u`, the projection
on `u` set to the length of `v` with both, the direction ablated where `v` is nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from emosteer.model.anatomy import Anatomy
from emosteer.model.capture import Place, replace_output
from emosteer.vectors import EmotionVector


@dataclass(frozen=True, eq=False)
class Push:
    """One intervention at one place."""

    site: str
    layer: int
    vector: Tensor
    """[width] float32, at its full length: what is added."""
    cleared: Tensor | None = None
    """[width] float32, of length 1: the direction along which the state's own part is taken out; None leaves it all."""

    @property
    def first_block(self) -> int:
        """The first block whose own states it makes different: the next one where it is what a block puts out that changes."""
        return self.layer + (self.site == "residual")


@dataclass(frozen=True, eq=False)
class Steering:
    """What is done to one row: its pushes, and at which positions.

    Scopes: `generated` is the last prompt position, which emits the first token of the reply, and every later one; `prompt` is
    every prompt position; `all` is both.
    """

    pushes: tuple[Push, ...]
    scope: str = "generated"
    decay: float = 1.0
    """Factor by which everything weakens with each position after the prompt's last, which has the full strength."""

    def __post_init__(self) -> None:
        places = [(push.site, push.layer) for push in self.pushes]
        for push, place in zip(self.pushes, places, strict=True):
            if push.cleared is not None and places.count(place) > 1:
                raise ValueError(f"a direction is cleared at {place}, where another push would bring it back")

    @property
    def touches_prefix(self) -> bool:
        """Whether prompt positions before the last are steered."""
        return self.scope in ("prompt", "all")

    @property
    def touches_reply(self) -> bool:
        """Whether positions after the prompt are steered."""
        return self.scope in ("generated", "all")

    @property
    def first_block(self) -> int:
        """The first block whose own states it makes different; there must be a push."""
        return min(push.first_block for push in self.pushes)

    def reaches(self, stop: int) -> bool:
        """Whether it makes states of any block below `stop` different."""
        return any(push.first_block < stop for push in self.pushes)

    def strengths(self, n_prompt: int, n_tokens: int) -> list[float]:
        """By how much each of a row's first `n_tokens` positions is steered, where the prompt has `n_prompt`; 0 is not at all."""
        first = 0 if self.touches_prefix else n_prompt - 1
        stop = n_tokens if self.touches_reply else n_prompt
        return [self.decay ** max(0, at - n_prompt + 1) if first <= at < stop else 0.0 for at in range(n_tokens)]


def steering_along(
    vector: EmotionVector,
    layers: Iterable[int],
    coefficient: float,
    unit: str = "fraction",
    intervention: str = "add",
    scope: str = "generated",
    decay: float = 1.0,
    across_blocks: str = "each",
) -> Steering:
    """An intervention along an emotion vector at one or several blocks.

    Args:
        vector: whose directions, residual norms and site are taken.
        layers: blocks, 0-based.
        coefficient: the length of what is added, or that the projection is set to; an ablation does not look at it.
        unit: of the coefficient: `fraction` of the block's residual norm, or `raw` vectors.
        intervention: `add` the vector, `set` the projection on its direction, or `ablate` the direction.
        scope: the steered positions.
        decay: factor by which it weakens with each generated token.
        across_blocks: `each` block gets the whole coefficient, or it is `split` evenly among them.
    """
    blocks = list(layers)
    length = 0.0 if intervention == "ablate" else coefficient / (len(blocks) if across_blocks == "split" else 1)
    pushes = []
    for layer in blocks:
        added = vector.added(layer, length, unit)
        cleared = None if intervention == "add" else vector.directions[layer] / vector.directions[layer].norm()
        pushes.append(Push(vector.site, layer, added, cleared))
    return Steering(tuple(pushes), scope, decay)


@dataclass(frozen=True)
class _PlacePlan:
    rows: Tensor
    """[steered row] indices into the batch."""
    vectors: Tensor
    """[steered row, width]"""
    cleared: Tensor | None
    """[steered row, width]: zeros where nothing is cleared; None where it is nowhere."""


class SteeringPlan:
    """The interventions of a batch's rows, gathered by place, so that any mixture of cells runs in one forward.

    Args:
        steerings: one per row; None leaves the row alone.
        device: where the model runs.
        dtype: of its activations.
    """

    def __init__(self, steerings: Sequence[Steering | None], device: torch.device, dtype: torch.dtype) -> None:
        gathered: dict[Place, list[tuple[int, Push]]] = defaultdict(list)
        for row, steering in enumerate(steerings):
            for push in steering.pushes if steering else ():
                gathered[push.site, push.layer].append((row, push))
        self.places = {place: _plan(pushes, device, dtype) for place, pushes in gathered.items()}

    @contextmanager
    def applied(self, anatomy: Anatomy, strengths: Tensor | None = None) -> Iterator[None]:
        """Steer while the model runs inside: every position in full, or by its strength in `strengths` [row, position]."""
        with ExitStack() as stack:
            for (site, layer), plan in self.places.items():
                stack.enter_context(replace_output(anatomy.module(site, layer), _steered_rows(plan, strengths)))
            yield


def _plan(pushes: Sequence[tuple[int, Push]], device: torch.device, dtype: torch.dtype) -> _PlacePlan:
    rows = torch.tensor([row for row, _ in pushes], device=device)
    cleared = None
    if any(push.cleared is not None for _, push in pushes):
        nothing = torch.zeros_like(pushes[0][1].vector)
        cleared = torch.stack([nothing if push.cleared is None else push.cleared for _, push in pushes]).to(device)
    return _PlacePlan(rows, torch.stack([push.vector for _, push in pushes]).to(device, dtype), cleared)


@dataclass(frozen=True)
class Shape:
    """All that any of some steerings does, without what with."""

    places: tuple[Place, ...] = ()
    """Where any steers."""
    cleared: tuple[Place, ...] = ()
    """Where any clears a direction."""
    decays: bool = False
    """Whether any weakens from step to step."""

    @classmethod
    def of(cls, steerings: Iterable[Steering | None]) -> Shape:
        """The shape that all of these fit into."""
        those = [steering for steering in steerings if steering is not None]
        pushes = [push for steering in those for push in steering.pushes]
        return cls(
            tuple(dict.fromkeys((push.site, push.layer) for push in pushes)),
            tuple(dict.fromkeys((push.site, push.layer) for push in pushes if push.cleared is not None)),
            any(steering.decay != 1 for steering in those),
        )


class Fading:
    """By how much each row of a batch is steered now, where some weaken from step to step.

    Args:
        n_rows: of the batch.
        device: where the model runs.
    """

    def __init__(self, n_rows: int, device: torch.device) -> None:
        self.strength = torch.ones(n_rows, device=device)
        """[row]: of the step that comes."""
        self._decay = torch.ones(n_rows, device=device, dtype=torch.float64)
        self._steps = torch.zeros(n_rows, device=device, dtype=torch.float64)

    def put(self, rows: Sequence[int], steerings: Sequence[Steering | None]) -> None:
        """Let rows begin in full strength."""
        index = torch.tensor(rows, device=self.strength.device)
        decays = [1.0 if steering is None else steering.decay for steering in steerings]
        self._decay[index] = torch.tensor(decays, dtype=torch.float64, device=index.device)
        self._steps[index], self.strength[index] = 0, 1

    def advance(self) -> None:
        """Go on to every row's next step."""
        self._steps += 1
        self.strength.copy_(self._decay**self._steps)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        index = rows.to(self.strength.device)
        self.strength, self._decay, self._steps = self.strength[index], self._decay[index], self._steps[index]


class Interventions:
    """What is done at each place to each row of a batch whose rows come and go.

    The tables stay where they are in memory, so that a recorded forward can be replayed after rows have changed.

    Args:
        added: by place, [row or 1, width]; one row serves the whole batch.
        cleared: the same of the directions that are cleared, in float32; only of places where any is.
        fading: the rows' strengths; None where every row has its full strength at every step.
    """

    def __init__(self, added: dict[Place, Tensor], cleared: dict[Place, Tensor], fading: Fading | None = None) -> None:
        self.added, self.cleared, self.fading = added, cleared, fading

    @classmethod
    def nothing(cls, shape: Shape, n_rows: int, width: int, device: torch.device, dtype: torch.dtype) -> Interventions:
        """Tables of zeros, with room for all that rows of a shape may ask for."""
        return cls(
            {place: torch.zeros(n_rows, width, device=device, dtype=dtype) for place in shape.places},
            {place: torch.zeros(n_rows, width, device=device) for place in shape.cleared},
            Fading(n_rows, device) if shape.decays else None,
        )

    @classmethod
    def alike(cls, steering: Steering | None, device: torch.device, dtype: torch.dtype) -> Interventions:
        """The same for every row, at its full strength."""
        added: dict[Place, Tensor] = {}
        cleared: dict[Place, Tensor] = {}
        for push in steering.pushes if steering else ():
            vector = push.vector.to(device, dtype)[None]
            place = (push.site, push.layer)
            added[place] = added[place] + vector if place in added else vector
            if push.cleared is not None:
                cleared[place] = push.cleared.to(device)[None]
        return cls(added, cleared)

    def put(self, rows: Sequence[int], steerings: Sequence[Steering | None]) -> None:
        """Give rows other steerings, from their first step on; None leaves a row alone."""
        index = torch.tensor(rows)
        for table in (*self.added.values(), *self.cleared.values()):
            table[index.to(table.device)] = 0
        for row, steering in zip(rows, steerings, strict=True):
            for push in steering.pushes if steering else ():
                place = (push.site, push.layer)
                self.added[place][row] += push.vector.to(self.added[place])
                if push.cleared is not None:
                    self.cleared[place][row] = push.cleared.to(self.cleared[place])
        if self.fading is not None:
            self.fading.put(rows, steerings)

    def advance(self) -> None:
        """Go on to every row's next step."""
        if self.fading is not None:
            self.fading.advance()

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.added = {place: table[rows.to(table.device)] for place, table in self.added.items()}
        self.cleared = {place: table[rows.to(table.device)] for place, table in self.cleared.items()}
        if self.fading is not None:
            self.fading.keep(rows)

    @contextmanager
    def applied(self, anatomy: Anatomy, rows_at: Callable[[Place], Tensor | None] = lambda _: None) -> Iterator[None]:
        """Intervene at every position while the model runs inside.

        Args:
            anatomy: the model's.
            rows_at: which rows [row] of the batch are at a place; None for all in order.
        """
        strength = None if self.fading is None else self.fading.strength
        with ExitStack() as stack:
            for place, table in self.added.items():
                rows = rows_at(place)
                steered = _steered_batch(_of(table, rows), _of(self.cleared.get(place), rows), _of(strength, rows))
                stack.enter_context(replace_output(anatomy.module(*place), steered))
            yield


@overload
def _of(table: Tensor, rows: Tensor | None) -> Tensor: ...
@overload
def _of(table: Tensor | None, rows: Tensor | None) -> Tensor | None: ...
def _of(table: Tensor | None, rows: Tensor | None) -> Tensor | None:
    return table if table is None or rows is None else table[rows.to(table.device)]


def _change(states: Tensor, added: Tensor, cleared: Tensor | None) -> Tensor:
    """What is to be added to states [row, position, width] in full strength, where tables have [row or 1, width]."""
    added = added.to(states.device)[:, None]
    if cleared is None:
        return added
    direction = cleared.to(states.device)[:, None]
    # Projections in float32: narrower sums over the width would be off by percents.
    return added - ((states.float() * direction).sum(-1, keepdim=True) * direction).to(states.dtype)


def _steered_batch(added: Tensor, cleared: Tensor | None, strength: Tensor | None) -> Callable[[Tensor], Tensor]:
    def steer(states: Tensor) -> Tensor:
        change = _change(states, added, cleared)
        if strength is not None:
            change = change * strength.to(states.device, states.dtype)[:, None, None]
        return states + change

    return steer


def _steered_rows(plan: _PlacePlan, strengths: Tensor | None) -> Callable[[Tensor], Tensor]:
    def steer(states: Tensor) -> Tensor:
        rows = plan.rows.to(states.device)
        change = _change(states[rows], plan.vectors, plan.cleared).expand(-1, states.shape[1], -1)
        if strengths is not None:
            change = change * strengths.to(states.device)[rows][:, :, None].to(change.dtype)
        return states.index_add(0, rows, change)

    return steer
