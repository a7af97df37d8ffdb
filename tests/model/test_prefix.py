"""Reading in parts, against rows that were read whole and alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from tiny_models import BLOCKS, FAMILIES, bare_model, random_tokens, random_weights, tiny_model, tokenizer_of, true_parts
from torch import Tensor

from emosteer.model.language_model import LanguageModel, wrap
from emosteer.model.padding import pad_left, pad_right
from emosteer.model.past import past_name
from emosteer.model.prefix import Prefix, agrees, common_beginning, inputs_after, read_prefix

HEAD = random_tokens(7, seed=70)[0]  # longer than the sliding window


@contextmanager
def last_block(family: str) -> Iterator[list[Tensor]]:
    """What the last block puts out, forward by forward."""
    seen: list[Tensor] = []
    module = true_parts(family, BLOCKS - 1)["residual"]
    handle = module.register_forward_hook(lambda _m, _a, output: seen.append(output[0] if isinstance(output, tuple) else output))
    try:
        yield seen
    finally:
        handle.remove()


def alone(family: str, row: tuple[int, ...]) -> Tensor:
    """States [position, width] after the last block."""
    with last_block(family) as seen, torch.no_grad():
        tiny_model(family).model(input_ids=torch.tensor([row]), use_cache=False)
    return seen[0].reshape(len(row), -1)


def in_parts(family: str, prefix: Prefix, ids: Tensor, mask: Tensor) -> Tensor:
    """States [row, position, width] of what follows a prefix."""
    model = tiny_model(family)
    with last_block(family) as seen, torch.no_grad():
        logits = model.model(**inputs_after(model, prefix, ids, mask)).logits
    return seen[0].reshape(*logits.shape[:2], -1)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_beginning_serves_rows_that_are_padded_on_the_right(family: str) -> None:
    model, ends = tiny_model(family), random_tokens(9, 1, 4, seed=71)
    prefix = read_prefix(model, *pad_right([HEAD], 0))
    assert prefix.length == len(HEAD)
    for _ in range(2):  # nothing is added to it
        states = in_parts(family, prefix, *pad_right(ends, model.pad_token_id))
        for row, end in zip(states, ends, strict=True):
            assert_same(row[: len(end)], alone(family, HEAD + end)[len(HEAD) :])


@pytest.mark.parametrize("family", FAMILIES)
def test_own_beginnings_of_rows_that_are_padded_on_the_left(family: str) -> None:
    """The last three positions of rows of 12, 3, 5 and 2 tokens: one of them has no beginning, and one not even three."""
    model, rows = tiny_model(family), random_tokens(12, 3, 5, 2, seed=72)
    batch = pad_left(rows, model.pad_token_id)
    prefix = read_prefix(model, batch.input_ids[:, :-3], batch.attention_mask[:, :-3])
    states = in_parts(family, prefix, batch.input_ids[:, -3:], batch.attention_mask[:, -3:])
    for row, tokens in zip(states, rows, strict=True):
        n = min(3, len(tokens))
        assert_same(row[-n:], alone(family, tokens)[-n:])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_beginning_after_a_beginning(family: str) -> None:
    """Of one head each row takes what it needs: 7, 4 and 0 tokens; then 2 tokens of its own, and then the rest."""
    model, takes = tiny_model(family), [7, 4, 0]
    rows = [HEAD[:n] + own for n, own in zip(takes, random_tokens(6, 6, 6, seed=73), strict=True)]
    known = read_prefix(model, *pad_right([HEAD], 0)).first([7, 4, -2])
    assert known.mask.tolist() == [[1] * 7, [0] * 3 + [1] * 4, [0] * 7]
    middle, rest = torch.tensor([row[-6:-4] for row in rows]), torch.tensor([row[-4:] for row in rows])
    prefix = read_prefix(model, middle, torch.ones_like(middle), known)
    assert prefix.length == 9
    for row, tokens in zip(in_parts(family, prefix, rest, torch.ones_like(rest)), rows, strict=True):
        assert_same(row, alone(family, tokens)[-4:])


@pytest.mark.parametrize("family", FAMILIES)
def test_these_families_can_be_read_in_parts(family: str) -> None:
    for length in (1, 17, 29):
        assert agrees(tiny_model(family), random_tokens(30)[0], length)


def test_nothing_to_part() -> None:
    assert not agrees(tiny_model("llama"), HEAD, 0)
    assert not agrees(tiny_model("llama"), HEAD, len(HEAD))


HYBRIDS: dict[str, dict[str, Any]] = {
    "MambaConfig": {"state_size": 8},
    "Lfm2Config": {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "full_attn_idxs": [1, 3]},
}


@lru_cache
def hybrid(kind: str) -> LanguageModel:
    """A tiny decoder that remembers by recurrent or convolution states."""
    tokenizer = tokenizer_of()
    config = getattr(transformers, kind)(
        vocab_size=len(tokenizer) + 1, hidden_size=32, num_hidden_layers=BLOCKS, pad_token_id=None, **HYBRIDS[kind]
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    random_weights(model, 0)
    return wrap(kind, model.eval().requires_grad_(False), tokenizer)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_model_with_another_memory_is_read_whole(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(TypeError, match="LinearAttention"):
        read_prefix(hybrid(kind), *pad_right([HEAD], 0))
    assert not agrees(hybrid(kind), random_tokens(30)[0], 17)
    assert f"{kind} reads rows whole" in caplog.text


@contextmanager
def forgetful() -> Iterator[LanguageModel]:
    """A model that takes a past and does not look at it, without a word."""
    model = tiny_model("llama")

    def forget(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        past = kwargs.get(past_name(model.model))
        if past is not None and past.get_seq_length():
            kwargs = {key: kwargs[key] for key in ("input_ids", "position_ids")} | {"use_cache": False}
        return args, kwargs

    handle = model.model.register_forward_pre_hook(forget, with_kwargs=True)
    try:
        yield model
    finally:
        handle.remove()


def test_a_model_that_forgets_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with forgetful() as model:
        assert not agrees(model, random_tokens(30)[0], 17)
    assert "in two parts its states differ" in caplog.text
    assert agrees(model, random_tokens(30)[0], 17)


def test_lack_of_memory_is_not_taken_for_a_model_that_cannot() -> None:
    model = tiny_model("llama")
    blocks = model.anatomy.blocks

    def fails(_module: Any, _args: Any, kwargs: Any) -> None:
        if kwargs.get(past_name(blocks[0])) is not None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = blocks[0].register_forward_pre_hook(fails, with_kwargs=True)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            agrees(model, random_tokens(30)[0], 17)
    finally:
        handle.remove()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_too(dtype: torch.dtype) -> None:
    import copy

    half = wrap("half", copy.deepcopy(bare_model("llama", 0)).to(dtype), tokenizer_of())
    assert agrees(replace(half, name="half"), random_tokens(30)[0], 17)


def test_common_beginning() -> None:
    assert common_beginning([(1, 2, 3), (1, 2, 4), (1, 2)]) == 2
    assert common_beginning([(1, 2), (1, 2)]) == 2
    assert common_beginning([(1, 2), (3, 2)]) == 0
    assert common_beginning([(), (3, 2)]) == 0
    assert common_beginning([(5, 6, 7)]) == 3
    assert common_beginning([]) == 0
