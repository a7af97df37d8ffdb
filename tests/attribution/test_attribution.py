from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from cases import BLOCKS, HandingOnDecoder, LinearDecoder, aligned_case, linear_model, nine_cases, unaligned_case, with_head
from safetensors.torch import load_file, save_file
from scipy import stats
from tiny_models import HEADS, WITH_SITES, hook_output, tiny_model, tokenizer_of, true_parts, true_projection
from torch import Tensor

from emosteer.attribution import Attribution, Case, attribute, exact, gradient, prepare, runs
from emosteer.attribution.case import metric
from emosteer.attribution.check import check
from emosteer.attribution.exact import patch_exactly
from emosteer.attribution.graph import counting
from emosteer.datasets import SHIPPED, DiagnosticPair, load_diagnostic_pairs
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel, wrap
from emosteer.vectors import token_means

SITES = ("residual", "attention", "mlp")


def metric_by_hand(logits: Tensor, case: Case) -> float:
    p = logits.double().softmax(-1)
    return float(sum(p[t] for t in case.expressive).log() - sum(p[t] for t in case.counterpart).log())  # type: ignore[union-attr]


# --- the metric and the cases


def test_metric_is_the_log_ratio_of_the_lists() -> None:
    logits = torch.randn(9, 340, generator=torch.Generator().manual_seed(0))
    expected = [metric_by_hand(row, case) for row, case in zip(logits, nine_cases(), strict=True)]
    torch.testing.assert_close(metric(logits, nine_cases()), torch.tensor(expected))


def test_first_difference_counts_from_the_end() -> None:
    case = Case("a", (1, 2, 3, 4, 5), (1, 2, 9, 4, 8), (1,), (2,))
    assert case.is_aligned
    assert case.first_difference == -3
    assert not replace(case, corrupted=(1, 2)).is_aligned


def diagnostic_pairs(n: int = 8, **changes: Any) -> list[DiagnosticPair]:
    pair = DiagnosticPair("d", "We won the game.", "We lost the game.", "I am so", (" happy", " glad"), (" sad", " sorry"))
    return [replace(pair, id=f"d{number}", **changes) for number in range(n)]


def test_prepare_by_hand() -> None:
    model = tiny_model("llama")
    tokenizer = tokenizer_of()
    case = prepare(model, diagnostic_pairs(8, expressive=(" happy", " happy!", " glad")))[3]
    assert case.id == "d3"
    assert tokenizer.decode(case.clean) == "<s><|user|>We won the game.</s>\n<|assistant|>I am so"
    assert tokenizer.decode(case.corrupted) == "<s><|user|>We lost the game.</s>\n<|assistant|>I am so"
    firsts = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in (" happy", " glad", " sad", " sorry")]
    assert set(case.expressive) == set(firsts[:2])
    assert len(case.expressive) == len(set(case.expressive))
    assert set(case.counterpart) == set(firsts[2:])


def test_prepare_refuses() -> None:
    model = tiny_model("llama")
    with pytest.raises(EmosteerError, match="7 diagnostic pairs: attribution needs at least 8"):
        prepare(model, diagnostic_pairs(7))
    with pytest.raises(EmosteerError, match="d0: both word lists"):
        prepare(model, diagnostic_pairs(8, counterpart=(" happy again",)))


# --- attribution against its definition


def states_and_slopes(model: LanguageModel, family: str, embedded: Tensor, case: Case) -> tuple[dict[Any, Tensor], dict[Any, Tensor]]:
    """Activations and the metric's gradient at every place [position, width] of one row, by autograd and hooks of this test."""
    seen: dict[Any, Tensor] = {}
    handles = []
    for layer in range(BLOCKS):
        for site, module in true_parts(family, layer).items():

            def keep(_m: Any, _a: Any, output: Any, place: Any = (site, layer)) -> Any:
                seen[place] = output[0] if isinstance(output, tuple) else output
                seen[place].retain_grad()
                # Falcon adds the attention to what it is given of its MLP, in place.
                return (seen[place].clone(), *output[1:]) if isinstance(output, tuple) else seen[place].clone()

            handles.append(module.register_forward_hook(keep))

        def keep_entering(_m: Any, args: Any, place: Any = ("head", layer)) -> Any:
            seen[place] = args[0]
            seen[place].retain_grad()

        handles.append(true_projection(family, layer).register_forward_pre_hook(keep_entering))
        if layer == 0:
            handles.append(true_parts(family, 0)["residual"].register_forward_pre_hook(partial(keep_entering, place=("before", 0))))
    try:
        logits = model.model(inputs_embeds=embedded.clone().requires_grad_(True), use_cache=False).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    logp = logits.log_softmax(-1)
    value = torch.logsumexp(logp[list(case.expressive)], 0) - torch.logsumexp(logp[list(case.counterpart)], 0)
    value.backward()
    return {p: s.detach()[0] for p, s in seen.items()}, {p: s.grad[0] for p, s in seen.items() if s.grad is not None}


