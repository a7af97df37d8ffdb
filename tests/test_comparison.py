"""Score tables are paired by prompt, and tables that differ in more than the steering are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from emosteer.comparison import GENERATED, compare
from emosteer.errors import EmosteerError


def table(number: int, shift: float = 0.0, **generated: Any) -> pd.DataFrame:
    """Ten prompts, two samples each, two metrics made up."""
    chance = np.random.default_rng(number)
    made = pd.DataFrame(
        {
            "prompt_id": [f"p{i}" for i in range(10) for _ in range(2)],
            "sample": [0, 1] * 10,
            "prompt": [f"What of {i}?" for i in range(10) for _ in range(2)],
            "reply": "So.",
            "n_tokens": 3,
            "joy": chance.normal(shift, 1, 20),
            "perplexity": chance.normal(5, 1, 20),
        }
    )
    made.attrs[GENERATED] = {"model": "tiny", "seed": 0, "max_new_tokens": 8} | generated
    return made


def per_prompt(scores: pd.DataFrame, metric: str) -> pd.Series:
    return scores.groupby("prompt_id")[metric].mean().sort_index()


def test_the_numbers_are_those_of_per_prompt_means() -> None:
    steered, plain = table(1, shift=2.0), table(2)
    effects = compare(steered, plain)

    assert list(effects.index) == ["joy", "perplexity"]
    assert effects.index.name == "metric"
    for metric in effects.index:
        difference = per_prompt(steered, metric) - per_prompt(plain, metric)
        row = effects.loc[metric]
        assert row["n"] == 10
        assert row["delta"] == pytest.approx(difference.mean())
        assert row["steered"] - row["baseline"] == pytest.approx(row["delta"])
        assert row["effect_size"] == pytest.approx(difference.mean() / difference.std())
        assert row["p"] == pytest.approx(stats.wilcoxon(difference).pvalue)
        assert row["ci_low"] < row["delta"] < row["ci_high"]
    assert compare(plain, steered).loc["joy", "delta"] == pytest.approx(-effects.loc["joy", "delta"])


def test_the_order_of_rows_does_not_matter() -> None:
    steered, plain = table(1), table(2)
    pd.testing.assert_frame_equal(compare(steered.sample(frac=1, random_state=0), plain), compare(steered, plain))


def test_a_prompt_without_a_value_is_left_out_for_that_metric_alone() -> None:
    steered, plain = table(1), table(2)
    steered.loc[steered["prompt_id"] == "p3", "perplexity"] = np.nan
    steered.loc[0, "joy"] = np.nan  # one of its prompt's two samples
    effects = compare(steered, plain)

    assert effects["n"].to_dict() == {"joy": 10, "perplexity": 9}
    plain.loc[plain["prompt_id"] == "p3", "perplexity"] = 1e6
    assert compare(steered, plain).loc["perplexity"].equals(effects.loc["perplexity"])


def test_several_tables_stand_for_their_mean() -> None:
    steered, controls = table(1, shift=1.0), [table(2), table(3)]
    effect = compare(steered, controls).loc["joy"]

    mean = sum(per_prompt(control, "joy") for control in controls) / 2
    assert effect["delta"] == pytest.approx((per_prompt(steered, "joy") - mean).mean())
    pd.testing.assert_frame_equal(compare(steered, controls[:1]), compare(steered, controls[0]))


def test_the_seed_decides_the_interval() -> None:
    steered, plain = table(1), table(2)
    pd.testing.assert_frame_equal(compare(steered, plain), compare(steered, plain, seed=0))
    ends = {tuple(compare(steered, plain, seed=seed)["ci_low"]) for seed in (0, 1, np.int64(2), "cell-1", "cell-2")}  # type: ignore[arg-type]
    assert len(ends) == 5
    narrow = compare(steered, plain, confidence=0.5)
    assert (narrow["ci_low"] > compare(steered, plain)["ci_low"]).all()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (table(2, seed=1), "they differ in seed: 0 and 1"),
        (table(2, max_new_tokens=9), "max_new_tokens: 8 and 9"),
        (table(2, model="other"), "model: tiny and other"),
        (table(2)[:-1], "1 replies are to prompts or samples of one side only"),
        (table(2).replace({"prompt": {"What of 3?": "What of me?"}}), "4 replies are to prompts"),
        (table(2).drop(columns="perplexity"), "other metrics on each side"),
        (table(2).drop(columns=["perplexity", "joy"]), "no metric"),
        (pd.concat([table(2), table(3)]), "rows of one cell"),
        (table(2)["joy"].to_frame(), "what score returned"),
        ([], "baseline is empty"),
        (["joy"], "what score returned"),
    ],
)
def test_what_cannot_be_paired_is_refused(other: Any, message: str) -> None:
    with pytest.raises(EmosteerError, match=message):
        compare(table(1), other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"n_resamples": 0}, "n_resamples=0"),
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"confidence": float("nan")}, "confidence=nan"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EmosteerError, match=message):
        compare(table(1), table(2), **options)


def test_tables_that_say_nothing_of_their_making_are_taken_at_their_word() -> None:
    steered, plain = table(1), table(2, seed=1)
    plain.attrs.clear()
    pd.testing.assert_frame_equal(compare(steered, plain), compare(steered, table(2)))
