"""Tables are views of the records: every number is computed again here, by other means, from the replies' table."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_sweep import METRICS, join, made_up_cell, publish, random_scores, with_company
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from emosteer.config import AutoCoefficientConfig
from emosteer.datasets import Prompt
from emosteer.records.cell import ATTRIBUTION, BASELINE, CELL, Cell, Part, StrengthSpec, VectorSpec
from emosteer.records.publish import publish_json
from emosteer.records.store import Store
from emosteer.records.sweep import Sweep
from emosteer.tables import Tables, build

AXES = """
    cell_id sweep model pair target vector_id vector_method site layer layers coefficient coefficient_raw scope seed
    n_prompts n_samples status attempt seconds
""".split()  # noqa: SIM905 - as the design lists them
PER_METRIC = "baseline steered delta ci_low ci_high effect_size p p_perm q beyond_random beyond_random_p beyond_random_q".split()  # noqa: SIM905


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def sweep(tmp_path: Path, store: Store) -> Sweep:
    return Sweep(tmp_path / "mine", store)


def grid(store: Store, **changes: object) -> list[Cell]:
    return [
        made_up_cell(store, pair, layers=(layer,), coefficient=coefficient, **changes)  # type: ignore[arg-type]
        for pair in ("joy_sadness", "trust_disgust")
        for layer in (2, 4)
        for coefficient in (0.1, 0.3)
    ]


def seed_of(cell: Cell) -> int:
    """A cell's replies and scores are made up from its id, so that they do not depend on its company."""
    return int(cell.id.rsplit("-", 1)[1], 16)


def run(sweep: Sweep, cells: list[Cell], n_controls: int = 1, n_resamples: int = 99) -> Tables:
    """Publish cells and their company with random scores, then build."""
    company = with_company(cells, n_controls)
    join(sweep, company, statistics={"n_resamples": n_resamples, "confidence": 0.95})
    for cell in company:
        publish(sweep.store, sweep.scorers(), cell, seed=seed_of(cell), shift=5 * cell.coefficient if cell.kind == CELL else 0.0)
    return build(sweep)


def per_prompt(replies: pd.DataFrame, cell_id: str, metric: str) -> pd.Series:  # type: ignore[type-arg]
    """Means over samples by prompt, in the prompts' order."""
    rows = replies[replies["cell_id"] == cell_id]
    return rows.groupby("prompt_id", sort=False)[metric].mean()


def row_of(tables: Tables, cell: Cell) -> pd.Series:  # type: ignore[type-arg]
    return tables.results.set_index("cell_id").loc[cell.id]


def test_results_have_the_promised_columns(sweep: Sweep, store: Store) -> None:
    results = run(sweep, grid(store)).results

    assert set(AXES) <= set(results)
    assert {f"{metric}_{key}" for metric in METRICS for key in PER_METRIC} <= set(results)
    assert not [name for name in results if list(results.columns).count(name) > 1]
    for name in ("layer", "seed", "n_prompts", "n_samples", "attempt"):
        assert pd.api.types.is_integer_dtype(results[name]), name
    for name in ("coefficient", "coefficient_raw", "seconds", *(f"{m}_{k}" for m in METRICS for k in PER_METRIC)):
        assert pd.api.types.is_float_dtype(results[name]), name
    assert results["is_control"].dtype == bool