def products_by_hand(model: LanguageModel, family: str, case: Case, steps: int) -> dict[Any, Tensor]:
    """(clean - corrupted) . gradient [position], at 0, 1/steps, ... of the way between the embeddings; one row, no padding.

    Of prompts of unequal length: the positions that both have, from the end.
    """
    embedding = model.model.get_input_embeddings()
    clean, corrupted = (embedding(torch.tensor([ids])) for ids in (case.clean, case.corrupted))
    clean_states, _ = states_and_slopes(model, family, clean, case)
    corrupted_states, slopes = states_and_slopes(model, family, corrupted, case)
    common = min(len(case.clean), len(case.corrupted))
    for step in range(1, steps):
        _, more = states_and_slopes(model, family, corrupted + step / steps * (clean - corrupted), case)
        slopes = {place: slope + more[place] for place, slope in slopes.items()}
    ends = {place: (clean_states[place][-common:] - corrupted_states[place][-common:], slopes[place][-common:]) for place in slopes}
    products = {place: difference * slope / steps for place, (difference, slope) in ends.items()}
    # Of heads [position, head].
    return {p: (v.reshape(common, HEADS, -1) if p[0] == "head" else v).sum(-1) for p, v in products.items()}


FAMILIES = ["llama", "gemma3", "gpt_neox"]
ALL_FAMILIES = [pytest.param(family, 2, 2, 2, False, id=family) for family in WITH_SITES]


@pytest.mark.parametrize(
    ("family", "steps", "at_last", "elsewhere", "checkpoints"),
    [
        *ALL_FAMILIES,
        *[("llama", 1, 1, 1, False), ("gemma3", None, 1, 5, False), ("gpt_neox", 3, 3, 3, False)],
        *[("llama", None, 1, 5, True), ("gemma3", 2, 2, 2, True), ("falcon", 1, 1, 1, True), ("mixtral", 1, 1, 1, True)],
    ],
)
def test_scores_by_hand(family: str, steps: int | None, at_last: int, elsewhere: int, checkpoints: bool) -> None:
    model = tiny_model(family)
    cases = [*with_head(nine_cases()[:5]), *nine_cases()[5:]] if steps == 1 else with_head(nine_cases())
    found = attribute(model, cases, steps, checkpoints=checkpoints)
    assert_by_hand(found, model, family, cases, at_last, elsewhere)


def assert_by_hand(found: Attribution, model: LanguageModel, family: str, cases: list[Case], at_last: int, elsewhere: int) -> None:
    assert found.pair_ids == found.aligned_ids == tuple(case.id for case in cases)
    assert found.n_dropped == 0
    longest = max(len(case.clean) for case in cases)
    assert found.residual_by_position.shape == (len(cases), BLOCKS, longest)
    for row, case in enumerate(cases):
        last, everywhere = (products_by_hand(model, family, case, n) for n in (at_last, elsewhere))
        for layer in range(BLOCKS):
            for site in SITES:
                assert found.last[site][row, layer] == pytest.approx(float(last[site, layer][-1]), abs=1e-4, rel=1e-3)
            for at, values in ((found.last, last["head", layer][-1]), (found.everywhere, everywhere["head", layer].sum(0))):
                torch.testing.assert_close(at["head"][row, layer], values, atol=1e-4, rtol=1e-3)
            for site in ("attention", "mlp"):
                assert found.everywhere[site][row, layer] == pytest.approx(float(everywhere[site, layer].sum()), abs=1e-4, rel=1e-3)
            for own, place in (
                (found.residual_by_position[row, layer], ("residual", layer)),
                (found.added_by_position["attention"][row, layer], ("attention", layer)),
                (found.added_by_position["mlp"][row, layer], ("mlp", layer)),
                (found.residual_before_by_position()[row, layer], ("residual", layer - 1) if layer else ("before", 0)),
            ):
                torch.testing.assert_close(own[-len(case.clean) :], everywhere[place], atol=1e-4, rtol=1e-3)
                assert bool(own[: -len(case.clean)].isnan().all())
        logits = [model.model(torch.tensor([ids])).logits[0, -1] for ids in (case.clean, case.corrupted)]
        assert found.metric_clean[row] == pytest.approx(metric_by_hand(logits[0], case), abs=1e-4)
        assert found.metric_corrupted[row] == pytest.approx(metric_by_hand(logits[1], case), abs=1e-4)


