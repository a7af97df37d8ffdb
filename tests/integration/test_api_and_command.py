"""What a notebook gets is what the command gets: the same replies, to the letter, and the same numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from desk import Desk

import emosteer
from emosteer.model.language_model import LanguageModel
from emosteer.vectors import EmotionVector

LAYER, COEFFICIENT, RESAMPLES = 2, 0.4, 199
KEYS = ["prompt_id", "sample", "prompt", "reply", "n_tokens"]
EFFECT = ("n", "baseline", "steered", "delta", "ci_low", "ci_high", "effect_size", "p", "p_perm")
SAMPLED = {"max_new_tokens": 8, "do_sample": True, "temperature": 0.8, "n_samples": 2}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, library: Path) -> Desk:
    """One cell and its two controls that set a projection at the attention, sampled, as the command runs them."""
    desk = Desk(tmp_path_factory.mktemp("ran"), tiny_directory, library)
    done = desk.run_warm(
        *(f"layer={LAYER}", f"coefficient={COEFFICIENT}", "site=attention", "scope=all", "intervention=set", "decay=0.9"),
        *("controls.random=2", "seed=3"),
        *(f"generation.{key}={str(value).lower()}" for key, value in SAMPLED.items()),
        f"statistics.n_resamples={RESAMPLES}",
    )
    assert done.code == 0, done.text
    return desk


@pytest.fixture(scope="module")
def model(tiny_directory: Path) -> LanguageModel:
    return emosteer.load_model(tiny_directory, device="cpu")


@pytest.fixture(scope="module")
def vector(model: LanguageModel) -> EmotionVector:
    return emosteer.build_vector(model, "joy_sadness", site="attention")


@pytest.fixture(scope="module")
def plain(model: LanguageModel) -> pd.DataFrame:
    prompts = emosteer.load_prompts("conversation", limit=6)
    return emosteer.score(model, emosteer.reply(model, prompts, seed=3, **SAMPLED))


def steered(model: LanguageModel, vector: EmotionVector, coefficient: float = COEFFICIENT) -> pd.DataFrame:
    prompts = emosteer.load_prompts("conversation", limit=6)
    options = {"layer": LAYER, "coefficient": coefficient, "scope": "all", "intervention": "set", "decay": 0.9, "seed": 3, **SAMPLED}
    return emosteer.score(model, emosteer.steer(model, prompts, vector, **options))


@pytest.fixture(scope="module")
def joyful(model: LanguageModel, vector: EmotionVector) -> pd.DataFrame:
    return steered(model, vector)


def in_store(ran: Desk, cell_id: str) -> pd.DataFrame:
    replies = pd.read_parquet(ran.sweep / "replies.parquet")
    return replies[replies["cell_id"] == cell_id].reset_index(drop=True)


def the_cell(ran: Desk) -> pd.Series:
    return ran.results().query("not is_control").iloc[0]


def assert_same_replies(mine: pd.DataFrame, theirs: pd.DataFrame) -> None:
    assert len(mine) == 12
    pd.testing.assert_frame_equal(mine[KEYS], theirs[KEYS])
    pd.testing.assert_frame_equal(mine, theirs[list(mine)])


def test_the_unsteered_replies_and_their_scores_are_the_baselines(ran: Desk, plain: pd.DataFrame) -> None:
    assert_same_replies(plain, in_store(ran, the_cell(ran)["baseline_id"]))


def test_the_steered_replies_and_their_scores_are_the_cells(ran: Desk, plain: pd.DataFrame, joyful: pd.DataFrame) -> None:
    assert_same_replies(joyful, in_store(ran, the_cell(ran)["cell_id"]))
    assert (joyful["reply"] != plain["reply"]).any()


def test_every_statistic_is_the_cells_given_its_id_as_seed(ran: Desk, plain: pd.DataFrame, joyful: pd.DataFrame) -> None:
    cell = the_cell(ran)
    effects = emosteer.compare(joyful, plain, seed=cell["cell_id"], n_resamples=RESAMPLES)

    assert list(effects.columns) == list(EFFECT)
    assert {"joy", "perplexity", "duplication", "first_person"} <= set(effects.index)
    for metric, row in effects.iterrows():
        for name in EFFECT:
            assert row[name] == cell[f"{metric}_{name}"] or (math.isnan(row[name]) and math.isnan(cell[f"{metric}_{name}"]))
    other = emosteer.compare(joyful, plain, seed=1, n_resamples=RESAMPLES)
    assert (other["delta"] == effects["delta"]).all()
    assert (other["ci_low"] != effects["ci_low"]).any()


def test_random_directions_are_the_controls_and_the_effect_beyond_them_the_tables(
    ran: Desk, model: LanguageModel, vector: EmotionVector, joyful: pd.DataFrame
) -> None:
    cell = the_cell(ran)
    controls = [steered(model, emosteer.random_vector(model, seed=3, index=index, like=vector)) for index in range(2)]

    for index, control in enumerate(controls):
        theirs = ran.results().query(f"cell_id.str.startswith('random{index}-')")
        assert_same_replies(control, in_store(ran, theirs["cell_id"].iloc[0]))
    beyond = emosteer.compare(joyful, controls, seed=cell["cell_id"], n_resamples=RESAMPLES)
    for metric, row in beyond.iterrows():
        assert row["delta"] == pytest.approx(cell[f"{metric}_beyond_random"], nan_ok=True)
        assert row["ci_low"] == pytest.approx(cell[f"{metric}_beyond_random_ci_low"], nan_ok=True)
        assert row["p"] == pytest.approx(cell[f"{metric}_beyond_random_p"], nan_ok=True)


def test_the_rows_of_a_sweeps_table_can_be_compared_as_they_are(ran: Desk, plain: pd.DataFrame, joyful: pd.DataFrame) -> None:
    cell = the_cell(ran)
    theirs = emosteer.compare(in_store(ran, cell["cell_id"]), in_store(ran, cell["baseline_id"]), n_resamples=RESAMPLES)

    pd.testing.assert_frame_equal(theirs, emosteer.compare(joyful, plain, n_resamples=RESAMPLES))
    with pytest.raises(emosteer.EmosteerError, match="rows of one cell"):
        emosteer.compare(pd.read_parquet(ran.sweep / "replies.parquet"), plain)


def test_a_vector_of_the_store_is_the_one_built_here(ran: Desk, vector: EmotionVector, joyful: pd.DataFrame) -> None:
    stored = emosteer.load_vector(ran.store / "vectors" / f"{the_cell(ran)['vector_id']}.safetensors")

    assert stored.site == vector.site == "attention"
    assert stored.directions.equal(vector.directions)
    assert stored.residual_norm.equal(vector.residual_norm)
