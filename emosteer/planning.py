"""From a composed configuration to the tasks that it asks for, with every value checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from emosteer.checks import check_ids_hold_no_hydra_values, check_known_keys, check_values, leaves, near, weighed
from emosteer.config import AUTO, Config, ModelConfig, PairConfig, PromptsConfig, VectorConfig
from emosteer.datasets import (
    SHIPPED,
    ContrastivePair,
    digest,
    labels_exchanged,
    load_contrastive_pairs,
    load_diagnostic_pairs,
    load_neutral_texts,
    load_prompts,
    shipped_pairs,
)
from emosteer.dotted import find_vector_method, version_of
from emosteer.errors import EmosteerError
from emosteer.model.context_length import check_prompts_fit
from emosteer.model.source import ModelSource, find, resolve_layers
from emosteer.one_line import one_line
from emosteer.records.cell import ATTRIBUTION, CELL, AttributionSpec, Cell, ModelSpec, PairSpec, Part, StrengthSpec, VectorSpec
from emosteer.scoring.nrc import CATEGORIES
from emosteer.sources import lexicon_pairs, persona_prompts, story_prompts

OWN_DIRECTION = -1
"""Index of the random direction of a cell (`vector=random`); its controls count from 0, and must be others."""


STAND_INS: dict[str, Any] = {"lexicon": lexicon_pairs, "persona": persona_prompts, "stories": story_prompts}
"""Source of texts -> what makes them of two emotions' names."""


@dataclass(frozen=True)
class Plan:
    """What a configuration asks for."""

    cells: list[Cell]
    """The cell, and what goes with it: baseline, controls, attribution."""
    texts: dict[str, Sequence[Any]]
    """What a worker will read, by digest, as it is now."""


def typed(task: DictConfig) -> Config:
    """The configuration as typed objects.

    Args:
        task: a composed configuration without Hydra's part.

    Raises:
        EmosteerError: a value that is missing, unknown, or would tie a cell's id to Hydra's runtime.
    """
    try:
        whole = _with_schema(task)
        plain = OmegaConf.to_container(whole, resolve=False)
        assert isinstance(plain, dict)
        check_ids_hold_no_hydra_values(plain)
        check_known_keys(plain)
        if missing := [key for key, value in leaves(plain) if value == MISSING]:
            raise EmosteerError(f"{', '.join(missing)}: missing; give {' '.join(f'{key}=...' for key in missing)}")
        config = OmegaConf.to_object(whole)
    except OmegaConfBaseException as error:
        raise EmosteerError(one_line(error)) from None
    assert isinstance(config, Config)
    return config


def _with_schema(task: DictConfig) -> DictConfig:
    """The configuration with its types, and with defaults for keys that were deleted."""
    names = [f.name for f in fields(Config)]
    if OmegaConf.get_type(task) is Config and all(name in task for name in names):
        return task
    own = OmegaConf.masked_copy(task, [name for name in names if name in task])
    whole = OmegaConf.merge(OmegaConf.structured(Config), own)
    assert isinstance(whole, DictConfig)
    # Keys of the user's own: others may refer to them.
    OmegaConf.set_struct(whole, False)
    whole.merge_with(task)
    return whole


def plan(config: Config) -> Plan:
    """The tasks that a configuration asks for; nothing is written.

    Raises:
        EmosteerError: a value or data file that cannot be used.
    """
    check_values(config)
    texts: dict[str, Sequence[Any]] = {}
    cell = _cell(config, texts)
    attribution = [Cell(ATTRIBUTION, cell.model, pair=cell.pair, attribution=cell.attribution)] if cell.attribution else []
    is_steered = cell.coefficient != 0 or cell.intervention != "add"
    controls = [cell.control(index) for index in range(config.controls.random)] if is_steered else []
    shuffled = _shuffled(config, cell, texts) if is_steered else []
    negative = [cell.negated()] if is_steered and cell.intervention != "ablate" and config.controls.negative else []
    prompting = [cell.prompting(_instruction(config))] if config.controls.prompting else []
    return Plan([cell, cell.baseline(), *controls, *shuffled, *negative, *prompting, *attribution], texts)


