"""A tiny random model of every architecture that the engine has been tried on, beyond those that all tests use.

Each is here for what a plain decoder has not: a window, a chunk, a soft cap, sinks, experts, a recurrent state, latents for keys.
`plain` says how the same weights read without it, so that a test can see that it matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import transformers
from packaging.version import Version
from tiny_models import (
    ALTERNATING,
    BLOCKS,
    FAMILIES,
    HEADS,
    UNTIED,
    WIDTH,
    WINDOW,
    bare_model,
    common,
    configuration,
    make_model,
    tiny_model,
    tokenizer_of,
    true_parts,
    without_groups,
)
from torch import nn
from transformers import PreTrainedModel

from emosteer.model.capture import Place
from emosteer.model.language_model import LanguageModel, wrap

Plain = dict[str, Any] | Callable[[PreTrainedModel], None]
"""Other options for the same weights, or a change to the weights."""


@dataclass(frozen=True)
class Kind:
    """An architecture: its configuration, where transformers keeps its parts, and what it has that others have not."""

    config: str
    options: dict[str, Any]
    plain: tuple[Plain, ...] = ()
    """What takes away, one by one, the things it is here for; none where that would change the weights' shapes."""
    blocks: str = "model.layers"
    attention: tuple[str, ...] = ("self_attn",)
    """The block's part that adds attention to the residual stream, by name; the first that a block has."""
    mlp: tuple[str, ...] = ("mlp",)


def _no_sinks(model: PreTrainedModel) -> None:
    for name, weight in model.named_parameters():
        if name.endswith("sinks"):
            weight.fill_(-torch.inf)


def _no_convolution(model: PreTrainedModel) -> None:
    """Convolutions that see their own position alone."""
    for name, weight in model.named_parameters():
        if name.endswith(("conv.weight", "conv1d.weight")):
            weight[..., :-1] = 0


def _no_recurrence(model: PreTrainedModel) -> None:
    """A state that is forgotten at every step."""
    for name, weight in model.named_parameters():
        if name.endswith("dt_bias"):
            weight.fill_(100.0)


def _experts(**more: Any) -> dict[str, Any]:
    return common(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=WIDTH, **more)


def _llama4(**more: Any) -> dict[str, Any]:
    """Every second block has experts, and no rotary embedding."""
    return common(
        head_dim=8,
        intermediate_size_mlp=2 * WIDTH,
        num_local_experts=4,
        num_experts_per_tok=2,
        interleave_moe_layer_step=2,
        no_rope_layer_interval=2,
        **more,
    )


NORMS_AFTER = {"attention": ("post_attention_layernorm",), "mlp": ("post_feedforward_layernorm",)}
EVERYWHERE = {"layer_types": ["full_attention"] * BLOCKS}
"""No window in any block."""

