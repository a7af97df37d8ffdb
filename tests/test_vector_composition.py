"""Vectors put together of several: against numpy's least squares, and against the plain vectors that they are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_models import BLOCKS, tiny_model
from torch import Tensor

import emosteer
from emosteer.datasets import ContrastivePair, NeutralText
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.vectors import METHODS, EmotionVector, States, compose, emotion_vector, mean_difference, quality, read_states
from emosteer.vectors.quality import SPLITS

Floats = NDArray[np.float64]
JOY = [
    ContrastivePair("a", "We are so happy that you came!", "I am sad, because nobody called."),
    ContrastivePair("b", "What a garden! We will dance all night.", "The rain took the garden, and the train left without me."),
    ContrastivePair("c", "How kind a reply!", "Nobody gave a reply at all."),
]
TRUST = [
    ContrastivePair("a", "I know that you will come.", "He took the reply and kept it."),
    ContrastivePair("b", "You gave a kind answer.", "That was a rotten thing to say."),
    ContrastivePair("c", "The assistant is at my side.", "The garden is full of dirt."),
]
FEAR = [ContrastivePair("a", "Who is there?", "Things are as they were."), ContrastivePair("b", "The dark!", "It is noon.")]
NEUTRAL = [
    NeutralText(str(i), text) for i, text in enumerate(("A train leaves at nine.", "It rained.", "The user asked a question."))
]
NORMS = torch.ones(BLOCKS)


def drawn(seed: int, blocks: int = 3, width: int = 12) -> Tensor:
    return 5 * torch.randn(blocks, width, generator=torch.Generator().manual_seed(seed))


def by_hand(own: Tensor, plus: Sequence[tuple[float, Tensor]], without: Sequence[Tensor]) -> list[Floats]:
    """Block by block in numpy: what least squares leave of the sum, given those that are taken out."""
    found = []
    for block in range(len(own)):
        parts = [(1.0, own), *plus]
        lines = [(weight, part[block].double().numpy()) for weight, part in parts]
        total = sum(weight * line / np.linalg.norm(line) for weight, line in lines)
        if without:
            columns = np.stack([part[block].double().numpy() for part in without], axis=1)
            total = total - columns @ np.linalg.lstsq(columns, total, rcond=1e-6)[0]
        found.append(np.linalg.norm(own[block].double().numpy()) * total)
    return found


OWN, A, B, C = (drawn(seed) for seed in range(4))
WAYS: dict[str, tuple[list[tuple[float, Tensor]], list[Tensor]]] = {
    "plus one": ([(1.0, A)], []),
    "plus two with weights": ([(0.5, A), (-2.0, B)], []),
    "without one": ([], [A]),
    "without two": ([], [A, B]),
    "plus and without": ([(0.7, C)], [A, B]),
    "without what depends on each other": ([], [A, -3 * A, B, A + B]),
}


@pytest.mark.parametrize("way", WAYS)
def test_composition_by_least_squares(way: str) -> None:
    plus, without = WAYS[way]
    found = compose(OWN, plus, without)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double().numpy(), np.stack(by_hand(OWN, plus, without)), rtol=1e-5, atol=1e-5)
    for other in without:
        assert torch.cosine_similarity(found, other).abs().max() < 1e-6


def test_with_nothing_to_put_to_it_a_vector_stays_to_the_bit() -> None:
    assert compose(OWN) is OWN
    assert torch.equal(emosteer.combine_vectors(EmotionVector(OWN, torch.ones(3))).directions, OWN)


def test_how_long_what_is_added_was_means_nothing() -> None:
    torch.testing.assert_close(compose(OWN, [(1.0, 100 * A)], [0.01 * B]), compose(OWN, [(1.0, A)], [B]))
    torch.testing.assert_close(compose(7 * OWN, [(1.0, A)]), 7 * compose(OWN, [(1.0, A)]), rtol=1e-5, atol=1e-4)


def test_where_nothing_is_left_that_is_told() -> None:
    own, norms = EmotionVector(OWN, torch.ones(3)), torch.ones(3)
    partly = A.clone()
    partly[1] = -4 * OWN[1] * (1 + 1e-6)
    for plus, without in (([partly], []), ([], [partly]), ([B], [partly, B])):
        with pytest.raises(EmosteerError, match=r"vector.plus and vector.without leave nothing of the vector at blocks \[1\]"):
            emosteer.combine_vectors(own, *([EmotionVector(one, norms) for one in side] for side in (plus, without)))
    close = A.clone()
    close[1] = OWN[1] + 0.01 * B[1]  # a direction of its own is left
    assert compose(OWN, [], [close]).isfinite().all()


def test_vectors_that_do_not_go_together_are_refused() -> None:
    own = EmotionVector(OWN, torch.ones(3))
    with pytest.raises(EmosteerError, match=r"1 weights for 2 vectors"):
        emosteer.combine_vectors(own, [own, own], weights=[1.0])
    for other in (EmotionVector(OWN, torch.ones(3), "mlp"), EmotionVector(drawn(5, blocks=2), torch.ones(2))):
        with pytest.raises(EmosteerError, match="give vectors of one model and site"):
            emosteer.combine_vectors(own, without=[other])
    half = emosteer.combine_vectors(own, [EmotionVector(A, torch.ones(3))], weights=[0.5])
    np.testing.assert_allclose(half.directions.double().numpy(), np.stack(by_hand(OWN, [(0.5, A)], [])), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_the_parts_as_it_makes_vectors_of_their_own(method: str) -> None:
    """A part's other emotions, for the grand mean, are all but its own two."""
    model = tiny_model("llama")

    def made(pairs: list[ContrastivePair], others: list[list[ContrastivePair]], **more: object) -> Tensor:
        given = {"others": others, "neutral": NEUTRAL, "components": 1, **more}
        return emotion_vector(model, pairs, NORMS, method, "mlp", "last_token", **given).directions  # type: ignore[arg-type]

    found = made(JOY, [TRUST, FEAR], plus=[(0.5, TRUST)], without=[FEAR])
    trust, fear = made(TRUST, [JOY, FEAR]), made(FEAR, [JOY, TRUST])
    torch.testing.assert_close(found, compose(made(JOY, [TRUST, FEAR]), [(0.5, trust)], [fear]), rtol=1e-3, atol=1e-4)
    assert torch.cosine_similarity(found, fear).abs().max() < 1e-4