def _shuffled(config: Config, cell: Cell, texts: dict[str, Sequence[Any]]) -> list[Cell]:
    """The controls whose vectors come from texts with exchanged labels, which are added to the texts."""
    assert cell.vector is not None
    found = []
    for index in range(config.controls.shuffled if cell.vector.method != "random" else 0):
        pairs = texts[cell.vector.texts]
        if cell.coefficient_unit == "raw":
            raise EmosteerError("controls.shuffled has vectors of other lengths than the pair's: give coefficient_unit=fraction")
        if len(pairs) < 2 or not isinstance(pairs[0], ContrastivePair):
            raise EmosteerError(
                "controls.shuffled exchanges the labels of contrastive pairs, at least 2: set it to 0 for this vector"
            )

        def exchanged(key: str, index: int = index) -> str:
            return _add(texts, labels_exchanged(texts[key], config.seed, index))

        # Of what is added as well: else its part of the vector would be the emotion's.
        plus = tuple(replace(part, texts=exchanged(part.texts)) for part in cell.vector.plus)
        found.append(cell.shuffled(index, exchanged(cell.vector.texts), plus))
    return found


def _instruction(config: Config) -> str:
    return config.controls.instruction.replace("{target}", config.pair.target)


def _cell(config: Config, texts: dict[str, Sequence[Any]]) -> Cell:
    source = _source(_frozen(config.model))
    ablates = config.intervention == "ablate"
    is_auto = config.coefficient == AUTO and not ablates
    layer = OmegaConf.to_container(config.layer) if OmegaConf.is_config(config.layer) else config.layer
    layers = resolve_layers(layer, source.n_blocks, config.model.name)
    uses_attribution = config.attribution.method != "none"
    pair = _pair_spec(config, texts, uses_attribution)
    if layers is None and not uses_attribution:
        raise EmosteerError("layer=auto takes the blocks that attribution finds: give a layer, or leave attribution on")
    vector = _vector_spec(config, pair, texts)
    neutral = _read(texts, "neutral", SHIPPED / "neutral" / "neutral.jsonl")
    _check_texts_suffice(vector, texts, neutral)
    return Cell(
        kind=CELL,
        model=ModelSpec(config.model, source.fingerprint, source.n_blocks),
        seed=config.seed,
        prompts=_prompts(config, source, texts),
        prompts_name=_prompts_name(config.prompts),
        generation=config.generation,
        pair=pair,
        vector=vector,
        neutral=neutral,
        layers=layers,
        # An ablation has no strength: a grid over coefficients has it once.
        coefficient=0.0 if ablates else None if is_auto else float(config.coefficient),
        coefficient_unit="fraction" if ablates else config.coefficient_unit,
        across_blocks="each" if ablates or _is_one_block(layers, config) else config.across_blocks,
        scope=config.scope,
        site=config.site,
        intervention=config.intervention,
        decay=float(config.decay),
        strength=StrengthSpec(config.auto_coefficient, vector) if is_auto else None,
        attribution=AttributionSpec(pair.diagnostics, config.attribution) if uses_attribution else None,
    )


def _is_one_block(layers: tuple[int, ...] | None, config: Config) -> bool:
    """Whether a single block is steered, which gets the whole coefficient in any case."""
    return (config.attribution.blocks if layers is None else len(layers)) == 1


