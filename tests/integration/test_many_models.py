"""One sweep over every axis at once, checked as a table; modes; and two commands under one name."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from desk import Desk, Done

from emosteer.statistics import false_discovery_rate

METHODS = """
import os

from emosteer.vectors import token_means


def last_text(model, pairs, site):
    readings = [model.dialogue.reading(text) for pair in pairs[-2:] for text in (pair.positive, pair.negative)]
    means = token_means(model, readings, site)
    return means[0] - means[1]


last_text.version = int(os.environ.get("MY_VERSION", "1"))
"""
SMALLER = (
    "pair.path=pairs.jsonl",
    "prompts=custom",
    "generation.max_new_tokens=3",
    "~scorers.perplexity",
    "layer=1",
    "coefficient=0.2",
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with a vector method of the user's own."""
    directory = tmp_path_factory.mktemp("own")
    (directory / "my_methods.py").write_text(METHODS)
    return directory


def desk_with_prompts(home: Path, model: Path, library: Path) -> Desk:
    for name, words in (("few", ("rain", "tea")), ("others", ("work", "music"))):
        prompts = [{"id": word, "text": f"What about {word}?", "category": "a"} for word in words]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    pairs = [{"id": f"p{i}", "positive": f"Joy on day {i}.", "negative": f"Day {i}: tears!", "topic": "days"} for i in range(4)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return Desk(home, model, library)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, other_directory: Path, own: Path) -> tuple[Desk, Done]:
    """Two models in two types with vectors by three methods: 12 cells."""
    desk = desk_with_prompts(tmp_path_factory.mktemp("many"), tiny_directory, own)
    return desk, desk.run_warm(
        "-m",
        *SMALLER,
        "prompts.path=few.jsonl",
        f"model.path={tiny_directory},{other_directory}",
        "model.dtype=float32,bfloat16",
        "vector.method=mean_difference,random,my_methods.last_text",
    )


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, own: Path) -> tuple[Desk, Done]:
    """One vector at three sites in three scopes with two seeds on two prompts files: 36 cells."""
    desk = desk_with_prompts(tmp_path_factory.mktemp("ways"), tiny_directory, own)
    return desk, desk.run_warm(
        "-m", *SMALLER, "site=residual,attention,mlp", "scope=generated,prompt,all", "seed=0,1", "prompts.path=few.jsonl,others.jsonl"
    )


def cells_of(desk: Desk) -> pd.DataFrame:
    return desk.results().query("not is_control")


def test_every_model_type_and_method_has_a_cell_that_is_done(models: tuple[Desk, Done]) -> None:
    desk, done = models
    assert done.code == 0, done.text
    cells = cells_of(desk)

    points = set(zip(cells["model"], cells["dtype"], cells["vector_method"], strict=True))
    assert points == {
        (model, dtype, method)
        for model in ("tiny-llama", "other-llama")
        for dtype in ("float32", "bfloat16")
        for method in ("mean_difference", "random", "my_methods.last_text")
    }
    assert len(cells) == 12
    assert set(desk.results()["status"]) == {"done"}


def test_models_are_loaded_once_in_each_type(models: tuple[Desk, Done]) -> None:
    _, done = models

    assert [line for line in done.err.splitlines() if line.startswith("loading")].count("loading tiny-llama") == 2
    assert done.err.splitlines().count("loading other-llama") == 2


def test_baselines_and_controls_are_shared_by_methods_and_not_by_models(models: tuple[Desk, Done]) -> None:
    desk, _ = models
    results = desk.results()
    per_model = results.groupby(["model", "dtype"])

    assert (per_model["baseline_id"].nunique() == 1).all()
    assert results["baseline_id"].nunique() == 4
    assert results.query("is_control").groupby(["model", "dtype"]).size().tolist() == [1] * 4
    assert (results.query("not is_control").groupby(["model", "dtype"])["control_key"].nunique() == 1).all()
    assert set(results.query("not is_control")["n_controls"]) == {1}


def test_a_random_cell_is_another_direction_than_its_control(models: tuple[Desk, Done]) -> None:
    desk, _ = models
    random = desk.results().query("vector_method == 'random'")

    assert (random.groupby(["model", "dtype"])["vector_id"].nunique() == 2).all()


@pytest.mark.slow
def test_every_way_of_steering_has_a_cell_that_is_done(ways: tuple[Desk, Done]) -> None:
    desk, done = ways
    assert done.code == 0, done.text
    cells = cells_of(desk)

    axes = ["site", "scope", "seed", "prompts"]
    assert {axis: set(map(str, cells[axis])) for axis in axes} == {
        "site": {"residual", "attention", "mlp"},
        "scope": {"generated", "prompt", "all"},
        "seed": {"0", "1"},
        "prompts": {"few", "others"},
    }
    assert len(cells) == len(cells.drop_duplicates(axes)) == 36
    assert set(desk.results()["status"]) == {"done"}
    assert done.err.splitlines().count("loading tiny-llama") == 1


