"""Sweeps that something is wrong with: what is missing is said, and what can be shown is shown."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from made_up_sweep import join, made_up_cell, publish, with_company
from reports import N_PROMPTS, Opened, scores_of, whole_sweep
from typer.testing import CliRunner, Result

from emosteer.finaliser import finalise
from emosteer.records.store import Store
from emosteer.records.sweep import Sweep
from emosteer.sweep_cli import app

FORMAT_1 = Path(__file__).parent.parent / "fixtures" / "store-format-1"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def report(name: str | Path) -> Result:
    return CliRunner().invoke(app, ["report", str(name)], catch_exceptions=False, prog_name="emosteer-sweep")


def few_cells(root: Path, n: int = 2) -> tuple[Sweep, list[str]]:
    """A sweep of cells at one coefficient, of which the last has not run."""
    sweep = Sweep(root / "outputs" / "few", Store(root / "outputs" / "store"))
    cells = [made_up_cell(sweep.store, n_prompts=N_PROMPTS, layers=(layer,)) for layer in range(n)]
    company = with_company(cells)
    join(sweep, company)
    for number, cell in enumerate(company):
        if cell is not cells[-1]:
            publish(sweep.store, sweep.scorers(), cell, scores_of(number), seed=number)
    return sweep, [cell.id for cell in cells]


def test_a_directory_that_is_no_sweep_is_told(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "results.parquet").write_text("of another program")
    done = report("foreign")
    assert done.exit_code == 2
    assert done.stderr.startswith("foreign: no sweep there (looked in ")
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["results.parquet"]


def test_an_old_sweep_has_a_report(tmp_path: Path, open_report: Callable[..., Opened]) -> None:
    shutil.copytree(FORMAT_1, tmp_path / "outputs")
    assert report("tiny").exit_code == 0
    opened = open_report(tmp_path / "outputs" / "tiny" / "report.html")
    assert opened.page.locator(".heatmap button").count() == 1
    assert opened.page.locator("#reply-list > li").count() == 3
    assert opened.complaints == []


def test_damaged_tables_are_built_again(tmp_path: Path) -> None:
    sweep, _ = few_cells(tmp_path)
    assert report("few").exit_code == 0
    whole = sweep.paths.report.read_bytes()
    for path in (sweep.paths.results_parquet, sweep.paths.replies, sweep.paths.report):
        path.write_bytes(path.read_bytes()[:100] + b"damaged")
    assert report("few").exit_code == 0
    assert sweep.paths.report.read_bytes() == whole
    assert len(pd.read_parquet(sweep.paths.results_parquet)) == 4


def test_a_cell_without_replies_is_shown_as_what_it_is(tmp_path: Path, open_report: Callable[..., Opened]) -> None:
    sweep, ids = few_cells(tmp_path)
    finalise(sweep, show=False)
    opened = open_report(sweep.paths.report)
    page = opened.page
    assert page.locator(".state").inner_text().startswith("Half done: of 5 tasks")
    assert page.locator(f".heatmap button[data-cell='{ids[1]}']").inner_text() == "pending"
    page.locator(f".heatmap button[data-cell='{ids[1]}']").click()
    assert "there are no numbers" in page.locator("#cell").inner_text()
    assert opened.complaints == []


def test_one_coefficient_alone_is_drawn(tmp_path: Path, open_report: Callable[..., Opened]) -> None:
    sweep, _ = few_cells(tmp_path, n=3)
    finalise(sweep, show=False)
    opened = open_report(sweep.paths.report)
    assert opened.page.locator(".heatmap tbody tr").count() == 1
    assert opened.page.locator("#charts .chart").count() == 2
    assert opened.complaints == []


def test_a_sweep_whose_cells_all_failed_opens(tmp_path: Path, open_report: Callable[..., Opened]) -> None:
    sweep = Sweep(tmp_path / "outputs" / "failed", Store(tmp_path / "outputs" / "store"))
    company = with_company([made_up_cell(sweep.store)])
    join(sweep, company)
    for cell in company:
        sweep.record_failure(cell, {"exception": "OutOfMemoryError", "message": "too small", "host": "here"})
    finalise(sweep, show=False)
    opened = open_report(sweep.paths.report)
    page = opened.page
    assert "every cell failed" in page.locator("#answer").inner_text()
    assert page.locator(".heatmap button").all_inner_texts() == ["failed"]
    assert page.locator("#reply-count").inner_text() == "No reply is there that fits these filters."
    assert "OutOfMemoryError: too small" in page.locator("#making").inner_text()
    assert opened.complaints == []


def test_damaged_scores_of_an_attribution_are_told(tmp_path: Path, open_report: Callable[..., Opened]) -> None:
    sweep = whole_sweep(tmp_path, pairs=("joy_sadness",))
    for path in sweep.store.paths.attributions.glob("*/scores.safetensors"):
        path.write_bytes(b"damaged")
    finalise(sweep, show=False)
    opened = open_report(sweep.paths.report)
    text = opened.page.locator("#attribution").inner_text()
    assert "Not shown: the scores cannot be read (scores.safetensors: " in text
    assert "comes first" in text
    assert opened.complaints == []