def _vector_spec(config: Config, pair: PairSpec, texts: dict[str, Sequence[Any]]) -> VectorSpec:
    method = config.vector.method
    if method == "random":
        return VectorSpec(method, seed=config.seed, index=OWN_DIRECTION)
    source = config.vector.source
    if source == "persona" and "." in method:
        raise EmosteerError(
            f"vector.source=persona: {method} is given contrastive pairs, which personas are not; choose another source"
        )
    return VectorSpec(
        method,
        pair.texts if source == "pairs" else _add(texts, STAND_INS[source](pair.target, pair.counterpart)),
        version=version_of(find_vector_method(method, config.vector.reading)) if "." in method else 1,
        reading=config.vector.reading,
        components=config.vector.components if method == "neutral_projected" else VectorConfig.components,
        source=source,
        seed=config.seed if source == "stories" else 0,
        others=_other_emotions(pair, source, texts) if method == "grand_mean" else (),
        plus=_parts("vector.plus", config.vector.plus, pair, source, texts),
        without=_parts("vector.without", config.vector.without, pair, source, texts),
    )


def _parts(key: str, value: Any, pair: PairSpec, source: str, texts: dict[str, Sequence[Any]]) -> tuple[Part, ...]:
    """What `vector.plus` or `vector.without` names, whose texts are added."""
    return tuple(_part(key, name, weight, pair, source, texts) for name, weight in weighed(key, value).items())


def _part(key: str, name: str, weight: float, pair: PairSpec, source: str, texts: dict[str, Sequence[Any]]) -> Part:
    if source == "pairs":
        is_file = "/" in name or name.endswith(".jsonl")
        path = Path(name).expanduser() if is_file else shipped_pairs().get(name)
        if path is None:
            known = list(shipped_pairs())
            raise EmosteerError(
                f"{key}={name}: no pairs of that name are shipped{near(name, known)}; there are {', '.join(known)}, or give a file"
            )
        part = Part(_read(texts, "pairs", path, of=key), path.stem, weight)
    else:
        emotions = name.split("_")
        if len(emotions) != 2 or not all(emotions) or (source == "lexicon" and not set(emotions) <= set(CATEGORIES)):
            of_lexicon = f" of the NRC lexicon's {', '.join(CATEGORIES)}" if source == "lexicon" else ""
            raise EmosteerError(f"{key}={name}: with vector.source={source} give two emotions{of_lexicon}, as target_counterpart")
        part = Part(_add(texts, STAND_INS[source](*emotions)), name, weight)
    if part.texts == (pair.texts if source == "pairs" else digest(STAND_INS[source](pair.target, pair.counterpart))):
        raise EmosteerError(f"{key}={name}: that is the pair itself, whose vector it would be put to; name another")
    return part


def _other_emotions(pair: PairSpec, source: str, texts: dict[str, Sequence[Any]]) -> tuple[str, ...]:
    """Digests of the shipped pairs of other emotions than a pair's own, whose texts are added."""
    if source == "pairs":
        keys = [_read(texts, "pairs", path) for path in shipped_pairs().values()]
        return tuple(key for key in keys if key != pair.texts)
    emotions = [name.split("_") for name in shipped_pairs()]
    others = [two for two in emotions if not set(two) & {pair.target, pair.counterpart}]
    known = [two for two in others if set(two) <= set(CATEGORIES)] if source == "lexicon" else others
    return tuple(_add(texts, STAND_INS[source](*two)) for two in known)


def _add(texts: dict[str, Sequence[Any]], items: Sequence[Any]) -> str:
    """Add texts that lie in no file; their digest."""
    key = digest(items)
    texts[key] = items
    return key


def _check_texts_suffice(vector: VectorSpec, cell_texts: dict[str, Sequence[Any]], neutral: str) -> None:
    """Raise EmosteerError where a method needs more texts than there are."""
    if vector.method == "lda" and len(cell_texts[vector.texts]) < 2:
        raise EmosteerError("vector.method=lda needs the scatter of at least 2 pairs: give more in pair.path, or another method")
    n_neutral = len(cell_texts[neutral])
    if vector.method == "neutral_projected" and vector.components >= n_neutral:
        raise EmosteerError(f"vector.components={vector.components}: of {n_neutral} neutral texts give at most {n_neutral - 1}")


