"""A sweep's tables, computed from its records alone: results, replies and dose-response trends.

They are views: built anew at any time, on a half-done sweep too, with the same result.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emosteer.errors import Damaged
from emosteer.records.cell import ATTRIBUTION, BASELINE, CELL, CONTROL, Cell
from emosteer.records.store import Store, StoredReply
from emosteer.records.sweep import DONE, PENDING, Sweep
from emosteer.scoring.scorer import Scorer
from emosteer.statistics import dose_response, false_discovery_rate, paired_effects

Floats = NDArray[np.float64]

TREND_METRICS = ("first_person", "sentiment", "perplexity", "duplication")
"""Besides each pair's primary metric."""


@dataclass(frozen=True)
class Scored:
    """A cell's replies with what the scorers said of each."""

    cell: Cell
    record: dict[str, Any]
    replies: list[StoredReply]
    metrics: dict[str, list[float]]
    """Metric -> one value per reply."""

    @cached_property
    def by_prompt(self) -> dict[str, dict[str, float]]:
        """Metric -> prompt id -> mean over its samples (NaN values left out; NaN where all are)."""
        prompt_ids = [reply.prompt_id for reply in self.replies]
        return {metric: prompt_means(prompt_ids, values) for metric, values in self.metrics.items()}

    def matrix(self, metrics: Sequence[str], prompts: Sequence[str]) -> Floats:
        """Per-prompt means [metric, prompt]; NaN where a metric or prompt is missing."""
        missing: dict[str, float] = {}
        return np.array(
            [[self.by_prompt.get(metric, missing).get(prompt, math.nan) for prompt in prompts] for metric in metrics],
            dtype=np.float64,
        ).reshape(len(metrics), len(prompts))


@dataclass
class Tables:
    """What a sweep comes to."""

    results: pd.DataFrame
    """A row per cell and control."""
    replies: pd.DataFrame
    """A row per (cell, prompt, sample), the baseline's rows under the baseline's id."""
    trends: pd.DataFrame
    """A row per (pair, layer, ..., metric): the effect's slope over coefficients."""
    attributions: dict[str, str] = field(default_factory=dict)
    """Attribution id -> pair, of those that are there."""

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
        """The rows of `results` that are controls."""
        return self.results[self.results["is_control"]]


