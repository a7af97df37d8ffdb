"""The command `emosteer`, from a person's keyboard to the files on the disk, with a tiny model."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from desk import Desk

GRID = ("-m", "layer=1,2", "coefficient=0.1,0.3")
"""4 cells, 4 controls, 1 baseline."""
SCORER = """
import pathlib

def shouting(replies):
    if (pathlib.Path(__file__).parent / "broken").exists():
        raise FileNotFoundError("no lexicon")
    return {"capitals": [float(sum(c.isupper() for c in reply)) for reply in replies]}
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, library: Path) -> Desk:
    """A sweep that has run, and what it said in `said.txt`."""
    desk = Desk(tmp_path_factory.mktemp("swept"), tiny_directory, library)
    done = desk.run(*GRID)
    assert done.code == 0, done.text
    (desk.directory / "said.txt").write_text(done.text)
    return desk


@pytest.fixture
def after(swept: Desk, tmp_path: Path) -> Desk:
    """A copy of that sweep, to go on with."""
    shutil.copytree(swept.directory, tmp_path, dirs_exist_ok=True)
    return Desk(tmp_path, swept.model, swept.library)


def new_records(desk: Desk, before: dict[str, int]) -> set[str]:
    """Records written since; fails where an old one was touched."""
    now = desk.times()
    assert {cell_id: now.get(cell_id) for cell_id in before} == before
    return set(now) - set(before)


def kinds(ids: Sequence[str] | set[str]) -> list[str]:
    return sorted(cell_id.partition("-")[0] for cell_id in ids)


def test_a_single_run_prints_replies_side_by_side_and_leaves_a_sweep_of_one_cell(desk: Desk) -> None:
    done = desk.run("layer=2", "pair=trust_disgust", "attribution=none")

    assert done.code == 0, done.text
    assert "unsteered" in done.out
    assert "trust_disgust" in done.out
    results = desk.results()
    assert list(results["is_control"]) == [False, True]
    assert list(results["status"]) == ["done", "done"]
    assert kinds(set(desk.records())) == ["baseline", "random0", "trust_disgust"]
    assert sorted(path.name for path in (desk.directory / "outputs").iterdir()) == ["store", "tiny"]
    assert {"sweep.json", "results.csv", "results.parquet", "replies.parquet", "logs"} <= {p.name for p in desk.sweep.iterdir()}


def test_a_sweep_has_a_cell_per_point_and_hydras_files_beside_each(swept: Desk) -> None:
    cells = swept.results().query("not is_control")

    assert sorted(zip(cells["layer"], cells["coefficient"], strict=True)) == [(1, 0.1), (1, 0.3), (2, 0.1), (2, 0.3)]
    assert kinds(set(swept.records())) == ["baseline"] + ["joy_sadness"] * 4 + ["random0"] * 4
    for cell in cells.itertuples():
        directory = swept.store / "cells" / str(cell.cell_id)
        overrides = (directory / ".hydra" / "overrides.yaml").read_text()
        assert f"- layer={cell.layer}\n- coefficient={cell.coefficient}\n" in overrides
        assert f"coefficient: {cell.coefficient}\n" in (directory / "config.yaml").read_text()
        assert (directory / ".hydra" / "config.yaml").exists()
        assert (directory / ".hydra" / "hydra.yaml").exists()
    said = (swept.directory / "said.txt").read_text().splitlines()
    assert said.count("loading tiny-llama") == 1
    assert "1 CPU thread: engine.threads" in said
    (took,) = [line for line in said if line.startswith("took: ")]
    assert "importing" in took


def test_what_a_sweep_wrote_is_whole(swept: Desk) -> None:
    replies = pd.read_parquet(swept.sweep / "replies.parquet")

    assert len(replies) == 9 * 6
    assert not replies.duplicated(["cell_id", "prompt_id", "sample"]).any()
    assert replies.groupby("is_baseline")["cell_id"].nunique().to_dict() == {False: 8, True: 1}
    assert swept.unfinished() == []
    assert list((swept.store / "claims").iterdir()) == []


def test_no_id_or_path_holds_an_unresolved_interpolation(swept: Desk) -> None:
    paths = [str(path) for path in (swept.directory / "outputs").rglob("*")]

    assert not [path for path in paths if "$" in path or "{" in path]
    assert not [line for line in (swept.sweep / "sweep.json").read_text().splitlines() if "${" in line]


def test_the_same_command_again_runs_nothing_and_needs_no_torch(after: Desk) -> None:
    before, results = after.times(), after.results()

    done = after.run(*GRID)

    assert done.code == 0, done.text
    assert "Nothing to run" in done.text
    assert not done.imported_torch
    assert new_records(after, before) == set()
    pd.testing.assert_frame_equal(after.results(), results)


