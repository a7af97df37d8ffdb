"""What a run is of: its config, flat and typed, with the same keys in every run, so that all kinds filter and group together."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import pandas as pd

from emosteer.config import GenerationConfig
from emosteer.records.cell import Cell
from emosteer.tracking.run import Scalar, typed

AXES: dict[str, type] = {
    "sweep": str,
    "cell_id": str,
    "model": str,
    "dtype": str,
    "pair": str,
    "target": str,
    "primary": str,
    "vector_id": str,
    "vector_method": str,
    "vector_reading": str,
    "vector_source": str,
    "vector_plus": str,
    "vector_without": str,
    "site": str,
    "layer": int,
    "layers": str,
    "layer_request": str,
    "coefficient": float,
    "coefficient_request": str,
    "auto_metric": str,
    "auto_target": float,
    "coefficient_unit": str,
    "coefficient_raw": float,
    "coefficient_fraction": float,
    "across_blocks": str,
    "scope": str,
    "intervention": str,
    "decay": float,
    "seed": int,
    "prompts": str,
    "n_prompts": int,
    "n_samples": int,
    "baseline_id": str,
    "control_key": str,
}
"""Columns of `results` that say what a cell is."""
CONFIG_KEYS = (
    *AXES,
    *("kind", "model_fingerprint", "attribution_id"),
    *(f"generation_{f.name}" for f in fields(GenerationConfig)),
)


def cell_config(row: pd.Series[Any], cell: Cell) -> dict[str, Scalar]:
    """The config of a cell or control, from its row of `results`."""
    return {**_of_any(cell), **{key: typed(row[key], kind) for key, kind in AXES.items()}, **_generation(cell)}


def baseline_config(cell: Cell, sweep: str, n_prompts: int) -> dict[str, Scalar]:
    """The config of a baseline: nothing of a vector."""
    facts: dict[str, Scalar] = {"seed": cell.seed, "prompts": cell.prompts_name, "n_prompts": n_prompts}
    facts["n_samples"] = cell.generation.n_samples
    return {**_of_any(cell), **facts, **_generation(cell), "sweep": sweep, "cell_id": cell.id, "baseline_id": cell.id}


def attribution_config(cell: Cell, sweep: str) -> dict[str, Scalar]:
    """The config of an attribution: model and pair."""
    return {**_of_any(cell), **_pair(cell), "sweep": sweep, "cell_id": cell.id}


def vector_config(cell: Cell, sweep: str) -> dict[str, Scalar]:
    """The config of the vector of a cell or control: model, site and how it is made, and the pair where it is of one."""
    vector = cell.vector
    assert vector is not None
    is_random = vector.method == "random"
    return {
        **_of_any(cell),
        **({} if is_random else _pair(cell)),
        "kind": "vector",
        "sweep": sweep,
        "attribution_id": None,
        "vector_id": cell.vector_id,
        "vector_method": "shuffled" if vector.shuffled else vector.method,
        "vector_reading": None if is_random else vector.reading,
        "vector_source": None if is_random else vector.source,
        "site": cell.site,
        "seed": vector.seed if is_random else None,
    }


def shared_config(configs: list[dict[str, Scalar]]) -> dict[str, Scalar]:
    """Every axis, with its value where all cells share one, else None; controls have no pair, and do not count."""
    cells = [config for config in configs if config["kind"] == "cell"] or configs
    values = {key: {config[key] for config in cells} for key in CONFIG_KEYS}
    return {key: found.pop() if len(found) == 1 else None for key, found in values.items()}


def _of_any(cell: Cell) -> dict[str, Scalar]:
    """Every key, with what is known of any cell."""
    known = {"kind": cell.kind, "model": cell.model.config.name, "dtype": cell.model.config.dtype}
    known |= {"model_fingerprint": cell.model.fingerprint}
    return {**dict.fromkeys(CONFIG_KEYS), **known, "attribution_id": cell.attribution_id if cell.attribution else None}


def _pair(cell: Cell) -> dict[str, Scalar]:
    return {"pair": cell.pair.name, "target": cell.pair.target, "primary": cell.pair.primary} if cell.pair else {}


def _generation(cell: Cell) -> dict[str, Scalar]:
    """Under keys without dots, which would read as nesting in W&B's filters."""
    return {f"generation_{key}": value for key, value in asdict(cell.generation).items()}
