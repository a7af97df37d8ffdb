"""Two sweeps lined up cell by cell, with the difference between their effects: another model, other data, another method.

An axis on which the sweeps have no value in common, while one of them has a single value there, is what they are compared on. On
every other axis cells that are lined up are equal. Several cells of one sweep may stand against one of the other: each is compared.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import numpy as np

from emosteer.checks import near
from emosteer.config import GenerationConfig
from emosteer.errors import EmosteerError
from emosteer.records.cell import CELL, Cell, VectorSpec, short_hash
from emosteer.records.sweep import Sweep
from emosteer.scored import Floats, Scored, scored_cells, seed_of
from emosteer.statistics import false_discovery_rate, paired_effects, unpaired_effect

Value: TypeAlias = Hashable
Axis: TypeAlias = Callable[[Cell], Value]

PAIRED, UNPAIRED = "paired", "unpaired"
PERPLEXITY = "perplexity"
NOT_OF_A_RECIPE = ("texts", "others", "seed", "index", "like", "like_method", "shuffled")
"""Of a vector's specification: what has an axis of its own, and what controls alone have."""
SHORT = 8
"""Characters of a digest that are shown."""


def _vector(cell: Cell) -> VectorSpec:
    assert cell.vector is not None
    return cell.vector


def _chosen_by(cell: Cell) -> Value:
    """How attribution chose the blocks; nothing where they were given."""
    if cell.layers is not None or cell.attribution is None:
        return ""
    return short_hash([cell.attribution.diagnostics, dataclasses.asdict(cell.attribution.config)])


def _of_vector(key: str) -> Axis:
    return lambda cell: getattr(_vector(cell), key)


def _decoding(key: str) -> Axis:
    return lambda cell: getattr(cell.generation, key)


AXES: dict[str, Axis] = {
    "model": lambda cell: cell.model.fingerprint,
    "dtype": lambda cell: cell.model.config.dtype,
    "pair": lambda cell: cell.pair.name if cell.pair else "",
    **{f"vector_{f.name}": _of_vector(f.name) for f in fields(VectorSpec) if f.name not in NOT_OF_A_RECIPE},
    "texts": lambda cell: (_vector(cell).texts, _vector(cell).others),
    "neutral": lambda cell: cell.neutral,
    "attribution": _chosen_by,
    "site": lambda cell: cell.site,
    "layers": lambda cell: cell.layers_text,
    "coefficient": lambda cell: cell.coefficient,
    "coefficient_unit": lambda cell: cell.coefficient_unit,
    "scope": lambda cell: cell.scope,
    "intervention": lambda cell: cell.intervention,
    "decay": lambda cell: cell.decay,
    "seed": lambda cell: cell.seed,
    "prompts": lambda cell: cell.prompts,
    **{f.name: _decoding(f.name) for f in fields(GenerationConfig)},
}
"""Name of each axis -> a cell's value on it."""


