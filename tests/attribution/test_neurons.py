"""Single MLP neurons: scored, the strongest kept, and patched exactly."""

from __future__ import annotations

import pytest
import torch
from cases import nine_cases, unaligned_case, with_head
from tiny_models import BLOCKS, WIDTH, tiny_model, true_parts
from torch import Tensor, nn

from emosteer.attribution import Attribution, Case, attribute
from emosteer.attribution.case import metric
from emosteer.attribution.check import check
from emosteer.attribution.exact import patch_components
from emosteer.errors import EmosteerError
from emosteer.model.heads import with_neurons
from emosteer.model.language_model import LanguageModel

DOWN = {
    "llama": "mlp.down_proj",
    "gemma2": "mlp.down_proj",
    "gpt2": "mlp.c_proj",
    "gpt_neox": "mlp.dense_4h_to_h",
    "phi": "mlp.fc2",
    "falcon": "mlp.dense_4h_to_h",
}


def down_of(family: str, layer: int) -> nn.Module:
    return true_parts(family, layer)["residual"].get_submodule(DOWN[family])


@pytest.mark.parametrize("family", DOWN)
def test_they_are_what_the_last_matrix_of_the_mlp_reads(family: str) -> None:
    found = with_neurons(tiny_model(family)).anatomy.down
    assert [id(module) for module in found] == [id(down_of(family, layer)) for layer in range(BLOCKS)]


def test_experts_are_refused() -> None:
    with pytest.raises(EmosteerError, match="neurons of tiny-mixtral: no output projection is found in the mlp of block 0"):
        attribute(tiny_model("mixtral"), nine_cases(), neurons=3)


def products(model: LanguageModel, family: str, case: Case) -> Tensor:
    """(clean - corrupted) . gradient at the corrupted run [block, position, neuron], by autograd and hooks of this test."""
    seen: list[list[Tensor]] = [[], []]
    for number, ids in enumerate((case.clean, case.corrupted)):

        def keep(_m: nn.Module, args: tuple[Tensor, ...], number: int = number) -> None:
            args[0].retain_grad()
            seen[number].append(args[0])

        handles = [down_of(family, layer).register_forward_pre_hook(keep) for layer in range(BLOCKS)]
        embedded = model.model.get_input_embeddings()(torch.tensor([ids])).requires_grad_(True)
        value = metric(model.model(inputs_embeds=embedded, use_cache=False).logits[:, -1], [case])
        for handle in handles:
            handle.remove()
    value.sum().backward()
    return torch.stack([(a.detach() - b.detach())[0] * b.grad[0] for a, b in zip(*seen, strict=True)])  # type: ignore[index]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_strongest_by_hand(family: str) -> None:
    model, cases = tiny_model(family), [*nine_cases(), unaligned_case(20)]
    found = attribute(model, cases, 1, neurons=6)
    assert found.neurons_last is not None
    assert found.neurons_everywhere is not None
    own = [products(model, family, case) for case in cases[:9]]
    by_hand = torch.stack([one.sum(1) for one in own])
    order = by_hand.mean(0).flatten().abs().argsort(descending=True)[:6]
    n = by_hand.shape[2]
    assert found.neurons_everywhere.places == tuple((int(i) // n, int(i) % n) for i in order)
    for kept, (block, neuron) in enumerate(found.neurons_everywhere.places):
        torch.testing.assert_close(found.neurons_everywhere.scores[:, kept], by_hand[:, block, neuron], atol=1e-4, rtol=1e-3)
    for kept, (block, neuron) in enumerate(found.neurons_last.places):
        last = torch.stack([one[block, -1, neuron] for one in own])
        torch.testing.assert_close(found.neurons_last.scores[:9, kept], last, atol=1e-4, rtol=1e-3)
    assert found.neurons_last.scores.shape == (10, 6)


def test_all_neurons_add_up_to_the_mlp() -> None:
    model, cases = tiny_model("llama"), with_head(nine_cases())
    found = attribute(model, cases, neurons=BLOCKS * 2 * WIDTH)
    for neurons, mlp in ((found.neurons_last, found.last["mlp"]), (found.neurons_everywhere, found.everywhere["mlp"])):
        assert neurons is not None
        sums = torch.zeros(9, BLOCKS).index_add(1, torch.tensor([block for block, _ in neurons.places]), neurons.scores)
        torch.testing.assert_close(sums, mlp, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("at", ["last", "all"])
def test_exact_patching_by_hand(at: str) -> None:
    model, case = tiny_model("llama"), nine_cases()[5]
    places = [("neuron", 1, 5), ("neuron", 3, 60), ("mlp", 1), ("neuron", 0, 0)]
    found = patch_components(model, [case], places, at)[0]
    with torch.no_grad():
        start = float(metric(model.model(torch.tensor([case.corrupted])).logits[:, -1], [case]))
    for number in (0, 1, 3):
        _, block, neuron = places[number]
        kept: list[Tensor] = []
        handle = down_of("llama", block).register_forward_pre_hook(lambda _m, args, kept=kept: kept.append(args[0].clone()))
        model.model(torch.tensor([case.clean]))
        handle.remove()

        def put(_m: nn.Module, args: tuple[Tensor, ...], kept: list[Tensor] = kept, neuron: int = neuron) -> tuple[Tensor, ...]:
            states = args[0].clone()
            first = -1 if at == "last" else 0
            states[:, first:, neuron] = kept[0][:, first:, neuron]
            return (states,)

        handle = down_of("llama", block).register_forward_pre_hook(put)
        with torch.no_grad():
            by_hand = float(metric(model.model(torch.tensor([case.corrupted])).logits[:, -1], [case])) - start
        handle.remove()
        assert float(found[number]) == pytest.approx(by_hand, abs=2e-4)


@pytest.mark.parametrize("method", ["attribution_patching", "atp_star"])
def test_those_that_are_kept_are_checked_and_stored(method: str) -> None:
    model, cases = tiny_model("llama"), nine_cases()
    found = attribute(model, cases, neurons=4, method=method)
    agreements = [one for one in check(model, cases, found, 1) if one.site == "neuron"]
    assert [one.position for one in agreements] == ["last", "all"]
    assert found.neurons_last is not None
    assert agreements[0].components == found.neurons_last.places
    sample = [case for case in cases if case.id in found.aligned_ids]
    exact = patch_components(model, sample, [("neuron", *place) for place in found.neurons_last.places])
    # One of the nine is not in the sample.
    left_out = [(exact.sum(0) - one) / 8 for one in exact]
    assert any(torch.allclose(torch.tensor(agreements[0].exact), mean, atol=1e-4) for mean in left_out)
    again = Attribution.from_tensors(found.tensors(), found.pair_ids, found.aligned_ids)
    assert again.neurons_everywhere is not None
    assert found.neurons_everywhere is not None
    assert again.neurons_everywhere.places == found.neurons_everywhere.places
    torch.testing.assert_close(again.neurons_everywhere.scores, found.neurons_everywhere.scores)


def test_none_are_kept_unless_asked_for() -> None:
    found = attribute(tiny_model("llama"), nine_cases())
    assert found.neurons_last is None
    assert not any("neuron" in name for name in found.tensors())
