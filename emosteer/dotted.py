"""Functions of the user's own, named in a configuration by their dotted path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from emosteer.config import VectorConfig
from emosteer.errors import EmosteerError


def find_function(key: str, path: object) -> Callable[..., Any]:
    """The function at a dotted path, such as `my_module.my_function`.

    Args:
        key: the configuration key that names it, for the error.
        path: what the key says.

    Raises:
        EmosteerError: no dotted path, nothing that can be imported there, or no function.
    """
    module, _, attribute = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    if not module or not attribute:
        raise EmosteerError(f"{key}={path}: give the dotted path of a function, such as my_module.my_function")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise EmosteerError(f"{key}={path}: {error}; is its directory on PYTHONPATH?") from None
    except AttributeError as error:
        raise EmosteerError(f"{key}={path}: {error}; give the dotted path of a function") from None
    except (Exception, SystemExit) as error:
        # A module of the user's may raise anything while it is imported; a script that is no module leaves.
        raise EmosteerError(f"{key}={path}: importing it raised {type(error).__name__}: {error}") from error
    if not callable(function):
        raise EmosteerError(f"{key}={path} is no function: give the dotted path of one")
    found: Callable[..., Any] = function
    return found


def find_vector_method(path: str, reading: str = VectorConfig.reading) -> Callable[..., Any]:
    """The user's own vector method at a dotted path.

    Raises:
        EmosteerError: as `find_function` does, or for a `vector.reading` that is not the default where the function has no
            parameter `reading`: the vector would not be what its id says.
    """
    method = find_function("vector.method", path)
    if reading != VectorConfig.reading and "reading" not in inspect.signature(method).parameters:
        raise EmosteerError(
            f"vector.reading={reading}: {path} takes model, pairs and site; give it a fourth parameter `reading`, for "
            f"model.dialogue.reading(text, reading), or leave vector.reading={VectorConfig.reading}"
        )
    return method


def version_of(function: Callable[..., Any]) -> int:
    """The attribute `version` of a function, raised by hand when what it returns changes; 1 where it says nothing.

    Raises:
        EmosteerError: it is no whole number.
    """
    version = getattr(function, "version", 1)
    if not isinstance(version, int):
        raise EmosteerError(f"{getattr(function, '__qualname__', function)}.version={version!r}: give a whole number")
    return version
