"""Extraction in batches and parts, against texts that were read one by one, whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_prefix import forgetful, hybrid
from tiny_models import BLOCKS, FAMILIES, WITH_SITES, random_tokens, tiny_model, true_parts
from torch import Tensor

from emosteer.model import extraction
from emosteer.model.dialogue import Reading
from emosteer.model.extraction import Extracted, extract
from emosteer.model.language_model import LanguageModel

HEAD = random_tokens(7, seed=80)[0]
LENGTHS = (3, 11, 6, 1, 8, 2, 5, 9, 4)


def readings(head: tuple[int, ...] = HEAD) -> list[Reading]:
    """Nine texts of unequal length after a head, the third with two more tokens before its own; and two tokens after each."""
    found = []
    for number, own in enumerate(random_tokens(*LENGTHS, seed=81)):
        before = head + (random_tokens(2, seed=82)[0] if number == 2 else ())
        found.append(Reading(before + own + random_tokens(2, seed=83)[0], len(before), len(before) + len(own)))
    return found


def alone(model: LanguageModel, modules: Sequence[torch.nn.Module], reading: Reading) -> list[Tensor]:
    """Sums [width] of modules' outputs over a text's own tokens, by hooks of this test, in one forward over the whole text."""
    seen: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            seen[number] = states.reshape(len(reading.tokens), -1)[reading.start : reading.stop].sum(0)

        return hook

    handles = [module.register_forward_hook(keep(number)) for number, module in enumerate(modules)]
    with torch.no_grad():
        model.model(input_ids=torch.tensor([reading.tokens]), use_cache=False)
    for handle in handles:
        handle.remove()
    return [seen[number] for number in range(len(modules))]


def assert_as_alone(found: Tensor, model: LanguageModel, modules: Sequence[torch.nn.Module], texts: Sequence[Reading]) -> None:
    """Sums [text, block, width] at the modules, one a block."""
    expected = torch.stack([torch.stack(alone(model, modules, text)) for text in texts])
    for layer in range(len(modules)):
        scale = float(expected[:, layer].abs().max())
        torch.testing.assert_close(found[:, layer], expected[:, layer], rtol=1e-4, atol=1e-4 * scale)


def parts(family: str, site: str) -> list[torch.nn.Module]:
    return [true_parts(family, layer)[site] for layer in range(BLOCKS)]


def own_sums(states: Tensor, own: Tensor) -> Tensor:
    return (states * own[:, :, None]).sum(1)


def sums(model: LanguageModel, texts: list[Reading], *sites: str) -> dict[str, Tensor]:
    """Sums over own tokens [text, block, width] for each site."""
    found: dict[str, list[Any]] = {site: [None] * len(texts) for site in sites}

    def take(batch: Extracted) -> None:
        for site, values in batch.by_site.items():
            for row, value in zip(batch.rows, values, strict=True):
                assert found[site][row] is None
                found[site][row] = value

    extract(model, texts, sites, own_sums, take)
    return {site: torch.stack(values) for site, values in found.items()}


@contextmanager
def embedded(model: LanguageModel) -> Iterator[list[tuple[int, int]]]:
    """Rows and positions of each forward."""
    shapes: list[tuple[int, int]] = []
    module = model.model.get_input_embeddings()
    handle = module.register_forward_hook(lambda _m, args, _o: shapes.append(tuple(args[0].shape)))
    try:
        yield shapes
    finally:
        handle.remove()


@pytest.mark.parametrize("most", [2048, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_text_as_if_it_were_alone(family: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "BATCH_TOKENS", most)
    model = tiny_model(family)
    sites = ("residual", "attention", "mlp") if family in WITH_SITES else ("residual",)
    found = sums(model, readings(), *sites)
    for site in sites:
        assert_as_alone(found[site], model, parts(family, site), readings())


@pytest.mark.parametrize("kind", ["MambaConfig", "Lfm2Config"])
def test_a_model_with_another_memory(kind: str) -> None:
    model = hybrid(kind)
    found = sums(model, readings(), "residual")["residual"]
    assert_as_alone(found, model, model.anatomy.blocks, readings())


def test_a_model_that_forgets() -> None:
    expected = sums(tiny_model("llama"), readings(), "mlp")["mlp"]
    with forgetful() as model:
        torch.testing.assert_close(sums(model, readings(), "mlp")["mlp"], expected, rtol=1e-4, atol=1e-4)


def test_the_head_is_read_once_and_nothing_after_a_text() -> None:
    model = tiny_model("llama")
    with embedded(model) as shapes:
        sums(model, readings(), "residual", "mlp")
    longest = len(HEAD) + max(LENGTHS)
    # To see that it agrees: the longest whole, and in two parts. Then the head, and all texts in one batch after it.
    assert shapes == [(1, longest), (1, len(HEAD)), (1, max(LENGTHS)), (1, len(HEAD)), (len(LENGTHS), max(LENGTHS))]


def test_texts_of_like_length_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "BATCH_TOKENS", 20)
    model = tiny_model("llama")
    with embedded(model) as shapes:
        sums(model, readings(), "residual")
    own = sorted((n + 2 * (number == 2) for number, n in enumerate(LENGTHS)), reverse=True)
    assert own == [11, 9, 8, 8, 5, 4, 3, 2, 1]
    assert shapes[4:] == [(1, 11), (2, 9), (2, 8), (4, 4)]


def test_texts_that_begin_differently_are_read_whole() -> None:
    model = tiny_model("llama")
    texts = readings()[:4] + readings(random_tokens(5, seed=89)[0])[4:]
    with embedded(model) as shapes:
        found = sums(model, texts, "residual")["residual"]
    assert shapes == [(len(texts), max(text.stop for text in texts))]
    assert_as_alone(found, model, parts("llama", "residual"), texts)


def test_few_texts_are_read_whole() -> None:
    """To read the head first would cost more than it saves."""
    model, texts = tiny_model("llama"), readings()[:2]
    with embedded(model) as shapes:
        found = sums(model, texts, "mlp")["mlp"]
    assert shapes == [(2, max(text.stop for text in texts))]
    assert_as_alone(found, model, parts("llama", "mlp"), texts)


def test_a_text_without_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the norms have them, of a text that is nothing but the first token of all."""
    monkeypatch.setattr(extraction, "BATCH_TOKENS", 1)
    model, texts = tiny_model("llama"), [*readings(), Reading(HEAD, len(HEAD), len(HEAD))]
    found = sums(model, texts, "mlp")["mlp"]
    assert not found[-1].any()
    assert_as_alone(found, model, parts("llama", "mlp"), texts)


