"""What a scorer is: a plain function from replies to metrics, with a version that is raised by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

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
