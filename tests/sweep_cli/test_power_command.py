"""`emosteer-sweep power` on made-up sweeps: its numbers are those of the replies' table, and mistakes are told in a line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_sweep import join, made_up_cell, publish, random_scores, with_company
from statsmodels.stats.power import TTestPower
from typer.testing import CliRunner, Result

from emosteer.records.store import Store
from emosteer.records.sweep import Sweep
from emosteer.sweep_cli import app
from emosteer.tables import build


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Two pairs at two coefficients; the last cell's joy is the baseline's and half a word."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    sweep = Sweep(tmp_path / "outputs" / "mine", Store(tmp_path / "outputs" / "store"))
    cells = [made_up_cell(sweep.store, pair, coefficient=c) for pair in ("joy_sadness", "trust_disgust") for c in (0.1, 0.2)]
    company = with_company(cells)
    join(sweep, company)
    for number, cell in enumerate(company):
        scores = random_scores(10, seed=number)
        if cell == cells[-1]:
            baseline = random_scores(10, seed=company.index(cell.baseline()))
            scores["joy"] = [value + 0.5 for value in baseline["joy"]]
            scores["perplexity"] = [5.0] + [math.nan] * 9
        publish(sweep.store, sweep.scorers(), cell, scores)
    return sweep


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["power", "mine", *arguments], catch_exceptions=False, prog_name="emosteer-sweep")


def data(*arguments: str) -> Any:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_each_cell_is_planned_by_its_own_primary_metric(sweep: Sweep) -> None:
    found = data("--effect", "-1.5", "--power", "0.9", "--corrected")
    replies = build(sweep).replies

    assert (found["alpha"], found["n_tests"]) == (0.05 / 4, 4)
    assert [(cell["pair"], cell["metric"]) for cell in found["cells"]] == [("joy_sadness", "joy")] * 2 + [
        ("trust_disgust", "trust")
    ] * 2
    baseline = replies[replies["is_baseline"]].set_index("prompt_id")
    for cell in found["cells"]:
        steered = replies[replies["cell_id"] == cell["cell_id"]].set_index("prompt_id")
        deviation = (steered[cell["metric"]] - baseline[cell["metric"]]).std()
        assert cell["n"] == 10
        assert cell["sd"] == pytest.approx(deviation)
        assert cell["needed"] == np.ceil(TTestPower().solve_power(1.5 / deviation, power=0.9, alpha=0.05 / 4))
        assert cell["sees"] == pytest.approx(deviation * TTestPower().solve_power(nobs=10, power=0.9, alpha=0.05 / 4), rel=1e-4)
        assert cell["needed_safely"] > cell["needed"]


def test_the_terminal_has_a_line_a_cell_and_one_a_pair(sweep: Sweep) -> None:
    needed = [cell["needed"] for cell in data("--effect", "1")["cells"][:2]]
    text = call("--effect", "1").stdout

    assert len(text.splitlines()) == 1 + 4 + 2
    assert max(map(len, text.splitlines())) <= 100
    told = f"joy_sadness, joy: {min(needed)} prompts are enough in half of 2 cells, {max(needed)} in all"
    assert told in text


def test_what_cannot_be_computed_says_why(sweep: Sweep) -> None:
    *_, equal = data("--effect", "1", "--metric", "joy")["cells"]
    assert (equal["sd"], equal["needed"], equal["reason"]) == (None, None, "the difference is the same at every prompt (prompts: 10)")
    *_, few = data("--effect", "1", "--metric", "perplexity")["cells"]
    assert (few["n"], few["needed"], few["reason"]) == (1, None, "two prompts or more show a deviation (prompts: 1)")
    done = call("--effect", "1", "--metric", "joy")
    assert "not computed: the difference is the same at every prompt" in done.stderr
    assert done.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--effect", "0"), "--effect 0: give a number other than 0"),
        (("--effect", "nan"), "--effect nan: give a number other than 0"),
        (("--effect", "1", "--power", "1"), "--power 1: give a number between 0 and 1"),
        (("--effect", "1", "--alpha", "0"), "--alpha 0: give a number between 0 and 1"),
        (("--effect", "1", "--metric", "joi"), "--metric joi: not measured in mine (did you mean joy?); choose of anger"),
    ],
)
def test_a_wrong_number_or_metric_is_told_in_a_line(sweep: Sweep, arguments: tuple[str, ...], told: str) -> None:
    done = call(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) == 1


def test_a_sweep_without_a_cell_that_is_done(sweep: Sweep) -> None:
    other = Sweep(sweep.paths.root.parent / "new", sweep.store)
    join(other, [made_up_cell(sweep.store, coefficient=0.7)])
    done = CliRunner().invoke(app, ["power", "new", "--effect", "1"])
    assert done.exit_code == 2
    assert done.stderr == "new: no cell is done yet, whose prompts could say how much they vary\n"
