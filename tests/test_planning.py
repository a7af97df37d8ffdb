"""A wrong value is refused in a line, before a model is loaded; every shipped configuration can be planned."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

import emosteer
from emosteer import planning
from emosteer.checks import check_sweep_name
from emosteer.config import ModelConfig, register
from emosteer.datasets import SHIPPED, digest, labels_exchanged, load_contrastive_pairs
from emosteer.errors import EmosteerError
from emosteer.model.source import ModelSource
from emosteer.planning import plan, typed
from emosteer.records.cell import ATTRIBUTION, BASELINE, CELL, CONTROL, PROMPTING, Cell, Part
from emosteer.records.store import Store
from emosteer.sources import lexicon_pairs, persona_prompts, story_prompts

N_BLOCKS = 30
CONF = Path(emosteer.__file__).parent / "conf"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "experiment", "__pycache__"))
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def nowhere(model: ModelConfig) -> ModelSource:
    """Stands for `find`: every model is there, and has 30 blocks (the paper's 32)."""
    n_blocks = 32 if "Llama-3.1-8B" in model.path else N_BLOCKS
    return ModelSource(model.path, model.gguf_file, None, f"sha256:{model.path}", n_blocks)


@pytest.fixture(autouse=True)
def _every_model_is_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    register()
    planning._source.cache_clear()
    monkeypatch.setattr(planning, "find", nowhere)
    with initialize_config_module("emosteer.conf", version_base="1.3"):
        yield
    planning._source.cache_clear()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def composed(*overrides: str, hydra: bool = False) -> DictConfig:
    return compose("config", list(overrides), return_hydra_config=hydra)


def planned(store: Store, *overrides: str) -> list[Cell]:
    found = plan(typed(composed(*overrides)))
    for items in found.texts.values():
        store.keep_texts(items)
    return found.cells


BAD = {
    "mode=again": "mode=again: choose one of reuse, retry, force",
    "scope=reply": "scope=reply: choose one of generated, prompt, all",
    "intervention=remove": "intervention=remove: choose one of add, set, ablate",
    "decay=1.5": "decay=1.5: give a number from 0 (the first token only) to 1",
    "decay=nan": "decay=nan: give a number from 0 (the first token only) to 1",
    "decay=0.9 scope=prompt": "decay=0.9: it weakens what is done to generated tokens, which scope=prompt leaves alone",
    "controls.prompting=true controls.instruction=": "controls.instruction is empty: say what the model shall feel",
    "site=head": "site=head: choose one of residual, attention, mlp",
    "coefficient_unit=percent": "coefficient_unit=percent: choose one of fraction, raw",
    "vector.method=ica": "vector.method=ica: choose one of mean_difference, grand_mean, pca, logistic, lda,",
    "vector.source=book": "vector.source=book: choose one of pairs, lexicon, persona, stories",
    "vector.plus=joy_fear": "vector.plus=joy_fear: no pairs of that name are shipped",
    "vector.plus=[trust_disgust,trust_disgust]": "trust_disgust stands there twice; give it once",
    "vector.plus={trust_disgust:0}": "vector.plus: the weight of trust_disgust is 0; give a finite number other than 0",
    "vector.plus={trust_disgust:much}": "vector.plus: the weight of trust_disgust is much; give a finite number",
    "vector.plus=joy_sadnes": "vector.plus=joy_sadnes: no pairs of that name are shipped (did you mean joy_sadness?)",
    "vector.plus=3": "vector.plus=3: give the name of an emotion pair, a list of names, or {name: weight}",
    "vector.plus=nowhere.jsonl": "vector.plus=nowhere.jsonl: no such file",
    "vector.without={trust_disgust:2}": "what is taken out has no weight; give a name or a list of names",
    "vector.without=joy_sadness": "vector.without=joy_sadness: that is the pair itself, whose vector it would be put",
    "vector.plus=love_hate vector.without=[love_hate]": "vector.plus and vector.without both name love_hate",
    "vector=random vector.without=love_hate": "vector.method=random has none; leave them empty",
    "vector=lexicon vector.plus=love_hate": "vector.plus=love_hate: with vector.source=lexicon give two emotions of the",
    "vector=persona vector.plus=awe": "vector.plus=awe: with vector.source=persona give two emotions, as target_counterpart",
    "vector=persona vector.without=joy_sadness": "vector.without=joy_sadness: that is the pair itself",
    "vector.components=0": "vector.components=0: give a whole number of at least 1",
    "vector.reading=first_token": "vector.reading=first_token: choose one of token_mean, last_token, assistant_prefix",
    "attribution.method=lens": "attribution.method=lens: choose one of attribution_patching, atp_star, none",
    "tracking.name=paper": "tracking.name=paper: choose one of",
    "coefficient=nan": "coefficient=nan: give a finite number",
    "coefficient=-inf": "coefficient=-inf: give a finite number",
    "generation.max_new_tokens=0": "generation.max_new_tokens=0: give a whole number of at least 1",
    "generation.min_new_tokens=-1": "generation.min_new_tokens=-1: give a whole number of at least 0",
    "generation.min_new_tokens=61": "generation.min_new_tokens=61 is more than max_new_tokens",
    "generation.n_samples=0": "generation.n_samples=0: give a whole number of at least 1",
    "generation.n_samples=2": "generation.n_samples=2 gives equal replies: add generation.do_sample=true",
    "generation.temperature=0": "generation.temperature=0.0: give a number above 0",
    "generation.temperature=inf": "generation.temperature=inf: give a number above 0",
    "generation.temperature=nan": "generation.temperature=nan: give a number above 0",
    "generation.top_p=0": "generation.top_p=0.0: give a number above 0 and at most 1",
    "generation.top_p=1.5": "generation.top_p=1.5: give a number above 0 and at most 1",
    "controls.random=-1": "controls.random=-1: give a whole number of at least 0",
    "attribution.blocks=0": "attribution.blocks=0: give a whole number of at least 1",
    "attribution.direction=back": "attribution.direction=back: choose one of denoising, noising",
    "attribution.metric=joy": "attribution.metric=joy: choose one of words, nrc_words, nrc_score, projection, kl",
    "attribution.metric=kl attribution.direction=noising": "attribution.metric=kl asks how near a run comes to the clean one: choose",
    "attribution.metric=nrc_words pair=love_hate": "pair.target=love: attribution.metric=nrc_words needs",
    "attribution.metric=nrc_score pair.primary=first_person": "pair.primary=first_person: attribution.metric=nrc_score",
    "attribution.check=-1": "attribution.check=-1: give a whole number of at least 0",
    "attribution.steps=0": "attribution.steps=0: give a whole number of at least 1",
    "statistics.n_resamples=0": "statistics.n_resamples=0: give a whole number of at least 1",
    "statistics.equivalence.perplexity_ratio=0.9": "statistics.equivalence.perplexity_ratio=0.9: give a number above 1",
    "statistics.equivalence.first_person=0": "statistics.equivalence.first_person=0.0: give a number above 0",
    "+statistics.equivalence.joi=1": "statistics.equivalence.joi: no scorer measures that (did you mean joy?)",
    "+objective.at_most.joy_p_equivalence=0.05": "objective.at_most=joy_p_equivalence: results have no such column",
    "objective.column=kl_steered": "objective.column=kl_steered: results have no such column",
    "across_blocks=all": "across_blocks=all: choose one of each, split",
    "coefficient=strong": "coefficient=strong: give a finite number, such as 0.2, or auto",
    "coefficient=[0.1,0.2]": "coefficient=[0.1, 0.2]: give a finite number, such as 0.2, or auto",
    "coefficient=null": "coefficient=None: give a finite number, such as 0.2, or auto",
    "coefficient=true": "coefficient=True: give a finite number, such as 0.2, or auto",
    "coefficient=auto auto_coefficient.metric=joy": "auto_coefficient.metric=joy: choose one of kl, perplexity_ratio",
    "coefficient=auto auto_coefficient.target=0": "auto_coefficient.target=0.0: give a number above 0, what kl is without a push",
    "coefficient=auto auto_coefficient.metric=perplexity_ratio": "auto_coefficient.target=0.1: give a number above 1, what",
    "coefficient=auto auto_coefficient.tolerance=1": "auto_coefficient.tolerance=1.0: give a number between 0 and 1",
    "coefficient=auto auto_coefficient.largest=inf": "auto_coefficient.largest=inf: give a number above 0",
    "coefficient=auto auto_coefficient.max_steps=5": "auto_coefficient.max_steps=5: give a whole number of at least 6",
    "coefficient=auto auto_coefficient.prompts=0": "auto_coefficient.prompts=0: give a whole number of at least 1",
    "coefficient=auto coefficient_unit=raw": "coefficient=auto is a fraction of the residual norm: give coefficient_unit=fraction",
    "coefficient=auto intervention=set": "coefficient=auto finds how much to add: give a number with intervention=set",
    "statistics.confidence=1": "statistics.confidence=1.0: give a number between 0 and 1",
    "worker.cells_per_claim=0": "worker.cells_per_claim=0: give a whole number of at least 1",
    "worker.lease_seconds=0": "worker.lease_seconds=0.0: give a number above 0",
    "engine.batch_rows=0": "engine.batch_rows=0: give a whole number of at least 1",
    "engine.threads=-2": "engine.threads=-2: give a whole number of at least 1",
    "layer=30": "layer 30 is out of range: SmolLM2-135M-Instruct has blocks 0 to 29",
    "layer=-1": "layer -1 is out of range: SmolLM2-135M-Instruct has blocks 0 to 29",
    "layer=[8,40]": "layer 40 is out of range",
    "layer=1.5": "layer=1.5: a fraction of the depth lies between 0.0 and 1.0",
    "layer=nan": "layer=nan: a fraction of the depth lies between 0.0 and 1.0",
    "layer=deep": "layer=deep: give a block, a list of blocks, a fraction of the depth, or auto",
    "layer=true": "layer=True: give a block",
    "layer=null": "layer=None: give a block",
    "layer=[]": "layer=[]: give at least one block",
    "layer=[8,8]": "layer=[8, 8]: give at least one block, each once",
    "layer={a:1}": "layer={'a': 1}: give a block",
    "prompts.limit=0": "prompts.limit=0: give a whole number of at least 1",
    "prompts.path=nowhere.jsonl": "nowhere.jsonl: no such file",
    "prompts.path=.": ".: Is a directory",
    "pair.path=nowhere.jsonl": "nowhere.jsonl: no such file",
    "pair.diagnostics=nowhere.jsonl": "nowhere.jsonl: no such file",
    "pair.name=awe_dread": "pair=awe_dread: no diagnostic pairs are shipped for it; give",
    "pair=custom": "pair.",
    "prompts.name=mine": "prompts.name=mine: no texts of that name are shipped; give prompts.path=FILE",
    "prompts=custom": "give prompts.path=FILE",
    "model=custom": "model.path",
    "+scorers.mine._target_=mine": "scorers.mine._target_=mine: give the dotted path of a function",
    "+scorers.mine._target_=no.where": "scorers.mine._target_=no.where: No module named 'no'; is its directory on PYTHONPATH?",
    "+scorers.mine.option=1": "scorers.mine._target_=None: give the dotted path of a function",
    "+scorers.mine=3": "scorers.mine=3: give _target_",
    "+scorers.nrc.unheard=1": "scorers.nrc: emosteer.scoring.nrc.nrc got an unexpected keyword argument 'unheard'",
}


def test_a_search_may_be_held_to_no_cost(store: Store) -> None:
    assert planned(store, "objective=beyond_random", "+objective.at_most.perplexity_p_equivalence=0.05")
    assert planned(store, "objective=beyond_random", "+objective.at_most.kl_steered=0.1", "scorers=kl")


@pytest.mark.parametrize("override", BAD)
def test_a_bad_value_is_refused_in_a_line_that_names_key_value_and_remedy(store: Store, override: str) -> None:
    with pytest.raises(EmosteerError) as raised:
        planned(store, *override.split(" "))

    assert BAD[override] in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name", ["", "a/b", "/a", "..", ".", "a.", ".a", " a", "a ", "a\nb", "a\0b", "~", "a:b", "a\\b", "*", "-m", "a" * 201]
)
def test_a_name_that_is_no_path_component_is_refused(name: str) -> None:
    with pytest.raises(EmosteerError, match="name="):
        check_sweep_name(name)


