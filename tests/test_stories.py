"""Stories that a model writes: which of them count, by hand, and how vectors come of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from made_up_sweep import made_up_cell
from tiny_models import BLOCKS, tiny_model

from emosteer import sources, stories
from emosteer.config import GenerationConfig
from emosteer.datasets import ContrastivePair, NeutralText
from emosteer.engine import Engine, requests_for
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.records.cell import Cell, ModelSpec, Part, VectorSpec
from emosteer.records.claims import Claims
from emosteer.records.garbage import References, find
from emosteer.records.store import Store
from emosteer.resources import Resources
from emosteer.sources import SCENES, story_prompts
from emosteer.stories import Stories, Story, judged, write_stories
from emosteer.vectors import mean_difference, read_states

PLAIN = "the train left the station at nine and came to the town by noon where a man with a bag stood at the door of"
"""25 words without an emotion."""
NEUTRAL = [NeutralText("a", "A train leaves the station at nine and arrives before noon.")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{PLAIN} a happy cheerful house", ""),
        (f"{PLAIN} a happy house", ""),
        (PLAIN.replace("a man", "happy"), "too short"),
        (f"{PLAIN} a very old house", "without the emotion's words"),
        (f"{PLAIN} a happy lonely house", "without the emotion's words"),
        (f"{PLAIN} a happy cheerful lonely house", ""),
        ("we laugh and laugh with joy " * 6, "repetitive"),
        ("", "too short"),
    ],
)
def test_which_stories_of_joy_count(text: str, reason: str) -> None:
    assert judged([text], "joy", "sadness") == [reason]


def test_equal_stories_count_once() -> None:
    text = f"{PLAIN} a happy house"
    assert judged([text, f"{text} then", text], "joy", "sadness") == ["", "", "written twice"]


def test_of_emotions_beyond_the_lexicon_the_name_is_looked_for() -> None:
    loved, both = f"{PLAIN} a house that he loved", f"{PLAIN} a house that he hated and loved"
    assert judged([loved, both, f"{PLAIN} a happy cheerful house"], "love", "hate") == ["", *["without the emotion's words"] * 2]
    assert judged([both.replace("that", "hateful")], "hate", "love") == [""]


def test_a_scene_is_asked_once_for_each_emotion() -> None:
    prompts = story_prompts("pride", "contempt")
    assert len(prompts) == 2 * len(SCENES)
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    for pride, contempt in zip(prompts[0::2], prompts[1::2], strict=True):
        assert (pride.category, contempt.category) == ("pride", "contempt")
        assert pride.text.replace("pride", "contempt") == contempt.text


def of_scenes(*reasons: str) -> Stories:
    """Two samples of joy, two of sadness, in turn."""
    told = [
        Story(f"story-{i // 4 + 1:02}-{'joy' if i % 4 < 2 else 'sadness'}", i % 2, f"text {i}", why) for i, why in enumerate(reasons)
    ]
    return Stories("joy", "sadness", 3, tuple(told))


def test_a_pair_needs_both_stories_of_a_scene() -> None:
    found = of_scenes("", "", "", "too short", "repetitive", "", "", "", "too short", "written twice", "", "")
    assert found.pairs() == [ContrastivePair("story-01-0", "text 0", "text 2"), ContrastivePair("story-02-1", "text 5", "text 7")]
    facts = found.facts()
    assert facts["n_pairs"] == 2
    assert facts["dropped"] == {"too short": 2, "repetitive": 1, "without the emotion's words": 0, "written twice": 1}
    assert facts["n_written"] == 12 == sum(facts["dropped"].values()) + facts["n_alone"] + 2 * facts["n_pairs"]


def test_stories_are_read_back_and_a_changed_one_is_told() -> None:
    found = of_scenes("", "", "", "too short")
    data = json.loads(json.dumps(found.to_json()))
    assert Stories.from_json(data) == found
    data["stories"][0]["text"] = "another"
    with pytest.raises(ValueError, match="its stories are others than those that were written"):
        Stories.from_json(data)


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A random model writes no story of anything: three scenes of 12 tokens, and all count."""
    monkeypatch.setattr(sources, "SCENES", SCENES[:3])
    monkeypatch.setattr(stories, "DECODING", GenerationConfig(max_new_tokens=12, do_sample=True, temperature=0.8, n_samples=2))
    monkeypatch.setattr(stories, "LEAST_PAIRS", 4)
    monkeypatch.setattr(stories, "judged", all_count)
    story_prompts.cache_clear()
    yield
    story_prompts.cache_clear()


def all_count(texts: Sequence[str], _emotion: str, _other: str) -> list[str]:
    return ["" for _ in texts]


@pytest.mark.usefixtures("_short")
def test_a_seed_gives_the_same_stories_however_they_are_packed() -> None:
    model = tiny_model("llama")
    told: list[tuple[int, int]] = []
    first = write_stories(model, "joy", "sadness", 1, lambda done, total: told.append((done, total)))
    assert told[-1] == (12, 12)
    assert write_stories(Engine(model, batch_rows=5), "joy", "sadness", 1) == first
    other = write_stories(model, "joy", "sadness", 2)
    assert [story.text for story in other.stories] != [story.text for story in first.stories]
    requests = requests_for(model, story_prompts("joy", "sadness"), stories.DECODING, 1)
    replies = dict(Engine(model).generate(requests))
    assert [story.text for story in first.stories] == [model.dialogue.reply(replies[i].tokens) for i in range(12)]
    assert len({story.text for story in first.stories}) > 6