def test_unaligned_pairs_serve_at_the_last_position_only() -> None:
    model, aligned = tiny_model("llama"), nine_cases()
    cases = [aligned[0], unaligned_case(20), *aligned[1:6], unaligned_case(21), *aligned[6:]]
    seen: list[tuple[int, int]] = []
    found, without = attribute(model, cases, on_progress=lambda done, total: seen.append((done, total))), attribute(model, aligned)
    assert seen[-1] == (11, 11)
    assert found.pair_ids == tuple(case.id for case in cases)
    assert found.aligned_ids == without.pair_ids
    assert found.n_dropped == 2
    for row, case in enumerate(cases):
        steps_at_start = products_by_hand(model, "llama", case, 1)
        for site in SITES:
            by_hand = [float(steps_at_start[site, layer][-1]) for layer in range(BLOCKS)]
            assert found.last[site][row].tolist() == pytest.approx(by_hand, abs=1e-4, rel=1e-3)
    for site in ("attention", "mlp"):
        torch.testing.assert_close(found.everywhere[site], without.everywhere[site], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.residual_by_position, without.residual_by_position, atol=1e-4, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize("tokens", [6, 17])
def test_scores_do_not_depend_on_batches(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    cases = [*with_head(nine_cases()), unaligned_case(20), unaligned_case(21)]
    whole = attribute(model, cases)
    monkeypatch.setattr(runs, "MOST_TOKENS", tokens)
    told: list[tuple[int, int]] = []
    found = attribute(model, cases, on_progress=lambda done, total: told.append((done, total)))
    assert_equal_scores(found, whole)
    assert len(told) > 4
    assert told == sorted(told)
    assert told[-1] == (11, 11)


def test_long_beginnings_make_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their keys and values take memory too."""
    model, cases = tiny_model("llama"), with_head(nine_cases(), 30)
    monkeypatch.setattr(runs, "MOST_TOKENS_BEFORE", 80)
    scored = graphs_of_batches(monkeypatch)
    attribute(model, cases, 1)
    assert max(n for n, _ in scored) == 2


def assert_equal_scores(found: Attribution, expected: Attribution) -> None:
    for name, tensor in expected.tensors().items():
        torch.testing.assert_close(found.tensors()[name], tensor, rtol=1e-3, atol=1e-4, equal_nan=True)
    assert (found.pair_ids, found.aligned_ids) == (expected.pair_ids, expected.aligned_ids)


def test_only_what_differs_is_read_with_a_graph() -> None:
    model, cases = tiny_model("llama"), with_head(nine_cases(), 30)
    seen: list[tuple[bool, int]] = []
    handle = model.model.get_input_embeddings().register_forward_hook(
        lambda _m, args, _out: seen.append((torch.is_grad_enabled(), args[0].shape[1]))
    )
    attribute(model, cases)
    handle.remove()
    first = [next(i for i, (a, b) in enumerate(zip(case.clean, case.corrupted, strict=True)) if a != b) for case in cases]
    scored = max(len(case.clean) - i for case, i in zip(cases, first, strict=True))
    assert max(n for graph, n in seen if graph) == scored < 30
    # Without one: the longest prompt whole and its beginning, to see that the model reads in parts; its beginning, to measure what
    # a graph takes; and the head, for all.
    assert sum(n >= 30 for graph, n in seen if not graph) == 4


def test_the_output_matrix_reads_one_position_of_each_row_and_no_gaps() -> None:
    model, cases = tiny_model("llama"), with_head(nine_cases())
    seen: list[tuple[int, bool]] = []
    handle = model.model.lm_head.register_forward_hook(lambda _m, args, _o: seen.append((args[0].shape[1], args[0].is_contiguous())))
    attribute(model, cases, 2)
    handle.remove()
    assert set(seen) == {(1, True)}


@pytest.mark.parametrize("checkpoints", [False, True])
def test_out_of_memory(checkpoints: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Blocks first hold less, then batches get smaller; the scores stay the same."""
    model, cases = tiny_model("llama"), with_head(nine_cases())
    whole = attribute(model, cases)

    def fails(_module: Any, args: Any) -> None:
        if torch.is_grad_enabled() and args[0].shape[0] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = model.anatomy.blocks[2].register_forward_pre_hook(fails)
    try:
        found = attribute(model, cases, checkpoints=checkpoints)
    finally:
        handle.remove()
    assert_equal_scores(found, whole)
    halvings = ["out of memory with 9 rows at once: going on with 4", "out of memory with 4 rows at once: going on with 2"]
    first = [] if checkpoints else ["out of memory with 9 pairs at once: going on with blocks that are computed twice"]
    assert caplog.messages[: len(first) + 2] == first + halvings


def test_out_of_memory_where_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph over all that differs does not fit even once without checkpoints: it is measured with fewer tokens."""
    model, cases = tiny_model("llama"), with_head(nine_cases())
    monkeypatch.setattr(runs, "free_memory", lambda _device: 10**6)

    def fails(_module: Any, args: Any) -> None:
        if torch.is_grad_enabled():
            tried.append(args[0].shape[1])
            if tried[-1] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    tried: list[int] = []
    handle = model.anatomy.blocks[2].register_forward_pre_hook(fails)
    try:
        planned = runs.plan(model, cases, checkpoints=False)
    finally:
        handle.remove()
    longest = max(cases, key=lambda case: len(case.clean))
    assert tried == [longest.n_scored, longest.n_scored // 2, longest.n_scored // 4][: len(tried)]
    assert tried[-1] <= 2
    # What does not grow with them, such as the logits, now counts for fewer tokens: rather too little is planned than too much.
    whole = runs.plan(model, cases, checkpoints=False).tokens
    assert whole / 4 < planned.tokens <= whole < runs.MOST_TOKENS


def test_an_error_that_is_none_of_memory_raises() -> None:
    model = tiny_model("llama")

    def fails(_module: Any, _args: Any) -> None:
        if torch.is_grad_enabled():
            raise RuntimeError("CUDA error: device-side assert triggered")

    handle = model.anatomy.blocks[2].register_forward_pre_hook(fails)
    try:
        with pytest.raises(RuntimeError, match="device-side"):
            attribute(model, nine_cases())
    finally:
        handle.remove()


@pytest.mark.parametrize(("free", "checkpoints", "batches"), [(10**9, False, [9]), (300_000, True, None), (10, True, [1] * 9)])
def test_memory_decides_on_checkpoints_and_batches(
    free: int, checkpoints: bool, batches: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cases = tiny_model("llama"), with_head(nine_cases())
    whole = attribute(model, cases, 1)
    monkeypatch.setattr(runs, "free_memory", lambda _device: free)
    assert runs.plan(model, cases).checkpoints == checkpoints
    scored = graphs_of_batches(monkeypatch)
    assert_equal_scores(attribute(model, cases, 1), whole)
    if batches is None:
        assert 1 < max(n for n, _ in scored) < len(cases)
    else:
        assert [n for n, _ in scored] == batches  # one at a time, come what may


def test_graphs_fit_into_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cases = tiny_model("llama"), with_head(nine_cases())
    free = 600_000
    monkeypatch.setattr(runs, "free_memory", lambda _device: free)
    scored = graphs_of_batches(monkeypatch)
    attribute(model, cases, 1, checkpoints=False)
    assert max(n for n, _ in scored) > 1
    assert free / 8 < max(held for _, held in scored) < free / 2


def graphs_of_batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Cases of each batch, and bytes that its graphs hold; a list that grows."""
    scored: list[tuple[int, int]] = []
    score = gradient._Patching._score

    def counted(self: Any, batch: Sequence[Case]) -> None:
        with counting(self.model.model.parameters()) as held:
            score(self, batch)
        scored.append((len(batch), sum(held.values())))

    monkeypatch.setattr(gradient._Patching, "_score", counted)
    return scored


@pytest.mark.parametrize(("checkpoints", "alive"), [(False, {BLOCKS}), (True, {0})])
def test_checkpoints_hold_nothing_of_the_inside_of_a_block(checkpoints: bool, alive: set[int]) -> None:
    model, cases = tiny_model("llama"), with_head(nine_cases())
    inside: list[weakref.ref[Tensor]] = []
    at_the_end: list[int] = []
    handles = [
        block.mlp.gate_proj.register_forward_hook(lambda _m, _a, output: inside.append(weakref.ref(output)))
        for block in model.anatomy.blocks
    ]
    handles.append(
        model.model.lm_head.register_forward_pre_hook(
            lambda *_: at_the_end.append(sum(ref() is not None for ref in inside)) if torch.is_grad_enabled() else None
        )
    )
    try:
        attribute(model, cases, 3, checkpoints=checkpoints)
    finally:
        for handle in handles:
            handle.remove()
    # The first is without checkpoints always: it measures.
    assert len(at_the_end) == 4
    assert set(at_the_end[1:]) == alive


def test_a_graph_is_counted_without_weights_and_once() -> None:
    weight, entering = torch.randn(5, 7, requires_grad=False), torch.randn(3, 5, requires_grad=True)
    with counting([weight]) as held:
        states = entering @ weight  # keeps the weight alone, as that needs no gradient
        out = states.exp()  # keeps its result
        total = (out * out).sum()  # keeps that once more
    assert held == {torch.device("cpu"): 3 * 7 * 4}
    total.backward()


def test_a_model_to_be_trained_gets_no_gradients() -> None:
    model = tiny_model("llama", seed=9)
    cases = with_head(nine_cases())
    frozen = attribute(model, cases)
    weights = list(model.model.parameters())
    for weight in weights[1:]:
        weight.requires_grad_(True)
    try:
        assert_equal_scores(attribute(model, cases), frozen)
        assert [weight.requires_grad for weight in weights] == [False] + [True] * (len(weights) - 1)
        assert all(weight.grad is None for weight in weights)
    finally:
        model.model.requires_grad_(False)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_model_that_is_spread_over_devices(checkpoints: bool, tmp_path: Path) -> None:
    """As device_map spreads it: each block's weights are fetched when it runs, here from the disk."""
    plain, cases = tiny_model("llama"), with_head(nine_cases())
    spread = copy.deepcopy(plain.model)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(BLOCKS)}
    dispatch_model(spread, places, main_device="cpu", offload_dir=str(tmp_path))
    assert spread.model.layers[1].mlp.up_proj.weight.is_meta
    model = wrap("spread", spread, tokenizer_of())
    assert_equal_scores(attribute(model, cases, checkpoints=checkpoints), attribute(plain, cases))
    readings = [model.dialogue.reading(text) for text in ("We won!", "We lost.", "A train leaves at nine.") * 3]
    for site in SITES:
        torch.testing.assert_close(token_means(model, readings, site), token_means(plain, readings, site), rtol=1e-4, atol=1e-5)
    forwards = [vars(block).get("forward") for block in model.anatomy.blocks]
    assert all(forward is not None for forward in forwards), "accelerate's own are in place again"


def test_too_few_aligned_pairs() -> None:
    model = tiny_model("llama")
    cases = [*nine_cases()[:7], unaligned_case(20), unaligned_case(21)]
    with pytest.raises(EmosteerError, match=r"7 of 9 diagnostic pairs .*tiny-llama.* 8 are needed.*attribution=none"):
        attribute(model, cases)
    with pytest.raises(EmosteerError, match=r"attribution\.steps=0"):
        attribute(model, nine_cases(), steps=0)


@pytest.mark.parametrize("steps", [1, 3])
def test_noising_is_the_way_back(steps: int) -> None:
    model, cases = tiny_model("llama"), with_head(nine_cases())
    found, forth = attribute(model, cases, steps, direction="noising"), attribute(model, cases, steps)
    assert (found.direction, forth.direction) == ("noising", "denoising")
    torch.testing.assert_close(found.metric_clean, forth.metric_clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.metric_corrupted, forth.metric_corrupted, atol=1e-4, rtol=1e-4)
    for row, case in enumerate(cases):
        # With the prompts exchanged: (corrupted - clean) . gradient at the clean run. The metric falls by it, so its sign is turned.
        back = products_by_hand(model, "llama", replace(case, clean=case.corrupted, corrupted=case.clean), steps)
        for layer in range(BLOCKS):
            for site in ("attention", "mlp"):
                assert found.last[site][row, layer] == pytest.approx(-float(back[site, layer][-1]), abs=1e-4, rel=1e-3)
                assert found.everywhere[site][row, layer] == pytest.approx(-float(back[site, layer].sum()), abs=1e-4, rel=1e-3)
    with pytest.raises(EmosteerError, match=r"attribution\.direction=back: choose one of denoising, noising"):
        attribute(model, cases, direction="back")


def test_noising_of_a_linear_model_is_checked_in_its_own_direction() -> None:
    model, cases = linear_model(), nine_cases(words=1)
    found = attribute(model, cases, direction="noising")
    for one in check(model, cases, found, 2):
        assert one.attributed == pytest.approx(one.exact, abs=1e-4)


# --- exact patching


def patched_by_hand(model: LanguageModel, family: str, site: str, layer: int, case: Case, positions: Sequence[int]) -> float:
    """The metric of one corrupted row into which the clean activations of some positions (counted from the end) are put."""
    module, kept = true_parts(family, layer)[site], []

    def keep(states: Tensor) -> Tensor:
        kept.append(states.clone())
        return states

    def put(states: Tensor) -> Tensor:
        states = states.clone()
        for position in positions:
            states[0, position] = kept[0][0, position]
        return states

    values = []
    for ids, change in ((case.clean, keep), (case.corrupted, put)):
        handle = hook_output(module, change)
        with torch.no_grad():
            values.append(metric_by_hand(model.model(torch.tensor([ids])).logits[0, -1], case))
        handle.remove()
    return values[1]


@pytest.mark.parametrize("at", ["last", "all", "first_difference", -2])
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_patching_by_hand(family: str, at: str | int) -> None:
    model, cases = tiny_model(family), [*with_head(nine_cases()[:4]), *nine_cases()[4:]]
    for site in SITES:
        found = patch_exactly(model, cases, site, at)
        for row, case in enumerate(cases):
            start = metric_by_hand(model.model(torch.tensor([case.corrupted])).logits[0, -1], case)
            first = next(i for i, (a, b) in enumerate(zip(case.clean, case.corrupted, strict=True)) if a != b) - len(case.clean)
            positions: Sequence[int] = {"last": [-1], "all": range(-len(case.clean), 0), "first_difference": [first], -2: [-2]}[at]
            for layer in range(BLOCKS):
                by_hand = patched_by_hand(model, family, site, layer, case, positions) - start
                assert found[row, layer] == pytest.approx(by_hand, abs=2e-4)


@pytest.mark.parametrize("family", [family for family in WITH_SITES if family not in ("gemma2", "gemma3", "olmo2")])
def test_heads_add_up_to_the_attention(family: str) -> None:
    """They are what the output projection reads, which is linear, but where a norm stands between it and the residual stream."""
    found = attribute(tiny_model(family), with_head(nine_cases()))
    for at in (found.last, found.everywhere):
        torch.testing.assert_close(at["head"].sum(-1), at["attention"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("at", ["last", "all"])
@pytest.mark.parametrize("family", ["gemma3", "gpt2", "mistral"])
def test_exact_patching_of_heads_and_before_blocks_by_hand(family: str, at: str) -> None:
    model, cases = tiny_model(family), [*with_head(nine_cases()[:2]), *nine_cases()[4:6]]
    heads, before = patch_exactly(model, cases, "head", at), patch_exactly(model, cases, "before", at)
    assert heads.shape == (4, BLOCKS, HEADS)
    for row, case in enumerate(cases):
        start = metric_by_hand(model.model(torch.tensor([case.corrupted])).logits[0, -1], case)
        first = -1 if at == "last" else -len(case.clean)
        for layer in range(BLOCKS):
            block, projection = true_parts(family, layer)["residual"], true_projection(family, layer)
            assert before[row, layer] == pytest.approx(patched_before(model, block, case, first, 0, 1) - start, abs=2e-4)
            for head in range(HEADS):
                by_hand = patched_before(model, projection, case, first, head, HEADS) - start
                assert heads[row, layer, head] == pytest.approx(by_hand, abs=2e-4)


def patched_before(model: LanguageModel, module: Any, case: Case, first: int, part: int, n_parts: int) -> float:
    """The metric of the corrupted row with one of equal parts of what enters a module, from a position on, of the clean row."""
    kept: list[Tensor] = []

    def keep(_module: Any, args: Any) -> None:
        kept.append(args[0].clone())

    def put(_module: Any, args: Any) -> Any:
        states, size = args[0].clone(), args[0].shape[-1] // n_parts
        own = slice(part * size, (part + 1) * size)
        states[0, first:, own] = kept[0][0, first:, own]
        return (states, *args[1:])

    for ids, hook in ((case.clean, keep), (case.corrupted, put)):
        handle = module.register_forward_pre_hook(hook)
        with torch.no_grad():
            logits = model.model(torch.tensor([ids])).logits[0, -1]
        handle.remove()
    return metric_by_hand(logits, case)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_residual_stream_is_the_whole_run(family: str) -> None:
    """The degenerate case: at any block alike, patching it at all positions gives the clean metric."""
    model, cases = tiny_model(family), nine_cases()
    told: list[tuple[int, int]] = []
    scores = patch_exactly(model, cases, "residual", "all", lambda done, total: told.append((done, total)))
    found = attribute(model, cases)
    whole = (found.metric_clean - found.metric_corrupted)[:, None].expand(-1, BLOCKS)
    torch.testing.assert_close(scores, whole, atol=2e-4, rtol=1e-4)
    assert float(whole.abs().min()) > 1e-3
    assert told[-1] == (len(cases) * BLOCKS, len(cases) * BLOCKS)


def test_exact_patching_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cases = tiny_model("llama"), [*nine_cases(), unaligned_case(20)]
    whole = patch_exactly(model, cases, "attention")
    monkeypatch.setattr(exact, "BATCH_TOKENS", 20)
    told: list[int] = []
    torch.testing.assert_close(patch_exactly(model, cases, "attention", on_progress=lambda n, _: told.append(n)), whole)
    assert told == sorted(set(told))
    assert told[-1] == 10 * BLOCKS


@pytest.mark.parametrize(("kind", "skips"), [(LinearDecoder, True), (HandingOnDecoder, False)])
def test_blocks_before_the_first_patched_one_do_not_run_again(
    kind: type[LinearDecoder], skips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless more than the residual stream is handed on: that shows in an unpatched run."""
    model, cases = linear_model(kind), nine_cases(words=1)
    monkeypatch.setattr(exact, "BATCH_TOKENS", 90)
    runs_of_first: list[int] = []
    handle = model.anatomy.blocks[0].mlp.register_forward_hook(lambda _m, args, _o: runs_of_first.append(len(args[0])))
    found = patch_exactly(model, cases, "mlp", "all")
    handle.remove()
    torch.testing.assert_close(found, attribute(model, cases).everywhere["mlp"], atol=1e-4, rtol=1e-4)
    # Of each case: the clean and the corrupted run, and one for each block, or for the first block alone; and one row to see
    # whether the model reads in parts.
    assert sum(runs_of_first) == 1 + len(cases) * (2 + (1 if skips else BLOCKS))


def test_exact_patching_of_unequal_prompts() -> None:
    model, case = tiny_model("llama"), unaligned_case(20)
    for at in ("all", "first_difference"):
        with pytest.raises(EmosteerError, match="unequal: case20"):
            patch_exactly(model, [aligned_case(1, 8), case], "mlp", at)
    found = patch_exactly(model, [aligned_case(1, 8), case], "mlp")
    start = metric_by_hand(model.model(torch.tensor([case.corrupted])).logits[0, -1], case)
    for layer in range(BLOCKS):
        by_hand = patched_by_hand(model, "llama", "mlp", layer, case, [-1]) - start
        assert found[1, layer] == pytest.approx(by_hand, abs=2e-4)


# --- a model that is linear, where the first-order estimate is the truth


@pytest.mark.parametrize("steps", [1, 4, None])
def test_a_linear_model_is_attributed_exactly(steps: int | None) -> None:
    # With one word in each list the metric is the difference of two logits.
    model, cases = linear_model(), nine_cases(words=1)
    found = attribute(model, cases, steps)
    close = {"atol": 1e-4, "rtol": 1e-4}
    for site in SITES:
        torch.testing.assert_close(found.last[site], patch_exactly(model, cases, site, "last"), **close)
    for site in ("attention", "mlp"):
        torch.testing.assert_close(found.everywhere[site], patch_exactly(model, cases, site, "all"), **close)
    at_first = torch.stack([found.residual_by_position[row, :, case.first_difference] for row, case in enumerate(cases)])
    torch.testing.assert_close(at_first, patch_exactly(model, cases, "residual", "first_difference"), **close)
    # All positions of the residual stream add up to the whole difference, at every block.
    whole = (found.metric_clean - found.metric_corrupted)[:, None].expand(-1, BLOCKS)
    torch.testing.assert_close(found.residual_by_position.nansum(-1), whole, **close)


# --- what is found


def small_attribution() -> Attribution:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))

    residual = draw(8, 3, 5)
    residual[2, :, :2] = torch.nan
    ids = tuple(f"p{i}" for i in range(9))
    last = {"residual": draw(9, 3), "attention": torch.zeros(9, 3), "mlp": torch.zeros(9, 3)}
    last["attention"][:, 1], last["mlp"][:, 1] = 2.0, -0.5
    last["attention"][:, 2], last["mlp"][:, 2] = -3.0, 5.0
    last["mlp"][0, 0] = -9.0
    return Attribution(ids, ids[:8], draw(9), draw(9), last, {"attention": draw(8, 3), "mlp": draw(8, 3)}, residual)


def test_ranking_is_by_what_a_block_adds() -> None:
    found = small_attribution()
    assert found.block_scores().tolist() == pytest.approx([-1.0, 1.5, 2.0])
    assert found.ranking() == [2, 1, 0]
    found.last["residual"][:, 0] = 1000.0  # the residual stream's own level says nothing of the block
    assert found.ranking() == [2, 1, 0]
    assert found.n_dropped == 1


def test_certainty_is_scipys_bootstrap() -> None:
    found = small_attribution()
    added = (found.last["attention"] + found.last["mlp"]).numpy() + found.last["residual"].numpy()
    found.last["attention"] += found.last["residual"]
    sure = found.certainty(n_resamples=20_000, confidence=0.9)
    for block in range(3):
        own = stats.bootstrap(
            (added[:, block],), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        spread = float(own.high - own.low)
        assert float(sure.low[block]) == pytest.approx(own.low, abs=0.05 * spread)
        assert float(sure.high[block]) == pytest.approx(own.high, abs=0.05 * spread)
    rng = np.random.default_rng(2)
    firsts = [added[rng.integers(0, 9, 9)].mean(0).argmax() for _ in range(20_000)]
    shares = np.bincount(firsts, minlength=3) / 20_000
    assert sure.first_share.tolist() == pytest.approx(shares.tolist(), abs=0.02)
    assert 0.05 < shares.max() < 0.95
    assert float(sure.first_share.sum()) == pytest.approx(1.0)


def test_certainty_of_scores_that_do_not_vary() -> None:
    found = small_attribution()
    found.last["mlp"][0, 0] = 0.0
    sure = found.certainty()
    assert sure.first_share.tolist() == [0.0, 0.0, 1.0]
    assert sure.low.tolist() == pytest.approx([0.0, 1.5, 2.0])
    assert sure.high.tolist() == pytest.approx([0.0, 1.5, 2.0])
    assert torch.equal(found.certainty(seed=3).first_share, sure.first_share)


def test_positions_by_role() -> None:
    roles = ("template", "user", "user", "template", "user", "template", "assistant")
    cases = [replace(aligned_case(number, length), roles=roles[:length]) for number, length in enumerate((6, 7) * 4)]
    found = attribute(tiny_model("llama"), cases)
    by_role = found.by_role()
    assert set(by_role) == {"embeddings", "attention", "mlp", "residual"}
    assert set(by_role["mlp"]) == {"template", "user", "assistant"}
    own = found.added_by_position["mlp"]
    for row, case in enumerate(cases):
        first = 7 - len(case.clean)
        torch.testing.assert_close(by_role["mlp"]["user"][row], own[row][:, [first + 1, first + 2, first + 4]].sum(-1))
        torch.testing.assert_close(by_role["mlp"]["assistant"][row], own[row, :, -1] if first == 0 else torch.zeros(BLOCKS))
    for site in ("attention", "mlp"):  # every position is somebody's
        torch.testing.assert_close(sum(by_role[site].values()), found.everywhere[site])
    assert attribute(tiny_model("llama"), nine_cases()).by_role() == {}
    assert attribute(tiny_model("llama"), nine_cases()).roles is None


def test_prepared_cases_know_whose_tokens_are() -> None:
    case = prepare(tiny_model("llama"), diagnostic_pairs())[0]
    text = [tokenizer_of().decode([t]) for t, role in zip(case.clean, case.roles, strict=True) if role == "user"]
    assert "".join(text) == "We won the game."


def test_residual_profile_is_over_the_pairs_that_reach() -> None:
    found = small_attribution()
    seven = [row for row in range(8) if row != 2]
    profile = found.residual_profile()
    torch.testing.assert_close(profile[:, 2:], found.residual_by_position[:, :, 2:].mean(0))
    torch.testing.assert_close(profile[:, :2], found.residual_by_position[seven][:, :, :2].mean(0))


@pytest.mark.parametrize("is_old", [True, False])
def test_tensors_round_trip(is_old: bool, tmp_path: Path) -> None:
    """An attribution of before heads, embeddings and roles reads too."""
    cases = [replace(case, roles=("user",) * len(case.clean)) for case in nine_cases()]
    found = small_attribution() if is_old else attribute(tiny_model("llama"), [*cases, unaligned_case(20)], direction="noising")
    save_file(found.tensors(), tmp_path / "scores.safetensors")
    facts = () if is_old else ("", "noising")
    back = Attribution.from_tensors(load_file(tmp_path / "scores.safetensors"), found.pair_ids, found.aligned_ids, *facts)
    assert (back.pair_ids, back.aligned_ids, back.n_dropped) == (found.pair_ids, found.aligned_ids, 1)
    for name, tensor in found.tensors().items():
        torch.testing.assert_close(back.tensors()[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert (set(back.tensors()), back.no_heads, back.direction) == (set(found.tensors()), "", found.direction)
    for field in ("metric_clean", "metric_corrupted", "residual_by_position"):
        torch.testing.assert_close(getattr(back, field), getattr(found, field), rtol=0, atol=0, equal_nan=True)
    for site in SITES:
        assert torch.equal(back.last[site], found.last[site])
    for site in ("attention", "mlp"):
        assert torch.equal(back.everywhere[site], found.everywhere[site])


# --- the real model


@pytest.fixture(scope="module")
def real(smollm2: LanguageModel) -> tuple[list[Case], Attribution]:
    cases = prepare(smollm2, load_diagnostic_pairs(SHIPPED / "diagnostics" / "joy_sadness.jsonl"))
    chosen = sorted((case for case in cases if case.is_aligned), key=lambda case: len(case.clean))[:8]  # the shortest: for speed
    return chosen, attribute(smollm2, chosen)


def correlation(a: Tensor, b: Tensor) -> float:
    """Over blocks, of the means over pairs."""
    return float(stats.pearsonr(a.mean(0), b.mean(0)).statistic)


@pytest.mark.real_model
@pytest.mark.parametrize("site", SITES)
def test_agrees_with_exact_patching_at_the_last_position(smollm2: LanguageModel, real: Any, site: str) -> None:
    cases, found = real
    assert correlation(found.last[site], patch_exactly(smollm2, cases, site, "last")) >= 0.95


@pytest.mark.real_model
def test_agrees_with_exact_patching_of_attention_at_all_positions(smollm2: LanguageModel, real: Any) -> None:
    cases, found = real
    assert correlation(found.everywhere["attention"], patch_exactly(smollm2, cases, "attention", "all")) >= 0.85


@pytest.mark.real_model
def test_agrees_with_exact_patching_of_mlps_at_all_positions(smollm2: LanguageModel, real: Any) -> None:
    cases, found = real
    exact = patch_exactly(smollm2, cases, "mlp", "all")
    assert correlation(found.everywhere["mlp"], exact) >= 0.85
    # The MLP of block 0, which reads the word that differs, is among the first of both rankings.
    for scores in (found.everywhere["mlp"], exact):
        assert 0 in scores.mean(0).argsort(descending=True)[:3].tolist()


@pytest.mark.real_model
def test_agrees_with_exact_patching_at_the_first_difference(smollm2: LanguageModel, real: Any) -> None:
    cases, found = real
    own = torch.stack([found.residual_by_position[row, :, case.first_difference] for row, case in enumerate(cases)])
    assert correlation(own, patch_exactly(smollm2, cases, "residual", "first_difference")) >= 0.85


@pytest.mark.real_model
def test_agrees_with_exact_patching_by_its_own_account(smollm2: LanguageModel, real: Any) -> None:
    """Heads too: the strongest two and two random ones."""
    cases, found = real
    agreements = check(smollm2, cases, found, 2)
    assert {one.site for one in agreements} == {"attention", "mlp", "head"}
    assert all(one.pearson is not None and one.pearson >= 0.95 for one in agreements if one.position == "last")
    assert not any(one.is_low for one in agreements)


@pytest.mark.real_model
def test_clean_prompts_are_the_emotional_ones(real: Any) -> None:
    cases, found = real
    assert len(cases) >= 8
    assert float((found.metric_clean - found.metric_corrupted).mean()) > 0.5