@pytest.mark.parametrize("name", ["a", "demo", "joy v2", "2026-08-01", "a.b", "lr=0.1", "élan", "感情", "a_b", "a+b,c@d"])
def test_ordinary_names_pass(name: str) -> None:
    assert check_sweep_name(name) == name


def test_auto_needs_attribution(store: Store) -> None:
    with pytest.raises(EmosteerError, match="layer=auto takes the blocks that attribution finds"):
        planned(store, "layer=auto", "attribution=none")


def test_a_pair_of_ones_own_without_diagnostics_says_how_to_go_on(store: Store, tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "pairs" / "joy_sadness.jsonl", tmp_path / "awe.jsonl")
    own = ("pair=custom", "pair.target=awe", "pair.counterpart=dread", "pair.primary=positive", f"pair.path={tmp_path}/awe.jsonl")

    with pytest.raises(EmosteerError, match=r"pair=awe_dread: .*give pair.diagnostics=FILE, or set attribution=none"):
        planned(store, *own)

    cell = planned(store, *own, "attribution=none")[0]
    assert cell.pair is not None
    assert (cell.pair.name, cell.pair.target, cell.pair.primary) == ("awe_dread", "awe", "positive")
    shipped = planned(store, "attribution=none")[0]
    assert shipped.vector == cell.vector, "the same texts are the same vector"


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_can_be_planned(store: Store, tmp_path: Path, group: str, option: str) -> None:
    shutil.copy(SHIPPED / "pairs" / "joy_sadness.jsonl", tmp_path / "mine.jsonl")
    shutil.copy(SHIPPED / "prompts" / "conversation.jsonl", tmp_path / "asked.jsonl")
    needed = {
        ("model", "custom"): ["model.path=/models/mine"],
        ("pair", "custom"): ["pair.target=joy", "pair.counterpart=grief", f"pair.path={tmp_path}/mine.jsonl", "attribution=none"],
        ("prompts", "custom"): [f"prompts.path={tmp_path}/asked.jsonl"],
    }
    cells = planned(store, f"{group}={option}", *needed.get((group, option), []))

    assert cells[0].kind == CELL
    assert {cell.kind for cell in cells} >= {CELL, BASELINE}
    if (group, option) == ("prompts", "custom"):
        assert cells[0].prompts_name == "asked"
    if (group, option) == ("model", "custom"):
        assert cells[0].model.config.name == "mine"