@pytest.mark.usefixtures("_short")
def test_too_few_stories_are_an_error_that_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "judged", judged)
    message = (
        r"vector.source=stories: of 12 stories of joy and sadness by tiny-llama 0 pairs are left, and 4 are needed \(\d+ too short, "
    )
    with pytest.raises(EmosteerError, match=message):
        write_stories(tiny_model("llama"), "joy", "sadness")


# --- in a sweep


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def cell_of(store: Store, seed: int = 0, **more: object) -> Cell:
    made_up, asked = made_up_cell(store, seed=seed), store.keep_texts(story_prompts("joy", "sadness"))
    return dataclasses.replace(
        made_up,
        model=ModelSpec(made_up.model.config, "sha256:tiny", BLOCKS),
        vector=VectorSpec("mean_difference", asked, seed=seed, source="stories", **more),  # type: ignore[arg-type]
        neutral=store.keep_texts(NEUTRAL),
    )


def resources(store: Store, model: LanguageModel | None = None) -> Resources:
    return Resources(store, Claims(store.paths.claims, 60.0), model or tiny_model("llama"))


@pytest.mark.usefixtures("_short")
def test_a_vector_of_stories_is_that_of_its_pairs_and_says_so(store: Store) -> None:
    cell, own = cell_of(store), resources(store)
    made = own.vector(cell)
    written = write_stories(own.model, "joy", "sadness", 0)
    torch.testing.assert_close(made.directions, mean_difference(read_states(own.model, written.pairs())), rtol=1e-4, atol=1e-5)
    facts = store.vector_facts(cell.vector_id)
    (key,) = cell.stories_ids.values()
    assert facts["stories"] == [{**written.facts(), "id": key}]
    assert facts["n_pairs"] == written.facts()["n_pairs"] == 6
    kept = json.loads(store.paths.stories(key).read_text())
    assert kept["stories"] == [dataclasses.asdict(story) for story in written.stories]
    assert kept["model"] == cell.model.identity()


@pytest.mark.usefixtures("_short")
def test_stories_are_written_once_for_all_sites_and_methods(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of(store)
    resources(store).vector(cell)
    monkeypatch.setattr("emosteer.resources.write_stories", None)
    assert cell.vector is not None
    again = resources(store)
    for other in (
        dataclasses.replace(cell, site="mlp"),
        dataclasses.replace(cell, vector=dataclasses.replace(cell.vector, method="pca", reading="last_token")),
    ):
        assert other.vector_id != cell.vector_id
        again.vector(other)


@pytest.mark.usefixtures("_short")
def test_edited_stories_are_written_again(store: Store) -> None:
    cell = cell_of(store)
    resources(store).vector(cell)
    (key,) = cell.stories_ids.values()
    path = store.paths.stories(key)
    written = path.read_text()
    first = json.loads(written)["stories"][0]["text"]
    path.write_text(written.replace(json.dumps(first), '"Edited."', 1))
    store.paths.vector(cell.vector_id).unlink()
    resources(store).vector(cell)
    assert path.read_text() == written


@pytest.mark.usefixtures("_short")
def test_what_is_added_and_taken_out_has_stories_of_its_own(store: Store) -> None:
    plus, without = (store.keep_texts(story_prompts(*two)) for two in (("trust", "disgust"), ("anger", "fear")))
    cell = cell_of(store, plus=(Part(plus, "trust_disgust"),), without=(Part(without, "anger_fear"),))
    own = resources(store)
    made = own.vector(cell)
    facts = store.vector_facts(cell.vector_id)
    assert [(one["target"], one["counterpart"]) for one in facts["stories"]] == [
        ("joy", "sadness"),
        ("trust", "disgust"),
        ("anger", "fear"),
    ]
    anger = mean_difference(read_states(own.model, write_stories(own.model, "anger", "fear").pairs()))
    assert torch.cosine_similarity(made.directions, anger).abs().max() < 1e-4


def test_ids_hang_on_the_seed_and_the_model(store: Store) -> None:
    cell = cell_of(store)
    assert cell_of(store, seed=1).vector_id != cell.vector_id
    assert cell_of(store, seed=1).stories_ids != cell.stories_ids
    for_raw = dataclasses.replace(cell_of(store, seed=4), coefficient_unit="raw")
    assert for_raw.control(0).like().vector_id == for_raw.vector_id
    assert for_raw.control(0).stories_ids == for_raw.stories_ids
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell
    bfloat16 = dataclasses.replace(cell.model, config=dataclasses.replace(cell.model.config, dtype="bfloat16"))
    assert dataclasses.replace(cell, model=bfloat16).stories_ids != cell.stories_ids
    plain = dataclasses.replace(cell, vector=VectorSpec("mean_difference", "texts"))
    assert plain.stories_ids == cell.control(0).stories_ids == {}


@pytest.mark.usefixtures("_short")
def test_stories_go_where_nobody_refers_to_them(store: Store) -> None:
    kept, forgotten = cell_of(store), cell_of(store, seed=1)
    own = resources(store)
    for cell in (kept, forgotten):
        own.vector(cell)
    references = References()
    references.add(kept)
    gone = {path for one in find(store, references, -60.0).garbage for path in one.paths}
    of_stories = {path for path in gone if path.parent.name == "stories"}
    assert of_stories == {store.paths.stories(key) for key in forgotten.stories_ids.values()}
    store.discard(kept)
    assert not any(store.paths.stories(key).exists() for key in kept.stories_ids.values())
