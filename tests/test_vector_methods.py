"""Directions of every method, against other packages and closed forms, and on states with a planted direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from tiny_models import BLOCKS, WIDTH, tiny_model

from emosteer.datasets import ContrastivePair, NeutralText
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.sources import persona_prompts
from emosteer.vectors import METHODS, States, emotion_vector, lda, logistic, mean_difference, neutral_projected, read_states
from emosteer.vectors.methods import grand_mean, ledoit_wolf, pca

Floats = NDArray[np.float64]
PROBES = ("pca", "logistic", "lda")
"""What finds a line, and is as long as the mean difference reaches along it."""
TWO = [
    ContrastivePair("a", "We are so happy that you came!", "I am sad, because nobody called."),
    ContrastivePair("b", "What a garden! We will dance all night.", "The rain took the garden, and the train left without me."),
    ContrastivePair("c", "How kind a reply!", "Nobody gave a reply at all."),
]
FEAR = [ContrastivePair("a", "Who is there?", "Things are as they were.")]
NEUTRAL = [
    NeutralText(str(i), text) for i, text in enumerate(("A train leaves at nine.", "It rained.", "The user asked a question."))
]


def planted(n: int = 24, blocks: int = 3, width: int = 40, shift: float = 2.0, seed: int = 0) -> tuple[States, torch.Tensor]:
    """States of pairs around a common topic, with a direction [block, width] of unit length between the two sides."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    direction = noise(blocks, width)
    direction = direction / direction.norm(dim=1, keepdim=True)
    topic, middle = noise(n, blocks, 1), 5 * noise(blocks, width)
    topics = middle + 3 * (topic - topic.mean(0)) * noise(blocks, width)
    positive, negative = (topics + sign * shift * direction / 2 + 0.2 * noise(n, blocks, width) for sign in (1, -1))
    neutral = 3 * noise(12, blocks, 1) * direction.roll(1, 0) + 0.1 * noise(12, blocks, width)
    return States(positive, negative, others=middle + 0.1 * noise(4, blocks, width), neutral=neutral, components=1), direction


def sides(states: States, block: int) -> tuple[Floats, Floats]:
    positive, negative = (part[:, block].double().numpy() for part in (states.positive, states.negative))
    return positive, negative


def along(line: Floats, difference: Floats) -> Floats:
    """The difference's projection on a line."""
    projected: Floats = line * (line @ difference) / (line @ line)
    return projected


def assert_directions(found: torch.Tensor, expected: list[Floats]) -> None:
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double().numpy(), np.stack(expected), rtol=1e-4, atol=1e-5)


def test_pca_is_scikit_learns_of_texts_about_their_pairs_middle() -> None:
    states, _ = planted(shift=0.5)
    expected = []
    for block in range(3):
        positive, negative = sides(states, block)
        half = (positive - negative) / 2
        component = PCA(n_components=1, svd_solver="full").fit(np.concatenate([half, -half])).components_[0]
        expected.append(along(component, (positive - negative).mean(0)))
    assert_directions(pca(states), expected)


def test_logistic_is_scikit_learns() -> None:
    states, _ = planted(shift=0.7)
    expected = []
    for block in range(3):
        positive, negative = sides(states, block)
        texts, labels = np.concatenate([positive, negative]), np.repeat([1, -1], len(states))
        scaled = (texts - texts.mean(0)) / np.sqrt(np.mean((texts - texts.mean(0)) ** 2))
        weights = LogisticRegression(C=1.0, tol=1e-12, max_iter=100_000).fit(scaled, labels).coef_[0]
        expected.append(along(weights, positive.mean(0) - negative.mean(0)))
    assert_directions(logistic(states), expected)


def test_logistic_takes_what_separates_perfectly_and_what_does_not() -> None:
    """Far apart, close together, and fewer texts than would separate: the gradient is zero at the end, whatever the start was."""
    for shift in (0.01, 20.0):
        states, direction = planted(n=40, width=8, shift=shift)
        found = logistic(states)
        assert found.isfinite().all()
        if shift > 1:
            assert torch.cosine_similarity(found, direction).min() > 0.9


def test_lda_is_scikit_learns_with_ledoit_and_wolfs_share() -> None:
    states, _ = planted(shift=0.7)
    expected = []
    for block in range(3):
        positive, negative = sides(states, block)
        residuals = np.concatenate([positive - positive.mean(0), negative - negative.mean(0)])
        share = sklearn_ledoit_wolf(residuals, assume_centered=True)[1]
        found, scale = ledoit_wolf(torch.from_numpy(residuals)[None])
        assert float(found[0]) == pytest.approx(share, rel=1e-9)
        assert float(scale[0]) == pytest.approx(residuals.var(axis=0).mean(), rel=1e-9)
        texts, labels = np.concatenate([positive, negative]), np.repeat([1, -1], len(states))
        weights = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=share).fit(texts, labels).coef_[0]
        expected.append(along(weights, positive.mean(0) - negative.mean(0)))
    assert_directions(lda(states), expected)


def test_grand_mean_counts_every_emotion_once() -> None:
    states, _ = planted()
    assert states.others is not None
    expected = []
    for block in range(3):
        positive, negative = sides(states, block)
        emotions = [positive.mean(0), negative.mean(0), *states.others[:, block].double().numpy()]
        expected.append(positive.mean(0) - sum(emotions) / 6)
    assert_directions(grand_mean(states), expected)


