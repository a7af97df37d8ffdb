"""The divergence of steered from unsteered models, against one plain forward for each token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from reference import Reference
from scipy.stats import entropy
from tiny_models import FAMILIES, random_tokens, random_vector, tiny_model
from zoo import zoo_model, zoo_places

from emosteer.engine import Engine, Origin, Request, RowSeed, likelihood
from emosteer.engine.likelihood import Text, mean_divergences, mean_log_probabilities
from emosteer.model.language_model import LanguageModel
from emosteer.steering import Push, Steering

SEED = RowSeed(0, "a", 0)


def push(layer: int, site: str = "residual", seed: int = 0, length: float = 6.0, clears: bool = False) -> Push:
    return Push(site, layer, random_vector(seed, length), random_vector(seed, 1.0) if clears else None)


def asked() -> list[tuple[Text, Origin]]:
    """Prompts and replies of many lengths, each steered in another way: one by nothing, one by an instruction, one twice."""
    prompts, replies = random_tokens(1, 5, 12, 7, 3, 9, 4, seed=1), random_tokens(9, 1, 4, 11, 2, 6, 5, seed=2)
    texts = list(zip(prompts, replies, strict=True))
    twice = Steering((push(1, seed=1), push(3, seed=2)), "all", decay=0.5)
    return [
        (texts[0], Origin(prompts[0], Steering((push(0),)))),
        (texts[1], Origin(prompts[1], Steering((push(2, length=-3.0),), "prompt"))),
        (texts[2], Origin(prompts[2], twice)),
        (texts[3], Origin(prompts[3], Steering((push(1, clears=True),), "generated", 0.7))),
        (texts[4], Origin(prompts[4])),
        (texts[5], Origin((*random_tokens(6, seed=3)[0], *prompts[5]))),
        (texts[6], Origin(prompts[6], Steering((push(0, length=15.0),), "all"))),
        (texts[0], Origin(prompts[0], twice)),
    ]


def plainly(reference: Reference, text: Text, origin: Origin) -> float:
    """By scipy, from a plain forward over the whole text for each token and model."""
    prompt, reply = text
    steered, unsteered = Request(origin.prompt, SEED, origin.steering), Request(prompt, SEED)
    each = []
    for step in range(len(reply)):
        logits = [reference.logits(request, reply[:step]).astype(np.float64) for request in (steered, unsteered)]
        each.append(entropy(*(np.exp(one - one.max()) for one in logits)))  # which divides by the sums
    return float(np.mean(each))


def divergences(engine: Engine, items: Sequence[tuple[Text, Origin]]) -> list[float]:
    return mean_divergences(engine, [text for text, _ in items], [origin for _, origin in items])


@pytest.mark.parametrize("path", ["shared", "stock", "reread"])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_forward_per_token(family: str, path: str) -> None:
    if path == "shared" and family in ("falcon", "bloom"):
        path = "stock"  # which bear no other
    model = zoo_model(family)
    reference = Reference(model, zoo_places(family))
    expected = [plainly(reference, *one) for one in asked()]
    found = divergences(Engine(model, path=path), asked())
    assert found == pytest.approx(expected, rel=1e-3, abs=2e-6)
    assert found[4] == 0
    assert min(found[:4] + found[5:]) > 1e-3, "so that something is compared"


def test_the_unsteered_pass_serves_the_probability_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    texts = [text for text, _ in asked()]
    alone = mean_log_probabilities(Engine(model), texts)
    engine = Engine(model)
    divergences(engine, asked())
    read: list[Text] = []
    ours = likelihood._likelihoods
    monkeypatch.setattr(likelihood, "_likelihoods", lambda engine, own, shares: read.extend(own) or ours(engine, own, shares))
    assert mean_log_probabilities(engine, texts) == pytest.approx(alone, abs=2e-5)
    assert read == [texts[4]], "only the one that was not steered, and so not read"


def test_empty_replies_and_equal_ones() -> None:
    items = asked()
    (prompt, _), origin = items[0]
    found = divergences(Engine(tiny_model()), [items[1], ((prompt, ()), origin), items[2], items[1], ((prompt, ()), Origin(prompt))])
    assert math.isnan(found[1])
    assert math.isnan(found[4])
    assert found[0] == found[3] != found[2]
    assert divergences(Engine(tiny_model()), []) == []


def test_batches_limited_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = tiny_model("gemma2"), asked()
    expected = divergences(Engine(model), items)
    for most in (0, 12, 25):
        monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", most)
        assert divergences(Engine(model), items) == pytest.approx(expected, rel=1e-3, abs=2e-6)
    runs: list[int] = []
    ours = likelihood._divergences

    def short(engine: Engine, own: Sequence[tuple[Text, Origin]], shares: bool) -> list[float]:
        runs.append(len(own))
        if len(own) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ours(engine, own, shares)

    monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", 4096)
    monkeypatch.setattr(likelihood, "_divergences", short)
    assert divergences(Engine(model), items) == pytest.approx(expected, rel=1e-3, abs=2e-6)
    assert max(runs) == 7
    assert runs.count(1) + runs.count(2) >= 4


@pytest.mark.real_model
def test_the_real_model(smollm2: LanguageModel) -> None:
    """A push of a tenth of the states' length, over a reply of real words."""
    prompt = smollm2.dialogue.prompt([{"role": "user", "content": "How was it?"}])
    reply = tuple(smollm2.dialogue.tokenizer("It was good.").input_ids)
    vector = torch.nn.functional.normalize(torch.randn(smollm2.width, generator=torch.Generator().manual_seed(0)), dim=0)
    steering = Steering((Push("residual", 10, 30 * vector),))
    item = (prompt, reply), Origin(prompt, steering)
    reference = Reference(smollm2, {("residual", 10): smollm2.model.model.layers[10]})
    assert divergences(Engine(smollm2), [item]) == pytest.approx([plainly(reference, *item)], rel=1e-3)
