from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from steering_vectors import SteeringVector
from tiny_models import BLOCKS, WIDTH, WITH_SITES, random_tokens, random_vector, tiny_model, true_parts
from torch import Tensor

from emosteer.model.language_model import LanguageModel
from emosteer.model.padding import PaddedBatch, pad_left
from emosteer.steering import Push, Steering, SteeringPlan, steering_along
from emosteer.vectors import EmotionVector

LENGTHS = (1, 4, 7)
REPLY = 3
"""Of each row's tokens, how many of the last stand for its reply."""


def rows_of_lengths(seed: int = 0) -> list[tuple[int, ...]]:
    return random_tokens(*(n + REPLY for n in LENGTHS), seed=seed)


def outputs(model: LanguageModel, family: str, batch: PaddedBatch, steerings: Sequence[Steering | None] | None) -> dict[Any, Tensor]:
    """What every block, attention and MLP wrote, by hooks of this test that run after the steering's."""
    seen: dict[Any, Tensor] = {}
    n_tokens = [int(n) for n in batch.lengths]
    width = batch.input_ids.shape[1]
    with ExitStack() as stack, torch.no_grad():
        if steerings is not None:
            masks = [
                [0] * (width - n) + (s.strengths(n - REPLY, n) if s else [0] * n) for s, n in zip(steerings, n_tokens, strict=True)
            ]
            plan = SteeringPlan(steerings, model.device, model.dtype)
            stack.enter_context(plan.applied(model.anatomy, torch.tensor(masks)))
        for layer in range(BLOCKS):
            for site, module in true_parts(family, layer).items():

                def keep(_m: Any, _a: Any, output: Any, place: Any = (site, layer)) -> None:
                    seen[place] = (output[0] if isinstance(output, tuple) else output).reshape(*batch.input_ids.shape, -1).clone()

                stack.callback(module.register_forward_hook(keep).remove)
        model.model(**batch.inputs(), use_cache=False)
    return seen


# Of a row of 4 prompt tokens and 3 of a reply, written out.
STEERED = {"generated": "...1111", "prompt": "1111...", "all": "1111111"}


@pytest.mark.parametrize(("scope", "by_hand"), STEERED.items())
def test_scopes_by_hand(scope: str, by_hand: str) -> None:
    assert Steering((), scope).strengths(4, 7) == [int(c == "1") for c in by_hand]


def test_a_coefficient_split_among_blocks_adds_up_to_the_whole() -> None:
    """In the residual norms of each block; raw, in vectors; and a projection is set to as much less."""
    directions = torch.stack([random_vector(seed, 3.0 + seed) for seed in range(BLOCKS)])
    vector = EmotionVector(directions, torch.tensor([2.0, 4.0, 8.0, 16.0]))
    for unit, lengths in (("fraction", vector.residual_norm), ("raw", directions.norm(dim=1))):
        for intervention in ("add", "set"):
            pushes = steering_along(vector, [0, 1, 3], 0.6, unit, intervention, across_blocks="split").pushes
            fractions = [push.vector.norm() / lengths[push.layer] for push in pushes]
            assert [float(fraction) for fraction in fractions] == pytest.approx([0.2] * 3)
            (alone,) = steering_along(vector, [1], 0.6, unit, intervention, across_blocks="split").pushes
            assert float(alone.vector.norm() / lengths[1]) == pytest.approx(0.6)
            whole = steering_along(vector, [0, 1, 3], 0.6, unit, intervention).pushes
            assert [float(push.vector.norm() / lengths[push.layer]) for push in whole] == pytest.approx([0.6] * 3)


def test_a_prompt_of_one_token_is_its_own_last() -> None:
    assert [Steering((), scope).strengths(1, 3) for scope in ("generated", "prompt", "all")] == [[1, 1, 1], [1, 0, 0], [1, 1, 1]]


def is_steered(scope: str, row: int, position: int, width: int) -> bool:
    """Of position `position` of the padded batch, said apart from `Steering.strengths`."""
    own = position - (width - LENGTHS[row] - REPLY)
    if own < 0:
        return False
    last_of_prompt = LENGTHS[row] - 1
    return {"generated": own >= last_of_prompt, "prompt": own <= last_of_prompt, "all": True}[scope]


