from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_models import WIDTH, random_vector
from torch import Tensor

from emosteer.engine import Decoding, Request, RowSeed
from emosteer.engine.sampling import checked, choose_tokens, gumbel_noise
from emosteer.steering import Push, Steering

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 1.5, -3.0, 0.9])
N = 5000


def requests(n: int, decoding: Decoding, steering: Steering | None = None) -> list[Request]:
    return [Request((1,), RowSeed(7, f"prompt {i % 40}", i // 40), steering, decoding) for i in range(n)]


def next_tokens(logits: Tensor, rows: list[Request], step: int, stop_tokens: frozenset[int]) -> Tensor:
    """The next token of rows that have all generated as many."""
    return torch.tensor(checked(choose_tokens(logits.clone(), rows, [step] * len(rows), stop_tokens).tokens.tolist()))


def sampled(decoding: Decoding, step: int = 3) -> np.ndarray:
    rows = next_tokens(LOGITS.repeat(N, 1), requests(N, decoding), step, frozenset())
    return np.bincount(rows.numpy(), minlength=len(LOGITS))


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    counts = sampled(Decoding(do_sample=True, temperature=temperature))
    expected = softmax(LOGITS.double().numpy() / temperature) * N
    common = expected >= 5
    assert counts[~common].sum() < 30
    scaled = expected[common] * counts[common].sum() / expected[common].sum()
    assert stats.chisquare(counts[common], scaled).pvalue > 0.001


def test_steps_are_independent() -> None:
    decoding = Decoding(do_sample=True)
    rows = [next_tokens(LOGITS.repeat(N, 1), requests(N, decoding), step, frozenset()).numpy() for step in (0, 1)]
    table = np.zeros((4, 4))
    np.add.at(table, (np.minimum(rows[0], 3), np.minimum(rows[1], 3)), 1)
    assert stats.chi2_contingency(table).pvalue > 0.001


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.8, 0.95])
def test_top_p_leaves_out_the_tail(top_p: float) -> None:
    probabilities = softmax(LOGITS.double().numpy())
    order = np.argsort(-probabilities)
    kept = next(order[:n] for n in range(1, len(order) + 1) if probabilities[order[:n]].sum() >= top_p)
    counts = sampled(Decoding(do_sample=True, top_p=top_p))
    assert set(np.flatnonzero(counts)) == set(kept)
    expected = probabilities[kept] / probabilities[kept].sum() * N
    if len(kept) > 1:
        assert stats.chisquare(counts[kept], expected).pvalue > 0.001


def test_top_p_comes_after_temperature() -> None:
    decoding = Decoding(do_sample=True, temperature=0.2, top_p=0.95)
    # At this temperature the two most probable hold 0.92 and 0.076 of the mass.
    assert set(np.flatnonzero(sampled(decoding))) == {0, 5}


def test_noise_belongs_to_the_row_and_step() -> None:
    seeds = [RowSeed(s, p, n) for s, p, n in itertools.product((0, 1), ("a", "b"), (0, 1))]
    noises = [gumbel_noise(seed, step, 500) for seed in seeds for step in (0, 1, 2)]
    for a, b in itertools.combinations(noises, 2):
        assert float(np.corrcoef(a, b)[0, 1]) < 0.2
    gumbel_noise.cache_clear()
    again = [gumbel_noise(RowSeed(seed.seed, seed.prompt_id, seed.sample), step, 500) for seed in seeds for step in (0, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(noises, again, strict=True))


def test_noise_is_gumbel() -> None:
    noise = torch.cat([gumbel_noise(RowSeed(0, "a", n), 0, 1000) for n in range(20)])
    assert noise.dtype == torch.float32
    assert bool(noise.isfinite().all())
    assert stats.kstest(noise.numpy(), "gumbel_r").pvalue > 0.001


def test_a_larger_vocabulary_begins_with_the_same_noise() -> None:
    """Models of one family that pad their vocabulary differently draw alike."""
    assert torch.equal(gumbel_noise(RowSeed(0, "a", 0), 4, 100), gumbel_noise(RowSeed(0, "a", 0), 4, 164)[:100])


def test_batch_order_and_size_change_nothing() -> None:
    logits = torch.randn(30, 50, generator=torch.Generator().manual_seed(1))
    rows = requests(30, Decoding(do_sample=True, top_p=0.9, temperature=1.3))
    whole = next_tokens(logits, rows, 5, frozenset())
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    assert torch.equal(next_tokens(logits[order], [rows[i] for i in order], 5, frozenset()), whole[order])
    assert torch.equal(torch.cat([next_tokens(logits[i : i + 1], rows[i : i + 1], 5, frozenset()) for i in range(30)]), whole)


def test_steered_and_unsteered_rows_share_noise() -> None:
    decoding = Decoding(do_sample=True)
    steering = Steering((Push("residual", 0, random_vector(0, 3.0, WIDTH)),))
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(1))
    plain = next_tokens(logits, requests(200, decoding), 2, frozenset())
    assert torch.equal(next_tokens(logits, requests(200, decoding, steering), 2, frozenset()), plain)
    # Common random numbers: where a push moves the logits little, most draws stay (independent ones would agree in few).
    moved = next_tokens(logits + 0.05 * torch.randn(200, 50), requests(200, decoding, steering), 2, frozenset())
    assert float((moved == plain).float().mean()) > 0.85


def greedy(logits: Tensor, decodings: list[Decoding], step: int, stop: frozenset[int]) -> list[int]:
    rows = [Request((1,), RowSeed(0, "a", 0), None, decoding) for decoding in decodings]
    return next_tokens(logits, rows, step, stop).tolist()


def test_greedy_rows_beside_sampled_ones() -> None:
    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(1))
    decodings = [Decoding(do_sample=i % 2 == 1) for i in range(40)]
    chosen = greedy(logits, decodings, 0, frozenset())
    assert chosen[0::2] == logits.argmax(-1).tolist()[0::2]
    assert chosen[1::2] != logits.argmax(-1).tolist()[1::2]


