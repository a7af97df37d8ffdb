"""Finding a decoder's blocks, and in each the modules that add attention and MLP to the residual stream.

No table of model names: the blocks are the model's largest list of modules, and the two sublayers of a block are the children
whose outputs, added to the block's input, give its output. That is checked with numbers on a few tokens, so that it holds for
fused projections, norms after the sublayer (Gemma, OLMo) and parallel blocks (GPT-NeoX) alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emosteer.config import ModelConfig
from emosteer.errors import EmosteerError

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest error of `input + attention + MLP` against the block's output, relative to what the block added."""


BEFORE, HEAD, NEURON = "before", "head", "neuron"
"""The residual stream before a block (before block 0: the embeddings), the outputs of its attention heads, side by side, and the
activations of its MLP's neurons."""
ENTERING = (BEFORE, HEAD, NEURON)
"""Sites that are what enters a module."""
QUERY, KEY = "query", "key"
"""What attention probabilities are made of, the heads side by side; see `emosteer.model.attention`."""


@dataclass(frozen=True)
class Anatomy:
    """The modules whose outputs are read and steered, by block."""

    blocks: tuple[nn.Module, ...]
    attention: tuple[nn.Module | None, ...]
    mlp: tuple[nn.Module | None, ...]
    projections: tuple[nn.Module, ...] = ()
    """By block, what reads the outputs of all attention heads, side by side; empty until `model.heads` has looked for them."""
    n_heads: int = 0
    """Of each block."""
    down: tuple[nn.Module, ...] = ()
    """By block, what reads the neurons of the MLP; empty until `model.heads` has looked for them."""
    n_key_heads: int = 0
    """Of each block, those of keys and values; 0 until `model.attention` has opened it."""

    def module(self, site: str, layer: int) -> nn.Module:
        """The module whose output is `site` at block `layer`; raises EmosteerError where the model has none.

        For `before`, `head` and `neuron`, what enters the module is meant.
        """
        if site in ENTERING:
            return {BEFORE: self.blocks, HEAD: self.projections, NEURON: self.down}[site][layer]
        found = {"residual": self.blocks, "attention": self.attention, "mlp": self.mlp}[site][layer]
        if found is None:
            children = ", ".join(name for name, _ in self.blocks[layer].named_children())
            raise EmosteerError(
                f"site={site}: no part of block {layer} adds to the residual stream as {site} output; "
                f"set model.{site} to one of its parts if there is one: {children}"
            )
        return found

    def has(self, site: str) -> bool:
        """Whether every block has a module whose output is `site`."""
        return site == "residual" or all({"attention": self.attention, "mlp": self.mlp}[site])

    @property
    def n_blocks(self) -> int:
        return len(self.blocks)


def hidden(output: Any) -> Tensor:
    """The hidden states in a module's output, which is a tensor or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple | list) else output


def dissect(model: nn.Module, config: ModelConfig, probe: Tensor) -> Anatomy:
    """Find the parts of a decoder.

    Args:
        probe: token ids [1, position], a few of them; the model reads them once.

    Raises:
        EmosteerError: no list of blocks; the message shows the module tree and the key to set.
    """
    blocks = _find_blocks(model, config.blocks)
    if config.attention and config.mlp:
        named = [tuple(_child(b, path) for b in blocks) for path in (config.attention, config.mlp)]
        return Anatomy(blocks, named[0], named[1])
    traces = _trace(model, blocks, probe)
    sublayers = [_sublayers(block, trace) for block, trace in zip(blocks, traces, strict=True)]
    attention = [_child(b, config.attention) if config.attention else s[0] for b, s in zip(blocks, sublayers, strict=True)]
    mlp = [_child(b, config.mlp) if config.mlp else s[1] for b, s in zip(blocks, sublayers, strict=True)]
    return Anatomy(blocks, tuple(attention), tuple(mlp))


def module_tree(model: nn.Module, depth: int = 3) -> str:
    """The model's modules to `depth` levels, a line each; items of a list after the first are left out."""
    lines = []
    for path, module in model.named_modules():
        parts = path.split(".")
        if path and len(parts) <= depth and not any(part.isdigit() and part != "0" for part in parts):
            lines.append(f"{'  ' * (len(parts) - 1)}{path}: {type(module).__name__}")
    return "\n".join(lines)


def _find_blocks(model: nn.Module, path: str | None) -> tuple[nn.Module, ...]:
    if path:
        found = _child(model, path)
        if not isinstance(found, nn.ModuleList):
            raise EmosteerError(f"model.blocks={path} is no list of modules\n{module_tree(model)}")
        return tuple(found)
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)}
    outermost = [
        module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists if other != name)
    ]
    if not outermost:
        raise EmosteerError(f"no list of decoder blocks found; set model.blocks to its path:\n{module_tree(model)}")
    largest = max(outermost, key=lambda modules: sum(p.numel() for p in modules.parameters()))
    return tuple(largest)


def _child(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise EmosteerError(f"no module {path!r} in {type(module).__name__}:\n{module_tree(module)}") from None


@dataclass
class _Trace:
    """What one block read, wrote, and its children's outputs in the order in which they ran."""

    before: Tensor | None = None
    after: Tensor | None = None
    children: dict[str, Tensor] | None = None


def _trace(model: nn.Module, blocks: Iterable[nn.Module], probe: Tensor) -> list[_Trace]:
    traces, handles = [], []
    for block in blocks:
        trace = _Trace(children={})
        traces.append(trace)
        handles.append(block.register_forward_pre_hook(_note_input(trace), with_kwargs=True))
        handles.append(block.register_forward_hook(_note_output(trace)))
        for name, child in block.named_children():
            handles.append(child.register_forward_hook(_note_child(trace, name)))
    try:
        with torch.no_grad():
            model(input_ids=probe, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return traces


def _note_input(trace: _Trace) -> Callable[..., None]:
    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trace.before = args[0] if args else kwargs.get("hidden_states")

    return note


def _note_output(trace: _Trace) -> Callable[..., None]:
    def note(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        trace.after = hidden(output)

    return note


def _note_child(trace: _Trace, name: str) -> Callable[..., None]:
    def note(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if trace.children is not None and isinstance(hidden(output), Tensor):
            # The first call counts (Phi's dropout runs after both sublayers), as it was (Falcon adds to it in place).
            trace.children.setdefault(name, hidden(output).clone())

    return note


def _sublayers(block: nn.Module, trace: _Trace) -> tuple[nn.Module | None, nn.Module | None]:
    if trace.before is None or trace.after is None or not trace.children:
        return None, None
    before, after = trace.before.float(), trace.after.float()
    added = after - before
    tolerance = TOLERANCE.get(trace.after.dtype, TOLERANCE[torch.bfloat16])
    # OPT's sublayers work on flattened positions, which could not be steered row by row.
    parts = {name: output.float() for name, output in trace.children.items() if output.shape == added.shape}
    for first, second in itertools.combinations(parts, 2):
        error = (parts[first] + parts[second] - added).norm() / added.norm()
        if error < tolerance:
            if "att" in second and "att" not in first:  # a parallel block that runs its MLP first
                first, second = second, first
            return block.get_submodule(first), block.get_submodule(second)
    return None, None
