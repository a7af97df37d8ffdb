"""The vector of a chosen cell on disk, in the forms that other software reads, with a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from emosteer.errors import EmosteerError
from emosteer.model_card import CardOf, model_card
from emosteer.records.cell import CELL, Cell
from emosteer.records.paths import ExportPaths
from emosteer.records.publish import publish_file
from emosteer.records.sweep import Sweep
from emosteer.scored import coefficient_of
from emosteer.summary import UNREADABLE, best_readable
from emosteer.tables import Tables
from emosteer.vector_file import load_vector, save_vector
from emosteer.vector_formats import not_for_gguf, save_gguf
from emosteer.vectors import EmotionVector

SAFETENSORS, GGUF = "safetensors", "gguf"
FORMATS = (SAFETENSORS, GGUF)


@dataclass
class Exported:
    """What was written."""

    cell: Cell
    directory: Path
    files: dict[str, Path] = field(default_factory=dict)
    """Format, or `card` -> file."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Format -> why it could not be written."""


def best_cell(tables: Tables, pair: str | None = None) -> str:
    """The id of the best readable cell, of one pair or of all.

    Raises:
        EmosteerError: no such pair, no cell is done, or none raises its target and stays readable.
    """
    done = tables.replied
    if pair is not None:
        pairs = sorted(set(tables.cells["pair"].dropna())) if len(tables.cells) else []
        if pair not in pairs:
            raise EmosteerError(f"--pair {pair}: the sweep has {', '.join(pairs) or 'none'}")
        done = done[done["pair"] == pair]
    if done.empty:
        raise EmosteerError("no cell is done yet whose vector could be chosen; name one that is")
    best: pd.Series[Any] | None = best_readable(done)
    if best is None:
        raise EmosteerError(f"{UNREADABLE} Name the cell to take")
    return str(best["cell_id"])


def stored_vector(sweep: Sweep, cell: Cell) -> tuple[EmotionVector, tuple[int, ...]]:
    """A cell's vector as the store has it, and the blocks that it steered.

    Raises:
        EmosteerError: it is no cell of an emotion pair, is not done, or its vector is missing or damaged.
    """
    if cell.kind != CELL:
        raise EmosteerError(f"{cell.id} is no cell: controls and baselines have no emotion's vector; name a cell")
    record = sweep.store.record(cell)
    if record is None:
        raise EmosteerError(f"{cell.id} is not done: `emosteer-sweep status {sweep.name}` says how far the sweep is")
    path = sweep.store.paths.vector(cell.vector_id)
    if not path.exists():
        raise EmosteerError(f"{cell.id}: its vector {path} is gone; run the cell again with mode=force")
    return load_vector(path), tuple(record["resolved"]["layers"])


def stored_coefficient(sweep: Sweep, cell: Cell) -> float:
    """The coefficient of a cell that is done, as it was given or found."""
    return coefficient_of(cell, sweep.store.record(cell) or {})


def export(sweep: Sweep, tables: Tables, cell: Cell, to: Path | None = None, formats: Sequence[str] | None = None) -> Exported:
    """Write a cell's vector and its card.

    Args:
        sweep: of the cell.
        tables: of the sweep; the card's numbers are theirs.
        cell: one that is done.
        to: the directory; None takes one inside the sweep's.
        formats: some of `FORMATS`; None takes those that can hold the vector, and says why others cannot.

    Raises:
        EmosteerError: what `stored_vector` raises, or a format that was asked for and cannot hold it.
    """
    vector, layers = stored_vector(sweep, cell)
    paths = sweep.paths.export(cell.id) if to is None else ExportPaths(to)
    done = Exported(cell, paths.directory)
    reason = _not_for_gguf(cell, layers)
    if reason and formats is not None and GGUF in formats:
        raise EmosteerError(f"--format gguf: {reason}")
    wanted = FORMATS if formats is None else formats
    coefficient = stored_coefficient(sweep, cell)
    at_each = coefficient / (len(layers) if cell.across_blocks == "split" else 1)
    facts = _facts(cell, layers, coefficient)
    if SAFETENSORS in wanted:
        save_vector(vector, paths.vector, facts)
        done.files[SAFETENSORS] = paths.vector
    if GGUF in wanted and reason:
        done.left_out[GGUF] = reason
    elif GGUF in wanted:
        save_gguf(
            vector,
            paths.gguf,
            layer=layers,
            coefficient=at_each,
            coefficient_unit=cell.coefficient_unit,
            model=cell.model.config.name,
            facts=facts,
        )
        done.files[GGUF] = paths.gguf
    lengths = [float(vector.added(layer, at_each, cell.coefficient_unit).norm()) for layer in layers]
    card = CardOf(
        cell,
        tables,
        float(sweep.settings()["statistics"]["confidence"]),
        sweep.store.vector_facts(cell.vector_id),
        layers,
        at_each,
        lengths,
        [path.name for path in done.files.values()],
    )
    publish_file(paths.card, model_card(card))
    done.files["card"] = paths.card
    return done


def _not_for_gguf(cell: Cell, layers: Sequence[int]) -> str:
    if cell.intervention != "add":
        return f"intervention={cell.intervention}: a control vector is only ever added"
    if cell.decay != 1:
        return f"decay={cell.decay:g}: a control vector is as strong at every token"
    return not_for_gguf(cell.site, layers)


def _facts(cell: Cell, layers: Sequence[int], coefficient: float) -> dict[str, str]:
    """What a file says of itself, as text."""
    return {
        "cell_id": cell.id,
        "vector_id": cell.vector_id,
        "model": cell.model.config.name,
        "model_fingerprint": cell.model.fingerprint,
        "dtype": cell.model.config.dtype,
        "pair": cell.pair.name if cell.pair else "",
        "layers": "+".join(map(str, layers)),
        "coefficient": repr(float(coefficient)),
        "coefficient_unit": cell.coefficient_unit,
        "across_blocks": cell.across_blocks,
        "scope": cell.scope,
        "intervention": cell.intervention,
        "decay": repr(float(cell.decay)),
    }
