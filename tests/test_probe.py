"""A probe tells a model that can be trusted from one that can't; what it suggests is a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import FAMILIES, tiny_model

import emosteer
from emosteer.config import Config, ModelConfig, PairConfig
from emosteer.engine import Engine
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.probe import checks, command
from emosteer.probe.checks import LOW, N_PROMPTS, REPLY, RIGHT, UNKNOWN, WRONG, Finding, probe

JOY = PairConfig("joy_sadness", "joy", "sadness", "joy")


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_of_every_family_are_exact(family: str) -> None:
    model = tiny_model(family)
    assert checks._hooks(model).verdict == RIGHT
    assert checks._decoding(model, Engine(model)).verdict == RIGHT


def shifted(model: LanguageModel) -> LanguageModel:
    """With each block taken for the one before."""
    blocks = model.anatomy.blocks
    return replace(model, anatomy=replace(model.anatomy, blocks=(*blocks[1:], blocks[0])))


def test_blocks_that_are_others_are_noticed() -> None:
    finding = checks._hooks(shifted(tiny_model()))
    assert finding.verdict == WRONG
    assert finding.numbers["read"] > 0.01


def test_replies_that_are_not_the_models_own_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    right = Engine.generate
    monkeypatch.setattr(
        Engine, "generate", lambda *a, **k: ((i, replace(reply, tokens=(3, *reply.tokens[1:]))) for i, reply in right(*a, **k))
    )
    assert checks._decoding(model, Engine(model)).verdict == WRONG


def test_what_is_missing_is_said() -> None:
    bare = tiny_model("bloom", chat=False)
    assert "set model.attention" in checks._parts(bare).text
    assert (checks._parts(bare).verdict, checks._template(bare).verdict) == (LOW, LOW)
    assert checks._parts(tiny_model()).verdict == RIGHT


def test_strengths_are_measured_as_a_sweep_does() -> None:
    model = tiny_model()
    finding = checks._strength(model, Engine(model), JOY, [1])
    cell = next(cell for cell in finding.numbers["cells"] if (cell["layer"], cell["coefficient"]) == (1, 0.4))
    prompts = emosteer.load_prompts("conversation", N_PROMPTS)
    vector = emosteer.build_vector(model, "joy_sadness")
    steered = emosteer.steer(model, prompts, vector, layer=1, coefficient=0.4, max_new_tokens=REPLY)
    plain = emosteer.reply(model, prompts, max_new_tokens=REPLY)
    means = [np.log(emosteer.score(model, replies, ["perplexity"])["perplexity"]).mean() for replies in (steered, plain)]
    assert cell["perplexity_ratio"] == pytest.approx(np.exp(means[0] - means[1]), rel=1e-3)
    assert f"{cell['perplexity_ratio']:.2f}" in finding.text
    assert finding.numbers["layers"][0] == "auto", "where attribution points is left to it"
    assert 1 not in finding.numbers["layers"]


def test_too_hard_everywhere_is_said() -> None:
    text, numbers = checks._told([(3, c) for c in checks.COEFFICIENTS], np.full(5, 9.0), np.zeros(5, dtype=bool), [])
    assert "coefficients below 0.025" in text
    assert numbers["coefficients"] == []
    assert command.suggested(["model=x"], numbers) == ""


def test_an_attribution_that_cannot_be_made_does_not_end_the_probe(tmp_path: Path) -> None:
    findings = {one.name: one for one in probe(tiny_model(), replace(JOY, diagnostics=str(tmp_path / "none.jsonl")))}
    assert list(findings) == ["blocks", "template", "hooks", "engine", "attribution", "strength"]
    assert findings["attribution"].verdict == UNKNOWN
    assert "none.jsonl" in findings["attribution"].text
    assert "auto" not in findings["strength"].numbers["layers"]


def test_a_suggested_sweep_keeps_what_was_chosen() -> None:
    overrides = ["model=custom", "model.path=a/b", "probe=true", "layer=3", "++coefficient=1"]
    axes = {"layers": ["auto", 6], "coefficients": [0.05, 0.1]}
    assert command.suggested(overrides, axes) == "emosteer -m model=custom model.path=a/b layer=auto,6 coefficient=0.05,0.1"


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the command's part with findings that are given."""
    monkeypatch.setattr(command, "load", lambda config: tiny_model())

    def run(directory: Path, *findings: Finding) -> None:
        monkeypatch.setattr(command, "probe", lambda *_: iter(findings))
        command.run(Config(model=ModelConfig("tiny", "tiny"), pair=JOY), ["model=x", "probe=true"], directory)

    return run


def test_what_is_found_is_printed_and_kept(probed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = (
        Finding("hooks", RIGHT, "exact"),
        Finding("strength", RIGHT, "a table\nof lines", {"layers": ["auto"], "coefficients": [0.1]}),
    )
    probed(tmp_path, *findings)
    out = capsys.readouterr().out
    assert "emosteer -m model=x layer=auto coefficient=0.1" in out
    assert f"\n{'':{command.INDENT}}of lines" in out
    kept = json.loads((tmp_path / command.FILE).read_text())
    assert [finding["verdict"] for finding in kept["findings"]] == [RIGHT, RIGHT]
    assert kept["suggested"] in out
    assert kept["model"]["blocks"] == 4


def test_a_model_that_cannot_be_trusted_is_an_error(probed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EmosteerError, match=r"hooks: what emosteer measures on tiny-llama can't be trusted.*probe\.json"):
        probed(
            tmp_path,
            Finding("hooks", WRONG, "far off"),
            Finding("strength", RIGHT, "a table", {"layers": [1], "coefficients": [0.1]}),
        )
    assert "emosteer -m" not in capsys.readouterr().out
    assert (tmp_path / command.FILE).exists()