def test_neutral_projected_is_scikit_learns_residual() -> None:
    states, _ = planted()
    assert states.neutral is not None
    for k in (1, 3):
        expected = []
        for block in range(3):
            positive, negative = sides(states, block)
            axes = PCA(n_components=k, svd_solver="full").fit(states.neutral[:, block].double().numpy()).components_
            difference = positive.mean(0) - negative.mean(0)
            expected.append(difference - axes.T @ (axes @ difference))
        found = neutral_projected(States(states.positive, states.negative, neutral=states.neutral, components=k))
        assert_directions(found, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_direction_is_found_with_its_sign_and_length(method: str) -> None:
    """Topics vary 3 along a line of their own: more than the emotion's 2, less within a pair."""
    states, direction = planted()
    found = METHODS[method](states)
    assert torch.cosine_similarity(found, direction).min() > 0.9
    swapped = States(states.negative, states.positive, states.others, states.neutral, states.components)
    if method != "grand_mean":
        torch.testing.assert_close(METHODS[method](swapped), -found, rtol=1e-3, atol=1e-3)
    if method in PROBES:
        reach = (mean_difference(states) * found).sum(1) / found.norm(dim=1)
        torch.testing.assert_close(found.norm(dim=1), reach)


@pytest.mark.parametrize("method", METHODS)
def test_a_direction_grows_with_the_states_and_ignores_their_middle(method: str) -> None:
    states, _ = planted()
    assert states.others is not None and states.neutral is not None  # noqa: PT018
    moved = States(*(10 * part + 7 for part in (states.positive, states.negative, states.others, states.neutral)), 1)
    torch.testing.assert_close(METHODS[method](moved), 10 * METHODS[method](states), rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_a_tiny_model(method: str) -> None:
    model, norms = tiny_model("llama"), torch.ones(BLOCKS)
    made = emotion_vector(model, TWO, norms, method, "mlp", "last_token", others=[FEAR], neutral=NEUTRAL, components=2)
    assert made.directions.shape == (BLOCKS, WIDTH)
    assert made.site == "mlp"
    needs = {"grand_mean": {"others": [FEAR]}, "neutral_projected": {"neutral": NEUTRAL, "components": 2}}.get(method, {})
    states = read_states(model, TWO, "mlp", "last_token", **needs)  # type: ignore[arg-type]
    torch.testing.assert_close(made.directions, METHODS[method](states), rtol=1e-4, atol=1e-5)


def test_the_other_emotions_are_read_one_by_one() -> None:
    model = tiny_model("llama")
    states = read_states(model, TWO, others=[FEAR, TWO])
    assert states.others is not None
    fear = read_states(model, FEAR)
    expected = torch.stack([fear.positive[0], fear.negative[0], states.positive.mean(0), states.negative.mean(0)])
    torch.testing.assert_close(states.others, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reading", ["token_mean", "assistant_prefix"])
def test_personas_by_hand(reading: str) -> None:
    """Each prompt alone: the mean over the question's tokens, or the last token of all."""
    model = tiny_model("llama")
    prompts = persona_prompts("joy", "sadness")[:6]
    states = []
    for prompt in prompts:
        tokens = model.dialogue.prompt(prompt.messages)
        with torch.no_grad():
            hidden = model.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[1:BLOCKS]  # the last one is normed
        question = model.dialogue.asking(prompt.messages)
        own = slice(question.start, question.stop) if reading == "token_mean" else slice(-1, None)
        states.append(torch.stack([layer[0, own].mean(0) for layer in hidden]))
    expected = torch.stack(states[0::2]).mean(0) - torch.stack(states[1::2]).mean(0)
    made = emotion_vector(model, prompts, torch.ones(BLOCKS), reading=reading)
    torch.testing.assert_close(made.directions[:-1], expected, rtol=1e-4, atol=1e-5)


def test_too_few_texts_are_refused() -> None:
    model, norms = tiny_model("llama"), torch.ones(BLOCKS)
    for method, message in (
        ("lda", "vector.method=lda needs the scatter of at least 2 pairs"),
        ("grand_mean", "vector.method=grand_mean needs texts of other emotions"),
        ("neutral_projected", "vector.components=5: of 3 neutral texts give at most 2"),
    ):
        with pytest.raises(EmosteerError, match=message):
            emotion_vector(model, TWO[:1], norms, method, neutral=NEUTRAL)


@pytest.mark.parametrize("method", METHODS)
def test_states_without_a_difference_are_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of two texts that differ, and that a model reads alike."""
    model, norms = tiny_model("llama"), torch.ones(BLOCKS)
    same = torch.ones(3, BLOCKS, WIDTH)
    monkeypatch.setattr("emosteer.vectors.making.read_states", lambda *_a, **_k: States(same, same, same, torch.randn_like(same), 1))
    with pytest.raises(EmosteerError, match=r"not finite or has no length at blocks \[0, 1, 2, 3\]"):
        emotion_vector(model, TWO, norms, method)


def test_states_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")

    def overflown(_model: LanguageModel, readings: list[object], _site: str) -> torch.Tensor:
        states = torch.ones(len(readings), BLOCKS, WIDTH)
        states[1, 2, 3] = torch.inf
        return states

    monkeypatch.setattr("emosteer.vectors.making.token_means", overflown)
    with pytest.raises(EmosteerError, match=r"activations at blocks \[2\] are not finite numbers; try model.dtype=float32"):
        emotion_vector(model, TWO, torch.ones(BLOCKS), "logistic")
