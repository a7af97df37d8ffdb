"""Steered against unsteered replies, from their score tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from emosteer.arguments import configuration, whole
from emosteer.errors import EmosteerError
from emosteer.scored import Floats, mean_of, prompt_means, seed_of
from emosteer.statistics import DEFAULT_RESAMPLES, paired_effects

GENERATED = "emosteer"
"""The key in a score table's `attrs` of how its replies were generated."""
NO_METRICS = ("cell_id", "prompt_id", "sample", "turn", "prompt", "reply", "is_baseline", "n_tokens")
"""Columns of a table of replies that are no metric."""


def compare(
    steered: pd.DataFrame,
    baseline: pd.DataFrame | Sequence[pd.DataFrame],
    *,
    seed: int | str = 0,
    n_resamples: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """The effect of steering on each metric, paired by prompt: a row per metric.

    Columns: n (prompts), baseline, steered, delta (mean difference, in the metric's unit), ci_low and ci_high (its percentile
    bootstrap interval), effect_size (Cohen's d_z), p (Wilcoxon's signed-rank test), p_perm (sign flips). Samples are averaged
    within a prompt first. Sources and edge cases: `emosteer.statistics.paired_effects`. Each p is of a single test: over many
    layers or coefficients let a sweep control the false discovery rate.

    Args:
        steered: what `score` gave, or one cell's rows of a sweep's `replies.parquet`.
        baseline: the same for the unsteered replies. Several tables, such as those of random directions, stand for their mean.
        seed: of the bootstrap and the sign flips; a cell's id gives the interval that its sweep shows.
        n_resamples: of both.
        confidence: of the interval, between 0 and 1.

    Raises:
        EmosteerError: tables that differ in prompts, metrics, seed, generation or model; several cells in one table; a seed,
            number of resamples or confidence out of range.
    """
    others: list[Any] = list(baseline) if isinstance(baseline, list | tuple) else [baseline]
    if not others:
        raise EmosteerError("baseline is empty: give the table of the unsteered replies")
    for table in (steered, *others):
        _check_table(table)
    for other in others:
        _check_paired(steered, other)
    configuration(statistics={"n_resamples": n_resamples, "confidence": confidence})
    metrics, prompts = _metrics(steered), list(dict.fromkeys(others[0]["prompt_id"]))
    effects = paired_effects(
        _matrix(steered, metrics, prompts),
        mean_of([_matrix(other, metrics, prompts) for other in others]),
        seed=seed_of(seed) if isinstance(seed, str) else whole("seed", seed),
        n_resamples=n_resamples,
        confidence=confidence,
    )
    return pd.DataFrame([asdict(effect) for effect in effects], index=pd.Index(metrics, name="metric"))


def _check_table(table: pd.DataFrame) -> None:
    """Refuse what is not the table of one cell's scored replies."""
    if not isinstance(table, pd.DataFrame) or not {"prompt_id", "sample"} <= set(table):
        raise EmosteerError("compare takes tables of scored replies: what score returned, or a cell's rows of replies.parquet")
    if table.duplicated([key for key in ("prompt_id", "sample", "turn") if key in table]).any():
        raise EmosteerError("a table has several replies to one prompt, sample and turn: take the rows of one cell")
    if not _metrics(table):
        raise EmosteerError("a table has no metric: give what score returned")


def _check_paired(steered: pd.DataFrame, other: pd.DataFrame) -> None:
    """Refuse two tables that differ in more than what was done to the model."""
    mine, others = (table.attrs.get(GENERATED, {}) for table in (steered, other))
    differing = [f"{key}: {mine[key]} and {others[key]}" for key in mine if key in others and mine[key] != others[key]]
    if differing:
        raise EmosteerError(f"the replies cannot be paired, they differ in {', '.join(differing)}: generate both alike")
    if set(_metrics(steered)) != set(_metrics(other)):
        raise EmosteerError(
            f"other metrics on each side ({', '.join(_metrics(steered))}; {', '.join(_metrics(other))}): score both alike"
        )
    keys = [key for key in ("prompt_id", "sample", "turn", "prompt") if key in steered and key in other]
    asked = [set(_beginnings(table)[keys].itertuples(index=False, name=None)) for table in (steered, other)]
    if asked[0] != asked[1]:
        raise EmosteerError(
            f"{len(asked[0] ^ asked[1])} replies are to prompts or samples of one side only: reply to the same prompts"
        )


def _beginnings(table: pd.DataFrame) -> pd.DataFrame:
    """The first replies of dialogues: what is said later hangs on what the model replied, where a partner says it."""
    return table[table["turn"] == 0] if "turn" in table else table


def _metrics(table: pd.DataFrame) -> list[str]:
    return [str(column) for column in table.select_dtypes("number") if column not in NO_METRICS]


def _matrix(table: pd.DataFrame, metrics: Sequence[str], prompts: Sequence[str]) -> Floats:
    """Per-prompt means [metric, prompt]."""
    means = [prompt_means(table["prompt_id"].tolist(), table[metric].tolist()) for metric in metrics]
    return np.array([[of_metric[prompt] for prompt in prompts] for of_metric in means], dtype=np.float64)
