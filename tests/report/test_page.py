"""The page in a real browser: its numbers are those of the tables, it can be used, and it asks nothing of a network."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from made_up_sweep import join, made_up_cell, publish, with_company
from playwright.sync_api import Browser, Page
from reports import COEFFICIENTS, FAINT, LAYERS, MINUS, N_PROMPTS, WIDEST, Opened, scores_of, whole_sweep

from emosteer.finaliser import finalise
from emosteer.records.store import Store
from emosteer.records.sweep import Sweep
from emosteer.report.page import render
from emosteer.tables import Tables

OpenReport = Callable[..., Opened]
FIRST_CHOICES = """() => {
  for (const select of document.querySelectorAll('select')) {
    select.selectedIndex = 0;
    select.dispatchEvent(new Event('change', {bubbles: true}));
  }
}"""


@dataclass
class Made:
    """A sweep that was finalised, and what lies in its directory."""

    sweep: Sweep
    tables: Tables

    @property
    def page(self) -> Path:
        return self.sweep.paths.report

    @property
    def results(self) -> pd.DataFrame:
        return pd.read_parquet(self.sweep.paths.results_parquet)

    @property
    def replies(self) -> pd.DataFrame:
        return pd.read_parquet(self.sweep.paths.replies)


@pytest.fixture(scope="module")
def first_page(made: Made, browser: Browser) -> Iterator[Opened]:
    """One page for all tests: it takes a second or more to draw."""
    seen = Opened(browser.new_page())
    seen.show(made.page)
    yield seen
    seen.page.close()


@pytest.fixture
def shown(first_page: Opened) -> Opened:
    """That page, with everything chosen as at first."""
    page = first_page.page
    page.set_viewport_size({"width": 1200, "height": 900})
    page.emulate_media(media="screen", color_scheme="light")
    page.evaluate(FIRST_CHOICES)
    first_page.drawn()
    return first_page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    sweep = whole_sweep(tmp_path_factory.mktemp("report"))
    return Made(sweep, finalise(sweep, show=False))


def heatmap(page: Page) -> dict[str, str]:
    """Cell id -> what stands in its field."""
    return dict(page.eval_on_selector_all(".heatmap button", "all => all.map(one => [one.dataset.cell, one.textContent])"))


def value_of(text: str) -> float:
    return float(text.rstrip("*").replace(MINUS, "-"))


def test_the_page_says_nothing_to_the_console_and_asks_nothing_of_a_network(made: Made, shown: Opened) -> None:
    opened = shown
    for select, choice in (("#metric", "first_person"), ("#measure", "beyond_random"), ("#slice", "1"), ("#reply-order", "cost")):
        opened.page.select_option(select, choice)
    opened.page.emulate_media(color_scheme="dark")
    opened.drawn()

    assert opened.complaints == []
    assert opened.requests == [made.page.as_uri()]
    assert opened.page.locator("#trouble").is_hidden()


def test_what_is_not_ours_cannot_run(made: Made, shown: Opened) -> None:
    page = shown.page
    page.evaluate("() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.head.append(s) }")
    assert page.evaluate("window.ran") is None
    assert page.evaluate("fetch('https://example.org/').then(() => 'went', () => 'refused')") == "refused"


@pytest.mark.parametrize(
    ("metric", "measure", "column", "q"),
    [
        (None, "delta", "{}_delta", "{}_q"),
        ("first_person", "delta", "{}_delta", "{}_q"),
        ("perplexity", "beyond_random", "{}_beyond_random", "{}_beyond_random_q"),
        ("joy", "beyond_shuffled", "{}_beyond_shuffled", "{}_beyond_shuffled_q"),
        ("joy", "effect_size", "{}_effect_size", "{}_q"),
    ],
)
def test_a_heatmap_has_the_tables_numbers(made: Made, shown: Opened, metric: str, measure: str, column: str, q: str) -> None:
    page = shown.page
    if metric:
        page.select_option("#metric", metric)
    page.select_option("#measure", measure)
    fields = heatmap(page)
    cells = made.results[~made.results["is_control"]]
    digits = 2 if measure == "effect_size" else 1

    assert set(fields) == set(cells["cell_id"])
    assert sum(text.endswith("*") for text in fields.values()) > 0 or metric in ("first_person", "perplexity", "joy")
    for _, cell in cells.iterrows():
        name = metric or cell["primary"]
        text, value = fields[cell["cell_id"]], cell[column.format(name)]
        if math.isnan(value):
            assert text == ("failed" if cell["status"] == "failed" else "not computed")
            continue
        assert value_of(text) == pytest.approx(value, abs=0.5 * 10**-digits + 1e-9)
        assert text.endswith("*") == (cell[q.format(name)] < 0.05), cell["cell_id"]


def test_a_heatmap_lies_by_block_and_coefficient(made: Made, shown: Opened) -> None:
    page = shown.page
    page.select_option("#slice", "0")
    columns = page.locator(".heatmap thead th").all_inner_texts()
    rows = page.locator(".heatmap tbody th").all_inner_texts()

    assert columns == ["coefficient", "block 1+5", "block 2", "block 4", "block 10"]
    assert rows == ["0.3", "0.1", "-0.1"]
    results = made.results.set_index("cell_id")
    for row, coefficient in enumerate(sorted(COEFFICIENTS, reverse=True)):
        for column, layers in enumerate(columns[1:]):
            cell = page.locator(".heatmap tbody tr").nth(row).locator("button").nth(column).get_attribute("data-cell")
            assert results.loc[cell, "coefficient"] == coefficient
            assert f"block {results.loc[cell, 'layers']}" == layers
    assert len(columns) - 1 == len(LAYERS)


def test_a_click_on_a_field_shows_the_cell(made: Made, shown: Opened) -> None:
    page = shown.page
    cell = made.results[(made.results["pair"] == "joy_sadness") & ~made.results["is_control"]].iloc[5]
    page.click(f".heatmap button[data-cell='{cell['cell_id']}']")
    detail = page.locator("#cell")
    columns = detail.locator("thead th").all_inner_texts()
    rows = {
        row[0]: dict(zip(columns[1:], row[1:], strict=True))
        for row in (one.split("\t") for one in detail.locator("tbody tr").all_inner_texts())
    }

    assert detail.locator("h3").inner_text() == cell["cell_id"]
    assert page.evaluate("document.activeElement.textContent") == cell["cell_id"]
    assert "beyond exchanged labels" in columns
    assert "beyond prompting" in columns
    for name, metric in (("joy (primary)", "joy"), ("perplexity", "perplexity"), ("sentiment", "sentiment")):
        found = [value_of(text) for text in re.findall(f"[+{MINUS}]?[0-9.]+", rows[name]["difference"])]
        wanted = [cell[f"{metric}_{end}"] for end in ("delta", "ci_low", "ci_high")]
        assert found == pytest.approx(wanted, abs=0.0051)
        assert value_of(rows[name]["n"]) == cell[f"{metric}_n"]


def test_a_keyboard_reaches_every_field(made: Made, shown: Opened) -> None:
    page = shown.page
    page.select_option("#slice", "0")
    first = page.locator(".heatmap button").first
    first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    reached = page.evaluate("document.activeElement.dataset.cell")
    page.keyboard.press("Enter")

    assert reached == page.locator(".heatmap tbody tr").nth(1).locator("button").nth(1).get_attribute("data-cell")
    assert page.locator("#cell h3").inner_text() == reached
    assert page.locator(".heatmap button[tabindex='0']").count() == 1


def test_curves_have_the_tables_numbers(made: Made, shown: Opened) -> None:
    page = shown.page
    page.select_option("#slice", "0")
    shown.drawn()
    dose, cost = page.evaluate(
        "[...document.querySelectorAll('#charts .chart')].map(one => one.data.map(TRACE))".replace(
            "TRACE", "({x, y, name, customdata, error_y}) => ({x, y, name, customdata, error_y})"
        )
    )
    results = made.results.set_index("cell_id")
    seen = set()
    for trace in (one for one in dose if one["customdata"]):
        for i, cell in enumerate(trace["customdata"]):
            row = results.loc[cell]
            seen.add(cell)
            assert trace["name"] == f"block {row['layers']}"
            assert trace["x"][i] == pytest.approx(row["coefficient"], abs=0.02)
            assert trace["y"][i] == pytest.approx(row["joy_delta"], rel=1e-5)
            assert trace["y"][i] + trace["error_y"]["array"][i] == pytest.approx(row["joy_ci_high"], rel=1e-4, abs=1e-5)
            assert trace["y"][i] - trace["error_y"]["arrayminus"][i] == pytest.approx(row["joy_ci_low"], rel=1e-4, abs=1e-5)
    done = results[(results["pair"] == "joy_sadness") & ~results["is_control"] & (results["status"] == "done")]
    assert seen == set(done.index)

    points = [
        (done.loc[cell, "perplexity_ratio"], done.loc[cell, "joy_delta"]) for trace in cost for cell in trace["customdata"] or ()
    ]
    beaten = {(x, y) for x, y in points if any((a <= x and b > y) or (a < x and b >= y) for a, b in points)}
    front = next(trace for trace in cost if trace["name"] == "Pareto front")
    assert len(points) == len(done)
    assert sorted(zip(front["x"], front["y"], strict=True)) == [
        pytest.approx(point, rel=1e-5) for point in sorted(set(points) - beaten)
    ]


def test_a_cell_whose_replies_begin_alike_is_hollow(browser: Browser, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "alike", Store(tmp_path / "store"))
    cells = [made_up_cell(sweep.store, n_prompts=N_PROMPTS, layers=(2,), coefficient=c) for c in (0.1, 0.2, 0.3)]
    company = with_company(cells)
    join(sweep, company)
    # Of 14 replies 4 are within the limit of 0.3, and 5 are not.
    n_alike = dict(zip([cell.id for cell in cells], (4, 5, 14), strict=True))
    for number, cell in enumerate(company):
        alike = n_alike.get(cell.id, 14)  # the baseline's do not count
        scores = scores_of(number) | {"duplication": [1.0] * alike + [0.0] * (N_PROMPTS - alike)}
        publish(sweep.store, sweep.scorers(), cell, scores, seed=number)
    finalise(sweep, show=False)
    seen = Opened(browser.new_page())
    seen.show(sweep.paths.report)
    chart = seen.page.locator("#charts .chart").nth(1)
    filled, hollow, _front = chart.evaluate(
        "one => one.data.map(({customdata, marker, text, name, showlegend}) => ({customdata, marker, text, name, showlegend}))"
    )
    told = {
        cell: (trace["marker"]["symbol"].endswith("-open"), "begin alike" in text)
        for trace in (filled, hollow)
        for cell, text in zip(trace["customdata"], trace["text"], strict=True)
    }
    assert (filled["name"], filled["showlegend"], hollow["showlegend"]) == (hollow["name"], True, False), "a block is listed once"
    assert told == {cell.id: (is_alike, is_alike) for cell, is_alike in zip(cells, (False, True, True), strict=True)}
    captions = seen.page.locator("#charts figcaption").all_inner_texts()
    assert [("hollow: not readable, too many replies begin alike" in caption) for caption in captions[:2]] == [False, True]
    assert seen.complaints == []
    seen.page.close()


def listed(page: Page) -> list[dict[str, Any]]:
    return page.eval_on_selector_all(
        "#reply-list > li",
        """all => all.map(one => ({...one.dataset, prompt_text: one.querySelector('.prompt').textContent,
           texts: [...one.querySelectorAll('.text')].map(text => text.textContent)}))""",
    )


def test_replies_are_those_of_the_tables_and_filtered(made: Made, shown: Opened) -> None:
    page = shown.page
    total = sum(made.results.loc[~made.results["is_control"], "status"] == "done") * N_PROMPTS
    assert page.locator("#reply-count").inner_text() == f"{total} replies; 1 to 20 are shown."

    page.select_option("#reply-group", label="trust_disgust")
    page.select_option("#reply-layer", "10")
    page.select_option("#reply-coefficient", "0.3")
    page.select_option("#reply-order", "order")
    found = listed(page)
    cells = made.results.set_index("cell_id")
    replies = made.replies.set_index(["cell_id", "prompt_id", "sample"])

    assert len(found) == N_PROMPTS
    assert {cells.loc[one["cellId"], "pair"] for one in found} == {"trust_disgust"}
    assert {(cells.loc[one["cellId"], "layers"], cells.loc[one["cellId"], "coefficient"]) for one in found} == {("10", 0.3)}
    for one in found:
        cell = cells.loc[one["cellId"]]
        key = (one["prompt"], int(one["sample"]))
        steered, unsteered = replies.loc[(one["cellId"], *key)], replies.loc[(cell["baseline_id"], *key)]
        assert one["texts"] == [unsteered["reply"], steered["reply"]]
        assert one["prompt_text"] == steered["prompt"]
        assert float(one["effect"]) == pytest.approx(steered["trust"] - unsteered["trust"], abs=1e-4)
        assert float(one["cost"]) == pytest.approx(steered["perplexity"] / unsteered["perplexity"], rel=1e-4)

    page.select_option("#reply-prompt", "3")
    assert [one["prompt"] for one in listed(page)] == ["p3"]


@pytest.mark.parametrize(
    ("order", "key", "falls"), [("effect", "effect", True), ("effect-low", "effect", False), ("cost", "cost", True)]
)
def test_replies_are_sorted(made: Made, shown: Opened, order: str, key: str, falls: bool) -> None:
    page = shown.page
    page.select_option("#reply-order", order)
    values = [float(one[key]) for one in listed(page)]
    page.click("#reply-on")
    values += [float(one[key]) for one in listed(page)]

    assert len(values) == 40
    assert values == sorted(values, reverse=falls)


def test_a_control_has_its_replies_too(made: Made, shown: Opened) -> None:
    page = shown.page
    names = page.locator("#reply-group option").all_inner_texts()
    page.select_option("#reply-group", label="control: random")
    ids = {one["cellId"] for one in listed(page)}

    assert {"control: random", "control: shuffled (joy_sadness)", "control: prompting (joy_sadness)"} <= set(names)
    assert all(made.results.set_index("cell_id").loc[one, "vector_method"] == "random" for one in ids)


def test_its_replies_are_one_click_away(made: Made, shown: Opened) -> None:
    page = shown.page
    best = page.locator("#answer button[data-replies]").first.get_attribute("data-replies")
    page.locator("#answer button[data-replies]").first.click()
    assert {one["cellId"] for one in listed(page)} == {best}


def test_attribution_has_the_stores_numbers(made: Made, shown: Opened) -> None:
    from safetensors.numpy import load_file

    page = shown.page
    key = min(made.tables.found)
    scores = load_file(made.sweep.store.paths.attribution_scores(key))
    bars, last, everywhere, heads = page.evaluate(
        "[...document.querySelectorAll('[data-locus=\"0\"] .chart')].map(one => ({y: one.data[0].y, z: one.data[0].z}))"
    )

    assert bars["y"] == pytest.approx(made.tables.found[key]["block_scores"], rel=1e-3)
    assert last["z"][1] == pytest.approx(scores["last.mlp"].mean(0).tolist(), rel=1e-3)
    assert everywhere["z"][0] == pytest.approx(scores["everywhere.attention"].mean(0).tolist(), rel=1e-3)
    assert heads["z"][2] == pytest.approx(scores["last.head"].mean(0)[:, 2].tolist(), rel=1e-3)
    agreement = page.locator("#attribution table").filter(has_text="exact patching").first.inner_text()
    assert re.search(r"mlp\s+last\s+2\s+0\.500\s+not computed\s+50 %\s+low", agreement)


def test_it_says_how_it_was_made_and_what_failed(made: Made, shown: Opened) -> None:
    page = shown.page
    text = page.locator("#making").inner_text()
    cell = made.sweep.tasks()[0].cell

    for told in (
        "emosteer -m",
        "sha256:made-up",
        cell.prompts,
        "texts of joy_sadness",
        "diagnostics of joy_sadness",
        "torch 0",
        "cpu, on here",
    ):
        assert told in text
    assert "OutOfMemoryError: no memory for <this>" in text
    assert page.locator(".state").inner_text().startswith("Finished, with failures: of ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(shown: Opened, scheme: Literal["light", "dark"]) -> None:
    page = shown.page
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    page.locator(".heatmap button").first.click()
    shown.until(f"{WIDEST} <= 360")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(shown: Opened, scheme: Literal["light", "dark"]) -> None:
    page = shown.page
    page.emulate_media(color_scheme=scheme)
    page.locator(".heatmap button").first.click()
    assert page.evaluate(FAINT) == []


def test_a_screen_reader_finds_its_way(made: Made, shown: Opened) -> None:
    page = shown.page
    page.locator(".heatmap button").first.click()
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(one => Number(one.tagName[1]))")

    assert page.get_attribute("html", "lang") == "en"
    assert page.title() == "mine: emosteer report"
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.locator("section:not([aria-labelledby])").count() == 0
    assert page.eval_on_selector_all("select", "all => all.filter(one => !one.labels.length).length") == 0
    assert page.eval_on_selector_all("button", "all => all.filter(one => !(one.textContent.trim() || one.ariaLabel)).length") == 0
    assert page.eval_on_selector_all("table", "all => all.filter(one => !one.caption).length") == 0
    assert page.eval_on_selector_all("th", "all => all.filter(one => !one.scope).length") == 0
    assert (
        page.eval_on_selector_all(
            ".chart", "all => all.filter(one => !(one.ariaLabel && one.closest('figure').querySelector('table'))).length"
        )
        == 0
    )
    ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(set(ids)) == len(ids)


def test_it_prints_on_paper(shown: Opened, tmp_path: Path) -> None:
    page = shown.page
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")

    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#choice").is_hidden()
    shown.until(f"{WIDEST} <= 700")
    printed = page.pdf(path=tmp_path / "report.pdf", format="A4")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert printed.startswith(b"%PDF")


def test_without_scripts_the_answer_is_still_there(made: Made, open_report: OpenReport) -> None:
    page = open_report(made.page, "#making", java_script_enabled=False).page
    assert "raises joy by" in page.locator("#answer").inner_text()
    assert "results.csv" in page.locator("noscript").inner_text()


def test_more_replies_than_it_takes_are_left_out_and_said(made: Made, open_report: OpenReport, tmp_path: Path) -> None:
    path = tmp_path / "few.html"
    path.write_bytes(render(made.sweep, made.tables, most_replies=4 * N_PROMPTS))
    page = open_report(path).page
    left_out = len(made.replies) - 4 * N_PROMPTS

    assert page.locator("#reply-count").inner_text().startswith(f"{3 * N_PROMPTS} replies;")
    assert f"{left_out:,} of {len(made.replies):,} replies are left out here" in page.locator("#replies .warning").inner_text()
    deltas = made.results[~made.results["is_control"]].apply(lambda row: abs(row[f"{row['primary']}_delta"]), axis=1)
    largest = set(made.results.loc[deltas.nlargest(3).index, "cell_id"])
    ids = {one["cellId"] for one in listed(page)}
    page.click("#reply-on")
    ids |= {one["cellId"] for one in listed(page)}
    page.click("#reply-on")
    ids |= {one["cellId"] for one in listed(page)}
    assert ids == largest
