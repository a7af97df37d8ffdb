"""`emosteer-sweep figures`: what is drawn are the results' numbers, in files that a paper takes."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from made_up_sweep import join, made_up_cell, publish, random_scores, with_company
from typer.testing import CliRunner, Result

from emosteer import figures
from emosteer.figures import pareto_front
from emosteer.records.store import Store
from emosteer.records.sweep import Sweep
from emosteer.report.paper import latex, latex_table, paper_figures
from emosteer.sweep_cli import app
from emosteer.tables import Tables, build


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    sweep = Sweep(tmp_path / "outputs" / "mine", Store(tmp_path / "outputs" / "store"))
    cells = [
        made_up_cell(sweep.store, pair, layers=layers, coefficient=c)
        for pair in ("joy_sadness", "trust_disgust")
        for layers in ((2,), (4,))
        for c in (0.1, 0.2)
    ]
    company = with_company(cells)
    join(sweep, company)
    for number, cell in enumerate(company):
        scores = random_scores(10, number, 8 * cell.coefficient)
        scores["perplexity"] = [1 + abs(value) for value in scores["perplexity"]]
        publish(sweep.store, sweep.scorers(), cell, scores, seed=number)
    return sweep


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["figures", *arguments], catch_exceptions=False, prog_name="emosteer-sweep")


def done_cells(tables: Tables, pair: str) -> Any:
    return tables.cells[tables.cells["pair"] == pair]


def test_it_writes_pdf_png_and_latex(sweep: Sweep) -> None:
    done = call("mine", "--json")
    data = json.loads(done.stdout)
    paths = [Path(path) for path in data["files"]]
    kinds = ("heatmap", "dose-response", "trade-off")

    assert done.exit_code == 0
    assert {path.name for path in paths} == {
        "cells.tex",
        *(
            f"{kind}-{pair}-made-up-{pair.split('_')[0]}.{end}"
            for kind in kinds
            for pair in ("joy_sadness", "trust_disgust")
            for end in ("pdf", "png")
        ),
    }
    assert {path.parent for path in paths} == {sweep.paths.paper}
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".pdf":
            assert content.startswith(b"%PDF")
            assert b"/Type3" not in content
        elif path.suffix == ".png":
            width, _ = struct.unpack(">II", content[16:24])
            assert width > 1500
    again = call("mine", "--json")
    assert again.stdout == done.stdout


def test_a_figure_has_the_tables_numbers(sweep: Sweep) -> None:
    tables = build(sweep)
    drawn = dict(paper_figures(sweep.store, tables))
    rows = done_cells(tables, "joy_sadness")
    heatmap = drawn["heatmap-joy_sadness-made-up-joy"].axes[0]
    told = sorted(text.get_text().rstrip("*") for text in heatmap.texts)
    assert told == sorted(f"{delta:+.1f}" for delta in rows["joy_delta"])

    points = {tuple(point) for one in drawn["trade-off-joy_sadness-made-up-joy"].axes[0].collections for point in one.get_offsets()}
    assert points == {(ratio, delta) for ratio, delta in zip(rows["perplexity_ratio"], rows["joy_delta"], strict=True)}


def test_a_cell_whose_replies_begin_alike_is_hollow(sweep: Sweep) -> None:
    rows = done_cells(build(sweep), "joy_sadness").sort_values("duplication_steered", ignore_index=True)
    limit = rows["duplication_steered"].iloc[0]
    expected = {(row["perplexity_ratio"], row["joy_delta"]): row["duplication_steered"] > limit for _, row in rows.iterrows()}
    assert set(expected.values()) == {False, True}

    axis = figures.trade_off(rows, "joy", "a title", most_alike=limit).axes[0]
    seen = {tuple(point): not len(one.get_facecolor()) for one in axis.collections for point in one.get_offsets()}
    assert seen == expected
    listed = [text.get_text() for text in axis.get_legend().get_texts()]
    assert sum(text.startswith("hollow: not readable") for text in listed) == 1
    assert len(set(listed)) == len(listed)


def test_the_front_is_what_nothing_beats() -> None:
    costs, effects = [1.0, 1.0, 1.1, 1.2, 1.3, 1.4], [0.5, 1.0, 0.9, 1.5, 1.5, 2.0]
    assert pareto_front(costs, effects) == [(1.0, 1.0), (1.2, 1.5), (1.4, 2.0)]
    assert pareto_front([], []) == []


def test_the_latex_table_has_a_row_per_cell(sweep: Sweep) -> None:
    tables = build(sweep)
    text = latex_table(tables)
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "pair & block" not in line]
    cells = tables.cells.sort_values(["pair", "layer", "coefficient"])

    assert len(rows) == len(cells)
    assert len({line.count("&") for line in text.splitlines() if line.endswith(r"\\")}) == 1
    for line, (_, cell) in zip(rows, cells.iterrows(), strict=True):
        primary = cell["primary"]
        numbers = f"{cell[f'{primary}_delta']:+.1f}$ $[{cell[f'{primary}_ci_low']:+.1f}, {cell[f'{primary}_ci_high']:+.1f}]"
        assert cell["pair"].replace("_", r"\_") in line
        assert numbers in line
        assert f"{cell['perplexity_ratio']:.2f}" in line
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0


def test_names_are_no_commands_of_latex() -> None:
    assert latex(r"a_b & 50% \input{x} ~^<>#$") == (
        r"a\_b \& 50\% \textbackslash{}input\{x\} \textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\#\$"
    )


def test_another_metric_and_directory(sweep: Sweep, tmp_path: Path) -> None:
    done = call("mine", "--metric", "first_person", "--to", "my figures")
    assert done.exit_code == 0
    assert (tmp_path / "my figures" / "heatmap-joy_sadness-made-up-first_person.pdf").exists()
    assert "my figures/cells.tex" in done.stdout


def test_a_metric_that_nobody_computed_is_told(sweep: Sweep) -> None:
    done = call("mine", "--metric", "first_persn")
    assert done.exit_code == 2
    assert "--metric first_persn: nobody computed it (did you mean first_person?); the sweep has joy, " in done.stderr
    assert not sweep.paths.paper.exists()


def test_nothing_to_draw_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    sweep = Sweep(tmp_path / "outputs" / "empty", Store(tmp_path / "outputs" / "store"))
    join(sweep, with_company([made_up_cell(sweep.store)]))
    done = call("empty")
    assert done.exit_code == 2
    assert done.stderr == "no cell has replies and scores: there is nothing to draw; `emosteer-sweep status` tells why\n"


def test_a_file_in_the_way_is_told(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    done = call("mine", "--to", "taken")
    assert done.exit_code == 2
    assert done.stderr == "--to taken: that is a file; name a directory\n"
