from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from reference import hooked_generate, replies
from tiny_models import FAMILIES, WITH_SITES, hook_output, random_tokens, random_vector, tiny_model, true_parts
from torch import Tensor, nn

from emosteer.engine import Decoding, Engine, Request, RowSeed
from emosteer.model.language_model import LanguageModel
from emosteer.model.past import is_keyed
from emosteer.steering import Push, Steering

PATHS = ("shared", "stock", "reread")
SCOPES = ("generated", "prompt", "all")
GREEDY = Decoding(12)
SAMPLED = Decoding(12, do_sample=True)


def places_of(family: str) -> dict[tuple[str, int], nn.Module]:
    return {(site, layer): module for layer in range(4) for site, module in true_parts(family, layer).items()}


def push(site: str, layer: int, seed: int, length: float = 6.0) -> Push:
    return Push(site, layer, random_vector(seed, length))


def mixed_requests(sites: Sequence[str] = ("residual", "attention", "mlp"), decoding: Decoding = GREEDY) -> list[Request]:
    """Cells of every scope and site, coefficients and lengths, the unsteered row too, over prompts from one token on."""
    steerings: list[Steering | None] = [None]
    for number, scope in enumerate(SCOPES):
        for depth, site in enumerate(sites):
            steerings.append(Steering((push(site, (number + depth) % 4, 10 * number + depth),), scope))
    steerings.append(Steering((push(sites[0], 1, 40), push(sites[-1], 3, 41), push(sites[0], 1, 42, 2.0)), "all"))
    prompts = random_tokens(9, 1, 14, 5)
    return [
        Request(prompts[i % len(prompts)], RowSeed(0, str(i % len(prompts)), i // len(prompts)), steering, decoding)
        for i, steering in enumerate(steerings * 2)
    ]


def sites_of(family: str) -> tuple[str, ...]:
    return tuple(true_parts(family, 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_is_each_row_by_plain_hooks(family: str) -> None:
    model = tiny_model(family)
    requests = mixed_requests(sites_of(family))
    got = [reply.tokens for reply in replies(Engine(model), requests)]
    expected = [hooked_generate(model, request, places_of(family)) for request in requests]
    assert got == expected
    prompts = {request.prompt for request in requests}
    for prompt in prompts:  # the pushes did something, and not the same thing
        assert len({reply for request, reply in zip(requests, got, strict=True) if request.prompt == prompt}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_caches(family: str) -> None:
    assert is_keyed(tiny_model(family).model.config)
    assert Engine(tiny_model(family)).path == ("stock" if family in ("falcon", "bloom") else "shared")


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_and_without_a_cache(family: str, decoding: Decoding) -> None:
    model = tiny_model(family)
    requests = mixed_requests(sites_of(family), decoding)
    assert replies(Engine(model), requests) == replies(Engine(model, path="reread"), requests)


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_packing_changes_nothing(family: str, decoding: Decoding) -> None:
    model = tiny_model(family)
    requests = mixed_requests(decoding=replace(decoding, temperature=1.2, top_p=0.95))
    whole = replies(Engine(model), requests)
    alone = [replies(Engine(model), [request])[0] for request in requests]
    assert alone == whole
    order = torch.randperm(len(requests), generator=torch.Generator().manual_seed(3)).tolist()
    for rows in (2, 5):
        engine = Engine(model, batch_rows=rows)
        assert replies(engine, [requests[i] for i in order]) == [whole[i] for i in order]
        assert replies(engine, requests) == whole  # over prefixes that are known by now


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("site", ["residual", "attention", "mlp"])
def test_coefficient_zero_is_the_baseline(site: str, scope: str, decoding: Decoding) -> None:
    model = tiny_model("qwen3")
    prompts = random_tokens(9, 1, 14)
    baseline = [Request(prompt, RowSeed(0, str(i), 0), None, decoding) for i, prompt in enumerate(prompts)]
    steering = Steering((push(site, 2, 0, length=0.0),), scope)
    zero = [replace(request, steering=steering) for request in baseline]
    both = replies(Engine(model), [*baseline, *zero])
    assert both[:3] == both[3:]


def test_rows_of_different_lengths_and_decodings() -> None:
    model, prompts = tiny_model("gemma2"), random_tokens(3, 8, 1, 12)
    decodings = [Decoding(1), Decoding(17), Decoding(6), Decoding(9)]
    requests = [Request(p, RowSeed(0, str(i), 0), None, d) for i, (p, d) in enumerate(zip(prompts, decodings, strict=True))]
    got = replies(Engine(model), requests)
    assert [len(reply.tokens) for reply in got] == [1, 17, 6, 9]
    assert not any(reply.finished for reply in got)
    assert [reply.tokens for reply in got] == [hooked_generate(model, request, {}) for request in requests]


def stopping_model(family: str, requests: Sequence[Request]) -> LanguageModel:
    """A model whose stop tokens stand at many places of the requests' replies."""
    model = tiny_model(family)
    texts = [reply.tokens for reply in replies(Engine(model), requests)]
    # A token that few replies have ends few of them.
    rare = {token for text in texts for token in text if sum(token in other for other in texts) <= 2}
    stop = {text[number] for number, text in enumerate(texts) if number < len(text) and text[number] in rare}
    return replace(model, stop_tokens=frozenset(stop))


@pytest.mark.parametrize(
    ("family", "path"), [(f, p) for f in ("llama", "gemma3", "gpt2", "falcon") for p in PATHS if (f, p) != ("falcon", "shared")]
)
def test_rows_that_end_leave_the_batch(family: str, path: str) -> None:
    requests = mixed_requests(("residual",), Decoding(16))
    model = stopping_model(family, requests)
    got = replies(Engine(model, path=path), requests)
    assert [reply.tokens for reply in got] == [hooked_generate(model, r, places_of(family)) for r in requests]
    assert len({len(reply.tokens) for reply in got}) > 3  # ends at several steps
    for reply in got:
        assert reply.finished == (len(reply.tokens) < 16)
        assert not model.stop_tokens & set(reply.tokens)


def test_a_batch_shrinks_as_rows_end(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = mixed_requests(("residual",), Decoding(16))
    model = stopping_model("llama", requests)
    engine = Engine(model)
    sizes = watch_batches(model, monkeypatch)
    got = replies(engine, requests)
    decoded = [rows for rows, positions in sizes if positions == 1][-16:]
    lengths = [len(reply.tokens) + reply.finished for reply in got]  # steps that a row takes
    for step, rows in enumerate(decoded[-max(lengths) :]):
        alive = sum(length > step for length in lengths)
        assert alive <= rows <= alive / (1 - 0.125)


def watch_batches(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes [row, position] of all forwards of the model's body to come."""
    shapes: list[tuple[int, int]] = []
    body = model.model.get_decoder()
    forward = body.forward

    def watching(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(body, "forward", watching)
    return shapes


@pytest.mark.parametrize("least", [1, 5, 16])
def test_min_new_tokens(least: int) -> None:
    requests = mixed_requests(("residual",), Decoding(16))
    model = stopping_model("llama", requests)
    requests = [replace(request, decoding=Decoding(16, min_new_tokens=least)) for request in requests]
    got = replies(Engine(model), requests)
    assert [reply.tokens for reply in got] == [hooked_generate(model, r, places_of("llama")) for r in requests]
    assert all(len(reply.tokens) >= least for reply in got)


@pytest.mark.parametrize("path", PATHS)
def test_rows_that_end_are_replaced(path: str) -> None:
    """The batch stays full until nobody waits any more."""
    requests = mixed_requests(("residual",), Decoding(16)) * 4
    engine = Engine(stopping_model("llama", requests), batch_rows=8, path=path)
    got = replies(engine, requests)
    needed = sum(len(reply.tokens) + reply.finished for reply in got)  # row steps, if no row ever ran for nothing
    assert engine.account.rows > 7
    assert needed <= engine.account.row_steps <= 1.2 * needed


@pytest.mark.parametrize("path", ["shared", "stock"])
def test_a_prompt_is_read_once(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (prompt,) = tiny_model("llama"), random_tokens(9)
    requests = [
        Request(prompt, RowSeed(0, "a", 0), Steering((push("residual", layer, layer),)) if layer else None, Decoding(3))
        for layer in range(4)
    ]
    engine = Engine(model, path=path)
    shapes = watch_batches(model, monkeypatch)
    replies(engine, requests)
    replies(engine, requests)
    assert [shape for shape in shapes if shape[1] > 1] == [(1, 8)]
    assert engine.account.prefill_tokens == 8


@pytest.mark.parametrize("path", ["shared", "stock"])
def test_what_prompts_have_in_common_is_read_once(path: str) -> None:
    system, one, other = random_tokens(30, 20, 20)
    prompts = [system + one + own for own in random_tokens(3, 4, 5)] + [system + other + own for own in random_tokens(3, 4, 5)]
    requests = [Request(prompt, RowSeed(0, str(i), 0), None, Decoding(3)) for i, prompt in enumerate(prompts)]
    engine = Engine(tiny_model("llama"), path=path)
    got = replies(engine, requests)
    assert engine.account.prefill_tokens == 30 + 2 * 20 + 2 * (3 + 4 + 5 - 3)  # but for each prompt's last token
    assert [reply.tokens for reply in got] == [hooked_generate(engine.model, r, places_of("llama")) for r in requests]


@pytest.mark.parametrize("path", ["shared", "stock"])
def test_a_steered_prompt_runs_no_block_below_the_steered_one(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    prompts = [random_tokens(12)[0] + own for own in random_tokens(4, 5)]
    engine = Engine(model, path=path)
    runs = [0] * 4
    for layer, block in enumerate(model.anatomy.blocks):

        def counting(*args: Any, layer: int = layer, forward: Any = block.forward, **kwargs: Any) -> Any:
            runs[layer] += kwargs.get("hidden_states", args[0]).shape[1] > 1
            return forward(*args, **kwargs)

        monkeypatch.setattr(block, "forward", counting)
    for layer in (1, 2):
        steering = Steering((push("residual", layer, layer),), "all")
        requests = [Request(prompt, RowSeed(0, str(i), 0), steering, Decoding(3)) for i, prompt in enumerate(prompts)]
        got = replies(engine, requests)
        assert [reply.tokens for reply in got] == [hooked_generate(model, r, places_of("llama")) for r in requests]
    # What they have in common and the rest, unsteered, twice (whose output at another block was not kept); then what is above.
    assert [runs[layer] - runs[0] for layer in range(4)] == [0, 0, 2, 4]


def test_steered_prompts_are_not_kept() -> None:
    """Each serves one row: kept, they would fill the memory cell by cell."""
    engine, requests = Engine(tiny_model("llama")), mixed_requests()
    replies(engine, requests)
    prompts = {request.prompt[:-1] for request in requests}
    assert {tokens for tokens, steering in engine.prefixes._kept if steering is not None} <= {
        tokens[:n] for tokens in prompts for n in range(len(tokens))
    }
    assert prompts <= {tokens for tokens, steering in engine.prefixes._kept if steering is None}


def test_on_tokens_counts_every_token() -> None:
    requests = mixed_requests(("residual",), Decoding(16))
    model = stopping_model("llama", requests)
    counted: list[int] = []
    found = dict(Engine(model).generate(requests, counted.append))
    assert sum(counted) == sum(len(reply.tokens) + reply.finished for reply in found.values())
    assert list(Engine(model).generate([])) == []


def limit_rows(model: LanguageModel, monkeypatch: pytest.MonkeyPatch, most: int, after: int = 0) -> None:
    """A machine whose memory holds `most` rows, from forward number `after` on."""
    body = model.model.get_decoder()
    forward, n_forwards = body.forward, 0

    def limited(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_forwards
        n_forwards += 1
        if n_forwards > after and kwargs["input_ids"].shape[0] > most:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return forward(*args, **kwargs)

    monkeypatch.setattr(body, "forward", limited)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("after", [0, 6, 20])
@pytest.mark.parametrize("most", [1, 3, 7])
def test_out_of_memory_halves_the_batch(
    most: int, after: int, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = mixed_requests(("residual",), Decoding(16))
    model = stopping_model("llama", requests)
    expected = replies(Engine(model), requests)
    engine = Engine(model, 8, path)
    limit_rows(model, monkeypatch, most, after)
    with caplog.at_level(logging.WARNING):
        assert replies(engine, requests) == expected
    if after == 0 and path != "reread":  # which reads rows of one length at a time, and so fewer
        assert engine.batch_rows is not None
        assert most / 2 < engine.batch_rows <= most  # 8, 4, 2, 1
        assert "out of memory with 8 rows" in caplog.text


def test_out_of_memory_with_one_row_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model("llama"))
    limit_rows(engine.model, monkeypatch, 0)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        replies(engine, mixed_requests())


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model("llama"))
    model = engine.model

    def broken(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(model.model.get_decoder(), "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        replies(engine, mixed_requests())


@pytest.mark.parametrize("scope", SCOPES)
def test_logits_that_are_no_numbers_are_an_error(scope: str) -> None:
    (prompt,) = random_tokens(4)
    steering = Steering((Push("residual", 1, torch.full((32,), torch.inf)),), scope)
    with pytest.raises(FloatingPointError, match="not numbers"):
        replies(Engine(tiny_model("llama")), [Request(prompt, RowSeed(0, "a", 0), steering)])


def test_sampled_rows_differ_by_sample_and_seed() -> None:
    (prompt,) = random_tokens(6)
    seeds = [RowSeed(seed, "a", sample) for seed in (0, 1) for sample in (0, 1, 2)]
    requests = [Request(prompt, seed, None, SAMPLED) for seed in seeds]
    assert len({reply.tokens for reply in replies(Engine(tiny_model("llama")), requests)}) == 6


@pytest.mark.parametrize("family", WITH_SITES)
def test_sampled_steered_rows_by_hand(family: str) -> None:
    """A sampled, steered row against a loop that reads the whole text at each step and adds the row's noise itself."""
    from emosteer.engine.sampling import gumbel_noise

    model, (prompt,) = tiny_model(family), random_tokens(7)
    seed, vector = RowSeed(3, "p", 1), random_vector(5, 6.0)
    request = Request(
        prompt, seed, Steering((Push("residual", 1, vector),), "generated"), Decoding(8, do_sample=True, temperature=0.8)
    )
    text = list(prompt)

    def add(states: Tensor) -> Tensor:
        states = states.clone()
        states[:, len(prompt) - 1 :] += vector
        return states

    for step in range(8):
        handle = hook_output(true_parts(family, 1)["residual"], add)
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
        handle.remove()
        text.append(int((logits / 0.8 + gumbel_noise(seed, step, len(logits))).argmax()))
        if text[-1] in model.stop_tokens:
            break
    (reply,) = replies(Engine(model), [request])
    assert list(reply.tokens) == [token for token in text[len(prompt) :] if token not in model.stop_tokens]


@pytest.mark.real_model
def test_the_real_model_by_plain_hooks(smollm2: LanguageModel) -> None:
    blocks = smollm2.model.model.layers
    places = {("residual", 10): blocks[10], ("attention", 6): blocks[6].self_attn, ("mlp", 12): blocks[12].mlp}
    vectors = {place: random_vector(i, 25.0, smollm2.width) for i, place in enumerate(places)}
    words = ["Hi!", "Tell me how a morning at the market sounds, and what you would buy there."]
    prompts = [smollm2.dialogue.prompt([{"role": "user", "content": text}]) for text in words]
    pushes = [Push(*place, vector) for place, vector in vectors.items()]
    steerings = [
        None,
        *(Steering((p,), scope) for p, scope in zip(pushes, SCOPES, strict=True)),
        Steering(tuple(pushes), "generated"),
    ]
    requests = [
        Request(prompt, RowSeed(0, str(i), 0), steering, Decoding(10)) for i, prompt in enumerate(prompts) for steering in steerings
    ]
    got = [reply.tokens for reply in replies(Engine(smollm2), requests)]
    assert got == [hooked_generate(smollm2, request, places) for request in requests]
    assert got == [reply.tokens for reply in replies(Engine(smollm2, batch_rows=4), requests)]
    assert len(set(got)) > 7


@pytest.mark.real_model
def test_the_real_model_sampled_in_another_order(smollm2: LanguageModel) -> None:
    vector = random_vector(0, 25.0, smollm2.width)
    prompts = [
        smollm2.dialogue.prompt([{"role": "user", "content": text}]) for text in ("Hi!", "I found my old guitar in the attic.")
    ]
    requests = [
        Request(prompt, RowSeed(0, str(i), sample), steering, Decoding(12, do_sample=True))
        for i, prompt in enumerate(prompts)
        for sample in (0, 1)
        for steering in (None, Steering((Push("residual", 10, vector),)), Steering((Push("residual", 10, 0 * vector),), "all"))
    ]
    whole = replies(Engine(smollm2), requests)
    assert replies(Engine(smollm2, batch_rows=5), requests[::-1]) == whole[::-1]
    assert whole[0::3] == whole[2::3]  # coefficient 0
    assert whole[0::3] != whole[1::3]


class Replays:
    """In place of CUDA graphs, for which there is no GPU here: what was recorded runs again, and gets nothing but its inputs.

    As with a graph, whatever else the step looked at when it was recorded stays as it was then.
    """

    made = replayed = 0

    def record(self, work: Any, inputs: dict[str, Tensor]) -> Any:
        self.made += 1
        work(inputs)

        def replay() -> Tensor:
            self.replayed += 1
            return work(inputs)

        return replay


@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral"])
def test_recorded_steps_depend_on_their_inputs_alone(family: str) -> None:
    requests = mixed_requests(("residual",), Decoding(16)) * 3
    model = stopping_model(family, requests)
    expected = replies(Engine(model), requests)
    engine, recorder = Engine(model, batch_rows=8), Replays()
    engine.chooser.recorder = recorder
    assert replies(engine, requests) == expected
    assert recorder.replayed > 3 * recorder.made


def test_a_step_that_cannot_be_recorded_runs_as_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    class Refuses:
        def record(self, work: Any, inputs: dict[str, Tensor]) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing")

    requests = mixed_requests(("residual",))
    expected = replies(Engine(tiny_model("llama")), requests)
    engine = Engine(tiny_model("llama"))
    engine.chooser.recorder = Refuses()
    assert replies(engine, requests) == expected
    assert "steps cannot be recorded" in caplog.text


def test_recordings_that_give_other_logits_are_not_used(caplog: pytest.LogCaptureFixture) -> None:
    class Stale:
        def record(self, work: Any, inputs: dict[str, Tensor]) -> Any:
            output = work(inputs)
            return lambda: output

    engine = Engine(tiny_model("llama"))
    engine.chooser.recorder, engine.chooser._tried = Stale(), 0
    engine.chooser.choose(0)
    assert engine.chooser.recorder is None
    assert engine.path == "shared"
    assert "none are recorded" in caplog.text
