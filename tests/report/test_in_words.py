"""What the report says in words is what the tables say, and what cannot be said is said to be missing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from made_up_sweep import join, made_up_cell, publish, random_scores, with_company
from reports import whole_sweep

from emosteer.records.cell import Cell
from emosteer.records.store import Store
from emosteer.records.sweep import Sweep
from emosteer.report.answers import answers
from emosteer.report.page import render
from emosteer.report.words import interval, probability, signed, visible
from emosteer.summary import best_readable
from emosteer.tables import build


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path / "mine", Store(tmp_path / "store"))


def run(sweep: Sweep, cells: list[Cell], n: int = 14, **scores: list[float]) -> None:
    for number, cell in enumerate(cells):
        publish(sweep.store, sweep.scorers(), cell, random_scores(n, number) | {"duplication": [0.0] * n} | scores, seed=number)


def test_the_best_cell_is_the_summarys(tmp_path: Path) -> None:
    tables = build(whole_sweep(tmp_path))
    found = {answer.pair: answer for answer in answers(tables)}

    assert set(found) == {"joy_sadness", "trust_disgust"}
    for pair, answer in found.items():
        rows = tables.replied[tables.replied["pair"] == pair]
        best = best_readable(rows)
        assert best is not None
        assert answer.cell_id == best["cell_id"]
        told, primary = dict(answer.facts), best["primary"]
        assert (
            f"{best[f'{primary}_delta']:+.1f} [{best[f'{primary}_ci_low']:+.1f}, {best[f'{primary}_ci_high']:+.1f}]".replace(
                "-", "\u2212"
            )
            in told["Best readable cell"]
        )
        assert f"perplexity \u00d7{best['perplexity_ratio']:.2f}" in told["Cost"]
        assert (
            f"{best[f'{primary}_beyond_random']:+.1f}".replace("-", "\u2212") in told["Beyond a random direction of the same length"]
        )
        tested = rows[f"{primary}_p"].notna().sum()
        assert told["Tested"].startswith(f"{tested} cells of this pair")
        assert (
            f"{(rows[f'{primary}_q'] < 0.05).sum()} with q < .05. q is over the {tables.cells[f'{primary}_p'].notna().sum()} cells"
            in told["Tested"]
        )


def test_a_cell_that_cannot_be_read_is_no_answer(sweep: Sweep) -> None:
    cells = with_company([made_up_cell(sweep.store, n_prompts=14)])
    join(sweep, cells)
    run(sweep, cells, duplication=[1.0] * 14)
    (answer,) = answers(build(sweep))

    assert answer.verdict == "no cell raises joy and stays readable"
    assert not answer.is_good
    assert answer.facts[0][0] == "Largest effect"


def test_every_cell_failed(sweep: Sweep) -> None:
    cells = with_company([made_up_cell(sweep.store, n_prompts=14)])
    join(sweep, cells)
    for cell in cells:
        sweep.record_failure(cell, {"exception": "OutOfMemoryError", "message": "too small"})
    tables = build(sweep)
    (answer,) = answers(tables)
    page = render(sweep, tables).decode()

    assert answer.verdict == "nothing to say: every cell failed"
    assert "Finished, with failures" in page
    assert "OutOfMemoryError: too small" in page


def test_nothing_has_run_yet(sweep: Sweep) -> None:
    join(sweep, with_company([made_up_cell(sweep.store, n_prompts=14)]))
    tables = build(sweep)
    page = render(sweep, tables).decode()

    assert answers(tables)[0].verdict == "nothing to say: no cell has replies and scores yet"
    assert "<strong>Half done:</strong> of 3 tasks" in page


def test_a_pair_whose_primary_metric_nobody_computed(sweep: Sweep) -> None:
    cell = made_up_cell(sweep.store, n_prompts=14)
    assert cell.pair
    cell = dataclasses.replace(cell, pair=dataclasses.replace(cell.pair, primary="awe"))
    cells = with_company([cell])
    join(sweep, cells)
    run(sweep, cells)
    tables = build(sweep)

    assert answers(tables)[0].verdict == "nothing to say: its primary metric awe was not computed"
    assert b"was not computed" in render(sweep, tables)


def test_numbers_in_words() -> None:
    assert signed(-1.25) == "\u22121.2"
    assert signed(math.nan) == "not computed"
    assert interval(-0.04, 1.26) == "[\u22120.0, +1.3]"
    assert interval(math.nan, 1.0) == ""
    assert [probability("q", q) for q in (0.0004, 0.05, 1.0, math.nan)] == ["q < .001", "q = .050", "q = 1.000", "q not computed"]
    assert visible("a\x00\r\nb\tc\x9b") == "a\u2400\nb\tc\ufffd"
