"""A sweep's tables, computed from its records alone: results, replies and dose-response trends.

They are views: built anew at any time, on a half-done sweep too, with the same result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emosteer.agreement import agreement
from emosteer.caveats import nrc_options, primary_caveats
from emosteer.config import StatisticsConfig
from emosteer.predictions import predictions
from emosteer.records.cell import ATTRIBUTION, BASELINE, CELL, CONTROL, PROMPTING, Cell, Part
from emosteer.records.store import Store
from emosteer.records.sweep import DONE, Sweep
from emosteer.scored import Scored, coefficient_of, mean_of, scored_cells, seed_of
from emosteer.statistics import confirm, dose_response, equivalence_p, false_discovery_rate, holm, paired_effects, primary_effect

RANDOM, SHUFFLED, NEGATIVE = "random", "shuffled", "negative"
RIVALS = (RANDOM, SHUFFLED, NEGATIVE, PROMPTING)
"""What cells have to beat, besides the baseline: the ends of `m_beyond_...`."""
READABLE_PERPLEXITY_RATIO = 1.5
READABLE_DUPLICATION = 0.3
"""A cell is readable up to these: perplexity as a multiple of the baseline's, and the share of replies that begin alike."""
TREND_METRICS = ("first_person", "sentiment", "perplexity", "duplication")
"""Besides each pair's primary metric."""


@dataclass
class Tables:
    """What a sweep comes to."""

    results: pd.DataFrame
    """A row per cell and control."""
    replies: pd.DataFrame
    """A row per (cell, prompt, sample, turn), the baseline's rows under the baseline's id."""
    trends: pd.DataFrame
    """A row per (pair, layer, ..., metric): the effect's slope over coefficients."""
    confirmations: pd.DataFrame = field(default_factory=pd.DataFrame)
    """A row per pair, model and baseline: what the best readable cell is worth on prompts that did not choose it."""
    turns: pd.DataFrame = field(default_factory=pd.DataFrame)
    """A row per cell, turn and metric, where dialogues have several replies: the effect on that reply alone."""
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)
    """A row per pair, vector and coefficients: how well attribution predicts at which block steering has an effect."""
    agreement: pd.DataFrame = field(default_factory=pd.DataFrame)
    """A row per pair, baseline and two measures of its emotion: how they correlate over replies."""
    attributions: dict[str, str] = field(default_factory=dict)
    """Attribution id -> pair, of those that are there."""
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Attribution id -> its summary, of the same."""
    states: dict[str, str] = field(default_factory=dict)
    """Id of every task, baselines and attributions too -> done, failed or pending."""
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Id of every cell, control and baseline with replies -> where, when and with what they were made."""

    @cached_property
    def replies_of(self) -> dict[str, pd.DataFrame]:
        """Rows of `replies` by the id of their cell, control or baseline."""
        return {str(key): rows for key, rows in self.replies.groupby("cell_id", sort=False)} if len(self.replies) else {}

    @property
    def baselines(self) -> set[str]:
        """Ids of the baselines whose replies are there."""
        return set(self.replies.loc[self.replies["is_baseline"], "cell_id"]) if len(self.replies) else set()

    @property
    def cells(self) -> pd.DataFrame:
        """The rows of `results` that are no controls."""
        return self.results[~self.results["is_control"]]

    @property
    def replied(self) -> pd.DataFrame:
        """The cells that have replies: those that are done, and those of which a scorer failed."""
        cells = self.cells
        return cells[cells["n_prompts"].notna()] if "n_prompts" in cells else cells

    @property
    def controls(self) -> pd.DataFrame:
        """The rows of `results` that are random directions, as controls."""
        return self.results[self.results["is_control"] & (self.results["vector_method"] == RANDOM)]

    @property
    def negated(self) -> pd.DataFrame:
        """The rows of `results` that are cells with the other sign, as controls."""
        return self.results[self.results["is_control"] & (self.results["vector_method"] == NEGATIVE)]

    @property
    def prompted(self) -> pd.DataFrame:
        """The rows of `results` that are the unsteered model under an instruction."""
        return self.results[self.results["is_control"] & (self.results["vector_method"] == PROMPTING)]