def test_one_coefficient_more_runs_the_new_cells_only(after: Desk) -> None:
    before = after.times()

    done = after.run_warm("-m", "layer=1,2", "coefficient=0.1,0.2,0.3")

    assert done.code == 0, done.text
    assert kinds(new_records(after, before)) == ["joy_sadness"] * 2 + ["random0"] * 2
    assert sorted(after.results().query("not is_control")["coefficient"]) == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]


def test_a_second_grid_joins_the_first(after: Desk) -> None:
    done = after.run_warm("layer=2", "coefficient=-0.1")

    assert done.code == 0, done.text
    assert sorted(after.results().query("not is_control")["coefficient"]) == [-0.1, 0.1, 0.1, 0.3, 0.3]
    assert len(json.loads((after.sweep / "sweep.json").read_text())["commands"]) == 2


def test_another_sweep_reuses_the_stores_cells(after: Desk) -> None:
    before = after.times()

    done = after.run(*GRID, "name=another")

    assert done.code == 0, done.text
    assert not done.imported_torch
    assert new_records(after, before) == set()
    assert len(pd.read_parquet(after.directory / "outputs" / "another" / "results.parquet")) == 8


def test_force_runs_everything_again_with_the_same_replies(after: Desk) -> None:
    before, replies = after.times(), after.replies()

    done = after.run_warm(*GRID, "mode=force")

    assert done.code == 0, done.text
    assert after.replies() == replies
    assert all(time > before[cell_id] for cell_id, time in after.times().items())


def test_a_failing_cell_is_recorded_and_takes_no_other_with_it(after: Desk) -> None:
    before = after.times()

    done = after.run_warm("-m", "layer=1", "coefficient=1e39,0.2")

    assert done.code == 1
    assert "Traceback" not in done.text, done.text
    assert "the push is too large" in done.err
    assert kinds(new_records(after, before)) == ["joy_sadness", "random0"]
    results = after.results().set_index("coefficient")
    assert set(results.loc[[0.1, 0.2, 0.3], "status"]) == {"done"}
    assert set(results.loc[1e39, "status"]) == {"failed"}
    failure = json.loads(next(path for path in (after.sweep / "failures").iterdir() if "joy" in path.name).read_text())
    assert failure["exception"] == "FloatingPointError"
    assert failure["attempt"] == 1
    assert "Traceback" in failure["traceback"]
    assert any(override.startswith("coefficient=1e") for override in failure["overrides"])

    again = after.run("-m", "layer=1", "coefficient=1e39,0.2")

    assert again.code == 1, "a sweep with a failed cell fails, also when nothing is left to run"
    assert not again.imported_torch
    assert "Traceback" not in again.text


