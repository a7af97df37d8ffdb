"""Predictions, agreement and turns on the page: the numbers of their CSV files, and what they mean in words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest
from made_up_sweep import join, made_up_cell, publish, with_company
from playwright.sync_api import Browser, Locator
from reports import FAINT, MINUS, WIDEST, Opened, scores_of, whole_sweep
from typer.testing import CliRunner

from emosteer.datasets import Prompt
from emosteer.finaliser import finalise
from emosteer.records.store import Store
from emosteer.records.sweep import Sweep
from emosteer.report.agreed import words_of
from emosteer.report.answers import Answer
from emosteer.report.by_turn import by_turn
from emosteer.report.page import render
from emosteer.report.predicted import predicted
from emosteer.report.words import left_open
from emosteer.sweep_cli import app
from emosteer.tables import Tables

N_TURNS = 3
N_DIALOGUES = 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = whole_sweep(tmp_path_factory.mktemp("further"))
    finalise(sweep, show=False)
    return sweep


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Two blocks, steered in dialogues of three replies, of which the first is pushed most and the last not."""
    root = tmp_path_factory.mktemp("dialogues")
    sweep = Sweep(root / "talks", Store(root / "store"))
    said = tuple(f"Said {n}" for n in range(1, N_TURNS))
    prompts = [
        Prompt(f"p{i}", f"Prompt {i}?", "", ({"role": "user", "content": f"Prompt {i}?"},), turns=said) for i in range(N_DIALOGUES)
    ]
    key = sweep.store.keep_texts(prompts)
    cells = [made_up_cell(sweep.store, prompts=key, layers=(layer,), coefficient=0.2) for layer in (2, 4)]
    company = with_company(cells)
    join(sweep, company)
    for number, cell in enumerate(company):
        scores = {metric: (values * N_TURNS)[: N_DIALOGUES * N_TURNS] for metric, values in scores_of(number).items()}
        if cell in cells:
            push = (9.0, 5.0, 0.0)
            scores["joy"] = [value + push[i % N_TURNS] for i, value in enumerate(scores["joy"])]
        scores["perplexity"] = [10.0 + i % 2 for i in range(len(scores["joy"]))]
        publish(sweep.store, sweep.scorers(), cell, scores, seed=number)
    finalise(sweep, show=False)
    return sweep


@pytest.fixture(scope="module")
def page_of(browser: Browser) -> Iterator[Callable[[Sweep], Opened]]:
    """A sweep's page, opened once for all tests."""
    pages: dict[Path, Opened] = {}

    def opened(sweep: Sweep) -> Opened:
        path = sweep.paths.report
        if path not in pages:
            pages[path] = Opened(browser.new_page(viewport={"width": 1200, "height": 900}))
            pages[path].show(path)
        return pages[path]

    yield opened
    for seen in pages.values():
        seen.page.close()


def rows_of(table: Locator) -> list[list[str]]:
    return [line.split("\t") for line in table.locator("tbody tr").all_inner_texts()]


def numbers_in(text: str) -> list[float]:
    return [float(found.replace(MINUS, "-")) for found in re.findall(f"[+{MINUS}]?[0-9.]*[0-9]", text)]


def test_predictions_are_those_of_the_table(whole: Sweep, page_of: Callable[[Sweep], Opened]) -> None:
    table = pd.read_csv(whole.paths.predictions_csv)
    seen = page_of(whole)
    articles = seen.page.locator("#attribution article")
    assert articles.count() == table["attribution_id"].nunique()
    for article, pair in zip(articles.all(), ("joy_sadness", "trust_disgust"), strict=True):
        wanted = table[(table["pair"] == pair) & (table["reason"].isna())]
        shown = rows_of(article.locator(".predictions"))
        assert pair in article.locator("h3").inner_text()
        assert len(shown) == len(wanted) > 0
        for row, (_, own) in zip(shown, wanted.iterrows(), strict=True):
            assert row[0] == str(own["coefficients"])
            assert int(row[1]) == own["n_blocks"]
            found = [*numbers_in(row[2]), *numbers_in(row[3])]
            assert found == pytest.approx([own["rho"], own["ci_low"], own["ci_high"]], abs=0.0051)
            assert row[4:] == [f"block {own['first_scored']:.0f}", f"block {own['first_steered']:.0f}"]
        last = wanted.sort_values("n_coefficients").iloc[-1]
        sentence = article.locator(".predicted").inner_text()
        assert ("do not tell" in sentence) == (last["ci_low"] <= 0 <= last["ci_high"])
        assert f"over {last['n_blocks']:.0f} blocks. " in sentence
        assert "Of 3 blocks one order in 6 is the right one by chance." in sentence
    assert seen.complaints == []


