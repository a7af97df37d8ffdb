"""The classifier scorer, against the model's own forward of one reply at a time."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_classifier import save_classifier
from tiny_models import SENTENCES
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from emosteer.errors import EmosteerError
from emosteer.records.answers import StoredAnswers
from emosteer.scoring import classifier as module
from emosteer.scoring.classifier import classifier
from emosteer.scoring.pool import CellReplies, measure_together
from emosteer.scoring.scorer import Context, find_scorers

METRICS = ["classifier_joy", "classifier_sadness", "classifier_mixed_other"]
REPLIES = [*SENTENCES, "Yes.", SENTENCES[0], "word " * 200]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOSTEER_CACHE", str(tmp_path / "cache"))


def context(answers: Any = None) -> Context:
    engine: Any = SimpleNamespace(model=SimpleNamespace(device=torch.device("cpu")))
    kept = {"answers": lambda key: StoredAnswers(answers, key)} if answers else {}
    return Context(engine, [], [], **kept)


def one_by_one(path: Path, replies: list[str], multi: bool = False) -> list[list[float]]:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    rows = []
    for reply in replies:
        ids = tokenizer(reply).input_ids[:64]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0].tolist()
        powers = [math.exp(v) for v in logits]
        rows.append([1 / (1 + math.exp(-v)) if multi else power / sum(powers) for v, power in zip(logits, powers, strict=True)])
    return rows


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_probabilities_are_those_of_each_reply_alone(saved: Path, tmp_path: Path, multi: bool, batch_size: int) -> None:
    path = save_classifier(tmp_path / "multi", problem_type="multi_label_classification") if multi else saved
    found = classifier(REPLIES, context=context(), path=str(path), batch_size=batch_size)

    assert list(found) == METRICS
    expected = one_by_one(path, REPLIES, multi)
    for number, metric in enumerate(METRICS):
        assert found[metric] == pytest.approx([row[number] for row in expected], abs=1e-4)
        assert max(found[metric]) - min(found[metric]) > 0.01, "it tells replies apart"
    if not multi:
        assert [sum(row) for row in zip(*found.values(), strict=True)] == pytest.approx([1] * len(REPLIES), abs=3e-4)


def test_a_reply_without_words_is_not_computed(saved: Path) -> None:
    found = classifier(["", "...", "joy"], context=context(), path=str(saved))
    values = found["classifier_joy"]
    assert [math.isnan(value) for value in values] == [True, True, False]
    assert getattr(values[0], "reason", None) == "a reply without words has no emotion to classify"


def test_what_was_said_is_kept_by_text_and_weights(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "answers"
    first = classifier(REPLIES, context=context(kept), path=str(saved), batch_size=2)
    asked: list[str] = []
    real = module._probabilities

    def counting(model: Any, tokenizer: Any, texts: list[str], max_length: int) -> list[list[float]]:
        asked.extend(texts)
        return real(model, tokenizer, texts, max_length)

    monkeypatch.setattr(module, "_probabilities", counting)
    again = classifier([*REPLIES, "New words."], context=context(kept), path=str(saved))
    assert again["classifier_joy"][:-1] == first["classifier_joy"]
    assert asked == ["New words."]
    other = save_classifier(tmp_path / "other", seed=1)
    assert classifier(REPLIES, context=context(kept), path=str(other)) != first
    assert set(asked) >= set(REPLIES), "other weights are asked anew"


def entry(path: Path | str, **options: Any) -> dict[str, dict[str, Any]]:
    return {"feelings": {"_target_": "emosteer.scoring.classifier.classifier", "path": str(path), **options}}


def test_weights_are_part_of_the_key_and_their_place_is_found_again(saved: Path, tmp_path: Path) -> None:
    (scorer,) = find_scorers(entry(saved))
    assert scorer.options["fingerprint"].startswith("sha256:")
    assert find_scorers(entry(saved, fingerprint=scorer.options["fingerprint"]))[0].key == scorer.key
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    (same,) = find_scorers(entry(copy))
    assert same.options["fingerprint"] == scorer.options["fingerprint"]
    save_classifier(copy, seed=3)
    assert find_scorers(entry(copy))[0].key != same.key
    with pytest.raises(EmosteerError, match="is not the classifier that was submitted"):
        find_scorers(entry(copy, fingerprint=same.options["fingerprint"]))
    with pytest.raises(EmosteerError, match="is not the one that was submitted"):
        classifier(["joy"], context=context(), path=str(copy), fingerprint=same.options["fingerprint"])


def test_cells_together_have_what_they_have_alone(saved: Path) -> None:
    (scorer,) = find_scorers(entry(saved))

    def tokens(n: int) -> Context:
        return dataclasses.replace(context(), prompts=[()] * n, replies=[()] * n)

    cells = [CellReplies(own, partial(tokens, len(own))) for own in (REPLIES[:4], REPLIES[2:])]
    assert list(measure_together(scorer, cells)) == [scorer.measure(cell.texts, cell.context) for cell in cells]


def change_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config |= changes
    (path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "is BertForMaskedLM: give a model with a head that classifies texts"),
        ({"architectures": None}, "is of no named architecture"),
        ({"id2label": None}, "does not name its labels"),
        ({"id2label": {"0": "joy", "2": "fear"}}, "has no label 1"),
        ({"id2label": {"0": "joy", "1": "Joy!"}}, "give equal names of metrics"),
    ],
)
def test_what_is_no_classifier_is_refused_when_the_sweep_is_given(saved: Path, tmp_path: Path, changes: Any, told: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    change_config(copy, **changes)
    with pytest.raises(EmosteerError, match=f"^scorers.feelings.path={copy}.*{told}"):
        find_scorers(entry(copy))


def test_a_place_without_a_model_and_wrong_options_are_refused_when_the_sweep_is_given(saved: Path, tmp_path: Path) -> None:
    for path, told in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "no weights there"), ("", "give the hub id")):
        with pytest.raises(EmosteerError, match=f"^scorers.feelings.path=.*{told}"):
            find_scorers(entry(path))
    for options in ({"batch_size": 0}, {"max_length": 1}, {"prefix": "a b"}, {"batch_size": "many"}):
        with pytest.raises(EmosteerError, match=f"^scorers.feelings.{next(iter(options))}="):
            find_scorers(entry(saved, **options))
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(EmosteerError, match="a damaged safetensors file"):
        find_scorers(entry(copy))
    weights.rename(copy / "pytorch_model.bin")
    with pytest.raises(EmosteerError, match="its weights are no safetensors"):
        find_scorers(entry(copy))


def test_weights_that_are_missing_are_never_made_up(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    tensors = load_file(copy / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(EmosteerError, match=r"lacks weights, such as classifier.weight: its answers would be random"):
        classifier(["joy"], context=context(), path=str(copy))