@dataclass(frozen=True)
class Compared:
    """A cell of the first sweep and one of the second, and the difference between their effects."""

    first: Cell
    second: Cell
    first_layers: str
    """The blocks that were steered."""
    second_layers: str
    metric: str
    how: str
    """`paired` over the prompts that both have, or `unpaired` where they share none."""
    n_first: int
    """Prompts of the first that entered; where paired those are the second's, too."""
    n_second: int
    first_effect: float
    """Mean over those prompts of steered less baseline, in the metric's unit."""
    second_effect: float
    difference: float
    """The second's effect less the first's."""
    ci_low: float
    """Ends of its bootstrap interval over prompts."""
    ci_high: float
    p: float
    """Two-sided: Wilcoxon's signed-rank test where paired, else Mann and Whitney's."""
    first_perplexity_ratio: float
    """Mean perplexity as a multiple of the baseline's, over all prompts."""
    second_perplexity_ratio: float
    q: float = math.nan
    """Benjamini and Hochberg's, over all that is lined up, within the metric."""

    def as_data(self) -> dict[str, Any]:
        """Plain data of one kind a column; undefined numbers are NaN."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("first", "second")}
        pairs = [cell.pair.name if cell.pair else "" for cell in (self.first, self.second)]
        names = {
            "first_cell_id": self.first.id,
            "second_cell_id": self.second.id,
            "first_pair": pairs[0],
            "second_pair": pairs[1],
            "first_coefficient": self.first.coefficient,
            "second_coefficient": self.second.coefficient,
        }
        return names | own


COLUMNS = (
    *("first_cell_id", "second_cell_id", "first_pair", "second_pair", "first_coefficient", "second_coefficient"),
    *(f.name for f in fields(Compared) if f.name not in ("first", "second")),
)
"""What `Compared.as_data` has."""


@dataclass(frozen=True)
class LeftOver:
    """A cell that stands alone, and why."""

    sweep: str
    cell_id: str
    reason: str


@dataclass(frozen=True)
class Alignment:
    """Two sweeps side by side."""

    compared: list[Compared]
    left_over: list[LeftOver]
    differing: dict[str, tuple[list[str], list[str]]]
    """Axes on which they are compared -> the values of each, as they are shown."""
    varying: list[str]
    """Axes on which what is lined up differs within a sweep."""
    warnings: list[str] = field(default_factory=list)

    def shown(self, axis: str, one: Compared) -> str:
        """What an axis says of two cells that stand side by side."""
        names = [_name(axis, cell) for cell in (one.first, one.second)]
        return " | ".join(dict.fromkeys(names))


@dataclass(frozen=True)
class _Side:
    """One sweep with all that was scored."""

    sweep: Sweep
    states: dict[str, str]
    scored: dict[str, Scored]
    cells: list[Cell]

    @classmethod
    def of(cls, sweep: Sweep) -> _Side:
        states, scored = scored_cells(sweep)
        return cls(sweep, states, scored, [task.cell for task in sweep.tasks() if task.cell.kind == CELL])

    def lacks(self, cell: Cell) -> str:
        """Why a cell has no effect; nothing where it has one."""
        if cell.id not in self.scored:
            return f"no replies ({self.states[cell.id]})"
        return "" if cell.baseline_id in self.scored else "its baseline has no replies"

    def metrics(self) -> list[str]:
        return sorted({name for one in self.scored.values() for name in one.metrics})

    def prompts(self, cell: Cell) -> dict[str, Value]:
        """A cell's prompts: id -> all that is said there, and by whom."""
        every = self.sweep.store.prompts(cell.prompts)
        return {prompt.id: repr((prompt.messages, prompt.turns, prompt.partner)) for prompt in every}


def align(first: Sweep, second: Sweep, metric: str | None = None, by_depth: bool = False) -> Alignment:
    """Line up the cells of two sweeps, and compare their effects.

    Args:
        first: from which differences are taken.
        second: whose effects are above or below it.
        metric: whose effect; None takes each pair's primary one.
        by_depth: blocks stand for the depth at which they lie, counted in blocks of the shallower model.

    Raises:
        EmosteerError: a sweep has no cell that is done, or the metric is not measured in both.
    """
    sides = (_Side.of(first), _Side.of(second))
    _check(sides, metric)
    axes = dict(AXES)
    if by_depth:
        shallower = min(cell.model.n_blocks for side in sides for cell in side.cells)
        axes["layers"] = lambda cell: _depth(cell, shallower)
    compared_on = [name for name, axis in axes.items() if _tells_apart(axis, sides)]
    compared: list[Compared] = []
    left_over = [LeftOver(side.sweep.name, cell.id, reason) for side in sides for cell in side.cells if (reason := side.lacks(cell))]
    for ones, others in _groups(sides, [axis for name, axis in axes.items() if name not in compared_on]):
        for alone, side, missing, other in ((ones, sides[0], others, sides[1]), (others, sides[1], ones, sides[0])):
            if not missing:
                left_over += [LeftOver(side.sweep.name, cell.id, f"{other.sweep.name} has none like it") for cell in alone]
        for one, another in itertools.product(ones, others):
            found = _compared(sides, one, another, metric)
            if isinstance(found, Compared):
                compared.append(found)
            else:
                left_over += [LeftOver(side.sweep.name, cell.id, found) for side, cell in zip(sides, (one, another), strict=True)]
    lined_up = [[one.first for one in compared], [one.second for one in compared]]
    varying = [name for name, axis in axes.items() if any(len({axis(cell) for cell in cells}) > 1 for cells in lined_up)]
    differing = {name: _shown_values(name, sides) for name in compared_on}
    return Alignment(_with_q(compared), list(dict.fromkeys(left_over)), differing, varying, _warnings(sides))


