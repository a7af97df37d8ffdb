"""The graph of a gradient: what it holds in memory, and how to hold less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from emosteer.model.anatomy import hidden
from emosteer.model.capture import with_hidden

Bytes = Counter[torch.device]
"""By device: a model may be spread over several."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Without gradients of any weight: a model that somebody else has loaded may be one to be trained."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


@contextmanager
def checkpointed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Keep only what enters each block for the backward pass, which runs each block's forward once more.

    Hooks on a block run once; those on modules inside of it run again, on tensors that belong to no graph.
    Source: Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost*.
    """
    with _forwarding(blocks, lambda forward: partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)):
        yield


@contextmanager
def dropping(block: nn.Module | None) -> Iterator[None]:
    """Let no gradient flow back through what a block adds to the residual stream, only past it; None drops nothing.

    No number of the forward changes. Hooks that are set inside see the stream after the block with its whole gradient.
    Source: GradDrop (Kramár et al. 2024, section 3.2).
    """

    def drop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        return with_hidden(output, hidden(output).detach() + (before - before.detach()))

    handle = block.register_forward_hook(drop, with_kwargs=True) if block is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def skipping(blocks: Iterable[nn.Module], output: Any) -> Iterator[None]:
    """Have each of the first blocks give the last one's output at once: all later blocks read what they would have read."""
    with _forwarding(blocks, lambda _forward: lambda *_args, **_kwargs: output):
        yield


@contextmanager
def _forwarding(blocks: Iterable[nn.Module], change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    changed = list(blocks)
    # A model that is spread over devices has forwards of its own on the instances.
    own = [vars(block).get("forward") for block in changed]
    for block in changed:
        block.forward = change(block.forward)
    try:
        yield
    finally:
        for block, forward in zip(changed, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


@contextmanager
def counting(weights: Iterable[Tensor]) -> Iterator[Bytes]:
    """Count the bytes that a graph built inside holds on to, other than the model's weights."""
    seen = {weight.untyped_storage().data_ptr() for weight in weights}
    held: Bytes = Counter()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            held[tensor.device] += storage.nbytes()
        return tensor.detach()  # the tensor itself would hold the graph that holds it, for ever

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield held
