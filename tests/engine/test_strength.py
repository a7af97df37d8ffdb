"""The strength that costs what was asked for: bisection over functions whose answer is known, and over a tiny model's replies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from reference import Reference
from scipy.optimize import brentq
from scipy.special import log_softmax, rel_entr, softmax
from tiny_models import random_tokens, random_vector
from zoo import zoo_model, zoo_places

from emosteer.config import AutoCoefficientConfig
from emosteer.engine import Decoding, Engine, Request, RowSeed
from emosteer.errors import EmosteerError
from emosteer.steering import Push, Steering
from emosteer.strength import FOUND, NEAREST, OUT_OF_REACH, Costs, Strength, find_strength


def asked(**changes: Any) -> AutoCoefficientConfig:
    return AutoCoefficientConfig(**{"target": 0.1, "tolerance": 0.05, "max_steps": 30, **changes})


COSTS: dict[str, tuple[Callable[[float], float], AutoCoefficientConfig]] = {
    "a square": (lambda c: c**2, asked()),
    "steep": (lambda c: 4e3 * c**2, asked()),
    "flat at first": (lambda c: 0.3 * c**6, asked()),
    "near the largest": (lambda c: 0.0252 * c**2, asked(largest=2.0)),
    "a ratio that falls below 1 before it rises": (lambda c: 1 - 0.5 * c + 2 * c**2, asked(metric="perplexity_ratio", target=1.2)),
}


@pytest.mark.parametrize("name", COSTS)
def test_it_lies_within_the_tolerance_of_where_the_cost_is_the_target(name: str) -> None:
    cost, config = COSTS[name]
    found = find_strength(cost, config)
    no_cost = 1 if config.metric == "perplexity_ratio" else 0
    assert found.status == FOUND
    assert found.cost == cost(found.coefficient)
    assert abs(found.cost - config.target) <= 0.05 * (config.target - no_cost)
    exact = brentq(lambda c: cost(c) - config.target, 0.0, config.largest)
    assert found.coefficient == pytest.approx(exact, rel=0.1)
    assert all(at <= config.largest for at, _ in found.steps)
    assert found == find_strength(cost, config), "the same each time"


def test_it_doubles_up_to_the_first_that_costs_too_much_then_halves() -> None:
    found = find_strength(lambda c: c**2, asked(tolerance=0.01))
    assert [at for at, _ in found.steps[:7]] == [0.0625, 0.125, 0.25, 0.5, 0.375, 0.3125, 0.34375]
    assert [cost for _, cost in found.steps] == [at**2 for at, _ in found.steps]


def test_what_costs_little_far_beyond_is_not_mistaken_for_out_of_reach() -> None:
    """A reply that has fallen apart into one word can be probable again."""
    found = find_strength(lambda c: c**2 if c < 0.6 else 0.0, asked())
    assert (found.status, round(found.cost, 2)) == (FOUND, 0.1)


def test_a_target_out_of_reach_is_told_with_the_largest_coefficient() -> None:
    found = find_strength(lambda c: 0.09 * c, asked(tolerance=0.01))
    assert found == Strength(
        1.0, 0.09, OUT_OF_REACH, ((0.0625, 0.09 / 16), (0.125, 0.09 / 8), (0.25, 0.0225), (0.5, 0.045), (1.0, 0.09))
    )


def test_a_cost_that_jumps_over_the_target_gives_the_nearest_that_was_tried() -> None:
    found = find_strength(lambda c: 0.0 if c < 0.3 else 0.12, asked(max_steps=8))
    assert (found.status, found.cost, len(found.steps)) == (NEAREST, 0.12, 8)
    assert 0.3 <= found.coefficient < 0.32


def test_no_reply_to_measure_counts_as_too_much() -> None:
    found = find_strength(lambda c: c**2 if c < 0.35 else math.nan, asked())
    assert found.status == FOUND
    assert (0.5, None) in found.steps
    with pytest.raises(EmosteerError, match=r"coefficient=auto: no reply has a token at any of 0\.0625, 0\.03125, "):
        find_strength(lambda c: math.nan, asked(max_steps=6))


MODEL = "llama"
PROMPTS = random_tokens(7, 3, 9, 5, seed=4)


def steering(coefficient: float) -> Steering:
    return Steering((Push("residual", 1, random_vector(3, 8.0 * coefficient)),))


def requests() -> list[Request]:
    return [Request(prompt, RowSeed(0, str(number), 0), None, Decoding(6)) for number, prompt in enumerate(PROMPTS)]


def plainly(metric: str, coefficient: float) -> float:
    """By a reply at a time, and a plain forward for each token."""
    reference = Reference(zoo_model(MODEL), zoo_places(MODEL))

    def logits(request: Request, reply: Sequence[int]) -> list[np.ndarray]:
        return [reference.logits(request, reply[:step]).astype(float) for step in range(len(reply))]

    def perplexity(plain: Request, reply: Sequence[int]) -> float:
        chosen = [log_softmax(row)[token] for row, token in zip(logits(plain, reply), reply, strict=True)]
        return math.exp(-sum(chosen) / len(chosen))

    divergences, after, before = [], [], []
    for plain in requests():
        steered = Request(plain.prompt, plain.row_seed, steering(coefficient), plain.decoding)
        reply, unsteered = reference.reply(steered).tokens, reference.reply(plain).tokens
        both = zip(logits(steered, reply), logits(plain, reply), strict=True)
        divergences.append(np.mean([rel_entr(softmax(p), softmax(q)).sum() for p, q in both]))
        after.append(perplexity(plain, reply))
        before.append(perplexity(plain, unsteered))
    return float(np.mean(divergences)) if metric == "kl" else sum(after) / sum(before)


@pytest.mark.parametrize("metric", ["kl", "perplexity_ratio"])
def test_the_cost_of_a_steering_is_that_of_plain_forwards(metric: str) -> None:
    costs = Costs(Engine(zoo_model(MODEL)), requests(), metric)
    for coefficient in (0.2, 1.0):
        assert costs(steering(coefficient)) == pytest.approx(plainly(metric, coefficient), rel=1e-3)
    assert costs(Steering(())) == pytest.approx(0 if metric == "kl" else 1, abs=1e-6)


def test_replies_without_tokens_are_left_out() -> None:
    class Silent(Engine):
        """Says nothing to the first prompt once it is steered."""

        def generate(self, requests: Sequence[Request], on_tokens: Any = None) -> Any:
            for number, reply in super().generate(requests):
                is_cut = number == 0 and requests[0].steering is not None
                yield number, type(reply)((), True) if is_cut else reply

    model = zoo_model(MODEL)
    for metric in ("kl", "perplexity_ratio"):
        silent, rest = Costs(Silent(model), requests(), metric), Costs(Engine(model), requests()[1:], metric)
        assert silent(steering(0.5)) == pytest.approx(rest(steering(0.5)), rel=1e-4)
        assert math.isnan(Costs(Silent(model), requests()[:1], metric)(steering(0.5)))
