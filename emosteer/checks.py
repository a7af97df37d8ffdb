"""What can be refused from a configuration's values, before a data file is read or a model is looked for."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from emosteer.config import (
    ACROSS_BLOCKS,
    ATTRIBUTION_METHODS,
    ATTRIBUTION_METRICS,
    AUTO,
    COSTS,
    DIRECTIONS,
    EFFECTS,
    ENGINE_PATHS,
    INTERVENTIONS,
    METRICS,
    MODES,
    NUMBERS,
    OBJECTIVE_DIRECTIONS,
    READINGS,
    SCOPES,
    SITES,
    SOURCES,
    TRACKERS,
    TRACKING_MODES,
    UNITS,
    VECTOR_METHODS,
    Config,
    ObjectiveConfig,
    TrackingConfig,
    VectorConfig,
)
from emosteer.errors import EmosteerError
from emosteer.scoring.nrc import CATEGORIES
from emosteer.scoring.scorer import find_scorers

NAME = re.compile(r"[^\W.](?:[\w .+=,@-]*[^\W.])?")
LONGEST_NAME = 200
"""Bytes of a sweep's name: a file system allows 255, and what is written beside it has longer names."""

LONGEST_PROJECT, LONGEST_TAG, NOT_IN_PROJECTS = 128, 64, "/\\#?%:"
"""Limits of Weights & Biases."""

MOST, MOST_CONTROLS = 10_000_000, 1_000
"""No count is meant to be larger; each control is a cell to be planned and run."""

OWN_SCORERS = "emosteer."
"""How the dotted path of a shipped scorer begins; what others measure is known when they have run."""

FREE_OF_IDS = ("name", "store", "mode", "tracking", "engine", "worker", "statistics", "objective")
"""Keys of which nothing enters an id."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "mode": MODES,
    "coefficient_unit": UNITS,
    "across_blocks": ACROSS_BLOCKS,
    "scope": SCOPES,
    "site": SITES,
    "intervention": INTERVENTIONS,
    "auto_coefficient.metric": COSTS,
    "vector.reading": READINGS,
    "vector.source": SOURCES,
    "attribution.method": ATTRIBUTION_METHODS,
    "attribution.metric": ATTRIBUTION_METRICS,
    "attribution.direction": DIRECTIONS,
    "tracking.name": TRACKERS,
    "tracking.mode": TRACKING_MODES,
    "objective.direction": OBJECTIVE_DIRECTIONS,
}
"""Keys whose values are names from a list; `--help` prints it."""

HYDRA_VALUE = re.compile(r"\$\{\s*hydra\s*[:.]")

SECRET = re.compile(
    r"(?:api_?key|(?:access|auth|bearer|hf|hub|wandb)_?token|secret|passwo?r?d|credentials?)$|(?-i:[A-Z0-9_]*(?:KEY|TOKEN|SECRET|PASSWORD))$",
    re.IGNORECASE,
)
"""Ends of keys, and names of environment variables, whose values must not be written down."""


def check_sweep_name(name: str) -> str:
    """The name itself; raises EmosteerError unless it is one component of a path."""
    if not NAME.fullmatch(name):
        raise EmosteerError(f"name={name}: one path component of letters, digits, - and _, without slashes or dots at its ends")
    if len(name.encode()) > LONGEST_NAME:
        raise EmosteerError(f"name={name[:20]}...: {len(name.encode())} bytes are too long; give at most {LONGEST_NAME}")
    return name


def check_no_secrets(cfg: DictConfig) -> None:
    """Refuse secrets that were typed or that Hydra would write into its files; raises EmosteerError, without the value.

    Args:
        cfg: a composed configuration with Hydra's part still in it.
    """
    check_no_typed_secrets([*given_overrides(cfg, "task"), *given_overrides(cfg, "hydra")])
    # env_copy puts values of the environment into env_set, which Hydra writes down.
    _refuse_secrets(f"hydra.job.env_set.{key}" for key in cfg.hydra.job.env_set)


def check_no_typed_secrets(arguments: Sequence[str]) -> None:
    """Refuse secrets among overrides as they were typed, before an error can show them; raises EmosteerError, without the value."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        if value not in ("", "null"):
            _refuse_secrets([key.lstrip("+~"), *re.findall(r"([\w.]+)['\"]?\s*:", value)])


def _refuse_secrets(keys: Iterable[str]) -> None:
    for key in keys:
        if SECRET.search(key.rpartition(".")[2]):
            raise EmosteerError(secret_refused(key))


def secret_refused(key: str) -> str:
    """What a user reads who typed a secret."""
    return (
        f"{key}: a secret does not belong on a command line or in a configuration, which others can read; "
        f"export it in the environment, which jobs inherit"
    )


