from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from steering_vectors import train_steering_vector
from steering_vectors.train_steering_vector import SteeringVectorTrainingSample
from tiny_models import BLOCKS, WIDTH, WITH_SITES, bare_model, random_vector, tiny_model, tokenizer_of, true_parts
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from emosteer.datasets import ContrastivePair, NeutralText
from emosteer.errors import EmosteerError
from emosteer.model import extraction
from emosteer.model.language_model import LanguageModel, wrap
from emosteer.vectors import (
    METHODS,
    EmotionVector,
    Reader,
    checked,
    emotion_vector,
    random_direction,
    read_states,
    residual_norms,
    token_means,
)
from emosteer.vectors import reading as reading_of_texts

PAIRS = [
    ContrastivePair("a", "We are so happy that you came!", "I am sad, because nobody called."),
    ContrastivePair("b", "We will dance all night, all of us, and then once more!", "Rain."),
    ContrastivePair("c", "What a garden!", "The rain took the garden, and the train left before noon without me."),
]
NEUTRAL = [NeutralText("a", "A train leaves the station at nine."), NeutralText("b", "The user asked a question, and got a reply.")]


def own_tokens(tokenizer: Any, string: str, begin: int, end: int, plain: bool) -> tuple[list[int], list[int]]:
    """A string's tokens, and the indices of those that cover any of its characters [begin, end)."""
    encoding = tokenizer(string, add_special_tokens=plain, return_offsets_mapping=True)
    own = [i for i, (a, b) in enumerate(encoding["offset_mapping"]) if any(begin <= c < end for c in range(a, b))]
    return encoding["input_ids"], own


def own_states(model: LanguageModel, family: str, site: str, text: str, plain: bool = False) -> list[Tensor]:
    """Activations [own token, width] of a text per block: one text alone, no padding, hooks of this test."""
    if plain:
        string, begin = f"User: How are things?\nAssistant: {text}", len("User: How are things?\nAssistant: ")
    else:
        head = "<s><|user|>How are things?</s>\n<|assistant|>"
        string, begin = f"{head}{text}</s>\n", len(head)
    tokens, own = own_tokens(model.dialogue.tokenizer, string, begin, begin + len(text), plain)
    seen: dict[int, Tensor] = {}
    handles = []
    for layer in range(BLOCKS):

        def keep(_m: Any, _a: Any, output: Any, layer: int = layer) -> None:
            states = output[0] if isinstance(output, tuple) else output
            seen[layer] = states.reshape(1, -1, WIDTH)[0, own].clone()

        handles.append(true_parts(family, layer)[site].register_forward_hook(keep))
    try:
        with torch.no_grad():
            model.model(input_ids=torch.tensor([tokens]))
    finally:
        for handle in handles:
            handle.remove()
    return [seen[layer] for layer in range(BLOCKS)]


def mean_difference(model: LanguageModel, pairs: list[ContrastivePair], site: str = "residual") -> Tensor:
    return METHODS["mean_difference"](read_states(model, pairs, site))


def by_hand(model: LanguageModel, family: str, site: str, plain: bool = False) -> Tensor:
    total = torch.zeros(BLOCKS, WIDTH, dtype=torch.float64)
    for pair in PAIRS:
        for text, sign in ((pair.positive, 1), (pair.negative, -1)):
            for layer, states in enumerate(own_states(model, family, site, text, plain)):
                total[layer] += sign * states.double().mean(0) / len(PAIRS)
    return total.float()


@pytest.mark.parametrize("site", ["residual", "attention", "mlp"])
@pytest.mark.parametrize("family", WITH_SITES)
def test_mean_difference_one_text_at_a_time(family: str, site: str) -> None:
    model = tiny_model(family)
    torch.testing.assert_close(mean_difference(model, PAIRS, site), by_hand(model, family, site), rtol=1e-4, atol=1e-5)


def test_mean_difference_does_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gemma3", chat=False)
    whole = mean_difference(model, PAIRS)
    torch.testing.assert_close(whole, by_hand(model, "gemma3", "residual", plain=True), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(extraction, "BATCH_TOKENS", 40)
    torch.testing.assert_close(mean_difference(model, PAIRS), whole, rtol=1e-4, atol=1e-5)


def test_mean_difference_is_the_librarys() -> None:
    """steering-vectors reads one token of a text: a sample for every couple of own tokens of a pair gives its means of tokens."""
    model = tiny_model("llama", chat=False)
    # The library writes a pad token into a tokenizer that has none.
    tokenizer = tokenizer_of(chat=False, pad=True)
    begin = "User: How are things?\nAssistant: "
    trained = []
    for pair in PAIRS:
        strings = [begin + text for text in (pair.positive, pair.negative)]
        positive, negative = (own_tokens(tokenizer, string, len(begin), len(string), plain=True)[1] for string in strings)
        samples = [SteeringVectorTrainingSample(*strings, i, j) for i in positive for j in negative]
        vector = train_steering_vector(model.model, tokenizer, samples, batch_size=len(samples))
        trained.append(torch.stack([vector.layer_activations[layer] for layer in range(BLOCKS)]))
    torch.testing.assert_close(mean_difference(model, PAIRS), torch.stack(trained).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "opt"])