def points_of(axis: Override) -> list[str]:
    """An axis's values as overrides; of an interval its ends."""
    if axis.is_interval_sweep():
        return [f"{axis.key_or_group}={end}" for end in (axis.value().start, axis.value().end)]
    if axis.is_sweep_override():
        return [f"{axis.key_or_group}={value}" for value in axis.sweep_string_iterator()]
    return [str(axis.input_line)]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_can_be_planned_at_every_point(store: Store, experiment: str) -> None:
    config = composed(f"experiment={experiment}", hydra=True)
    axes = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in config.hydra.sweeper.params.items()])
    values = [points_of(axis) for axis in axes]

    assert config.hydra.mode.name == "MULTIRUN"
    assert config.name != "default"
    points = list(itertools.product(*values))
    assert 1 <= len(points) <= 10_000
    # Every value of every axis once.
    for i in range(max(map(len, values))):
        point = [axis[min(i, len(axis) - 1)] for axis in values]
        assert planned(store, f"experiment={experiment}", *point)[0].kind == CELL
    for axis, options in zip(axes, values, strict=True):
        assert len(set(options)) == len(options), axis.key_or_group


def test_each_experiments_file_says_how_to_run_it() -> None:
    for experiment in EXPERIMENTS:
        assert f"emosteer -m experiment={experiment}" in (CONF / "experiment" / f"{experiment}.yaml").read_text()


