"""`emosteer-sweep compare` on made-up sweeps: what lines up, by how much it differs, and what is told of the rest."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_sweep import SCORED, join, made_up_cell, publish, random_scores, with_company
from scipy import stats
from typer.testing import CliRunner, Result

from emosteer.config import GenerationConfig
from emosteer.datasets import Prompt
from emosteer.records.cell import Cell, VectorSpec
from emosteer.records.store import Store
from emosteer.records.sweep import Sweep
from emosteer.statistics import paired_effects
from emosteer.sweep_cli import app
from emosteer.tables import build

PCA = VectorSpec("pca", "texts of joy_sadness")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    return Store(tmp_path / "outputs" / "store")


def made(store: Store, name: str, cells: Sequence[Cell], seed: int = 0, leave_out: Sequence[Cell] = ()) -> Sweep:
    """A sweep under outputs/ with random scores, the baseline's being the same wherever it is the same cell."""
    sweep = Sweep(Path.cwd() / "outputs" / name, store)
    company = with_company(cells)
    join(sweep, company)
    for number, cell in enumerate(company):
        if cell not in leave_out and not store.is_done(cell):
            n = len(store.prompts(cell.prompts)) * cell.generation.n_samples
            scores = random_scores(n, seed=seed + number, shift=number % 3)
            publish(store, sweep.scorers(), cell, scores | {"duplication": [0.0] * n}, seed=number)
    return sweep


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", "one", "two", *arguments], catch_exceptions=False, prog_name="emosteer-sweep")


def data(*arguments: str) -> Any:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def effects(sweep: Sweep, cell: Cell, metric: str) -> np.ndarray[Any, Any]:
    """Per prompt, from the table of replies: samples averaged, steered less baseline."""
    replies = build(sweep).replies
    means = replies.groupby(["cell_id", "prompt_id"])[metric].mean()
    return (means[cell.id] - means[cell.baseline_id]).to_numpy(dtype=float)


def test_another_method_is_paired_over_the_prompts(store: Store) -> None:
    first = [made_up_cell(store, layers=(layer,), coefficient=c) for layer in (2, 4) for c in (0.1, 0.2)]
    second = [dataclasses.replace(cell, vector=PCA) for cell in first[:3]]
    one, two = made(store, "one", first), made(store, "two", second, seed=50)
    found = data()

    assert found["differ_in"] == {"vector_method": [["mean_difference"], ["pca"]]}
    assert [(c["first_cell_id"], c["second_cell_id"]) for c in found["cells"]] == [
        (a.id, b.id) for a, b in zip(first, second, strict=False)
    ]
    assert found["alone"] == [{"sweep": "one", "cell_id": first[3].id, "reason": "two has none like it"}]
    for a, b, told in zip(first, second, found["cells"], strict=False):
        before, after = effects(one, a, "joy"), effects(two, b, "joy")
        assert (told["how"], told["metric"], told["n_first"], told["n_second"]) == ("paired", "joy", 10, 10)
        assert told["first_effect"] == pytest.approx(before.mean())
        assert told["second_effect"] == pytest.approx(after.mean())
        assert told["difference"] == pytest.approx((after - before).mean())
        assert told["p"] == pytest.approx(stats.wilcoxon(after - before).pvalue)
        (another,) = paired_effects(after[None], before[None], seed=1)
        assert told["ci_low"] == pytest.approx(another.ci_low, abs=0.5)
        assert told["ci_low"] < told["difference"] < told["ci_high"]
    q = stats.false_discovery_control([c["p"] for c in found["cells"]])
    assert [c["q"] for c in found["cells"]] == pytest.approx(q)


def test_other_prompts_are_unpaired(store: Store) -> None:
    others = [Prompt(f"p{i}", f"Another {i}?", "daily", ({"role": "user", "content": f"Another {i}?"},)) for i in range(12)]
    a = made_up_cell(store)
    b = dataclasses.replace(a, prompts=store.keep_texts(others), prompts_name="confirmation")
    one, two = made(store, "one", [a]), made(store, "two", [b], seed=50)
    found = data("--metric", "trust")
    before, after = effects(one, a, "trust"), effects(two, b, "trust")
    (told,) = found["cells"]

    assert found["differ_in"] == {"prompts": [["made-up"], ["confirmation"]]}
    assert (told["how"], told["n_first"], told["n_second"]) == ("unpaired", 10, 12)
    assert told["difference"] == pytest.approx(after.mean() - before.mean())
    assert told["p"] == pytest.approx(stats.mannwhitneyu(after, before).pvalue)
    text = " ".join(call("--metric", "trust").stdout.split())
    assert "unpaired (10 and 12 prompts, none in common)" in text


def test_some_prompts_in_common_are_what_is_paired(store: Store) -> None:
    a, b = made_up_cell(store, n_prompts=10), made_up_cell(store, n_prompts=6)
    one, two = made(store, "one", [a]), made(store, "two", [b], seed=50)
    (told,) = data()["cells"]
    before = effects(one, a, "joy")[:6]
    assert (told["how"], told["n_first"]) == ("paired", 6)
    assert told["first_effect"] == pytest.approx(before.mean())
    assert told["difference"] == pytest.approx(effects(two, b, "joy").mean() - before.mean())


