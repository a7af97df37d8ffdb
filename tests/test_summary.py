"""The summary fits a terminal of 80 columns, and recommends a cell by the rule that it states."""

from __future__ import annotations

import dataclasses
import io
import math
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up_sweep import (
    PROVENANCE,
    SCORED,
    join,
    made_up_cell,
    made_up_prompts,
    publish,
    random_replies,
    random_scores,
    with_company,
)
from rich.console import Console

from emosteer.config import AutoCoefficientConfig
from emosteer.records.cell import Cell, Part, StrengthSpec
from emosteer.records.store import Resolved, Store
from emosteer.records.sweep import Sweep
from emosteer.summary import best_readable, console, summary
from emosteer.tables import build

LONG = "A reply without end [bold]and with markup[/bold] " * 30 + "\U0001f600\n\tand a line more"


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path / "mine", Store(tmp_path / "store"))


def printed(sweep: Sweep, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(summary(sweep.name, build(sweep)))
    return out.getvalue()


def run(sweep: Sweep, cells: list[Cell], leave_out: tuple[Cell, ...] = ()) -> None:
    company = with_company(cells)
    join(sweep, company)
    for number, cell in enumerate(company):
        if cell not in leave_out:
            publish(sweep.store, sweep.scorers(), cell, random_scores(10, seed=number) | {"duplication": [0.0] * 10}, seed=number)


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_it_tells_cells_apart_by_what_their_vectors_are_put_together_of(sweep: Sweep) -> None:
    plain = made_up_cell(sweep.store)
    assert plain.vector is not None
    parts = {"plus": (Part("a", "love_hate"),), "without": (Part("b", "anger_fear"),)}
    run(sweep, [plain, dataclasses.replace(plain, vector=dataclasses.replace(plain.vector, **parts))])
    lines = printed(sweep).splitlines()
    assert "joy_sadness: joy" in lines
    assert "joy_sadness: joy, plus love_hate, without anger_fear" in lines


def test_it_fits_80_columns_and_says_what_was_run(sweep: Sweep) -> None:
    cells = [
        made_up_cell(sweep.store, pair, layers=layers, coefficient=c)
        for pair in ("joy_sadness", "anticipation_surprise")
        for layers in ((2,), (4,), (1, 5))
        for c in (-0.05, 0.1, 0.3)
    ]
    run(sweep, cells)
    text = printed(sweep)

    assert widest(text) <= 80
    assert "mine: 18 cells (18 done), 9 random controls, on made-up" in text
    for shown in ("anticipation_", "1+5", "-0.05", "beyond random", "perplexity"):
        assert shown in text
    assert "unsteered" in text


def test_it_says_what_the_other_sign_does(sweep: Sweep) -> None:
    cell = made_up_cell(sweep.store)
    company = [*with_company([cell]), cell.negated()]
    join(sweep, company)
    joy = {cell.id: 9.0, cell.negated().id: 4.0}
    for number, one in enumerate(company):
        scores = random_scores(10, seed=number) | {
            "joy": [joy.get(one.id, 5.0)] * 10,
            "perplexity": [5.0] * 10,
            "duplication": [0.0] * 10,
        }
        publish(sweep.store, sweep.scorers(), one, seed=number, scores=scores)
    text = " ".join(printed(sweep).split())
    assert (
        "The best readable cell with the other sign: joy -1.0 [-1.0, -1.0], p=0.002; they are +5.0 [+5.0, +5.0] apart, q=.002."
        in text
    )


def test_it_says_what_a_coefficient_that_was_found_costs(sweep: Sweep) -> None:
    for number, status in enumerate(("found", "out of reach")):
        made = made_up_cell(sweep.store, layers=(number,))
        assert made.vector is not None
        cell = dataclasses.replace(made, coefficient=None, strength=StrengthSpec(AutoCoefficientConfig(), made.vector))
        strength = {"coefficient": 0.1875, "cost": 0.098, "status": status, "steps": [[0.1875, 0.098]]}
        join(sweep, [cell, cell.baseline()])
        for one in (cell, cell.baseline()):
            publish(sweep.store, sweep.scorers(), one, seed=number, found=strength)
    text = printed(sweep)
    assert text.count("0.188") == 2
    assert text.count("0.098") == 2
    assert text.count("out of") == 1


def test_it_says_what_asking_for_the_emotion_does(sweep: Sweep) -> None:
    cell = made_up_cell(sweep.store)
    asked = cell.prompting("Feel joy.")
    company = [*with_company([cell]), asked]
    join(sweep, company)
    joy = {cell.id: 9.0, asked.id: 7.0}
    for number, one in enumerate(company):
        scores = random_scores(10, seed=3) | {"duplication": [0.0] * 10, "joy": [joy.get(one.id, 5.0) + i / 2 for i in range(10)]}
        publish(sweep.store, sweep.scorers(), one, scores, seed=number)
    text = " ".join(printed(sweep).split())

    assert widest(printed(sweep)) <= 80
    assert "1 cell (1 done), 1 random control, on made-up" in text
    assert "Asked to feel joy instead of steered, made-up gives joy +2.0 [+2.0, +2.0], p=0.002, perplexity x1.00." in text
    assert "The best readable cell against that: +2.0 [+2.0, +2.0], q=.002." in text


def test_it_fits_80_columns_when_every_axis_varies(sweep: Sweep) -> None:
    other = sweep.store.keep_texts(made_up_prompts(11)[1:])
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"site": "attention"},
        {"scope": "prompt"},
        {"prompts_name": "confirmation", "prompts": other},
    ]
    run(sweep, [made_up_cell(sweep.store, "anticipation_surprise", **change) for change in changes])
    text = printed(sweep)

    assert widest(text) <= 80
    for shown in ("seed 1", "attention", "prompt", "confirmation"):
        assert shown in text


