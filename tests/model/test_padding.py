from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, bare_model, random_tokens, tiny_model
from torch import Tensor

from emosteer.model.language_model import LanguageModel
from emosteer.model.padding import pad_left


def alone(model: LanguageModel, row: tuple[int, ...]) -> Tensor:
    """Logits [position, vocabulary] of a row by a forward that is told nothing of padding."""
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([row]), use_cache=False).logits[0]


@pytest.mark.parametrize("pad", [2, 77])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_logits(family: str, pad: int) -> None:
    model, rows = tiny_model(family), random_tokens(1, 4, 9, 15)  # shorter and longer than the sliding window
    with torch.no_grad():
        together = model.model(**pad_left(rows, pad).inputs(), use_cache=False).logits
    for row, logits in zip(rows, together, strict=True):
        torch.testing.assert_close(logits[-len(row) :], alone(model, row), rtol=1e-4, atol=1e-4)


@pytest.mark.real_model
def test_padding_changes_no_logits_of_the_real_model(smollm2: LanguageModel) -> None:
    texts = ("Hello.", "What would make this morning a good one for you?")
    rows = [smollm2.dialogue.prompt([{"role": "user", "content": text}]) for text in texts]
    with torch.no_grad():
        together = smollm2.model(**pad_left(rows, smollm2.pad_token_id).inputs(), use_cache=False).logits
    for row, logits in zip(rows, together, strict=True):
        torch.testing.assert_close(logits[-len(row) :], alone(smollm2, row), rtol=1e-3, atol=2e-3)


def test_shapes_by_hand() -> None:
    batch = pad_left([(5, 6, 7), (8,)], 9)
    assert batch.input_ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.lengths.tolist() == [3, 1]
    assert set(batch.inputs()) == {"input_ids", "attention_mask", "position_ids"}


def test_a_pad_token_in_the_text_is_text() -> None:
    """Models without a pad token are padded with the end-of-sequence token, which dialogues contain."""
    model = tiny_model("llama")
    end = bare_model("llama", 0).config.eos_token_id
    assert model.pad_token_id == end
    rows = [(7, end, 11), *random_tokens(8)]
    with torch.no_grad():
        logits = model.model(**pad_left(rows, end).inputs(), use_cache=False).logits[0, -3:]
    torch.testing.assert_close(logits, alone(model, rows[0]), rtol=1e-4, atol=1e-4)
