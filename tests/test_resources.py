"""Vectors, norms and attributions on disk: read back to what was computed, and made again where they are damaged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import fill, small_disk
from made_up_sweep import made_up_cell
from safetensors.torch import load_file, save_file
from tiny_models import BLOCKS, WIDTH, tiny_model

from emosteer.config import AttributionConfig
from emosteer.datasets import ContrastivePair, DiagnosticPair, NeutralText
from emosteer.errors import EmosteerError, Unwritable
from emosteer.records.cell import AttributionSpec, Cell, ModelSpec, Part, VectorSpec
from emosteer.records.claims import Claims
from emosteer.records.store import Store
from emosteer.resources import FACTS, Resources
from emosteer.sources import persona_prompts
from emosteer.vectors import METHODS, compose, emotion_vector, mean_difference, quality, read_states, residual_norms

PAIRS = [ContrastivePair("a", "We are so happy that you came!", "I am sad, because the rain took the garden.")]
NEUTRAL = [NeutralText("a", "A train leaves the station at nine and arrives before noon.")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def cell(store: Store) -> Cell:
    return of_the_tiny_model(store)


def of_the_tiny_model(store: Store) -> Cell:
    made_up = made_up_cell(store)
    texts = store.keep_texts(PAIRS)
    return dataclasses.replace(
        made_up,
        model=ModelSpec(made_up.model.config, "sha256:tiny", BLOCKS),
        vector=VectorSpec("mean_difference", texts),
        neutral=store.keep_texts(NEUTRAL),
    )


def resources(store: Store) -> Resources:
    """As a new process has them: nothing in memory."""
    return Resources(store, Claims(store.paths.claims, 60.0), tiny_model("llama"))


@contextmanager
def forwards() -> Iterator[list[int]]:
    """Rows of each forward of the tiny model."""
    rows: list[int] = []
    module = tiny_model("llama").model.get_input_embeddings()
    handle = module.register_forward_hook(lambda _m, args, _out: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        handle.remove()


def at_site(cell: Cell, site: str) -> Cell:
    return dataclasses.replace(cell, site=site)


def test_texts_are_read_once_for_all_sites_of_a_sweep(store: Store, cell: Cell) -> None:
    alone = {site: resources(Store(store.paths.root.parent / site)) for site in ("residual", "attention", "mlp")}
    for site, other in alone.items():
        other.store.keep_texts(PAIRS)
        other.store.keep_texts(NEUTRAL)
        alone[site] = other.vector(at_site(cell, site))
    own = Resources(store, Claims(store.paths.claims, 60.0), tiny_model("llama"), ("residual", "mlp", "attention"))
    found = {"residual": own.vector(cell)}
    with forwards() as rows:
        found |= {site: own.vector(at_site(cell, site)) for site in ("attention", "mlp")}
    assert rows == []
    assert len({vector.directions.sum().item() for vector in found.values()}) == 3
    for site, vector in found.items():
        assert vector.site == site
        torch.testing.assert_close(vector.directions, alone[site].directions, rtol=1e-4, atol=1e-5)


MORE_PAIRS = [
    *PAIRS,
    ContrastivePair("b", "What a garden! We will dance all night.", "Nobody called, and the train left."),
    ContrastivePair("c", "How kind a reply!", "Rain."),
    ContrastivePair("d", "All of us are happy.", "The user is sad."),
]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was told for people to act on; an earlier test may have let the log tell more."""
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_vectors_file_says_how_sure_it_is_without_reading_again(store: Store, cell: Cell, caplog: pytest.LogCaptureFixture) -> None:
    sure = dataclasses.replace(cell, vector=VectorSpec("mean_difference", store.keep_texts(MORE_PAIRS)))
    own = resources(store)
    with forwards() as rows:
        vector = own.vector(sure)
    n_rows = sum(rows)
    with forwards() as rows:
        emotion_vector(own.model, MORE_PAIRS, residual_norms(own.model, NEUTRAL))
    assert n_rows == sum(rows), "what tells how sure it is reads nothing"
    facts = store.vector_facts(sure.vector_id)
    found = quality(read_states(own.model, MORE_PAIRS), mean_difference)
    assert found.split_half is not None
    assert facts["n_pairs"] == 4
    assert facts["split_half"] == pytest.approx(found.split_half, abs=1e-4)
    assert facts["auc"] == pytest.approx(found.auc)
    assert facts["pairs_needed"] == found.pairs_needed
    assert facts["norm"] == pytest.approx(vector.directions.norm(dim=1).tolist())
    assert facts["residual_norm"] == pytest.approx(vector.residual_norm.tolist())
    low = [cosine for cosine in found.split_half if cosine is not None and cosine < 0.5]
    assert low, "a model of noise"
    assert f"cosine below 0.5 at {len(low)} of {BLOCKS} blocks (the least is {min(low):.2f})" in caplog.text