def test_no_configuration_that_ends_in_an_id_refers_to_hydra() -> None:
    files = [path for path in CONF.rglob("*.yaml") if "hydra" not in path.relative_to(CONF).parts]

    assert files
    assert not [path for path in files if "${hydra:" in path.read_text()]


def test_a_cell_brings_its_baseline_its_controls_and_its_attribution(store: Store) -> None:
    cells = planned(store, "controls.random=3")

    assert [cell.kind for cell in cells] == [CELL, BASELINE, CONTROL, CONTROL, CONTROL, ATTRIBUTION]
    assert cells[1].id == cells[0].baseline_id
    assert {cell.control_key for cell in cells[2:5]} == {cells[0].control_key}
    assert cells[5].attribution_id == cells[0].attribution_id
    assert [cell.kind for cell in planned(store, "controls=none", "attribution=none")] == [CELL, BASELINE]
    assert [cell.kind for cell in planned(store, "coefficient=0", "attribution=none")] == [CELL, BASELINE]


def test_shuffled_controls_have_the_texts_with_half_of_the_labels_exchanged(store: Store) -> None:
    cell, *company = planned(store, "controls.shuffled=2", "controls.random=0", "attribution=none")
    first, second = (one for one in company if one.kind == CONTROL)
    assert cell.vector is not None
    whole = store.contrastive_pairs(cell.vector.texts)
    drawn = []
    for control in (first, second):
        assert control.vector is not None
        own = store.contrastive_pairs(control.vector.texts)
        exchanged = {
            pair.id
            for pair, other in zip(whole, own, strict=True)
            if (pair.positive, pair.negative) == (other.negative, other.positive)
        }
        assert {pair.id for pair, other in zip(whole, own, strict=True) if pair == other} == {pair.id for pair in whole} - exchanged
        assert len(exchanged) == len(whole) // 2
        assert (control.pair, control.control_key, control.coefficient) == (cell.pair, cell.control_key, cell.coefficient)
        drawn.append(exchanged)
    assert drawn[0] != drawn[1]
    assert len({cell.id, first.id, second.id}) == 3
    assert len({cell.vector_id, first.vector_id, second.vector_id}) == 3
    assert Cell.from_json(first.to_json()) == first
    again = [
        one.id for one in planned(store, "controls.shuffled=2", "layer=4", "layer=10") if one.kind == CONTROL and one.vector.shuffled
    ]  # type: ignore[union-attr]
    assert again == [first.id, second.id]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["coefficient_unit=raw"], "controls.shuffled has vectors of other lengths than the pair's: give coefficient_unit=fraction"),
        (["vector=persona"], "controls.shuffled exchanges the labels of contrastive pairs, at least 2: set it to 0 for this vector"),
    ],
)
def test_where_labels_cannot_be_exchanged(store: Store, overrides: list[str], message: str) -> None:
    with pytest.raises(EmosteerError, match=message):
        planned(store, "controls.shuffled=1", *overrides)


