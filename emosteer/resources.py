"""What a worker needs beside the model, from the store, or computed and put there: norms, vectors, attributions."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from emosteer.attribution import Attribution, Case, attribute, prepare
from emosteer.attribution.check import Agreement, check
from emosteer.attribution.scores import DENOISING
from emosteer.datasets import digest
from emosteer.engine import Engine, requests_for
from emosteer.errors import EmosteerError
from emosteer.figures import attribution_heatmap
from emosteer.measures import Explained, explained
from emosteer.model.batches import Progress
from emosteer.model.language_model import LanguageModel
from emosteer.records.cell import STORIES, Cell, VectorSpec
from emosteer.records.claims import Claims
from emosteer.records.publish import publish_directory, publish_file, publish_json, put_aside, read_bytes, read_json
from emosteer.records.store import Resolved, Store
from emosteer.sources import story_prompts
from emosteer.steering import Steering, steering_along
from emosteer.stories import Stories, write_stories
from emosteer.strength import FOUND, OUT_OF_REACH, Costs, Strength, find_strength
from emosteer.vectors import EmotionVector, Quality, Reader, checked, emotion_vector, random_direction, residual_norms

log = logging.getLogger(__name__)

DISAGREEMENT = 0.5
"""A split-half cosine below which a direction is told to be unsure."""
FACTS = "emosteer"
"""Under which key a vector file's metadata say, as JSON, what its `.json` says too."""


