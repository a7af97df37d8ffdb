"""W&B gets one run per cell and one per sweep, whole and each once, and can neither stall nor fail what wrote them."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import logging
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from made_up_sweep import METRICS, join, made_up_cell, publish, with_company
from safetensors.torch import save
from wandb_stand_in import silent_port, stand_in

from emosteer.attribution.scores import ADDING_SITES, SITES, Attribution
from emosteer.records.cell import ATTRIBUTION, CELL, CONTROL, Cell
from emosteer.records.publish import publish_file, publish_json
from emosteer.records.store import Store
from emosteer.records.sweep import FAILED, Sweep
from emosteer.scoring.nrc import CATEGORIES, nrc
from emosteer.tables import Tables, build
from emosteer.tracking import child, wandb_runs
from emosteer.tracking import run as run_module
from emosteer.tracking.axes import CONFIG_KEYS
from emosteer.tracking.sweep_runs import emotions_in, sweep_runs
from emosteer.tracking.wandb_login import is_logged_in, resolve, resolve_mode
from emosteer.tracking.wandb_runs import log_to_wandb

KEY = "k" * 40
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
    "53de0000000c4944415408d763f8cfc000000301010018dd8db00000000049454e44ae426082"
)


def tracking(**changes: Any) -> dict[str, Any]:
    settings = {"name": "wandb", "project": "emotions", "entity": None, "mode": "auto", "tags": ["ours", "two words"]}
    return {"tracking": settings | changes}


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no settings, and a home without either."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def grid(store: Store) -> list[Cell]:
    """Two pairs, one of them in two layers at once, with controls and baseline."""
    both = dataclasses.replace(made_up_cell(store, "trust_disgust", n_prompts=6), layers=(2, 5))
    return with_company([made_up_cell(store, n_prompts=6), both])


def make_sweep(root: Path, **changes: Any) -> Sweep:
    store = Store(root / "store")
    sweep = Sweep(root / "outputs" / "my sweep", store)
    join(sweep, grid(store), **tracking(**changes))
    for seed, task in enumerate(sweep.tasks()):
        publish(store, sweep.scorers(), task.cell, seed=seed, shift=0.5 * seed)
    return sweep


def grow(sweep: Sweep, **changes: Any) -> list[Cell]:
    """A second command, with another coefficient."""
    added = with_company([made_up_cell(sweep.store, n_prompts=6, coefficient=0.4)])
    join(sweep, added, **tracking(**changes))
    for seed, cell in enumerate([cell for cell in added if not sweep.store.is_done(cell)], start=50):
        publish(sweep.store, sweep.scorers(), cell, seed=seed)
    return [cell for cell in added if cell.kind in (CELL, CONTROL)]


def records(directory: Path) -> dict[str, Any]:
    """A run as wandb's own reader sees it."""
    spec = importlib.util.find_spec("wandb")
    assert spec is not None
    assert spec.origin is not None
    core = Path(spec.origin).parent / "bin" / "wandb-core"
    (log,) = directory.glob("run-*.wandb")
    command = [core, "leet", "inspect", "--no-observability", "--json", "--run-file", log, directory]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found: dict[str, Any] = {"summary": {}, "directory": directory, "artifacts": [], "metrics": []}
    for record in map(json.loads, lines):
        if record["type"] in ("artifact", "metric"):
            found[f"{record['type']}s"].append(record[record["type"]])
            continue
        if record["type"] == "summary":
            found["summary"] |= record["summary"]["update"]
        else:
            found |= {record["type"]: record[record["type"]]}
    return found


