"""Find, steer and measure emotion in language models.

    import emosteer

    model = emosteer.load_model("smollm2")
    vector = emosteer.build_vector(model, "joy_sadness")
    prompts = emosteer.load_prompts("conversation", limit=16)
    plain = emosteer.score(model, emosteer.reply(model, prompts))
    steered = emosteer.score(model, emosteer.steer(model, prompts, vector, layer=9, coefficient=0.2))
    emosteer.compare(steered, plain)

Importing the package is light; torch and the rest come with the first use of a function.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from emosteer.errors import EmosteerError

if TYPE_CHECKING:
    from emosteer.api import (
        Replies,
        attribute,
        build_vector,
        load_model,
        load_prompts,
        random_vector,
        reply,
        score,
        steer,
        write_stories,
    )
    from emosteer.comparison import compare
    from emosteer.datasets import ContrastivePair, DiagnosticPair, Prompt
    from emosteer.vector_file import load_vector, save_vector
    from emosteer.vector_formats import save_gguf, to_repeng, to_steering_vectors
    from emosteer.vectors import combine_vectors

__version__ = "0.1.0"

__all__ = [
    "ContrastivePair",
    "DiagnosticPair",
    "EmosteerError",
    "Prompt",
    "Replies",
    "__version__",
    "attribute",
    "build_vector",
    "combine_vectors",
    "compare",
    "load_model",
    "load_prompts",
    "load_vector",
    "random_vector",
    "reply",
    "save_gguf",
    "save_vector",
    "score",
    "steer",
    "to_repeng",
    "to_steering_vectors",
    "write_stories",
]

_ELSEWHERE = {
    "emosteer.comparison": ("compare",),
    "emosteer.datasets": ("ContrastivePair", "DiagnosticPair", "Prompt"),
    "emosteer.vector_file": ("load_vector", "save_vector"),
    "emosteer.vector_formats": ("save_gguf", "to_repeng", "to_steering_vectors"),
    "emosteer.vectors": ("combine_vectors",),
}
"""Where a public name lives that is not in `emosteer.api`."""

if not TYPE_CHECKING:  # else a type checker would believe that the package has every attribute

    def __getattr__(name: str) -> object:
        """The public names, imported when they are first asked for (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = next((module for module, names in _ELSEWHERE.items() if name in names), "emosteer.api")
        globals()[name] = getattr(import_module(home), name)
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