def made_up_prediction(**changes: object) -> Tables:
    axes = dict.fromkeys(("primary", "dtype", "prompts", "site", "coefficient_unit", "scope", "vector_id", "baseline_id"), "same")
    row = {**axes, "decay": None, "seed": 0, "attribution_id": "a", "coefficients": "0.2", "n_coefficients": 1, "reason": ""}
    numbers = {"n_blocks": 8, "n": 10, "rho": 0.6, "ci_low": 0.5, "ci_high": 0.8, "first_scored": 3.0, "first_steered": 4.0}
    nothing = pd.DataFrame()
    return Tables(nothing, nothing, nothing, predictions=pd.DataFrame([row | numbers | changes]), found={"a": {"pair": "joy"}})


@pytest.mark.parametrize(
    ("changes", "told", "left_out"),
    [
        ({}, "Here it does", "interval"),
        ({"ci_low": 0.1, "ci_high": 0.9}, "Here it does: the higher a block's score, the larger", "includes 0"),
        ({"ci_low": 0.1, "ci_high": 0.9}, "The interval is wide.", "includes 0"),
        ({"rho": -0.6, "ci_low": -0.8, "ci_high": -0.5}, "Here it does not: the higher a block's score, the smaller", "interval"),
        ({"ci_low": -0.1, "ci_high": 0.9}, "do not tell. The rank correlation of scores and steering effects", "Here it"),
        ({"ci_low": -0.1, "ci_high": 0.9}, "The interval includes 0 and is wide.", "Here it"),
        ({"ci_low": math.nan, "ci_high": math.nan}, "There is no interval.", "Here it"),
        ({"n_blocks": 5}, "On these few blocks it does: the", "Here"),
        ({"n_blocks": 4, "rho": -0.6, "ci_low": -0.8, "ci_high": -0.5}, "On these few blocks it does not: the", "Here"),
        ({"n_blocks": 5}, "Of 5 blocks one order in 120 is the right one by chance.", "interval"),
        (
            {"n_blocks": 2, "reason": "2 steered blocks are too few"},
            "Not computed for same at coefficient 0.2: 2 steered blocks",
            "Here",
        ),
    ],
)
def test_a_prediction_says_what_its_interval_allows(changes: dict[str, object], told: str, left_out: str) -> None:
    (one,) = predicted(made_up_prediction(**changes))["a"]
    assert told in one.sentence
    assert left_out not in one.sentence
    assert bool(one.rows) == ("reason" not in changes)


@pytest.mark.parametrize("changes", [{"n_blocks": 1, "reason": "too few"}, {"attribution_id": "not there"}, {"attribution_id": None}])
def test_a_prediction_of_one_block_or_without_attribution_is_not_shown(changes: dict[str, object]) -> None:
    assert predicted(made_up_prediction(**changes)) == {}


def test_agreement_is_that_of_the_table(whole: Sweep, page_of: Callable[[Sweep], Opened]) -> None:
    table = pd.read_csv(whole.paths.agreement_csv, dtype={"reason": str}).fillna({"reason": ""})
    rows = rows_of(page_of(whole).page.locator("#replies .agreement"))
    assert len(rows) == len(table) == 2
    for row, own in zip(rows, table.to_dict("records"), strict=True):
        assert row[:3] == [own["pair"], f"{own['metric']} and {own['other']}", words_of(own)]
        for text, name in ((row[3], "spearman"), (row[4], "pearson")):
            assert numbers_in(text) == pytest.approx([own[name], own[f"{name}_ci_low"], own[f"{name}_ci_high"]], abs=0.0051)
        assert int(row[5].replace(",", "")) == own["n"]