def test_personas_come_from_the_store_as_prompts(store: Store, cell: Cell) -> None:
    prompts = persona_prompts("joy", "sadness")[:8]
    key, others = store.keep_texts(prompts), store.keep_texts(persona_prompts("fear", "anger")[:4])
    spec = VectorSpec("grand_mean", key, source="persona", reading="assistant_prefix", others=(others,))
    own = resources(store)
    made = own.vector(dataclasses.replace(cell, vector=spec))
    states = read_states(own.model, prompts, reading="assistant_prefix", others=[persona_prompts("fear", "anger")[:4]])
    torch.testing.assert_close(made.directions, METHODS["grand_mean"](states), rtol=1e-4, atol=1e-5)


def test_of_one_pair_nothing_is_computed_and_that_is_told(store: Store, cell: Cell, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        resources(store).vector(cell)
    facts = store.vector_facts(cell.vector_id)
    assert (facts["n_pairs"], facts["split_half"], facts["auc"], facts["pairs_needed"]) == (1, None, None, None)
    assert f"vector {cell.vector_id} is of 1 pair(s): how sure its direction is cannot be computed" in caplog.text


def test_a_vectors_file_says_how_it_lies_to_the_other_emotions(store: Store, cell: Cell) -> None:
    own = resources(store)
    assert cell.pair is not None
    first = dataclasses.replace(cell, pair=dataclasses.replace(cell.pair, texts=store.keep_texts(PAIRS)))
    texts = store.keep_texts(MORE_PAIRS[1:])
    other = dataclasses.replace(
        first, vector=VectorSpec("mean_difference", texts), pair=dataclasses.replace(cell.pair, name="other", texts=texts)
    )
    beside = [at_site(first, "mlp"), dataclasses.replace(first, vector=VectorSpec("pca", store.keep_texts(PAIRS))), first.control(0)]
    made = [own.vector(one) for one in (first, *beside)]
    expected = torch.cosine_similarity(own.vector(other).directions, made[0].directions)
    assert store.vector_facts(first.vector_id)["cosine_to"] == {}
    assert store.vector_facts(first.control(0).vector_id)["cosine_to"] == {}
    found = store.vector_facts(other.vector_id)["cosine_to"]
    assert list(found) == [first.vector_id], "of the same site, by the same method"
    assert found[first.vector_id] == pytest.approx(expected.tolist(), abs=1e-5)
    store.paths.vector(first.vector_id).write_bytes(b"damaged")
    store.paths.vector(other.vector_id).unlink()
    resources(store).vector(other)
    assert store.vector_facts(other.vector_id)["cosine_to"] == {}


def test_a_composed_vectors_file_is_of_the_whole(store: Store, cell: Cell, caplog: pytest.LogCaptureFixture) -> None:
    own = resources(store)
    trust = [dataclasses.replace(pair, positive=f"{pair.positive} Nine.", negative=pair.positive) for pair in MORE_PAIRS]
    fear = [dataclasses.replace(pair, positive=pair.negative, negative=f"{pair.positive} No.") for pair in MORE_PAIRS[:3]]
    joy_texts, trust_texts, fear_texts = (store.keep_texts(texts) for texts in (MORE_PAIRS, trust, fear))
    plain = dataclasses.replace(cell, vector=VectorSpec("mean_difference", joy_texts))
    spec = VectorSpec("mean_difference", joy_texts, plus=(Part(trust_texts, "trust", 0.5),), without=(Part(fear_texts, "fear"),))
    whole = dataclasses.replace(cell, vector=spec)
    alone = own.vector(plain)
    with forwards() as rows:
        made = own.vector(whole)
    assert sum(rows) == 4 + 3, "of trust and of fear one side is the pair's own texts, which are known"
    states = read_states(own.model, MORE_PAIRS, plus=[(0.5, trust)], without=[fear])
    parts = [mean_difference(part) for part in (states, states.plus[0][1], states.without[0])]
    expected = compose(parts[0], [(0.5, parts[1])], [parts[2]])
    torch.testing.assert_close(made.directions, expected, rtol=1e-4, atol=1e-4)
    facts, found = store.vector_facts(whole.vector_id), quality(states, mean_difference)
    assert facts["norm"] == pytest.approx(expected.norm(dim=1).tolist(), rel=1e-4)
    assert facts["residual_norm"] == store.vector_facts(plain.vector_id)["residual_norm"]
    for key in ("split_half", "auc", "pairs_needed"):
        assert facts[key] == pytest.approx(getattr(found, key), abs=1e-4), key
    assert list(facts["cosine_to_parts"]) == [cell.pair.name if cell.pair else "", "trust", "fear"]
    assert facts["cosine_to_parts"]["fear"] == pytest.approx([0.0] * BLOCKS, abs=1e-5)
    to_own = torch.cosine_similarity(expected, alone.directions).tolist()
    assert facts["cosine_to"] == {plain.vector_id: pytest.approx(to_own, abs=1e-4)}
    assert "cosine_to_parts" not in store.vector_facts(plain.vector_id)
    fear_cell = dataclasses.replace(cell, vector=VectorSpec("mean_difference", fear_texts))
    own.vector(fear_cell)
    assert list(store.vector_facts(fear_cell.vector_id)["cosine_to"]) == [plain.vector_id], "of no composed vector"
    torch.testing.assert_close(resources(store).vector(whole).directions, made.directions)


def test_a_composed_vector_of_which_nothing_is_left_is_refused(store: Store, cell: Cell) -> None:
    key = store.keep_texts(MORE_PAIRS)
    turned = [dataclasses.replace(pair, positive=pair.negative, negative=pair.positive) for pair in MORE_PAIRS]
    spec = VectorSpec("mean_difference", key, plus=(Part(store.keep_texts(turned), "turned"),))
    one = dataclasses.replace(cell, vector=spec)
    with pytest.raises(EmosteerError, match=r"vector.plus and vector.without leave nothing of the vector at blocks \[0, 1, 2, 3\]"):
        resources(store).vector(one)
    assert not store.paths.vector(one.vector_id).exists()


def test_what_is_in_the_store_is_not_read_again(store: Store, cell: Cell) -> None:
    made = resources(store).vector(cell)
    with forwards() as rows:
        again = resources(store).vector(cell)
        norms = resources(store).residual_norm(cell)
    assert rows == []
    assert torch.equal(again.directions, made.directions)
    assert torch.equal(norms, made.residual_norm)


def test_a_site_that_the_model_has_not_spoils_no_other(store: Store, cell: Cell) -> None:
    bloom = Resources(store, Claims(store.paths.claims, 60.0), tiny_model("bloom"), ("mlp", "residual"))
    assert bloom.vector(cell).directions.shape == (BLOCKS, WIDTH)
    with pytest.raises(EmosteerError, match="site=mlp: no part of block 0"):
        bloom.vector(at_site(cell, "mlp"))


def test_it_tells_what_it_makes_and_how_far_that_is(store: Store, cell: Cell) -> None:
    told: list[str] = []
    own = Resources(store, Claims(store.paths.claims, 60.0), tiny_model("llama"), on_stage=told.append)
    own.vector(cell)
    assert cell.pair is not None
    name = cell.pair.name
    assert told == [
        "residual norms",
        "residual norms: 1 of 1 texts",
        f"emotion vector of {name}",
        f"emotion vector of {name}: 2 of 2 texts",
    ]
    told.clear()
    letters = "abcdefgh"
    pairs = [DiagnosticPair(one, f"Say {one} 1", f"Say {one} 2", "I", ("h", "j"), ("s", "t")) for one in letters]
    spec = AttributionSpec(store.keep_texts(pairs), AttributionConfig(steps=1))
    own.attribution(dataclasses.replace(cell, attribution=spec))
    assert told[:2] == [f"attribution patching of {name}", f"attribution patching of {name}: 8 of 8 pairs"]
    n = (2 * BLOCKS + 10) * 8
    assert told[2] == f"exact patching of {name}"
    assert told[-1] == f"exact patching of {name}: {n} of {n} scores"


def attributed(store: Store, cell: Cell, n_checked: int) -> dict[str, Any]:
    """The summary of a new attribution of the tiny model."""
    pairs = [DiagnosticPair(one, f"Say {one} 1", f"Say {one} 2", "I", ("h", "j"), ("s", "t")) for one in "abcdefgh"]
    spec = AttributionSpec(store.keep_texts(pairs), AttributionConfig(check=n_checked))
    cell = dataclasses.replace(cell, attribution=spec)
    resources(store).attribution(cell)
    return store.attribution_summary(cell.attribution_id) or {}


def test_an_attribution_is_checked_and_too_little_agreement_is_told(
    store: Store, cell: Cell, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("emosteer.attribution.check.LEAST_PEARSON", 1.1)
    summary = attributed(store, cell, 2)
    where = [(site, position) for position in ("last", "all") for site in ("attention", "mlp", "head")]
    assert [(one["site"], one["position"]) for one in summary["check"]] == where
    assert all(one["n_pairs"] == 8 and len(one["components"]) == 4 and one["is_low"] for one in summary["check"])
    assert summary["check_seconds"] > 0
    assert cell.pair is not None
    told = [message for message in caplog.messages if "disagrees with exact patching" in message]
    assert len(told) == 6
    assert told[0].startswith(f"attribution of {cell.pair.name} disagrees with exact patching (attention, last: r ")


def test_an_attribution_without_a_check(store: Store, cell: Cell) -> None:
    assert attributed(store, cell, 0)["check"] == []


@pytest.mark.parametrize(("metric", "unit"), [("words", "nats"), ("projection", "residual length"), ("kl", "nats")])
def test_metric_method_and_neurons_of_an_attribution_are_stored(store: Store, cell: Cell, metric: str, unit: str) -> None:
    pairs = [DiagnosticPair(one, f"Say {one} 1", f"Say {one} 2", "I", ("h", "j"), ("s", "t")) for one in "abcdefgh"]
    config = AttributionConfig(metric=metric, method="atp_star", neurons=3, check=1)
    assert cell.pair is not None
    cell = dataclasses.replace(
        cell,
        attribution=AttributionSpec(store.keep_texts(pairs), config),
        pair=dataclasses.replace(cell.pair, texts=store.keep_texts(PAIRS)),
    )
    made = resources(store).attribution(cell)
    read = resources(store).attribution(cell)
    summary = store.attribution_summary(cell.attribution_id) or {}

    assert (summary["method"], summary["unit"]) == ("atp_star", unit)
    assert {one["site"] for one in summary["check"]} == {"attention", "mlp", "head", "query", "key", "neuron"}
    assert read.neurons_last is not None
    assert [row[:2] for row in summary["neurons"]["last"]] == [list(place) for place in read.neurons_last.places]
    assert [row[2] for row in summary["neurons"]["last"]] == pytest.approx(read.neurons_last.scores.mean(0).tolist())
    torch.testing.assert_close(read.last["query"], made.last["query"])
    by_metric = {
        "words": summary["metric_clean"] != 0,
        "projection": float(made.metric_clean[0]) == pytest.approx(projected(pairs[0]), abs=1e-4),
        "kl": abs(summary["metric_clean"]) < 1e-5 and summary["metric_corrupted"] < 0,
    }
    assert by_metric[metric]


def projected(pair: DiagnosticPair) -> float:
    """The last block's output at the last position of a clean prompt, along the mean difference there."""
    model = tiny_model("llama")
    direction = mean_difference(read_states(model, PAIRS))[-1]
    prompt = model.dialogue.prompt([{"role": "user", "content": pair.clean}], pair.reply_prefix)
    seen: list[torch.Tensor] = []
    handle = model.anatomy.blocks[-1].register_forward_hook(lambda _m, _a, output: seen.append(output[0, -1]))
    with torch.no_grad():
        model.model(torch.tensor([prompt]))
    handle.remove()
    return float(seen[0] @ direction / direction.norm())


def rewritten(change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> Callable[[Path], None]:
    """A damage: other tensors or metadata, in a file that reads."""

    def damage(path: Path) -> None:
        tensors = load_file(path)
        metadata = {FACTS: json.dumps(json.loads(path.with_suffix(".json").read_text()))}
        change(tensors, metadata)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)

    return damage


def other_facts(**changes: Any) -> Callable[[Path], None]:
    return rewritten(lambda _, metadata: metadata.update({FACTS: json.dumps(json.loads(metadata[FACTS]) | changes)}))


def without_metadata(path: Path) -> None:
    save_file(load_file(path), path)


def described_by_json_alone(**changes: Any) -> Callable[[Path], None]:
    """As older versions left it, but for the changes."""

    def damage(path: Path) -> None:
        without_metadata(path)
        facts = path.with_suffix(".json")
        facts.write_text(json.dumps(json.loads(facts.read_text()) | changes))

    return damage


def all_gone(path: Path) -> None:
    without_metadata(path)
    path.with_suffix(".json").unlink()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "header truncated": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "tensors shorter than the header says": lambda path: path.write_bytes(path.read_bytes()[:-128]),
    "no safetensors": lambda path: path.write_text("block.0"),
    "a NaN": rewritten(lambda tensors, _: tensors["block.1"].__setitem__(3, torch.nan)),
    "an infinity": rewritten(lambda tensors, _: tensors["block.1"].__setitem__(3, torch.inf)),
    "no length": rewritten(lambda tensors, _: tensors["block.1"].zero_()),
    "another width": rewritten(lambda tensors, _: tensors.update({k: v[:-1] for k, v in tensors.items() if k.startswith("block")})),
    "one block of another width": rewritten(lambda tensors, _: tensors.update({"block.1": tensors["block.1"][:-1]})),
    "in two dimensions": rewritten(
        lambda tensors, _: tensors.update({k: v[None] for k, v in tensors.items() if k != "residual_norm"})
    ),
    "half precision": rewritten(lambda tensors, _: tensors.update({k: v.half() for k, v in tensors.items()})),
    "a block missing": rewritten(lambda tensors, _: tensors.pop("block.2")),
    "no norms": rewritten(lambda tensors, _: tensors.pop("residual_norm")),
    "fewer norms": rewritten(lambda tensors, _: tensors.update(residual_norm=tensors["residual_norm"][:-1])),
    "a NaN for a norm": rewritten(lambda tensors, _: tensors["residual_norm"].__setitem__(0, torch.nan)),
    "a norm of zero": rewritten(lambda tensors, _: tensors["residual_norm"].__setitem__(0, 0.0)),
    "of another recipe": other_facts(id="joy_sadness-mean_difference-000000000000"),
    "of another model": other_facts(model={"fingerprint": "sha256:other", "dtype": "float32"}),
    "facts that are none": rewritten(lambda _, metadata: metadata.update({FACTS: "[1"})),
    "of another recipe, says the json": described_by_json_alone(id="another"),
    "of another model, says the json": described_by_json_alone(model={"fingerprint": "sha256:other", "dtype": "float32"}),
    "of nobody": all_gone,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_vector_is_put_aside_and_made_again(
    store: Store, cell: Cell, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = resources(store).vector(cell)
    path = store.paths.vector(cell.vector_id)
    DAMAGES[damage](path)
    damaged = path.read_bytes()

    again = resources(store).vector(cell)

    assert torch.equal(again.directions, made.directions)
    assert torch.equal(again.residual_norm, made.residual_norm)
    assert len(warnings_of(caplog)) == 1, caplog.messages
    assert str(path) in caplog.text
    aside = list(path.parent.glob(f".damaged-{path.name}-*"))
    assert [other.read_bytes() for other in aside] == [damaged]
    resources(store).vector(cell)
    assert len(warnings_of(caplog)) == 1, "what was made again is whole"


def test_the_file_alone_tells_whose_vector_it_is(store: Store, cell: Cell) -> None:
    from safetensors import safe_open

    made = resources(store).vector(cell)
    path = store.paths.vector(cell.vector_id)
    facts = json.loads(path.with_suffix(".json").read_text())
    with safe_open(path, "pt") as file:
        inside = json.loads(file.metadata()[FACTS])
    assert {"id", "model", "site", "recipe", "pair", "neutral_texts"} <= set(inside)
    assert inside == {key: facts[key] for key in inside}
    assert facts["id"] == cell.vector_id
    assert facts["model"] == cell.model.identity()
    assert facts["recipe"]["texts"] == cell.vector.texts  # type: ignore[union-attr]

    path.with_suffix(".json").unlink()
    assert torch.equal(resources(store).vector(cell).directions, made.directions)
    assert not path.with_suffix(".json").exists(), "it was read, and not made again"


def test_a_vector_file_of_before_the_metadata_reads(store: Store, cell: Cell, caplog: pytest.LogCaptureFixture) -> None:
    made = resources(store).vector(cell)
    path = store.paths.vector(cell.vector_id)
    without_metadata(path)
    before = path.stat().st_mtime_ns

    assert torch.equal(resources(store).vector(cell).directions, made.directions)
    assert path.stat().st_mtime_ns == before
    assert warnings_of(caplog) == []


NORM_DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "one too many": lambda stored: stored["residual_norm"].append(1.0),
    "text": lambda stored: stored.update(residual_norm=["a"] * BLOCKS),
    "NaN": lambda stored: stored["residual_norm"].__setitem__(0, float("nan")),
    "negative": lambda stored: stored["residual_norm"].__setitem__(0, -1.0),
    "of another model": lambda stored: stored["model"].update(fingerprint="sha256:other"),
    "gone": lambda stored: stored.pop("residual_norm"),
}


@pytest.mark.parametrize("damage", NORM_DAMAGES)
def test_damaged_norms_are_measured_again(store: Store, cell: Cell, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    norms = resources(store).residual_norm(cell)
    path = store.paths.residual_norms(cell.norms_id)
    stored = json.loads(path.read_text())
    NORM_DAMAGES[damage](stored)
    path.write_text(json.dumps(stored))

    assert torch.equal(resources(store).residual_norm(cell), norms)
    assert len(warnings_of(caplog)) == 1
    assert str(path) in caplog.text


def test_norms_that_are_no_numbers_are_no_endless_work(store: Store, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emosteer.resources.residual_norms", lambda *_: torch.full((BLOCKS,), torch.nan))

    with pytest.raises(EmosteerError, match=r"residual norms of tiny-llama: .* try model.dtype=float32"):
        resources(store).residual_norm(cell)
    assert list(store.paths.claims.iterdir()) == []


def test_a_shape_of_another_model_is_told(store: Store, cell: Cell) -> None:
    from emosteer.vectors import checked

    vector = resources(store).vector(cell)
    assert checked(vector, BLOCKS, WIDTH) is vector
    with pytest.raises(EmosteerError, match=r"is \[4, 32\] with 4 residual norms: the model needs \[4, 64\]"):
        checked(vector, BLOCKS, 64)
    with pytest.raises(EmosteerError, match=r"the model needs \[5, 32\]"):
        checked(vector, 5, WIDTH)


def test_a_vector_that_does_not_fit_is_no_vector(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        store = Store(disk / "store")
        cell = of_the_tiny_model(store)
        resources(store).residual_norm(cell)
        stuffing = fill(disk)

        with pytest.raises(Unwritable, match=r"cannot write .*: No space left on device; make room there"):
            resources(store).vector(cell)
        assert not store.paths.vector(cell.vector_id).exists()

        stuffing.unlink()
        assert list(store.paths.claims.iterdir()) == [], "nobody waits for it"
        assert resources(store).vector(cell).directions.shape == (BLOCKS, WIDTH)
