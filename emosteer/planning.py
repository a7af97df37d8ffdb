"""From a composed configuration to the tasks that it asks for, with every value checked before a model is loaded."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from emosteer.config import (
    METRICS,
    MODES,
    SCOPES,
    SITES,
    TRACKERS,
    TRACKING_MODES,
    UNITS,
    VECTOR_METHODS,
    Config,
    ModelConfig,
    PairConfig,
    PromptsConfig,
)
from emosteer.datasets import SHIPPED, load_contrastive_pairs, load_diagnostic_pairs, load_neutral_texts, load_prompts
from emosteer.errors import EmosteerError
from emosteer.model.source import find, resolve_layers
from emosteer.records.cell import ATTRIBUTION, CELL, AttributionSpec, Cell, ModelSpec, PairSpec, VectorSpec
from emosteer.scoring.scorer import find_scorers

if TYPE_CHECKING:
    from emosteer.records.store import Store

NAME = re.compile(r"[^\W.](?:[\w .+=,@-]*[^\W.])?")

OWN_DIRECTION = -1
"""Index of the random direction of a cell (`vector=random`); its controls count from 0, and must be others."""


def typed(cfg: DictConfig) -> Config:
    """The configuration as typed objects; raises EmosteerError where a value is missing."""
    plain = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    except OmegaConfBaseException as error:
        raise EmosteerError(str(error).splitlines()[0]) from None
    assert isinstance(config, Config)
    return config


def check_sweep_name(name: str) -> str:
    """The name itself; raises EmosteerError unless it is one component of a path."""
    if not NAME.fullmatch(name):
        raise EmosteerError(f"name={name}: one path component of letters, digits, - and _, without slashes or dots at its ends")
    return name


def plan(config: Config, store: Store) -> list[Cell]:
    """The cell that a configuration asks for, and what goes with it: baseline, controls, attribution. The cell comes first.

    Raises:
        EmosteerError: a value or data file that cannot be used.
    """
    check_values(config)
    cell = _cell(config, store)
    attribution = [Cell(ATTRIBUTION, cell.model, pair=cell.pair, attribution=cell.attribution)] if cell.attribution else []
    controls = [cell.control(index) for index in range(config.controls.random)] if cell.coefficient != 0 else []
    return [cell, cell.baseline(), *controls, *attribution]


def check_values(config: Config) -> None:
    """Refuse what no cell can use; raises EmosteerError with the key, the value and what to give instead."""
    check_sweep_name(config.name)
    for key, value, valid in (
        ("mode", config.mode, MODES),
        ("scope", config.scope, SCOPES),
        ("site", config.site, SITES),
        ("coefficient_unit", config.coefficient_unit, UNITS),
        ("vector.method", config.vector.method, VECTOR_METHODS),
        ("tracking.name", config.tracking.name, TRACKERS),
        ("tracking.mode", config.tracking.mode, TRACKING_MODES),
        ("attribution.method", config.attribution.method, ("attribution_patching", "none")),
        ("tracking", config.tracking.name, TRACKERS),
    ):
        if value not in valid:
            raise EmosteerError(f"{key}={value}: choose one of {', '.join(valid)}")
    if not math.isfinite(config.coefficient):
        raise EmosteerError(f"coefficient={config.coefficient}: give a finite number, such as 0.2")
    for key, number, least in (
        ("generation.max_new_tokens", config.generation.max_new_tokens, 1),
        ("generation.min_new_tokens", config.generation.min_new_tokens, 0),
        ("generation.n_samples", config.generation.n_samples, 1),
        ("controls.random", config.controls.random, 0),
        ("attribution.blocks", config.attribution.blocks, 1),
        ("attribution.steps", config.attribution.steps, 1),
        ("statistics.n_resamples", config.statistics.n_resamples, 1),
        ("worker.cells_per_claim", config.worker.cells_per_claim, 1),
        ("engine.batch_rows", config.engine.batch_rows, 1),
        ("engine.threads", config.engine.threads, 1),
    ):
        if number is not None and number < least:
            raise EmosteerError(f"{key}={number}: give a whole number of at least {least}")
    _check_generation(config)
    _check_primary(config.pair.primary, [scorer.target for scorer in find_scorers(config.scorers)])


def _check_generation(config: Config) -> None:
    generation = config.generation
    if generation.n_samples > 1 and not generation.do_sample:
        raise EmosteerError(f"generation.n_samples={generation.n_samples} gives equal replies: add generation.do_sample=true")
    if generation.min_new_tokens > generation.max_new_tokens:
        raise EmosteerError(f"generation.min_new_tokens={generation.min_new_tokens} is more than max_new_tokens")
    if not generation.temperature > 0 or not math.isfinite(generation.temperature):
        raise EmosteerError(f"generation.temperature={generation.temperature}: give a number above 0")
    if not 0 < generation.top_p <= 1:
        raise EmosteerError(f"generation.top_p={generation.top_p}: give a number above 0 and at most 1")
    if not 0 < config.statistics.confidence < 1:
        raise EmosteerError(f"statistics.confidence={config.statistics.confidence}: give a number between 0 and 1")
    if not config.worker.lease_seconds > 0:
        raise EmosteerError(f"worker.lease_seconds={config.worker.lease_seconds}: give a number above 0")


def _check_primary(primary: str, scorers: list[str]) -> None:
    # What a scorer of the user's measures is known when it has run.
    if primary not in METRICS and all(scorer.startswith("emosteer.") for scorer in scorers):
        raise EmosteerError(f"pair.primary={primary}: no scorer measures it; choose one of {', '.join(METRICS)}")


def _cell(config: Config, store: Store) -> Cell:
    model = _model_spec(_frozen(config.model))
    layer = OmegaConf.to_container(config.layer) if OmegaConf.is_config(config.layer) else config.layer
    layers = resolve_layers(layer, model.n_blocks, config.model.name)
    uses_attribution = config.attribution.method != "none"
    pair = _pair_spec(config.pair, store, uses_attribution)
    if layers is None and not uses_attribution:
        raise EmosteerError("layer=auto takes the blocks that attribution finds: give a layer, or leave attribution on")
    random = config.vector.method == "random"
    vector = VectorSpec("random", seed=config.seed, index=OWN_DIRECTION) if random else VectorSpec(config.vector.method, pair.texts)
    return Cell(
        kind=CELL,
        model=model,
        seed=config.seed,
        prompts=_keep(store, "prompts", _path(config.prompts, "prompts"), config.prompts.limit),
        prompts_name=config.prompts.name,
        generation=config.generation,
        pair=pair,
        vector=vector,
        neutral=_keep(store, "neutral", SHIPPED / "neutral" / "neutral.jsonl"),
        layers=layers,
        coefficient=float(config.coefficient),
        coefficient_unit=config.coefficient_unit,
        scope=config.scope,
        site=config.site,
        attribution=AttributionSpec(pair.diagnostics, config.attribution) if uses_attribution else None,
    )


def _pair_spec(pair: PairConfig, store: Store, uses_attribution: bool) -> PairSpec:
    diagnostics = Path(pair.diagnostics) if pair.diagnostics else SHIPPED / "diagnostics" / f"{pair.name}.jsonl"
    if uses_attribution and not pair.diagnostics and not diagnostics.exists():
        raise EmosteerError(
            f"pair={pair.name}: no diagnostic pairs are shipped for it; give pair.diagnostics=FILE, or set attribution=none"
        )
    return PairSpec(
        pair.name,
        pair.target,
        pair.counterpart,
        pair.primary,
        texts=_keep(store, "pairs", _path(pair, "pairs")),
        diagnostics=_keep(store, "diagnostics", diagnostics) if uses_attribution else "",
    )


def _path(group: PairConfig | PromptsConfig, folder: str) -> Path:
    if group.path:
        return Path(group.path).expanduser()
    shipped = SHIPPED / folder / f"{group.name}.jsonl"
    if not shipped.exists():
        key = "pair" if isinstance(group, PairConfig) else "prompts"
        raise EmosteerError(f"{key}.name={group.name}: no texts of that name are shipped; give {key}.path=FILE")
    return shipped


LOADERS: dict[str, Any] = {
    "pairs": load_contrastive_pairs,
    "diagnostics": load_diagnostic_pairs,
    "neutral": load_neutral_texts,
}


def _keep(store: Store, kind: str, path: Path, limit: int | None = None) -> str:
    """Keep a data file's texts in the store as they are now; their digest."""
    try:
        state = path.stat()
    except OSError:
        state = None
    stamp = (state.st_mtime_ns, state.st_size) if state else None
    return _keep_once(store, kind, path, limit, stamp)


@lru_cache(maxsize=256)
def _keep_once(store: Store, kind: str, path: Path, limit: int | None, _stamp: tuple[int, int] | None) -> str:
    items = load_prompts(path, limit) if kind == "prompts" else LOADERS[kind](path)
    return store.keep_texts(items)


def _frozen(model: ModelConfig) -> tuple[tuple[str, Any], ...]:
    return tuple(vars(model).items())


@lru_cache(maxsize=64)
def _model_spec(fields: tuple[tuple[str, Any], ...]) -> ModelSpec:
    config = ModelConfig(**dict(fields))
    source = find(config)
    return ModelSpec(config, source.fingerprint, source.n_blocks)
