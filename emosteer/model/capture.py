"""Reading activations while a model runs, by hooks: `hidden_states` is past the final norm in its last entry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from emosteer.model.anatomy import ENTERING, KEY, QUERY, Anatomy, hidden
from emosteer.model.attention import attended, showing

Site = str
Place = tuple[Site, int]
"""A site at a block: residual, attention or mlp, which modules put out; before, head or neuron, which enter one; query or key,
inside of a model whose attention is opened."""
Look = Callable[[Place, Tensor], Tensor | None]
"""Sees a place's output [row, position, width]; what it returns, if anything, goes on in that one's stead."""


class _Enough(BaseException):
    """Ends a forward of which nothing more is wanted. No Exception: nothing on the way may take it for a failure and mend it."""


@contextmanager
def watching(anatomy: Anatomy, places: Iterable[Place], look: Look, stops: bool = False) -> Iterator[None]:
    """Show `look` what passes by at places, as the model runs inside.

    Args:
        anatomy: the model's.
        places: each is shown as often as its module runs.
        look: sees it before anything else reads it (Falcon's block adds the attention to its MLP's output in place).
        stops: the forward ends when every place was seen: neither later blocks nor the output matrix run, and what it would
            have returned is not there.
    """
    wanted = tuple(places)
    unseen, enough = set(wanted), _Enough()

    def show(place: Place, states: Tensor) -> Tensor | None:
        changed = look(place, states)
        unseen.discard(place)
        if stops and not unseen:
            raise enough
        return changed

    inside = {place for place in wanted if place[0] in (QUERY, KEY)}
    handles = [_hook(anatomy.module(*place), place, show) for place in wanted if place not in inside]
    try:
        with attended(anatomy, showing(inside, show)) if inside else nullcontext():
            yield
    except _Enough as raised:
        if raised is not enough:
            raise
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: nn.Module, place: Place, look: Look) -> RemovableHandle:
    def entering(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = look(place, args[0] if args else kwargs["hidden_states"])
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": changed})

    def leaving(_module: nn.Module, _args: Any, output: Any) -> Any:
        changed = look(place, hidden(output))
        return output if changed is None else with_hidden(output, changed)

    if place[0] in ENTERING:
        return module.register_forward_pre_hook(entering, with_kwargs=True)
    return module.register_forward_hook(leaving)


@contextmanager
def capture(anatomy: Anatomy, sites: tuple[Site, ...] = ("residual",)) -> Iterator[dict[Place, Tensor]]:
    """Collect the outputs [row, position, width] of the given sites at every block, as the model runs inside."""
    seen: dict[Place, Tensor] = {}

    def keep(place: Place, states: Tensor) -> Tensor:
        seen[place] = states
        return states.clone()  # the model goes on with a copy, which it may change in place

    with watching(anatomy, every_place(anatomy, sites), keep):
        yield seen


def every_place(anatomy: Anatomy, sites: Iterable[Site]) -> list[Place]:
    """The given sites at every block."""
    return [(site, layer) for site in sites for layer in range(anatomy.n_blocks)]


@contextmanager
def replace_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put `change(output)` in place of a module's hidden states [row, position, width], as the model runs inside."""
    handle = module.register_forward_hook(lambda _module, _args, output: with_hidden(output, change(hidden(output))))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def enters_whole(module: nn.Module) -> Iterator[None]:
    """Give a module its first input laid out without gaps, as the model runs inside."""
    handle = module.register_forward_pre_hook(lambda _module, args: (args[0].contiguous(), *args[1:]) if args else None)
    try:
        yield
    finally:
        handle.remove()


def with_hidden(output: Any, states: Tensor) -> Any:
    """A module's output with other hidden states in it."""
    return (states, *output[1:]) if isinstance(output, tuple | list) else states