def prompt_means(prompt_ids: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Prompt id -> mean over its samples, of one value per reply (NaN values left out; NaN where all are)."""
    grouped: dict[str, list[float]] = {}
    for prompt, value in zip(prompt_ids, values, strict=True):
        grouped.setdefault(prompt, []).append(value)
    return {prompt: _mean(samples) for prompt, samples in grouped.items()}


def mean_of(matrices: Sequence[Floats]) -> Floats:
    """The mean of matrices, such as those of several controls; NaN values left out, NaN where all are."""
    stacked = np.stack(matrices)
    n = (~np.isnan(stacked)).sum(axis=0)
    return np.where(n > 0, np.nansum(stacked, axis=0) / np.maximum(n, 1), np.nan)


def seed_of(text: str) -> int:
    """Bootstraps are seeded by what they are of (a cell's id), so that a cell's interval does not depend on its neighbours."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def build(sweep: Sweep) -> Tables:
    """All tables of a sweep, from the records that are there now."""
    scorers, settings = sweep.scorers(), sweep.settings()["statistics"]
    cells = [task.cell for task in sweep.tasks()]
    read = {cell.id: one for cell in cells if (one := _scored(sweep.store, cell, scorers)) is not None}
    # Only now: reading puts aside what is damaged, and that has to run again.
    states = {cell.id: sweep.state(cell, scorers) for cell in cells}
    # A cell that failed because of a scorer has its replies and other scores.
    scored = {cell_id: one for cell_id, one in read.items() if states[cell_id] != PENDING}
    metrics = list(dict.fromkeys(metric for one in scored.values() for metric in one.metrics))
    controls: dict[str, list[Scored]] = {}
    for one in scored.values():
        if one.cell.kind == CONTROL:
            controls.setdefault(one.cell.control_key, []).append(one)
    steered = [cell for cell in cells if cell.kind in (CELL, CONTROL)]
    vectors = {key: sweep.store.vector_facts(key) for key in dict.fromkeys(cell.vector_id for cell in steered)}
    rows = [_row(sweep, cell, states[cell.id], vectors[cell.vector_id], scored, controls, metrics, settings) for cell in steered]
    results = _with_q(pd.DataFrame(rows), metrics)
    replies = _replies(sweep.store, scored.values(), metrics)
    attributions = {
        cell.attribution_id: cell.pair.name for cell in cells if cell.kind == ATTRIBUTION and cell.pair and states[cell.id] == DONE
    }
    return Tables(results, replies, _trends(scored, metrics, settings), attributions)


def _scored(store: Store, cell: Cell, scorers: Sequence[Scorer]) -> Scored | None:
    """What there is of a cell; None where it has no replies, or damaged ones."""
    if cell.kind == ATTRIBUTION or (record := store.record(cell)) is None:
        return None
    try:
        replies = store.replies(cell)
    except Damaged:
        return None
    metrics: dict[str, list[float]] = {}
    for scorer in scorers:
        metrics |= store.scores(cell, scorer.key, len(replies)) or {}
    return Scored(cell, record, replies, metrics)


def _row(
    sweep: Sweep,
    cell: Cell,
    state: str,
    vector: dict[str, Any],
    scored: dict[str, Scored],
    controls: dict[str, list[Scored]],
    metrics: Sequence[str],
    settings: dict[str, Any],
) -> dict[str, Any]:
    own, baseline = scored.get(cell.id), scored.get(cell.baseline_id)
    row = _axes(sweep, cell, state, vector, own)
    if own is None or baseline is None:
        return row
    prompts = list(dict.fromkeys(reply.prompt_id for reply in baseline.replies))
    options = {"n_resamples": settings["n_resamples"], "confidence": settings["confidence"]}
    steered, unsteered = own.matrix(metrics, prompts), baseline.matrix(metrics, prompts)
    effects = paired_effects(steered, unsteered, seed=seed_of(cell.id), **options)
    for metric, effect in zip(metrics, effects, strict=True):
        row |= {f"{metric}_{key}": value for key, value in asdict(effect).items()}
    row["perplexity_ratio"] = _ratio(row.get("perplexity_steered"), row.get("perplexity_baseline"))
    # In an order of their own: sums that differ in their last bit rank differently.
    matching = sorted(controls.get(cell.control_key, []), key=lambda control: control.cell.id) if cell.kind == CELL else []
    row["n_controls"] = len(matching)
    if matching:
        random = mean_of([control.matrix(metrics, prompts) for control in matching])
        beyond = paired_effects(steered, random, seed=seed_of(cell.id), **options)
        for metric, effect in zip(metrics, beyond, strict=True):
            row |= {
                f"{metric}_beyond_random": effect.delta,
                f"{metric}_beyond_random_ci_low": effect.ci_low,
                f"{metric}_beyond_random_ci_high": effect.ci_high,
                f"{metric}_beyond_random_p": effect.p,
            }
    return row


def _axes(sweep: Sweep, cell: Cell, state: str, vector: dict[str, Any], own: Scored | None) -> dict[str, Any]:
    """What a row says besides its metrics."""
    record = own.record if own else {}
    resolved, provenance = record.get("resolved", {}), record.get("provenance", {})
    layers = tuple(resolved.get("layers") or cell.layers or ())
    pair = cell.pair if cell.kind == CELL else None
    failure = sweep.failure(cell) or {}
    assert cell.vector is not None
    return {
        "cell_id": cell.id,
        "sweep": sweep.name,
        "is_control": cell.kind == CONTROL,
        "model": cell.model.config.name,
        "dtype": cell.model.config.dtype,
        "pair": pair.name if pair else None,
        "target": pair.target if pair else None,
        "primary": pair.primary if pair else None,
        "vector_id": cell.vector_id,
        "vector_method": cell.vector.method,
        "vector_reading": cell.vector.reading if cell.vector.method != "random" else None,
        "vector_source": cell.vector.source if cell.vector.method != "random" else None,
        "vector_split_half": _at(vector.get("split_half"), layers),
        "vector_auc": _at(vector.get("auc"), layers),
        "site": cell.site,
        "layer": layers[0] if len(layers) == 1 else None,
        "layers": "+".join(map(str, layers)) or cell.layers_text,
        "layer_request": cell.layers_text,
        "coefficient": cell.coefficient,
        "coefficient_unit": cell.coefficient_unit,
        "coefficient_raw": resolved.get("coefficient_raw"),
        "coefficient_fraction": resolved.get("coefficient_fraction"),
        "scope": cell.scope,
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
        "control_key": cell.control_key,
    }


def _with_q(results: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Benjamini-Hochberg over the sweep's cells that are no controls, within each metric; typed and ordered columns."""
    if results.empty:
        return pd.DataFrame(columns=["cell_id", "model", "status", "error", "is_control"]).astype({"is_control": bool})
    results = results.assign(layer=results["layer"].astype("Int64"), attempt=results["attempt"].astype("Int64"))
    cells = ~results["is_control"]
    added: dict[str, pd.Series[float]] = {}
    for name in [m for metric in metrics for m in (f"{metric}_p", f"{metric}_beyond_random_p")]:
        if name in results:
            q = pd.Series(np.nan, index=results.index)
            q[cells] = false_discovery_rate(results.loc[cells, name].to_numpy(dtype=float))
            added[f"{name.removesuffix('_p')}_q"] = q
    results = results.assign(**added)
    columns = [str(column) for column in results]
    first = [column for column in columns if not any(column.startswith(f"{metric}_") for metric in metrics)]
    rest = [column for metric in metrics for column in columns if column.startswith(f"{metric}_")]
    return results[list(dict.fromkeys([*first, *rest]))].copy()


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
            "prompt": [texts[key].get(reply.prompt_id, "") for reply in one.replies],
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
        if one.cell.kind == CELL and one.cell.baseline_id in scored:
            groups.setdefault(_trend_key(one), []).append(one)
    rows = []
    for key, unordered in groups.items():
        members = sorted(unordered, key=lambda member: (member.cell.coefficient, member.cell.id))
        cell, baseline = members[0].cell, scored[members[0].cell.baseline_id]
        prompts = list(dict.fromkeys(reply.prompt_id for reply in baseline.replies))
        wanted = [m for m in dict.fromkeys([cell.pair.primary if cell.pair else "", *TREND_METRICS]) if m in metrics]
        unsteered = baseline.matrix(wanted, prompts)
        deltas = np.stack([member.matrix(wanted, prompts) - unsteered for member in members])
        for i, metric in enumerate(wanted):
            trend = dose_response(
                [member.cell.coefficient for member in members],
                deltas[:, i],
                seed=seed_of(key),
                n_resamples=settings["n_resamples"],
                confidence=settings["confidence"],
            )
            rows.append(json.loads(key) | {"metric": metric, "n_coefficients": len(members), **asdict(trend)})
    if not rows:
        return pd.DataFrame()
    trends = pd.DataFrame(rows)
    trends["q"] = trends.groupby("metric")["p"].transform(lambda p: false_discovery_rate(p.to_numpy(dtype=float)))
    return trends


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
        "layers": "+".join(map(str, one.record["resolved"]["layers"])),
        "coefficient_unit": cell.coefficient_unit,
        "scope": cell.scope,
        "seed": cell.seed,
        "baseline_id": cell.baseline_id,
    }
    return json.dumps(axes, sort_keys=True)


def _at(by_block: Any, layers: tuple[int, ...]) -> float:
    """What a vector's facts say of the one block that is steered; NaN where there are several, or nothing is said."""
    is_told = isinstance(by_block, list) and len(layers) == 1 and layers[0] < len(by_block)
    return float(by_block[layers[0]]) if is_told and by_block[layers[0]] is not None else math.nan


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _ratio(steered: float | None, baseline: float | None) -> float:
    return steered / baseline if steered is not None and baseline else math.nan
