"""Reading activations while a model runs, by hooks: `hidden_states` is past the final norm in its last entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from emosteer.model.anatomy import Anatomy, hidden

Site = str
Place = tuple[Site, int]
"""A site (residual, attention or mlp) at a block."""


@contextmanager
def capture(anatomy: Anatomy, sites: tuple[Site, ...] = ("residual",)) -> Iterator[dict[Place, Tensor]]:
    """Collect the outputs [row, position, width] of the given sites at every block, as the model runs inside."""
    seen: dict[Place, Tensor] = {}
    handles = [
        anatomy.module(site, layer).register_forward_hook(_note(seen, (site, layer)))
        for site in sites
        for layer in range(anatomy.n_blocks)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _note(seen: dict[Place, Tensor], place: Place) -> Callable[[nn.Module, Any, Any], Any]:
    def note(_module: nn.Module, _args: Any, output: Any) -> Any:
        seen[place] = hidden(output)
        # The model goes on with a copy: Falcon's block adds the attention to its MLP's output in place.
        copy = seen[place].clone()
        return (copy, *output[1:]) if isinstance(output, tuple | list) else copy

    return note


@contextmanager
def replace_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put `change(output)` in place of a module's hidden states [row, position, width], as the model runs inside."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple | list):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
