"""What a scorer is: a plain function from replies to metrics, with a version that is raised by hand."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from emosteer.dotted import find_function, version_of
from emosteer.errors import EmosteerError

if TYPE_CHECKING:
    from emosteer.engine import Engine

Scores: TypeAlias = dict[str, list[float]]
"""Metric name -> one value per reply, in the order of the replies; NaN where a value is undefined."""

_Scorer = TypeVar("_Scorer", bound=Callable[..., Scores])


def versioned(version: int) -> Callable[[_Scorer], _Scorer]:
    """Mark a scorer with `version`, which is part of the key that its stored scores have.

    Raise the number in the commit that changes what the scorer returns for any reply: stored scores of the older
    version are then computed anew from the stored replies. The function itself is returned, with the attribute
    `version` set.
    """

    def mark(scorer: _Scorer) -> _Scorer:
        vars(scorer)["version"] = version
        return scorer

    return mark


@dataclass(frozen=True)
class Context:
    """What a scorer gets that has a parameter `context`: the model, and the replies' tokens."""

    engine: Engine
    prompts: list[tuple[int, ...]]
    """Token ids of each reply's prompt."""
    replies: list[tuple[int, ...]]
    """Token ids of each reply."""


@dataclass(frozen=True)
class Scorer:
    """A scorer as a config names it: a function, its options, and the key under which its scores are stored."""

    name: str
    function: Callable[..., Scores]
    options: dict[str, Any]
    target: str

    @property
    def version(self) -> int:
        """Of the function; 1 where it says nothing."""
        return version_of(self.function)

    @property
    def key(self) -> str:
        """Name, version and a hash of function and options."""
        content = json.dumps([self.target, self.options, self.version], sort_keys=True)
        return f"{self.name}-v{self.version}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    @property
    def needs_model(self) -> bool:
        """Whether the function asks for the model."""
        return "context" in inspect.signature(self.function).parameters

    def measure(self, replies: Sequence[str], context: Callable[[], Context]) -> Scores:
        """What the function says of the replies of one cell; a value that is not finite is undefined, and becomes NaN.

        Args:
            replies: all of the cell's.
            context: makes the context, where the function asks for it.

        Raises:
            EmosteerError: something else than metrics, or a metric with another number of values than there are replies.
        """
        asked = {"context": context()} if self.needs_model else {}
        metrics = self.function(replies, **self.options, **asked)
        if not isinstance(metrics, Mapping):
            raise EmosteerError(f"scorer {self.name} gave {repr(metrics)[:60]}: a scorer gives metric -> one value per reply")
        for metric, values in metrics.items():
            if len(values) != len(replies):
                raise EmosteerError(f"scorer {self.name}: {metric} has {len(values)} values for {len(replies)} replies")
        return {metric: [float(v) if math.isfinite(v) else math.nan for v in values] for metric, values in metrics.items()}

    def facts(self) -> dict[str, Any]:
        """What is stored beside the scores."""
        return {"scorer": self.name, "function": self.target, "version": self.version, "options": self.options}


def find_scorers(config: Mapping[str, Mapping[str, Any]]) -> list[Scorer]:
    """The scorers of a config: name -> `_target_` (dotted path of a function) and options.

    Raises:
        EmosteerError: a function that cannot be imported or has no proper version, or options that it does not take.
    """
    if not isinstance(config, Mapping):
        raise EmosteerError(f"scorers={config}: give names, and for each _target_, the dotted path of a function")
    for name, entry in config.items():
        if not isinstance(entry, Mapping):
            raise EmosteerError(f"scorers.{name}={entry}: give _target_, the dotted path of a function, and its options")
    return [_find_scorer(name, dict(entry)) for name, entry in config.items()]


def _find_scorer(name: str, entry: dict[str, Any]) -> Scorer:
    target = entry.pop("_target_", None)
    function = find_function(f"scorers.{name}._target_", target)
    scorer = Scorer(name, function, entry, str(target))
    try:
        inspect.signature(function).bind([], **entry, **({"context": None} if scorer.needs_model else {}))
    except TypeError as error:
        raise EmosteerError(f"scorers.{name}: {target} {error}; mend its options") from None
    if target.startswith("emosteer.") and not scorer.needs_model:
        _try_options(scorer)
    version_of(function)
    return scorer


def _try_options(scorer: Scorer) -> None:
    """Raise EmosteerError for a wrong value of an option, as the scorer itself does; what is not ours may not bear to be tried."""
    try:
        scorer.function([], **scorer.options)
    except (ValueError, TypeError) as error:
        raise EmosteerError(f"scorers.{scorer.name}: {error}; its options are {scorer.options}") from None