def own_method(model: LanguageModel, pairs: list[ContrastivePair], site: str) -> Tensor:
    return mean_difference(read_states(model, pairs, site))


def test_a_method_of_ones_own_makes_the_parts_too() -> None:
    model = tiny_model("llama")
    made = emotion_vector(model, JOY, NORMS, f"{__name__}.own_method", plus=[(1.0, TRUST)], without=[FEAR])
    expected = emotion_vector(model, JOY, NORMS, plus=[(1.0, TRUST)], without=[FEAR])
    torch.testing.assert_close(made.directions, expected.directions)


def test_the_pair_itself_leaves_nothing() -> None:
    with pytest.raises(EmosteerError, match=r"leave nothing of the vector at blocks \[0, 1, 2, 3\]"):
        emotion_vector(tiny_model("llama"), JOY, NORMS, without=[TRUST, JOY])


# --- how sure a composed vector is


def states_of(n: int, seed: int, shift: float) -> States:
    generator = torch.Generator().manual_seed(seed)
    positive, negative = torch.randn(2, n, 2, 16, generator=generator)
    positive[..., seed] += shift
    return States(positive, negative)


@pytest.mark.parametrize(("n", "n_other"), [(24, 24), (24, 12), (12, 24), (13, 20)])
def test_shares_are_in_proportion_and_have_nothing_in_common(n: int, n_other: int) -> None:
    states = States(*torch.zeros(2, n, 1, 1), plus=((1.0, States(*torch.arange(n_other).expand(2, -1)[..., None, None])),))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    halves = [states.of(part).plus[0][1].positive.flatten().tolist() for part in (order[: n // 2], order[n // 2 :])]
    assert sorted(halves[0] + halves[1]) == list(range(n_other))
    if n_other == n:
        assert halves[0] == sorted(order[: n // 2].tolist())
    few = len(halves[0]) - n_other / 2
    assert abs(few) <= (n_other / n if n_other > n else n_other / 4)


def test_a_composed_vectors_quality_is_of_the_whole() -> None:
    """Joy is clear; what is added and taken out are one emotion whose pairs say nothing: halves agree less than of joy alone."""
    joy, noise, trust = states_of(24, 0, 3.0), states_of(24, 1, 0.0), states_of(24, 2, 3.0)
    whole = States(joy.positive, joy.negative, plus=((2.0, noise),), without=(trust,))
    found = quality(whole, mean_difference)

    def direction(rows: list[int], block: int) -> Floats:
        plain = [one.positive[rows, block].mean(0) - one.negative[rows, block].mean(0) for one in (joy, noise, trust)]
        return by_hand(plain[0][None], [(2.0, plain[1][None])], [plain[2][None]])[0]

    def cosine(a: Floats, b: Floats) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    orders = [torch.randperm(24, generator=torch.Generator().manual_seed(seed)).tolist() for seed in range(SPLITS)]
    expected = [np.mean([cosine(direction(o[:12], block), direction(o[12:], block)) for o in orders]) for block in range(2)]
    assert found.split_half == pytest.approx(expected, abs=1e-5)
    alone = quality(joy, mean_difference)
    assert alone.split_half is not None and found.split_half is not None  # noqa: PT018
    assert max(value or 0 for value in found.split_half) < min(value or 0 for value in alone.split_half)
    assert alone.cosine_to_parts is None
    everything = list(range(24))
    parts = [[one.positive[:, b].mean(0) - one.negative[:, b].mean(0) for b in range(2)] for one in (joy, noise, trust)]
    cosines = [[cosine(direction(everything, b), part[b].double().numpy()) for b in range(2)] for part in parts]
    assert found.cosine_to_parts is not None
    np.testing.assert_allclose(found.cosine_to_parts, cosines, atol=1e-6)
    np.testing.assert_allclose(found.cosine_to_parts[2], 0, atol=1e-6)


def test_held_out_texts_are_told_apart_by_the_whole() -> None:
    """With the emotion's own line taken out nothing tells its texts apart."""
    joy, same = states_of(200, 0, 1.0), states_of(200, 0, 1.0)
    other = States(same.positive + 0.0, same.negative)
    other.positive[..., 5] += 1.0
    sure, blind = (quality(States(joy.positive, joy.negative, without=without), mean_difference).auc for without in ((), (other,)))
    assert sure is not None and blind is not None  # noqa: PT018
    assert min(value or 0 for value in sure) > 0.7
    assert max(value or 1 for value in blind) < min(value or 0 for value in sure)


@pytest.mark.parametrize("method", ["lda", "mean_difference"])
def test_parts_of_few_pairs_are_told_as_none(method: str) -> None:
    """Their shares of a half have too few pairs: no number, and no failure."""
    states = states_of(24, 0, 3.0)
    with_few = States(states.positive, states.negative, without=(states_of(2, 1, 1.0).of(torch.tensor([0])),))
    if method == "mean_difference":
        found = quality(with_few, METHODS[method])
        assert found.split_half == [None, None], "one of the halves has no pair of it"
        assert found.n_pairs == 24
    else:
        two = States(states.positive, states.negative, plus=((1.0, states_of(2, 1, 1.0)),))
        assert quality(two, METHODS[method]).split_half == [None, None]