_ZOO: dict[str, Kind] = {
    "qwen2": Kind("Qwen2Config", common()),
    # Embeddings that are the output matrix too, as small models have them; without attention's groups, and with.
    "gpt2_tied": Kind(
        "GPT2Config",
        {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": 256},
        blocks="transformer.h",
        attention=("attn",),
    ),
    "qwen3_tied": Kind("Qwen3Config", common(head_dim=16, tie_word_embeddings=True)),
    # Norms without weights.
    "olmo": Kind("OlmoConfig", common(clip_qkv=0.5), ({"clip_qkv": None},)),
    # One projection for grouped queries, keys and values.
    "falcon_grouped": Kind(
        "FalconConfig",
        without_groups(ffn_hidden_size=2 * WIDTH, new_decoder_architecture=True, num_kv_heads=2),
        blocks="transformer.h",
        attention=("self_attention",),
    ),
    "qwen2_windowed": Kind(
        "Qwen2Config",
        common(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
        ({"use_sliding_window": False},),
    ),
    # The family's own caps are so wide that a tiny model never comes near them.
    "gemma2_capped": Kind(
        "Gemma2Config",
        common(
            head_dim=8,
            sliding_window=WINDOW,
            layer_types=ALTERNATING,
            query_pre_attn_scalar=8,
            attn_logit_softcapping=1.0,
            final_logit_softcapping=3.0,
        ),
        ({"attn_logit_softcapping": None}, {"final_logit_softcapping": None}, EVERYWHERE),
        **NORMS_AFTER,
    ),
    "phi3": Kind("Phi3Config", common(sliding_window=WINDOW), ({"sliding_window": None},)),
    "olmo3": Kind("Olmo3Config", common(sliding_window=WINDOW, layer_types=ALTERNATING), (EVERYWHERE,), **NORMS_AFTER),
    "qwen3_moe": Kind("Qwen3MoeConfig", _experts(head_dim=8, norm_topk_prob=True), ({"num_experts_per_tok": 1},)),
    "gpt_oss": Kind(
        "GptOssConfig",
        common(
            head_dim=8,
            sliding_window=WINDOW,
            layer_types=ALTERNATING,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 32.0, "original_max_position_embeddings": 8},
        ),
        (_no_sinks, EVERYWHERE, {"num_experts_per_tok": 1}),
    ),
    # What it adds to the residual stream is scaled after its sublayers, so that no module's output is what they add.
    "granite": Kind(
        "GraniteConfig",
        common(embedding_multiplier=2.0, residual_multiplier=0.6, attention_multiplier=0.3, logits_scaling=0.5),
        ({"logits_scaling": 1.0}, {"residual_multiplier": 1.0}, {"attention_multiplier": 1.0}, {"embedding_multiplier": 1.0}),
        attention=(),
        mlp=(),
    ),
    "cohere2": Kind(
        "Cohere2Config",
        common(sliding_window=WINDOW, layer_types=ALTERNATING, logit_scale=0.25),
        (EVERYWHERE, {"logit_scale": 1.0}),
    ),
    "starcoder2": Kind("Starcoder2Config", common(sliding_window=WINDOW), ({"sliding_window": None},)),
    "smollm3": Kind("SmolLM3Config", common(no_rope_layer_interval=2), ({"no_rope_layers": [1] * BLOCKS},)),
    "stablelm": Kind(
        "StableLmConfig",
        common(use_parallel_residual=True, use_qkv_bias=True, partial_rotary_factor=0.5),
        ({"partial_rotary_factor": 1.0},),
    ),
    "glm4": Kind(
        "Glm4Config",
        common(head_dim=8),
        ({"partial_rotary_factor": 1.0},),
        attention=("post_self_attn_layernorm",),
        mlp=("post_mlp_layernorm",),
    ),
    "exaone4": Kind(
        "Exaone4Config",
        common(sliding_window=WINDOW, sliding_window_pattern=2, layer_types=ALTERNATING),
        ({"sliding_window": 200},),
        **NORMS_AFTER,
    ),
    # Its experts' output has all rows in one line, which cannot be steered row by row: the blocks without experts have sites.
    "llama4": Kind(
        "Llama4TextConfig",
        _llama4(attention_chunk_size=WINDOW),
        ({"attention_chunk_size": 200}, {"num_experts_per_tok": 1}),
        mlp=("feed_forward",),
    ),
    # The temperature of its attention grows with the position, a real one's after 8,192 tokens; transformers counts padding along.
    "llama4_tempered": Kind(
        "Llama4TextConfig",
        _llama4(attention_chunk_size=200, floor_scale=4, attn_scale=0.5),
        ({"attn_temperature_tuning": False},),
        mlp=("feed_forward",),
    ),
    "qwen2_moe_windowed": Kind(
        "Qwen2MoeConfig",
        _experts(shared_expert_intermediate_size=WIDTH, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=BLOCKS),
        ({"use_sliding_window": False, **EVERYWHERE}, {"num_experts_per_tok": 1}),
    ),
    "deepseek_v3": Kind(
        "DeepseekV3Config",
        {
            **common(num_key_value_heads=HEADS),
            "moe_intermediate_size": WIDTH,
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 10,
            "num_mtp_layers": 0,
        },
        ({"topk_group": 2}, {"num_experts_per_tok": 1}, {"rope_interleave": False}),
    ),
    "qwen3_next": Kind(
        "Qwen3NextConfig",
        _experts(
            head_dim=8,
            layer_types=["linear_attention", "full_attention"] * (BLOCKS // 2),
            shared_expert_intermediate_size=WIDTH,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
        ),
        (_no_recurrence, _no_convolution, {"num_experts_per_tok": 1}),
        attention=("self_attn", "linear_attn"),
    ),
    "lfm2": Kind(
        "Lfm2Config",
        common(layer_types=["conv", "full_attention"] * (BLOCKS // 2), block_multiple_of=16),
        (_no_convolution,),
        attention=("self_attn", "conv"),
        mlp=("feed_forward",),
    ),
    "gptj": Kind(
        "GPTJConfig",
        {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": 256, "rotary_dim": 4, **UNTIED},
        ({"rotary_dim": 8},),
        blocks="transformer.h",
        attention=("attn",),
    ),
    # Its MLP adds the residual stream itself.
    "mpt": Kind(
        "MptConfig",
        {"d_model": WIDTH, "n_layers": BLOCKS, "n_heads": HEADS, "max_seq_len": 256, **UNTIED},
        blocks="transformer.blocks",
        attention=(),
        mlp=(),
    ),
}
_PLAIN_FAMILIES: dict[str, tuple[Plain, ...]] = {
    "gemma2": (EVERYWHERE,),
    "gemma3": (EVERYWHERE,),
    "mistral": ({"sliding_window": None},),
    "mixtral": ({"num_experts_per_tok": 1},),
}

ZOO = (*FAMILIES, *_ZOO)
"""Every architecture, by name."""
WITHOUT_INTERFACE = (
    "bloom",
    "falcon",
    "falcon_grouped",
    "mpt",
    *(("gptj",) if Version(transformers.__version__) < Version("5.24") else ()),
)
"""Those whose attention is not to be had from outside."""
WITH_STATES = ("qwen3_next", "lfm2")
"""Those that remember more than keys and values."""
FEATURES = tuple(
    (name, number) for name in ZOO for number, _ in enumerate(_ZOO[name].plain if name in _ZOO else _PLAIN_FAMILIES.get(name, ()))
)
"""An architecture, and the number of a thing that it is here for."""


def _random_rest(model: PreTrainedModel) -> None:
    """What decides nothing as long as it is near zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("sinks"):
                weight.copy_(1 + torch.randn(weight.shape, generator=generator))
            elif name.endswith("e_score_correction_bias"):
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))


def make(name: str, options: dict[str, Any] | None = None) -> PreTrainedModel:
    """A fresh random model of an architecture; with other options, the same weights."""
    kind, own = (_ZOO[name].config, _ZOO[name].options) if name in _ZOO else configuration(name)
    model = make_model(kind, own | (options or {}), seed=0)
    _random_rest(model)
    return model


@lru_cache
def zoo_bare(name: str) -> PreTrainedModel:
    """A random model of an architecture."""
    return bare_model(name, 0) if name in FAMILIES else make(name)


def without_feature(name: str, number: int) -> PreTrainedModel:
    """The same weights without one of the things that an architecture is here for."""
    plain = (_ZOO[name].plain if name in _ZOO else _PLAIN_FAMILIES[name])[number]
    if isinstance(plain, dict):
        return make(name, plain)
    model = make(name)
    plain(model)
    return model


@lru_cache
def zoo_model(name: str) -> LanguageModel:
    """A tiny LanguageModel of an architecture."""
    return tiny_model(name) if name in FAMILIES else wrap(f"tiny-{name}", zoo_bare(name), tokenizer_of())


@lru_cache
def zoo_places(name: str) -> dict[Place, nn.Module]:
    """The modules at which a model can be steered, as a reader of transformers' source would name them."""
    if name in FAMILIES:
        return {(site, layer): module for layer in range(BLOCKS) for site, module in true_parts(name, layer).items()}
    kind, model = _ZOO[name], zoo_bare(name)
    places: dict[Place, nn.Module] = {}
    for layer, block in enumerate(model.get_submodule(kind.blocks)):
        places["residual", layer] = block
        if name.startswith("llama4") and layer in model.config.moe_layers:
            continue
        for site, names in (("attention", kind.attention), ("mlp", kind.mlp)):
            parts = [part for part in names if hasattr(block, part)]
            if parts:
                places[site, layer] = block.get_submodule(parts[0])
    return places
