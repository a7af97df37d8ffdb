"""What a scorer is: a plain function from replies to metrics, with a version that is raised by hand."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from emosteer.dotted import find_function, version_of
from emosteer.errors import EmosteerError

if TYPE_CHECKING:
    from emosteer.engine import Engine, Origin

Scores: TypeAlias = dict[str, list[float]]
"""Metric name -> one value per reply, in the order of the replies; NaN where a value is undefined."""

_Scorer = TypeVar("_Scorer", bound=Callable[..., Scores])
Pin: TypeAlias = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Looks through a scorer's options when a sweep is given, and adds what they stand for now, such as the weights at a path."""


class NotComputed(float):
    """NaN, and why a value is not there: the reason is kept beside the scores."""

    reason: str

    def __new__(cls, reason: str) -> NotComputed:
        self = super().__new__(cls, math.nan)
        self.reason = reason
        return self


def versioned(version: int, per_reply: bool = False, pin: Pin | None = None) -> Callable[[_Scorer], _Scorer]:
    """Mark a scorer with `version`, which is part of the key that its stored scores have.

    Raise the number in the commit that changes what the scorer returns for any reply: stored scores of the older
    version are then computed anew from the stored replies. `per_reply` says that a reply's values depend on that reply
    alone (its text, and the tokens of it and its prompt), so that one call may bring the replies of many cells; it is
    no part of the key. `pin` is given the options when a sweep is, and returns those that the function is called with; it raises
    EmosteerError for what cannot be used. The function itself is returned, with the attributes `version`, `per_reply` and `pin` set.
    """

    def mark(scorer: _Scorer) -> _Scorer:
        vars(scorer).update(version=version, per_reply=per_reply, pin=pin)
        return scorer

    return mark


class Answers(Protocol):
    """What was said of texts before, by whoever is slow to say it."""

    def find(self, texts: Iterable[str]) -> dict[str, dict[str, float]]:
        """Of the texts that have an answer, metric -> value."""

    def keep(self, said: Mapping[str, Mapping[str, float]]) -> None:
        """Add answers: text -> metric -> value."""


class NoAnswers:
    """Where nothing is kept."""

    def find(self, texts: Iterable[str]) -> dict[str, dict[str, float]]:
        """None are there."""
        return {}

    def keep(self, said: Mapping[str, Mapping[str, float]]) -> None:
        """Keep nothing."""


@dataclass(frozen=True)
class Context:
    """What a scorer gets that has a parameter `context`: the model, and the replies' tokens."""

    engine: Engine
    prompts: list[tuple[int, ...]]
    """Token ids of each reply's prompt."""
    replies: list[tuple[int, ...]]
    """Token ids of each reply."""
    turns: list[int] = field(default_factory=list)
    """Which of its dialogue's replies each is, from 0 on; a dialogue's stand side by side. Empty for a scorer that is per reply."""
    said: list[str] = field(default_factory=list)
    """What each answers: the prompt, or what the user or partner said after the last reply. Empty likewise."""
    answers: Callable[[str], Answers] = lambda _: NoAnswers()
    """What was said of texts before, under a key; see `answered`."""


def answered(
    context: Context,
    key: Mapping[str, Any],
    texts: Sequence[str],
    size: int,
    ask: Callable[[Sequence[str]], Sequence[Mapping[str, float]]],
) -> dict[str, dict[str, float]]:
    """Text -> metric -> value, of what was said before, and of what is asked now and kept, batch by batch.

    Args:
        context: knows what was said before.
        key: plain data, all that changes an answer.
        texts: each once.
        size: of a batch.
        ask: for a batch's answers, in order; those with an undefined value are not kept.
    """
    answers = context.answers(hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16])
    found = answers.find(texts)
    missing = [text for text in texts if text not in found]
    for start in range(0, len(missing), size):
        batch = missing[start : start + size]
        said = {text: dict(values) for text, values in zip(batch, ask(batch), strict=True)}
        answers.keep({text: values for text, values in said.items() if not any(math.isnan(v) for v in values.values())})
        found |= said
    return found


def no_origins() -> list[Origin]:
    """In place of what tells the origins of replies, where that is not known; raises EmosteerError."""
    raise EmosteerError("what these replies came from is not known: give a scorer that has no parameter `origins`")