def build(sweep: Sweep) -> Tables:
    """All tables of a sweep, from the records that are there now."""
    whole = sweep.settings()
    settings = {**whole["statistics"], "nrc": nrc_options(whole["scorers"])}
    cells = [task.cell for task in sweep.tasks()]
    states, scored = scored_cells(sweep)
    metrics = list(dict.fromkeys(metric for one in scored.values() for metric in one.metrics))
    rivals = Rivals.among(scored.values())
    shown = [cell for cell in cells if cell.kind in (CELL, CONTROL, PROMPTING)]
    ids = dict.fromkeys(cell.vector_id for cell in shown if cell.vector)
    vectors: dict[str | None, dict[str, Any]] = {None: {}, **{key: sweep.store.vector_facts(key) for key in ids}}
    rows = [
        _row(sweep, cell, states[cell.id], vectors[cell.vector_id if cell.vector else None], scored, rivals, metrics, settings)
        for cell in shown
    ]
    results = _with_q(pd.DataFrame(rows), metrics)
    replies = _replies(sweep.store, scored.values(), metrics)
    attributions = {
        cell.attribution_id: cell.pair.name for cell in cells if cell.kind == ATTRIBUTION and cell.pair and states[cell.id] == DONE
    }
    found = {key: sweep.store.attribution_summary(key) or {} for key in attributions}
    provenance = {
        key: {"finished_at": one.record.get("finished_at"), **(one.record.get("provenance") or {})} for key, one in scored.items()
    }
    return Tables(
        results,
        replies,
        _trends(scored, metrics, settings),
        _confirmations(scored, metrics, settings),
        _turns(scored, metrics, settings),
        predictions(scored, found, settings),
        agreement(scored.values(), settings),
        attributions,
        found,
        states,
        provenance,
    )


def _row(
    sweep: Sweep,
    cell: Cell,
    state: str,
    vector: dict[str, Any],
    scored: dict[str, Scored],
    rivals: Rivals,
    metrics: Sequence[str],
    settings: dict[str, Any],
) -> dict[str, Any]:
    own, baseline = scored.get(cell.id), scored.get(cell.baseline_id)
    row = _axes(sweep, cell, state, vector, own)
    if own is None or baseline is None:
        return row
    prompts = baseline.prompts
    options = {"n_resamples": settings["n_resamples"], "confidence": settings["confidence"]}
    steered, unsteered = own.matrix(metrics, prompts), baseline.matrix(metrics, prompts)
    effects = paired_effects(steered, unsteered, seed=seed_of(cell.id), **options)
    for metric, effect in zip(metrics, effects, strict=True):
        row |= {f"{metric}_{key}": value for key, value in asdict(effect).items()}
    place = metrics.index(row["primary"]) if row["primary"] in metrics else None
    nothing = np.full(len(prompts), math.nan)
    more = primary_effect(
        nothing if place is None else steered[place],
        nothing if place is None else unsteered[place],
        seed=seed_of(cell.id),
        **options,
    )
    row |= {f"primary_{key}": value for key, value in asdict(more).items()}
    row |= primary_caveats(
        own, baseline, row["primary"], None if place is None else effects[place], settings["nrc"], seed_of(cell.id), options
    )
    for key, margin in settings.get("equivalence", StatisticsConfig().equivalence).items():  # old sweeps name no margins
        metric, of_ratio = ("perplexity", True) if key == "perplexity_ratio" else (key, False)
        if metric in metrics:
            place = metrics.index(metric)
            row[f"{metric}_p_equivalence"] = equivalence_p(steered[place], unsteered[place], margin, of_ratio=of_ratio)
    row["perplexity_ratio"] = _ratio(row.get("perplexity_steered"), row.get("perplexity_baseline"))
    row["n_controls"] = len(rivals.of(cell)[RANDOM])
    for name, matching in rivals.of(cell).items():
        if matching:
            rival = mean_of([control.matrix(metrics, prompts) for control in matching])
            beyond = paired_effects(steered, rival, seed=seed_of(cell.id), **options)
            for metric, effect in zip(metrics, beyond, strict=True):
                row |= {
                    f"{metric}_beyond_{name}": effect.delta,
                    f"{metric}_beyond_{name}_ci_low": effect.ci_low,
                    f"{metric}_beyond_{name}_ci_high": effect.ci_high,
                    f"{metric}_beyond_{name}_p": effect.p,
                }
    return row


