"""Logits of a model under repeng's control, run where that library is: steer.py MODEL VECTOR GGUF BLOCKS COEFFICIENT IDS OUT.

Both ways to a ControlVector: emosteer.to_repeng, and repeng's own reading of the GGUF file.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from repeng import ControlModel, ControlVector
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import emosteer


def logits(model: Any, control: Any, blocks: list[int], coeff: float, ids: torch.Tensor) -> torch.Tensor:
    controlled = ControlModel(model, blocks)
    controlled.set_control(control, coeff)
    with torch.no_grad():
        found = controlled(input_ids=ids).logits
    controlled.unwrap()
    return torch.Tensor(found).contiguous()


def main(model_path: str, vector: str, gguf: str, blocks_json: str, coefficient: str, ids_json: str, out: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    blocks, ids = json.loads(blocks_json), torch.tensor(json.loads(ids_json))
    ours = emosteer.to_repeng(emosteer.load_vector(vector), layer=blocks, coefficient=float(coefficient))
    theirs = ControlVector.import_gguf(gguf)
    save_file(
        {
            "object": logits(model, ours, blocks, 1.0, ids),
            "gguf": logits(model, theirs, blocks, 1.0, ids),
            "half": logits(model, theirs, blocks, -0.5, ids),
        },
        out,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
