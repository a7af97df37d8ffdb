"""Heads are found as transformers' source has them, or refused with the reason."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import BLOCKS, HEADS, WITH_SITES, random_tokens, tiny_model, true_projection

from emosteer.errors import EmosteerError
from emosteer.model.anatomy import HEAD
from emosteer.model.capture import capture
from emosteer.model.heads import parted, with_heads


@pytest.mark.parametrize("family", WITH_SITES)
def test_the_output_projection_is_found(family: str) -> None:
    model = tiny_model(family)
    found = with_heads(model)
    assert found.anatomy.n_heads == HEADS
    assert list(found.anatomy.projections) == [true_projection(family, layer) for layer in range(BLOCKS)]
    assert with_heads(found) is found
    assert model.anatomy.projections == ()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt_neox", "falcon"])
def test_a_part_is_one_heads_output(family: str) -> None:
    """At the first position a head attends to nothing but that position, so that its output is the value there of its group."""
    model = with_heads(tiny_model(family))
    with capture(model.anatomy, (HEAD,)) as seen, torch.no_grad():
        model.model(torch.tensor(random_tokens(5)), use_cache=False)
    groups = getattr(model.model.config, "num_key_value_heads", HEADS)
    for layer in range(BLOCKS):
        first = parted(seen[HEAD, layer], HEADS)[0, 0].view(groups, HEADS // groups, -1)
        torch.testing.assert_close(first, first[:, :1].expand_as(first))
        later = parted(seen[HEAD, layer], HEADS)[0, -1]
        assert len({float(values.sum()) for values in later}) == HEADS


def with_config(**values: Any) -> Any:
    """A tiny model that says other things of itself."""
    model = tiny_model("llama")

    class Speaking:
        def __getattr__(self, name: str) -> Any:
            return getattr(model.model, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return model.model(*args, **kwargs)

    speaking = Speaking()
    own = SimpleNamespace(**values)
    speaking.config = SimpleNamespace(get_text_config=lambda: own)  # type: ignore[attr-defined]
    return replace(model, model=speaking)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "tiny-llama: its configuration does not say how many they are"),
        ({"num_attention_heads": 5}, r"self_attn\.o_proj reads 32 numbers, which are no 5 equal parts, in block 0"),
        (
            {"num_attention_heads": 4, "layer_types": ["full_attention", "linear_attention"]},
            r"self_attn\.o_proj \(linear_attention\) stands where attention is expected in block 1",
        ),
        ({"num_attention_heads": 4, "layer_types": ["conv"]}, r"\(conv\) stands where attention is expected in block 0"),
    ],
)
def test_refused_by_what_a_model_says_of_itself(values: dict[str, Any], message: str) -> None:
    with pytest.raises(EmosteerError, match=message):
        with_heads(with_config(**values))


@pytest.mark.parametrize("family", ["bloom", "opt"])
def test_refused_where_no_module_adds_the_attention(family: str) -> None:
    with pytest.raises(EmosteerError, match=r"heads of tiny-.*: no part of its blocks is known to add the attention"):
        with_heads(tiny_model(family))