def test_large_numbers_and_narrow_columns_lose_nothing(sweep: Sweep) -> None:
    cell = made_up_cell(sweep.store, layers=(1, 12, 17), coefficient=-0.125)
    run(sweep, [cell])
    tables = build(sweep)
    tables.results["joy_delta"], tables.results["joy_ci_low"], tables.results["joy_ci_high"] = -101.25, -110.75, -100.5
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(summary("mine", tables))

    assert widest(out.getvalue()) <= 80
    for shown in ("1+12+", "17  ", "-0.125", "-101.2", "[-110.8,-100.", " 5]"):  # folded, not cut
        assert shown in out.getvalue()


def test_colour_is_for_terminals_only(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    run(sweep, [made_up_cell(sweep.store)])
    console().print(summary("mine", build(sweep)))
    assert "\x1b" not in capsys.readouterr().out
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=True, color_system="standard").print(summary("mine", build(sweep)))
    assert "\x1b[" in out.getvalue()


def test_long_replies_and_markup_are_shown_as_they_are(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = made_up_cell(sweep.store)
    run(sweep, [cell])
    tables = build(sweep)
    tables.replies["reply"] = LONG
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(summary("mine", tables))

    assert "[bold]and" in out.getvalue()
    assert widest(out.getvalue()) <= 80


def test_more_than_a_screenful_of_cells_is_cut_and_says_so(sweep: Sweep) -> None:
    run(sweep, [made_up_cell(sweep.store, coefficient=i / 100, layers=(layer,)) for i in range(1, 24) for layer in (1, 2)])
    text = printed(sweep)

    assert "The 40 largest effects of 46 cells; all are in results.csv." in text
    table = text[text.index("perplexity") : text.index("Mean difference")]
    assert sum(line.startswith(("1  ", "2  ")) for line in table.splitlines()) == 40
    assert "joy_sadness on made-up, joy at 23 coefficients: not computed, its attribution is not there" in " ".join(text.split())


def test_a_sweep_of_failures_names_them(sweep: Sweep) -> None:
    cell = made_up_cell(sweep.store)
    run(sweep, [cell], leave_out=tuple(with_company([cell])))
    sweep.record_failure(cell, {"exception": "RuntimeError", "message": "no luck [/x] today", "attempt": 1})
    text = printed(sweep)

    assert "1 cell (1 failed)" in text
    assert "no luck [/x] today" in text


def test_a_sweep_that_has_just_begun_or_has_no_cells(sweep: Sweep) -> None:
    join(sweep, [])
    assert "mine" in printed(sweep)

    cell = made_up_cell(sweep.store)
    run(sweep, [cell], leave_out=tuple(with_company([cell])))
    assert "1 cell (1 pending)" in printed(sweep)


def test_a_cell_without_its_baseline_is_no_reason_to_crash(sweep: Sweep) -> None:
    cell = made_up_cell(sweep.store)
    run(sweep, [cell], leave_out=(cell.baseline(),))

    assert "mine" in printed(sweep)


def agreement(site: str, position: str, is_low: bool, pearson: float | None = 0.987) -> dict[str, Any]:
    numbers = {"pearson": pearson, "spearman": 0.95, "same_sign": 0.9, "is_low": is_low, "n_pairs": 8}
    return {"site": site, "position": position, "components": [[block] for block in range(10)], **numbers}


def test_attribution_says_how_well_it_agrees_with_exact_patching(sweep: Sweep) -> None:
    run(sweep, [made_up_cell(sweep.store)])
    tables = build(sweep)
    checked = [agreement("attention", "last", is_low=False), agreement("mlp", "all", is_low=True, pearson=None)]
    facts = {"pair": "joy_sadness", "model": "made-up", "ranking": [3, 1], "block_scores": [0.1, 0.5, -0.2, 0.75]}
    sure = {"first_share": [0.0, 0.125, 0.0, 0.875], "block_scores_low": [0, 0, 0, 0.5], "block_scores_high": [0, 0, 0, 1.0]}
    tables.found = {"a": facts | sure | {"check": checked}, "b": facts | {"pair": "older", "no_heads": "heads of x: none"}, "c": {}}
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(summary("mine", tables))
    text = out.getvalue()
    sentence = (
        "Attribution of joy_sadness on made-up: block 3 first, in 88% of resamples; adds +0.75 nats [+0.50, +1.00]; block 1 in 12%"
    )
    assert sentence in " ".join(text.split())
    assert "attention, last position, 10 patched exactly: r 0.99, rho 0.95, signs 90%\n" in text
    assert "mlp, all positions, 10 patched exactly: r not computed, rho 0.95, signs 90% LOW" in " ".join(text.split())
    assert "Attribution of older on made-up: block 3 first\n  without heads: heads of x: none\n" in text
    assert widest(text) <= 80


def test_few_prompts_are_told(sweep: Sweep) -> None:
    cell = made_up_cell(sweep.store, n_prompts=3)
    join(sweep, with_company([cell]))
    for one in with_company([cell]):
        publish(sweep.store, sweep.scorers(), one)

    assert "With 3 prompts no p can be below 0.25: use at least 6." in " ".join(printed(sweep).split())


def test_the_best_cell_is_confirmed_on_prompts_that_did_not_choose_it(sweep: Sweep) -> None:
    cells = [
        made_up_cell(sweep.store, pair, n_prompts=16, coefficient=c) for pair in ("joy_sadness", "trust_disgust") for c in (0.1, 0.2)
    ]
    join(sweep, with_company(cells))
    for number, one in enumerate(with_company(cells)):
        shift = 8.0 if one in cells[1::2] else 0.0
        scores = random_scores(16, seed=number, shift=shift) | {"duplication": [0.0] * 16, "perplexity": [5.0] * 16}
        scores["trust"] = random_scores(16, seed=number)["trust"]
        publish(sweep.store, sweep.scorers(), one, scores)
    joy = build(sweep).confirmations.set_index("pair").loc["joy_sadness"]
    text = " ".join(printed(sweep).split())

    told = f"joy_sadness: joy {joy['confirmed']:+.1f} [{joy['ci_low']:+.1f}, {joy['ci_high']:+.1f}] p={joy['p']:.3f}".replace(
        "p=0", "p="
    )
    assert told in text
    assert f"Block 2 at 0.2, the choice of all 16 prompts and of 100% of the halves, has {joy['apparent']:+.1f} on them." in text
    assert "trust_disgust: trust" in text
    assert widest(printed(sweep)) <= 80


def test_what_is_not_confirmed_says_why_and_one_cell_needs_no_word(sweep: Sweep) -> None:
    run(sweep, [made_up_cell(sweep.store, coefficient=c) for c in (0.1, 0.2)])
    assert "joy_sadness: joy not confirmed: 10 prompts are too few to halve: give at least 12." in " ".join(printed(sweep).split())

    other = Sweep(sweep.paths.root.parent / "other", sweep.store)
    run(other, [made_up_cell(sweep.store, coefficient=0.1)])
    assert "confirmed" not in printed(other)


def test_flags_negations_and_the_agreement_of_scorers_are_told(sweep: Sweep) -> None:
    cell = made_up_cell(sweep.store)
    join(sweep, [cell, cell.baseline()])
    plain = {"perplexity": [5.0] * 10, "duplication": [0.0] * 10, "one_word": [0.0] * 10, "negated": [0.0] * 10}
    publish(sweep.store, sweep.scorers(), cell.baseline(), random_scores(10, seed=1) | plain)
    publish(sweep.store, sweep.scorers(), cell, random_scores(10, seed=2, shift=3) | plain)
    assert "Flagged" not in printed(sweep)
    assert "negation" not in printed(sweep)

    sweep.store.discard(cell)
    scores = random_scores(10, seed=2, shift=3) | plain | {"one_word": [1.0] * 4 + [0.0] * 6, "negated": [5.0, *[0.0] * 9]}
    scores["joy"][0] = 25.0  # of "I am not happy."
    replies = random_replies(sweep.store, cell, 2)
    said = [dataclasses.replace(replies[0], reply="I am not happy."), *replies[1:]]
    sweep.store.publish(cell, said, Resolved((2,), 3.0, 0.2), PROVENANCE)
    for scorer in sweep.scorers():
        sweep.store.publish_scores(cell, scorer.key, scorer.facts(), {m: scores[m] for m in SCORED[scorer.name]})
    row, text = build(sweep).cells.iloc[0], " ".join(printed(sweep).split())
    assert "most of their emotion: 4 of its replies, 0 unsteered ones. Without them joy " in text
    assert f"joy {row['primary_unflagged_delta']:+.1f} [{row['primary_unflagged_ci_low']:+.1f}, " in text
    assert "over 6 prompts." in text
    assert f"With negation handled the other way joy {row['primary_negation_delta']:+.1f} " in text
    found = build(sweep).agreement.iloc[0]
    assert f"Agreement of scorers on joy_sadness (Spearman, 20 replies): joy and sentiment {found['spearman']:+.2f}" in text


def candidates(*rows: dict[str, Any]) -> pd.DataFrame:
    """Rows of `results`; a readable, significant cell where nothing else is said."""
    plain = {
        "primary": "joy", "joy_delta": 1.0, "joy_q": 0.01, "joy_beyond_random_q": 0.01, "perplexity_ratio": 1.2,
        "duplication_steered": 0.1,
    }  # fmt: skip
    return pd.DataFrame([{**plain, "cell_id": str(number), **row} for number, row in enumerate(rows)])


def best(*rows: dict[str, Any]) -> str | None:
    found = best_readable(candidates(*rows))
    return None if found is None else str(found["cell_id"])


def test_the_largest_effect_among_the_readable_wins() -> None:
    assert best({"joy_delta": 1}, {"joy_delta": 3}, {"joy_delta": 2}) == "1"
    assert best({"joy_delta": 1}, {"joy_delta": 3, "perplexity_ratio": 1.51}) == "0"
    assert best({"joy_delta": 1}, {"joy_delta": 3, "perplexity_ratio": 1.5}) == "1"
    assert best({"joy_delta": 1}, {"joy_delta": 3, "duplication_steered": 0.31}) == "0"
    assert best({"joy_delta": 1}, {"joy_delta": 3, "duplication_steered": 0.3}) == "1"
    assert best({"joy_delta": 1}, {"joy_delta": 3, "perplexity_ratio": math.nan}) == "0", "all replies empty"


def test_significant_cells_come_first() -> None:
    assert best({"joy_delta": 1}, {"joy_delta": 3, "joy_q": 0.05}) == "0"
    assert best({"joy_delta": 1}, {"joy_delta": 3, "joy_beyond_random_q": 0.2}) == "0"
    assert best({"joy_delta": 1}, {"joy_delta": 3, "joy_beyond_random_q": math.nan}) == "1", "no controls, no comparison"
    assert best({"joy_delta": 1, "joy_q": 0.5}, {"joy_delta": 3, "joy_q": 0.5}) == "1"


def test_each_pair_counts_by_its_own_metric() -> None:
    trust = {"primary": "trust", "trust_delta": 2.0, "trust_q": 0.01, "joy_delta": 9.0}

    assert best({"joy_delta": 1}, trust) == "1"
    assert best({"joy_delta": 3}, trust) == "0"


def test_nothing_readable_is_no_recommendation() -> None:
    assert best({"perplexity_ratio": 3.0}, {"duplication_steered": 0.9}) is None
    assert best({"joy_delta": math.nan}) is None
    assert best() is None if candidates().shape[1] else True


def test_scorers_that_were_dropped_are_no_hindrance() -> None:
    rows = candidates({"joy_delta": 1}, {"joy_delta": 3}).drop(columns=["perplexity_ratio", "duplication_steered"])
    found = best_readable(rows)

    assert found is not None
    assert found["cell_id"] == "1"


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [{"joy_delta": float(i), "joy_q": q} for i, q in enumerate((0.9, 0.01, 0.02, 0.9, 0.9))]
    chance = random.Random(0)
    for _ in range(5):
        order = chance.sample(range(5), 5)
        found = best_readable(candidates(*rows).iloc[order])
        assert found is not None
        assert found["cell_id"] == "2"


def test_whether_attribution_predicts_steering_is_told(sweep: Sweep) -> None:
    cells = [made_up_cell(sweep.store, layers=(block,), attribution=None) for block in range(3)]
    run(sweep, cells)
    tables = build(sweep)
    known = {"rho": 0.5, "ci_low": -0.25, "ci_high": 0.75, "first_scored": 2, "first_steered": 1, "reason": ""}
    question = "Does attribution predict steering? joy_sadness on made-up, joy at 0.2: "

    assert question + "not computed, attribution is switched off" in " ".join(printed(sweep).split())
    out = io.StringIO()
    answered = dataclasses.replace(tables, predictions=tables.predictions.assign(**known))
    Console(file=out, width=100, highlight=False).print(summary(sweep.name, answered))
    answer = "rho +0.50 [-0.25, +0.75] over 3 blocks; block 2 is scored first, block 1 has the largest effect"
    assert question + answer in " ".join(out.getvalue().split())
