from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from accelerate import dispatch_model
from tiny_models import BLOCKS, WIDTH, bare_model, random_tokens, tiny_model, tokenizer_of

from emosteer.config import ModelConfig
from emosteer.engine import Engine, Request
from emosteer.engine.request import Decoding, RowSeed
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel, choose_device, load, wrap
from emosteer.model.source import find
from emosteer.steering import Push, Steering


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny model in a directory, as save_pretrained leaves it."""
    bare_model("llama", 0).save_pretrained(tmp_path)
    tokenizer_of().save_pretrained(tmp_path)
    return tmp_path


def test_what_is_loaded_is_what_was_saved(saved: Path) -> None:
    model = load(ModelConfig(name="mine", path=str(saved), device="cpu"))
    ids = torch.tensor(random_tokens(6))
    assert (model.name, model.n_blocks, model.width, model.dtype, model.device.type) == ("mine", BLOCKS, WIDTH, torch.float32, "cpu")
    assert not model.model.training
    assert not any(p.requires_grad for p in model.model.parameters())
    assert torch.equal(model.model(ids).logits, bare_model("llama", 0)(ids).logits)
    assert model.dialogue.has_template


def test_a_model_spread_over_all_devices_computes_the_same(saved: Path) -> None:
    # Without GPUs all blocks lie on the CPU; what places them is the same.
    model = load(ModelConfig(name="mine", path=str(saved), device="all"))
    ids = torch.tensor(random_tokens(6))
    assert torch.equal(model.model(ids.to(model.device)).logits.cpu(), bare_model("llama", 0)(ids).logits)


def test_blocks_on_another_place_are_steered_alike(saved: Path) -> None:
    """The last block's weights stay on the disk until it runs: its hooks see states that were moved, as between GPUs."""
    whole = load(ModelConfig(name="mine", path=str(saved), device="cpu"))
    split = load(ModelConfig(name="mine", path=str(saved), device="cpu"))
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{n}": "disk" if n == BLOCKS - 1 else "cpu" for n in range(BLOCKS)}
    dispatch_model(split.model, places, offload_dir=str(saved / "offload"))
    steering = Steering((Push("residual", BLOCKS - 1, torch.ones(WIDTH)),))
    rows = [tuple(row) for row in random_tokens(3)]
    requests = [Request(row, RowSeed(0, str(i), 0), steering, Decoding(4 + i)) for i, row in enumerate(rows)]
    assert dict(Engine(split).generate(requests)) == dict(Engine(whole).generate(requests))


def test_dtype_and_attention_come_from_the_config(saved: Path) -> None:
    model = load(ModelConfig(name="mine", path=str(saved), device="cpu", dtype="bfloat16", attn_implementation="eager"))
    assert model.dtype == torch.bfloat16
    assert model.model.config._attn_implementation == "eager"
    assert model.anatomy.module("mlp", 0) is model.model.model.layers[0].mlp  # found in bfloat16 too


