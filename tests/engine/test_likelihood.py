from __future__ import annotations

import math

import pytest
import torch
from tiny_models import FAMILIES, random_tokens, tiny_model

from emosteer.engine import Decoding, Engine, Request, RowSeed, likelihood
from emosteer.engine.likelihood import Text, mean_log_probabilities
from emosteer.model.language_model import LanguageModel


def texts_of(seed: int = 0) -> list[Text]:
    """Prompts and replies of many lengths, on both sides of the sliding window."""
    prompts, replies = random_tokens(1, 5, 12, 7, 3, seed=seed), random_tokens(9, 1, 4, 11, 2, seed=seed + 1)
    return list(zip(prompts, replies, strict=True))


def plainly(model: LanguageModel, text: Text) -> float:
    """Token by token, from one forward over the whole text."""
    prompt, reply = text
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([[*prompt, *reply]]), use_cache=False).logits[0].double()
    chosen = [float(logits[len(prompt) - 1 + i].log_softmax(-1)[token]) for i, token in enumerate(reply)]
    return sum(chosen) / len(chosen)


PATHS = ("shared", "stock", "reread")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_forward_per_text(family: str, path: str) -> None:
    model = tiny_model(family)
    if path == "shared" and family in ("falcon", "bloom"):
        path = "stock"  # which bear no other
    values = mean_log_probabilities(Engine(model, path=path), texts_of())
    assert values == pytest.approx([plainly(model, text) for text in texts_of()], abs=2e-5)


@pytest.mark.parametrize("path", PATHS)
def test_empty_replies_and_equal_texts(path: str) -> None:
    texts = texts_of()
    asked = [texts[0], (texts[1][0], ()), texts[3], texts[0], texts[3]]
    values = mean_log_probabilities(Engine(tiny_model(), path=path), asked)
    assert math.isnan(values[1])
    assert values[0] == values[3]
    assert values[2] == values[4]
    assert values[0] != values[2]
    assert mean_log_probabilities(Engine(tiny_model(), path=path), []) == []
    assert math.isnan(mean_log_probabilities(Engine(tiny_model(), path=path), asked[1:2])[0])


def test_batches_limited_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = tiny_model("gemma2"), texts_of() + texts_of(seed=5)
    expected = [plainly(model, text) for text in texts]
    for most_rows in (0, 12, 25):  # tokens; a text longer than that is a batch of its own
        monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", most_rows)
        assert mean_log_probabilities(Engine(model), texts) == pytest.approx(expected, abs=2e-5)


def test_a_greedy_reply_is_probable() -> None:
    """A reply that the engine made under the same prefix, against another of the same length."""
    model = tiny_model()
    engine = Engine(model)
    (prompt,) = random_tokens(6)
    ((_, reply),) = engine.generate([Request(prompt, RowSeed(0, "a", 0), None, Decoding(max_new_tokens=8))])
    own, other = mean_log_probabilities(engine, [(prompt, reply.tokens), (prompt, random_tokens(8, seed=9)[0])])
    assert own == pytest.approx(plainly(model, (prompt, reply.tokens)), abs=2e-5)
    assert own > other


@pytest.mark.real_model
def test_the_real_model(smollm2: LanguageModel) -> None:
    prompts = [
        smollm2.dialogue.prompt([{"role": "user", "content": text}]) for text in ("How was it?", "What a long day we had today.")
    ]
    replies = [tuple(smollm2.dialogue.tokenizer(text).input_ids) for text in ("It was good.", "Rest, then, and sleep well tonight!")]
    texts = list(zip(prompts, replies, strict=True))
    values = mean_log_probabilities(Engine(smollm2), texts)
    assert values == pytest.approx([plainly(smollm2, text) for text in texts], abs=1e-4)
