"""repeng, in an environment of its own, steers with what is exported as emosteer does; one that can't be installed is a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import BLOCKS, random_tokens, random_vector, tiny_model

import emosteer
from emosteer.steering import SteeringPlan, steering_along
from emosteer.vectors import EmotionVector

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
VECTOR = EmotionVector(
    torch.stack([random_vector(block, 1.0 + block) for block in range(BLOCKS)]), torch.tensor([2.0, 3.0, 5.0, 7.0])
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with repeng and its numpy."""
    directory = tmp_path_factory.mktemp("repeng")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(directory)]
    subprocess.run([*install, "-r", str(HERE / "requirements.txt")], check=True)
    return directory


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_repeng_steers_alike(family: str, packages: Path, tmp_path: Path) -> None:
    model, (tokens,) = tiny_model(family), random_tokens(9)
    model.model.save_pretrained(tmp_path / "model")
    emosteer.save_vector(VECTOR, tmp_path / "joy.safetensors")
    emosteer.save_gguf(VECTOR, tmp_path / "joy.gguf", layer=[1, 3], coefficient=0.5, model=family)
    files = [str(tmp_path / name) for name in ("model", "joy.safetensors", "joy.gguf")]
    arguments = [*files, "[1, 3]", "0.5", json.dumps([tokens]), str(tmp_path / "out.safetensors")]
    path = os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, str(HERE / "steer.py"), *arguments], check=True, env={**os.environ, "PYTHONPATH": path})
    theirs = load_file(tmp_path / "out.safetensors")

    ids = torch.tensor([tokens])
    for name, coefficient in (("object", 0.5), ("gguf", 0.5), ("half", -0.25)):
        plan = SteeringPlan([steering_along(VECTOR, [1, 3], coefficient, scope="all")], model.device, model.dtype)
        with torch.no_grad(), plan.applied(model.anatomy):
            ours = model.model(ids).logits
        torch.testing.assert_close(ours, theirs[name], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(theirs["object"], model.model(ids).logits, atol=1e-2)
