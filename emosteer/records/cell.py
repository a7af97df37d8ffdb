"""A cell: one point of the grid, and the id that its content gives it.

An id covers all that changes the replies, and nothing that cannot: neither tracking, launcher, device and batch size nor
paths and names. Of configuration groups only the differences from their defaults enter, so that a knob added later keeps the old ids.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from emosteer.config import AUTO, AttributionConfig, AutoCoefficientConfig, GenerationConfig, ModelConfig, VectorConfig
from emosteer.records.paths import in_name

ALGORITHM = 1
"""Raised by hand when the code's replies change."""

CELL, CONTROL, PROMPTING, BASELINE, ATTRIBUTION = "cell", "control", "prompting", "baseline", "attribution"
STORIES = "stories"

METRIC_OF_PAIR = {"nrc_words": ("target", "counterpart"), "nrc_score": ("primary",), "projection": ("texts",)}
"""What of a pair an attribution's metric is made of."""

MODEL_KNOBS = ("dtype", "quantization", "blocks", "attention", "mlp", "trust_remote_code")
"""Of a model's configuration: what may change a reply, besides the weights."""


@dataclass(frozen=True)
class ModelSpec:
    """A model as a worker on another machine needs it: how to load it, and the fingerprint to find."""

    config: ModelConfig
    fingerprint: str
    n_blocks: int

    @cached_property
    def key(self) -> str:
        """Tells models apart that have to be loaded apart."""
        return repr(self)

    def identity(self) -> dict[str, Any]:
        """What of the model enters ids."""
        knobs = {key: getattr(self.config, key) for key in MODEL_KNOBS}
        return {"fingerprint": self.fingerprint, **{k: v for k, v in knobs.items() if k == "dtype" or v}}


@dataclass(frozen=True)
class PairSpec:
    """An emotion pair, its texts by their digests in the store."""

    name: str
    target: str
    counterpart: str
    primary: str
    texts: str
    diagnostics: str


@dataclass(frozen=True)
class Part:
    """Another emotion pair, whose vector is added to a cell's or taken out of it."""

    texts: str
    """Digest of its texts."""
    name: str = ""
    """For tables."""
    weight: float = 1.0
    """Of a vector that is added."""


@dataclass(frozen=True)
class VectorSpec:
    """How a cell's vector comes about."""

    method: str
    texts: str = ""
    """Digest of the texts that it is made of; empty for a random direction."""
    seed: int = 0
    """Of a random direction, or of the stories that the model writes."""
    index: int = 0
    """Of a random direction: which one."""
    like: str = ""
    """Of a random direction: the vector id whose lengths it has, where coefficients are raw; else it has unit length."""
    like_method: str = ""
    """How that vector comes about, from the same `texts`."""
    version: int = 1
    """Of a method of the user's own (or, for a random direction, of `like_method`)."""
    reading: str = VectorConfig.reading
    """Which state stands for a text."""
    source: str = VectorConfig.source
    """Where the texts come from: contrastive pairs, or what stands in for them."""
    components: int = VectorConfig.components
    """How many principal components of the neutral texts `neutral_projected` takes out."""
    others: tuple[str, ...] = ()
    """Digests of the other emotions' pairs, for `grand_mean`."""
    plus: tuple[Part, ...] = ()
    """Whose vectors are added, made in the same way."""
    without: tuple[Part, ...] = ()
    """Whose vectors are taken out."""
    shuffled: int = 0
    """As a control: which draw of exchanged labels the texts are; 0 where the labels are the right ones."""


@dataclass(frozen=True)
class AttributionSpec:
    """How the locus is found for a model and pair."""

    diagnostics: str
    """Digest of the diagnostic pairs."""
    config: AttributionConfig


@dataclass(frozen=True)
class StrengthSpec:
    """How the coefficient of a cell is found, and of the controls that have the same."""

    config: AutoCoefficientConfig
    vector: VectorSpec
    """The cell's own, with which it is looked for."""