@pytest.mark.parametrize(
    ("rho", "low", "high", "told"),
    [
        (0.9, 0.8, 0.95, "High: "),
        (
            0.7,
            0.1,
            0.95,
            "High: the two put the replies into much the same order; whether both show an effect is another question. The interval",
        ),
        (0.5, 0.4, 0.6, "Moderate: "),
        (0.3, 0.2, 0.4, "Low: "),
        (0.1, -0.1, 0.2, "Not shown: these replies do not tell whether the two agree. The interval includes 0."),
        (
            -0.6,
            -0.8,
            -0.4,
            "Opposite: where one is high, the other is low. Of an unpleasant emotion and sentiment that is agreement.",
        ),
        (1.0, math.nan, math.nan, "Not certain. There is no interval."),
    ],
)
def test_agreement_in_words(rho: float, low: float, high: float, told: str) -> None:
    row = {"metric": "joy", "other": "sentiment", "reason": "", "spearman": rho, "spearman_ci_low": low, "spearman_ci_high": high}
    assert words_of(row).startswith(told)
    assert "sentiment" not in words_of(row | {"other": "judge_joy"})
    assert (
        words_of(row | {"reason": "the other is the same for all replies"}) == "Not computed: the other is the same for all replies."
    )


def test_what_an_interval_leaves_open() -> None:
    assert left_open(0.2, 0.7) == ""
    assert left_open(0.2, 0.71) == "The interval is wide."
    assert left_open(-0.0, 0.3) == "The interval includes 0."


def test_the_report_command_lists_every_table_of_dialogues(dialogues: Sweep) -> None:
    done = CliRunner().invoke(app, ["report", str(dialogues.paths.root), "--json"], catch_exceptions=False)
    told = json.loads(done.stdout)
    assert told["files"]["turns_csv"] == str(dialogues.paths.turns_csv)
    assert told["rows"]["turns"] == len(pd.read_csv(dialogues.paths.turns_csv)) > 0
    listed = {path for path in told["files"].values() if isinstance(path, str)}
    assert {str(path) for path in dialogues.paths.root.glob("*.csv")} <= listed


def test_dialogues_are_drawn_reply_by_reply(dialogues: Sweep, page_of: Callable[[Sweep], Opened]) -> None:
    table = pd.read_csv(dialogues.paths.turns_csv)
    seen = page_of(dialogues)
    best = seen.page.locator("#answer button[data-cell]").get_attribute("data-cell")
    own = table[(table["cell_id"] == best) & table["is_primary"]]
    place = seen.page.locator("[data-turns]")
    assert place.get_attribute("data-turns") == best
    unsteered, steered = place.locator(".chart").evaluate("one => one.data.map(({x, y, name, error_y}) => ({x, y, name, error_y}))")

    assert [unsteered["name"], steered["name"]] == ["unsteered", "steered"]
    assert unsteered["x"] == steered["x"] == [1, 2, 3]
    assert unsteered["y"] == pytest.approx(own["baseline"].tolist(), rel=1e-5)
    assert steered["y"] == pytest.approx(own["steered"].tolist(), rel=1e-5)
    assert steered["error_y"]["array"] == pytest.approx((own["ci_high"] - own["delta"]).tolist(), rel=1e-4)
    assert steered["error_y"]["arrayminus"] == pytest.approx((own["delta"] - own["ci_low"]).tolist(), rel=1e-4)

    place.locator("summary").click()
    for row, (_, turn) in zip(rows_of(place.locator("table")), own.iterrows(), strict=True):
        wanted = [turn["turn"] + 1, *turn[["baseline", "steered", "delta", "ci_low", "ci_high"]], N_DIALOGUES]
        assert [value for text in row for value in numbers_in(text)] == pytest.approx([float(value) for value in wanted], abs=0.051)
    sentence = seen.page.locator("#curves article p").inner_text()
    assert sentence.startswith(
        f"Block {own['layers'].iloc[0]} at coefficient 0.2: joy beside the unsteered dialogues [words per 100], over 12 prompts: "
    )
    assert "At reply 3 no effect is shown" in sentence
    assert seen.complaints == []