def given_overrides(cfg: DictConfig, of: str) -> list[str]:
    """The overrides that a configuration was composed of, of the `task` or of `hydra`, as they were typed."""
    # Not by iterating: that would resolve an interpolation that is a value.
    lines = OmegaConf.to_container(cfg.hydra.overrides[of], resolve=False)
    assert isinstance(lines, list)
    return [str(line) for line in lines]


def check_ids_hold_no_hydra_values(task: Mapping[Any, Any]) -> None:
    """Raise EmosteerError where a key that enters ids takes its value from Hydra's runtime, such as `${hydra:job.num}`.

    A cell's id would depend on how its sweep was given, and the same cell would be run again.

    Args:
        task: a configuration as plain data, with its interpolations unresolved.
    """
    for key, value in leaves(task):
        if isinstance(value, str) and HYDRA_VALUE.search(value) and key.partition(".")[0] not in FREE_OF_IDS:
            raise EmosteerError(f"{key}={value}: Hydra's runtime values must not enter a cell's id; give the value itself")


def check_known_keys(task: Mapping[Any, Any]) -> None:
    """Raise EmosteerError for a key that was added (`+key=value`) inside a group that does not know it.

    Keys of one's own at the top are free: other keys may refer to them.

    Args:
        task: a configuration as plain data.
    """
    for group, known in _keys_of_groups().items():
        added = [key for key in task.get(group) or () if key not in known]
        if added:
            raise EmosteerError(f"{group}.{added[0]}: no such key; {group} has {', '.join(known)}")


@lru_cache(maxsize=1)
def _keys_of_groups() -> dict[str, list[str]]:
    """The keys of each group of the schema."""
    groups = vars(Config()).items()
    return {name: [f.name for f in fields(group)] for name, group in groups if is_dataclass(group)}