def test_the_negative_control_is_the_cell_with_the_other_sign(store: Store) -> None:
    cell, *company = planned(store, "controls.negative=true", "controls.random=0", "attribution=none")
    (control,) = (one for one in company if one.kind == CONTROL)
    assert control.negative
    assert (control.vector_id, control.pair, control.control_key) == (cell.vector_id, cell.pair, cell.control_key)
    assert len({control.id, cell.id, planned(store, "coefficient=-0.2")[0].id}) == 3
    assert control.id.startswith("negative-joy_sadness-L10-c0.2-")
    assert Cell.from_json(control.to_json()) == control
    raw, *company = planned(store, "controls.negative=true", "coefficient_unit=raw", "attribution=none")
    assert {one.control_key for one in company if one.kind == CONTROL} == {raw.control_key}
    for nothing_to_turn in ("coefficient=0", "intervention=ablate"):
        assert not any(one.negative for one in planned(store, "controls.negative=true", nothing_to_turn))


def test_a_coefficient_that_is_looked_for_hangs_on_what_is_asked_for_and_its_controls_share_it(store: Store) -> None:
    every = ("controls.random=2", "controls.shuffled=1", "controls.negative=true", "attribution=none", "coefficient=auto")
    cell, *company = planned(store, *every)
    controls = [one for one in company if one.kind == CONTROL]
    assert len(controls) == 4
    assert cell.id.startswith("joy_sadness-L10-cauto-")
    assert {one.strength_id for one in controls} == {cell.strength_id}
    assert {one.control_key for one in controls} == {cell.control_key}
    assert all(one.owner() == cell for one in controls), "each can look for it alone"
    for one in (cell, *controls):
        assert Cell.from_json(json.loads(json.dumps(one.to_json()))) == one
    others = [
        planned(store, *every, change)[0]
        for change in (
            *("layer=9", "pair=trust_disgust", "vector=pca", "scope=all", "seed=1", "prompts.limit=9"),
            *("auto_coefficient.target=0.2", "auto_coefficient.prompts=4"),
        )
    ]
    assert len({one.strength_id for one in (cell, *others)}) == len({one.id for one in (cell, *others)}) == 1 + len(others)
    other_pair = planned(store, *every, "pair=trust_disgust")
    assert {one.id for one in controls}.isdisjoint(one.id for one in other_pair), "another strength"


def test_a_coefficient_is_split_among_several_blocks_alone(store: Store) -> None:
    split = "across_blocks=split"
    assert planned(store, split)[0].id == planned(store)[0].id
    assert planned(store, "layer=auto", split)[0].id == planned(store, "layer=auto")[0].id
    for several in (("layer=[8,10]",), ("layer=auto", "attribution.blocks=2")):
        each, shared = planned(store, *several), planned(store, *several, split)
        assert {cell.id for cell in each if cell.vector}.isdisjoint(cell.id for cell in shared if cell.vector)
        assert [cell.across_blocks for cell in shared if cell.vector] == ["split"] * len([cell for cell in shared if cell.vector])
        assert Cell.from_json(shared[0].to_json()) == shared[0]


def test_what_is_looked_for_is_no_part_of_cells_whose_coefficient_is_given(store: Store) -> None:
    assert planned(store)[0].id == planned(store, "auto_coefficient.target=0.3")[0].id
    ablated = planned(store, "coefficient=auto", "intervention=ablate")[0]
    assert ablated == planned(store, "coefficient=0.1", "intervention=ablate")[0]


