"""`emosteer-sweep export` on made-up sweeps: the right cell, files that are what the cell was, a card with the tables' numbers."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import yaml
from made_up_sweep import join, made_up_cell, publish, random_scores, with_company
from safetensors import safe_open
from typer.testing import CliRunner, Result

import emosteer
from emosteer.records.cell import Cell
from emosteer.records.store import Store
from emosteer.records.sweep import Sweep
from emosteer.sweep_cli import app
from emosteer.tables import build
from emosteer.vectors import EmotionVector

VECTOR = EmotionVector(torch.randn(8, 16, generator=torch.Generator().manual_seed(3)), torch.arange(1.0, 9.0))


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Two pairs at three coefficients, of which 0.2 raises its target most, and 0.4 is unreadable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    sweep = Sweep(tmp_path / "outputs" / "mine", Store(tmp_path / "outputs" / "store"))
    cells = [made_up_cell(sweep.store, pair, coefficient=c) for pair in ("joy_sadness", "trust_disgust") for c in (0.1, 0.2, 0.4)]
    company = with_company(cells)
    join(sweep, company)
    for cell in company:
        put(sweep, cell, {0.1: 1.0, 0.2: 4.0, 0.4: 9.0}.get(cell.coefficient, 0.0) if cell in cells else 0.0)
    return sweep


def put(sweep: Sweep, cell: Cell, rise: float) -> None:
    scores = random_scores(10, seed=1)
    scores |= {m: [v + rise for v in scores[m]] for m in ("joy", "trust")} | {"duplication": [0.0] * 10}
    scores["perplexity"] = [10.0 + (20.0 if rise > 5 else 0.0) + i / 7 for i in range(10)]
    publish(sweep.store, sweep.scorers(), cell, scores)
    if cell.vector:
        facts = {"cell": "of the store", "n_pairs": 24, "split_half": [0.9] * 8, "auc": [None] * 8}
        path = sweep.store.paths.vector(cell.vector_id)
        emosteer.save_vector(dataclasses.replace(VECTOR, site=cell.site), path)
        path.with_suffix(".json").write_text(json.dumps(facts | {"site": cell.site}))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["export", "mine", *arguments], catch_exceptions=False, prog_name="emosteer-sweep")


def data(*arguments: str) -> Any:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_best_readable_cell_is_taken_of_a_pair_or_of_all(sweep: Sweep) -> None:
    cells = [task.cell for task in sweep.tasks() if task.cell.kind == "cell" and task.cell.coefficient == 0.2]
    joy, trust = cells
    assert data()["cell_id"] in {joy.id, trust.id}
    assert data("--pair", "joy_sadness")["cell_id"] == joy.id
    assert data("--pair", "trust_disgust")["cell_id"] == trust.id


def test_the_files_say_what_the_cell_was(sweep: Sweep) -> None:
    found = data("joy_sadness-L2-c0.1")
    directory = sweep.paths.root / "exports" / found["cell_id"]
    assert (found["directory"], found["left_out"]) == (str(directory), {})
    assert {Path(path).name for path in found["files"].values()} == {one.name for one in directory.iterdir()}

    back = emosteer.load_vector(directory / "vector.safetensors")
    assert back.directions.equal(VECTOR.directions)
    with safe_open(directory / "vector.safetensors", "pt") as file:
        facts = file.metadata()
    assert (facts["cell_id"], facts["layers"], facts["coefficient"], facts["scope"]) == (found["cell_id"], "2", "0.1", "generated")
    (tensor,) = gguf.GGUFReader(directory / "control_vector.gguf").tensors
    push = 0.1 * VECTOR.residual_norm[2] * VECTOR.directions[2] / VECTOR.directions[2].norm()
    assert tensor.name == "direction.2"
    np.testing.assert_allclose(tensor.data, push.numpy(), rtol=1e-6)


def test_the_card_has_the_numbers_of_the_tables(sweep: Sweep) -> None:
    found = data("--pair", "joy_sadness", "--to", "out/joy")
    card = Path("out/joy/README.md").read_text()
    row = build(sweep).results.set_index("cell_id").loc[found["cell_id"]]

    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "emosteer", "tags": ["activation-steering", "steering-vector", "emotion", "joy"]}
    assert "# joy_sadness at block 2 of made-up" in card
    line = next(line for line in card.splitlines() if line.startswith("| **joy**"))
    told = [f"{row['joy_baseline']:.2f}", f"{row['joy_steered']:.2f}", f"{row['joy_delta']:+.2f} [{row['joy_ci_low']:+.2f}, "]
    for number in (*told, f"{row['joy_p']:.3f}", f"{row['joy_q']:.3f}"):
        assert number in line
    assert f"Beyond 1 random direction of the same length: {row['joy_beyond_random']:+.2f}" in card
    assert "best readable of its pair's 3 cells" in card
    assert "24 contrastive pairs" in card
    assert "Length of what is added: 0.6, that is 0.2 residual norms" in card
    assert "Measured with scope `generated`" in card
    assert "layer=2, coefficient=0.2)" in card
    assert "Hardly readable" not in card


def test_a_card_says_what_is_wrong_with_its_cell(sweep: Sweep) -> None:
    data("joy_sadness-L2-c0.4", "--to", "out")
    assert "**Hardly readable**: perplexity x2.88" in Path("out/README.md").read_text()
    same = made_up_cell(sweep.store, coefficient=-0.3)
    join(sweep, [same])
    put(sweep, same, 0.0)
    data(same.id, "--to", "out")
    card = Path("out/README.md").read_text()
    assert "**Not significant**: q of joy is 1.000" in card
    assert "away from joy and toward sadness" in card


def test_what_a_control_vector_cannot_be_is_left_out_or_refused(sweep: Sweep) -> None:
    base = made_up_cell(sweep.store)
    others = {
        "layer=0": dataclasses.replace(base, layers=(0,)),
        "site=mlp": dataclasses.replace(base, site="mlp"),
        "intervention=ablate": dataclasses.replace(base, intervention="ablate"),
        "decay=0.9": dataclasses.replace(base, decay=0.9),
    }
    join(sweep, list(others.values()))
    for reason, cell in others.items():
        put(sweep, cell, 1.0)
        found = data(cell.id, "--to", reason)
        assert found["left_out"]["gguf"].startswith(reason)
        assert sorted(one.name for one in Path(reason).iterdir()) == ["README.md", "vector.safetensors"]
        done = call(cell.id, "--format", "gguf", "--to", "nowhere")
        assert (done.exit_code, done.stderr.startswith(f"--format gguf: {reason}")) == (2, True)
        assert not Path("nowhere").exists()
    assert "emosteer.steer(model" in Path("site=mlp/README.md").read_text()


def test_one_format_alone(sweep: Sweep) -> None:
    found = data("--format", "gguf", "--to", "out")
    assert sorted(found["files"]) == ["card", "gguf"]
    assert sorted(one.name for one in Path("out").iterdir()) == ["README.md", "control_vector.gguf"]
    text = call("--format", "safetensors", "--to", "out").stdout
    assert "  out/vector.safetensors" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("joy_sadness-L9",), "joy_sadness-L9: no task of mine is called so"),
        (("joy_sadness",), "joy_sadness: so begin joy_sadness-L2-c0.1"),
        (("baseline",), "is no cell: controls and baselines have no emotion's vector"),
        (("random0-L2-c0.1",), "is no cell: controls and baselines have no emotion's vector"),
        (("--pair", "love"), "--pair love: the sweep has joy_sadness, trust_disgust"),
        (("joy_sadness-L2-c0.1", "--pair", "joy_sadness"), "--pair joy_sadness: the cell joy_sadness-L2-c0.1 is named already"),
        (("--format", "pickle"), "--format pickle: choose of safetensors, gguf"),
    ],
)
def test_mistakes_are_told_in_a_line(sweep: Sweep, arguments: tuple[str, ...], told: str) -> None:
    done = call(*arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (sweep.paths.root / "exports").exists()


def test_a_cell_without_replies_or_vector(sweep: Sweep) -> None:
    pending = made_up_cell(sweep.store, coefficient=0.7)
    join(sweep, [pending])
    assert f"{pending.id} is not done" in call(pending.id).stderr
    done = next(task.cell for task in sweep.tasks() if task.cell.kind == "cell")
    path = sweep.store.paths.vector(done.vector_id)
    path.write_bytes(path.read_bytes()[:-5])
    assert "not a safetensors file" in call(done.id).stderr
    path.unlink()
    assert "is gone; run the cell again with mode=force" in call(done.id).stderr


def test_no_cell_is_readable(sweep: Sweep) -> None:
    only = Sweep(sweep.paths.root.parent / "other", sweep.store)
    cell = made_up_cell(sweep.store, coefficient=0.4)
    join(only, [cell, cell.baseline()])
    done = CliRunner().invoke(app, ["export", "other"])
    assert done.exit_code == 2
    assert done.stderr.startswith("No cell raises its target and stays readable.")
