"""What docs/extending.md shows runs as it is shown, on a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from documents import ROOT, commands, jobs, write_example_files

from emosteer.launcher import Job, failed_tasks, open_sweep, submit, work
from emosteer.planning import typed
from emosteer.tables import Tables, build

JSON = (
    *("store/cells/*/record.json", "store/baselines/*/record.json", "store/cells/*/scores/*.json", "store/vectors/*.json"),
    *("*/commands/*.json", "*/sweep.json"),
)
PAGE = ROOT / "docs" / "extending.md"
TINY = (
    *("model.dtype=float32", "model.device=cpu", "model.wheel=null", "model.gguf_file=null", "layer=1"),
    *("attribution=none", "tracking=none", "prompts.limit=2", "generation.max_new_tokens=4"),
    *("statistics.n_resamples=99", "engine.threads=1"),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of the page are given."""
    return tmp_path_factory.mktemp("extending")


@pytest.fixture(scope="module")
def tables(directory: Path, tiny_directory: Path) -> dict[str, Tables]:
    """What each command of the page comes to, by its words."""
    write_example_files(PAGE, directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.syspath_prepend(directory)
        found = {}
        for number, command in enumerate(one for one in commands(PAGE) if len(one.words) > 1 and "probe=true" not in one.words):
            composed = jobs(command, f"model.path={tiny_directory}", *TINY)
            sweep = open_sweep("store", directory / str(number))
            submit([Job(typed(task), overrides=(), files={}, output_dir=directory) for task in composed], sweep)
            work(sweep)
            assert failed_tasks(sweep) == [], str(command)
            found[" ".join(command.words[1:])] = build(sweep)
    return found


def cells(tables: dict[str, Tables], part: str) -> pd.DataFrame:
    """The cells of the one command that has these words."""
    (found,) = [table.cells for words, table in tables.items() if part in words]
    return found


def test_every_part_has_a_command(tables: dict[str, Tables]) -> None:
    assert len(tables) == 10


def test_a_model_of_ones_own_has_its_name(tables: dict[str, Tables]) -> None:
    assert list(cells(tables, "model=mine")["model"]) == ["Qwen3-0.6B"]


def test_a_pair_of_ones_own_has_its_primary_metric(tables: dict[str, Tables]) -> None:
    own = cells(tables, "pair=custom")
    assert list(own["target"]) == ["awe"]
    assert list(own["primary"]) == ["positive"]
    beside = cells(tables, "pair=joy_sadness,awe_contempt").set_index("pair")
    # The same texts, and so the same cell, whichever way the pair was given.
    assert beside.loc["awe_contempt", "cell_id"] == own["cell_id"].item()


def test_dialogues_of_ones_own_are_held_to_their_ends(tables: dict[str, Tables]) -> None:
    (found,) = [table for words, table in tables.items() if "haggling.jsonl" in words]
    turns = found.replies.groupby(["cell_id", "prompt_id"])["turn"].max().unstack()
    assert set(turns["week"]) == {2}
    assert set(turns["lamp"]) == {3}
    assert {"agreed_steered", "offer_steered"} <= set(found.results)
    assert not found.turns.empty


def test_prompts_of_ones_own_are_replied_to(tables: dict[str, Tables]) -> None:
    (prompts,) = [table.replies for words, table in tables.items() if "prompts.path=mine.jsonl" in words]
    assert set(prompts["prompt_id"]) == {"m1", "m2"}
    assert "I start a new job on Monday. Any advice?" in set(prompts["prompt"])


def test_a_scorer_of_ones_own_has_columns(tables: dict[str, Tables]) -> None:
    (scored,) = [table for words, table in tables.items() if "my_scorers" in words]
    assert "shouting_delta" in scored.results
    in_capitals = scored.replies["reply"].map(lambda reply: 2.0 * sum(word.isupper() for word in reply.split()))
    assert list(scored.replies["shouting"]) == list(in_capitals)


def test_a_dropped_scorer_has_none(tables: dict[str, Tables]) -> None:
    assert "perplexity_delta" not in cells(tables, "~scorers.perplexity")


def test_a_vector_method_of_ones_own_stands_beside_ours(tables: dict[str, Tables]) -> None:
    beside = cells(tables, "principal_direction")
    assert list(beside["vector_method"]) == ["mean_difference", "my_vectors.principal_direction"]
    assert beside["coefficient_raw"].nunique() == 2, "each has its own length, and so its own multiple"


def test_the_formats_page_names_what_lies_on_the_disk(tables: dict[str, Tables], directory: Path) -> None:
    """Every key and column, of a sweep with controls."""
    named = {part for name in re.findall(r"`([\w.]+)`", PAGE.with_name("files.md").read_text("utf-8")) for part in name.split(".")}
    store, every = directory / "store", next(iter(tables.values()))
    found = {key for pattern in JSON for path in directory.glob(pattern) for key in json.loads(path.read_text(encoding="utf-8"))}
    found |= set(json.loads(next(store.glob("cells/*/replies.jsonl")).read_text(encoding="utf-8").splitlines()[0]))
    metrics = set(every.replies) & {name.removesuffix("_delta") for name in every.results}
    a_metric = re.compile(rf"^({'|'.join(sorted(metrics, key=len, reverse=True))})_")
    found |= {a_metric.sub("m_", name) for name in every.results if name != "perplexity_ratio"}
    found |= (set(every.replies) - metrics) | set(every.trends)
    assert len(found) > 70
    assert found - named == set(), "docs/files.md says nothing of these"