def test_prompting_is_shared_by_a_pairs_cells_and_told_apart_by_its_words(store: Store) -> None:
    asked = [
        next(cell for cell in planned(store, "controls.prompting=true", *more) if cell.kind == PROMPTING)
        for more in (
            [],
            ["layer=3", "coefficient=0.1", "site=mlp"],
            ["pair=trust_disgust"],
            ["seed=1"],
            ["controls.instruction=Be glad."],
        )
    ]
    assert asked[0].id == asked[1].id
    assert len({cell.id for cell in asked}) == 4
    assert asked[0].instruction == "You feel deep joy right now, and it shows in everything you say."
    assert "trust" in asked[2].instruction
    assert asked[4].instruction == "Be glad."
    assert asked[0].baseline_id == planned(store)[0].baseline_id
    assert Cell.from_json(asked[0].to_json()) == asked[0]


def test_a_grand_mean_is_of_the_other_shipped_emotions(store: Store, tmp_path: Path) -> None:
    shipped = sorted((SHIPPED / "pairs").glob("*.jsonl"))
    found = {path.stem: planned(store, f"pair={path.stem}", "vector=grand_mean", "attribution=none")[0].vector for path in shipped}
    digests = {path.stem: digest(load_contrastive_pairs(path)) for path in shipped}
    for name, vector in found.items():
        assert vector is not None
        assert vector.texts == digests[name]
        assert vector.others == tuple(key for other, key in digests.items() if other != name)
    (tmp_path / "mine.jsonl").write_text('{"id": "a", "positive": "So vast!", "negative": "So small."}\n')
    own = planned(
        store, "vector=grand_mean", "pair=custom", "pair.name=awe", "pair.target=awe", "pair.counterpart=dread",
        "pair.primary=positive", f"pair.path={tmp_path / 'mine.jsonl'}", "attribution=none",
    )[0].vector  # fmt: skip
    assert own is not None
    assert own.others == tuple(digests.values())


def test_a_lexicon_needs_no_pairs(store: Store) -> None:
    own = ["pair=custom", "pair.target=anger", "pair.counterpart=trust", "pair.path=null", "attribution=none"]
    found = plan(typed(composed(*own, "vector=lexicon")))
    vector = found.cells[0].vector
    assert vector is not None
    assert found.texts[vector.texts] == lexicon_pairs("anger", "trust")
    assert vector.source == "lexicon"
    joy, others = (planned(store, "vector=lexicon", f"vector.method={method}")[0].vector for method in ("pca", "grand_mean"))
    assert joy is not None and others is not None  # noqa: PT018
    assert joy.texts == others.texts == digest(lexicon_pairs("joy", "sadness"))
    expected = [("anger", "fear"), ("anticipation", "surprise"), ("trust", "disgust")]
    assert others.others == tuple(digest(lexicon_pairs(*two)) for two in expected), "love and hate are in no lexicon"


def test_personas_need_a_pairs_names_alone(store: Store) -> None:
    found = plan(
        typed(composed("pair=love_hate", "pair.path=null", "vector=persona", "vector.method=grand_mean", "attribution=none"))
    )
    vector = found.cells[0].vector
    assert vector is not None
    assert found.texts[vector.texts] == persona_prompts("love", "hate")
    assert vector.reading == "assistant_prefix"
    assert len(vector.others) == 4
    with pytest.raises(EmosteerError, match=r"vector.source=persona: os.path.join is given contrastive pairs"):
        planned(store, "vector=persona", "vector.method=os.path.join", "vector.reading=token_mean")


