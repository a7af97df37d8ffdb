from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import BLOCKS, FAMILIES, WITH_SITES, bare_model, random_tokens, tiny_model, tokenizer_of, true_parts
from torch import Tensor, nn

from emosteer.config import ModelConfig
from emosteer.errors import EmosteerError
from emosteer.model.anatomy import dissect, module_tree
from emosteer.model.capture import capture
from emosteer.model.language_model import LanguageModel, wrap

SITES = ("residual", "attention", "mlp")
PROBE = torch.tensor(random_tokens(5))


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_found(family: str) -> None:
    anatomy = tiny_model(family).anatomy
    assert anatomy.n_blocks == BLOCKS
    for layer in range(BLOCKS):
        assert anatomy.module("residual", layer) is true_parts(family, layer)["residual"]


@pytest.mark.parametrize("family", WITH_SITES)
def test_attention_and_mlp_are_found(family: str) -> None:
    anatomy = tiny_model(family).anatomy
    for layer in range(BLOCKS):
        for site in ("attention", "mlp"):
            assert anatomy.module(site, layer) is true_parts(family, layer)[site]


def ran_once(model: LanguageModel, ids: Tensor) -> list[dict[str, Tensor]]:
    """Copies of what each block read and wrote, and of what its attention and MLP wrote, in one forward."""
    notes: list[dict[str, Tensor]] = [{} for _ in range(model.n_blocks)]
    handles = []

    def keep(layer: int, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            assert name not in notes[layer], f"{name} of block {layer} runs twice in a forward"
            notes[layer][name] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    def keep_input(layer: int) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            notes[layer]["input"] = (args[0] if args else kwargs["hidden_states"]).clone()

        return hook

    places = [(layer, site, model.anatomy.module(site, layer)) for layer in range(model.n_blocks) for site in SITES]
    for layer, block in enumerate(model.anatomy.blocks):
        handles.append(block.register_forward_pre_hook(keep_input(layer), with_kwargs=True))
    handles += [module.register_forward_hook(keep(layer, site)) for layer, site, module in places]
    try:
        with torch.no_grad():
            model.model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return notes


def assert_parts_add_up(model: LanguageModel, ids: Tensor) -> None:
    for note in ran_once(model, ids):
        parts = note["attention"].reshape(note["input"].shape) + note["mlp"].reshape(note["input"].shape)
        torch.testing.assert_close(
            note["input"] + parts, note["residual"], rtol=1e-4, atol=1e-4 * float(note["residual"].abs().max())
        )


@pytest.mark.parametrize("family", WITH_SITES)
def test_input_and_sublayers_add_up_to_the_block(family: str) -> None:
    # Other tokens than those that the parts were found with.
    assert_parts_add_up(tiny_model(family), torch.tensor(random_tokens(11, seed=3)))


@pytest.mark.parametrize("family", WITH_SITES)
def test_capture_reads_what_the_sublayers_wrote(family: str) -> None:
    model, ids = tiny_model(family), torch.tensor(random_tokens(7, seed=4))
    notes = ran_once(model, ids)
    with torch.no_grad(), capture(model.anatomy, SITES) as seen:
        model.model(input_ids=ids, use_cache=False)
    assert len(seen) == 3 * BLOCKS
    for (site, layer), states in seen.items():
        assert torch.equal(states, notes[layer][site])


@pytest.mark.real_model
def test_real_model_adds_up(smollm2: LanguageModel) -> None:
    assert smollm2.n_blocks == 30
    ids = torch.tensor([smollm2.dialogue.prompt([{"role": "user", "content": "What makes a good morning?"}])])
    assert_parts_add_up(smollm2, ids)
    for layer, block in enumerate(smollm2.model.model.layers):
        assert smollm2.anatomy.module("attention", layer) is block.self_attn
        assert smollm2.anatomy.module("mlp", layer) is block.mlp


@pytest.mark.parametrize("site", ["attention", "mlp"])
def test_a_site_that_is_not_there_names_the_key(site: str) -> None:
    with pytest.raises(EmosteerError, match=rf"site={site}.*model\.{site}.*self_attention.*mlp"):
        tiny_model("bloom").anatomy.module(site, 0)


def test_config_names_the_parts() -> None:
    config = ModelConfig(blocks="transformer.h", attention="self_attention.dense", mlp="mlp.dense_4h_to_h")
    anatomy = wrap("bloom", bare_model("bloom", 0), tokenizer_of(), config).anatomy
    for layer, block in enumerate(bare_model("bloom", 0).transformer.h):
        assert anatomy.module("attention", layer) is block.self_attention.dense
        assert anatomy.module("mlp", layer) is block.mlp.dense_4h_to_h


def test_config_can_name_one_part_and_leave_the_other_to_be_found() -> None:
    anatomy = dissect(bare_model("llama", 0), ModelConfig(mlp="mlp.down_proj"), PROBE)
    block = bare_model("llama", 0).model.layers[2]
    assert anatomy.module("mlp", 2) is block.mlp.down_proj
    assert anatomy.module("attention", 2) is block.self_attn


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (ModelConfig(blocks="model.blocks"), "'model.blocks'"),
        (ModelConfig(blocks="model"), "model.blocks=model is no list"),
        (ModelConfig(attention="attn", mlp="mlp"), "'attn'"),
    ],
)
def test_a_wrong_path_shows_the_modules(config: ModelConfig, told: str) -> None:
    with pytest.raises(EmosteerError) as caught:
        dissect(bare_model("llama", 0), config, PROBE)
    message = str(caught.value)
    assert told in message
    assert "self_attn: LlamaAttention" in message if config.attention else "model.layers.0: LlamaDecoderLayer" in message


class NoList(nn.Module):
    """A decoder whose blocks stand in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)


def test_no_blocks_shows_the_modules_and_the_key() -> None:
    with pytest.raises(EmosteerError, match=r"set model\.blocks") as caught:
        dissect(NoList(), ModelConfig(), PROBE)
    assert "first: Linear" in str(caught.value)


class TwoLists(nn.Module):
    """A decoder beside a smaller list with more items."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))
        self.decoder = bare_model("mixtral", 0)

    def forward(self, **inputs: Any) -> Any:
        return self.decoder(**inputs)


def test_the_list_with_most_weights_holds_the_blocks() -> None:
    model = TwoLists()
    assert dissect(model, ModelConfig(), PROBE).blocks == tuple(model.decoder.model.layers)


def test_module_tree_shows_one_item_of_a_list() -> None:
    tree = module_tree(bare_model("llama", 0)).splitlines()
    assert "    model.layers.0: LlamaDecoderLayer" in tree
    assert not any("layers.1" in line for line in tree)
    assert not any("layers.0.mlp" in line for line in tree)  # deeper than asked
    assert any("layers.0.mlp" in line for line in module_tree(bare_model("llama", 0), depth=4).splitlines())