def test_a_directory_that_transformers_cannot_read(saved: Path) -> None:
    (saved / "config.json").write_text('{"model_type": "no_such_model", "num_hidden_layers": 4}')
    with pytest.raises(EmosteerError, match="transformers cannot load it"):
        load(ModelConfig(name="mine", path=str(saved), device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_a_gpu_nothing_is_quantised_or_loaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    for how in ("int8", "nf4"):
        with pytest.raises(EmosteerError, match=f"model.quantization={how} needs a CUDA GPU, and this machine gives"):
            load(ModelConfig(name="mine", path=str(saved), quantization=how))


def test_without_bitsandbytes_nothing_is_loaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    monkeypatch.setattr("emosteer.model.language_model.choose_device", lambda _request: torch.device("cuda", 1))
    monkeypatch.setattr("emosteer.model.language_model.find_spec", lambda _name: None)
    with pytest.raises(EmosteerError, match=r"model.quantization=int8 needs the package bitsandbytes: pip install"):
        load(ModelConfig(name="mine", path=str(saved), quantization="int8"))


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", {"": 1}), ("all", "auto")])
@pytest.mark.parametrize("how", ["int8", "nf4"])
def test_how_transformers_is_asked_to_quantise(
    how: str, device: str, expected: object, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is quantised is moved nowhere. Nothing is quantised here: there is no GPU."""
    asked: dict[str, Any] = {}
    plain = load(ModelConfig(name="mine", path=str(saved), device="cpu")).model

    def from_pretrained(_location: str, **options: Any) -> Any:
        asked.update(options)
        plain.hf_quantizer = "bitsandbytes"
        monkeypatch.setattr(plain, "to", None)
        return plain

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    monkeypatch.setattr("emosteer.model.language_model.choose_device", lambda _request: torch.device("cuda", 1))
    monkeypatch.setattr("emosteer.model.language_model.find_spec", lambda name: name == "bitsandbytes")
    config = ModelConfig(name="mine", path=str(saved), device=device, quantization=how, dtype="bfloat16")
    assert load(config).n_blocks == BLOCKS
    found = asked["quantization_config"]
    assert (found.load_in_8bit, found.load_in_4bit) == (how == "int8", how == "nf4")
    if how == "nf4":
        assert (found.bnb_4bit_quant_type, found.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    assert (asked["device_map"], asked["dtype"]) == (expected, torch.bfloat16)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "tpu"])
def test_a_device_that_is_not_there(device: str, saved: Path) -> None:
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(EmosteerError, match=f"model.device={device}"):
        load(ModelConfig(name="mine", path=str(saved), device=device))


def test_auto_is_a_device_that_is_there() -> None:
    assert torch.zeros(1, device=choose_device("auto")).item() == 0
    assert choose_device("cpu") == torch.device("cpu")


def test_pad_token() -> None:
    without, with_pad = tiny_model(pad=False), tiny_model(pad=True)
    assert without.dialogue.tokenizer.pad_token_id is None
    assert without.pad_token_id == without.dialogue.tokenizer.eos_token_id
    assert with_pad.pad_token_id == with_pad.dialogue.tokenizer.convert_tokens_to_ids("<pad>")


def test_all_tokens_that_end_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = bare_model("llama", 0), tokenizer_of()
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert wrap("m", model, tokenizer).stop_tokens == {tokenizer.eos_token_id}
    monkeypatch.setattr(model.generation_config, "eos_token_id", [user, 17])
    assert wrap("m", model, tokenizer).stop_tokens == {user, 17, tokenizer.eos_token_id}
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    assert wrap("m", model, tokenizer).stop_tokens == {tokenizer.eos_token_id}


@pytest.mark.real_model
def test_the_real_model(smollm2: LanguageModel, smollm2_config: ModelConfig) -> None:
    assert (smollm2.name, smollm2.n_blocks, smollm2.width, smollm2.dtype) == (smollm2_config.name, 30, 576, torch.float32)
    decode = smollm2.dialogue.tokenizer.decode
    assert "<|im_end|>" in {decode([token]) for token in smollm2.stop_tokens}


@pytest.mark.real_model
def test_the_converted_weights_are_the_files(smollm2: LanguageModel, smollm2_config: ModelConfig) -> None:
    source = find(smollm2_config)
    tensors = {t.name: t for t in gguf.GGUFReader(Path(source.location) / str(source.gguf_file)).tensors}
    block = smollm2.model.model.layers[17]
    for name, weight in {
        "token_embd.weight": smollm2.model.get_input_embeddings().weight,
        "blk.17.ffn_down.weight": block.mlp.down_proj.weight,
        "blk.17.attn_v.weight": block.self_attn.v_proj.weight,
        "blk.17.ffn_norm.weight": block.post_attention_layernorm.weight,
    }.items():
        stored = torch.from_numpy(gguf.dequantize(tensors[name].data, tensors[name].tensor_type).copy())
        assert torch.equal(weight, stored), name
