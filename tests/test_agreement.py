"""How scorers agree: every number again by other means, from the values themselves."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from made_up_sweep import made_up_cell, random_replies
from scipy import stats

from emosteer.agreement import agreement
from emosteer.records.cell import Cell
from emosteer.records.store import Store
from emosteer.scored import Scored

SETTINGS = {"n_resamples": 499, "confidence": 0.95}
N_PROMPTS = 12


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def scored(store: Store, cell: Cell, seed: int, noise: float = 0.5) -> Scored:
    """Scores that share a signal, in half steps, so that there are ties."""
    chance = np.random.default_rng(seed)
    replies = random_replies(store, cell, seed)
    signal = chance.normal(size=len(replies))

    def measured(sign: float) -> list[float]:
        return [float(v) for v in np.round(2 * (sign * signal + chance.normal(0, noise, len(replies)))) / 2]

    metrics = {"joy": measured(1), "sentiment": measured(1), "words": measured(1), "classifier_joy": measured(-1)}
    return Scored(cell, {}, replies, {**metrics, "classifier_anger": measured(1)})


def sweep_of(store: Store) -> list[Scored]:
    cells = [made_up_cell(store, coefficient=c, n_prompts=N_PROMPTS, n_samples=2) for c in (0.1, 0.2)]
    return [scored(store, cell, seed) for seed, cell in enumerate([*cells, cells[0].baseline()])]


def test_correlations_are_those_of_scipy_over_all_replies(store: Store) -> None:
    members = sweep_of(store)
    found = agreement(members, SETTINGS)

    assert set(zip(found["metric"], found["other"], strict=True)) == {
        ("joy", "sentiment"),
        ("joy", "classifier_joy"),
        ("sentiment", "classifier_joy"),
    }
    for row in found.to_dict("records"):
        x, y = ([v for one in members for v in one.metrics[row[key]]] for key in ("metric", "other"))
        assert row["n"] == 3 * N_PROMPTS * 2
        assert row["n_prompts"] == N_PROMPTS
        assert row["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
        assert row["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
        assert row["reason"] == ""
        assert row["pearson_ci_low"] < row["pearson"] < row["pearson_ci_high"]
        assert row["spearman_ci_low"] < row["spearman"] < row["spearman_ci_high"]
    signs = found.set_index(["metric", "other"])["spearman"]
    assert signs[("joy", "sentiment")] > 0.5
    assert signs[("joy", "classifier_joy")] < -0.5


def test_intervals_resample_whole_prompts(store: Store) -> None:
    """Against a bootstrap that copies the replies of the drawn prompts, one by one."""
    members = sweep_of(store)
    prompts = np.array([reply.prompt_id for one in members for reply in one.replies])
    # What is common to all replies to a prompt, so that replies drawn one by one would give too narrow an interval.
    shared = {prompt: np.random.default_rng(int(prompt[1:])).normal(size=2) for prompt in set(prompts)}
    for one in members:
        for number, metric in enumerate(("joy", "sentiment")):
            one.metrics[metric] = [v / 4 + shared[r.prompt_id][number] for v, r in zip(one.metrics[metric], one.replies, strict=True)]
    row = agreement(members, {"n_resamples": 1999, "confidence": 0.9}).set_index(["metric", "other"]).loc[("joy", "sentiment")]
    x, y = (np.array([v for one in members for v in one.metrics[m]]) for m in ("joy", "sentiment"))
    chance, names, drawn = np.random.default_rng(1), np.unique(prompts), []
    for _ in range(1500):
        rows = np.concatenate([np.flatnonzero(prompts == name) for name in chance.choice(names, len(names))])
        drawn.append(stats.pearsonr(x[rows], y[rows]).statistic)

    assert [row["pearson_ci_low"], row["pearson_ci_high"]] == pytest.approx(list(np.quantile(drawn, [0.05, 0.95])), abs=0.05)
    alone = [stats.pearsonr(x[rows], y[rows]).statistic for rows in chance.integers(len(x), size=(500, len(x)))]
    assert row["pearson_ci_high"] - row["pearson_ci_low"] > 1.4 * np.subtract(*np.quantile(alone, [0.95, 0.05]))


def test_undefined_values_are_left_out_and_constants_are_told(store: Store) -> None:
    members = sweep_of(store)
    for one in members:
        one.metrics["sentiment"] = [0.0] * len(one.replies)
        one.metrics["classifier_joy"][:5] = [math.nan] * 5
    found = agreement(members, SETTINGS).set_index(["metric", "other"])

    row = found.loc[("joy", "classifier_joy")]
    x, y = ([v for one in members for v in one.metrics[m][5:]] for m in ("joy", "classifier_joy"))
    assert row["n"] == len(x)
    assert row["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.loc[("joy", "sentiment"), "reason"] == "the other is the same for all replies"
    assert math.isnan(found.loc[("joy", "sentiment"), "pearson"])


def test_pairs_are_kept_apart_and_controls_out(store: Store) -> None:
    members = sweep_of(store)
    other = made_up_cell(store, "trust_disgust", n_prompts=N_PROMPTS, n_samples=2)
    control = dataclasses.replace(scored(store, members[0].cell.control(0), 9), metrics={})
    found = agreement([*members, control, scored(store, other, 5)], SETTINGS)

    assert set(found["pair"]) == {"joy_sadness"}, "nothing measures trust but sentiment alone"
    assert set(found["n"]) == {3 * N_PROMPTS * 2}
    assert agreement([], SETTINGS).empty
