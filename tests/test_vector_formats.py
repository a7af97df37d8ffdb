"""Vectors in other software's forms: read back by that software, they steer as emosteer does."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny_models import BLOCKS, WIDTH, random_tokens, random_vector, tiny_model
from torch import Tensor

import emosteer
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.steering import SteeringPlan, steering_along
from emosteer.vectors import EmotionVector

DIRECTIONS = torch.stack([random_vector(block, 1.0 + block) for block in range(BLOCKS)])
VECTOR = EmotionVector(DIRECTIONS, torch.tensor([2.0, 3.0, 5.0, 7.0]))


def our_logits(model: LanguageModel, ids: Tensor, vector: EmotionVector, layers: tuple[int, ...], coefficient: float) -> Tensor:
    plan = SteeringPlan([steering_along(vector, layers, coefficient, scope="all")], model.device, model.dtype)
    with torch.no_grad(), plan.applied(model.anatomy):
        return model.model(ids).logits


def as_llama_cpp_reads(path: Path, scale: float = 1.0) -> dict[int, np.ndarray[Any, Any]]:
    """Block -> what llama.cpp adds: its rules for a control vector's tensors, written down from its loader."""
    found: dict[int, np.ndarray[Any, Any]] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        word, block = tensor.name.split(".", 1)
        assert word == "direction"
        assert int(block) > 0, "there is no direction of block 0"
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert len(tensor.shape) == 1
        found[int(block)] = found.get(int(block), 0) + scale * np.array(tensor.data)
    return found


@pytest.mark.parametrize("layers", [(2,), (1, 3)])
def test_a_control_vector_holds_what_is_added(tmp_path: Path, layers: tuple[int, ...]) -> None:
    path = tmp_path / "new" / "joy.gguf"
    emosteer.save_gguf(VECTOR, path, layer=layers, coefficient=0.3, model="tiny", facts={"pair": "joy_sadness"})
    read = as_llama_cpp_reads(path)

    assert tuple(read) == layers
    for block, direction in read.items():
        unit = DIRECTIONS[block] / DIRECTIONS[block].norm()
        np.testing.assert_allclose(direction, (0.3 * VECTOR.residual_norm[block] * unit).numpy(), rtol=1e-6)
    fields = gguf.GGUFReader(path).fields
    assert fields["general.architecture"].contents() == "controlvector"
    assert fields["controlvector.model_hint"].contents() == "tiny"
    assert fields["controlvector.layer_count"].contents() == len(layers)
    assert fields["emosteer.pair"].contents() == "joy_sadness"
    assert [one.name for one in path.parent.iterdir()] == ["joy.gguf"]


def test_adding_what_a_control_vector_holds_steers_alike(tmp_path: Path) -> None:
    model, ids = tiny_model("llama"), torch.tensor(random_tokens(9))
    emosteer.save_gguf(VECTOR, tmp_path / "joy.gguf", layer=[1, 3], coefficient=-0.4)
    with ExitStack() as stack:
        for block, direction in as_llama_cpp_reads(tmp_path / "joy.gguf").items():
            module = model.model.get_submodule("model.layers")[block]
            added = torch.tensor(direction)
            hook = module.register_forward_hook(lambda _m, _a, out, added=added: out + added if torch.is_tensor(out) else None)
            stack.callback(hook.remove)
        with torch.no_grad():
            theirs = model.model(ids).logits
    torch.testing.assert_close(our_logits(model, ids, VECTOR, (1, 3), -0.4), theirs)
    assert not torch.allclose(theirs, model.model(ids).logits, atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
@pytest.mark.parametrize("site", ["residual", "attention", "mlp"])
def test_the_object_of_steering_vectors_steers_alike(family: str, site: str) -> None:
    model, ids = tiny_model(family), torch.tensor(random_tokens(9))
    vector = replace(VECTOR, site=site)
    theirs = emosteer.to_steering_vectors(vector, layer=[0, 2], coefficient=0.5)
    for multiplier in (1.0, -0.5):
        with torch.no_grad(), theirs.apply(model.model, multiplier=multiplier):
            logits = model.model(ids).logits
        torch.testing.assert_close(our_logits(model, ids, vector, (0, 2), 0.5 * multiplier), logits)
    assert not torch.allclose(logits, model.model(ids).logits, atol=1e-2)


def test_raw_coefficients_and_fractions_of_the_depth(tmp_path: Path) -> None:
    emosteer.save_gguf(VECTOR, tmp_path / "joy.gguf", layer=1.0, coefficient=2.0, coefficient_unit="raw")
    read = as_llama_cpp_reads(tmp_path / "joy.gguf", scale=0.5)
    np.testing.assert_allclose(read[BLOCKS - 1], DIRECTIONS[BLOCKS - 1].numpy(), rtol=1e-6)
    assert read[BLOCKS - 1].shape == (WIDTH,)


@pytest.mark.parametrize(
    ("vector", "layer", "message"),
    [
        (VECTOR, 0, "layer=0: llama.cpp adds control vectors from block 1 up"),
        (VECTOR, [0, 2], "layer=0"),
        (VECTOR, BLOCKS, f"layer {BLOCKS} is out of range"),
        (VECTOR, "auto", "layer=auto: give blocks"),
        (replace(VECTOR, site="mlp"), 2, "site=mlp: llama.cpp adds control vectors to the residual stream only"),
        (replace(VECTOR, directions=DIRECTIONS * torch.nan), 2, "not finite"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(tmp_path: Path, vector: EmotionVector, layer: Any, message: str) -> None:
    with pytest.raises(EmosteerError, match=message):
        emosteer.save_gguf(vector, tmp_path / "joy.gguf", layer=layer)
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("repeng", "steering_vectors"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EmosteerError, match=r"steering_vectors is not installed here .*pip install"):
        emosteer.to_steering_vectors(VECTOR, layer=2)
    with pytest.raises(EmosteerError, match=r"repeng is not installed here .*pip install"):
        emosteer.to_repeng(VECTOR, layer=2)
    with pytest.raises(EmosteerError, match="site=mlp: repeng controls the residual stream only"):
        emosteer.to_repeng(replace(VECTOR, site="mlp"), layer=2)
