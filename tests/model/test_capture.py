from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import BLOCKS, FAMILIES, WITH_SITES, hook_output, random_tokens, tiny_model, true_parts
from torch import Tensor

from emosteer.model.capture import Place, capture, enters_whole, every_place, replace_output, watching
from emosteer.model.language_model import LanguageModel

IDS = torch.tensor(random_tokens(9, 9, seed=1)[:2])


def ran(model: LanguageModel) -> tuple[list[str], list[Any]]:
    """Names of the modules that run, as they do, in a list that grows; and the handles."""
    names: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _m, _a, name=name: names.append(name))
        for name, module in model.model.named_modules()
        if name
    ]
    return names, handles


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("last", [1, BLOCKS - 1])
def test_the_forward_ends_after_the_last_place(family: str, last: int) -> None:
    model = tiny_model(family)
    seen: list[Place] = []
    names, handles = ran(model)
    try:
        with torch.no_grad(), watching(model.anatomy, [("residual", 0), ("residual", last)], lambda p, _: seen.append(p), stops=True):
            model.model(input_ids=IDS, use_cache=False)
            pytest.fail("the forward went on")
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [("residual", 0), ("residual", last)]
    block = next(name for name, module in model.model.named_modules() if module is true_parts(family, last)["residual"])
    later = block.rsplit(".", 1)[0] + f".{last + 1}"
    inside = [name for name in names if name == block or name.startswith(f"{block}.")]
    assert names[-1] == inside[-1], "nothing ran after the block"
    assert later not in names


@pytest.mark.parametrize("family", WITH_SITES)
def test_after_the_last_attention_no_mlp_runs(family: str) -> None:
    model = tiny_model(family)
    mlp = []
    handle = true_parts(family, BLOCKS - 1)["mlp"].register_forward_hook(lambda *_: mlp.append(1))
    with torch.no_grad(), watching(model.anatomy, every_place(model.anatomy, ("attention",)), lambda *_: None, stops=True):
        model.model(input_ids=IDS, use_cache=False)
    handle.remove()
    assert mlp == []


def logits(model: LanguageModel) -> Tensor:
    with torch.no_grad():
        return model.model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_watching_changes_nothing_and_leaves_nothing(family: str) -> None:
    model = tiny_model(family)
    before = logits(model)
    with watching(model.anatomy, every_place(model.anatomy, ("residual",)), lambda *_: None):
        assert torch.equal(logits(model), before)
    for stops in (True, False):
        with watching(model.anatomy, [("residual", 1)], lambda _, states: states * 0, stops=stops):
            changed = logits(model) if not stops else before
            assert stops or not torch.allclose(changed, before)
            if stops:
                logits(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_what_look_returns_goes_on(family: str) -> None:
    model = tiny_model(family)
    place = ("residual", 2)
    with watching(model.anatomy, [place], lambda _, states: states + 1):
        found = logits(model)
    handle = hook_output(true_parts(family, 2)["residual"], lambda states: states + 1)
    expected = logits(model)
    handle.remove()
    assert torch.equal(found, expected)
    with replace_output(model.anatomy.module(*place), lambda states: states + 1):
        assert torch.equal(logits(model), expected)


def test_an_error_inside_passes_and_leaves_no_hook() -> None:
    model = tiny_model("llama")
    before = logits(model)

    def fails(_place: Place, _states: Tensor) -> None:
        raise ValueError("seen enough")

    with pytest.raises(ValueError, match="seen enough"), watching(model.anatomy, [("residual", 1)], fails, stops=True):
        logits(model)
    assert torch.equal(logits(model), before)


def test_one_that_stops_does_not_stop_another_around_it() -> None:
    model = tiny_model("llama")
    outer: list[Place] = []
    with watching(model.anatomy, [("residual", 0), ("residual", 3)], lambda place, _: outer.append(place), stops=True):
        with watching(model.anatomy, [("residual", 1)], lambda *_: None, stops=True):
            logits(model)
        assert outer == [("residual", 0)]
        logits(model)
        pytest.fail("the outer one did not stop")
    assert outer == [("residual", 0), ("residual", 0), ("residual", 3)]


def test_capture_holds_what_falcon_changes_in_place() -> None:
    model = tiny_model("falcon")
    with torch.no_grad(), capture(model.anatomy, ("mlp", "attention", "residual")) as seen:
        model.model(input_ids=IDS, use_cache=False)
    before = seen["residual", 0]
    torch.testing.assert_close(before + seen["mlp", 1] + seen["attention", 1], seen["residual", 1], rtol=1e-4, atol=1e-4)


def test_a_slice_enters_whole() -> None:
    module, states = torch.nn.Linear(8, 3), torch.randn(4, 5, 8)
    plain = module(states[:, -1:])
    seen = []
    with enters_whole(module):
        module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].is_contiguous()))
        torch.testing.assert_close(module(states[:, -1:]), plain)
    module(states[:, -1:])
    assert seen == [True, False]
