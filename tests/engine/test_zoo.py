"""The architectures differ in what they are there for, and the references by which the engine is judged agree with each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import TOLERANCE, Reference, TieWarning, assert_same_replies, gumbel, hooked_generate
from tiny_models import random_tokens, random_vector, tokenizer_of
from transformers import AttentionInterface
from zoo import FEATURES, WITHOUT_INTERFACE, ZOO, make, without_feature, zoo_bare, zoo_model, zoo_places

from emosteer.engine import Decoding, Reply, Request, RowSeed
from emosteer.engine.sampling import gumbel_noise
from emosteer.model.language_model import wrap
from emosteer.model.past import past_name
from emosteer.steering import Push, Steering

(TEXT,) = random_tokens(14)


@torch.no_grad()
def logits(model: Any, text: Sequence[int] = TEXT) -> torch.Tensor:
    """Logits of the token after a text [vocabulary]."""
    return model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize(("name", "number"), FEATURES)
def test_what_an_architecture_is_there_for_decides(name: str, number: int) -> None:
    with_it, without = logits(zoo_bare(name)), logits(without_feature(name, number))
    assert float((with_it - without).abs().max()) > 0.03 * float(with_it.abs().max())


@pytest.mark.parametrize("name", ZOO)
def test_sites_are_found(name: str) -> None:
    anatomy = zoo_model(name).anatomy
    parts = {"residual": anatomy.blocks, "attention": anatomy.attention, "mlp": anatomy.mlp}
    found = {(site, layer): part for site, of_blocks in parts.items() for layer, part in enumerate(of_blocks) if part is not None}
    assert found == zoo_places(name)


@pytest.mark.parametrize("name", ZOO)
def test_a_token_depends_on_those_before(name: str) -> None:
    whole = logits(zoo_bare(name))
    for position in (10, 12):
        other = [*TEXT[:position], TEXT[position] + 1, *TEXT[position + 1 :]]
        assert float((logits(zoo_bare(name), other) - whole).abs().max()) > 0.03 * float(whole.abs().max())


class SeenError(Exception):
    """An attention function of ours was called."""


def raise_seen(*_args: Any, **_rest: Any) -> Any:
    raise SeenError


@pytest.mark.parametrize("name", ZOO)
def test_who_lacks_the_attention_interface(name: str) -> None:
    AttentionInterface.register("raises", raise_seen)
    model = make(name)
    try:
        model.set_attn_implementation("raises")
        logits(model)
        seen = False
    except SeenError:
        seen = True
    except (ValueError, KeyError):
        seen = False
    assert seen == (name not in WITHOUT_INTERFACE)


def requests_to(name: str) -> list[Request]:
    """A request of each scope, at the sites that a model has, over prompts shorter and longer than its window."""
    places = sorted(zoo_places(name))
    steerings = [
        Steering(
            tuple(Push(*places[(5 * i + 3 * n) % len(places)], random_vector(i + n, 6.0)) for n in range(n_pushes)),
            scope,
        )
        for i, (scope, n_pushes) in enumerate([("generated", 1), ("prompt", 2), ("all", 1), ("generated", 3)])
    ]
    prompts = random_tokens(1, 4, 14, 9, 7)
    return [
        Request(prompt, RowSeed(0, str(i), 0), steering, Decoding(12))
        for i, (prompt, steering) in enumerate(zip(prompts, [*steerings, None], strict=True))
    ]


@pytest.mark.parametrize("name", ZOO)
def test_the_references_agree(name: str) -> None:
    """The whole text read again for each token, and `generate` with a cache and a hook."""
    model = zoo_model(name)
    model = replace(model, stop_tokens=frozenset(range(0, model.model.config.vocab_size, 7)))
    reference = Reference(model, zoo_places(name))
    decodings = [Decoding(12), Decoding(7), Decoding(12), Decoding(12, min_new_tokens=8), Decoding(10)]
    requests = [replace(request, decoding=d) for request, d in zip(requests_to(name), decodings, strict=True)]
    texts = [hooked_generate(model, request, reference.places) for request in requests]
    got = [Reply(text, len(text) < request.decoding.max_new_tokens) for text, request in zip(texts, requests, strict=True)]
    assert_same_replies(reference, requests, got, how="generate")
    assert any(reply.finished for reply in got)
    assert len({token for text in texts for token in text}) > 8


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in ("llama", "gpt_oss") else pytest.mark.slow) for n in ZOO])
def test_the_tolerance_is_that_of_rounding(name: str) -> None:
    """Logits of one text, read at once or token by token, are the same numbers summed in another order.

    Measured over 48 texts: of all pairs of tokens the one that changes most changes its gap by 5e-7 to 5e-6 of the largest logit in
    the median text; in the worst text by up to 2e-5, and 7e-5 in Qwen3-Next, whose recurrence goes on with its errors.
    """
    model, spreads = zoo_bare(name), []
    for text in random_tokens(12, 18, 24, 12, 18):
        ids = torch.tensor([text])
        with torch.no_grad():
            out = model(input_ids=ids[:, :4], use_cache=True)
            for position in range(4, len(text)):
                past = {past_name(model): out[past_name(model)]}
                out = model(input_ids=ids[:, position : position + 1], use_cache=True, **past)
        whole = logits(model, text)
        error = out.logits[0, -1] - whole
        spreads.append(float((error.max() - error.min()) / whole.abs().max()))
    assert 0 < np.median(spreads) < TOLERANCE


def test_noise_by_another_hand() -> None:
    for sample in range(20):  # keys on both sides of what a signed number holds
        seed = RowSeed(3, "a prompt", sample)
        np.testing.assert_allclose(gumbel(seed, 5, 50), gumbel_noise(seed, 5, 50).numpy(), rtol=1e-6)


def twin_model(name: str, distance: float) -> Reference:
    """Tokens 2 n and 2 n + 1 have logits that differ by `distance`, relative to the logit."""
    bare = make(name)
    head = bare.get_output_embeddings().weight
    head[1::2] = head[0 : len(head) - 1 : 2] * (1 + distance)
    return Reference(wrap(f"twins-{name}", bare, tokenizer_of()), {})


GREEDY = [Request(prompt, RowSeed(0, str(i), 0), None, Decoding(6)) for i, prompt in enumerate(random_tokens(5, 9))]


def test_a_tie_is_told() -> None:
    reference = twin_model("llama", 1e-7)
    right = [reference.reply(request) for request in GREEDY]
    other = [Reply((*reply.tokens[:3], reply.tokens[3] ^ 1, *reply.tokens[4:]), False) for reply in right]
    # After another token, other ones come: what follows the tie must be right again.
    other = [
        Reply(reply.tokens[:4] + reference.reply(after(request, reply.tokens[:4])).tokens, False)
        for request, reply in zip(GREEDY, other, strict=True)
    ]
    with pytest.warns(TieWarning, match=r"step 3: token \d+ instead of \d+, scores [\d.e-]+ apart"):
        ties = assert_same_replies(reference, GREEDY, other)
    assert len(ties.lines) == 2


def after(request: Request, tokens: Sequence[int]) -> Request:
    return replace(request, prompt=(*request.prompt, *tokens), decoding=Decoding(request.decoding.max_new_tokens - len(tokens)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda tokens: Reply((*tokens[:3], tokens[3] ^ 1, *tokens[4:]), False), r"row 1 step 3: token \d+ instead of \d+, scores"),
        (lambda tokens: Reply(tokens[:4], True), r"row 1 step 4"),
        (lambda tokens: Reply(tokens[:4], False), r"row 1: ended by itself"),
        (lambda tokens: Reply((*tokens, tokens[0]), False), r"row 1: ended by itself"),
        (lambda tokens: Reply((*tokens[:2], 2, *tokens[3:]), False), r"row 1: a stop token"),
    ],
)
def test_what_is_no_tie_fails(wrong: Any, message: str) -> None:
    reference = twin_model("llama", 1e-3)
    first, second = (reference.reply(request) for request in GREEDY)
    with pytest.raises(AssertionError, match=message):
        assert_same_replies(reference, GREEDY, [first, wrong(second.tokens)])


def test_the_end_of_a_nucleus_is_a_tie() -> None:
    reference = Reference(zoo_model("llama"), {})
    request = GREEDY[0]
    ordered = np.sort(logits(zoo_bare("llama"), request.prompt).double().softmax(-1).numpy())[::-1]
    for seed in range(50):
        for n in range(1, 10):
            top_p = float(ordered[:n].sum())
            narrow, wide = (
                replace(request, row_seed=RowSeed(seed, "", 0), decoding=Decoding(1, 0, True, 1.0, top_p + sign * 3e-6))
                for sign in (-1, 1)
            )
            one, other = reference.reply(narrow), reference.reply(wide)
            if one != other:
                for asked, got in ((narrow, other), (wide, one)):
                    with pytest.warns(TieWarning, match="the nucleus' end"):
                        assert_same_replies(reference, [asked], [got])
                far = replace(narrow, decoding=replace(narrow.decoding, top_p=top_p - 1e-4))
                with pytest.raises(AssertionError, match="scores inf apart"):
                    assert_same_replies(reference, [far], [other])
                return
    raise AssertionError("no draw hung on the end of the nucleus")


@pytest.mark.parametrize("name", ["mixtral", pytest.param("gpt_oss", marks=pytest.mark.slow), "llama4", "deepseek_v3"])
@pytest.mark.parametrize(("distance", "tied"), [(1e-7, True), (1e-2, False)])
def test_tied_experts_are_told(name: str, distance: float, tied: bool) -> None:
    """Expert 1 is chosen as often as expert 0, but does something else."""
    bare, other = make(name), make(name)
    for model, sign in ((bare, 1), (other, -1)):
        for path, weight in model.named_parameters():
            if re.search(r"(gate|router)\.weight$", path):
                weight[:2] = weight[0] * torch.tensor([[1.0], [1 + sign * distance]])
            elif re.search(r"router\.bias$", path):
                weight[1] = weight[0]
        for path, buffer in model.named_buffers():
            if path.endswith("e_score_correction_bias"):
                buffer[1] = buffer[0]
    reference, another = (Reference(wrap(name, model, tokenizer_of()), {}) for model in (bare, other))
    requests = [Request(p, RowSeed(0, str(i), 0), None, Decoding(6)) for i, p in enumerate(random_tokens(*[6] * 8))]
    got = [another.reply(request) for request in requests]
    assert got != [reference.reply(request) for request in requests]
    expectation = pytest.warns(TieWarning, match="experts were tied") if tied else pytest.raises(AssertionError, match="experts")
    with expectation:
        assert_same_replies(reference, requests, got)