def _tells_apart(axis: Axis, sides: tuple[_Side, _Side]) -> bool:
    """Whether an axis is what the sweeps are compared on."""
    first, second = ({axis(cell) for cell in side.cells} for side in sides)
    return first.isdisjoint(second) and min(len(first), len(second)) == 1


def _groups(sides: tuple[_Side, _Side], axes: Sequence[Axis]) -> list[tuple[list[Cell], list[Cell]]]:
    """The cells with an effect, by their values on axes: those of the first sweep, and those of the second."""
    groups: dict[tuple[Value, ...], tuple[list[Cell], list[Cell]]] = defaultdict(lambda: ([], []))
    for place, side in enumerate(sides):
        for cell in side.cells:
            if not side.lacks(cell):
                groups[tuple(axis(cell) for axis in axes)][place].append(cell)
    return list(groups.values())


def _check(sides: tuple[_Side, _Side], metric: str | None) -> None:
    for side in sides:
        if not side.cells:
            raise EmosteerError(f"{side.sweep.name}: no cell to compare")
        measured = side.metrics()
        if not measured:
            raise EmosteerError(f"{side.sweep.name}: no cell is done yet; `emosteer-sweep status {side.sweep.name}` says more")
        if metric is not None and metric not in measured:
            raise EmosteerError(
                f"--metric {metric}: not measured in {side.sweep.name}{near(metric, measured)}; choose of {', '.join(measured)}"
            )


def _depth(cell: Cell, n_blocks: int) -> str:
    """Where a cell's blocks would lie in a model of that many blocks."""
    if cell.layers is None:
        return cell.layers_text
    last = max(1, cell.model.n_blocks - 1)
    return "+".join(str(math.floor(layer / last * (n_blocks - 1) + 0.5)) for layer in cell.layers)


def _compared(sides: tuple[_Side, _Side], one: Cell, other: Cell, metric: str | None) -> Compared | str:
    """What two cells come to; why they can't be compared where they can't."""
    primaries = [cell.pair.primary if cell.pair else "" for cell in (one, other)]
    if metric is None and primaries[0] != primaries[1]:
        return f"primary metrics differ ({primaries[0]}, {primaries[1]}): give --metric"
    name = metric or primaries[0]
    both = [(side, side.scored[cell.id]) for side, cell in zip(sides, (one, other), strict=True)]
    for side, cell in both:
        if name not in cell.metrics or name not in side.scored[cell.cell.baseline_id].metrics:
            return f"{name} is not measured in {side.sweep.name}"
    effects = [dict(zip(cell.prompts, _effects(side, cell, name), strict=True)) for side, cell in both]
    settings = sides[0].sweep.settings()["statistics"]
    options = {"n_resamples": settings["n_resamples"], "confidence": settings["confidence"]}
    said = [side.prompts(cell.cell) for side, cell in both]
    shared = [prompt for prompt, turns in said[0].items() if said[1].get(prompt) == turns]
    seed = seed_of(f"{one.id} {other.id}")
    numbers = _paired(effects, shared, seed, options) if shared else _unpaired(effects, seed, options)
    layers = ["+".join(map(str, cell.record["resolved"]["layers"])) for _, cell in both]
    ratios = [_perplexity_ratio(side, cell) for side, cell in both]
    return Compared(
        one,
        other,
        layers[0],
        layers[1],
        name,
        first_perplexity_ratio=ratios[0],
        second_perplexity_ratio=ratios[1],
        **numbers,
    )