class Resources:
    """The norms, vectors and attributions of one loaded model.

    Args:
        store: where they are kept.
        claims: so that two workers do not compute the same one.
        model: the model that they belong to.
        sites: at which vectors will be asked for: texts are read once for all of them.
        on_stage: told what is being made, and how far that is: `attribution patching of joy_sadness: 12 of 28 pairs`. What stands
            before the colon stays the same until the next thing is made.
        new_engine: makes an engine of the model, for stories that vectors may be made of: what it generates is in no cell's account.
        engine: replies with the model, where a coefficient is looked for; None for one of its own.
    """

    def __init__(
        self,
        store: Store,
        claims: Claims,
        model: LanguageModel,
        sites: Iterable[str] = (),
        on_stage: Callable[[str], None] = lambda text: None,
        new_engine: Callable[[LanguageModel], Engine] = Engine,
        engine: Engine | None = None,
    ) -> None:
        self.store, self.claims, self.model = store, claims, model
        self._engine = engine
        self.on_stage = on_stage
        self.new_engine = new_engine
        self._reader = Reader(model, [site for site in dict.fromkeys(sites) if model.anatomy.has(site)])
        self._vectors: dict[str, EmotionVector] = {}
        self._stories: dict[str, Stories] = {}
        self._attributions: dict[str, Attribution] = {}
        self._strengths: dict[str, Strength] = {}

    def steering(self, cell: Cell) -> tuple[Steering | None, Resolved]:
        """What a cell does to its rows, with its layers and lengths resolved."""
        if cell.vector is None:
            return None, Resolved()
        found = self.strength(cell) if cell.coefficient is None else None
        coefficient = cell.coefficient if found is None else found.coefficient
        assert coefficient is not None
        coefficient = -coefficient if cell.negative else coefficient
        vector, layers, unit = self.vector(cell), self._layers(cell), cell.coefficient_unit
        steering = self._steering(cell, coefficient)
        resolved = Resolved(layers, found=None if found is None else asdict(found))
        if len(layers) > 1:
            return steering, resolved
        return steering, replace(
            resolved,
            coefficient_raw=vector.raw_coefficient(layers[0], coefficient, unit),
            coefficient_fraction=vector.fraction(layers[0], coefficient, unit),
        )

    def _layers(self, cell: Cell) -> tuple[int, ...]:
        return cell.layers if cell.layers is not None else self.chosen_blocks(cell)

    def _steering(self, cell: Cell, coefficient: float) -> Steering:
        """What a cell does with a coefficient."""
        return steering_along(
            self.vector(cell),
            self._layers(cell),
            coefficient,
            cell.coefficient_unit,
            cell.intervention,
            cell.scope,
            cell.decay,
            cell.across_blocks,
        )

    def strength(self, cell: Cell) -> Strength:
        """The coefficient that is found for a cell, or for the one that it is a control of; looked for once, and kept.

        Raises:
            EmosteerError: no coefficient gives a reply to measure.
        """
        key = cell.strength_id
        if key not in self._strengths:
            self._strengths[key] = self.store.obtain(
                key, self.claims, lambda: self._read_strength(key), lambda: self._find_strength(cell.owner())
            )
        return self._strengths[key]

    def chosen_blocks(self, cell: Cell) -> tuple[int, ...]:
        """The blocks that attribution ranks first for the cell's pair, in ascending order."""
        assert cell.attribution is not None
        return tuple(sorted(self.attribution(cell).ranking()[: cell.attribution.config.blocks]))

    def vector(self, cell: Cell) -> EmotionVector:
        """The cell's vector; raises EmosteerError where it is not finite or has no length."""
        key = cell.vector_id
        if key not in self._vectors:
            self._vectors[key] = self.store.obtain(key, self.claims, lambda: self._read_vector(cell), lambda: self._make_vector(cell))
        return self._vectors[key]

    def residual_norm(self, cell: Cell) -> Tensor:
        """The model's residual norms [block], measured once on the neutral texts; damaged ones are put aside and measured again."""
        path = self.store.paths.residual_norms(cell.norms_id)

        def read() -> Tensor | None:
            try:
                stored = read_json(path)
                if stored is None:
                    return None
                norms = torch.tensor(stored["residual_norm"], dtype=torch.float32)
                reason = _wrong_with_norms(norms, self.model.n_blocks) or _wrong_with_identity(stored["model"], cell)
            except (ValueError, KeyError, TypeError):
                reason = "these are no norms"
            if reason:
                put_aside(path, reason)
                return None
            return norms

        def make() -> None:
            texts = self.store.neutral_texts(cell.neutral)
            norms = residual_norms(self.model, texts, self._telling("residual norms", "texts"))
            if reason := _wrong_with_norms(norms, self.model.n_blocks):
                raise EmosteerError(f"residual norms of {self.model.name}: {reason}; try model.dtype=float32")
            publish_json(path, {"model": cell.model.identity(), "neutral_texts": cell.neutral, "residual_norm": norms.tolist()})

        return self.store.obtain(f"residual_norms-{cell.norms_id}", self.claims, read, make)

    def attribution(self, cell: Cell) -> Attribution:
        """The attribution of the cell's pair on this model, run once and kept."""
        key = cell.attribution_id
        if key not in self._attributions:
            self._attributions[key] = self.store.obtain(
                key, self.claims, lambda: read_attribution(self.store, key), lambda: self._make_attribution(cell)
            )
        return self._attributions[key]

    def _read_vector(self, cell: Cell) -> EmotionVector | None:
        """The stored vector, or None; a damaged one is put aside.

        It is made again and not refused: it lies under an id that says all of how it is made, so that nothing can be lost.
        """
        path = self.store.paths.vector(cell.vector_id)
        if not path.exists():
            return None
        try:
            facts, tensors = _read_tensors(path, self.store.paths.vector_facts(cell.vector_id))
            if reason := _wrong_with_facts(facts, cell):
                raise EmosteerError(reason)
            if formats := {tensor.dtype for tensor in tensors.values()} - {torch.float32}:
                raise EmosteerError(f"it has numbers in {formats.pop()}, not float32")
            directions = torch.stack([tensors[f"block.{layer}"] for layer in range(self.model.n_blocks)])
            return checked(EmotionVector(directions, tensors["residual_norm"], cell.site), self.model.n_blocks, self.model.width)
        except FileNotFoundError:
            return None  # discarded, or put aside by another
        except (SafetensorError, EmosteerError, RuntimeError) as error:
            reason = str(error)
        except KeyError as error:
            reason = f"it has no {error.args[0]}"
        put_aside(path, reason)
        return None

    def _read_strength(self, key: str) -> Strength | None:
        """A coefficient that was found before, or None; a damaged record of one is put aside."""
        path = self.store.paths.strength(key)
        try:
            stored = read_json(path)
            if stored is None:
                return None
            steps = tuple((float(at), None if cost is None else float(cost)) for at, cost in stored["steps"])
            strength = Strength(float(stored["coefficient"]), float(stored["cost"]), str(stored["status"]), steps)
            if stored["id"] == key and strength.coefficient in {at for at, _ in steps}:
                return strength
            reason = "it is of another cell"
        except (ValueError, KeyError, TypeError):
            reason = "this is no coefficient"
        put_aside(path, reason)
        return None

    def _find_strength(self, cell: Cell) -> None:
        """Look for the coefficient of a cell, and keep it."""
        assert cell.strength is not None
        config, started = cell.strength.config, time.perf_counter()
        prompts = self.store.prompts(cell.prompts)[: config.prompts]
        generation = replace(cell.generation, n_samples=1)
        requests = requests_for(self.model, prompts, generation, cell.seed, where=cell.prompts_name)
        self._engine = self._engine or Engine(self.model)
        costs, n_tried = Costs(self._engine, requests, config.metric), 0
        on_progress = self._telling(f"coefficient of {_pair_name(cell)} at block {cell.layers_text}", "steps at most")

        def cost(coefficient: float) -> float:
            nonlocal n_tried
            n_tried += 1
            on_progress(n_tried, config.max_steps)
            return costs(self._steering(cell, coefficient))

        strength = find_strength(cost, config)
        if strength.status != FOUND:
            log.warning(
                "coefficient=auto of %s at block %s: %s; %s %.3g instead of %g at %g, the %s of %d that were tried",
                *(_pair_name(cell), cell.layers_text, strength.status, config.metric, strength.cost, config.target),
                *(strength.coefficient, "largest" if strength.status == OUT_OF_REACH else "nearest", len(strength.steps)),
            )
        facts = {
            "id": cell.strength_id,
            "model": cell.model.identity(),
            "vector_id": cell.vector_id,
            "asked": asdict(config),
            "prompt_ids": [prompt.id for prompt in prompts],
            **asdict(strength),
            "seconds": round(time.perf_counter() - started, 3),
        }
        publish_json(self.store.paths.strength(cell.strength_id), facts)

    def _make_vector(self, cell: Cell) -> None:
        assert cell.vector is not None
        started = time.perf_counter()
        qualities: list[Quality] = []
        vector = self._compute_vector(cell, qualities.append)
        key = cell.vector_id
        tensors = {f"block.{layer}": direction.contiguous() for layer, direction in enumerate(vector.directions)}
        facts: dict[str, Any] = {
            "id": key,
            "model": cell.model.identity(),
            "site": cell.site,
            "recipe": asdict(cell.vector),
            "pair": asdict(cell.pair) if cell.pair and cell.vector.method != "random" else None,
            "neutral_texts": cell.neutral,
            "sign": "positive minus negative",
            "seconds": round(time.perf_counter() - started, 3),
        }
        told = _told(qualities[0], cell) if qualities else {}
        if stories := [self._stories[key].facts() | {"id": key} for key in cell.stories_ids.values() if key in self._stories]:
            facts["stories"] = stories
        if qualities and not cell.vector.shuffled:
            _warn_of(key, qualities[0])
        norms = {"norm": vector.directions.norm(dim=1).tolist(), "residual_norm": vector.residual_norm.tolist()}
        publish_json(self.store.paths.vector_facts(key), {**facts, **norms, **told, "cosine_to": self._cosines(cell, vector)})
        whole = {**tensors, "residual_norm": vector.residual_norm}
        publish_file(self.store.paths.vector(key), save(whole, {"site": cell.site, FACTS: json.dumps(facts)}))

    def _cosines(self, cell: Cell, vector: EmotionVector) -> dict[str, list[float]]:
        """Cosine per block with the vectors of other emotions that are there, of this model and made in the same way.

        Others are of one emotion pair each; of a vector that is put together of several, all of them are others.
        """
        assert cell.vector is not None
        found = {}
        alike = ("method", "version", "reading", "source", "components", "shuffled", "seed")
        for key in self.store.vector_ids() if cell.vector.method != "random" else ():
            facts = self.store.vector_facts(key)
            recipe = facts.get("recipe") or {}
            is_composed = bool(cell.vector.plus or cell.vector.without)
            is_another = recipe.get("texts") not in (None, "", None if is_composed else cell.vector.texts)
            if recipe.get("plus") or recipe.get("without"):
                continue
            if not is_another or facts.get("model") != cell.model.identity() or facts.get("site") != cell.site:
                continue
            if any(recipe.get(name, getattr(VectorSpec, name, None)) != getattr(cell.vector, name) for name in alike):
                continue
            try:
                _, tensors = _read_tensors(self.store.paths.vector(key), self.store.paths.vector_facts(key))
                other = torch.stack([tensors[f"block.{layer}"] for layer in range(self.model.n_blocks)])
                found[key] = torch.cosine_similarity(vector.directions, other).tolist()
            except (OSError, SafetensorError, EmosteerError, RuntimeError, KeyError):
                continue  # damaged, or put aside by another: who needs it makes it again
        return found

    def _compute_vector(self, cell: Cell, told: Callable[[Quality], None]) -> EmotionVector:
        recipe = cell.vector
        assert recipe is not None
        norms = self.residual_norm(cell)
        if recipe.method != "random":
            load: Any = self._texts_of(cell)
            with self._reader.in_use(self._telling(f"emotion vector of {_pair_name(cell)}", "texts")):
                return emotion_vector(
                    self.model,
                    load(recipe.texts),
                    norms,
                    recipe.method,
                    cell.site,
                    recipe.reading,
                    others=[load(key) for key in recipe.others],
                    neutral=self.store.neutral_texts(cell.neutral),
                    components=recipe.components,
                    plus=[(part.weight, load(part.texts)) for part in recipe.plus],
                    without=[load(part.texts) for part in recipe.without],
                    told=told,
                )
        directions = random_direction(recipe.seed, recipe.index, self.model.n_blocks, self.model.width)
        if recipe.like:
            directions = directions * self.vector(cell.like()).directions.norm(dim=1, keepdim=True)
        return EmotionVector(directions, norms)

    def _texts_of(self, cell: Cell) -> Callable[[str], Any]:
        """From a digest in the recipe of a cell's vector to what is read."""
        assert cell.vector is not None
        if cell.vector.source == STORIES:
            return lambda key: self.stories(cell, key).pairs()
        return self.store.prompts if cell.vector.source == "persona" else self.store.contrastive_pairs

    def stories(self, cell: Cell, prompts: str) -> Stories:
        """The model's own stories for a digest of prompts in the recipe of a cell's vector, written once and kept."""
        key = cell.stories_ids[prompts]
        path = self.store.paths.stories(key)

        def read() -> Stories | None:
            try:
                stored = read_json(path)
                return None if stored is None else Stories.from_json(stored)
            except (ValueError, KeyError, TypeError) as error:
                put_aside(path, str(error))
                return None

        def make() -> None:
            asked = self.store.prompts(prompts)
            target, counterpart = asked[0].category, asked[1].category
            if digest(story_prompts(target, counterpart)) != prompts:
                raise EmosteerError(
                    f"the prompts for stories of {target} and {counterpart} are of another emosteer: plan the sweep anew"
                )
            seed = cell.vector.seed if cell.vector else 0
            telling = self._telling(f"stories of {target} and {counterpart}", "stories")
            written = write_stories(self.new_engine(self.model), target, counterpart, seed, telling)
            publish_json(path, {"id": key, "model": cell.model.identity(), "prompts": prompts, **written.to_json()})

        if key not in self._stories:
            self._stories[key] = self.store.obtain(f"stories-{key}", self.claims, read, make)
        return self._stories[key]

    def _make_attribution(self, cell: Cell) -> None:
        assert cell.attribution is not None
        assert cell.pair is not None
        started = time.perf_counter()
        what = self._explained(cell)
        cases = prepare(self.model, self.store.diagnostic_pairs(cell.attribution.diagnostics), what.measure)
        on_progress = self._telling(f"attribution patching of {_pair_name(cell)}", "pairs")
        config = cell.attribution.config
        found = attribute(
            self.model,
            cases,
            config.steps,
            on_progress,
            direction=config.direction,
            method=config.method,
            neurons=config.neurons,
        )
        key = cell.attribution_id
        seconds = time.perf_counter() - started
        checked_by = self._check(cell, cases, found)
        certainty = found.certainty()
        scores = save(found.tensors())
        summary = {
            "id": key,
            "scores_sha256": hashlib.sha256(scores).hexdigest(),
            "model": self.model.name,
            "pair": cell.pair.name,
            "method": config.method,
            "direction": found.direction,
            "metric": what.text,
            "unit": what.unit,
            "position": "the last prompt position, unless a score's name says otherwise",
            "pair_ids": list(found.pair_ids),
            "aligned_ids": list(found.aligned_ids),
            "n_dropped": found.n_dropped,
            "metric_clean": float(found.metric_clean.mean()),
            "metric_corrupted": float(found.metric_corrupted.mean()),
            "ranking": found.ranking(),
            "block_scores": found.block_scores().tolist(),
            "block_scores_low": certainty.low.tolist(),
            "block_scores_high": certainty.high.tolist(),
            "first_share": certainty.first_share.tolist(),
            "by_role": {site: {role: one.mean(0).tolist() for role, one in own.items()} for site, own in found.by_role().items()},
            "no_heads": found.no_heads,
            "neurons": {
                at: [[*place, score] for place, score in zip(own.places, own.scores.mean(0).tolist(), strict=True)]
                for at, own in (("last", found.neurons_last), ("all", found.neurons_everywhere))
                if own is not None
            },
            "check": [agreement.to_json() for agreement in checked_by],
            "seconds": round(seconds, 3),
            "check_seconds": round(time.perf_counter() - started - seconds, 3),
        }

        def write(directory: Path) -> None:
            paths = self.store.paths
            (directory / paths.attribution_scores(key).name).write_bytes(scores)
            publish_json(directory / paths.attribution_summary(key).name, summary)
            attribution_heatmap(found, f"{_pair_name(cell)} on {self.model.name}", what.text).savefig(
                directory / paths.attribution_heatmap(key).name, dpi=150
            )

        publish_directory(self.store.paths.attribution(key), write)

    def _explained(self, cell: Cell) -> Explained:
        assert cell.attribution is not None
        assert cell.pair is not None
        pair, metric = cell.pair, cell.attribution.config.metric
        texts = self.store.contrastive_pairs(pair.texts) if metric == "projection" else []
        return explained(metric, self.model, pair.target, pair.counterpart, pair.primary, texts)

    def _check(self, cell: Cell, cases: Sequence[Case], found: Attribution) -> list[Agreement]:
        """Compare with exact patching; what agrees too little is told."""
        assert cell.attribution is not None
        if not cell.attribution.config.check:
            return []
        on_progress = self._telling(f"exact patching of {_pair_name(cell)}", "scores")
        agreements = check(self.model, cases, found, cell.attribution.config.check, on_progress)
        for low in (agreement for agreement in agreements if agreement.is_low):
            log.warning("attribution of %s disagrees with exact patching (%s): trust exact scores there", _pair_name(cell), low)
        return agreements

    def _telling(self, what: str, of: str) -> Progress:
        """Say now that it begins, and later how far it is."""
        self.on_stage(what)
        return lambda done, total: self.on_stage(f"{what}: {done} of {total} {of}")