@dataclass(frozen=True)
class Scorer:
    """A scorer as a config names it: a function, its options, and the key under which its scores are stored."""

    name: str
    target: str
    options: dict[str, Any]
    version: int
    """Of the function, when the command was given that named it; 1 where it says nothing."""
    imported: Callable[..., Scores] | None = field(default=None, compare=False)

    @cached_property
    def function(self) -> Callable[..., Scores]:
        """The function itself, imported when it is wanted: who only looks at a sweep need not have the user's modules.

        Raises:
            EmosteerError: it cannot be imported, or is of another version by now.
        """
        if self.imported is not None:
            return self.imported
        function = find_function(f"scorers.{self.name}._target_", self.target)
        if (now := version_of(function)) != self.version:
            raise EmosteerError(
                f"scorers.{self.name}: {self.target} is of version {now} by now, and the sweep's last command took version "
                f"{self.version}: give the command again"
            )
        return function

    @property
    def key(self) -> str:
        """Name, version and a hash of function and options."""
        content = json.dumps([self.target, self.options, self.version], sort_keys=True)
        return f"{self.name}-v{self.version}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    @property
    def needs_model(self) -> bool:
        """Whether the function asks for the model."""
        return "context" in inspect.signature(self.function).parameters

    @property
    def needs_origins(self) -> bool:
        """Whether the function asks what each reply came from: its prompt as it was read, and the steering."""
        return "origins" in inspect.signature(self.function).parameters

    @property
    def is_per_reply(self) -> bool:
        """Whether a reply's values depend on that reply alone; one that says nothing may look at all replies of its cell."""
        return bool(getattr(self.function, "per_reply", False))

    def measure(
        self, replies: Sequence[str], context: Callable[[], Context], origins: Callable[[], list[Origin]] = no_origins
    ) -> Scores:
        """What the function says of replies; a value that is not finite is undefined, and becomes NaN.

        Args:
            replies: all of a cell's; of many cells where the scorer is per reply.
            context: makes the context, where the function asks for it.
            origins: tells what each reply came from, where the function asks for that.

        Raises:
            EmosteerError: something else than metrics, or a metric with another number of values than there are replies.
        """
        asked: dict[str, Any] = {"context": context()} if self.needs_model else {}
        if self.needs_origins:
            asked["origins"] = origins()
        metrics = self.function(replies, **self.options, **asked)
        if not isinstance(metrics, Mapping):
            raise EmosteerError(f"scorer {self.name} gave {repr(metrics)[:60]}: a scorer gives metric -> one value per reply")
        for metric, values in metrics.items():
            if len(values) != len(replies):
                raise EmosteerError(f"scorer {self.name}: {metric} has {len(values)} values for {len(replies)} replies")
        return {metric: [_value(v) for v in values] for metric, values in metrics.items()}

    def facts(self) -> dict[str, Any]:
        """What is stored beside the scores."""
        return {"scorer": self.name, "function": self.target, "version": self.version, "options": self.options}


def _value(given: float) -> float:
    if isinstance(given, NotComputed):
        return given
    return float(given) if math.isfinite(given) else math.nan


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
    scorer = Scorer(name, str(target), entry, version_of(function), function)
    _check_options(scorer)
    if pin := getattr(function, "pin", None):
        try:
            return replace(scorer, options=pin(entry))
        except EmosteerError as error:
            raise EmosteerError(f"scorers.{name}.{error}") from None
    if scorer.target.startswith("emosteer.") and not scorer.needs_model:
        _try_options(scorer)
    return scorer


def _check_options(scorer: Scorer) -> None:
    """Raise EmosteerError for options that the function does not have, or lacks."""
    try:
        given = [name for name in ("context", "origins") if name in inspect.signature(scorer.function).parameters]
        inspect.signature(scorer.function).bind([], **scorer.options, **dict.fromkeys(given))
    except TypeError as error:
        raise EmosteerError(f"scorers.{scorer.name}: {scorer.target} {error}; mend its options") from None


def kept_scorers(config: Mapping[str, Mapping[str, Any]], versions: Mapping[str, int]) -> list[Scorer]:
    """The scorers that a sweep's command named, as they were then; none is imported before it measures."""
    kept = {name: dict(entry) for name, entry in config.items()}
    return [Scorer(name, str(entry.pop("_target_")), entry, versions[name]) for name, entry in kept.items()]


def _try_options(scorer: Scorer) -> None:
    """Raise EmosteerError for a wrong value of an option, as the scorer itself does; what is not ours may not bear to be tried."""
    try:
        scorer.function([], **scorer.options)
    except (ValueError, TypeError) as error:
        raise EmosteerError(f"scorers.{scorer.name}: {error}; its options are {scorer.options}") from None
