from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from tiny_models import hook_output, random_tokens, tiny_model, tokenizer_of, true_parts
from torch import Tensor, nn

from emosteer.attribution import Attribution, Case, attribute, prepare
from emosteer.attribution.case import metric
from emosteer.attribution.exact import patch_exactly
from emosteer.config import ModelConfig
from emosteer.datasets import SHIPPED, DiagnosticPair, load_diagnostic_pairs
from emosteer.errors import EmosteerError
from emosteer.model.anatomy import Anatomy, dissect
from emosteer.model.dialogue import Dialogue
from emosteer.model.language_model import LanguageModel

SITES = ("residual", "attention", "mlp")
BLOCKS = 4


def aligned_case(number: int, length: int, words: int = 3) -> Case:
    """Two prompts of a length that differ in one or two tokens, neither the first nor the last."""
    (tokens,) = random_tokens(length, seed=number)
    others = random_tokens(2, seed=500 + number)[0]
    corrupted = list(tokens)
    corrupted[2] = others[0]
    if number % 2:
        corrupted[length - 3] = others[1]
    picked = dict.fromkeys(random_tokens(20, seed=900 + number)[0])
    ids = list(picked)[: 2 * words]
    return Case(f"case{number}", tokens, tuple(corrupted), tuple(ids[:words]), tuple(ids[words:]))


def unaligned_case(number: int) -> Case:
    return replace(aligned_case(number, 9), corrupted=random_tokens(12, seed=number)[0])


def nine_cases(words: int = 3) -> list[Case]:
    return [aligned_case(number, 6 + number % 4, words) for number in range(9)]


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

            def keep(_m: Any, _a: Any, output: Any, place: Any = (site, layer)) -> None:
                seen[place] = output[0] if isinstance(output, tuple) else output
                seen[place].retain_grad()

            handles.append(module.register_forward_hook(keep))
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
    return {
        place: ((clean_states[place][-common:] - corrupted_states[place][-common:]) * slopes[place][-common:] / steps).sum(-1)
        for place in slopes
    }


FAMILIES = ["llama", "gemma3", "gpt_neox"]