@pytest.mark.slow
def test_baselines_depend_on_prompts_and_seed_alone_and_vectors_on_the_site(ways: tuple[Desk, Done]) -> None:
    desk, _ = ways
    cells = cells_of(desk)

    assert (cells.groupby(["prompts", "seed"])["baseline_id"].nunique() == 1).all()
    assert cells["baseline_id"].nunique() == 4
    assert (cells.groupby("site")["vector_id"].nunique() == 1).all()
    assert cells["vector_id"].nunique() == 3
    assert (cells.groupby(["site", "scope", "seed", "prompts"])["control_key"].nunique() == 1).all()
    assert cells["control_key"].nunique() == 36, "a control is steered where its cell is"
    replies = pd.read_parquet(desk.sweep / "replies.parquet")
    prompts_of = replies.groupby("cell_id")["prompt_id"].agg(lambda ids: tuple(sorted(ids)))
    assert set(prompts_of[cells.query("prompts == 'few'")["cell_id"]]) == {("rain", "tea")}
    assert set(prompts_of[cells.query("prompts == 'others'")["cell_id"]]) == {("music", "work")}


def test_the_version_of_a_method_of_ones_own_is_part_of_the_id(models: tuple[Desk, Done]) -> None:
    """Raised, its cells run again, and nothing else does."""
    desk, _ = models
    before = desk.times()
    again = Desk(desk.directory, desk.model, desk.library, environment={"MY_VERSION": "2"})

    done = again.run_warm(
        "-m", *SMALLER, "prompts.path=few.jsonl", "vector.method=mean_difference,my_methods.last_text", "name=raised"
    )

    assert done.code == 0, done.text
    now = again.times()
    assert {cell_id: now[cell_id] for cell_id in before} == before
    (new,) = set(now) - set(before)
    assert json.loads(again.records()[new].read_text())["cell"]["vector"]["version"] == 2


@pytest.fixture(scope="module")
def union(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, own: Path) -> tuple[Desk, list[pd.DataFrame]]:
    """Two commands under one name, the first without controls, and the results after each."""
    desk = Desk(tmp_path_factory.mktemp("union"), tiny_directory, own)
    seen = []
    for arguments in (("layer=1", "controls=none"), ("layer=2", "coefficient=0.2,0.4")):
        done = desk.run_warm("-m", *arguments)
        assert done.code == 0, done.text
        seen.append(desk.results())
    return desk, seen


def test_two_commands_of_one_name_are_one_family_of_tests(union: tuple[Desk, list[pd.DataFrame]]) -> None:
    _, (first, both) = union
    cells = both.query("not is_control")

    assert len(first) == 1
    assert len(cells) == 3
    for metric in ("words", "perplexity", "first_person"):
        assert cells[f"{metric}_q"].tolist() == pytest.approx(false_discovery_rate(cells[f"{metric}_p"].to_numpy()), nan_ok=True)
    alone, among = (results.set_index("cell_id").loc[first["cell_id"].iloc[0]] for results in (first, both))
    assert alone["perplexity_p"] == among["perplexity_p"]
    assert alone["perplexity_q"] == alone["perplexity_p"]
    assert among["perplexity_q"] >= among["perplexity_p"]


def test_cells_without_controls_stand_beside_cells_with_them(union: tuple[Desk, list[pd.DataFrame]]) -> None:
    _, (_, both) = union
    cells = both.query("not is_control").set_index("layer")

    assert cells.loc[1, "n_controls"] == 0
    assert set(cells.loc[2, "n_controls"]) == {1}
    assert pd.isna(cells.loc[1, "words_beyond_random"])
    assert cells.loc[2, "words_beyond_random"].notna().all()
    assert cells["baseline_id"].nunique() == 1


@pytest.mark.slow
def test_modes(union: tuple[Desk, list[pd.DataFrame]]) -> None:
    """`reuse` leaves a failed cell failed, `retry` runs it again and nothing else, `force` runs all of the command again."""
    desk, _ = union
    grid = ("-m", "layer=1", "coefficient=0.2,1e39", "controls=none", "name=modes")
    failures = desk.directory / "outputs" / "modes" / "failures"

    first = desk.run(*grid)
    assert first.code == 1, first.text
    (failure,) = failures.iterdir()
    before, failed_at = desk.times(), failure.stat().st_mtime_ns

    reused = desk.run(*grid)
    assert reused.code == 1
    assert "Nothing to run" in reused.err
    assert not reused.imported_torch
    assert failure.stat().st_mtime_ns == failed_at

    retried = desk.run(*grid, "mode=retry")
    assert retried.code == 1, retried.text
    assert failure.stat().st_mtime_ns > failed_at
    assert desk.times() == before

    forced = desk.run(*grid, "mode=force")
    assert forced.code == 1, forced.text
    again = {cell_id for cell_id, time in desk.times().items() if time > before[cell_id]}
    assert sorted(cell_id.partition("-")[0] for cell_id in again) == ["baseline", "joy_sadness"]