def test_the_last_block_is_read_before_the_final_norm(family: str) -> None:
    model = tiny_model(family)
    direction = mean_difference(model, PAIRS)[-1]
    means: dict[str, list[Tensor]] = {"block": [], "hidden_states": []}
    for pair in PAIRS:
        for text, sign in ((pair.positive, 1), (pair.negative, -1)):
            reading = model.dialogue.reading(text)
            with torch.no_grad():
                states = model.model(torch.tensor([reading.tokens]), output_hidden_states=True).hidden_states[-1][0]
            means["hidden_states"].append(sign * states[reading.start : reading.stop].mean(0))
            means["block"].append(sign * own_states(model, family, "residual", text)[-1].mean(0))
    torch.testing.assert_close(direction, torch.stack(means["block"]).sum(0) / len(PAIRS), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(direction, torch.stack(means["hidden_states"]).sum(0) / len(PAIRS), atol=0.1)


def median(values: list[float]) -> float:
    """torch's median: the lower of the two in the middle."""
    return sorted(values)[(len(values) - 1) // 2]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_residual_norms_by_hand(family: str) -> None:
    model = tiny_model(family)
    norms: list[list[float]] = [[] for _ in range(BLOCKS)]
    for text in NEUTRAL:
        for layer, states in enumerate(own_states(model, family, "residual", text.text)):
            norms[layer] += [float((state.double() ** 2).sum() ** 0.5) for state in states]
    torch.testing.assert_close(residual_norms(model, NEUTRAL), torch.tensor([median(n) for n in norms]), rtol=1e-4, atol=1e-4)


def test_residual_norms_leave_the_first_token_out() -> None:
    """A template that shows the last message alone puts a text's own token first of all."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of().backend_tokenizer, eos_token="</s>")
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    model = wrap("tiny", bare_model("llama", 0), tokenizer)
    for text in ("x!", "be", "It", "happy", NEUTRAL[0].text):  # of two tokens, one is left
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert model.dialogue.reading(text).start == 0
        with torch.no_grad():
            states = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1:BLOCKS]  # not the last: it is normed
        expected = torch.tensor([median([float(state.norm()) for state in layer[0, 1:]]) for layer in states])
        torch.testing.assert_close(residual_norms(model, [NeutralText("a", text)])[:-1], expected, rtol=1e-4, atol=1e-4)


def test_what_stands_at_padding_is_in_no_mean() -> None:
    states = torch.randn(2, 3, WIDTH)
    states[0, 2] = torch.nan
    states[1, 0] = torch.inf
    own = torch.tensor([[True, True, False], [False, False, True]])
    torch.testing.assert_close(reading_of_texts._mean(states, own), torch.stack([states[0, :2].mean(0), states[1, 2]]))


def test_norms_tell_how_far_they_are() -> None:
    told: list[tuple[int, int]] = []
    residual_norms(tiny_model("llama"), NEUTRAL, lambda done, total: told.append((done, total)))
    assert told[-1] == (len(NEUTRAL), len(NEUTRAL))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_readings_by_hand(family: str) -> None:
    """Each text alone, and the one state that its reading names: of the last own token, or of the token before the reply."""
    model = tiny_model(family)
    last, prefix = torch.zeros(BLOCKS, WIDTH), torch.zeros(BLOCKS, WIDTH)
    for pair in PAIRS:
        for text, sign in ((pair.positive, 1), (pair.negative, -1)):
            last += sign * torch.stack([states[-1] for states in own_states(model, family, "residual", text)]) / len(PAIRS)
            seen: list[Tensor] = []
            ids = model.dialogue.tokenizer(f"<s><|user|>{text}</s>\n<|assistant|>", add_special_tokens=False, return_tensors="pt")
            parts = [true_parts(family, layer)["residual"] for layer in range(BLOCKS)]
            handles = [
                part.register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out))
                for part in parts
            ]
            with torch.no_grad():
                model.model(ids.input_ids)
            for handle in handles:
                handle.remove()
            prefix += sign * torch.stack([state.reshape(-1, WIDTH)[-1] for state in seen]) / len(PAIRS)
    norms = torch.ones(BLOCKS)
    for reading, expected in (("last_token", last), ("assistant_prefix", prefix)):
        made = emotion_vector(model, PAIRS, norms, reading=reading)
        torch.testing.assert_close(made.directions, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(last, mean_difference(model, PAIRS), atol=0.01)


def last_words(model: LanguageModel, pairs: list[ContrastivePair], site: str, reading: str = "token_mean") -> Tensor:
    """A method of a user's own that takes a reading."""
    return METHODS["mean_difference"](read_states(model, pairs, site, reading))


def without_reading(model: LanguageModel, pairs: list[ContrastivePair], site: str) -> Tensor:
    return METHODS["mean_difference"](read_states(model, pairs, site))


def test_a_method_of_ones_own_gets_the_reading_or_refuses_it() -> None:
    model, norms = tiny_model("llama"), torch.ones(BLOCKS)
    own = emotion_vector(model, PAIRS, norms, f"{__name__}.last_words", reading="last_token")
    assert own.directions.equal(emotion_vector(model, PAIRS, norms, reading="last_token").directions)
    assert emotion_vector(model, PAIRS, norms, f"{__name__}.without_reading").directions.equal(mean_difference(model, PAIRS))
    with pytest.raises(EmosteerError, match=r"vector.reading=last_token: .*without_reading takes model, pairs and site"):
        emotion_vector(model, PAIRS, norms, f"{__name__}.without_reading", reading="last_token")


# --- a reader, for a process that makes many vectors


@contextmanager
def texts_read(model: LanguageModel) -> Iterator[list[int]]:
    """Rows of each forward."""
    rows: list[int] = []
    handle = model.anatomy.blocks[0].register_forward_hook(
        lambda _m, _a, out: rows.append(len(out[0] if isinstance(out, tuple) else out))
    )
    try:
        yield rows
    finally:
        handle.remove()


def test_a_reader_reads_texts_once_for_all_sites_and_methods() -> None:
    model = tiny_model("llama")
    plain = {site: mean_difference(model, PAIRS, site) for site in ("residual", "attention", "mlp")}
    told: list[tuple[int, int]] = []
    reader = Reader(model, ("mlp", "residual"))
    with texts_read(model) as rows, reader.in_use(lambda done, total: told.append((done, total))):
        first = mean_difference(model, PAIRS, "residual")
        n_rows = len(rows)
        others = {"residual": mean_difference(model, PAIRS, "residual"), "mlp": mean_difference(model, PAIRS, "mlp")}
        assert len(rows) == n_rows > 0, "nothing was read again"
        assert told == [(6, 6)]
        attention = mean_difference(model, PAIRS, "attention")
        assert len(rows) > n_rows, "nobody had said that this site would be asked for"
    assert torch.equal(first, others["residual"])
    for site, found in {**others, "attention": attention}.items():
        torch.testing.assert_close(found, plain[site], rtol=1e-4, atol=1e-5)


def test_a_reader_reads_common_texts_once() -> None:
    """As of two pairs of emotions with one counterpart."""
    model = tiny_model("llama")
    readings = [model.dialogue.reading(text) for text in ("Rain.", "What a garden!", "Rain.", "It is nine.")]
    with Reader(model).in_use():
        with texts_read(model) as rows:
            means = token_means(model, readings[:3])
        assert rows[-1] == 2
        assert torch.equal(means[0], means[2])
        with texts_read(model) as rows:
            again = token_means(model, readings)
        assert rows[-1] == 1
        assert torch.equal(again[:3], means)
    torch.testing.assert_close(again[3], token_means(model, readings[3:])[0], rtol=1e-4, atol=1e-5)


def test_a_reader_forgets_what_was_asked_for_first() -> None:
    model = tiny_model("llama")
    readings = [model.dialogue.reading(text) for text in ("Rain.", "What a garden!", "It is nine.")]
    with Reader(model, most_bytes=2 * BLOCKS * WIDTH * 4).in_use():
        plain = token_means(model, readings)  # more than it may keep
        with texts_read(model) as rows:
            assert torch.equal(token_means(model, readings[1:]), plain[1:])
            assert rows == []
            torch.testing.assert_close(token_means(model, readings[:1]), plain[:1], rtol=1e-4, atol=1e-5)
            assert rows == [1]


def test_a_reader_knows_its_model() -> None:
    """A method that compares two models gets the means of each."""
    model, other = tiny_model("llama"), tiny_model("llama", seed=5)
    reading = model.dialogue.reading("What a garden!")
    plain = [token_means(one, [reading]) for one in (model, other)]
    assert not torch.allclose(*plain)
    with Reader(model, ("mlp",)).in_use():
        for _ in range(2):
            for one, expected in zip((model, other), plain, strict=True):
                assert torch.equal(token_means(one, [reading]), expected)


def test_without_a_reader_nothing_is_remembered() -> None:
    """In a notebook the weights may be others the next time."""
    model = tiny_model("llama", seed=6)
    reading = model.dialogue.reading("What a garden!")
    with Reader(model).in_use():
        pass
    first = token_means(model, [reading])
    weight = model.model.get_input_embeddings().weight
    with torch.no_grad():
        weight.mul_(2)
    try:
        assert not torch.allclose(token_means(model, [reading]), first)
    finally:
        with torch.no_grad():
            weight.div_(2)


@pytest.mark.real_model
def test_the_real_models_norms_are_without_the_sink(smollm2: LanguageModel) -> None:
    norms = residual_norms(smollm2, NEUTRAL)
    assert norms.shape == (30,)
    ids = torch.tensor([smollm2.dialogue.reading(NEUTRAL[0].text).tokens])
    with torch.no_grad():
        states = smollm2.model(ids, output_hidden_states=True).hidden_states[21][0]
    assert states[0].norm() > 20 * norms[20]
    assert states[1:].norm(dim=1).median() < 2 * norms[20]


def test_random_directions() -> None:
    directions = random_direction(3, 1, BLOCKS, WIDTH)
    assert directions.dtype == torch.float32
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(BLOCKS))
    assert torch.equal(directions, random_direction(3, 1, BLOCKS, WIDTH))
    assert torch.equal(directions, random_direction(3, 1, 30, WIDTH)[:BLOCKS])  # independent of the number of blocks
    others = [
        directions,
        random_direction(4, 1, BLOCKS, WIDTH),
        random_direction(3, 2, BLOCKS, WIDTH),
        random_direction(1, 3, BLOCKS, WIDTH),
    ]
    all_of_them = torch.cat(others)
    assert float((all_of_them @ all_of_them.T).fill_diagonal_(0).abs().max()) < 0.9  # by seed, by index, by block


def test_random_directions_are_uniform() -> None:
    width, n = 8, 4000
    draws = torch.cat([random_direction(seed, 0, 40, width) for seed in range(n // 40)]).double()
    # On the sphere a coordinate has mean 0 and variance 1 / width; 5 standard errors.
    assert float(draws.mean(0).abs().max()) < 5 * (1 / width / n) ** 0.5
    second = draws.T @ draws / n
    assert float((second - torch.eye(width) / width).abs().max()) < 5 * (2 / width**2 / n) ** 0.5
    # The fourth moment tells a sphere from a cube: 3 / (width * (width + 2)).
    assert float((draws**4).mean()) == pytest.approx(3 / (width * (width + 2)), rel=0.05)


@pytest.fixture
def vector() -> EmotionVector:
    directions = torch.stack([random_vector(seed, 2.0 + seed) for seed in range(BLOCKS)])
    return EmotionVector(directions, torch.tensor([10.0, 20.0, 150.0, 0.5]))


@pytest.mark.parametrize("layer", range(BLOCKS))
def test_units(vector: EmotionVector, layer: int) -> None:
    direction, norm = vector.directions[layer], float(vector.residual_norm[layer])
    added = vector.added(layer, 0.3, "fraction")
    assert float(added.norm()) == pytest.approx(0.3 * norm, rel=1e-5)
    assert float(torch.cosine_similarity(added, direction, dim=0)) == pytest.approx(1.0, abs=1e-5)
    assert float(torch.cosine_similarity(vector.added(layer, -0.3, "fraction"), direction, dim=0)) == pytest.approx(-1.0, abs=1e-5)
    assert torch.equal(vector.added(layer, 1.5, "raw"), 1.5 * direction)
    assert not vector.added(layer, 0.0, "fraction").any()
    raw = vector.raw_coefficient(layer, 0.3, "fraction")
    torch.testing.assert_close(vector.added(layer, raw, "raw"), added)
    assert vector.fraction(layer, raw, "raw") == pytest.approx(0.3, rel=1e-5)
    assert vector.raw_coefficient(layer, 0.3, "raw") == vector.fraction(layer, 0.3, "fraction") == 0.3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_direction_without_length_is_refused(vector: EmotionVector, bad: float) -> None:
    assert checked(vector) is vector
    vector.directions[2] = 0.0
    vector.directions[2, 5] = bad
    with pytest.raises(EmosteerError, match=r"blocks \[2\]"):
        checked(vector)


def test_emotion_vector_carries_the_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    model, norms = tiny_model("llama"), torch.arange(1.0, BLOCKS + 1)
    made = emotion_vector(model, PAIRS, norms, site="mlp")
    assert made.residual_norm is norms
    assert torch.equal(made.directions, mean_difference(model, PAIRS, "mlp"))
    with pytest.raises(EmosteerError, match=r"choose one of mean_difference, .*, random"):
        emotion_vector(model, PAIRS, norms, method="absent")
    monkeypatch.setitem(METHODS, "broken", lambda *_: torch.full((BLOCKS, WIDTH), torch.nan))
    with pytest.raises(EmosteerError, match="not finite"):
        emotion_vector(model, PAIRS, norms, method="broken")
