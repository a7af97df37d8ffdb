"""A vector on disk: the layout of the store, and nothing that no model can be steered by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from emosteer.errors import EmosteerError
from emosteer.vector_file import load_vector, save_vector
from emosteer.vectors import EmotionVector

VECTOR = EmotionVector(torch.arange(1.0, 13.0).reshape(3, 4), torch.tensor([1.0, 2.0, 3.0]), "mlp")


def layout(**changes: Any) -> dict[str, Tensor]:
    """The tensors of a good file, changed; None takes one out."""
    tensors = {f"block.{layer}": VECTOR.directions[layer].clone() for layer in range(3)} | {"residual_norm": VECTOR.residual_norm}
    return {
        name: tensor
        for name, tensor in (tensors | {k.replace("_at_", "."): v for k, v in changes.items()}).items()
        if tensor is not None
    }


def test_a_vector_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "joy.safetensors"
    save_vector(VECTOR, str(path))
    back = load_vector(path)

    assert back.directions.equal(VECTOR.directions)
    assert back.residual_norm.equal(VECTOR.residual_norm)
    assert back.site == "mlp"
    assert [one.name for one in path.parent.iterdir()] == ["joy.safetensors"]
    save_vector(replace(VECTOR, site="residual"), path)
    assert load_vector(path).site == "residual"


def test_the_file_has_the_stores_layout(tmp_path: Path) -> None:
    save_vector(replace(VECTOR, directions=VECTOR.directions.double()), tmp_path / "joy.safetensors")
    tensors = load_file(tmp_path / "joy.safetensors")

    assert sorted(tensors) == ["block.0", "block.1", "block.2", "residual_norm"]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(tensors[name].equal(tensor) for name, tensor in layout().items())


def test_a_file_of_the_store_has_its_site_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "stored.safetensors"
    save_file(layout(), path)
    assert load_vector(path).site == "residual"
    path.with_suffix(".json").write_text(json.dumps({"id": "stored", "site": "attention"}))
    assert load_vector(path).site == "attention"
    for content, message in (('{"site": "head"}', "site=head"), ("{", "not readable")):
        path.with_suffix(".json").write_text(content)
        with pytest.raises(EmosteerError, match=message):
            load_vector(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual_norm": None}, "no tensor 'residual_norm'; it holds block.0, block.1, block.2"),
        ({"residual_norm": torch.ones(4)}, "one tensor block.<L>"),
        ({"residual_norm": torch.ones(3, 1)}, "one tensor block.<L>"),
        ({"residual_norm": torch.tensor([1.0, 0.0, 1.0])}, "residual norm is not finite or not above 0"),
        ({"residual_norm": torch.tensor([1.0, torch.nan, 1.0])}, "residual norm is not finite or not above 0"),
        ({"block_at_1": None}, "one tensor block.<L>"),
        ({"block_at_3": torch.ones(4)}, "one tensor block.<L>"),
        ({"other": torch.ones(4)}, "one tensor block.<L>"),
        ({"block_at_1": torch.ones(5)}, "different shapes"),
        ({"block_at_1": torch.tensor([1.0, torch.nan, 1.0, 1.0])}, r"not finite or has no length at blocks \[1\]"),
        ({"block_at_2": torch.zeros(4)}, r"not finite or has no length at blocks \[2\]"),
        ({f"block_at_{layer}": torch.ones(2, 2) for layer in range(3)}, "different shapes"),
    ],
)
def test_a_file_that_no_model_can_be_steered_by_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(layout(**changes), path)
    with pytest.raises(EmosteerError, match=rf"bad\.safetensors: .*{message}"):
        load_vector(path)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmosteerError, match="no such file"):
        load_vector(tmp_path / "nowhere.safetensors")
    torn = tmp_path / "torn.safetensors"
    save_vector(VECTOR, torn)
    torn.write_bytes(torn.read_bytes()[:-5])
    with pytest.raises(EmosteerError, match="not a safetensors file"):
        load_vector(torn)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmosteerError, match="not finite"):
        save_vector(replace(VECTOR, directions=VECTOR.directions * torch.inf), tmp_path / "joy.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(EmosteerError, match="cannot write "):
        save_vector(VECTOR, tmp_path / "file" / "joy.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))