def test_another_model_is_lined_up_by_depth(store: Store) -> None:
    first = [made_up_cell(store, layers=(layer,)) for layer in (2, 4)]  # of 8 blocks
    model = first[0].model
    other = dataclasses.replace(model, config=dataclasses.replace(model.config, name="twice"), fingerprint="sha256:x", n_blocks=15)
    made(store, "one", first)
    made(
        store, "two", [dataclasses.replace(cell, model=other, layers=(2 * cell.layers[0],)) for cell in first if cell.layers], seed=9
    )

    straight = data()
    assert [(c["first_layers"], c["second_layers"]) for c in straight["cells"]] == [("4", "4")]
    found = data("--by-depth")
    assert [(c["first_layers"], c["second_layers"]) for c in found["cells"]] == [("2", "4"), ("4", "8")]
    assert found["differ_in"] == {"model": [["made-up"], ["twice"]]}
    text = call("--by-depth").stdout
    assert "2 | 4" in text
    assert "compare at equal cost in fluency" in " ".join(text.split())


def test_the_same_sweep_differs_nowhere(store: Store) -> None:
    cell = made_up_cell(store)
    made(store, "one", [cell])
    made(store, "two", [cell])
    (told,) = data()["cells"]
    assert (told["difference"], told["ci_low"], told["ci_high"], told["p"]) == (0, 0, 0, 1)


def test_it_fits_80_columns_whatever_varies(store: Store) -> None:
    cells = [
        made_up_cell(store, "anticipation_surprise", layers=layers, coefficient=c, generation=GenerationConfig(max_new_tokens=n))
        for layers in ((2,), (1, 5, 7))
        for c in (-0.125, 0.3)
        for n in (20, 40)
    ]
    made(store, "one", cells)
    made(store, "two", [dataclasses.replace(cell, vector=PCA, seed=cell.seed + 1) for cell in cells], seed=50)
    text = call().stdout

    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b[" not in text, "colour is for terminals"
    for shown in (
        "anticipation_surprise",
        "1+5+7",
        "-0.125",
        "max_new_tokens 40",
        "vector_method: mean_difference | pca",
        "seed: 0 | 1",
    ):
        assert shown in text


def test_csv_has_what_json_has(store: Store, tmp_path: Path) -> None:
    cells = [made_up_cell(store, coefficient=c) for c in (0.1, 0.2)]
    made(store, "one", cells)
    made(store, "two", [dataclasses.replace(cell, vector=PCA) for cell in cells], seed=50)
    found = data("--csv", "both.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "both.csv").read_text())))
    assert [row["first_cell_id"] for row in rows] == [cell["first_cell_id"] for cell in found["cells"]]
    assert list(rows[0]) == list(found["cells"][0])
    assert [float(row["difference"]) for row in rows] == pytest.approx([cell["difference"] for cell in found["cells"]])


def test_what_is_not_done_or_measured_otherwise_is_said(store: Store) -> None:
    cells = [made_up_cell(store, coefficient=c) for c in (0.1, 0.2)]
    made(store, "one", cells, leave_out=cells[:1])
    other = made(store, "two", [dataclasses.replace(cell, vector=PCA) for cell in cells], seed=50)
    other.record_failure(cells[0], {"message": "no luck"})
    found = data()
    assert {(one["sweep"], one["reason"]) for one in found["alone"]} == {
        ("one", "no replies (pending)"),
        ("two", "one has none like it"),
    }
    text = call().stdout
    assert "Not lined up, 1 cell of one: no replies (pending)" in text
    assert cells[0].id in text


def test_scores_of_another_version_are_a_warning(store: Store) -> None:
    made(store, "one", [made_up_cell(store)])
    two = made(store, "two", [made_up_cell(store, coefficient=0.2)])
    manifest = next(two.paths.commands.glob("*.json"))
    read = json.loads(manifest.read_text())
    read["settings"]["scorers"]["nrc"]["negation"] = True
    manifest.write_text(json.dumps(read))
    again = Sweep(two.paths.root, store)
    for task in again.tasks():
        for scorer in again.scorers():
            if scorer.name == "nrc":
                scores = random_scores(10, seed=1)
                store.publish_scores(task.cell, scorer.key, scorer.facts(), {m: scores[m] for m in SCORED["nrc"]})
    assert data()["warnings"] == [
        "not measured alike: nrc has another version or other options in each, so differences may be theirs"
    ]


def test_pairs_with_other_primary_metrics_need_a_metric(store: Store) -> None:
    made(store, "one", [made_up_cell(store, "joy_sadness")])
    made(store, "two", [made_up_cell(store, "trust_disgust")])
    done = call()
    assert done.exit_code == 2
    assert "nothing lines up between one and two: one: primary metrics differ (joy, trust): give --metric" in done.stderr
    assert data("--metric", "first_person")["cells"][0]["second_pair"] == "trust_disgust"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--metric", "joi"), "--metric joi: not measured in one (did you mean joy?); choose of anger"),
        (("--csv", "nowhere/both.csv"), "--csv nowhere/both.csv: no directory"),
    ],
)
def test_mistakes_are_told_in_a_line(store: Store, arguments: tuple[str, ...], told: str) -> None:
    made(store, "one", [made_up_cell(store)])
    made(store, "two", [made_up_cell(store, coefficient=0.3)])
    done = call(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) == 1


def test_a_sweep_of_which_nothing_is_done(store: Store) -> None:
    made(store, "one", [made_up_cell(store)])
    join(Sweep(Path.cwd() / "outputs" / "two", store), [made_up_cell(store, coefficient=0.7, n_prompts=4)])
    done = call()
    assert done.exit_code == 2
    assert done.stderr == "two: no cell is done yet; `emosteer-sweep status two` says more\n"