@pytest.mark.parametrize(("steps", "at_last", "elsewhere"), [(1, 1, 1), (3, 3, 3), (None, 1, 5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_by_hand(family: str, steps: int | None, at_last: int, elsewhere: int) -> None:
    model, cases = tiny_model(family), nine_cases()
    found = attribute(model, cases, steps)
    assert found.pair_ids == found.aligned_ids == tuple(case.id for case in cases)
    assert found.n_dropped == 0
    longest = max(len(case.clean) for case in cases)
    assert found.residual_by_position.shape == (9, BLOCKS, longest)
    for row, case in enumerate(cases):
        last, everywhere = (products_by_hand(model, family, case, n) for n in (at_last, elsewhere))
        for layer in range(BLOCKS):
            for site in SITES:
                assert found.last[site][row, layer] == pytest.approx(float(last[site, layer][-1]), abs=1e-4, rel=1e-3)
            for site in ("attention", "mlp"):
                assert found.everywhere[site][row, layer] == pytest.approx(float(everywhere[site, layer].sum()), abs=1e-4, rel=1e-3)
            own = found.residual_by_position[row, layer]
            torch.testing.assert_close(own[-len(case.clean) :], everywhere["residual", layer], atol=1e-4, rtol=1e-3)
            assert bool(own[: -len(case.clean)].isnan().all())
        logits = [model.model(torch.tensor([ids])).logits[0, -1] for ids in (case.clean, case.corrupted)]
        assert found.metric_clean[row] == pytest.approx(metric_by_hand(logits[0], case), abs=1e-4)
        assert found.metric_corrupted[row] == pytest.approx(metric_by_hand(logits[1], case), abs=1e-4)


def test_unaligned_pairs_serve_at_the_last_position_only() -> None:
    model, aligned = tiny_model("llama"), nine_cases()
    cases = [aligned[0], unaligned_case(20), *aligned[1:6], unaligned_case(21), *aligned[6:]]
    seen: list[int] = []
    found, without = attribute(model, cases, on_case=seen.append), attribute(model, aligned)
    assert sum(seen) == 11
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


def test_too_few_aligned_pairs() -> None:
    model = tiny_model("llama")
    cases = [*nine_cases()[:7], unaligned_case(20), unaligned_case(21)]
    with pytest.raises(EmosteerError, match=r"7 of 9 diagnostic pairs .*tiny-llama.* 8 are needed.*attribution=none"):
        attribute(model, cases)
    with pytest.raises(EmosteerError, match=r"attribution\.steps=0"):
        attribute(model, nine_cases(), steps=0)


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


@pytest.mark.parametrize("at", ["last", "all", "first_difference"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_patching_by_hand(family: str, at: str) -> None:
    model, cases = tiny_model(family), nine_cases()
    for site in SITES:
        found = patch_exactly(model, cases, site, at)
        for row, case in enumerate(cases):
            start = metric_by_hand(model.model(torch.tensor([case.corrupted])).logits[0, -1], case)
            first = next(i for i, (a, b) in enumerate(zip(case.clean, case.corrupted, strict=True)) if a != b) - len(case.clean)
            positions = {"last": [-1], "all": range(-len(case.clean), 0), "first_difference": [first]}[at]
            for layer in range(BLOCKS):
                by_hand = patched_by_hand(model, family, site, layer, case, positions) - start
                assert found[row, layer] == pytest.approx(by_hand, abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_residual_stream_is_the_whole_run(family: str) -> None:
    """The degenerate case: at any block alike, patching it at all positions gives the clean metric."""
    model, cases = tiny_model(family), nine_cases()
    runs: list[int] = []
    scores = patch_exactly(model, cases, "residual", "all", runs.append)
    found = attribute(model, cases)
    whole = (found.metric_clean - found.metric_corrupted)[:, None].expand(-1, BLOCKS)
    torch.testing.assert_close(scores, whole, atol=2e-4, rtol=1e-4)
    assert float(whole.abs().min()) > 1e-3
    assert sum(runs) == BLOCKS


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


class LinearAttention(nn.Module):
    """Every position reads the mean of itself and those before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        causal = torch.tril(torch.ones(states.shape[1], states.shape[1])) * mask[:, None, :]
        weights = causal / causal.sum(-1, keepdim=True).clamp(min=1)
        return self.out(weights @ states)


class LinearBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.mlp = LinearAttention(width), nn.Linear(width, width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states = states + self.attention(states, mask)
        return states + self.mlp(states)


class LinearDecoder(nn.Module):
    """A decoder whose logits are linear in its embeddings."""

    device, dtype, generation_config = torch.device("cpu"), torch.float32, None

    def __init__(self, width: int = 12, vocabulary: int = 341) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(LinearBlock(width) for _ in range(BLOCKS))
        self.head = nn.Linear(width, vocabulary)
        self.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_options: Any) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.embedding(input_ids)
        for block in self.blocks:
            states = block(states, mask.float())
        return SimpleNamespace(logits=self.head(states))


@pytest.fixture
def linear_model() -> LanguageModel:
    decoder = LinearDecoder()
    anatomy = dissect(decoder, ModelConfig(), torch.tensor(random_tokens(5)))
    return LanguageModel("linear", decoder, Dialogue(tokenizer_of()), anatomy, frozenset(), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 4, None])
def test_a_linear_model_is_attributed_exactly(linear_model: LanguageModel, steps: int | None) -> None:
    # With one word in each list the metric is the difference of two logits.
    cases = nine_cases(words=1)
    found = attribute(linear_model, cases, steps)
    close = {"atol": 1e-4, "rtol": 1e-4}
    for site in SITES:
        torch.testing.assert_close(found.last[site], patch_exactly(linear_model, cases, site, "last"), **close)
    for site in ("attention", "mlp"):
        torch.testing.assert_close(found.everywhere[site], patch_exactly(linear_model, cases, site, "all"), **close)
    at_first = torch.stack([found.residual_by_position[row, :, case.first_difference] for row, case in enumerate(cases)])
    torch.testing.assert_close(at_first, patch_exactly(linear_model, cases, "residual", "first_difference"), **close)
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


def test_residual_profile_is_over_the_pairs_that_reach() -> None:
    found = small_attribution()
    seven = [row for row in range(8) if row != 2]
    profile = found.residual_profile()
    torch.testing.assert_close(profile[:, 2:], found.residual_by_position[:, :, 2:].mean(0))
    torch.testing.assert_close(profile[:, :2], found.residual_by_position[seven][:, :, :2].mean(0))


def test_tensors_round_trip(tmp_path: Path) -> None:
    found = small_attribution()
    save_file(found.tensors(), tmp_path / "scores.safetensors")
    back = Attribution.from_tensors(load_file(tmp_path / "scores.safetensors"), found.pair_ids, found.aligned_ids)
    assert (back.pair_ids, back.aligned_ids, back.n_dropped) == (found.pair_ids, found.aligned_ids, 1)
    for name, tensor in found.tensors().items():
        torch.testing.assert_close(back.tensors()[name], tensor, rtol=0, atol=0, equal_nan=True)
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


EVERY_OTHER = slice(0, None, 2)


@pytest.fixture(scope="module")
def thinned(smollm2: LanguageModel) -> LanguageModel:
    """The real model as if it had every other block's parts only: exact patching costs a run per block."""
    parts = smollm2.anatomy
    return replace(smollm2, anatomy=Anatomy(parts.blocks[EVERY_OTHER], parts.attention[EVERY_OTHER], parts.mlp[EVERY_OTHER]))


def correlation(a: Tensor, b: Tensor) -> float:
    """Over blocks, of the means over pairs."""
    r = float(stats.pearsonr(a.mean(0), b.mean(0)).statistic)
    print(f"r={r:.3f}")
    return r


@pytest.mark.real_model
@pytest.mark.parametrize("site", SITES)
def test_agrees_with_exact_patching_at_the_last_position(thinned: LanguageModel, real: Any, site: str) -> None:
    cases, found = real
    assert correlation(found.last[site][:, EVERY_OTHER], patch_exactly(thinned, cases, site, "last")) >= 0.95


@pytest.mark.real_model
def test_agrees_with_exact_patching_of_attention_at_all_positions(thinned: LanguageModel, real: Any) -> None:
    cases, found = real
    assert correlation(found.everywhere["attention"][:, EVERY_OTHER], patch_exactly(thinned, cases, "attention", "all")) >= 0.85


@pytest.mark.real_model
def test_agrees_with_exact_patching_of_mlps_at_all_positions(smollm2: LanguageModel, real: Any) -> None:
    cases, found = real
    exact = patch_exactly(smollm2, cases, "mlp", "all")
    assert correlation(found.everywhere["mlp"], exact) >= 0.85
    # The MLP of block 0, which reads the word that differs, is among the first of both rankings.
    for scores in (found.everywhere["mlp"], exact):
        assert 0 in scores.mean(0).argsort(descending=True)[:3].tolist()


@pytest.mark.real_model
def test_agrees_with_exact_patching_at_the_first_difference(thinned: LanguageModel, real: Any) -> None:
    cases, found = real
    own = torch.stack([found.residual_by_position[row, EVERY_OTHER, case.first_difference] for row, case in enumerate(cases)])
    assert correlation(own, patch_exactly(thinned, cases, "residual", "first_difference")) >= 0.85


@pytest.mark.real_model
def test_clean_prompts_are_the_emotional_ones(real: Any) -> None:
    cases, found = real
    assert len(cases) >= 8
    assert float((found.metric_clean - found.metric_corrupted).mean()) > 0.5