def _prompts(config: Config, source: ModelSource, texts: dict[str, Sequence[Any]]) -> str:
    path, limit = _path(config.prompts, "prompts"), config.prompts.limit
    key = _read(texts, "prompts", path, limit)
    _check_fit_once(source, config.model.name, path, limit, _stamp(path), config.generation.max_new_tokens)
    return key


def _prompts_name(prompts: PromptsConfig) -> str:
    """As tables show the prompts: a shipped set's name does not stand for a file of the user's own."""
    is_shipped = (SHIPPED / "prompts" / f"{prompts.name}.jsonl").exists()
    return Path(prompts.path).stem if prompts.path and is_shipped else prompts.name


def _pair_spec(config: Config, texts: dict[str, Sequence[Any]], uses_attribution: bool) -> PairSpec:
    pair = config.pair
    is_explained = uses_attribution and config.attribution.metric == "projection"
    needs_pairs = config.vector.source == VectorConfig.source or is_explained
    diagnostics = Path(pair.diagnostics).expanduser() if pair.diagnostics else SHIPPED / "diagnostics" / f"{pair.name}.jsonl"
    if uses_attribution and not pair.diagnostics and _stamp(diagnostics) is None:
        raise EmosteerError(
            f"pair={pair.name}: no diagnostic pairs are shipped for it; give pair.diagnostics=FILE, or set attribution=none"
        )
    return PairSpec(
        pair.name,
        pair.target,
        pair.counterpart,
        pair.primary,
        texts=_read(texts, "pairs", _path(pair, "pairs")) if needs_pairs else "",
        diagnostics=_read(texts, "diagnostics", diagnostics) if uses_attribution else "",
    )


def _path(group: PairConfig | PromptsConfig, folder: str) -> Path:
    if group.path:
        return Path(group.path).expanduser()
    shipped = SHIPPED / folder / f"{group.name}.jsonl"
    if _stamp(shipped) is None:
        key = "pair" if isinstance(group, PairConfig) else "prompts"
        raise EmosteerError(f"{key}.name={group.name}: no texts of that name are shipped; give {key}.path=FILE")
    return shipped


LOADERS: dict[str, Any] = {
    "pairs": load_contrastive_pairs,
    "diagnostics": load_diagnostic_pairs,
    "neutral": load_neutral_texts,
}


PATHS = {"pairs": "pair.path", "diagnostics": "pair.diagnostics", "prompts": "prompts.path"}
"""The key that names a file of each kind."""


def _read(texts: dict[str, Sequence[Any]], kind: str, path: Path, limit: int | None = None, of: str = "") -> str:
    """Add a data file's texts, as they are now; their digest. `of` is the key that names the file, where it is not the usual one."""
    try:
        key, items = _read_once(kind, path, limit, _stamp(path))
    except EmosteerError as error:
        name = of or PATHS.get(kind)
        raise EmosteerError(f"{name}={error}" if name else str(error)) from None
    texts[key] = items
    return key


@lru_cache(maxsize=256)
def _read_once(kind: str, path: Path, limit: int | None, _state: tuple[int, int] | None) -> tuple[str, Sequence[Any]]:
    items = load_prompts(path, limit) if kind == "prompts" else LOADERS[kind](path)
    return digest(items), items


@lru_cache(maxsize=256)
def _check_fit_once(
    source: ModelSource, model_name: str, path: Path, limit: int | None, state: tuple[int, int] | None, max_new_tokens: int
) -> None:
    _, prompts = _read_once("prompts", path, limit, state)
    check_prompts_fit(source, model_name, prompts, max_new_tokens, f"{PATHS['prompts']}={path}")


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except (OSError, ValueError):  # a path with a NUL
        return None
    return state.st_mtime_ns, state.st_size


def _frozen(model: ModelConfig) -> tuple[tuple[str, Any], ...]:
    return tuple(vars(model).items())


@lru_cache(maxsize=64)
def _source(fields: tuple[tuple[str, Any], ...]) -> ModelSource:
    return find(ModelConfig(**dict(fields)))
