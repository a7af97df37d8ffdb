"""A cell's id stands for what changes its replies, and for nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from emosteer.config import AttributionConfig, GenerationConfig, ModelConfig
from emosteer.records.cell import ATTRIBUTION, BASELINE, CELL, CONTROL, AttributionSpec, Cell, ModelSpec, PairSpec, Part, VectorSpec
from emosteer.records.publish import publish_file

CONFIG = ModelConfig(name="tiny", path="/models/tiny")
MODEL = ModelSpec(CONFIG, "sha256:0123", n_blocks=4)
PAIR = PairSpec("joy_sadness", "joy", "sadness", "joy", texts="pairs-1", diagnostics="diagnostics-1")
OTHER_PAIR = PairSpec("trust_disgust", "trust", "disgust", "trust", texts="pairs-2", diagnostics="diagnostics-2")
BASE = Cell(
    kind=CELL,
    model=MODEL,
    prompts="prompts-1",
    prompts_name="conversation",
    generation=GenerationConfig(max_new_tokens=20),
    pair=PAIR,
    vector=VectorSpec("mean_difference", texts="pairs-1"),
    neutral="neutral-1",
    layers=(2,),
    coefficient=0.2,
    attribution=AttributionSpec("diagnostics-1", AttributionConfig()),
)
AUTO = dataclasses.replace(BASE, layers=None)

Change = Callable[[Cell], Cell]


def changed(**values: Any) -> Change:
    return lambda cell: dataclasses.replace(cell, **values)


def generating(**values: Any) -> Change:
    return lambda cell: dataclasses.replace(cell, generation=dataclasses.replace(cell.generation, **values))


def with_model(fingerprint: str = MODEL.fingerprint, n_blocks: int = 4, **values: Any) -> Change:
    return lambda cell: dataclasses.replace(
        cell, model=ModelSpec(dataclasses.replace(cell.model.config, **values), fingerprint, n_blocks)
    )


def with_pair(pair: PairSpec) -> Change:
    return lambda cell: dataclasses.replace(
        cell,
        pair=pair,
        vector=VectorSpec("mean_difference", pair.texts),
        attribution=AttributionSpec(pair.diagnostics, AttributionConfig()),
    )


def attributing(diagnostics: str = "diagnostics-1", **values: Any) -> Change:
    return changed(attribution=AttributionSpec(diagnostics, AttributionConfig(**values)))


def with_parts(**parts: tuple[Part, ...]) -> Change:
    return changed(vector=VectorSpec("mean_difference", "pairs-1", **parts))


MATTERS: dict[str, Change] = {
    "weights": with_model(fingerprint="sha256:4567"),
    "dtype": with_model(dtype="bfloat16"),
    "quantization": with_model(quantization="nf4"),
    "blocks": with_model(blocks="model.layers"),
    "attention": with_model(attention="self_attn"),
    "mlp": with_model(mlp="mlp"),
    "trust_remote_code": with_model(trust_remote_code=True),
    "seed": changed(seed=1),
    "prompts": changed(prompts="prompts-2"),
    "max_new_tokens": generating(max_new_tokens=21),
    "min_new_tokens": generating(min_new_tokens=1),
    "do_sample": generating(do_sample=True),
    "temperature": generating(temperature=0.5),
    "top_p": generating(top_p=0.9),
    "n_samples": generating(n_samples=2),
    "pair": with_pair(OTHER_PAIR),
    "contrastive pairs": changed(vector=VectorSpec("mean_difference", "pairs-3")),
    "vector method": changed(vector=VectorSpec("random")),
    "reading": changed(vector=VectorSpec("mean_difference", "pairs-1", reading="last_token")),
    "source": changed(vector=VectorSpec("mean_difference", "pairs-1", source="lexicon")),
    "components": changed(vector=VectorSpec("mean_difference", "pairs-1", components=3)),
    "other emotions": changed(vector=VectorSpec("mean_difference", "pairs-1", others=("pairs-2",))),
    "added": with_parts(plus=(Part("pairs-2", "trust_disgust"),)),
    "added with a weight": with_parts(plus=(Part("pairs-2", "trust_disgust", 0.5),)),
    "taken out": with_parts(without=(Part("pairs-2", "trust_disgust"),)),
    "random direction": changed(vector=VectorSpec("random", index=1)),
    "random seed": changed(vector=VectorSpec("random", seed=1)),
    "neutral texts": changed(neutral="neutral-2"),
    "layer": changed(layers=(1,)),
    "two layers": changed(layers=(1, 2)),
    "auto": changed(layers=None),
    "coefficient": changed(coefficient=0.3),
    "sign": changed(coefficient=-0.2),
    "unit": changed(coefficient_unit="raw"),
    "scope": changed(scope="all"),
    "site": changed(site="mlp"),
    "set": changed(intervention="set"),
    "ablate": changed(intervention="ablate"),
    "decay": changed(decay=0.9),
}

# Not changed by these: where the model lies, on what it runs, what things are called, what is measured.
MATTERS_NOT: dict[str, Change] = {
    "model's name": with_model(name="another"),
    "model's path": with_model(path="/elsewhere"),
    "device": with_model(device="cuda:1"),
    "revision of the same commit": with_model(revision="main"),
    "attention's implementation": with_model(attn_implementation="eager"),
    "prompts' name": changed(prompts_name="mine"),
    "declared metric": changed(pair=dataclasses.replace(PAIR, primary="positive", target="delight", counterpart="grief")),
    "attribution of a fixed layer": attributing("diagnostics-9", steps=3, blocks=2),
    "no attribution of a fixed layer": changed(attribution=None),
}


def hash_of(cell: Cell) -> str:
    return cell.id.rsplit("-", 1)[1]


def test_every_axis_that_changes_replies_gives_another_hash() -> None:
    hashes = {"the cell itself": hash_of(BASE), **{name: hash_of(change(BASE)) for name, change in MATTERS.items()}}

    assert len(set(hashes.values())) == len(hashes), hashes


def test_every_field_of_generation_is_an_axis() -> None:
    tested = set(MATTERS) & {f.name for f in dataclasses.fields(GenerationConfig)}

    assert tested == {f.name for f in dataclasses.fields(GenerationConfig)}


@pytest.mark.parametrize("name", MATTERS_NOT)
def test_what_cannot_change_replies_keeps_the_id(name: str) -> None:
    assert MATTERS_NOT[name](BASE).id == BASE.id
    assert MATTERS_NOT[name](BASE).baseline_id == BASE.baseline_id


@pytest.mark.parametrize(
    "change", [attributing("diagnostics-2"), attributing(steps=9), attributing(blocks=2), with_model("sha256:45")]
)
def test_where_attribution_chooses_the_layer_it_enters_the_id(change: Change) -> None:
    assert hash_of(change(AUTO)) != hash_of(AUTO)


def test_the_number_of_chosen_blocks_does_not_repeat_the_attribution() -> None:
    assert attributing(blocks=2)(AUTO).attribution_id == AUTO.attribution_id
    assert attributing(steps=2)(AUTO).attribution_id != AUTO.attribution_id
    assert attributing(direction="noising")(AUTO).attribution_id != AUTO.attribution_id


@pytest.mark.parametrize(
    ("metric", "part", "others"),
    [
        ("nrc_words", {"counterpart": "fear"}, {"texts": "pairs-9", "primary": "trust"}),
        ("nrc_score", {"primary": "trust"}, {"texts": "pairs-9", "target": "trust"}),
        ("projection", {"texts": "pairs-9"}, {"target": "trust", "primary": "trust"}),
        ("kl", {}, {"target": "trust", "primary": "trust", "texts": "pairs-9"}),
    ],
)
def test_what_a_metric_is_made_of_enters_the_attributions_id(metric: str, part: dict[str, str], others: dict[str, str]) -> None:
    own = attributing(metric=metric)(AUTO)
    ids = {pair: dataclasses.replace(own, pair=pair).attribution_id for pair in (PAIR, dataclasses.replace(PAIR, **others))}
    assert set(ids.values()) == {own.attribution_id}
    assert own.attribution_id != AUTO.attribution_id
    other = dataclasses.replace(own, pair=dataclasses.replace(PAIR, **part))
    assert (other.attribution_id != own.attribution_id) == bool(part)
    assert (other.id != own.id) == bool(part)


def test_how_an_attribution_is_checked_changes_no_id() -> None:
    assert attributing(check=0)(AUTO).attribution_id == AUTO.attribution_id
    assert attributing(check=9)(AUTO).id == AUTO.id


def test_a_vector_serves_every_layer_coefficient_scope_prompt_and_seed() -> None:
    for name in ("layer", "coefficient", "scope", "unit", "prompts", "seed", "max_new_tokens"):
        assert MATTERS[name](BASE).vector_id == BASE.vector_id, name
    for name in ("weights", "dtype", "site", "neutral texts", "contrastive pairs", "vector method", "reading"):
        assert MATTERS[name](BASE).vector_id != BASE.vector_id, name


def test_ids_read_well_and_are_file_names() -> None:
    assert BASE.id.startswith("joy_sadness-L2-c0.2-")
    assert dataclasses.replace(BASE, layers=(1, 3), coefficient=-0.05).id.startswith("joy_sadness-L1+3-c-0.05-")
    assert AUTO.id.startswith("joy_sadness-Lauto-")
    assert BASE.control(1).id.startswith("random1-L2-c0.2-")
    assert BASE.baseline().id.startswith("baseline-")
    assert "/" not in BASE.id


def test_a_number_is_the_same_coefficient_however_it_was_typed() -> None:
    assert dataclasses.replace(BASE, coefficient=1).id == dataclasses.replace(BASE, coefficient=1.0).id


def test_what_a_part_is_called_changes_nothing_and_is_kept() -> None:
    one, other = (with_parts(plus=(Part("pairs-2", name),), without=(Part("pairs-3", name),))(BASE) for name in ("trust", "mine"))
    assert one.id == other.id
    assert one.vector_id == other.vector_id
    assert Cell.from_json(json.loads(json.dumps(other.to_json()))) == other


@dataclass
class LaterGeneration(GenerationConfig):
    """A generation group of a later version."""

    repetition_penalty: float = 1.0
    bad_words: list[str] = field(default_factory=list)


@dataclass
class LaterAttribution(AttributionConfig):
    baseline: str = "corrupted"


@dataclass(frozen=True)
class LaterVector(VectorSpec):
    orthogonal_to: str = ""


def test_a_knob_added_later_keeps_old_ids_at_its_default() -> None:
    later = dataclasses.replace(
        BASE,
        generation=LaterGeneration(**vars(BASE.generation)),
        vector=LaterVector("mean_difference", "pairs-1"),
        layers=None,
        attribution=AttributionSpec("diagnostics-1", LaterAttribution()),
    )

    assert later.id == AUTO.id
    assert later.baseline_id == AUTO.baseline_id
    assert later.vector_id == AUTO.vector_id
    assert later.attribution_id == AUTO.attribution_id


def test_a_knob_added_later_changes_the_id_once_it_is_turned() -> None:
    for knob in ({"repetition_penalty": 1.2}, {"bad_words": ["happy"]}):
        assert dataclasses.replace(BASE, generation=LaterGeneration(**vars(BASE.generation), **knob)).id != BASE.id


def variants() -> list[Cell]:
    cells = [BASE, AUTO, *(change(BASE) for change in MATTERS.values()), attributing(steps=2, blocks=3)(AUTO)]
    raw = dataclasses.replace(BASE, coefficient_unit="raw")
    attribution = Cell(ATTRIBUTION, MODEL, pair=PAIR, attribution=BASE.attribution)
    return [*cells, BASE.baseline(), BASE.control(0), AUTO.control(1), raw.control(0), raw.control(0).like(), attribution]


@pytest.mark.parametrize("number", range(len(variants())))
def test_json_reads_back_to_an_equal_cell(number: int) -> None:
    cell = variants()[number]
    back = Cell.from_json(json.loads(json.dumps(cell.to_json())))

    assert back == cell
    assert back.id == cell.id
    assert hash(back.layers) == hash(cell.layers)


def test_json_of_a_later_version_is_read() -> None:
    data = json.loads(json.dumps(BASE.to_json()))
    data["new"] = data["generation"]["new"] = data["model"]["new"] = data["model"]["config"]["new"] = 1
    data["pair"]["new"] = data["vector"]["new"] = data["attribution"]["config"]["new"] = 1

    assert Cell.from_json(data) == BASE


def test_all_cells_share_the_baseline_of_their_model_prompts_generation_and_seed() -> None:
    shared = {name: change(BASE).baseline_id == BASE.baseline_id for name, change in MATTERS.items()}
    own = {"weights", "dtype", "quantization", "blocks", "attention", "mlp", "trust_remote_code", "seed", "prompts"}
    own |= {f.name for f in dataclasses.fields(GenerationConfig)}

    assert {name for name, is_shared in shared.items() if not is_shared} == own
    assert BASE.control(0).baseline_id == BASE.baseline_id
    assert BASE.baseline().kind == BASELINE
    assert BASE.baseline().baseline_id == BASE.baseline_id


def test_pairs_share_their_controls() -> None:
    other = with_pair(OTHER_PAIR)(BASE)

    assert other.id != BASE.id
    assert [other.control(i).id for i in range(3)] == [BASE.control(i).id for i in range(3)]
    assert len({BASE.control(i).id for i in range(3)}) == 3
    assert BASE.control(0).pair is None
    assert BASE.control(0).kind == CONTROL


@pytest.mark.parametrize(
    "name", ["weights", "seed", "prompts", "layer", "two layers", "coefficient", "sign", "unit", "scope", "site", "set", "decay"]
)
def test_controls_belong_to_one_point_of_the_grid(name: str) -> None:
    other = MATTERS[name](BASE)

    assert other.control(0).id != BASE.control(0).id
    assert other.control_key != BASE.control_key


@pytest.mark.parametrize("unit", ["fraction", "raw"])
@pytest.mark.parametrize("layers", [(2,), (1, 3), None])
def test_a_cell_finds_its_controls_by_their_key(unit: str, layers: tuple[int, ...] | None) -> None:
    cell = dataclasses.replace(BASE, coefficient_unit=unit, layers=layers)
    stored = [Cell.from_json(cell.control(i).to_json()) for i in range(2)]

    assert [control.control_key for control in stored] == [cell.control_key] * 2


def test_raw_coefficients_need_controls_as_long_as_the_vector() -> None:
    raw = dataclasses.replace(BASE, coefficient_unit="raw")
    other = with_pair(OTHER_PAIR)(raw)
    control = raw.control(0)

    assert control.id != other.control(0).id
    assert raw.control_key != other.control_key
    assert control.vector is not None
    assert control.vector.like == raw.vector_id
    assert control.like().vector_id == raw.vector_id


def test_where_attribution_chooses_controls_belong_to_the_pair() -> None:
    other = with_pair(OTHER_PAIR)(AUTO)

    assert AUTO.control(0).id != other.control(0).id
    assert AUTO.control_key != other.control_key
    assert AUTO.control(0).attribution_id == AUTO.attribution_id


def test_auto_is_a_request_of_its_own() -> None:
    """Which block it came to stands in the results; the id says only what was asked."""
    assert AUTO.layers_text == "auto"
    assert all(dataclasses.replace(BASE, layers=(layer,)).id != AUTO.id for layer in range(4))


def test_ids_of_the_first_release_are_kept() -> None:
    """Ids are how people find their results again, so that they change only on purpose.

    When you raise ALGORITHM because replies change, all ids change with it: take the new ones from this test's failure, and
    say in CHANGELOG.md that stores begin anew. When this test fails and you did not mean to change any reply, mend the code.
    """
    attribution = Cell(ATTRIBUTION, MODEL, pair=PAIR, attribution=BASE.attribution)
    raw = dataclasses.replace(BASE, coefficient_unit="raw")

    assert {
        "cell": BASE.id,
        "auto": AUTO.id,
        "two blocks": dataclasses.replace(BASE, layers=(1, 3)).id,
        "sampled": generating(do_sample=True, temperature=0.8, n_samples=2)(BASE).id,
        "control": BASE.control(0).id,
        "raw control": raw.control(0).id,
        "baseline": BASE.baseline_id,
        "attribution": attribution.id,
        "attribution's directory": BASE.attribution_id,
        "vector": BASE.vector_id,
    } == GOLDEN


GOLDEN = {
    "cell": "joy_sadness-L2-c0.2-ac82e2089c6f",
    "auto": "joy_sadness-Lauto-c0.2-06610157bc07",
    "two blocks": "joy_sadness-L1+3-c0.2-94d0494030dd",
    "sampled": "joy_sadness-L2-c0.2-40983cd3592d",
    "control": "random0-L2-c0.2-cfcce5945388",
    "raw control": "random0-L2-c0.2-e5b6847f627a",
    "baseline": "baseline-e80375b9fc83",
    "attribution": "attribution-joy_sadness-50efbcf6ccc4",
    "attribution's directory": "joy_sadness-50efbcf6ccc4",
    "vector": "joy_sadness-mean_difference-f58a15a2dd1f",
}


@pytest.mark.parametrize("name", ["a/b", "../../up", "a\nb", ".hidden", "é" * 300, "x" * 300, "\udcff", "a b'c\"$d{e}=f"])
def test_whatever_a_pair_is_called_its_files_have_possible_names(tmp_path: Path, name: str) -> None:
    pair = dataclasses.replace(PAIR, name=name)
    attribution = AttributionSpec("diagnostics-1", AttributionConfig())
    cell = dataclasses.replace(BASE, pair=pair, layers=tuple(range(128)), attribution=attribution)
    attributed = Cell(ATTRIBUTION, MODEL, pair=pair, attribution=attribution)
    files = [cell.id, cell.control(0).id, attributed.id, attributed.attribution_id, f"{cell.vector_id}.safetensors"]
    for file in files:
        assert Path(file).name == file
        assert not file.startswith(".")
        assert "\n" not in file
        publish_file(tmp_path / file, "x")
    assert len(set(files)) == len(list(tmp_path.iterdir()))
    assert dataclasses.replace(cell, coefficient=0.3).id != cell.id