def _told(quality: Quality, cell: Cell) -> dict[str, Any]:
    """What a vector's file says of how sure it is; of the vectors that it is put together of, by their names."""
    told = asdict(quality)
    cosines = told.pop("cosine_to_parts")
    if cosines is None or cell.vector is None:
        return told
    names = [_pair_name(cell), *(part.name for part in (*cell.vector.plus, *cell.vector.without))]
    return {**told, "cosine_to_parts": dict(zip(names, cosines, strict=True))}


def _warn_of(vector_id: str, quality: Quality) -> None:
    """Tell of a direction that hangs on which pairs it is made of."""
    if quality.split_half is None:
        log.info("vector %s is of %d pair(s): how sure its direction is cannot be computed", vector_id, quality.n_pairs)
    elif bad := [cosine for cosine in quality.split_half if cosine is not None and cosine < DISAGREEMENT]:
        log.warning(
            "vector %s: two halves of its %d pairs give directions of a cosine below %g at %d of %d blocks (the least is %.2f); "
            "more pairs, or pairs that differ in the emotion alone, would make it surer",
            *(vector_id, quality.n_pairs, DISAGREEMENT, len(bad), len(quality.split_half), min(bad)),
        )


def _pair_name(cell: Cell) -> str:
    return cell.pair.name if cell.pair else "pair"