@dataclass(frozen=True)
class Rivals:
    """What cells have to beat, besides the baseline."""

    random: dict[str, list[Scored]]
    """Random directions, by the key that a cell shares with its controls."""
    shuffled: dict[str, list[Scored]]
    """Vectors from texts with exchanged labels, by what a cell shares with those of its own recipe."""
    negative: dict[tuple[str, str], list[Scored]]
    """Cells with the other sign, by that key and vector."""
    prompting: dict[tuple[str, str], list[Scored]]
    """The unsteered model asked to feel the emotion, by baseline and pair."""

    @classmethod
    def among(cls, scored: Iterable[Scored]) -> Rivals:
        """Those that have replies."""
        found = cls({}, {}, {}, {})
        # In an order of their own: sums that differ in their last bit rank differently.
        for one in sorted(scored, key=lambda one: one.cell.id):
            cell = one.cell
            if cell.kind == PROMPTING:
                found.prompting.setdefault((cell.baseline_id, _pair_name(cell)), []).append(one)
            elif cell.kind == CONTROL and cell.negative:
                found.negative.setdefault((cell.control_key, cell.vector_id), []).append(one)
            elif cell.kind == CONTROL and cell.vector and cell.vector.shuffled:
                found.shuffled.setdefault(cell.recipe_key, []).append(one)
            elif cell.kind == CONTROL:
                found.random.setdefault(cell.control_key, []).append(one)
        return found

    def of(self, cell: Cell) -> dict[str, list[Scored]]:
        """A cell's rivals by their kind; a control has none."""
        if cell.kind != CELL:
            return {rival: [] for rival in RIVALS}
        return {
            RANDOM: self.random.get(cell.control_key, []),
            SHUFFLED: self.shuffled.get(cell.recipe_key, []),
            NEGATIVE: self.negative.get((cell.control_key, cell.vector_id), []),
            PROMPTING: self.prompting.get((cell.baseline_id, _pair_name(cell)), []),
        }


def _pair_name(cell: Cell) -> str:
    return cell.pair.name if cell.pair else ""


def _parts_text(parts: Sequence[Part]) -> str:
    """As tables show what a vector is put together of: `love_hate+0.5 trust_disgust`."""
    return "+".join(part.name if part.weight == 1 else f"{part.weight:g} {part.name}" for part in parts)


def _axes(sweep: Sweep, cell: Cell, state: str, vector: dict[str, Any], own: Scored | None) -> dict[str, Any]:
    """What a row says besides its metrics."""
    record = own.record if own else {}
    resolved, provenance = record.get("resolved", {}), record.get("provenance", {})
    layers = tuple(resolved.get("layers") or cell.layers or ())
    is_shuffled = cell.vector is not None and cell.vector.shuffled > 0
    pair = cell.pair if cell.kind in (CELL, PROMPTING) or is_shuffled or cell.negative else None
    failure = sweep.failure(cell) or {}
    steering = (
        {
            "vector_id": cell.vector_id,
            "vector_method": NEGATIVE if cell.negative else SHUFFLED if is_shuffled else cell.vector.method,
            "vector_reading": cell.vector.reading if cell.vector.method != RANDOM else None,
            "vector_source": cell.vector.source if cell.vector.method != RANDOM else None,
            "vector_plus": _parts_text(cell.vector.plus) if cell.vector.method != RANDOM else None,
            "vector_without": _parts_text(cell.vector.without) if cell.vector.method != RANDOM else None,
            "vector_split_half": _at(vector.get("split_half"), layers),
            "vector_auc": _at(vector.get("auc"), layers),
            "site": cell.site,
            "layer": layers[0] if len(layers) == 1 else None,
            "layers": "+".join(map(str, layers)) or cell.layers_text,
            "layer_request": cell.layers_text,
            "coefficient": coefficient_of(cell, record),
            "coefficient_request": cell.coefficient_text,
            "coefficient_unit": cell.coefficient_unit,
            "coefficient_raw": resolved.get("coefficient_raw"),
            "coefficient_fraction": resolved.get("coefficient_fraction"),
            "across_blocks": cell.across_blocks,
            "scope": cell.scope,
            "intervention": cell.intervention,
            "decay": cell.decay,
            **_auto(cell, resolved),
        }
        if cell.vector
        else {"vector_method": PROMPTING}
    )
    return {
        "cell_id": cell.id,
        "sweep": sweep.name,
        "is_control": cell.kind != CELL,
        "model": cell.model.config.name,
        "dtype": cell.model.config.dtype,
        "pair": pair.name if pair else None,
        "target": pair.target if pair else None,
        "primary": pair.primary if pair else None,
        **steering,
        "seed": cell.seed,
        "prompts": cell.prompts_name,
        "n_prompts": record.get("n_prompts"),
        **asdict(cell.generation),
        "n_tokens": record.get("n_tokens"),
        "status": state,
        "error": failure.get("message") if state != DONE else None,
        "attempt": provenance.get("attempt", failure.get("attempt")),
        "seconds": provenance.get("seconds"),
        "baseline_id": cell.baseline_id,
        "control_key": cell.control_key if cell.vector else None,
    }