def test_stories_need_a_pairs_names_and_a_seed(store: Store) -> None:
    own = ["pair=love_hate", "pair.path=null", "vector=stories", "attribution=none"]
    found = plan(typed(composed(*own, "vector.method=grand_mean", "seed=3")))
    vector = found.cells[0].vector
    assert vector is not None
    assert found.texts[vector.texts] == story_prompts("love", "hate")
    assert (vector.seed, len(vector.others)) == (3, 4)
    ids = [planned(store, *own, f"seed={seed}")[0].vector_id for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert planned(store, "seed=1")[0].vector_id == planned(store)[0].vector_id, "of pairs, no seed"
    with pytest.raises(EmosteerError, match=r"controls.shuffled exchanges the labels of contrastive pairs"):
        planned(store, *own, "controls.shuffled=1")


def test_a_lexicon_without_the_emotion_is_refused(store: Store) -> None:
    with pytest.raises(EmosteerError, match=r"pair.target=love: vector.source=lexicon needs words of it"):
        planned(store, "pair=love_hate", "vector=lexicon")


def test_what_a_vector_is_put_together_of(store: Store, tmp_path: Path) -> None:
    shipped = {path.stem: digest(load_contrastive_pairs(path)) for path in (SHIPPED / "pairs").glob("*.jsonl")}
    plain = planned(store)[0]
    cell = planned(store, "vector.plus=[trust_disgust,love_hate]", "vector.without=anger_fear")[0]
    assert cell.vector is not None
    assert cell.vector.plus == tuple(Part(shipped[name], name) for name in ("love_hate", "trust_disgust"))
    assert cell.vector.without == (Part(shipped["anger_fear"], "anger_fear"),)
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell
    assert store.contrastive_pairs(shipped["anger_fear"]), "a worker elsewhere reads them from the store"
    weighed = planned(store, "vector.plus={trust_disgust:0.5}")[0].vector
    assert weighed is not None
    assert weighed.plus == (Part(shipped["trust_disgust"], "trust_disgust", 0.5),)
    (tmp_path / "mine.jsonl").write_text((SHIPPED / "pairs" / "trust_disgust.jsonl").read_text())
    same = {
        planned(store, *more)[0].id
        for more in (
            ["vector.plus=trust_disgust"],
            ["vector.plus=[trust_disgust]"],
            ["vector.plus={trust_disgust:1}"],
            [f"vector.plus={tmp_path / 'mine.jsonl'}"],
        )
    }
    assert len(same) == 1, "a name is nothing that changes replies"
    assert planned(store, "vector.plus=[]", "vector.without=null")[0].id == plain.id
    others = ["vector.plus={trust_disgust:0.5}", "vector.without=trust_disgust", "vector.plus=love_hate", "vector.plus=null"]
    assert len({*same, *(planned(store, one)[0].id for one in others)}) == 5
    assert (
        planned(store, "vector.plus=[love_hate,trust_disgust]")[0].id == planned(store, "vector.plus=[trust_disgust,love_hate]")[0].id
    )


def test_parts_come_from_the_vectors_own_source(store: Store) -> None:
    found = plan(typed(composed("vector=lexicon", "vector.plus=trust_disgust", "vector.without=[anger_fear]")))
    vector = found.cells[0].vector
    assert vector is not None
    assert found.texts[vector.plus[0].texts] == lexicon_pairs("trust", "disgust")
    assert found.texts[vector.without[0].texts] == lexicon_pairs("anger", "fear")
    personas = plan(typed(composed("vector=persona", "vector.without=awe_contempt")))
    assert personas.cells[0].vector is not None
    assert personas.texts[personas.cells[0].vector.without[0].texts] == persona_prompts("awe", "contempt")


def test_controls_of_a_composed_vector(store: Store) -> None:
    """Labels are exchanged in what is added too, and what is taken out stays; random directions are those of all pairs."""
    given = ["vector.plus=trust_disgust", "vector.without=love_hate", "controls.shuffled=1"]
    cell, _, control, shuffled, *_ = planned(store, *given)
    assert cell.vector is not None and shuffled.vector is not None  # noqa: PT018
    assert control.id == planned(store)[2].id
    texts = store.contrastive_pairs(shuffled.vector.plus[0].texts)
    assert texts == labels_exchanged(store.contrastive_pairs(cell.vector.plus[0].texts), 0, 0)
    assert shuffled.vector.plus[0].name == "trust_disgust"
    assert shuffled.vector.without == cell.vector.without
    raw = planned(store, *given[:2], "coefficient_unit=raw")
    assert raw[2].like().vector_id == raw[0].vector_id


def test_one_pair_has_no_scatter(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"id": "a", "positive": "So vast!", "negative": "So small."}\n')
    with pytest.raises(EmosteerError, match=r"vector\.method=lda needs the scatter of at least 2 pairs: give more in pair.path"):
        planned(store, "vector=lda", f"pair.path={tmp_path / 'mine.jsonl'}", "attribution=none")


def test_components_are_of_one_method_alone(store: Store) -> None:
    assert planned(store, "vector.components=3")[0].id == planned(store)[0].id
    few, more = (planned(store, "vector=neutral_projected", f"vector.components={n}")[0].id for n in (3, 5))
    assert few != more == planned(store, "vector=neutral_projected")[0].id
    with pytest.raises(EmosteerError, match=r"vector.components=48: of 48 neutral texts give at most 47"):
        planned(store, "vector=neutral_projected", "vector.components=48")


def test_a_random_direction_as_a_cell_is_none_of_its_controls(store: Store) -> None:
    cell, _, *controls = planned(store, "vector=random", "controls.random=3", "attribution=none")

    assert len({one.vector_id for one in (cell, *controls)}) == 4
    assert {control.control_key for control in controls} == {cell.control_key}


def test_an_index_a_list_and_a_fraction_name_the_same_block(store: Store) -> None:
    ids = {
        layer: planned(store, f"layer={layer}")[0].id for layer in ("29", "1.0", "[29]", "0", "0.0", "15", "0.52", "[8,10]", "8+10")
    }

    assert ids["29"] == ids["1.0"] == ids["[29]"]
    assert ids["0"] == ids["0.0"]
    assert ids["15"] == ids["0.52"]
    assert ids["[8,10]"] == ids["8+10"] == planned(store, "layer=[10,8]")[0].id
    assert len(set(ids.values())) == 4
    assert planned(store, "layer=auto")[0].layers is None


@pytest.mark.parametrize(
    "override",
    ["name=other", "tracking=none", "model.device=cpu", "engine.batch_rows=7", "engine.threads=1", "worker.cells_per_claim=2",
     "worker.lease_seconds=2", "statistics.n_resamples=9", "mode=force", "store=/elsewhere", "controls=none",
     "~scorers.perplexity", "model.name=mine", "hydra/launcher=basic", "objective=beyond_random"],
)  # fmt: skip
def test_what_is_beside_the_replies_keeps_the_id(store: Store, override: str) -> None:
    assert planned(store, override)[0].id == planned(store)[0].id


@pytest.mark.parametrize(
    "override",
    ["seed=1", "layer=9", "coefficient=0.3", "coefficient=-0.2", "coefficient_unit=raw", "scope=all", "site=mlp",
     "intervention=set", "intervention=ablate", "decay=0.9",
     "model=qwen3", "model.dtype=bfloat16", "pair=love_hate", "prompts=confirmation", "prompts.limit=5", "vector=random",
     "vector.reading=last_token", "vector=pca", "vector=grand_mean", "vector=neutral_projected", "vector=lexicon",
     "vector=persona", "vector=stories", "vector.plus=trust_disgust", "vector.without=trust_disgust",
     "generation=sampled", "generation.max_new_tokens=61", "generation.min_new_tokens=1"],
)  # fmt: skip
def test_what_is_asked_of_the_replies_changes_the_id(store: Store, override: str) -> None:
    assert planned(store, override)[0].id != planned(store)[0].id


def test_an_ablation_has_no_strength(store: Store) -> None:
    """A grid over coefficients and units has it once; its controls are ablations too."""
    grid = [
        planned(store, "intervention=ablate", f"coefficient={c}", f"coefficient_unit={unit}")
        for c in (0, 0.1)
        for unit in ("fraction", "raw")
    ]
    assert len({cells[0].id for cells in grid}) == 1
    cell, _, control, *_ = grid[0]
    assert (cell.coefficient, control.kind, control.intervention) == (0.0, CONTROL, "ablate")
    assert [one.kind for one in planned(store, "intervention=set", "coefficient=0")].count(CONTROL) == 1
    assert [one.kind for one in planned(store, "coefficient=0")].count(CONTROL) == 0


def test_texts_count_by_content_and_not_by_place(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    shutil.copy(SHIPPED / "prompts" / "conversation.jsonl", copy)
    shipped, copied = planned(store)[0], planned(store, f"prompts.path={copy}")[0]
    assert copied.id == shipped.id

    lines = copy.read_text().splitlines()
    record = json.loads(lines[0])
    copy.write_text("\n".join([json.dumps({**record, "text": record["text"] + " Please."}), *lines[1:]]))
    edited = planned(store, f"prompts.path={copy}")[0]

    assert edited.id != shipped.id
    assert store.prompts(edited.prompts)[0].text == record["text"] + " Please."
    assert store.prompts(shipped.prompts)[0].text == record["text"], "what a cell was run on stays in the store"


def test_a_shipped_sets_name_does_not_stand_for_another_file(store: Store, tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "prompts" / "conversation.jsonl", tmp_path / "asked.jsonl")
    own = f"prompts.path={tmp_path}/asked.jsonl"

    assert planned(store)[0].prompts_name == "conversation"
    assert planned(store, own)[0].prompts_name == "asked"
    assert planned(store, own, "prompts.name=mine")[0].prompts_name == "mine"


def test_the_limit_takes_the_first_prompts(store: Store) -> None:
    whole, few = planned(store)[0], planned(store, "prompts.limit=4")[0]

    assert store.prompts(few.prompts) == store.prompts(whole.prompts)[:4]


def test_a_bad_file_of_ones_own_is_told_with_its_line(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "a", "text": "Hello?"}\n{"id": "b"}\n')

    with pytest.raises(EmosteerError, match=r"mine\.jsonl:2: "):
        planned(store, f"prompts.path={path}")