@pytest.mark.parametrize("scope", ["generated", "prompt", "all"])
@pytest.mark.parametrize("site", ["residual", "attention", "mlp"])
@pytest.mark.parametrize("family", WITH_SITES)
def test_old_state_plus_vector(family: str, site: str, scope: str) -> None:
    model, layer = tiny_model(family), 2
    batch = pad_left(rows_of_lengths(), model.pad_token_id)
    vectors = [random_vector(seed, 5.0) for seed in range(3)]
    steerings = [Steering((Push(site, layer, v),), scope) for v in vectors]
    before = outputs(model, family, batch, None)
    after = outputs(model, family, batch, steerings)
    width = batch.input_ids.shape[1]
    for row, vector in enumerate(vectors):
        for position in range(width):
            old, new = before[site, layer][row, position], after[site, layer][row, position]
            expected = old + vector if is_steered(scope, row, position, width) else old
            assert torch.equal(new, expected), (row, position)
    # Nothing before the steered place knows of it, and the blocks after do.
    for earlier in range(layer):
        assert torch.equal(after["residual", earlier], before["residual", earlier])
    assert not torch.allclose(after["residual", 3][:, -REPLY - 1], before["residual", 3][:, -REPLY - 1])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_rows_without_steering_are_untouched(family: str) -> None:
    model = tiny_model(family)
    batch = pad_left(rows_of_lengths(), model.pad_token_id)
    push = Push("residual", 1, random_vector(0, 5.0))
    before = outputs(model, family, batch, None)
    after = outputs(model, family, batch, [None, Steering((push,), "all"), None])
    for place, states in after.items():
        for row in (0, 2):
            assert torch.equal(states[row], before[place][row]), place
    assert not torch.equal(after["residual", 1][1], before["residual", 1][1])


def test_several_pushes_of_a_row_add_up() -> None:
    model = tiny_model("llama")
    batch = pad_left(rows_of_lengths(), model.pad_token_id)
    a, b, c, d = (random_vector(seed, 3.0) for seed in range(4))
    pushes = (Push("residual", 1, a), Push("residual", 1, b), Push("attention", 1, c), Push("residual", 3, d))
    before = outputs(model, "llama", batch, None)
    after = outputs(model, "llama", batch, [Steering(pushes, "all"), None, Steering(pushes[:1], "all")])
    torch.testing.assert_close(after["attention", 1][0, -4:], before["attention", 1][0, -4:] + c)
    only = outputs(model, "llama", batch, [Steering((pushes[2],), "all"), None, None])
    torch.testing.assert_close(after["residual", 1][0, -4:], only["residual", 1][0, -4:] + a + b)
    torch.testing.assert_close(after["residual", 1][2], before["residual", 1][2] + a)
    without_last = outputs(model, "llama", batch, [Steering(pushes[:3], "all"), None, None])
    torch.testing.assert_close(after["residual", 3][0, -4:], without_last["residual", 3][0, -4:] + d)


def test_without_strengths_every_position_is_steered_and_hooks_go_away() -> None:
    model, ids = tiny_model("llama"), torch.tensor(random_tokens(5))
    vector = random_vector(0, 4.0)
    plan = SteeringPlan([Steering((Push("residual", 3, vector),))], model.device, model.dtype)

    def last_block() -> Tensor:
        return outputs(model, "llama", pad_left(ids.tolist(), 0), None)["residual", 3]

    before = last_block()
    with plan.applied(model.anatomy):
        assert torch.equal(last_block(), before + vector)
    assert torch.equal(last_block(), before)


def test_the_model_stays_in_its_dtype() -> None:
    states = torch.zeros(1, 2, WIDTH, dtype=torch.bfloat16)
    plan = SteeringPlan([Steering((Push("residual", 0, random_vector()),))], torch.device("cpu"), torch.bfloat16)
    layer = torch.nn.Identity()
    from emosteer.model.anatomy import Anatomy

    with plan.applied(Anatomy((layer,), (None,), (None,)), torch.tensor([[0, 1]])):
        steered = layer(states)
    assert steered.dtype == torch.bfloat16
    assert torch.equal(steered[0, 1], random_vector().bfloat16())
    assert not steered[0, 0].any()


def test_strengths_decay_after_the_prompt() -> None:
    assert Steering((), "generated", 0.5).strengths(3, 6) == [0, 0, 1, 0.5, 0.25, 0.125]
    assert Steering((), "all", 0.5).strengths(3, 5) == [1, 1, 1, 0.5, 0.25]
    assert Steering((), "prompt", 0.5).strengths(3, 5) == [1, 1, 1, 0, 0]
    assert Steering((), "generated", 0.0).strengths(1, 3) == [1, 0, 0]


