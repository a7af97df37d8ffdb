"""How hard to push for a stated cost, so that layers, vectors and models compare at equal cost: a coefficient by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from emosteer.config import AutoCoefficientConfig
from emosteer.engine import Engine, Origin, Request
from emosteer.engine.likelihood import mean_divergences, mean_log_probabilities
from emosteer.errors import EmosteerError
from emosteer.steering import Steering

FOUND, NEAREST, OUT_OF_REACH = "found", "nearest", "out of reach"
"""Within the tolerance; the nearest of as many as may be tried; the largest coefficient costs less than the target."""
NO_COST = {"kl": 0.0, "perplexity_ratio": 1.0}
DOUBLINGS = 4
"""The first coefficient that is tried is the largest one halved so many times."""


@dataclass(frozen=True)
class Strength:
    """A coefficient, what it costs, and how it was found."""

    coefficient: float
    cost: float
    status: str
    """`found`, `nearest` or `out of reach`."""
    steps: tuple[tuple[float, float | None], ...]
    """Each coefficient that was tried, and its cost; None where no reply has a token to measure."""


def find_strength(cost: Callable[[float], float], config: AutoCoefficientConfig) -> Strength:
    """The coefficient whose cost is nearest to the target, of those that are tried.

    From a sixteenth of the largest on, coefficients are doubled until one costs too much: far beyond, where replies fall apart, a
    cost may be small again. Then the interval between the last two is halved, until a cost lies within the tolerance. Where costs
    do not rise all the way, one of the crossings is found.

    Args:
        cost: of a coefficient; NaN, which counts as too much, where there is no reply to measure.
        config: what is looked for.

    Raises:
        EmosteerError: no coefficient that was tried gave a reply to measure.
    """
    allowed = config.tolerance * (config.target - NO_COST[config.metric])
    low, high = 0.0, math.inf
    at = config.largest / 2**DOUBLINGS
    tried: list[tuple[float, float]] = []
    while True:
        found = cost(at)
        tried.append((at, found))
        if abs(found - config.target) <= allowed:
            return _strength(tried, config.target, FOUND)
        if found < config.target:
            low = at
        else:
            high = at
        if low >= config.largest:
            return _strength(tried[-1:], config.target, OUT_OF_REACH, tried)
        if len(tried) >= config.max_steps:
            return _strength(tried, config.target, NEAREST)
        at = min(2 * low, config.largest) if math.isinf(high) else (low + high) / 2


def _strength(
    among: Sequence[tuple[float, float]], target: float, status: str, tried: Sequence[tuple[float, float]] | None = None
) -> Strength:
    steps = tuple((at, None if math.isnan(cost) else cost) for at, cost in tried or among)
    measured = [(at, cost) for at, cost in among if not math.isnan(cost)]
    if not measured:
        coefficients = ", ".join(f"{at:g}" for at, _ in steps)
        raise EmosteerError(f"coefficient=auto: no reply has a token at any of {coefficients}; give a number")
    at, cost = min(measured, key=lambda one: (abs(one[1] - target), one[0]))
    return Strength(at, cost, status, steps)


class Costs:
    """What a steering costs, over the same prompts each time.

    Args:
        engine: replies, and reads the replies.
        requests: the unsteered ones, one for each prompt.
        metric: `kl`, the mean over prompts of the divergence per token (nats); or `perplexity_ratio`, mean perplexity over prompts by
            that of the unsteered replies to them.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request], metric: str) -> None:
        self.engine, self.requests, self.metric = engine, requests, metric
        self._before = self._perplexities(None) if metric == "perplexity_ratio" else []

    def __call__(self, steering: Steering) -> float:
        """The cost; NaN where no reply can be measured."""
        if self.metric == "perplexity_ratio":
            pairs = list(zip(self._perplexities(steering), self._before, strict=True))
            both = [(steered, before) for steered, before in pairs if not math.isnan(steered + before)]
            return sum(s for s, _ in both) / sum(b for _, b in both) if both else math.nan
        texts = self._replied(steering)
        means = mean_divergences(self.engine, texts, [Origin(prompt, steering) for prompt, _ in texts])
        defined = [mean for mean in means if not math.isnan(mean)]
        return sum(defined) / len(defined) if defined else math.nan

    def _perplexities(self, steering: Steering | None) -> list[float]:
        return [math.exp(-mean) for mean in mean_log_probabilities(self.engine, self._replied(steering))]

    def _replied(self, steering: Steering | None) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Prompts and replies, as token ids."""
        replies = dict(self.engine.generate([replace(request, steering=steering) for request in self.requests]))
        return [(request.prompt, replies[number].tokens) for number, request in enumerate(self.requests)]