def test_a_row_says_what_its_cell_was(sweep: Sweep, store: Store) -> None:
    cell = made_up_cell(store, seed=3, site="mlp", scope="all")
    tables = run(sweep, [cell])
    row, control = row_of(tables, cell), row_of(tables, cell.control(0))

    expected = {
        "sweep": "mine", "model": "made-up", "pair": "joy_sadness", "target": "joy", "vector_id": cell.vector_id,
        "vector_method": "mean_difference", "site": "mlp", "layer": 2, "layers": "2", "coefficient": 0.2, "coefficient_raw": 3.0,
        "scope": "all", "seed": 3, "n_prompts": 10, "n_samples": 1, "status": "done", "attempt": 1, "seconds": 1.5,
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected
    assert control["vector_method"] == "random"
    assert control["vector_id"] == cell.control(0).vector_id
    assert control[["pair", "target"]].isna().all()


def test_a_row_says_how_sure_its_vector_is_at_its_block(sweep: Sweep, store: Store) -> None:
    alone, both = made_up_cell(store), made_up_cell(store, layers=(1, 2))
    facts = {"id": alone.vector_id, "split_half": [0.1, 0.2, 0.3, 0.4], "auc": [0.5, 0.6, None, 0.8]}
    publish_json(store.paths.vector_facts(alone.vector_id), facts)
    tables = run(sweep, [alone, both])
    assert alone.layers == (2,)
    assert row_of(tables, alone)["vector_split_half"] == 0.3
    assert row_of(tables, alone)[["vector_auc"]].isna().all(), "told to have none"
    for row in (row_of(tables, both), row_of(tables, alone.control(0))):
        assert row[["vector_split_half", "vector_auc"]].isna().all()
    store.paths.vector_facts(alone.vector_id).write_text("[]")
    assert build(sweep).results["vector_split_half"].isna().all(), "a vector is whole without its facts"


def test_replies_have_a_row_per_reply_and_the_baselines_once(sweep: Sweep, store: Store) -> None:
    cells = grid(store, n_samples=2)
    replies = run(sweep, cells).replies

    assert {"cell_id", "prompt_id", "sample", "prompt", "reply", "is_baseline", "n_tokens", *METRICS} <= set(replies)
    assert len(replies) == len(with_company(cells)) * 10 * 2
    assert not replies.duplicated(["cell_id", "prompt_id", "sample"]).any()
    assert set(replies.loc[replies["is_baseline"], "cell_id"]) == {cells[0].baseline_id}
    assert set(zip(replies["prompt_id"], replies["prompt"], strict=True)) == {(f"p{i}", f"Prompt {i}?") for i in range(10)}
    assert set(replies["n_tokens"]) == {5}


@pytest.mark.parametrize("n_samples", [1, 3])
def test_effects_are_those_of_the_replies_table(sweep: Sweep, store: Store, n_samples: int) -> None:
    cells = grid(store, n_samples=n_samples)[2:5]
    tables = run(sweep, cells, n_resamples=1100)

    for cell in cells:
        row = row_of(tables, cell)
        for metric in METRICS:
            steered = per_prompt(tables.replies, cell.id, metric)
            baseline = per_prompt(tables.replies, cell.baseline_id, metric)
            difference = steered - baseline
            assert row[f"{metric}_baseline"] == pytest.approx(baseline.mean())
            assert row[f"{metric}_steered"] == pytest.approx(steered.mean())
            assert row[f"{metric}_delta"] == pytest.approx(difference.mean())
            assert row[f"{metric}_effect_size"] == pytest.approx(difference.mean() / difference.std(ddof=1))
            if n_samples == 1:  # means of three make ties that differ in the last bit
                assert row[f"{metric}_p"] == pytest.approx(stats.wilcoxon(difference).pvalue)
            assert row[f"{metric}_ci_low"] <= row[f"{metric}_delta"] <= row[f"{metric}_ci_high"]
        joy = per_prompt(tables.replies, cell.id, "joy") - per_prompt(tables.replies, cell.baseline_id, "joy")
        flips = np.array(list(itertools.product((1, -1), repeat=10)))  # fewer than n_resamples: the p is exact
        assert row["joy_p_perm"] == pytest.approx((abs(flips @ joy) >= abs(joy.sum()) - 1e-9).mean())


@pytest.mark.parametrize("n_controls", [1, 3])
def test_the_effect_beyond_random_is_against_the_mean_of_the_matching_controls(sweep: Sweep, store: Store, n_controls: int) -> None:
    cells = grid(store)[2:5]
    tables = run(sweep, cells, n_controls)

    assert set(tables.cells["n_controls"]) == {n_controls}
    for cell in cells:
        row = row_of(tables, cell)
        for metric in METRICS:
            controls = sum(per_prompt(tables.replies, cell.control(i).id, metric) for i in range(n_controls)) / n_controls
            difference = per_prompt(tables.replies, cell.id, metric) - controls
            assert row[f"{metric}_beyond_random"] == pytest.approx(difference.mean())
            if n_controls == 1:  # means of three make ties that differ in the last bit
                assert row[f"{metric}_beyond_random_p"] == pytest.approx(stats.wilcoxon(difference).pvalue)
    assert tables.controls["joy_beyond_random"].isna().all()


def test_a_row_says_what_its_vector_is_put_together_of(sweep: Sweep, store: Store) -> None:
    plain = made_up_cell(store)
    parts = {"plus": (Part("a", "love_hate"), Part("b", "mine", 0.5)), "without": (Part("c", "anger_fear"),)}
    assert plain.vector is not None
    cell = dataclasses.replace(plain, vector=dataclasses.replace(plain.vector, **parts))
    tables = run(sweep, [plain, cell])
    columns = ["vector_plus", "vector_without"]
    assert row_of(tables, cell)[columns].tolist() == ["love_hate+0.5 mine", "anger_fear"]
    assert row_of(tables, plain)[columns].tolist() == ["", ""]
    assert tables.controls[columns].isna().all().all()


def test_the_effect_beyond_shuffled_labels_is_against_the_pairs_own(sweep: Sweep, store: Store) -> None:
    cells = grid(store)[1:6]
    shuffled = {cell.id: [cell.shuffled(i, f"exchanged {i} of {cell.pair}") for i in range(2)] for cell in cells}
    controls = [one for own in shuffled.values() for one in own]
    join(sweep, controls)
    for one in controls:
        publish(store, sweep.scorers(), one, seed=seed_of(one))
    tables = run(sweep, cells)

    assert {one.id for one in controls}.isdisjoint(tables.controls["cell_id"])
    assert set(tables.cells["n_controls"]) == {1}, "the random direction alone"
    for cell in cells:
        row = row_of(tables, cell)
        for one in shuffled[cell.id]:
            assert row_of(tables, one)[["pair", "vector_method", "is_control"]].tolist() == [row["pair"], "shuffled", True]
        rival = sum(per_prompt(tables.replies, one.id, "joy") for one in shuffled[cell.id]) / 2
        difference = per_prompt(tables.replies, cell.id, "joy") - rival
        assert row["joy_beyond_shuffled"] == pytest.approx(difference.mean())
        assert 0 <= row["joy_beyond_shuffled_q"] <= 1
    assert row_of(tables, cells[0].control(0))["vector_method"] == "random"


def test_two_methods_of_one_pair_have_shuffled_labels_of_their_own(sweep: Sweep, store: Store) -> None:
    plain = grid(store)[1]
    assert plain.vector is not None
    recipes = [
        {},
        {"method": "pca"},
        {"reading": "last"},
        {"plus": (Part("theirs", "love_hate"),)},
        {"without": (Part("c", "anger_fear"),)},
    ]
    cells = [dataclasses.replace(plain, vector=dataclasses.replace(plain.vector, **recipe)) for recipe in recipes]
    controls = [
        one.shuffled(0, "exchanged", tuple(dataclasses.replace(part, texts="exchanged too") for part in one.vector.plus))
        for one in cells
        if one.vector
    ]
    join(sweep, controls)
    for one in controls:
        publish(store, sweep.scorers(), one, seed=seed_of(one))
    tables = run(sweep, cells)
    for cell, control in zip(cells, controls, strict=True):
        difference = per_prompt(tables.replies, cell.id, "joy") - per_prompt(tables.replies, control.id, "joy")
        assert row_of(tables, cell)["joy_beyond_shuffled"] == pytest.approx(difference.mean())


def test_the_effect_beyond_the_other_sign_is_against_the_cells_own(sweep: Sweep, store: Store) -> None:
    cells = [*grid(store)[1:4], made_up_cell(store, vector=VectorSpec("pca", "texts of joy_sadness"), coefficient=0.1)]
    negated = {cell.id: cell.negated() for cell in cells}
    join(sweep, list(negated.values()))
    for one in negated.values():
        publish(store, sweep.scorers(), one, seed=seed_of(one))
    tables = run(sweep, cells)

    assert set(tables.negated["cell_id"]) == {one.id for one in negated.values()}
    for cell in cells:
        row, other = row_of(tables, cell), row_of(tables, negated[cell.id])
        assert other[["pair", "vector_id", "vector_method", "is_control"]].tolist() == [
            row["pair"],
            row["vector_id"],
            "negative",
            True,
        ]
        assert other["coefficient"] == -row["coefficient"]
        difference = per_prompt(tables.replies, cell.id, "joy") - per_prompt(tables.replies, negated[cell.id].id, "joy")
        assert row["joy_beyond_negative"] == pytest.approx(difference.mean())
        assert row["joy_beyond_negative_p"] == pytest.approx(stats.wilcoxon(difference).pvalue)
    assert set(tables.cells["n_controls"]) == {1}, "the random direction alone"


def test_a_coefficient_that_was_found_stands_as_a_number_and_makes_no_trend(sweep: Sweep, store: Store) -> None:
    given = [made_up_cell(store, coefficient=c) for c in (0.1, 0.2)]
    assert given[0].vector is not None
    found = made_up_cell(store, coefficient=None, strength=StrengthSpec(AutoCoefficientConfig(target=0.15), given[0].vector))
    strength = {"coefficient": 0.28125, "cost": 0.16, "status": "found", "steps": [[0.25, 0.13], [0.28125, 0.16]]}
    join(sweep, [found])
    publish(store, sweep.scorers(), found, seed=seed_of(found), found=strength)
    tables = run(sweep, given)

    auto = ["coefficient", "coefficient_request", "auto_metric", "auto_target", "auto_cost", "auto_status", "auto_steps"]
    assert row_of(tables, found)[auto].tolist() == [0.28125, "auto", "kl", 0.15, 0.16, "found", 2]
    assert row_of(tables, given[0])[auto[:2]].tolist() == [0.1, "0.1"]
    assert row_of(tables, given[0])[auto[2:]].isna().all()
    assert set(tables.trends["n_coefficients"]) == {2}, "its dose was chosen by these replies"
    pending = found.negated()
    join(sweep, [pending])
    assert math.isnan(row_of(build(sweep), pending)["coefficient"])


def test_prompting_has_a_row_and_cells_an_effect_beyond_it(sweep: Sweep, store: Store) -> None:
    cells = grid(store)
    asked = {cell.pair.name: cell.prompting(f"Feel {cell.pair.target}.") for cell in cells if cell.pair}
    join(sweep, list(asked.values()))
    for cell in asked.values():
        publish(store, sweep.scorers(), cell, seed=seed_of(cell), shift=3.0)
    tables = run(sweep, cells)

    assert set(tables.prompted["cell_id"]) == {cell.id for cell in asked.values()}
    assert not set(tables.controls["cell_id"]) & set(tables.prompted["cell_id"])
    for pair, cell in asked.items():
        row = row_of(tables, cell)
        assert (row["pair"], row["vector_method"], row["is_control"]) == (pair, "prompting", True)
        assert row[["vector_id", "layer", "coefficient", "scope", "control_key", "joy_q", "joy_beyond_prompting"]].isna().all()
        difference = per_prompt(tables.replies, cell.id, "joy") - per_prompt(tables.replies, cell.baseline_id, "joy")
        assert row["joy_delta"] == pytest.approx(difference.mean())
    for cell in cells:
        assert cell.pair is not None
        row = row_of(tables, cell)
        for metric in METRICS:
            difference = per_prompt(tables.replies, cell.id, metric) - per_prompt(tables.replies, asked[cell.pair.name].id, metric)
            assert row[f"{metric}_beyond_prompting"] == pytest.approx(difference.mean())
            assert row[f"{metric}_beyond_prompting_p"] == pytest.approx(stats.wilcoxon(difference).pvalue)
    p, q = (tables.cells[f"joy_beyond_prompting_{one}"] for one in "pq")
    assert list(q) == pytest.approx(list(multipletests(p, method="fdr_bh")[1]))


def test_the_primary_metric_has_more_numbers(sweep: Sweep, store: Store) -> None:
    tables = run(sweep, grid(store))
    primary = [name for name in tables.results if name.startswith("primary_")]

    assert len(primary) == 7 + 9, "and what tests/test_caveats.py is about"
    assert tables.controls[primary].isna().all(axis=None)
    for metric, rows in tables.cells.groupby("primary"):
        # The family of q: this metric in all cells, those of other pairs too.
        adjusted = dict(zip(tables.cells["cell_id"], multipletests(tables.cells[f"{metric}_p"], method="holm")[1], strict=True))
        for row in rows.itertuples():
            difference = per_prompt(tables.replies, row.cell_id, metric) - per_prompt(tables.replies, row.baseline_id, metric)
            assert row.primary_p_t == pytest.approx(stats.ttest_1samp(difference, 0).pvalue)
            assert row.primary_rank_biserial == pytest.approx(rank_biserial(difference))
            assert row.primary_ci_low_bca < difference.mean() < row.primary_ci_high_bca
            assert row.primary_effect_size_ci_low < difference.mean() / difference.std() < row.primary_effect_size_ci_high
            assert row.primary_p_holm == pytest.approx(adjusted[row.cell_id])


def rank_biserial(difference: pd.Series) -> float:  # type: ignore[type-arg]
    """Rises less falls, as shares of the ranks."""
    ranks = stats.rankdata(difference[difference != 0].abs())
    return float((ranks * np.sign(difference[difference != 0])).sum() / ranks.sum())


def test_no_cost_is_tested_against_the_margins_of_the_command(sweep: Sweep, store: Store) -> None:
    cell = made_up_cell(store)
    by_default = run(sweep, [cell])  # a command that names no margins, as old ones do
    steered, baseline = (per_prompt(by_default.replies, one, "perplexity") for one in (cell.id, cell.baseline_id))
    row = row_of(by_default, cell)
    assert row["perplexity_p_equivalence"] == pytest.approx(ttost_paired(steered, baseline, 1 / 1.1, 1.1, transform=np.log)[0])
    assert 0 <= row["first_person_p_equivalence"] <= 1
    assert "joy_p_equivalence" not in by_default.results

    join(sweep, [], statistics={"n_resamples": 99, "confidence": 0.95, "equivalence": {"perplexity": 2.0, "gone": 1.0}})
    row = row_of(build(sweep), cell)
    assert row["perplexity_p_equivalence"] == pytest.approx(ttost_paired(steered, baseline, -2, 2)[0])
    assert "first_person_p_equivalence" not in row


def test_a_primary_metric_that_nothing_measures_leaves_its_numbers_empty(sweep: Sweep, store: Store) -> None:
    run(sweep, [made_up_cell(store)])
    join(sweep, [], scorers={"words": {"_target_": "emosteer.scoring.fluency.words"}})

    assert build(sweep).results[["primary_p_t", "primary_ci_low_bca", "primary_p_holm"]].isna().all(axis=None)


def test_q_is_over_the_cells_and_not_their_controls(sweep: Sweep, store: Store) -> None:
    tables = run(sweep, grid(store))

    for metric in METRICS:
        for p in (f"{metric}_p", f"{metric}_beyond_random_p"):
            q = tables.cells[f"{p.removesuffix('_p')}_q"]
            assert list(q) == pytest.approx(list(multipletests(tables.cells[p], method="fdr_bh")[1])), p
        assert tables.controls[f"{metric}_q"].isna().all()


def test_q_is_over_the_union_of_commands(sweep: Sweep, store: Store) -> None:
    first = run(sweep, grid(store)[:3])
    second = run(sweep, grid(store)[3:])

    assert len(second.cells) == 8
    assert list(second.cells["joy_q"]) == pytest.approx(list(multipletests(second.cells["joy_p"], method="fdr_bh")[1]))
    ids = list(first.results["cell_id"])
    by_id = second.results.set_index("cell_id").loc[ids]
    assert list(by_id["joy_p"]) == list(first.results["joy_p"]), "a cell's own numbers do not depend on its neighbours"
    assert list(by_id["joy_ci_low"]) == list(first.results["joy_ci_low"])


def test_undefined_values_drop_their_prompt_from_that_metric_only(sweep: Sweep, store: Store) -> None:
    cell = made_up_cell(store, n_samples=2)
    company = with_company([cell])
    join(sweep, company)
    scores = random_scores(20, seed=1)
    scores["perplexity"][0] = math.nan  # one of the two samples of p0
    scores["perplexity"][2] = scores["perplexity"][3] = math.nan  # both of p1
    for number, one in enumerate(company):
        publish(store, sweep.scorers(), one, scores if one == cell else None, seed=number)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables = build(sweep)
    row = row_of(tables, cell)

    steered, baseline = (per_prompt(tables.replies, one, "perplexity") for one in (cell.id, cell.baseline_id))
    assert steered["p0"] == scores["perplexity"][1]
    assert math.isnan(steered["p1"])
    assert row["perplexity_delta"] == pytest.approx((steered - baseline).drop("p1").mean())
    assert row["perplexity_baseline"] == pytest.approx(baseline.drop("p1").mean()), "over the same prompts"
    assert row["perplexity_ratio"] == pytest.approx(row["perplexity_steered"] / row["perplexity_baseline"])
    assert (row["perplexity_n"], row["joy_n"]) == (9, 10)


def test_a_metric_that_is_never_defined_is_empty_and_quiet(sweep: Sweep, store: Store) -> None:
    cell = made_up_cell(store)
    company = with_company([cell], n_controls=2)
    join(sweep, company)
    for number, one in enumerate(company):
        scores = random_scores(10, seed=number) | {"perplexity": [math.nan] * 10}
        publish(store, sweep.scorers(), one, scores, seed=number)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = row_of(build(sweep), cell)

    assert row[["perplexity_delta", "perplexity_p", "perplexity_q", "perplexity_beyond_random"]].isna().all()
    assert not math.isnan(row["joy_q"])


def test_several_blocks_leave_layer_empty(sweep: Sweep, store: Store) -> None:
    several = made_up_cell(store, layers=(1, 5))
    tables = run(sweep, [several, made_up_cell(store)])

    assert pd.isna(row_of(tables, several)["layer"])
    assert row_of(tables, several)["layers"] == "1+5"
    assert tables.results["layer"].dtype == "Int64"


def test_auto_shows_the_block_that_it_came_to(sweep: Sweep, store: Store) -> None:
    cell = made_up_cell(store, layers=None)
    company = with_company([cell])
    join(sweep, company)
    for one in company:
        publish(store, sweep.scorers(), one, layers=(6,) if one.vector else None)
    row = row_of(build(sweep), cell)

    assert (row["layer"], row["layers"], row["layer_request"]) == (6, "6", "auto")


def test_a_failed_cell_has_a_row_and_no_numbers(sweep: Sweep, store: Store) -> None:
    cells = grid(store)
    company = with_company(cells)
    join(sweep, company)
    for number, one in enumerate(company):
        if one != cells[0]:
            publish(store, sweep.scorers(), one, seed=number)
    sweep.record_failure(cells[0], {"exception": "RuntimeError", "message": "no luck", "attempt": 2})
    tables = build(sweep)
    row = row_of(tables, cells[0])

    assert (row["status"], row["error"], row["attempt"]) == ("failed", "no luck", 2)
    assert (row["layer"], row["coefficient"], row["pair"]) == (2, 0.1, "joy_sadness")
    assert row[["joy_delta", "joy_p", "joy_q", "seconds"]].isna().all()
    rest = tables.cells[tables.cells["status"] == "done"]
    assert len(rest) == 7
    assert list(rest["joy_q"]) == pytest.approx(list(multipletests(rest["joy_p"], method="fdr_bh")[1]))
    assert cells[0].id not in set(tables.replies["cell_id"])


def test_an_old_failure_does_not_show_once_the_cell_is_done(sweep: Sweep, store: Store) -> None:
    cell = made_up_cell(store)
    sweep.record_failure(cell, {"exception": "RuntimeError", "message": "no luck", "attempt": 2})
    row = row_of(run(sweep, [cell]), cell)

    assert (row["status"], row["attempt"]) == ("done", 1)
    assert pd.isna(row["error"])


def test_a_sweep_that_has_just_begun(sweep: Sweep, store: Store, tmp_path: Path) -> None:
    join(sweep, with_company(grid(store)))
    tables = build(sweep)

    assert len(tables.results) == 8 + 4
    assert set(tables.results["status"]) == {"pending"}
    assert set(AXES) <= set(tables.results)
    assert tables.replies.empty
    assert tables.trends.empty
    tables.results.to_parquet(tmp_path / "results.parquet")
    tables.replies.to_parquet(tmp_path / "replies.parquet")


def test_a_half_done_sweep_has_the_final_numbers_of_what_is_done(tmp_path: Path, store: Store) -> None:
    whole = Sweep(tmp_path / "whole", store)
    cells = grid(store)
    half = Sweep(tmp_path / "half", Store(tmp_path / "half-store"))
    for cell in grid(half.store):  # keeps the prompts there
        assert cell in cells
    final = run(whole, cells)
    company = with_company(cells)
    join(half, company)
    done = [*company[:5], cells[0].baseline()]
    for one in company:
        if one in done:
            publish(half.store, half.scorers(), one, seed=seed_of(one), shift=5 * one.coefficient if one.kind == CELL else 0.0)
    now = build(half)

    settled = now.results[now.results["status"] == "done"].set_index("cell_id")
    assert 0 < len(settled) < len(now.results)
    for column in ("joy_delta", "joy_ci_low", "joy_ci_high", "joy_p", "joy_p_perm", "perplexity_ratio"):
        assert list(settled[column]) == list(final.results.set_index("cell_id").loc[settled.index, column]), column


def test_without_a_baseline_there_are_replies_and_no_effects(sweep: Sweep, store: Store) -> None:
    cell = made_up_cell(store)
    join(sweep, with_company([cell]))
    publish(store, sweep.scorers(), cell)
    tables = build(sweep)

    assert row_of(tables, cell)["status"] == "done"
    assert pd.isna(row_of(tables, cell).get("joy_delta", math.nan))
    assert len(tables.replies) == 10


def test_building_twice_gives_the_same(sweep: Sweep, store: Store) -> None:
    first = run(sweep, grid(store, n_samples=2), n_controls=2)
    second = build(Sweep(sweep.paths.root, Store(store.paths.root)))

    for name in ("results", "replies", "trends", "confirmations", "predictions", "agreement"):
        pd.testing.assert_frame_equal(getattr(first, name), getattr(second, name), check_exact=True)


def test_the_order_of_cells_does_not_matter(sweep: Sweep, store: Store, tmp_path: Path) -> None:
    first = run(sweep, grid(store, n_samples=3), n_controls=3)
    shuffled = Sweep(tmp_path / "mine-2" / "mine", store)
    cells = [task.cell for task in sweep.tasks()]
    join(shuffled, [cells[i] for i in np.random.default_rng(0).permutation(len(cells))])
    second = build(shuffled)

    keys = {
        "results": ["cell_id"],
        "replies": ["cell_id", "prompt_id", "sample"],
        "trends": ["pair", "layers", "metric"],
        "confirmations": ["pair"],
        "predictions": ["pair", "coefficients"],
        "agreement": ["pair", "metric", "other"],
    }
    for name, key in keys.items():
        ours, theirs = (getattr(t, name).sort_values(key).reset_index(drop=True) for t in (first, second))
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_trends_are_slopes_through_the_origin(sweep: Sweep, store: Store) -> None:
    tables = run(sweep, grid(store))
    trends = tables.trends

    assert set(trends.query("pair == 'trust_disgust'")["metric"]) == {
        "trust",
        "first_person",
        "sentiment",
        "perplexity",
        "duplication",
    }
    assert set(trends["n_coefficients"]) == {2}
    assert set(trends[trends["is_primary"]]["metric"]) == {"joy", "trust"}
    assert len(trends) == 4 * 5
    for trend in trends.itertuples():
        cells = tables.cells.query("pair == @trend.pair and layers == @trend.layers")
        slopes = sum(
            row.coefficient
            * (per_prompt(tables.replies, row.cell_id, trend.metric) - per_prompt(tables.replies, row.baseline_id, trend.metric))
            for row in cells.itertuples()
        ) / sum(cells["coefficient"] ** 2)
        assert trend.slope == pytest.approx(slopes.mean())
        assert trend.p == pytest.approx(stats.wilcoxon(slopes).pvalue, abs=0.05)  # ties may differ in the last bit
    for _, same in trends.groupby("metric"):
        assert list(same["q"]) == pytest.approx(list(multipletests(same["p"], method="fdr_bh")[1]))


def test_trends_keep_unlike_cells_apart(sweep: Sweep, store: Store) -> None:
    cells = [
        made_up_cell(store, coefficient=c, **changes)  # type: ignore[arg-type]
        for c in (0.1, 0.3)
        for changes in ({}, {"scope": "all"}, {"seed": 1}, {"site": "mlp"}, {"coefficient_unit": "raw"}, {"layers": (3,)})
    ]
    trends = run(sweep, cells).trends

    assert len(trends.query("metric == 'joy'")) == 6
    assert set(trends["n_coefficients"]) == {2}


def test_confirmations_choose_readable_cells_and_measure_them_on_other_prompts(sweep: Sweep, store: Store) -> None:
    cells = [made_up_cell(store, n_prompts=16, coefficient=c) for c in (0.1, 0.2, 0.3)]
    join(sweep, with_company(cells))
    for number, one in enumerate(with_company(cells)):
        scores = random_scores(16, seed=number, shift=10 * one.coefficient if one.kind == CELL else 0.0)
        scores |= {"duplication": [0.0] * 16, "perplexity": [5.0] * 16}
        if one == cells[1]:
            scores["perplexity"] = [7.6] * 16  # more than half as much again: never chosen
        if one == cells[2]:
            scores["duplication"] = [1.0] * 6 + [0.0] * 10  # .375 of all, but of some halves less than .3
        publish(store, sweep.scorers(), one, scores)
    tables = build(sweep)
    (row,) = tables.confirmations.to_dict("records")

    assert (row["n"], row["n_cells"], row["pair"], row["primary"], row["reason"]) == (16, 3, "joy_sadness", "joy", "")
    assert row["cell_id"] == cells[0].id
    assert (row["layers"], row["coefficient"]) == ("2", 0.1)
    assert 0.3 < row["agreement"] < 1, "some halves do choose the last"
    assert row["apparent"] == pytest.approx(row_of(tables, cells[0])["joy_delta"])
    joy = {one.coefficient: per_prompt(tables.replies, one.id, "joy") for one in (cells[0], cells[2])}
    baseline = per_prompt(tables.replies, cells[0].baseline_id, "joy")
    weak, strong = ((joy[c] - baseline).mean() for c in (0.1, 0.3))
    assert row["confirmed"] == pytest.approx(row["agreement"] * weak + (1 - row["agreement"]) * strong, abs=0.5)
    assert row["ci_low"] < row["confirmed"] < row["ci_high"]


def test_confirmations_are_per_pair_and_baseline_and_too_few_prompts_are_told(sweep: Sweep, store: Store) -> None:
    tables = run(sweep, [*grid(store), made_up_cell(store, seed=1)])
    found = tables.confirmations

    assert sorted(zip(found["pair"], found["n_cells"], strict=True)) == [("joy_sadness", 1), ("joy_sadness", 4), ("trust_disgust", 4)]
    assert set(found[found["n_cells"] == 4]["reason"]) == {"10 prompts are too few to halve: give at least 12"}
    assert found[["confirmed", "p", "ci_low"]].isna().all(axis=None)


def test_without_the_scorers_of_readability_every_cell_may_be_chosen(sweep: Sweep, store: Store) -> None:
    cells = [made_up_cell(store, n_prompts=12, coefficient=c) for c in (0.1, 0.2)]
    run(sweep, cells)
    join(sweep, [], scorers={"nrc": sweep.settings()["scorers"]["nrc"]})
    tables = build(sweep)
    (row,) = tables.confirmations.to_dict("records")

    assert row["apparent"] == pytest.approx(tables.cells["joy_delta"].max())
    assert row["reason"] == ""


def test_raw_cells_meet_the_controls_of_their_own_length(sweep: Sweep, store: Store) -> None:
    cells = [made_up_cell(store, pair, coefficient_unit="raw") for pair in ("joy_sadness", "trust_disgust")]
    tables = run(sweep, cells)

    assert len(tables.controls) == 2
    for cell in cells:
        difference = per_prompt(tables.replies, cell.id, "joy") - per_prompt(tables.replies, cell.control(0).id, "joy")
        assert row_of(tables, cell)["joy_beyond_random"] == pytest.approx(difference.mean())


def test_scores_of_other_scorers_are_left_out(sweep: Sweep, store: Store) -> None:
    run(sweep, [made_up_cell(store)])
    only = {"words": {"_target_": "emosteer.scoring.fluency.words"}}
    join(sweep, [], scorers=only)
    tables = build(sweep)

    assert "joy_delta" not in tables.results
    assert "words_delta" in tables.results
    assert list(tables.replies.columns[-1:]) == ["words"]


def test_two_prompt_sets_have_their_own_baselines(sweep: Sweep, store: Store) -> None:
    cells = [made_up_cell(store), dataclasses.replace(made_up_cell(store, n_prompts=6), prompts_name="fewer")]
    tables = run(sweep, cells)

    assert tables.replies.query("is_baseline")["cell_id"].nunique() == 2
    assert [row_of(tables, cell)["n_prompts"] for cell in cells] == [10, 6]
    assert [row_of(tables, cell)["joy_n"] for cell in cells] == [10, 6]


def test_turns_have_the_effect_of_each_reply_alone(sweep: Sweep, store: Store) -> None:
    prompts = [Prompt(f"p{i}", "One", "", ({"role": "user", "content": "One"},), turns=("Two", "Three")) for i in range(9)]
    cell = made_up_cell(store, prompts=store.keep_texts(prompts))
    tables = run(sweep, [cell])
    replies = tables.replies.set_index("cell_id")
    found = tables.turns[tables.turns["metric"] == "joy"]
    assert found["turn"].tolist() == [0, 1, 2]
    for row in found.to_dict("records"):
        at_turn = replies[replies["turn"] == row["turn"]]
        steered, unsteered = at_turn.loc[cell.id, "joy"], at_turn.loc[cell.baseline_id, "joy"]
        assert row["delta"] == pytest.approx(steered.mean() - unsteered.mean())
        assert row["p"] == pytest.approx(stats.wilcoxon(steered.to_numpy(), unsteered.to_numpy()).pvalue)
        assert row["n"] == 9
    # The prompt is the unit, over all of its turns.
    means = [per_prompt(tables.replies, key, "joy") for key in (cell.id, cell.baseline_id)]
    assert row_of(tables, cell)["joy_n"] == 9
    assert row_of(tables, cell)["joy_delta"] == pytest.approx((means[0] - means[1]).mean())
    assert replies.loc[cell.id, "prompt"].tolist()[:3] == ["One", "said 1", "said 2"]


def test_there_is_no_table_of_turns_where_replies_end_the_dialogues(sweep: Sweep, store: Store) -> None:
    assert run(sweep, [made_up_cell(store)]).turns.empty


def attributed(store: Store, cell: Cell, block_scores: list[float]) -> Cell:
    """A cell's attribution, made up in the store; the task of it."""
    key = cell.attribution_id
    scores = b"made up"
    publish_json(
        store.paths.attribution_summary(key),
        {"id": key, "model": "made-up", "pair": "joy_sadness", "block_scores": block_scores}
        | {"ranking": sorted(range(len(block_scores)), key=lambda b: -block_scores[b])}
        | {"scores_sha256": hashlib.sha256(scores).hexdigest()},
    )
    store.paths.attribution_scores(key).write_bytes(scores)
    return Cell(ATTRIBUTION, cell.model, pair=cell.pair, attribution=cell.attribution)


SCORES_OF_BLOCKS = [0.3, -0.1, 0.8, 0.5, 0.0, 0.2]


def steered_by_block(sweep: Sweep, cells: list[Cell], effects: dict[int, float], **company: object) -> Tables:
    """A sweep whose joy rises by `effects[block]` for each unit of coefficient, at each prompt by more or less."""
    tasks = [*with_company(cells), *([attributed(sweep.store, cells[0], SCORES_OF_BLOCKS)] if cells[0].attribution else [])]
    join(sweep, tasks)
    for one in with_company(cells):
        chance = np.random.default_rng(len(one.id) if one.kind == BASELINE else seed_of(one))
        shift = effects[one.layers[0]] * one.coefficient if one.kind == CELL and one.layers else 0.0
        publish(sweep.store, sweep.scorers(), one, random_scores(10, 0) | {"joy": list(5 + shift + chance.normal(0, 0.4, 10))})
    return build(sweep)


def test_predictions_have_the_rank_correlation_that_was_put_in(sweep: Sweep, store: Store) -> None:
    effects = {0: 20.0, 1: -10.0, 2: 30.0, 3: 90.0, 4: 5.0, 5: 12.0}
    cells = [made_up_cell(store, layers=(block,), coefficient=c) for block in effects for c in (-0.2, 0.1, 0.3)]
    tables = steered_by_block(sweep, [*cells, made_up_cell(store, layers=(1, 2))], effects)
    found = tables.predictions.set_index("coefficients")

    assert list(found.index) == ["-0.2", "0.1", "0.3", "-0.2+0.1+0.3"]
    whole = found.loc["-0.2+0.1+0.3"]
    true = stats.spearmanr(SCORES_OF_BLOCKS, list(effects.values())).statistic
    assert 0.5 < true < 1
    assert whole["rho"] == pytest.approx(true)
    assert whole["ci_low"] - 1e-9 <= true <= whole["ci_high"] + 1e-9
    assert (whole["n_blocks"], whole["n"], whole["first_scored"], whole["first_steered"], whole["reason"]) == (6, 10, 2, 3, "")
    assert (whole["attribution_id"], whole["primary"]) == (cells[0].attribution_id, "joy")
    for c in (-0.2, 0.1, 0.3):
        deltas = [math.copysign(1, c) * row_of(tables, cell)["joy_delta"] for cell in cells if cell.coefficient == c]
        assert found.loc[f"{c:g}", "rho"] == pytest.approx(stats.spearmanr(SCORES_OF_BLOCKS, deltas).statistic)


def test_predictions_use_the_coefficients_that_all_blocks_have(sweep: Sweep, store: Store) -> None:
    effects = dict(enumerate([20.0, -10.0, 30.0, 90.0, 5.0]))
    cells = [made_up_cell(store, layers=(block,), coefficient=c) for block in effects for c in (0.1, 0.2, 0.3) if block or c < 0.3]
    tables = steered_by_block(sweep, cells, effects)
    assert tables.predictions.set_index("coefficients")["n_blocks"].to_dict() == {"0.1": 5, "0.2": 5, "0.3": 4, "0.1+0.2": 5}


@pytest.mark.parametrize(
    ("blocks", "changes", "reason"),
    [
        (2, {}, "2 steered blocks are too few for a rank correlation: steer at least 3"),
        (5, {"attribution": None}, "attribution is switched off"),
    ],
)
def test_predictions_say_why_there_are_none(sweep: Sweep, store: Store, blocks: int, changes: dict[str, object], reason: str) -> None:
    cells = [made_up_cell(store, layers=(block,), **changes) for block in range(blocks)]  # type: ignore[arg-type]
    (row,) = steered_by_block(sweep, cells, dict.fromkeys(range(blocks), 10.0)).predictions.to_dict("records")
    assert (row["reason"], row["n_blocks"]) == (reason, blocks)
    assert all(math.isnan(row[key]) for key in ("rho", "ci_low", "ci_high"))


def test_an_attribution_that_is_pending_is_told(sweep: Sweep, store: Store) -> None:
    tables = run(sweep, [made_up_cell(store, layers=(block,)) for block in range(4)])
    assert list(tables.predictions["reason"]) == ["its attribution is not there"]