def check_writable(key: str, directory: Path) -> None:
    """Raise EmosteerError where a directory that `key` names could not be made or written to; nothing is made."""
    directory = directory.absolute()
    try:
        there = next(path for path in (directory, *directory.parents) if path.exists())
    except OSError as error:
        raise EmosteerError(f"{key}={directory}: {error.strerror}; give another place") from None
    if not there.is_dir():
        raise EmosteerError(f"{key}={directory}: {there} is a file; give another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise EmosteerError(f"{key}={directory}: {there} cannot be written to; give another place, or mend its permissions")


def check_values(config: Config) -> None:
    """Raise EmosteerError for the first value that cannot be used."""
    check_sweep_name(config.name)
    if not config.store.strip() or "\0" in config.store:
        raise EmosteerError(f"store={config.store!r}: give a directory, such as outputs/store")
    for key, valid in CHOICES.items():
        value = attrgetter(key)(config)
        if value not in valid:
            raise EmosteerError(f"{key}={value}: choose one of {', '.join(valid)}")
    _check_coefficient(config)
    _check_attribution(config)
    _check_decay(config)
    _check_instruction(config)
    _check_tracking(config.tracking)
    for key, number, least in (
        ("generation.max_new_tokens", config.generation.max_new_tokens, 1),
        ("generation.min_new_tokens", config.generation.min_new_tokens, 0),
        ("generation.n_samples", config.generation.n_samples, 1),
        ("controls.random", config.controls.random, 0),
        ("controls.shuffled", config.controls.shuffled, 0),
        ("attribution.blocks", config.attribution.blocks, 1),
        ("attribution.check", config.attribution.check, 0),
        ("attribution.neurons", config.attribution.neurons, 0),
        ("attribution.steps", config.attribution.steps, 1),
        ("statistics.n_resamples", config.statistics.n_resamples, 1),
        ("worker.cells_per_claim", config.worker.cells_per_claim, 1),
        ("worker.max_attempts", config.worker.max_attempts, 1),
        ("engine.batch_rows", config.engine.batch_rows, 1),
        ("engine.threads", config.engine.threads, 1),
        ("prompts.limit", config.prompts.limit, 1),
        ("vector.components", config.vector.components, 1),
    ):
        if number is not None:
            check_count(key, number, least, MOST_CONTROLS if key.startswith(("controls.", "attribution.neurons")) else MOST)
    if config.engine.path not in (None, *ENGINE_PATHS):
        raise EmosteerError(f"engine.path={config.engine.path}: choose one of {', '.join(ENGINE_PATHS)}, or null for the fastest")
    _check_generation(config)
    _check_vector_method(config.vector.method)
    _check_parts(config.vector)
    are_shipped = _are_shipped(json.dumps(config.scorers, sort_keys=True, default=str))
    measured = _measured(config) if are_shipped else None
    if measured and config.pair.primary not in measured:
        raise EmosteerError(f"pair.primary={config.pair.primary}: no scorer measures it; choose one of {', '.join(measured)}")
    _check_equivalence(config.statistics.equivalence, measured)
    _check_objective(config, measured)


def _check_coefficient(config: Config) -> None:
    if config.coefficient == AUTO:
        _check_auto(config)
        return
    try:
        is_finite = not isinstance(config.coefficient, bool) and math.isfinite(float(config.coefficient))
    except (TypeError, ValueError):
        is_finite = False
    if not is_finite:
        typed = "null" if config.coefficient is None else config.coefficient
        raise EmosteerError(f"coefficient={typed}: give a finite number, such as 0.2, or auto")


def _check_auto(config: Config) -> None:
    auto = config.auto_coefficient
    least = 1 if auto.metric == "perplexity_ratio" else 0
    if not math.isfinite(auto.target) or auto.target <= least:
        raise EmosteerError(
            f"auto_coefficient.target={auto.target}: give a number above {least}, what {auto.metric} is without a push"
        )
    if not 0 < auto.tolerance < 1:
        raise EmosteerError(f"auto_coefficient.tolerance={auto.tolerance}: give a number between 0 and 1, such as 0.1")
    if not math.isfinite(auto.largest) or auto.largest <= 0:
        raise EmosteerError(f"auto_coefficient.largest={auto.largest}: give a number above 0, such as 1.0")
    check_count("auto_coefficient.max_steps", auto.max_steps, 6)
    check_count("auto_coefficient.prompts", auto.prompts)
    if config.coefficient_unit != "fraction":
        raise EmosteerError("coefficient=auto is a fraction of the residual norm: give coefficient_unit=fraction")
    if config.intervention == "set":
        raise EmosteerError("coefficient=auto finds how much to add: give a number with intervention=set")


def _check_attribution(config: Config) -> None:
    metric, pair = config.attribution.metric, config.pair
    if metric == "kl" and config.attribution.direction == "noising":
        raise EmosteerError(
            "attribution.metric=kl asks how near a run comes to the clean one: choose attribution.direction=denoising"
        )
    needed = {"nrc_words": {"target": pair.target, "counterpart": pair.counterpart}, "nrc_score": {"primary": pair.primary}}
    for key, emotion in needed.get(metric, {}).items():
        if emotion not in CATEGORIES:
            raise EmosteerError(
                f"pair.{key}={emotion}: attribution.metric={metric} needs words of it, and the NRC lexicon has "
                f"{', '.join(CATEGORIES)}; choose another metric or pair"
            )


def _check_decay(config: Config) -> None:
    if not 0 <= config.decay <= 1:
        raise EmosteerError(f"decay={config.decay}: give a number from 0 (the first token only) to 1 (the same strength throughout)")
    if config.decay != 1 and config.scope == "prompt":
        raise EmosteerError(f"decay={config.decay}: it weakens what is done to generated tokens, which scope=prompt leaves alone")


def _check_instruction(config: Config) -> None:
    if config.controls.prompting and not config.controls.instruction.strip():
        raise EmosteerError("controls.instruction is empty: say what the model shall feel, or set controls.prompting=false")


def _check_tracking(tracking: TrackingConfig) -> None:
    """W&B refuses such names, too late to be of use."""
    for key, name in (("project", tracking.project), ("entity", tracking.entity)):
        if name is not None and (not name.strip() or len(name) > LONGEST_PROJECT or set(name) & set(NOT_IN_PROJECTS)):
            raise EmosteerError(f"tracking.{key}={name}: at most {LONGEST_PROJECT} characters, none of {' '.join(NOT_IN_PROJECTS)}")
    # A reference to another key may bring anything, whatever the schema says.
    if not isinstance(tracking.tags, list) or not all(isinstance(tag, str) for tag in tracking.tags):
        raise EmosteerError(f"tracking.tags={repr(tracking.tags)[:60]}: give a list of texts")
    for tag in tracking.tags:
        if not 1 <= len(tag) <= LONGEST_TAG:
            raise EmosteerError(f"tracking.tags={tag[:LONGEST_TAG]}: a tag has 1 to {LONGEST_TAG} characters")


def check_count(key: str, number: int, least: int = 1, most: int = MOST) -> None:
    """Raise EmosteerError for a number of things that is out of range."""
    if number < least:
        raise EmosteerError(f"{key}={number}: give a whole number of at least {least}")
    if number > most:
        raise EmosteerError(f"{key}={number}: give a whole number of at most {most:,}")


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


def _check_vector_method(method: str) -> None:
    if method not in VECTOR_METHODS and "." not in method:
        raise EmosteerError(
            f"vector.method={method}: choose one of {', '.join(VECTOR_METHODS)}, or give the dotted path of a function of yours"
        )


def weighed(key: str, value: Any) -> dict[str, float]:
    """The names that `vector.plus` or `vector.without` gives, sorted, and their weights (1 where it gives none).

    Raises:
        EmosteerError: no name, one that is given twice, or a weight that is 0 or not finite.
    """
    plain: Any = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if plain is None:
        return {}
    names: list[Any] = list(plain) if isinstance(plain, list | tuple | Mapping) else [plain]
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise EmosteerError(f"{key}={value}: give the name of an emotion pair, a list of names, or {{name: weight}}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise EmosteerError(f"{key}={value}: {twice[0]} stands there twice; give it once")
    weights: dict[str, Any] = dict(plain) if isinstance(plain, Mapping) else dict.fromkeys(names, 1.0)
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or not weight:
            raise EmosteerError(f"{key}: the weight of {name} is {weight}; give a finite number other than 0, such as 0.5")
    return {name: float(weights[name]) for name in sorted(names)}


def _check_parts(vector: VectorConfig) -> None:
    plus, without = weighed("vector.plus", vector.plus), weighed("vector.without", vector.without)
    if isinstance(vector.without, Mapping) or OmegaConf.is_dict(vector.without):
        raise EmosteerError(f"vector.without={vector.without}: what is taken out has no weight; give a name or a list of names")
    if both := sorted(set(plus) & set(without)):
        raise EmosteerError(f"vector.plus and vector.without both name {both[0]}: it would be added and taken out; leave one")
    if (plus or without) and vector.method == "random":
        raise EmosteerError("vector.plus and vector.without put emotions together: vector.method=random has none; leave them empty")


@lru_cache(maxsize=16)
def _are_shipped(scorers: str) -> bool:
    """Whether all scorers of a configuration, which is given as JSON, are emosteer's own, and measure nothing but `METRICS`.

    What a classifier or judge measures, its options say. Raises EmosteerError for a wrong one.
    """
    found = find_scorers(json.loads(scorers))
    return all(scorer.target.startswith(OWN_SCORERS) and getattr(scorer.function, "pin", None) is None for scorer in found)


def _measured(config: Config) -> list[str]:
    """What the shipped scorers measure, those included that the configuration drops; `kl` has to be asked for."""
    has_kl = any(entry.get("_target_", "").endswith(".divergence.kl") for entry in config.scorers.values())
    return [metric for metric in METRICS if metric != "kl" or has_kl]


def _check_equivalence(margins: Any, measured: Sequence[str] | None) -> None:
    if not isinstance(margins, Mapping):
        raise EmosteerError(f"statistics.equivalence={margins}: give metrics and margins, such as {{first_person: 1.0}}")
    known = ("perplexity_ratio", *(measured or ()))
    for key, margin in margins.items():
        least = 1 if key == "perplexity_ratio" else 0
        if not isinstance(margin, int | float) or not math.isfinite(margin) or margin <= least:
            raise EmosteerError(f"statistics.equivalence.{key}={margin}: give a number above {least}")
        if measured and key not in known:
            raise EmosteerError(
                f"statistics.equivalence.{key}: no scorer measures that{near(key, known)}; choose of {', '.join(known)}"
            )


def _check_objective(config: Config, measured: Sequence[str] | None) -> None:
    objective = config.objective
    if not isinstance(objective.at_most, Mapping):
        raise EmosteerError(f"objective.at_most={objective.at_most}: give columns and limits, such as {{perplexity_ratio: 1.3}}")
    for column, limit in objective.at_most.items():
        if not isinstance(limit, int | float) or not math.isfinite(limit):
            raise EmosteerError(f"objective.at_most.{column}={limit}: give a finite number")
    if measured:
        _check_columns(objective, config.statistics.equivalence, measured)
    if objective.column and "beyond_random" in objective.column and not config.controls.random:
        raise EmosteerError(f"objective.column={objective.column} needs random controls: give controls.random=1 or more")


def _check_columns(objective: ObjectiveConfig, margins: Mapping[str, float], measured: Sequence[str]) -> None:
    known = [*(f"{metric}_{effect}" for metric in measured for effect in EFFECTS), *NUMBERS]
    known += [f"{metric.removesuffix('_ratio')}_p_equivalence" for metric in margins]
    columns = [("objective.column", objective.column), *(("objective.at_most", column) for column in objective.at_most)]
    for key, column in columns:
        if column is not None and column not in known:
            raise EmosteerError(
                f"{key}={column}: results have no such column{near(column, known)}; for example joy_delta, joy_beyond_random, "
                f"perplexity_ratio"
            )


def near(given: str, known: Sequence[str]) -> str:
    """The known word that is most like a given one, as a question in brackets; nothing where none is."""
    found = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f" (did you mean {found[0]}?)" if found else ""


def leaves(container: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a plain container."""
    if isinstance(container, Mapping):
        for name, value in container.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(container, list):
        for value in container:
            yield from leaves(value, key)
    else:
        yield key, container
