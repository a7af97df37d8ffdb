"""Whatever a model says or a user calls things, nothing of it runs, and all of it can be read."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest
from made_up_sweep import made_up_cell, settings, with_company
from reports import N_PROMPTS, Opened, publish_texts

from emosteer.finaliser import finalise
from emosteer.records.store import Store
from emosteer.records.sweep import Command, Sweep, Task

RUNS = "window.ran = (window.ran || 0) + 1"
HOSTILE = (
    f"</script><script>{RUNS}</script>",
    f"<img src=x onerror='{RUNS}'><svg onload='{RUNS}'>",
    f"<!--<script>{RUNS}</script>-->]]><![CDATA[",
    f"javascript:{RUNS} {{{{ 7 * 7 }}}} {{% raw %}} ${{{RUNS}}}",
    "\x00\x01\x07\x1b[31mred\x1b[0m\x7f\x9b after the signs",
    "left \u202eesrever ton od\u202c right \u2066open",
    "\u05d0\u05d1\u05d2 \u0645\u0631\u062d\u0628\u0627 \u4f60\u597d \u0928\u092e\u0938\u094d\u0924\u0947 I am happy",
    "e\u0301motion \u1e9b\u0323 \U0001f468\u200d\U0001f469\u200d\U0001f467 happy\u2028joy\u2029love",
    "&lt;b&gt; &amp; &#x3c;script&#x3e; \\u003cscript\\u003e",
    "z" * 5000,
    "a\u0300\u0301\u0302\u0303" * 200,
    "",
    " \n\n ",
    "happy so\u00adft-hy\u00adphens and I\u2019m hap\u00adpy",
)
VISIBLE = {"\x00": "\u2400", "\x01": "\u2401", "\x07": "\u2407", "\x1b": "\u241b", "\x7f": "\u2421", "\x9b": "\ufffd"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    root = tmp_path_factory.mktemp("hostile")
    sweep = Sweep(root / "<b>'quoted' & \"named\"", Store(root / "store"))
    cells = [made_up_cell(sweep.store, n_prompts=N_PROMPTS, layers=(layer,), coefficient=0.1) for layer in (2, 4)]
    company = with_company(cells)
    line = ["emosteer", f"name=</code><script>{RUNS}</script>", "\x1b[2Jx"]
    sweep.add(Command(line, settings(), {"host": f"<script>{RUNS}</script>"}, [Task(cell) for cell in company]))
    for number, cell in enumerate(company):
        if cell is cells[1]:
            message = f"<script>{RUNS}</script>\x1b[31m \u202e"
            sweep.record_failure(cell, {"exception": "<i>Error</i>", "message": message, "host": "<u>here</u>"})
        else:
            publish_texts(sweep, cell, lambda i: HOSTILE[i % len(HOSTILE)], seed=number)
    finalise(sweep, show=False)
    return sweep


def as_shown(text: str) -> str:
    return unicodedata.normalize("NFC", "".join(VISIBLE.get(character, character) for character in text))


def test_hostile_replies_are_shown_and_run_nothing(hostile: Sweep, open_report: Callable[..., Opened]) -> None:
    opened = open_report(hostile.paths.report)
    page = opened.page
    page.select_option("#reply-order", "order")
    page.locator(".heatmap button").first.click()
    page.locator(".heatmap button").last.click()
    texts = page.eval_on_selector_all("#reply-list > li", "all => all.map(one => one.querySelectorAll('.text')[1].textContent)")

    assert texts == [as_shown(text) for text in HOSTILE]
    assert page.evaluate("window.ran") is None
    assert opened.complaints == []
    assert opened.requests == [hostile.paths.report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_names_and_errors_are_text_too(hostile: Sweep, open_report: Callable[..., Opened]) -> None:
    page = open_report(hostile.paths.report).page
    making = page.locator("#making").inner_text()

    assert page.locator("h1").inner_text() == hostile.name
    assert f"name=</code><script>{RUNS}</script>" in making
    assert "\u241b[2Jx" in making
    assert f"<i>Error</i>: <script>{RUNS}</script>\u241b[31m" in making
    assert page.evaluate("window.ran") is None
    assert page.evaluate("document.querySelectorAll('h1 b, code script, td i, td script').length") == 0


def test_a_reversed_reply_turns_nothing_else(hostile: Sweep, open_report: Callable[..., Opened]) -> None:
    """An unclosed mark of direction ends with its reply: what stands beside it keeps its place."""
    page = open_report(hostile.paths.report).page
    page.select_option("#reply-order", "order")
    isolation = page.eval_on_selector_all(
        "#reply-list .text", "all => [...new Set(all.map(one => getComputedStyle(one).unicodeBidi))]"
    )
    assert isolation == ["isolate"]


def test_marks_are_where_the_words_are(hostile: Sweep, open_report: Callable[..., Opened]) -> None:
    page = open_report(hostile.paths.report).page
    page.select_option("#reply-order", "order")
    steered = "[...one.querySelectorAll('.text')[1].querySelectorAll('mark')]"
    marks = page.eval_on_selector_all(
        "#reply-list > li", f"all => all.map(one => {steered}.map(mark => [mark.textContent, mark.title, mark.className]))"
    )
    happy = ["happy", "joy, trust, anticipation, positive", "emotion"]
    assert marks[6] == [["I", "first person", "first"], happy]
    assert [word for word, *_ in marks[7]] == ["happy", "joy", "love"]
    assert marks[13] == [happy, ["I\u2019m", "first person", "first"], ["hap\u00adpy", *happy[1:]]]
