"""AtP*: queries and keys by probabilities computed anew, and gradients that leave out each block's addition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import nine_cases, unaligned_case, with_head
from tiny_models import BLOCKS, HEADS, bare_model, common, make_model, tiny_model, tokenizer_of, true_parts
from torch import Tensor, nn

from emosteer.attribution import Attribution, Case, attribute
from emosteer.attribution.case import metric
from emosteer.attribution.check import check
from emosteer.attribution.exact import patch_exactly
from emosteer.config import ModelConfig
from emosteer.errors import EmosteerError
from emosteer.model.attention import opened, with_open_attention
from emosteer.model.heads import with_heads
from emosteer.model.language_model import LanguageModel, wrap

KEY_HEADS = 2


@contextmanager
def projected(projection: nn.Module, change: Any) -> Iterator[None]:
    """`change(states)` in place of what a projection to queries or keys puts out, before anything is rotated."""
    handle = projection.register_forward_hook(lambda _m, _a, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def patched_by_hand(model: LanguageModel, projection: nn.Module, case: Case, first: int, head: int, n_heads: int) -> float:
    """By how much the metric of the corrupted row rises with a head's clean queries or keys, from a position on."""
    kept: list[Tensor] = []

    def put(states: Tensor) -> Tensor:
        states = states.clone()
        parts = states.view(*states.shape[:2], n_heads, -1)
        parts[:, first:, head] = kept[0].view(*states.shape[:2], n_heads, -1)[:, first:, head]
        return states

    def value(ids: tuple[int, ...]) -> float:
        with torch.no_grad():
            return float(metric(model.model(torch.tensor([ids])).logits[:, -1], [case]))

    with projected(projection, lambda states: kept.append(states.clone())):
        value(case.clean)
    start = value(case.corrupted)
    with projected(projection, put):
        return value(case.corrupted) - start


