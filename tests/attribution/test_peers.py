"""Attribution patching agrees with nnsight and with TransformerLens, installed beside: one that can't be installed is a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from cases import nine_cases, with_head
from safetensors.torch import load_file
from tiny_models import tiny_model, tokenizer_of

from emosteer.attribution import attribute

pytestmark = pytest.mark.slow

PEERS = Path(__file__).parent / "peers"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with both."""
    directory = tmp_path_factory.mktemp("peers")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(directory)]
    subprocess.run([*install, "-r", str(PEERS / "requirements.txt")], check=True)
    return directory


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("peer", ["nnsight", "transformer_lens"])
def test_attribution_agrees_with_a_peer(peer: str, family: str, packages: Path, tmp_path: Path) -> None:
    model, cases = tiny_model(family), with_head(nine_cases())
    model.model.save_pretrained(tmp_path / "model")
    tokenizer_of().save_pretrained(tmp_path / "model")
    (tmp_path / "cases.json").write_text(json.dumps([asdict(case) for case in cases]), encoding="utf-8")
    command = [str(PEERS / "attribute.py"), peer, *(str(tmp_path / name) for name in ("model", "cases.json", "scores.safetensors"))]
    subprocess.run([sys.executable, *command], check=True, env={**os.environ, "PYTHONPATH": str(packages)})
    theirs = load_file(tmp_path / "scores.safetensors")

    found = attribute(model, cases, steps=1)
    close = {"rtol": 1e-3, "atol": 1e-4}
    for row, case in enumerate(cases):
        for site in ("attention", "mlp", "residual", "head"):
            torch.testing.assert_close(found.last[site][row], theirs[f"{case.id}.{site}"][:, -1], **close)
        for site in ("attention", "mlp", "head"):
            torch.testing.assert_close(found.everywhere[site][row], theirs[f"{case.id}.{site}"].sum(1), **close)
        own = found.residual_by_position[row, :, -len(case.clean) :]
        torch.testing.assert_close(own, theirs[f"{case.id}.residual"], **close)