def test_a_cell_of_dialogues_shows_every_metric_at_each_reply(dialogues: Sweep, page_of: Callable[[Sweep], Opened]) -> None:
    table = pd.read_csv(dialogues.paths.turns_csv)
    page = page_of(dialogues).page
    other = str(table["cell_id"].unique()[-1])
    page.click(f".heatmap button[data-cell='{other}']")
    rows = {row[0]: row[1:] for row in rows_of(page.locator("#cell table").filter(has_text="at each reply"))}
    assert list(rows) == ["joy", "first_person", "sentiment", "perplexity", "duplication"]
    for metric, texts in rows.items():
        own = table[(table["cell_id"] == other) & (table["metric"] == metric)]
        found = [number for text in texts for number in numbers_in(text)]
        wanted = [number for _, row in own.iterrows() for number in row[["delta", "ci_low", "ci_high"]].astype(float)]
        assert found == pytest.approx(wanted, abs=0.0051)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_they_fit_a_phone_and_stand_out(dialogues: Sweep, browser: Browser, scheme: Literal["light", "dark"]) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    seen = Opened(page)
    seen.show(dialogues.paths.report)
    page.locator(".heatmap button").first.click()
    seen.until(f"{WIDEST} <= 360")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(FAINT) == []
    page.close()


def test_a_screen_reader_gets_the_dialogues_too(dialogues: Sweep, page_of: Callable[[Sweep], Opened]) -> None:
    page = page_of(dialogues).page
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(one => Number(one.tagName[1]))")
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.eval_on_selector_all("[data-turns] .chart", "all => all.map(one => one.ariaLabel)")[0].startswith("joy at each reply")
    assert page.eval_on_selector_all("table", "all => all.filter(one => !one.caption).length") == 0


def test_without_scripts_the_sentences_are_there(dialogues: Sweep, whole: Sweep, open_report: Callable[..., Opened]) -> None:
    page = open_report(dialogues.paths.report, "#making", java_script_enabled=False).page
    assert "joy beside the unsteered dialogues" in page.locator("#curves").inner_text()
    page = open_report(whole.paths.report, "#making", java_script_enabled=False).page
    assert "Does it predict where steering works?" in page.locator("#attribution").inner_text()
    assert page.locator("#replies .agreement tbody tr").count() == 2


def test_nothing_is_shown_where_there_is_nothing(whole: Sweep, dialogues: Sweep, tmp_path: Path) -> None:
    assert b"Reply by reply" not in whole.paths.report.read_bytes(), "its prompts have one reply"
    assert b'class="predicted"' not in dialogues.paths.report.read_bytes(), "it has no attribution"
    sweep = Sweep(tmp_path / "none", Store(tmp_path / "store"))
    cell = made_up_cell(sweep.store)
    join(sweep, with_company([cell]))
    page = render(sweep, finalise(sweep, show=False)).decode()
    for words in ("Reply by reply", 'class="predicted"', "Do the scorers agree?"):
        assert words not in page


def made_up_turns(*effects: tuple[float, float, float]) -> str:
    """The sentence about a cell with these differences and intervals at its replies."""
    cell = {"cell_id": "a", "is_control": False, "layers": "9", "intervention": "add"}
    cell |= {"coefficient": 0.2, "coefficient_unit": "fraction"}
    axes = {"cell_id": "a", "metric": "joy", "is_primary": True, "n": 20}
    rows = [axes | dict(zip(("delta", "ci_low", "ci_high"), effect, strict=True)) for effect in effects]
    tables = Tables(pd.DataFrame([cell]), pd.DataFrame(), pd.DataFrame(), turns=pd.DataFrame(rows))
    (found,) = by_turn(tables, [Answer("joy_sadness", "made-up", "", True, "a"), Answer("other", "made-up", "", True, "")])
    return found.sentence


def test_dialogues_in_words() -> None:
    up, down, flat = (2.0, 1.0, 3.0), (-2.0, -3.0, -1.0), (0.5, -1.0, 2.0)
    assert made_up_turns(up, up) == (
        "Block 9 at coefficient 0.2: joy beside the unsteered dialogues [words per 100], over 20 prompts: reply 1 +2.0 [+1.0, +3.0]; "
        "reply 2 +2.0 [+1.0, +3.0]. Every interval is on one side of 0."
    )
    assert made_up_turns(up, down).endswith("Every interval is on one side of 0, not always the same one.")
    assert made_up_turns(up, flat, flat).endswith("At replies 2, 3 no effect is shown: the interval is not on one side of 0.")
    assert made_up_turns(flat, flat).endswith("No interval is on one side of 0: reply by reply no effect is shown.")
    without = made_up_turns(up, (2.0, math.nan, math.nan))
    assert without.endswith("reply 2 +2.0. At reply 2 no effect is shown: the interval is not on one side of 0.")