@pytest.mark.parametrize("at", ["last", "all"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mistral"])
def test_exact_patching_of_queries_and_keys_by_hand(family: str, at: str) -> None:
    model, cases = tiny_model(family), [*with_head(nine_cases()[:2]), nine_cases()[5]]
    for site, name, n_heads in (("query", "q_proj", HEADS), ("key", "k_proj", KEY_HEADS)):
        found = patch_exactly(model, cases, site, at)
        assert found.shape == (3, BLOCKS, n_heads)
        for row, case in enumerate(cases):
            first = -1 if at == "last" else -len(case.clean)
            for layer in range(BLOCKS):
                projection = true_parts(family, layer)["residual"].get_submodule(f"self_attn.{name}")
                for head in range(n_heads):
                    by_hand = patched_by_hand(model, projection, case, first, head, n_heads)
                    assert found[row, layer, head] == pytest.approx(by_hand, abs=2e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "mistral", "gpt2", "gpt_neox", "phi", "olmo2", "mixtral"])
def test_an_opened_model_gives_its_own_numbers(family: str) -> None:
    model = with_open_attention(tiny_model(family))
    assert model.anatomy.n_key_heads == (HEADS if family in ("gpt2", "gpt_neox") else KEY_HEADS)
    ids = torch.tensor([nine_cases()[0].clean * 2])
    with torch.no_grad():
        own = model.model(ids).logits
        before = model.model.config._attn_implementation
        with opened(model):
            torch.testing.assert_close(model.model(ids).logits, own, atol=1e-4, rtol=1e-4)
    assert model.model.config._attn_implementation == before


@pytest.mark.parametrize("family", ["falcon", "bloom", "opt"])
def test_what_cannot_be_opened_is_refused_with_the_reason(family: str) -> None:
    with pytest.raises(
        EmosteerError, match=r"^attribution.method=atp_star: .*tiny-.*; choose attribution.method=attribution_patching$"
    ):
        attribute(tiny_model(family), nine_cases(), method="atp_star")


def test_a_method_that_is_none_is_refused() -> None:
    with pytest.raises(EmosteerError, match=r"attribution.method=atp: choose one of attribution_patching, atp_star"):
        attribute(tiny_model(), nine_cases(), method="atp")


def linear_after_attention() -> LanguageModel:
    """A model of one block, and nothing but linear maps behind its attention's probabilities, which are sharp."""
    model = make_model("LlamaConfig", common(num_hidden_layers=1), seed=3)
    model.model.norm = nn.Identity()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.layers[0].self_attn.q_proj.weight.mul_(4)
    return wrap("linear after attention", model, tokenizer_of(), ModelConfig(attention="self_attn", mlp="mlp"))


@pytest.mark.parametrize("checkpoints", [False, True])
def test_queries_and_keys_are_exact_where_all_behind_them_is_linear(checkpoints: bool) -> None:
    # With one word a side, the metric is a difference of two logits.
    model = linear_after_attention()
    # In one block only the last position's query says anything: it has to differ.
    cases = [replace(case, corrupted=(*case.corrupted[:-1], 9 + row)) for row, case in enumerate(with_head(nine_cases(words=1)))]
    found = attribute(model, cases, checkpoints=checkpoints, method="atp_star")
    for site in ("query", "key"):
        for at, scores in (("last", found.last), ("all", found.everywhere)):
            exact = patch_exactly(model, cases, site, at)
            torch.testing.assert_close(scores[site], exact, atol=2e-4, rtol=1e-3)
    # A gradient alone would not do: it takes the softmax for linear too.
    exact = patch_exactly(model, cases, "query", "all")
    plain = torch.stack([gradient_of_queries(model, case) for case in cases])
    assert float(exact.abs().max()) > 0.1
    assert float((plain - exact[:, 0]).norm() / exact.norm()) > 0.3


def gradient_of_queries(model: LanguageModel, case: Case) -> Tensor:
    """(clean - corrupted query) . gradient [head], without the fix."""
    seen: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        seen.append(states.detach().requires_grad_(True))
        return seen[-1]

    projection = model.anatomy.blocks[0].get_submodule("self_attn.q_proj")
    with projected(projection, keep):
        model.model(torch.tensor([case.clean]))
        metric(model.model(torch.tensor([case.corrupted])).logits[:, -1], [case]).sum().backward()
    product = (seen[0].detach() - seen[1].detach()) * seen[1].grad  # type: ignore[operator]
    return product.view(len(case.clean), HEADS, -1).sum((0, 2))


class OneLessItsTanh(nn.Module):
    """Takes out nearly all that enters, where that is small."""

    def forward(self, states: Tensor) -> Tensor:
        return -states.tanh()


def cancelling() -> LanguageModel:
    """Two blocks: what the first lets through the second takes out again, as far as its gradient at 0 tells."""
    model = make_model("LlamaConfig", common(num_hidden_layers=2), seed=4)
    model.model.norm = nn.Identity()
    first, second = model.model.layers
    for block in (first, second):
        block.post_attention_layernorm = nn.Identity()
        block.self_attn.o_proj.weight.zero_()
    first.mlp = nn.Linear(32, 32, bias=False).requires_grad_(False)
    first.mlp.weight.copy_(torch.eye(32))
    second.mlp = OneLessItsTanh()
    return wrap("cancelling", model, tokenizer_of(), ModelConfig(attention="self_attn", mlp="mlp"))


def test_paths_that_cancel_are_seen() -> None:
    model = cancelling()
    cases = []
    for case in nine_cases(words=1):
        clean, corrupted = case.clean, (*case.clean[:-1], 7)
        cases.append(Case(case.id, clean, corrupted, case.expressive, case.counterpart))
    with torch.no_grad():
        model.model.get_input_embeddings().weight[7] = 0  # the corrupted run's last position is 0 throughout
    exact = patch_exactly(model, cases, "mlp", "last")[:, 0]
    plain = attribute(model, cases).last["mlp"][:, 0]
    star = attribute(model, cases, method="atp_star").last["mlp"][:, 0]
    difference = model.model.get_input_embeddings()(torch.tensor([case.clean[-1] for case in cases]))
    head = model.model.get_output_embeddings().weight
    toward = torch.stack([head[case.expressive[0]] - head[case.counterpart[0]] for case in cases])

    assert float(exact.abs().mean()) > 0.1
    torch.testing.assert_close(plain, torch.zeros(9), atol=1e-5, rtol=0)
    # The one gradient that goes past the second block, of one other block than its own.
    torch.testing.assert_close(star.abs(), (difference * toward).sum(-1).abs(), atol=1e-4, rtol=1e-4)


def dropped_by_hand(model: LanguageModel, case: Case, drop: int | None) -> dict[tuple[str, int], Tensor]:
    """(clean - corrupted) . gradient [position] of attention, MLP and block outputs, by hooks of this test."""
    seen: list[dict[tuple[str, int], Tensor]] = [{}, {}]
    for number, ids in enumerate((case.clean, case.corrupted)):
        handles = []
        for layer in range(BLOCKS):
            block = true_parts("llama", layer)["residual"]

            def leave_out(_m: Any, args: Any, output: Tensor, layer: int = layer) -> Any:
                return output.detach() + args[0] - args[0].detach() if layer == drop else None

            handles.append(block.register_forward_hook(leave_out))
            for site, module in true_parts("llama", layer).items():

                def keep(_m: Any, _a: Any, output: Any, place: Any = (site, layer), number: int = number) -> None:
                    seen[number][place] = output[0] if isinstance(output, tuple) else output
                    seen[number][place].retain_grad()

                handles.append(module.register_forward_hook(keep))
        embedded = model.model.get_input_embeddings()(torch.tensor([ids])).requires_grad_(True)
        value = metric(model.model(inputs_embeds=embedded, use_cache=False).logits[:, -1], [case])
        for handle in handles:
            handle.remove()
    value.sum().backward()

    def product(place: tuple[str, int]) -> Tensor:
        slope = seen[1][place].grad
        difference = seen[0][place].detach() - seen[1][place].detach()
        return torch.zeros(len(case.clean)) if slope is None else (difference * slope)[0].sum(-1)

    return {place: product(place) for place in seen[1]}


def test_dropped_gradients_by_hand() -> None:
    model, cases = tiny_model("llama"), nine_cases()
    found = attribute(model, cases, method="atp_star")
    for row, case in enumerate(cases[:3]):
        plain = dropped_by_hand(model, case, None)
        dropped = [dropped_by_hand(model, case, block) for block in range(BLOCKS)]
        for (site, layer), own in plain.items():
            mean = torch.stack([one[site, layer].abs() for one in dropped]).sum(0) / (BLOCKS - (site != "residual"))
            expected = torch.where(own < 0, -mean, mean)
            scores = found.residual_by_position if site == "residual" else found.added_by_position[site]
            torch.testing.assert_close(scores[row, layer, -len(case.clean) :], expected, atol=1e-4, rtol=1e-3)
            assert found.last[site][row, layer] == pytest.approx(float(expected[-1]), abs=1e-4, rel=1e-3)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_pairs_of_unequal_length_have_no_queries(direction: str) -> None:
    model, cases = tiny_model("gpt2"), [*nine_cases(), unaligned_case(20)]
    found = attribute(model, cases, method="atp_star", direction=direction)
    assert found.last["query"].shape == found.last["key"].shape == (10, BLOCKS, HEADS)
    assert found.last["query"].isnan().all(dim=(1, 2)).tolist() == [False] * 9 + [True]
    assert not found.last["mlp"].isnan().any()
    agreements = check(model, cases, found, 2)
    assert [(one.site, one.position) for one in agreements] == [
        (site, at) for at in ("last", "all") for site in ("attention", "mlp", "head", "query", "key")
    ]
    again = Attribution.from_tensors(found.tensors(), found.pair_ids, found.aligned_ids, direction=direction)
    torch.testing.assert_close(again.last["key"], found.last["key"], equal_nan=True)
    torch.testing.assert_close(again.everywhere["query"], found.everywhere["query"])


def test_a_model_is_left_as_it_was() -> None:
    model = with_heads(tiny_model("llama"))
    # transformers leaves hooks of its own on a model that was once asked for its hidden states
    before = bare_model("llama", 0).config._attn_implementation, [list(block._forward_hooks) for block in model.anatomy.blocks]
    attribute(model, nine_cases(), method="atp_star")
    after = bare_model("llama", 0).config._attn_implementation, [list(block._forward_hooks) for block in model.anatomy.blocks]
    assert after == before