def _effects(side: _Side, cell: Scored, metric: str) -> list[float]:
    """Steered less baseline at each of the cell's prompts, in their order."""
    baseline = side.scored[cell.cell.baseline_id]
    (row,) = cell.matrix([metric], cell.prompts) - baseline.matrix([metric], cell.prompts)
    return [float(value) for value in row]


def _perplexity_ratio(side: _Side, cell: Scored) -> float:
    before, after = (one.matrix([PERPLEXITY], cell.prompts)[0] for one in (side.scored[cell.cell.baseline_id], cell))
    defined = ~np.isnan(before) & ~np.isnan(after)
    return float(after[defined].mean() / before[defined].mean()) if defined.any() else math.nan


def _paired(effects: Sequence[Mapping[str, float]], prompts: Sequence[str], seed: int, options: dict[str, Any]) -> dict[str, Any]:
    first, second = (_row(of, prompts) for of in effects)
    (found,) = paired_effects(second[np.newaxis], first[np.newaxis], seed=seed, **options)
    return {
        "how": PAIRED,
        "n_first": found.n,
        "n_second": found.n,
        "first_effect": found.baseline,
        "second_effect": found.steered,
        "difference": found.delta,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
        "p": found.p,
    }


def _unpaired(effects: Sequence[Mapping[str, float]], seed: int, options: dict[str, Any]) -> dict[str, Any]:
    first, second = (_row(of, list(of)) for of in effects)
    found = unpaired_effect(first, second, seed=seed, **options)
    means = [float(np.nanmean(row)) if not np.isnan(row).all() else math.nan for row in (first, second)]
    return {
        "how": UNPAIRED,
        "n_first": found.n_first,
        "n_second": found.n_second,
        "first_effect": means[0],
        "second_effect": means[1],
        "difference": found.delta,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
        "p": found.p,
    }


def _row(effects: Mapping[str, float], prompts: Sequence[str]) -> Floats:
    return np.array([effects.get(prompt, math.nan) for prompt in prompts], dtype=np.float64)


def _with_q(compared: Sequence[Compared]) -> list[Compared]:
    families: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(compared):
        families[one.metric].append(place)
    q = np.full(len(compared), math.nan)
    for places in families.values():
        q[places] = false_discovery_rate(np.array([compared[place].p for place in places]))
    return [dataclasses.replace(one, q=float(value)) for one, value in zip(compared, q, strict=True)]


def _shown_values(axis: str, sides: tuple[_Side, _Side]) -> tuple[list[str], list[str]]:
    """The values of an axis on each side; digests by a name, with as much of the digest as tells equal names apart."""
    named = [{AXES[axis](cell): _name(axis, cell) for cell in side.cells} for side in sides]
    alike = set(named[0].values()) & set(named[1].values())
    shown = [
        [f"{name} ({str(value).removeprefix('sha256:')[:SHORT]})" if name in alike else name for value, name in of.items()]
        for of in named
    ]
    return shown[0], shown[1]


def _name(axis: str, cell: Cell) -> str:
    if axis == "model":
        return cell.model.config.name
    if axis == "prompts":
        return cell.prompts_name
    if axis == "texts":
        return short_hash(AXES[axis](cell))[:SHORT]
    value = AXES[axis](cell)
    return "+".join(part.name for part in value) or "none" if isinstance(value, tuple) else str(value)[:24]


def _warnings(sides: tuple[_Side, _Side]) -> list[str]:
    """What makes numbers of two sweeps hard to compare, though they line up."""
    keys = [{scorer.name: scorer.key for scorer in side.sweep.scorers()} for side in sides]
    others = [name for name in keys[0] if name in keys[1] and keys[0][name] != keys[1][name]]
    if not others:
        return []
    return [f"not measured alike: {', '.join(others)} has another version or other options in each, so differences may be theirs"]
