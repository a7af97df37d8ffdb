"""Finding a decoder's attention heads, equal parts of what its attention's output projection reads, and its MLPs' neurons.

The projection is the last module with a weight matrix that runs in a block's attention, or, where a norm comes behind it (Gemma 2,
OLMo 2), before that norm. Grouped keys and values do not matter there: every query head has its part. Neurons are what the MLP's last
matrix reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from emosteer.errors import EmosteerError
from emosteer.model.anatomy import KEY, Anatomy, hidden
from emosteer.model.capture import watching
from emosteer.model.dialogue import OPENING
from emosteer.model.language_model import LanguageModel

_Projection = tuple[str, nn.Module, int]
"""Its path in the block, itself, and how many numbers it reads of a position."""


def with_heads(model: LanguageModel) -> LanguageModel:
    """The same model, with its heads found; it reads a few tokens once.

    Raises:
        EmosteerError: they can't be told, and why.
    """
    if model.anatomy.projections:
        return model
    n_heads = getattr(_text_config(model), "num_attention_heads", None)
    if not isinstance(n_heads, int) or n_heads < 1:
        raise EmosteerError(f"heads of {model.name}: its configuration does not say how many they are")
    if not model.anatomy.has("attention"):
        raise EmosteerError(f"heads of {model.name}: no part of its blocks is known to add the attention; set model.attention")
    projections = _projections(model, "attention", "heads")
    for layer, projection in enumerate(projections):
        if reason := _wrong_with(model, layer, projection, n_heads):
            raise EmosteerError(f"heads of {model.name}: {reason} in block {layer}")
    anatomy = replace(model.anatomy, projections=tuple(module for _, module, _ in projections), n_heads=n_heads)
    return replace(model, anatomy=anatomy)


def with_neurons(model: LanguageModel) -> LanguageModel:
    """The same model, with the neurons of its MLPs found; it reads a few tokens once.

    Raises:
        EmosteerError: they can't be told, and why.
    """
    if model.anatomy.down:
        return model
    if not model.anatomy.has("mlp"):
        raise EmosteerError(f"neurons of {model.name}: no part of its blocks is known to add the MLP's output; set model.mlp")
    found = _projections(model, "mlp", "neurons")
    if len(widths := {n_read for _, _, n_read in found}) > 1:
        raise EmosteerError(f"neurons of {model.name}: its MLPs differ in how many they have: {sorted(widths)}")
    return replace(model, anatomy=replace(model.anatomy, down=tuple(module for _, module, _ in found)))


def parted(states: Tensor, n_heads: int) -> Tensor:
    """What enters the output projection [..., width], by heads [..., head, width of a head]: a view."""
    return states.view(*states.shape[:-1], n_heads, -1)


def n_parts(anatomy: Anatomy, site: str) -> int:
    """How many heads stand side by side at a site."""
    return anatomy.n_key_heads if site == KEY else anatomy.n_heads


def _wrong_with(model: LanguageModel, layer: int, projection: _Projection, n_heads: int) -> str:
    path, _, n_read = projection
    kinds = getattr(_text_config(model), "layer_types", None) or ()
    kind = str(kinds[layer]) if layer < len(kinds) else "attention"
    # Recurrent layers and linear attention mix positions too, in as many numbers, but not by heads.
    names = path.split(".")
    owners = [model.anatomy.blocks[layer].get_submodule(".".join(names[:n])) for n in range(1, len(names))]
    is_attention = any("att" in name.lower() for name in (*names, *(type(owner).__name__ for owner in owners)))
    if not is_attention or not kind.endswith("attention") or kind.startswith("linear"):
        return f"{path} ({kind}) stands where attention is expected"
    return f"{path} reads {n_read} numbers, which are no {n_heads} equal parts," if n_read % n_heads else ""


def _text_config(model: LanguageModel) -> Any:
    config = getattr(model.model, "config", None)
    return config.get_text_config() if config is not None else None


def _projections(model: LanguageModel, site: str, what: str) -> list[_Projection]:
    """The last matrix of a site in every block, by what runs in it."""
    ran: list[list[_Projection]] = [[] for _ in range(model.n_blocks)]
    found: dict[int, _Projection] = {}
    handles = []
    for layer, block in enumerate(model.anatomy.blocks):
        sublayer = model.anatomy.module(site, layer)
        inside = {id(part) for part in sublayer.modules()}
        own = [(path, part) for path, part in block.named_modules() if _is_matrix(part)]
        within = [(path, part) for path, part in own if id(part) in inside]
        for path, part in within or own:
            handles.append(part.register_forward_hook(_note(ran[layer], path, model.width)))
        handles.append(sublayer.register_forward_hook(_note_end(ran[layer], found, layer)))
    try:
        last = ("residual", model.n_blocks - 1)
        with torch.no_grad(), watching(model.anatomy, [last], lambda _place, _states: None, stops=True):
            model.model(input_ids=torch.tensor([model.dialogue.prompt([OPENING])], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if missing := [layer for layer in range(model.n_blocks) if layer not in found]:
        raise EmosteerError(f"{what} of {model.name}: no output projection is found in the {site} of block {missing[0]}")
    return [found[layer] for layer in range(model.n_blocks)]


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding)


def _note(ran: list[_Projection], path: str, width: int) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(hidden(output), Tensor) and hidden(output).shape[-1] == width and args[0].dim() == 3:
            ran.append((path, module, args[0].shape[-1]))

    return note


def _note_end(ran: list[_Projection], found: dict[int, _Projection], layer: int) -> Callable[..., None]:
    def note(_module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        if ran:
            found.setdefault(layer, ran[-1])

    return note