def test_a_model_that_cannot_be_loaded_fails_its_own_cells_only(desk: Desk, other_directory: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(other_directory, damaged)
    # Whole files, as far as planning looks into them.
    (damaged / "tokenizer.json").write_text("{}")

    done = desk.run_warm("-m", f"model.path={damaged},{desk.model}", "layer=1")

    assert done.code == 1
    assert "Traceback" not in done.text, done.text
    assert desk.results().groupby("model")["status"].agg(set).to_dict() == {"damaged": {"failed"}, "tiny-llama": {"done"}}


def test_a_scorer_of_ones_own_scores_stored_replies(after: Desk) -> None:
    (after.library / "my_scorers.py").write_text(SCORER)
    (after.library / "broken").touch()
    before = after.times()
    mine = "+scorers.shouting._target_=my_scorers.shouting"

    broken = after.run_warm(*GRID, mine)

    assert broken.code == 1
    assert "Traceback" not in broken.text, broken.text
    assert "no lexicon" in broken.err

    (after.library / "broken").unlink()
    reused = after.run(*GRID, mine)

    assert reused.code == 1, "mode=reuse leaves a failed cell failed"
    assert not reused.imported_torch

    retried = after.run_warm(*GRID, mine, "mode=retry")

    assert retried.code == 0, retried.text
    assert new_records(after, before) == set()
    assert "generating" not in retried.text
    replies = pd.read_parquet(after.sweep / "replies.parquet")
    assert list(replies["capitals"]) == [sum(c.isupper() for c in reply) for reply in replies["reply"]]
    assert after.results()["capitals_delta"].notna().all()

    without = after.run(*GRID, "~scorers.perplexity", "~scorers.nrc")
    assert without.code == 0, without.text
    assert not without.imported_torch
    assert "perplexity_delta" not in after.results()


def test_several_models_are_loaded_once_each(desk: Desk, other_directory: Path) -> None:
    done = desk.run_warm(
        "-m", f"model.path={desk.model},{other_directory}", "coefficient=0.1,0.2", "layer=1", "worker.cells_per_claim=2"
    )

    assert done.code == 0, done.text
    assert done.err.splitlines().count("loading tiny-llama") == 1
    assert done.err.splitlines().count("loading other-llama") == 1
    assert desk.results().query("not is_control")["model"].value_counts().to_dict() == {"tiny-llama": 2, "other-llama": 2}
    assert kinds(set(desk.records())) == ["baseline"] * 2 + ["joy_sadness"] * 4 + ["random0"] * 4


def test_without_controls_and_with_coefficient_0(desk: Desk) -> None:
    done = desk.run_warm("-m", "coefficient=0,0.2", "layer=1", "controls=none")

    assert done.code == 0, done.text
    results = desk.results().set_index("coefficient")
    assert results.loc[0.0, "words_delta"] == 0
    assert not [column for column in results if "beyond_random" in column]
    replies = pd.read_parquet(desk.sweep / "replies.parquet")
    by_cell = {cell_id: list(rows["reply"]) for cell_id, rows in replies.groupby("cell_id")}
    assert by_cell[results.loc[0.0, "cell_id"]] == by_cell[results.loc[0.0, "baseline_id"]]
    assert by_cell[results.loc[0.2, "cell_id"]] != by_cell[results.loc[0.2, "baseline_id"]]


def test_a_failed_attribution_fails_the_command(desk: Desk, tmp_path: Path) -> None:
    """The cell itself is done: its layer was given."""
    few = tmp_path / "few.jsonl"
    record = {"id": "a", "clean": "Good?", "corrupted": "Bad?", "reply_prefix": "I am", "expressive": ["x"], "counterpart": ["y"]}
    few.write_text(json.dumps(record))

    done = desk.run_warm("layer=1", "attribution=patching", f"pair.diagnostics={few}")

    assert done.code == 1, done.text
    assert "Traceback" not in done.text
    assert "attribution needs at least 8" in done.err
    assert desk.results().loc[0, "status"] == "done"


REFUSED = {
    "layr=10": "layr",
    "pair=joy_sadnes": "joy_sadnes",
    "layer=40": "layer 40 is out of range: tiny-llama has blocks 0 to 3",
    "scope=nowhere": "scope=nowhere: choose one of generated, prompt, all",
    "prompts.path=nowhere.jsonl": "nowhere.jsonl: no such file",
    "coefficient=strong": "strong",
    "model.path=./nowhere": "model.path=./nowhere does not exist",
    "scorers.nrc._target_=emosteer.nowhere": "scorers.nrc._target_=emosteer.nowhere",
}


@pytest.mark.parametrize("argument", REFUSED)
def test_a_mistake_is_told_in_a_line_before_torch(desk: Desk, argument: str) -> None:
    flags = ("-m",) if argument.startswith(("l", "p")) else ()
    done = desk.run(*flags, argument, *(() if argument.startswith("layer") else ("layer=1",)))

    assert done.code == 1
    assert REFUSED[argument] in done.err
    assert "Traceback" not in done.text, done.text
    assert not done.imported_torch
    assert not desk.store.joinpath("cells").exists()


@pytest.mark.parametrize("name", ["a/b", "..", "trailing."])
@pytest.mark.parametrize("flags", [(), ("-m",)], ids=["single", "sweep"])
def test_a_name_that_is_no_path_component_is_refused_before_a_directory_is_made(
    desk: Desk, name: str, flags: tuple[str, ...]
) -> None:
    done = desk.run(*flags, f"name={name}")

    assert done.code == 1
    assert "name=" in done.err
    assert "Traceback" not in done.text
    assert list(desk.directory.iterdir()) == []


def test_help_and_the_configuration_need_no_torch(desk: Desk) -> None:
    told = desk.run("--help")
    config = desk.run("--cfg=job")

    assert (told.code, config.code) == (0, 0), told.text + config.text
    assert "knobs that matter" in told.out
    assert "coefficient: 0.2" in config.out
    assert not told.imported_torch
    assert not config.imported_torch
    assert list(desk.directory.iterdir()) == []


def test_an_interrupted_probe_does_not_say_that_cells_are_kept(tmp_path: Path, tiny_directory: Path, library: Path) -> None:
    desk = Desk(tmp_path, tiny_directory, library)
    process = desk.popen("probe=true", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout is not None
    heading = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert "; loaded in " in heading
    assert process.returncode == 130, out + err
    assert err.endswith("\nInterrupted. A probe keeps nothing before its end: the same command begins again.\n")
    assert not (desk.sweep / "probe.json").exists()


def test_a_probe_checks_the_model_and_runs_no_cell(tmp_path: Path, tiny_directory: Path, library: Path) -> None:
    desk = Desk(tmp_path, tiny_directory, library)
    done = desk.run_warm("probe=true")
    assert done.code == 0, done.text
    for name in ("blocks", "template", "hooks", "engine", "attribution", "strength"):
        assert f"\n{name} " in done.out
    assert json.loads((desk.sweep / "probe.json").read_text())["model"]["blocks"] == 4
    assert not desk.store.exists()
    refused = desk.run_warm("-m", "probe=true", "seed=1,2")
    assert refused.code == 1
    assert "probe=true checks one model, and runs no cell: give it without -m" in refused.err
    assert not desk.store.exists()
