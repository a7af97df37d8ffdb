"""The names that `import emosteer` gives, as Markdown."""

from __future__ import annotations

import inspect

import emosteer


def public_api() -> str:
    """Every public function, and the classes that are not listed with their modules further down."""
    names = [name for name in getattr(emosteer, "__all__", []) if not name.startswith("__")]
    found = {name: getattr(emosteer, name) for name in names}
    lines = [f".. autofunction:: emosteer.{name}" for name, thing in found.items() if inspect.isfunction(thing)]
    lines += [
        f".. autoclass:: {thing.__module__}.{name}\n   :members:"
        for name, thing in found.items()
        if inspect.isclass(thing) and thing.__module__ == "emosteer.api"
    ]
    return "```{eval-rst}\n" + "\n\n".join(lines) + "\n```" if lines else ""