def runs_of(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Display name -> run, of all that lie in the sweep's directory."""
    all_runs = [records(directory) for directory in directories(sweep)]
    named = {run["run"]["display_name"]: run for run in all_runs}
    assert len(named) == len(all_runs)
    return named


def directories(sweep: Sweep) -> list[Path]:
    return sorted(path for path in sweep.paths.wandb.iterdir() if path.is_dir() and path.name != "logs")


def config_of(run: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run["run"]["config"]["update"].items() if key != "_wandb"}


def table_of(run: dict[str, Any], key: str) -> pd.DataFrame:
    data = json.loads((run["directory"] / "files" / run["summary"][f"{key}.path"]).read_text())
    return pd.DataFrame(data["data"], columns=data["columns"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Tables, dict[str, dict[str, Any]]]:
    """A sweep with a figure of each kind and an attribution, logged while the environment asks for the impossible."""
    sweep = make_sweep(tmp_path_factory.mktemp("made"))
    pair = next(task.cell for task in sweep.tasks() if task.cell.kind == CELL)
    attribution = Cell(ATTRIBUTION, pair.model, pair=pair.pair, attribution=pair.attribution)
    join(sweep, [attribution], **tracking())
    put_attribution(sweep.store, attribution)
    for cell in {task.cell.vector_id: task.cell for task in sweep.tasks() if task.cell.vector}.values():
        put_vector(sweep.store, cell)
    for name in ("effect-a", "effect-b", "dose-response-a"):
        publish_file(sweep.paths.figures / f"{name}.png", PNG)
    failed = made_up_cell(sweep.store, n_prompts=6, coefficient=0.9)
    join(sweep, [failed, made_up_cell(sweep.store, n_prompts=6, coefficient=0.8)], **tracking())
    sweep.record_failure(failed, {"message": "no memory"})
    tables = build(sweep)
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as server:
        for name, value in UNWELCOME.items():
            patch.setenv(name, value)
        patch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        patch.setenv("WANDB_API_KEY", KEY)
        join(sweep, [], **tracking(mode="offline"))
        importlib.import_module("emosteer.resources")  # with it comes a part of torch that sets a variable of its own
        before = (dict(os.environ), Path.cwd(), set(sys.modules))
        log_to_wandb(sweep, tables)
        assert (dict(os.environ), Path.cwd()) == before[:2]
        assert not any(name.partition(".")[0] == "wandb" for name in set(sys.modules) - before[2])
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    return sweep, tables, runs_of(sweep)


UNWELCOME = {
    "WANDB_RUN_ID": "theirs",
    "WANDB_RESUME": "must",
    "WANDB_SWEEP_ID": "abc",
    "WANDB_NAME": "theirs",
    "WANDB_TAGS": "theirs",
    "WANDB_DIR": "/nowhere",
    "WANDB_MODE": "online",
}


TEXTS = b'{"id": "a", "positive": "Joy!", "negative": "Grief.", "topic": "x"}\n'


def put_vector(store: Store, cell: Cell) -> None:
    """A vector's files, and the texts that it is made of."""
    assert cell.vector is not None
    publish_file(store.paths.vector(cell.vector_id), cell.vector_id.encode())
    facts = {"id": cell.vector_id, "norm": [1.0] * 8, "residual_norm": [5.0] * 8, "n_pairs": 12, "split_half": [0.9] * 7 + [None]}
    publish_json(store.paths.vector_facts(cell.vector_id), facts)
    for digest in filter(None, (cell.vector.texts, cell.neutral)):
        publish_file(store.paths.texts(digest), TEXTS + digest.encode())


def put_attribution(store: Store, cell: Cell) -> None:
    chance = torch.Generator().manual_seed(1)

    def scores(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance)

    found = Attribution(
        pair_ids=("a", "b"),
        aligned_ids=("a",),
        metric_clean=scores(2),
        metric_corrupted=scores(2),
        last={site: scores(2, 8) for site in SITES},
        everywhere={site: scores(1, 8) for site in ADDING_SITES},
        residual_by_position=scores(1, 8, 3),
    )
    key = cell.attribution_id
    summary = {
        "id": key,
        "model": "made-up",
        "ranking": [3, 1],
        "pair_ids": list(found.pair_ids),
        "aligned_ids": list(found.aligned_ids),
    }
    publish_file(store.paths.attribution_scores(key), save(found.tensors()))
    publish_file(store.paths.attribution_heatmap(key), PNG)
    publish_json(store.paths.attribution_summary(key), summary)


Made = tuple[Sweep, Tables, dict[str, dict[str, Any]]]


def test_a_run_for_every_settled_cell_and_control_and_one_for_the_sweep(made: Made) -> None:
    _, tables, runs = made
    settled = tables.results[tables.results["status"] != "pending"]

    assert len(settled) == len(tables.results) - 1 == 5
    kinds = {name: run["run"]["job_type"] for name, run in runs.items() if name not in {*settled["cell_id"]}}
    (baseline,) = tables.baselines
    vectors = {name for name, kind in kinds.items() if kind == "vector"}
    assert vectors == set(tables.results["vector_id"])
    assert len(vectors) == 3
    attributions = {name for name, kind in kinds.items() if kind == "attribution"}
    assert len(attributions) == 1
    assert kinds == {
        baseline: "baseline",
        **dict.fromkeys(vectors, "vector"),
        **dict.fromkeys(attributions, "attribution"),
        "my sweep summary": "summary",
    }
    for row in settled.itertuples():
        run = runs[row.cell_id]["run"]
        assert run["job_type"] == ("control" if row.is_control else "cell")
    assert runs["my sweep summary"]["run"]["job_type"] == "summary"
    for found in runs.values():
        run = found["run"]
        assert (run["run_group"], run["project"], run["tags"]) == ("my sweep", "emotions", ["ours", "two words"])
        assert re.fullmatch(r"[a-z0-9]{8,64}", run["run_id"])
        assert found["exit"]["exit_code"] == (1 if "c0.9" in run["display_name"] else 0)


def test_every_run_has_every_axis_flat_and_typed(made: Made) -> None:
    _, tables, runs = made
    for row in tables.results.to_dict("records"):
        if row["status"] != "pending":
            config = config_of(runs[row["cell_id"]])
            assert set(config) == set(CONFIG_KEYS)
            assert not any(isinstance(value, (dict, list)) for value in config.values())
            assert isinstance(config["seed"], int)
            assert config["coefficient"] == row["coefficient"]
            assert isinstance(config["generation_do_sample"], bool)
            assert isinstance(config["generation_max_new_tokens"], int)
            assert config["layer"] == (None if "+" in row["layers"] else int(row["layers"]))
            assert (config["layers"], config["scope"], config["vector_method"]) == (row["layers"], row["scope"], row["vector_method"])
    both, control = (config_of(runs[name]) for name in (one(tables, "trust_disgust"), one(tables, None)))
    assert (both["layer"], both["layers"], both["pair"], both["target"]) == (None, "2+5", "trust_disgust", "trust")
    assert (control["pair"], control["target"], control["vector_method"], control["kind"]) == (None, None, "random", "control")
    assert both["n_prompts"] == 6
    assert isinstance(both["n_prompts"], int)


def one(tables: Tables, pair: str | None) -> str:
    rows = tables.controls if pair is None else tables.cells[tables.cells["pair"] == pair]
    return str(rows["cell_id"].iloc[0])


def test_metrics_and_their_p_are_those_of_the_results(made: Made) -> None:
    _, tables, runs = made
    for row in tables.results[tables.results["status"] == "done"].to_dict("records"):
        summary = runs[row["cell_id"]]["summary"]
        logged = runs[row["cell_id"]]["history"]["item"]
        assert logged["coefficient"] == row["coefficient"]
        expected = {
            k: v for m in METRICS for k, v in row.items() if k.startswith(f"{m}_") and not k.endswith("_q") and not math.isnan(v)
        }
        assert {f"{m}_{key}" for m in METRICS for key in ("delta", "p", "ci_low", "ci_high")} <= set(expected)
        assert {key: summary.get(key) for key in expected} == expected
        assert {key: logged.get(key) for key in expected} == expected
        assert summary["perplexity_ratio"] == row["perplexity_ratio"]
        assert not [key for key in summary if key.endswith("_q")]
        allowed = {*expected, "perplexity_ratio", "status", "n_tokens", "n_controls", "seconds", "attempt"}
        others = {key for key in summary if not key.startswith(("_", "primary_", "replies."))}
        assert others == allowed, "no metric is named after a layer or pair"


def test_the_primary_effect_has_a_name_that_all_pairs_share(made: Made) -> None:
    _, tables, runs = made
    for pair, primary in (("joy_sadness", "joy"), ("trust_disgust", "trust")):
        row = tables.results.set_index("cell_id").loc[one(tables, pair)]
        summary = runs[one(tables, pair)]["summary"]
        for key in ("delta", "p", "ci_low", "ci_high", "beyond_random", "beyond_random_p"):
            assert summary[f"primary_{key}"] == row[f"{primary}_{key}"]
    assert not [key for key in runs[one(tables, None)]["summary"] if key.startswith("primary_")]


def test_metrics_are_curves_over_the_coefficient(made: Made) -> None:
    _, _, runs = made
    for run in runs.values():
        steps = [metric for metric in run["metrics"] if metric.get("step_metric")]
        is_steered = run["run"]["job_type"] in ("cell", "control")
        assert [(metric["glob_name"], metric["step_metric"]) for metric in steps] == ([("*", "coefficient")] if is_steered else [])
        assert "coefficient" not in run["summary"], "it would stand beside the config's, under the same name"


def test_the_baseline_has_the_means_that_cells_are_compared_with(made: Made) -> None:
    _, tables, runs = made
    (name,) = tables.baselines
    row = tables.results[tables.results["status"] == "done"].iloc[0]
    summary = runs[name]["summary"]
    assert {m: summary[f"{m}_baseline"] for m in METRICS} == pytest.approx({m: row[f"{m}_baseline"] for m in METRICS})
    assert {key.removesuffix("_baseline") for key in summary if key.endswith("_baseline")} == set(METRICS)
    shown = table_of(runs[name], "replies")
    assert list(shown["reply"]) == list(tables.replies[tables.replies["cell_id"] == name]["reply"])
    config = config_of(runs[name])
    assert set(config) == set(CONFIG_KEYS)
    assert (config["n_prompts"], config["pair"], config["coefficient"], config["kind"]) == (6, None, None, "baseline")


def test_lineage_leads_from_texts_over_vectors_to_cells(made: Made) -> None:
    sweep, tables, runs = made
    for row in tables.results[tables.results["status"] == "done"].to_dict("records"):
        cell, vector = runs[row["cell_id"]], runs[row["vector_id"]]
        (used,) = cell["artifacts"]
        (made_one,) = [artifact for artifact in vector["artifacts"] if not artifact.get("use_after_commit")]
        assert used["use_after_commit"]
        assert (used["name"], used["digest"]) == (made_one["name"], made_one["digest"])
        file = next(entry for entry in used["manifest"]["contents"] if entry["path"].endswith(".safetensors"))
        assert not Path(file["local_path"]).is_absolute()
        assert (sweep.paths.root / file["local_path"]).read_bytes() == row["vector_id"].encode()
        texts = {artifact["type"] for artifact in vector["artifacts"] if artifact.get("use_after_commit")}
        assert texts == ({"neutral"} if row["vector_method"] == "random" else {"pairs", "neutral"})
        assert table_of(vector, "blocks")["residual_norm"].tolist() == [5.0] * 8
        assert set(config_of(vector)) == set(CONFIG_KEYS)
    names = {a["name"] for run in runs.values() for a in run["artifacts"] if a["type"] == "pairs"}
    assert names == {"pairs-joy_sadness", "pairs-trust_disgust"}


def test_an_attribution_has_its_scores_and_its_heatmap(made: Made) -> None:
    _, tables, runs = made
    (run,) = [run for run in runs.values() if run["run"]["job_type"] == "attribution"]
    assert table_of(run, "attribution_scores")["block"].tolist() == list(range(8))
    assert run["summary"]["first_block"] == 3
    assert len(run["summary"]["attribution_heatmap.filenames"]) == 1
    assert {artifact["type"] for artifact in run["artifacts"]} == {"attribution"}
    assert config_of(run)["attribution_id"] in tables.attributions


def test_emotion_words_are_those_that_are_scored() -> None:
    reply = "I am glad, not horrible: your gift was the best gift."
    shown = emotions_in(reply)
    assert shown is not None
    assert shown.startswith("glad (joy")
    assert {c: 100 * shown.count(c) / 11 for c in CATEGORIES} == pytest.approx({c: v for c, (v,) in nrc([reply]).items()})
    assert emotions_in(None) is None


def test_replies_stand_side_by_side(made: Made) -> None:
    _, tables, runs = made
    name = one(tables, "joy_sadness")
    shown = table_of(runs[name], "replies").set_index("prompt_id")
    baseline_id = tables.results.set_index("cell_id").loc[name, "baseline_id"]

    replies = tables.replies.set_index(["cell_id", "prompt_id"])
    assert sorted(shown.index) == [f"p{i}" for i in range(6)]
    for prompt_id, row in shown.iterrows():
        steered, baseline = replies.loc[(name, prompt_id)], replies.loc[(baseline_id, prompt_id)]
        assert (row["prompt"], row["steered_reply"], row["baseline_reply"]) == (
            steered["prompt"],
            steered["reply"],
            baseline["reply"],
        )
        assert [row[m] for m in METRICS] == [steered[m] for m in METRICS]
        assert [row[f"{m}_baseline"] for m in METRICS] == [baseline[m] for m in METRICS]


def test_the_summary_has_the_grid_with_q_the_figures_and_the_attribution(made: Made) -> None:
    _, tables, runs = made
    run = runs["my sweep summary"]

    shown = table_of(run, "grid").set_index("cell_id")
    assert list(shown.index) == list(tables.cells["cell_id"])
    done = tables.cells[tables.cells["status"] == "done"].set_index("cell_id")
    for name, row in done.iterrows():
        assert shown.loc[name, "joy_q"] == row["joy_q"]
        assert shown.loc[name, "primary_q"] == row[f"{row['primary']}_q"]
    assert set(table_of(run, "controls")["cell_id"]) == set(tables.controls["cell_id"])
    assert len(table_of(run, "trends")) == len(tables.trends)
    counts = {key: run["summary"][key] for key in ("n_cells", "n_controls", "n_done", "n_failed", "n_pending")}
    assert counts == {"n_cells": 4, "n_controls": 2, "n_done": 4, "n_failed": 1, "n_pending": 1}

    assert run["summary"]["effect_heatmap.captions"] == ["effect-a", "effect-b"]
    for key in ("effect_heatmap", "dose_response", "attribution_heatmap"):
        for file in run["summary"][f"{key}.filenames"]:
            assert (run["directory"] / "files" / file).read_bytes()[:4] == PNG[:4]
    scores = table_of(run, "attribution_scores")
    assert list(scores["block"]) == list(range(8))
    assert list(scores.sort_values("rank")["block_score"]) == sorted(scores["block_score"], reverse=True)
    assert scores["attention"].to_numpy() + scores["mlp"].to_numpy() == pytest.approx(scores["block_score"].to_numpy(), abs=1e-6)
    config = config_of(run)
    assert set(config) == {*CONFIG_KEYS, "commands"}
    assert (config["model"], config["n_samples"], config["pair"], config["commands"]) == ("made-up", 1, None, "emosteer -m")


def test_a_run_needs_nothing_outside_its_directory_and_holds_no_secret(made: Made) -> None:
    sweep, _, _ = made
    files = [path for path in sweep.paths.wandb.rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        assert KEY.encode() not in content
        assert str(sweep.paths.root).encode() not in content, f"{path} refers to where it was written"
        assert b"staging" not in content
    assert not [path for path in sweep.paths.wandb.rglob("*") if path.is_symlink() or path.name.startswith(".tmp")]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return make_sweep(tmp_path)


@pytest.fixture
def logged(sweep: Sweep) -> Sweep:
    log_to_wandb(sweep, build(sweep))
    return sweep


def contents(sweep: Sweep) -> dict[str, bytes]:
    return {directory.name: next(directory.glob("run-*.wandb")).read_bytes() for directory in directories(sweep)}


def test_a_second_time_writes_nothing(logged: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(logged)
    monkeypatch.setattr(wandb_runs, "run_child", lambda *_: pytest.fail("something was run"))
    log_to_wandb(logged, build(logged))

    assert contents(logged) == before
    assert len(before) == 6


def test_a_grown_sweep_writes_its_new_cells_and_the_summary_only(logged: Sweep) -> None:
    before = contents(logged)
    added = grow(logged)
    log_to_wandb(logged, build(logged))

    after = contents(logged)
    runs = runs_of(logged)
    new = {run["run"]["display_name"] for run in runs.values() if run["directory"].name not in before}
    assert new == {"my sweep summary", *(cell.id for cell in added)}
    assert len(runs) == 6 + len(added)
    assert len({name for name in before if name in after}) == 5
    assert all(after[name] == before[name] for name in before if name in after)
    ids = [run["run"]["run_id"] for run in runs.values()]
    assert len(set(ids)) == len(ids)


def test_what_a_crash_leaves_ends_in_one_whole_directory_per_run(logged: Sweep) -> None:
    ids = sorted(name.rpartition("-")[2] for name in contents(logged))
    doubled, stale, torn, gone, other, _ = directories(logged)
    shutil.copytree(doubled, doubled.with_name(f"offline-run-20200101_000000-{ids_of(doubled)}"))
    (stale / "emosteer-content").write_text("of an older sweep")
    next(torn.glob("*.wandb")).unlink()
    shutil.rmtree(gone)
    draft = logged.paths.wandb / ".tmp-abc" / "wandb" / f"offline-run-20200101_000000-{ids_of(other)}"
    draft.mkdir(parents=True)
    theirs = logged.paths.wandb / "offline-run-20200101_000000-theirs"
    theirs.mkdir()
    log_to_wandb(logged, build(logged))

    theirs.rmdir()
    assert sorted(ids_of(directory) for directory in directories(logged)) == ids
    assert other.exists()
    assert {run["run"]["run_id"] for run in runs_of(logged).values()} == set(ids)


def ids_of(directory: Path) -> str:
    return directory.name.rpartition("-")[2]


def test_a_cell_that_failed_and_now_is_done_replaces_its_run(logged: Sweep) -> None:
    cell = made_up_cell(logged.store, n_prompts=6, coefficient=0.9)
    join(logged, [cell], **tracking())
    logged.record_failure(cell, {"message": "no memory"})
    log_to_wandb(logged, build(logged))
    failed = runs_of(logged)[cell.id]
    publish(logged.store, logged.scorers(), cell, seed=7)
    log_to_wandb(logged, build(logged))
    done = runs_of(logged)[cell.id]

    assert (failed["exit"]["exit_code"], failed["summary"]["status"], failed["run"]["notes"]) == (1, FAILED, "Failed: no memory")
    assert (done["exit"]["exit_code"], done["summary"]["status"]) == (0, "done")
    assert done["run"]["run_id"] == failed["run"]["run_id"]


def test_a_table_that_is_cut_is_told(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "MAX_TABLE_ROWS", 4)
    runs = list(sweep_runs(sweep, build(sweep), run_module.Destination("p", None, sweep.name, [])))

    for run in runs[:-1]:
        assert len(run.tables["replies"].rows) == 4
        assert "the first 4 of 6 rows" in run.notes
    assert runs[-1].notes == "Table trends: the first 4 of 10 rows; all are in the sweep's directory."


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="emosteer.tracking"):
        yield caplog


def test_without_a_key_the_command_to_upload_is_told(sweep: Sweep, told: pytest.LogCaptureFixture) -> None:
    log_to_wandb(sweep, build(sweep))

    assert not [record for record in told.records if record.levelno > logging.INFO]
    assert "6 runs are not uploaded" in told.text
    command = shlex.split(told.messages[-1].partition("wandb login; ")[2])
    assert command == ["emosteer-sweep", "sync", str(sweep.paths.root)]


def test_uploads_what_is_new_where_a_key_is_configured(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    with stand_in() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        for name, value in UNWELCOME.items():
            monkeypatch.setenv(name, value)
        log_to_wandb(sweep, build(sweep))

        assert set(server.runs) == {ids_of(directory) for directory in directories(sweep)}
        assert {run["groupName"] for run in server.runs.values()} == {"my sweep"}
        assert {run["project"] for run in server.runs.values()} == {"emotions"}
        assert all("joy_baseline" in run.history[0] for key, run in server.held.items() if key != summary_id(sweep))
        assert {key for key, run in server.held.items() if any(".table.json" in name for name in run.files)} == set(server.runs)
        assert not [record for record in told.records if record.levelno > logging.INFO]

        server.held.clear()
        log_to_wandb(sweep, build(sweep))
        assert server.runs == {}
        added = grow(sweep)
        log_to_wandb(sweep, build(sweep))
        assert {run["displayName"] for run in server.runs.values()} == {"my sweep summary", *(cell.id for cell in added)}


def summary_id(sweep: Sweep) -> str:
    return ids_of(next(path for path in directories(sweep) if "summary" in records(path)["run"]["display_name"]))


def test_a_server_that_hangs_costs_the_stated_time_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    patience = 3.0
    sweep = make_sweep(tmp_path, upload_patience=patience)
    tables = build(sweep)
    log_to_wandb(sweep, tables)
    before = contents(sweep)
    with silent_port() as url:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", url)
        started = time.monotonic()
        log_to_wandb(sweep, tables)
        took = time.monotonic() - started

    assert patience <= took < patience + 2
    (warning,) = [record.getMessage() for record in told.records if record.levelno >= logging.WARNING]
    assert "6 of 6 runs are not uploaded (no progress for 3 s, from http://127.0.0.1:" in warning
    assert "emosteer-sweep sync" in warning
    assert KEY not in warning
    assert contents(sweep) == before


def test_a_wrong_key_is_a_warning(logged: Sweep, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    log_to_wandb(logged, build(logged))

    assert "API key must have" in told.messages[-1]
    assert told.records[-1].levelno == logging.WARNING


@pytest.mark.parametrize("how", ["environment", "wandb disabled"])
def test_wandb_that_is_disabled_writes_nothing(how: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    else:
        wandb_setting(mode="disabled")
    log_to_wandb(sweep, build(sweep))

    assert not sweep.paths.wandb.exists()


def wandb_setting(**values: str) -> None:
    """What `wandb offline` and `wandb login --host` leave behind."""
    lines = "".join(f"{key} = {value}\n" for key, value in values.items())
    publish_file(Path.home() / ".config" / "wandb" / "settings", f"[default]\n{lines}")


def test_wandb_that_is_not_installed_is_one_warning(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wandb").mkdir()
    folder_only = importlib.util.spec_from_loader("wandb", loader=None, is_package=True)
    for spec in (None, folder_only):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, spec=spec: spec)
        told.clear()
        log_to_wandb(sweep, build(sweep))
        (message,) = told.messages
        assert 'pip install "emosteer[wandb]"' in message
        assert "tracking=none" in message
    assert not sweep.paths.wandb.exists()


def test_modes() -> None:
    assert resolve_mode("auto", {}) == "auto"
    assert resolve_mode("online", {"WANDB_MODE": "offline"}) == "offline"
    assert resolve_mode("offline", {"WANDB_MODE": "online"}) == "offline"
    with pytest.raises(ValueError, match=r"tracking\.mode=on: choose one of auto, offline, online"):
        resolve_mode("on", {})
    wandb_setting(mode="offline")
    assert resolve_mode("auto", os.environ) == "offline"


def test_a_project_of_the_command_comes_before_the_users_own() -> None:
    assert resolve("project", "here", {"WANDB_PROJECT": "there"}) == "here"
    assert resolve("project", None, {"WANDB_PROJECT": "there"}) == "there"
    wandb_setting(entity="team")
    assert resolve("entity", None, os.environ) == "team"


def test_a_key_is_found_where_wandb_login_puts_it() -> None:
    assert not is_logged_in(os.environ)
    publish_file(Path.home() / ".netrc", f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    assert is_logged_in(os.environ)
    wandb_setting(base_url="https://wandb.example.org")
    assert not is_logged_in(os.environ)
    publish_file(Path.home() / ".netrc", f"machine wandb.example.org\n  login user\n  password {KEY}\n")
    assert is_logged_in(os.environ)


def test_online_without_a_key_is_a_warning(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    sweep = make_sweep(tmp_path, mode="online")
    log_to_wandb(sweep, build(sweep))

    assert (told.records[-1].levelno, "wandb login" in told.messages[-1]) == (logging.WARNING, True)


def test_a_child_is_given_up_when_it_stands_still_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "LOOK_SECONDS", 0.1)
    script = "import time\nfor i in range(8):\n open(str(i), 'w'); print(i, flush=True); time.sleep(.2)\nif {still}: time.sleep(60)"

    def run(still: bool) -> tuple[int | None, str, float]:
        started = time.monotonic()
        command = [sys.executable, "-c", script.format(still=still)]
        ending = child.run_child(command, os.environ, tmp_path, lambda: len(list(tmp_path.iterdir())), 1.0)
        return ending.code, ending.last_line, time.monotonic() - started

    code, last, _ = run(still=False)
    assert (code, last) == (0, "7")
    for path in tmp_path.iterdir():
        path.unlink()
    code, last, took = run(still=True)
    assert (code, last) == (None, "7")
    assert took < 10