@pytest.mark.parametrize("site", ["residual", "attention", "mlp"])
@pytest.mark.parametrize("length", [0.0, 7.0, -3.0])
def test_a_projection_is_set_and_all_else_is_left(site: str, length: float) -> None:
    model, layer = tiny_model("llama"), 2
    batch = pad_left(rows_of_lengths(), model.pad_token_id)
    unit = random_vector(5, 1.0)
    steering = Steering((Push(site, layer, length * unit, unit),), "all")
    before = outputs(model, "llama", batch, None)[site, layer][2]
    after = outputs(model, "llama", batch, [None, Steering((Push(site, layer, random_vector(1)),)), steering])[site, layer][2]
    assert (before @ unit).abs().min() > 0.01
    torch.testing.assert_close(after @ unit, torch.full((len(after),), length), atol=1e-5, rtol=0)
    across = torch.eye(WIDTH) - torch.outer(unit, unit)
    torch.testing.assert_close(after @ across, before @ across)


def test_half_the_strength_goes_half_the_way() -> None:
    model, unit = tiny_model("llama"), random_vector(5, 1.0)
    batch = pad_left(rows_of_lengths(), model.pad_token_id)
    steering = Steering((Push("residual", 2, 4.0 * unit, unit),), "generated", 0.5)
    before = outputs(model, "llama", batch, None)["residual", 2][2] @ unit
    after = outputs(model, "llama", batch, [None, None, steering])["residual", 2][2] @ unit
    strengths = torch.tensor([0.0] * 6 + [1, 0.5, 0.25, 0.125])
    torch.testing.assert_close(after, before + strengths * (4.0 - before), atol=1e-5, rtol=1e-5)


def test_a_cleared_direction_stands_alone_at_its_place() -> None:
    unit = random_vector(5, 1.0)
    cleared, added = Push("residual", 2, 0 * unit, unit), Push("residual", 2, unit)
    Steering((cleared, Push("residual", 1, unit), Push("mlp", 2, unit)))
    for pushes in ((cleared, added), (cleared, cleared)):
        with pytest.raises(ValueError, match="cleared at"):
            Steering(pushes)


def library_logits(model: LanguageModel, ids: Tensor, vector: SteeringVector, multiplier: float, first: int) -> Tensor:
    with torch.no_grad(), vector.apply(model.model, multiplier=multiplier, min_token_index=first):
        return model.model(ids).logits


def our_logits(model: LanguageModel, ids: Tensor, steering: Steering, n_prompt: int) -> Tensor:
    plan = SteeringPlan([steering], model.device, model.dtype)
    with torch.no_grad(), plan.applied(model.anatomy, torch.tensor([steering.strengths(n_prompt, ids.shape[1])])):
        return model.model(ids).logits


LIBRARY_SITES = {"residual": "decoder_block", "attention": "self_attn", "mlp": "mlp"}


@pytest.mark.parametrize("site", LIBRARY_SITES)
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gpt_neox"])
def test_agrees_with_the_steering_vectors_library(family: str, site: str) -> None:
    model, ids = tiny_model(family), torch.tensor(random_tokens(9))
    raw = {1: random_vector(1), 3: random_vector(3)}
    pushes = tuple(Push(site, layer, 2.5 * vector) for layer, vector in raw.items())
    library = SteeringVector(raw, layer_type=LIBRARY_SITES[site])  # type: ignore[arg-type]
    for scope, first in {"all": 0, "generated": 5}.items():
        theirs = library_logits(model, ids, library, 2.5, first)
        torch.testing.assert_close(our_logits(model, ids, Steering(pushes, scope), 6), theirs)
    assert not torch.allclose(theirs, model.model(ids).logits, atol=1e-2)


@pytest.mark.real_model
def test_agrees_with_the_library_on_the_real_model(smollm2: LanguageModel) -> None:
    ids = torch.tensor([smollm2.dialogue.prompt([{"role": "user", "content": "I found my old guitar."}])])
    vector = random_vector(0, 40.0, smollm2.width)
    theirs = library_logits(smollm2, ids, SteeringVector({10: vector}), 2.0, 0)
    ours = our_logits(smollm2, ids, Steering((Push("residual", 10, 2.0 * vector),), "all"), ids.shape[1])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