@dataclass(frozen=True)
class Cell:
    """One unit of work: a cell, one of its controls, prompting for the emotion, the baseline, or an attribution."""

    kind: str
    model: ModelSpec
    seed: int = 0
    prompts: str = ""
    """Digest of the prompts; with `prompts_name` for display."""
    prompts_name: str = ""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    pair: PairSpec | None = None
    vector: VectorSpec | None = None
    neutral: str = ""
    """Digest of the neutral texts behind the residual norms."""
    layers: tuple[int, ...] | None = None
    """Blocks that are steered; None where attribution chooses them."""
    coefficient: float | None = 0.0
    """None where it is found by what it costs."""
    coefficient_unit: str = "fraction"
    across_blocks: str = "each"
    """Whether each of several blocks gets the whole coefficient, or it is split among them."""
    scope: str = "generated"
    site: str = "residual"
    intervention: str = "add"
    decay: float = 1.0
    instruction: str = ""
    """Of prompting: the system message."""
    attribution: AttributionSpec | None = None
    strength: StrengthSpec | None = None
    """How the coefficient is found; None where it is given."""
    negative: bool = False
    """As a control: the coefficient, given or found, has the other sign."""

    @cached_property
    def id(self) -> str:
        """Readable prefix and hash."""
        return f"{in_name(self._prefix())}-{_hash(self._identity())}"

    @cached_property
    def baseline_id(self) -> str:
        """Id of the unsteered replies to the same prompts with the same random numbers."""
        return self.baseline().id

    @cached_property
    def control_key(self) -> str:
        """What a cell shares with its controls: everything but the vector (and its length, where coefficients are raw)."""
        identity = self._identity()
        vector = identity.pop("vector", {})
        identity.pop("kind", None)
        identity.pop("negative", None)
        if self.coefficient_unit == "raw":
            identity["like"] = vector["id"] if self.kind == CELL or self.negative else vector["like"]
        return _hash(identity)

    @cached_property
    def recipe_key(self) -> str:
        """What a cell shares with its controls of exchanged labels alone: `control_key`, the pair, and how the vector is made."""
        assert self.vector is not None

        def unnamed(parts: tuple[Part, ...]) -> tuple[Part, ...]:
            return tuple(dataclasses.replace(part, texts="") for part in parts)

        # Exchanging labels changes the digests of the texts and of what is added.
        recipe = dataclasses.replace(self.vector, texts="", plus=unnamed(self.vector.plus), shuffled=0)
        pair = dataclasses.asdict(self.pair) if self.pair else None
        return _hash({"control": self.control_key, "pair": pair, "recipe": dataclasses.asdict(recipe)})

    @property
    def vector_id(self) -> str:
        """Id of the vector file, which serves every layer and coefficient."""
        assert self.vector is not None
        if self.vector.method == "random":
            prefix = f"random-{self.vector.seed}-{self.vector.index}"
        else:
            prefix = f"{self.pair.name if self.pair else 'vector'}-{self.vector.method}"
        return f"{in_name(prefix)}-{_hash(self._vector_identity())}"

    @property
    def stories_ids(self) -> dict[str, str]:
        """Digest of each set of prompts for stories that the vector needs -> id of the stories; nothing where it needs none."""
        if self.vector is None or self.vector.source != STORIES:
            return {}
        parts = (part.texts for part in (*self.vector.plus, *self.vector.without))
        seed = self.seed if self.vector.like else self.vector.seed
        keys = (self.vector.texts, *parts, *self.vector.others)
        return {key: short_hash([ALGORITHM, self.model.identity(), key, seed]) for key in keys}

    @property
    def attribution_id(self) -> str:
        """Id of the attribution that `layer=auto` asks."""
        assert self.attribution is not None
        return f"{in_name(self.pair.name if self.pair else 'pair')}-{_hash(self._attribution_identity())}"

    @property
    def norms_id(self) -> str:
        """Id of the model's residual norms, as they stand in the cell's vector file."""
        return short_hash([self.model.identity(), self.neutral])

    @property
    def layers_text(self) -> str:
        """As tables show it: `10`, `8+10`, or `auto`."""
        return AUTO if self.layers is None else "+".join(map(str, self.layers))

    @property
    def coefficient_text(self) -> str:
        """As it was asked for: `0.2`, or `auto`."""
        return AUTO if self.coefficient is None else f"{self.coefficient:g}"

    @property
    def strength_id(self) -> str:
        """Id of the coefficient that is found for this cell, or for the one that it is a control of."""
        owner = self.owner()
        return f"{in_name(f'{owner.pair.name if owner.pair else CELL}-L{owner.layers_text}')}-{_hash({'of': owner._identity()})}"

    def owner(self) -> Cell:
        """Of a cell whose coefficient is found, or of its control: the cell for which it is."""
        assert self.strength is not None
        return dataclasses.replace(self, kind=CELL, vector=self.strength.vector, negative=False)

    def baseline(self) -> Cell:
        """The cell of the same replies without steering."""
        return Cell(BASELINE, self.model, self.seed, prompts=self.prompts, prompts_name=self.prompts_name, generation=self.generation)

    def prompting(self, instruction: str) -> Cell:
        """The cell of the same replies without steering, under an instruction; shared by all cells of a pair."""
        return dataclasses.replace(self.baseline(), kind=PROMPTING, pair=self.pair, instruction=instruction)

    def control(self, index: int) -> Cell:
        """This cell with a random direction of the same length; shared by all pairs at a layer and coefficient."""
        assert self.vector is not None
        raw, chosen = self.coefficient_unit == "raw", self.layers is None
        # Where coefficients are raw, all that the own vector is made of tells the control's length.
        own = dataclasses.replace(self.vector, like=self.vector_id, like_method=self.vector.method) if raw else VectorSpec("random")
        return dataclasses.replace(
            self,
            kind=CONTROL,
            vector=dataclasses.replace(own, method="random", seed=self.seed, index=index),
            # It stays where it decides the layer or the length. What finds the strength stays as it is, with the cell's own vector.
            pair=self.pair if chosen or raw or self.strength else None,
            attribution=self.attribution if chosen else None,
        )

    def shuffled(self, index: int, texts: str, plus: tuple[Part, ...] = ()) -> Cell:
        """This cell with a vector from texts whose labels are exchanged, as a control of this pair.

        Args:
            index: which draw, from 0 on.
            texts: their digest.
            plus: the same of what is added.
        """
        assert self.vector is not None
        vector = dataclasses.replace(self.vector, texts=texts, plus=plus, shuffled=index + 1)
        return dataclasses.replace(self, kind=CONTROL, vector=vector)

    def negated(self) -> Cell:
        """This cell with the other sign, as a control of its own."""
        return dataclasses.replace(self, kind=CONTROL, negative=True)

    def like(self) -> Cell:
        """Of a control with raw coefficients: a cell whose vector has the lengths that this one's shall have."""
        assert self.vector is not None
        seed = self.seed if self.vector.source == STORIES else 0
        own = dataclasses.replace(self.vector, method=self.vector.like_method, seed=seed, index=0, like="", like_method="")
        return dataclasses.replace(self, kind=CELL, vector=own)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads back to an equal cell."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Cell:
        """The inverse of `to_json`; keys of a newer version are left out.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: the data is of no cell.
        """
        known = _known(cls, data)
        model = _known(ModelSpec, data["model"])
        known["model"] = ModelSpec(**{**model, "config": ModelConfig(**_known(ModelConfig, model["config"]))})
        known["generation"] = GenerationConfig(**_known(GenerationConfig, data["generation"]))
        known["pair"] = PairSpec(**_known(PairSpec, data["pair"])) if data.get("pair") else None
        known["vector"] = _vector(data["vector"]) if data.get("vector") else None
        if attribution := data.get("attribution"):
            config = AttributionConfig(**_known(AttributionConfig, attribution["config"]))
            known["attribution"] = AttributionSpec(attribution["diagnostics"], config)
        if strength := data.get("strength"):
            looked_for = AutoCoefficientConfig(**_known(AutoCoefficientConfig, strength["config"]))
            known["strength"] = StrengthSpec(looked_for, _vector(strength["vector"]))
        known["layers"] = tuple(data["layers"]) if data.get("layers") is not None else None
        cell = cls(**known)
        cell._check_parts()
        return cell

    def _check_parts(self) -> None:
        """Raise ValueError where a part is missing that a cell of this kind has."""
        is_unsteered = self.kind in (BASELINE, PROMPTING)
        has_vector = self.vector is not None or self.kind == ATTRIBUTION or is_unsteered
        has_layers = self.layers is not None or self.attribution is not None or is_unsteered
        if self.kind not in (CELL, CONTROL, PROMPTING, BASELINE, ATTRIBUTION) or not has_vector or not has_layers:
            raise ValueError(f"this is no cell: {self.kind!r}")
        if self.kind == ATTRIBUTION and self.attribution is None:
            raise ValueError("an attribution without its settings")
        if self.coefficient is None and self.strength is None:
            raise ValueError("neither a coefficient nor how it is found")
        if self.coefficient is not None and not abs(self.coefficient) <= sys.float_info.max:
            raise ValueError(f"coefficient={self.coefficient!r}")

    def _prefix(self) -> str:
        if self.kind == BASELINE:
            return BASELINE
        if self.kind in (ATTRIBUTION, PROMPTING):
            return f"{self.kind}-{self.pair.name if self.pair else 'pair'}"
        assert self.vector is not None
        name = self.pair.name if self.pair and self.kind == CELL else f"random{self.vector.index}"
        if self.vector.shuffled:
            name = f"shuffled{self.vector.shuffled}-{self.pair.name if self.pair else 'pair'}"
        if self.negative:
            name = f"negative-{self.pair.name if self.pair else 'pair'}"
        kind = "" if self.intervention == "add" else f"-{self.intervention}"
        return f"{name}-L{self.layers_text}-c{self.coefficient_text}{kind}"

    def _identity(self) -> dict[str, Any]:
        if self.kind == ATTRIBUTION:
            return self._attribution_identity()
        identity: dict[str, Any] = {
            "algorithm": ALGORITHM,
            "model": self.model.identity(),
            "prompts": self.prompts,
            "generation": _differences(self.generation),
            "seed": self.seed,
        }
        if self.kind == PROMPTING:
            return {"kind": PROMPTING, "instruction": self.instruction, **identity}
        if self.vector is None:
            return {"kind": BASELINE, **identity}
        layers = {"auto": self._attribution_identity(), "blocks": self._auto_blocks()} if self.layers is None else self.layers
        return {
            **identity,
            "vector": {"id": self.vector_id, "like": self.vector.like},
            "layers": layers,
            "coefficient": self._strength_identity() if self.coefficient is None else float(self.coefficient),
            "unit": self.coefficient_unit,
            "scope": self.scope,
            "site": self.site,
            **({"intervention": self.intervention} if self.intervention != "add" else {}),
            **({"decay": self.decay} if self.decay != 1 else {}),
            **({"across_blocks": self.across_blocks} if self.across_blocks != "each" else {}),
            **({"negative": True} if self.negative else {}),
        }

    def _vector_identity(self) -> dict[str, Any]:
        assert self.vector is not None
        return {
            "algorithm": ALGORITHM,
            "model": self.model.identity(),
            "vector": {**_differences(self.vector), **self._parts_identity()},
            "method": self.vector.method,
            "site": self.site,
            "neutral": self.neutral,
        }

    def _strength_identity(self) -> dict[str, Any]:
        assert self.strength is not None
        own = dataclasses.replace(self, vector=self.strength.vector)._vector_identity()
        return {AUTO: _differences(self.strength.config), "of": _hash(own)}

    def _parts_identity(self) -> dict[str, Any]:
        """What is added to the vector and taken out of it, without names."""
        assert self.vector is not None
        plus = {"plus": [[part.texts, float(part.weight)] for part in self.vector.plus]}
        without = {"without": [part.texts for part in self.vector.without]}
        return {key: parts for key, parts in (plus | without).items() if parts}

    def _attribution_identity(self) -> dict[str, Any]:
        assert self.attribution is not None
        # Neither how many blocks are taken of the ranking nor how it is checked changes it.
        config = dataclasses.replace(self.attribution.config, blocks=AttributionConfig.blocks, check=AttributionConfig.check)
        return {
            "kind": ATTRIBUTION,
            "algorithm": ALGORITHM,
            "model": self.model.identity(),
            "diagnostics": self.attribution.diagnostics,
            "attribution": _differences(config),
            **self._metric_identity(),
        }

    def _metric_identity(self) -> dict[str, Any]:
        """What of the pair the attribution's metric hangs on, besides the diagnostic pairs."""
        assert self.attribution is not None
        metric = self.attribution.config.metric
        if self.pair is None or metric not in METRIC_OF_PAIR:
            return {}
        return {"pair": {key: getattr(self.pair, key) for key in METRIC_OF_PAIR[metric]}}

    def _auto_blocks(self) -> int:
        assert self.attribution is not None
        return self.attribution.config.blocks


def _vector(data: dict[str, Any]) -> VectorSpec:
    """The specification of a vector, of plain data."""
    known = _known(VectorSpec, data)
    known["others"] = tuple(known.get("others", ()))
    return VectorSpec(**{**known, **{key: _parts(known.get(key, ())) for key in ("plus", "without")}})


def _differences(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults (all of those without one)."""
    return {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != _default(f)}


def _default(f: dataclasses.Field[Any]) -> Any:
    """A field's default; MISSING, which equals no value, where it has none."""
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def short_hash(data: Any) -> str:
    """A hash of plain data, for keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:10]


def _hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def _parts(data: Iterable[dict[str, Any]]) -> tuple[Part, ...]:
    return tuple(Part(**_known(Part, one)) for one in data)


def _known(kind: type, data: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {key: value for key, value in data.items() if key in names}