def _auto(cell: Cell, resolved: dict[str, Any]) -> dict[str, Any]:
    """What was looked for where the coefficient is `auto`, and what was found."""
    config = cell.strength.config if cell.strength else None
    found = resolved.get("found") or {}
    return {
        "auto_metric": config.metric if config else None,
        "auto_target": config.target if config else math.nan,
        "auto_cost": found.get("cost", math.nan),
        "auto_status": found.get("status"),
        "auto_steps": len(found["steps"]) if found else math.nan,
    }


def _with_q(results: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Families of tests, a metric over the sweep's cells that are no controls: q and, of primary metrics, Holm's p; typed columns."""
    if results.empty:
        return pd.DataFrame(columns=["cell_id", "model", "status", "error", "is_control", "vector_method"]).astype(
            {"is_control": bool}
        )
    results = results.assign(layer=results["layer"].astype("Int64"), attempt=results["attempt"].astype("Int64"))
    cells = ~results["is_control"]
    added: dict[str, pd.Series[float]] = {}
    for name in [m for metric in metrics for m in (f"{metric}_p", *(f"{metric}_beyond_{rival}_p" for rival in RIVALS))]:
        if name in results:
            q = pd.Series(np.nan, index=results.index)
            q[cells] = false_discovery_rate(results.loc[cells, name].to_numpy(dtype=float))
            added[f"{name.removesuffix('_p')}_q"] = q
    if "primary_p_t" in results:
        added["primary_p_holm"] = _primary_holm(results, cells)
    # Not column by column, which pandas warns of where there are a hundred.
    results = pd.concat([results, pd.DataFrame(added, index=results.index)], axis=1)
    columns = [str(column) for column in results]
    first = [column for column in columns if not any(column.startswith(f"{metric}_") for metric in metrics)]
    rest = [column for metric in metrics for column in columns if column.startswith(f"{metric}_")]
    return results[list(dict.fromkeys([*first, *rest]))].copy()


def _primary_holm(results: pd.DataFrame, cells: pd.Series[bool]) -> pd.Series[float]:
    """Holm's p of each cell's primary metric, in the family that its q is of: that metric in all cells, primary there or not."""
    found = pd.Series(np.nan, index=results.index)
    for metric in results.loc[cells, "primary"].dropna().unique():
        if f"{metric}_p" in results:
            of_metric = pd.Series(holm(results.loc[cells, f"{metric}_p"].to_numpy(dtype=float)), index=results.index[cells])
            declared = cells & (results["primary"] == metric)
            found[declared] = of_metric[declared]
    return found


def _replies(store: Store, scored: Iterable[Scored], metrics: Sequence[str]) -> pd.DataFrame:
    texts: dict[str, dict[str, str]] = {}
    frames = []
    for one in scored:
        key = one.cell.prompts
        if key not in texts:
            texts[key] = {prompt.id: prompt.text for prompt in store.prompts(key)}
        columns: dict[str, Any] = {
            "cell_id": one.cell.id,
            "prompt_id": [reply.prompt_id for reply in one.replies],
            "sample": [reply.sample for reply in one.replies],
            "turn": [reply.turn for reply in one.replies],
            "prompt": [reply.said or texts[key].get(reply.prompt_id, "") for reply in one.replies],
            "reply": [reply.reply for reply in one.replies],
            "is_baseline": one.cell.kind == BASELINE,
            "n_tokens": [len(reply.tokens) for reply in one.replies],
        }
        missing = [math.nan] * len(one.replies)
        frames.append(pd.DataFrame(columns | {metric: one.metrics.get(metric, missing) for metric in metrics}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _trends(scored: dict[str, Scored], metrics: Sequence[str], settings: dict[str, Any]) -> pd.DataFrame:
    groups: dict[str, list[Scored]] = {}
    for one in scored.values():
        # A slope goes through the origin, where only an addition does nothing; and over doses that the replies did not choose.
        is_dose = one.cell.intervention == "add" and one.cell.coefficient is not None
        if one.cell.kind == CELL and is_dose and one.cell.baseline_id in scored:
            groups.setdefault(_trend_key(one), []).append(one)
    rows = []
    for key, unordered in groups.items():
        members = sorted(unordered, key=lambda member: (member.coefficient, member.cell.id))
        cell, baseline = members[0].cell, scored[members[0].cell.baseline_id]
        prompts = baseline.prompts
        primary = cell.pair.primary if cell.pair else ""
        wanted = [m for m in dict.fromkeys([primary, *TREND_METRICS]) if m in metrics]
        unsteered = baseline.matrix(wanted, prompts)
        deltas = np.stack([member.matrix(wanted, prompts) - unsteered for member in members])
        for i, metric in enumerate(wanted):
            trend = dose_response(
                [member.coefficient for member in members],
                deltas[:, i],
                seed=seed_of(key),
                n_resamples=settings["n_resamples"],
                confidence=settings["confidence"],
            )
            rows.append(
                json.loads(key) | {"metric": metric, "is_primary": metric == primary, "n_coefficients": len(members), **asdict(trend)}
            )
    if not rows:
        return pd.DataFrame()
    trends = pd.DataFrame(rows)
    trends["q"] = trends.groupby("metric")["p"].transform(lambda p: false_discovery_rate(p.to_numpy(dtype=float)))
    return trends


def _confirmations(scored: dict[str, Scored], metrics: Sequence[str], settings: dict[str, Any]) -> pd.DataFrame:
    groups: dict[tuple[str, str, str], list[Scored]] = {}
    for one in scored.values():
        pair = one.cell.pair
        if one.cell.kind == CELL and pair and pair.primary in metrics and one.cell.baseline_id in scored:
            groups.setdefault((pair.name, pair.primary, one.cell.baseline_id), []).append(one)
    rows = []
    for (pair_name, primary, baseline_id), unordered in sorted(groups.items()):
        # Of cells that rise equally the one with the last id is chosen, as for the summary.
        members = sorted(unordered, key=lambda member: member.cell.id, reverse=True)
        baseline, config = scored[baseline_id], members[0].cell.model.config
        unsteered = baseline.matrix([primary], baseline.prompts)
        found = confirm(
            np.concatenate([member.matrix([primary], baseline.prompts) - unsteered for member in members]),
            _readability(members, baseline, metrics),
            seed=seed_of(f"{pair_name} {primary} {baseline_id}"),
            confidence=settings["confidence"],
        )
        numbers = asdict(found)
        best = None if (winner := numbers.pop("winner")) is None else members[winner]
        rows.append(
            {"model": config.name, "dtype": config.dtype, "pair": pair_name, "primary": primary}
            | {"prompts": baseline.cell.prompts_name, "baseline_id": baseline_id}
            | {"cell_id": best.cell.id if best else None, "layers": _layers(best) if best else None}
            | {"coefficient": best.coefficient if best else math.nan}
            | numbers
        )
    return pd.DataFrame(rows)


def _turns(scored: dict[str, Scored], metrics: Sequence[str], settings: dict[str, Any]) -> pd.DataFrame:
    """The effect of each cell of dialogues on each of their replies."""
    rows = []
    for own in scored.values():
        pair, n_turns = own.cell.pair, 1 + max((reply.turn for reply in own.replies), default=0)
        if own.cell.kind != CELL or pair is None or n_turns == 1 or own.cell.baseline_id not in scored:
            continue
        baseline = scored[own.cell.baseline_id]
        wanted = [metric for metric in dict.fromkeys([pair.primary, *TREND_METRICS]) if metric in metrics]
        axes = {"pair": pair.name, "layers": _layers(own), "coefficient": own.cell.coefficient}
        for turn in range(n_turns):
            effects = paired_effects(
                *(one.at(turn).matrix(wanted, baseline.prompts) for one in (own, baseline)),
                seed=seed_of(f"{own.cell.id} turn {turn}"),
                n_resamples=settings["n_resamples"],
                confidence=settings["confidence"],
            )
            for metric, effect in zip(wanted, effects, strict=True):
                rows.append(
                    {"cell_id": own.cell.id, **axes, "turn": turn, "metric": metric, "is_primary": metric == pair.primary}
                    | asdict(effect)
                )
    return pd.DataFrame(rows)


def _readability(
    members: Sequence[Scored], baseline: Scored, metrics: Sequence[str]
) -> Callable[[NDArray[np.bool_]], NDArray[np.bool_]]:
    """Which prompts count, as flags `[prompt]` -> which members are readable on them, as flags `[member]`."""
    before = baseline.matrix(["perplexity"], baseline.prompts)
    perplexities, duplications = (
        np.concatenate([member.matrix([metric], baseline.prompts) for member in members]) for metric in ("perplexity", "duplication")
    )
    duplications[:, np.isnan(baseline.matrix(["duplication"], baseline.prompts)[0])] = math.nan
    both = ~np.isnan(perplexities) & ~np.isnan(before)

    def is_readable(prompts: NDArray[np.bool_]) -> NDArray[np.bool_]:
        counted = both & prompts
        limits = READABLE_PERPLEXITY_RATIO * np.where(counted, before, 0.0).sum(axis=1)
        is_likely = counted.any(axis=1) & (np.where(counted, perplexities, 0.0).sum(axis=1) <= limits)
        alike = mean_of([np.where(prompts, duplications, math.nan)[:, i] for i in range(duplications.shape[1])])
        is_varied = np.asarray(alike <= READABLE_DUPLICATION)
        # A scorer that is switched off says nothing against a cell.
        return (is_likely | ("perplexity" not in metrics)) & (is_varied | ("duplication" not in metrics))

    return is_readable


def _layers(one: Scored) -> str:
    return "+".join(map(str, one.record["resolved"]["layers"]))


def _trend_key(one: Scored) -> str:
    """All axes of a cell but its coefficient, as JSON."""
    cell = one.cell
    assert cell.vector is not None
    axes = {
        "model": cell.model.config.name,
        "dtype": cell.model.config.dtype,
        "pair": cell.pair.name if cell.pair else None,
        "vector_id": cell.vector_id,
        "site": cell.site,
        "layers": _layers(one),
        "coefficient_unit": cell.coefficient_unit,
        "across_blocks": cell.across_blocks,
        "scope": cell.scope,
        "decay": cell.decay,
        "seed": cell.seed,
        "baseline_id": cell.baseline_id,
    }
    return json.dumps(axes, sort_keys=True)


def _at(by_block: Any, layers: tuple[int, ...]) -> float:
    """What a vector's facts say of the one block that is steered; NaN where there are several, or nothing is said."""
    is_told = isinstance(by_block, list) and len(layers) == 1 and layers[0] < len(by_block)
    return float(by_block[layers[0]]) if is_told and by_block[layers[0]] is not None else math.nan


def _ratio(steered: float | None, baseline: float | None) -> float:
    return steered / baseline if steered is not None and baseline else math.nan
