"""What is left of a cell's primary effect where its lexicon may have been misled: by one repeated word, or by a negation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emosteer.scored import Floats, Scored, prompt_means
from emosteer.scoring.nrc import CATEGORIES, nrc
from emosteer.scoring.text import split_words
from emosteer.statistics import PairedEffect, paired_effects

SHOWN = ("delta", "ci_low", "ci_high", "p")
FLAG, NEGATED = "one_word", "negated"
"""The metrics of `emosteer.scoring.nrc.caveats`."""


def nrc_options(scorers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The options of the NRC scorer in a sweep's settings; None where it has none."""
    found = [dict(entry) for entry in scorers.values() if entry.get("_target_") == f"{nrc.__module__}.{nrc.__name__}"]
    return {key: value for key, value in found[0].items() if key != "_target_"} if found else None


def primary_caveats(
    own: Scored,
    baseline: Scored,
    primary: str | None,
    effect: PairedEffect | None,
    options: Mapping[str, Any] | None,
    seed: int,
    statistics: Mapping[str, Any],
) -> dict[str, Any]:
    """Columns of `results` about a cell's primary metric: its effect without flagged replies, and with negation handled otherwise.

    `n_flagged`, `n_flagged_baseline`: replies whose emotions come from one repeated word. `primary_unflagged_...`: the effect without
    these, on either side, over the `n` prompts that have replies left on both.

    `n_negated`, `n_negated_baseline`: words of the primary metric's category that stand under a negation. `primary_negation_...`: the
    effect where these are left out, or are counted, if `options` says `negation: true`.

    Args:
        own: the cell.
        baseline: its unsteered replies.
        primary: the pair's primary metric; None for a random direction, of which only flags are counted.
        effect: on it, with all replies as they were scored; None where nothing measures it.
        options: of the NRC scorer; None where it was not asked, or another one was.
        seed: of bootstrap and permutations, the one of the cell's other effects.
        statistics: `n_resamples` and `confidence`.

    What cannot be told is NaN, or None for a count: without the flags, or of a primary metric that the lexicon does not measure.
    """
    sides = (own, baseline)
    n_flagged = [sum(flag == 1 for flag in one.metrics[FLAG]) if FLAG in one.metrics else None for one in sides]
    flagged = negated = _Without()
    if effect is not None and primary is not None and None not in n_flagged:
        flagged = _Without.of(sides, [_unflagged(one, primary) for one in sides], effect, seed, statistics)
    if effect is not None and options is not None and primary in CATEGORIES and all(NEGATED in one.metrics for one in sides):
        other = [_other_way(one, primary, options) for one in sides]
        negated = _Without.of(sides, other, effect, seed, statistics)
    return {
        "n_flagged": n_flagged[0],
        "n_flagged_baseline": n_flagged[1],
        "n_negated": negated.steered,
        "n_negated_baseline": negated.baseline,
        "primary_unflagged_n": getattr(flagged.effect, "n", None),
        **{f"primary_unflagged_{key}": getattr(flagged.effect, key, math.nan) for key in SHOWN},
        **{f"primary_negation_{key}": getattr(negated.effect, key, math.nan) for key in SHOWN},
    }


@dataclass(frozen=True)
class _Without:
    """An effect on changed values, and how many replies or words were changed on each side; None where it cannot be told."""

    steered: int | None = None
    baseline: int | None = None
    effect: PairedEffect | None = None

    @classmethod
    def of(
        cls,
        sides: Sequence[Scored],
        changed: Sequence[tuple[list[float], int]],
        effect: PairedEffect,
        seed: int,
        statistics: Mapping[str, Any],
    ) -> _Without:
        (steered, n_steered), (unsteered, n_unsteered) = changed
        if n_steered or n_unsteered:
            prompts = sides[1].prompts
            matrices = [_by_prompt(one, own, prompts) for one, own in zip(sides, (steered, unsteered), strict=True)]
            effect = paired_effects(*matrices, seed=seed, **statistics)[0]
        return cls(n_steered, n_unsteered, effect)


def _unflagged(one: Scored, primary: str) -> tuple[list[float], int]:
    """The metric of each reply, NaN for flagged ones, and their number."""
    flags = one.metrics[FLAG]
    values = [math.nan if flag == 1 else value for value, flag in zip(one.metrics[primary], flags, strict=True)]
    return values, sum(flag == 1 for flag in flags)


def _other_way(one: Scored, primary: str, options: Mapping[str, Any]) -> tuple[list[float], int]:
    """The metric of each reply with negation handled the other way, and the number of words which that is about."""
    values, n_words = list(one.metrics[primary]), 0
    other = {**options, "negation": not options.get("negation", False)}
    # Only replies with negated words can differ, which are few.
    for number in (i for i, rate in enumerate(one.metrics[NEGATED]) if rate > 0):
        text = one.replies[number].reply
        values[number] = nrc([text], **other)[primary][0]
        n_words += round(abs(values[number] - one.metrics[primary][number]) * len(split_words(text)) / 100)
    return values, n_words


def _by_prompt(one: Scored, values: Sequence[float], prompts: Sequence[str]) -> Floats:
    means = prompt_means([reply.prompt_id for reply in one.replies], values)
    return np.array([[means.get(prompt, math.nan) for prompt in prompts]])
