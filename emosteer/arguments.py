"""Arguments given in Python, held to the types and checks of the command's configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from emosteer.checks import check_values
from emosteer.config import Config
from emosteer.errors import EmosteerError
from emosteer.one_line import one_line
from emosteer.planning import typed


class Generation(TypedDict, total=False):
    """How replies are decoded; what is left out has the default of `emosteer.config.GenerationConfig`."""

    max_new_tokens: int
    min_new_tokens: int
    do_sample: bool
    temperature: float
    top_p: float
    n_samples: int


NEEDED: dict[str, Any] = {
    "name": "notebook",
    "store": "outputs/store",
    "layer": 0,
    "coefficient": 0.0,
    "model": {"name": "", "path": ""},
    "pair": {"name": "", "target": "", "counterpart": "", "primary": "joy"},
    "prompts": {"name": ""},
}
"""What a whole configuration must have, and a function does not ask for."""


def configuration(**given: Any) -> Config:
    """A configuration of the given keys, the others at their defaults.

    Args:
        given: top-level keys of `emosteer.config.Config`; a group's as a mapping. Numbers of numpy's and torch's serve as well.

    Raises:
        EmosteerError: an unknown key, or a value of another type or out of its range.
    """
    if unknown := set(given.get("generation", ())).difference(Generation.__annotations__):
        raise EmosteerError(f"{min(unknown)} is no option of generation: choose of {', '.join(Generation.__annotations__)}")
    try:
        config = typed(OmegaConf.create(NEEDED | {key: plain(value) for key, value in given.items()}))
    except OmegaConfBaseException as error:
        raise EmosteerError(one_line(error)) from None
    check_values(config)
    return config


def plain(value: Any) -> Any:
    """A number of numpy's or torch's as Python's own, other iterables as lists; inside mappings too."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, Iterable) and not isinstance(value, str) else value


def whole(name: str, value: Any) -> int:
    """The value as an integer; raises EmosteerError where it is no whole number of at least 0."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise EmosteerError(f"{name}={value}: give a whole number of at least 0")
    return number