def test_stop_tokens_wait_for_min_new_tokens() -> None:
    logits = LOGITS.repeat(3, 1)  # tokens 0, 5 and 1 are the most probable
    decodings = [Decoding(), Decoding(min_new_tokens=2), Decoding(min_new_tokens=4, do_sample=True)]
    stop = frozenset({0, 5})
    for step in range(6):
        first, second, third = greedy(logits, decodings, step, stop)
        assert first == 0
        assert second == (1 if step < 2 else 0)
        assert third not in stop or step >= 4
    assert torch.equal(logits, LOGITS.repeat(3, 1))  # the caller's logits stay


def test_logits_that_are_no_numbers_are_an_error() -> None:
    logits = LOGITS.repeat(2, 1)
    logits[1, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="not numbers"):
        greedy(logits, [Decoding(), Decoding()], 0, frozenset())


def test_near_ties_are_told() -> None:
    logits = torch.tensor([[3.0, 3.0 + 1e-6, 0.0], [3.0, 3.1, 0.0], [3.0, -20.0, 3.0]])
    assert choose_tokens(logits.clone(), requests(3, Decoding()), [0] * 3, frozenset()).is_near.tolist() == [True, False, True]
    # A tie with a token that must not come is none.
    held = requests(3, Decoding(min_new_tokens=2))
    assert choose_tokens(logits.clone(), held, [0] * 3, frozenset({0})).is_near.tolist() == [False] * 3


def test_a_draw_at_the_edge_of_the_nucleus_is_told() -> None:
    """Half of the probability belongs to the first token: whether `top_p` of 0.5 takes the second in is a matter of rounding."""
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])).repeat(200, 1)
    for top_p, is_told in ((0.5, True), (0.6, False)):
        rows = requests(200, Decoding(do_sample=True, top_p=top_p))
        near = choose_tokens(logits.clone(), rows, [0] * 200, frozenset()).is_near
        assert bool(near.float().mean() > 0.3) == is_told  # of rows where the second token won, or the third
