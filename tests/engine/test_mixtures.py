"""Random mixtures of requests, on every architecture and every way through it, against the slow reference.

`pytest tests/engine/test_mixtures.py -m slow` tries many more of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from mixtures import Mixture, expected_replies, mixtures, stopping_model
from reference import Reference, assert_same_replies, replies
from tiny_models import WIDTH, random_tokens, random_vector, tokenizer_of
from zoo import FEATURES, WITH_STATES, WITHOUT_INTERFACE, ZOO, make, without_feature, zoo_model, zoo_places

from emosteer.engine import Decoding, Engine, Request, RowSeed
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel, wrap
from emosteer.steering import Push, Steering

PATHS = ("shared", "stock", "reread")
MAY_REFUSE = {"shared": {*WITHOUT_INTERFACE, "llama4_tempered"}, "stock": {*WITH_STATES, "llama4_tempered"}}
"""Who may be refused by a path that is asked for: by an error of ours that names it, before a token is generated."""

# The seed of `over_mixtures` makes the draws the same each time; hypothesis' first is the simplest there is.
# A mixture that fails is long to shrink: the slow run does that.
CHECKS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
QUICK = settings(max_examples=3, phases=[Phase.generate], **CHECKS)
THOROUGH = settings(max_examples=30, **CHECKS)


PROBE = Request(random_tokens(20)[0], RowSeed(0, "a", 0), None, Decoding(12))
"""As long as any row of a mixture: after it, an engine has chosen its path."""


@lru_cache
def choosing_engine(name: str) -> Engine:
    """An engine that has chosen its way through an architecture."""
    engine = Engine(stopping_model(name))
    replies(engine, [PROBE])
    return engine


def engine_by(path: str, name: str, model: LanguageModel | None = None) -> Engine:
    """An engine that goes through an architecture by `path`: it is not told where it would choose it; skips the test if refused."""
    if choosing_engine(name).path == path and model is None:
        return choosing_engine(name)
    try:
        engine = Engine(model or stopping_model(name), path=path)
        replies(engine, [PROBE])
    except EmosteerError as error:
        refusal = str(error)
    else:
        assert engine.path == path
        return engine
    assert name in MAY_REFUSE.get(path, set()), refusal
    assert path in refusal
    pytest.skip(refusal)


def over_mixtures(name: str, path: str, how: settings, damaged: LanguageModel | None = None) -> None:
    """The same mixtures, one after another, for every way through an architecture, and others for each architecture.

    Args:
        damaged: a model that the engine is given instead, to see that it is noticed.
    """
    model = stopping_model(name)
    engine = engine_by(path, name, replace(damaged, stop_tokens=model.stop_tokens) if damaged else None)
    reference = Reference(model, zoo_places(name))

    @how
    @seed(zlib.crc32(name.encode()))
    @given(mixtures(name))
    def check(mixture: Mixture) -> None:
        requests = mixture.requests()
        engine.batch_rows = mixture.batch_rows
        got = replies(engine, requests)
        assert_same_replies(reference, requests, got, expected_replies(name, mixture), path)

    check()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ZOO)
def test_random_mixtures(name: str, path: str) -> None:
    over_mixtures(name, path, QUICK if path == choosing_engine(name).path else settings(QUICK, max_examples=2))


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ZOO)
def test_many_random_mixtures(name: str, path: str) -> None:
    over_mixtures(name, path, THOROUGH)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), FEATURES)
def test_a_lost_feature_is_noticed(name: str, number: int) -> None:
    """An engine that forgot a window, a cap or a sink would fail over the same mixtures, however few."""
    damaged = wrap(name, without_feature(name, number), tokenizer_of())
    with pytest.raises(AssertionError, match="scores"):
        over_mixtures(name, choosing_engine(name).path, QUICK, damaged)


def test_the_mixtures_hold_what_they_should() -> None:
    drawn: list[Mixture] = []

    @settings(QUICK, max_examples=20)
    @seed(0)
    @given(mixtures("llama"))
    def draw(mixture: Mixture) -> None:
        drawn.append(mixture)

    draw()
    rows = [(mixture, row) for mixture in drawn for row in mixture.rows]
    ended = [reply.finished for mixture in drawn for reply in expected_replies("llama", mixture)]
    lengths = [len(request.prompt) for mixture in drawn for request in mixture.requests()]
    assert 0.2 < sum(ended) / len(ended) < 0.8
    assert {row.scope for _, row in rows if row.pushes} == {"generated", "prompt", "all"}
    assert {len(row.pushes) for _, row in rows} == {0, 1, 2, 3}
    assert {place for _, row in rows for place, *_ in row.pushes} == zoo_places("llama").keys()
    assert {(length != 0, is_cleared) for _, row in rows for _, _, length, is_cleared in row.pushes} == set(
        product([True, False], repeat=2)
    )
    assert {row.decay for _, row in rows if row.pushes} == {1.0, 0.7, 0.0, 1.1}
    assert {1, 12} <= {row.decoding.max_new_tokens for _, row in rows}
    assert {(row.decoding.do_sample, row.decoding.top_p < 1) for _, row in rows} == {(False, False), (True, False), (True, True)}
    assert any(row.decoding.min_new_tokens > 0 for _, row in rows)
    assert min(lengths) == 1
    assert max(lengths) > 16
    assert len({mixture.batch_rows for mixture in drawn}) > 3
    assert all(mixture.batch_rows < len(mixture.rows) for mixture in drawn)


@pytest.mark.parametrize("name", ZOO)
def test_the_fastest_path_is_chosen(name: str) -> None:
    """Every architecture is taken, by the first path that need not refuse it."""
    assert choosing_engine(name).path == next(path for path in PATHS if name not in MAY_REFUSE.get(path, set()))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "falcon"])
def test_the_model_is_itself_between_replies(name: str, path: str) -> None:
    """Whoever takes a reply may use the model before the next, without hooks or an attention of ours."""
    model = zoo_model(name)
    text = torch.tensor(random_tokens(15))
    read = torch.no_grad()(lambda: model.model(input_ids=text, use_cache=False).logits)
    own, implementation = read(), model.model.config._attn_implementation
    steering = Steering((Push("residual", 1, random_vector(0, 6.0)),), "all")
    requests = [
        Request(prompt, RowSeed(0, str(i), 0), steering, Decoding(n))
        for i, (prompt, n) in enumerate(zip(random_tokens(4, 9, 5), (2, 5, 3), strict=True))
    ]
    engine = engine_by(path, name)
    engine.batch_rows = 2
    generating = engine.generate(requests)
    for _ in generating:
        assert torch.equal(read(), own)
        assert model.model.config._attn_implementation == implementation
    generating = engine.generate(requests)
    next(generating)
    generating.close()
    assert torch.equal(read(), own)
    assert model.model.config._attn_implementation == implementation


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_packing_changes_nothing(model: LanguageModel, requests: Sequence[Request], path: str) -> None:
    """However rows are packed, and in whatever order they come, the replies are the same, to the letter."""
    whole = replies(Engine(model, len(requests), path), requests)
    order = torch.randperm(len(requests), generator=torch.Generator().manual_seed(3)).tolist()
    for batch_rows in (1, 3, len(requests)):
        engine = Engine(model, batch_rows, path)
        assert replies(engine, [requests[i] for i in order]) == [whole[i] for i in order], f"{batch_rows} rows"
        if batch_rows == 3:
            assert replies(engine, requests) == whole  # over prefixes that are known by now


def assert_threads_change_nothing(model: LanguageModel, requests: Sequence[Request], path: str) -> None:
    """Sums that two threads share are added up in another order."""
    with threads(1):
        alone = replies(Engine(model, 4, path), requests)
    with threads(2):
        assert replies(Engine(model, 4, path), requests) == alone


def cells(n: int, places: Sequence[tuple[str, int]], prompts: Sequence[tuple[int, ...]], length: float, width: int) -> list[Request]:
    """Cells of a sweep over some prompts, every second sampled; the first unsteered."""
    requests = []
    for i in range(n):
        for number, prompt in enumerate(prompts):
            push = Push(*places[(i + number) % len(places)], random_vector(i, length, width))
            scope = ("generated", "all", "prompt")[i % 3]
            decoding = Decoding(8 - number % 4, 0, i % 2 == 1, 0.9, 0.95)
            requests.append(Request(prompt, RowSeed(0, str(number), i // 2), Steering((push,), scope) if i else None, decoding))
    return requests


PROMPTS = random_tokens(9, 3, 14, 1)


def twins(name: str) -> LanguageModel:
    """A model whose tokens 2 n and 2 n + 1 have logits that only rounding tells apart: every step of a greedy row is a tie."""
    bare = make(name)
    head = bare.get_output_embeddings().weight
    head[1::2] = head[0 : len(head) - 1 : 2] * (1 + 1e-7)
    return wrap(f"twins-{name}", bare, tokenizer_of())


@pytest.mark.parametrize(("name", "path"), [("llama", "shared"), ("llama", "stock"), ("llama", "reread"), ("gemma2", "shared")])
def test_packing_changes_nothing(name: str, path: str) -> None:
    """Not even where every greedy token is tied with another."""
    assert_packing_changes_nothing(twins(name), cells(3, sorted(zoo_places(name)), PROMPTS, 6.0, WIDTH), path)


@pytest.mark.parametrize("path", PATHS)
def test_threads_change_nothing(path: str) -> None:
    assert_threads_change_nothing(twins("llama"), cells(2, sorted(zoo_places("llama")), PROMPTS, 6.0, WIDTH)[:6], path)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "mixtral"])
def test_packing_and_threads_change_nothing_by_any_path(name: str, path: str) -> None:
    for model in (zoo_model(name), twins(name)):
        requests = cells(6, sorted(zoo_places(name)), PROMPTS, 6.0, WIDTH)
        assert_packing_changes_nothing(model, requests, path)
        assert_threads_change_nothing(model, requests, path)


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("path", PATHS)
def test_packing_and_threads_change_nothing_in_the_real_model(smollm2: LanguageModel, path: str) -> None:
    said = ["Hi!", "Tell me how a morning at the market sounds.", "I found my old guitar in the attic."]
    prompts = [smollm2.dialogue.prompt([{"role": "user", "content": text}]) for text in said]
    places = [("residual", 10), ("attention", 6), ("mlp", 12), ("residual", 20)]
    requests = cells(4, places, prompts, 25.0, smollm2.width)
    assert_packing_changes_nothing(smollm2, requests, path)
    assert_threads_change_nothing(smollm2, requests, path)
