"""Attribution patching written with nnsight, or with TransformerLens: one pair at a time, and nothing of emosteer's.

    attribute.py nnsight|transformer_lens MODEL_DIRECTORY CASES.json SCORES.safetensors

A case has `id`, `clean`, `corrupted`, `expressive` and `counterpart`, lists of token ids. Scores are (clean - corrupted) . gradient
at the corrupted run: `<id>.attention`, `<id>.mlp`, `<id>.residual` [block, position], `<id>.head` [block, position, head].
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

States = dict[tuple[str, int], Tensor]
Read = Callable[[list[int], Any], tuple[States, States]]
"""Token ids and, where gradients are wanted, their metric -> activations and gradients by site and block."""


def with_nnsight(directory: str) -> tuple[Read, Any]:
    from nnsight import NNsight

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    traced, n_blocks = NNsight(model), model.config.num_hidden_layers

    def read(ids: list[int], metric: Any) -> tuple[States, States]:
        states: States = {}
        slopes: States = {}
        with traced.trace(input_ids=torch.tensor([ids]), use_cache=False):
            for layer in range(n_blocks):
                block = traced.model.layers[layer]
                states["head", layer] = block.self_attn.o_proj.input.save()
                states["attention", layer] = block.self_attn.o_proj.output.save()
                states["mlp", layer] = block.mlp.output.save()
                states["residual", layer] = block.output.save()
            if metric is not None:
                value = metric(traced.lm_head.output[0, -1])
                with value.backward():
                    for place in reversed(states):
                        slopes[place] = states[place].grad.save()
        return states, slopes

    return read, model.config


def with_transformer_lens(directory: str) -> tuple[Read, Any]:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(directory)
    config = AutoModelForCausalLM.from_pretrained(directory).config
    names = {"head": "attn.hook_z", "attention": "hook_attn_out", "mlp": "hook_mlp_out", "residual": "hook_resid_post"}
    places = {f"blocks.{layer}.{name}": (site, layer) for layer in range(config.num_hidden_layers) for site, name in names.items()}

    def read(ids: list[int], metric: Any) -> tuple[States, States]:
        states: States = {}
        slopes: States = {}

        def keep(tensor: Tensor, hook: Any, into: States, place: tuple[str, int]) -> None:
            into[place] = tensor

        forth, back = ([(name, partial(keep, into=into, place=place)) for name, place in places.items()] for into in (states, slopes))
        with bridge.hooks(fwd_hooks=forth, bwd_hooks=back):
            logits = bridge(torch.tensor([ids]))
            if metric is not None:
                metric(logits[0, -1]).backward()
        return states, slopes

    return read, config


def main() -> None:
    peer, directory, cases, out = sys.argv[1:]
    read, config = {"nnsight": with_nnsight, "transformer_lens": with_transformer_lens}[peer](directory)
    scores: dict[str, Tensor] = {}
    for case in json.loads(Path(cases).read_text(encoding="utf-8")):

        def metric(logits: Tensor, case: dict[str, list[int]] = case) -> Tensor:
            p = logits.softmax(-1)
            return p[case["expressive"]].sum().log() - p[case["counterpart"]].sum().log()

        clean, _ = read(case["clean"], None)
        corrupted, slopes = read(case["corrupted"], metric)
        for site in ("attention", "mlp", "residual", "head"):
            places = [(site, layer) for layer in range(config.num_hidden_layers)]
            products = torch.stack([((clean[at] - corrupted[at]) * slopes[at])[0].detach().flatten(1) for at in places])
            parts = config.num_attention_heads if site == "head" else 1
            scores[f"{case['id']}.{site}"] = products.unflatten(-1, (parts, -1)).sum(-1).squeeze(-1).contiguous()
    save_file(scores, out)


if __name__ == "__main__":
    main()
