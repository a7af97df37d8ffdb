"""Tiny random models of many families, with a tokenizer made on the spot, so that no test needs a hub."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emosteer.model.language_model import LanguageModel, wrap

BLOCKS, WIDTH, HEADS, WINDOW = 4, 32, 4, 6
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
EOS = "</s>"
TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SENTENCES = [
    "The user asked a question and the assistant gave a kind reply.",
    "We are so happy that you came, and we will dance all night!",
    "I am sad, because the rain took the garden and nobody called.",
    "User: How are things?\nAssistant: Things are as they were.\nSystem: Be brief.",
    "A train leaves the station at nine and arrives before noon.",
]


@lru_cache
def tokenizer_of(chat: bool = True, pad: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few hundred tokens, which puts `<s>` before a text: any text becomes tokens, and back."""
    inner = Tokenizer(models.BPE(unk_token=SPECIAL[0]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(SENTENCES, trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))])
    if pad:
        inner.add_special_tokens(["<pad>"])  # the last id: the others are the same with and without it
    names = {"unk_token": SPECIAL[0], "bos_token": "<s>", "eos_token": EOS} | ({"pad_token": "<pad>"} if pad else {})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, additional_special_tokens=["<|user|>", "<|assistant|>"], clean_up_tokenization_spaces=False, **names
    )
    if chat:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


UNTIED = {"tie_word_embeddings": False}


def common(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        **UNTIED,
        **more,
    }


def without_groups(**more: Any) -> dict[str, Any]:
    """For families without grouped keys and values."""
    return {key: value for key, value in common(**more).items() if key != "num_key_value_heads"}


ALTERNATING = ["sliding_attention", "full_attention"] * (BLOCKS // 2)

# Family: configuration class, its options, and where transformers keeps the blocks, their attention and their MLP.
_FAMILIES: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    "llama": ("LlamaConfig", common(), "model.layers", "self_attn", "mlp"),
    "qwen3": ("Qwen3Config", common(head_dim=16), "model.layers", "self_attn", "mlp"),
    "gemma2": (
        "Gemma2Config",
        common(head_dim=8, sliding_window=WINDOW, layer_types=ALTERNATING, query_pre_attn_scalar=8),
        "model.layers",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    "gemma3": (
        "Gemma3TextConfig",
        common(head_dim=8, sliding_window=WINDOW, layer_types=ALTERNATING, query_pre_attn_scalar=8),
        "model.layers",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    "mistral": ("MistralConfig", common(sliding_window=WINDOW), "model.layers", "self_attn", "mlp"),
    "gpt2": (
        "GPT2Config",
        {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": 256, **UNTIED},
        "transformer.h",
        "attn",
        "mlp",
    ),
    "gpt_neox": ("GPTNeoXConfig", without_groups(use_parallel_residual=True), "gpt_neox.layers", "attention", "mlp"),
    "phi": ("PhiConfig", common(), "model.layers", "self_attn", "mlp"),
    "olmo2": ("Olmo2Config", common(), "model.layers", "post_attention_layernorm", "post_feedforward_layernorm"),
    "falcon": ("FalconConfig", without_groups(ffn_hidden_size=2 * WIDTH, bias=True), "transformer.h", "self_attention", "mlp"),
    "opt": (
        "OPTConfig",
        without_groups(ffn_dim=2 * WIDTH, word_embed_proj_dim=WIDTH, dropout=0.0),
        "model.decoder.layers",
        "",
        "",
    ),
    "mixtral": ("MixtralConfig", common(num_local_experts=4, num_experts_per_tok=2), "model.layers", "self_attn", "mlp"),
    "bloom": (
        "BloomConfig",
        {"hidden_size": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "tie_word_embeddings": False},
        "transformer.h",
        "",
        "",
    ),
}
FAMILIES = tuple(_FAMILIES)
WITH_SITES = tuple(family for family in FAMILIES if family not in ("bloom", "opt"))
"""Bloom adds the residual stream inside its sublayers, so that no module's output is what they add; OPT's MLP works on positions
of all rows in one line, which cannot be steered row by row."""


def random_weights(model: PreTrainedModel, seed: int) -> None:
    """Weights large enough that every token depends on those before it, and greedy text does not repeat one token."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            draw = torch.randn(weight.shape, generator=generator)
            if weight.dim() < 2:
                weight.add_(0.1 * draw)
            elif "emb" in name or "wte" in name:
                weight.copy_(draw)
            elif "wpe" in name:  # otherwise the position alone decides the token
                weight.copy_(0.3 * draw)
            else:
                weight.copy_(1.5 * draw / min(weight.shape[-2:]) ** 0.5)


def make_model(kind: str, options: dict[str, Any], seed: int) -> PreTrainedModel:
    """A random model of a configuration class: float32, evaluation mode."""
    tokenizer = tokenizer_of()
    config = getattr(transformers, kind)(
        vocab_size=len(tokenizer) + 1,  # room for a pad token
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        **options,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    random_weights(model, seed)
    return model.eval().requires_grad_(False)


@lru_cache
def bare_model(family: str, seed: int) -> PreTrainedModel:
    """A random model of a family: float32, 4 blocks, evaluation mode."""
    return make_model(*configuration(family), seed)


def configuration(family: str) -> tuple[str, dict[str, Any]]:
    """A family's configuration class and its options."""
    kind, options, *_ = _FAMILIES[family]
    return kind, options


@lru_cache
def tiny_model(family: str = "llama", seed: int = 0, chat: bool = True, pad: bool = False) -> LanguageModel:
    """A tiny LanguageModel of a family."""
    return wrap(f"tiny-{family}", bare_model(family, seed), tokenizer_of(chat, pad))


def true_parts(family: str, layer: int) -> dict[str, torch.nn.Module]:
    """The modules of a block that a reader of transformers' source would name: residual, attention and mlp."""
    _, _, blocks, attention, mlp = _FAMILIES[family]
    block = bare_model(family, 0).get_submodule(blocks)[layer]
    return {"residual": block} | ({"attention": block.get_submodule(attention), "mlp": block.get_submodule(mlp)} if attention else {})


def true_projection(family: str, layer: int) -> torch.nn.Module:
    """The module that reads all heads of a block, by transformers' source."""
    names = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense", "phi": "self_attn.dense", "falcon": "self_attention.dense"}
    block = bare_model(family, 0).get_submodule(_FAMILIES[family][2])[layer]
    return block.get_submodule(names.get(family, "self_attn.o_proj"))


def random_tokens(*lengths: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Rows of random token ids of the given lengths, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(int(t) for t in torch.randint(len(SPECIAL), len(tokenizer_of()), (n,), generator=generator)) for n in lengths]


def random_vector(seed: int = 0, length: float = 1.0, width: int = WIDTH) -> torch.Tensor:
    """A random vector of a given length."""
    vector = torch.randn(width, generator=torch.Generator().manual_seed(1000 + seed))
    return length * vector / vector.norm()


Change = Callable[[torch.Tensor], torch.Tensor]


def hook_output(module: torch.nn.Module, change: Change) -> Any:
    """A forward hook written apart from emosteer's: puts `change(hidden states)` in place of a module's output."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return module.register_forward_hook(hook)