def read_attribution(store: Store, key: str) -> Attribution | None:
    """A stored attribution, or None; a damaged one is put aside."""
    summary, scores = store.attribution_summary(key), read_bytes(store.paths.attribution_scores(key))
    if summary is None or scores is None:
        return None
    try:
        ids = tuple(summary["pair_ids"]), tuple(summary["aligned_ids"])
        return Attribution.from_tensors(load(scores), *ids, summary.get("no_heads", ""), summary.get("direction", DENOISING))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        put_aside(store.paths.attribution(key), f"{type(error).__name__}: {error}")
        return None


def _read_tensors(path: Path, facts_path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a vector file says of itself, and its tensors. Files of before the metadata are described by the `.json` beside them.

    Raises:
        SafetensorError: truncated, or no file of that format.
        EmosteerError: nothing says whose it is.
    """
    # Not by safetensors' own map of the file into memory: who truncates it later would end this process with a bus error.
    data = path.read_bytes()
    tensors = load(data)
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    try:
        facts = json.loads(metadata[FACTS]) if FACTS in metadata else read_json(facts_path)
        return dict(facts), tensors
    except (ValueError, TypeError):
        raise EmosteerError("nothing says whose vector it is") from None


def _wrong_with_facts(facts: dict[str, Any], cell: Cell) -> str:
    if facts.get("id") != cell.vector_id:
        return f"it is the vector {facts.get('id')}"
    return _wrong_with_identity(facts.get("model"), cell)


def _wrong_with_identity(model: Any, cell: Cell) -> str:
    return "" if model == cell.model.identity() else "it is of another model"


def _wrong_with_norms(norms: Tensor, n_blocks: int) -> str:
    if norms.shape != (n_blocks,):
        return f"it has {norms.numel()} norms for {n_blocks} blocks"
    return "" if bool((torch.isfinite(norms) & (norms > 0)).all()) else "a norm is not a positive number"