def test_own_tokens_in_the_common_beginning_are_read() -> None:
    """All texts begin with one word, which is theirs; one is nothing else."""
    model = tiny_model("llama")
    texts = [Reading(HEAD + own, 3, len(HEAD) + len(own)) for own in random_tokens(4, 5, 6, 4, 5, 6, 7, seed=84)]
    texts.append(Reading(HEAD, 3, len(HEAD)))
    assert_as_alone(sums(model, texts, "mlp")["mlp"], model, parts("llama", "mlp"), texts)


def test_neither_output_matrix_nor_final_norm_runs() -> None:
    model = tiny_model("llama")
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in (("head", model.model.lm_head), ("norm", model.model.model.norm))
    ]
    sums(model, readings(), "residual", "attention")
    for handle in handles:
        handle.remove()
    assert ran == []


def test_out_of_memory_halves_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    expected = sums(model, readings(), "mlp")["mlp"]

    def fails(_module: Any, args: Any) -> None:
        if args[0].shape[0] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = model.anatomy.blocks[2].register_forward_pre_hook(fails)
    found = sums(model, readings(), "mlp")["mlp"]
    handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert caplog.messages == [
        "out of memory with 9 rows at once: going on with 4",
        "out of memory with 4 rows at once: going on with 2",
        "out of memory with 4 rows at once: going on with 2",
    ]


def test_progress_is_in_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "BATCH_TOKENS", 20)
    told: list[tuple[int, int]] = []
    extract(tiny_model("llama"), readings(), ("mlp",), own_sums, lambda _: None, lambda done, total: told.append((done, total)))
    assert told == [(1, 9), (3, 9), (5, 9), (9, 9)]
