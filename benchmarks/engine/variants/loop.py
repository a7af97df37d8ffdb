"""One process, a loop over cells with a forward hook on transformers' `generate`, the cell's prompts in one padded batch.

What a careful researcher writes by hand. The loops that steer with a library share all but the way in which they steer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from engine.variants.serving import Run, serve
from engine.work import Cell, Order, Tokens, Work, read

Steer = Callable[[Any, Cell], AbstractContextManager[None]]
"""Steers a model as a cell that has a vector wants it, while the model runs inside."""


def runner(weights: str, steered: Steer) -> Run:
    """Load weights; the loop over them."""
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval().requires_grad_(False)

    def run(order: Order) -> dict[str, Any]:
        work = read(Path(order.work))
        chosen = work.cells if order.cells is None else [work.cells[i] for i in order.cells]
        started = time.perf_counter()
        tokens = [reply for cell in chosen for reply in replies(model, work, cell, steered)]
        return {"seconds": time.perf_counter() - started, "tokens": tokens}

    return run


def replies(model: Any, work: Work, cell: Cell, steered: Steer) -> list[Tokens]:
    """A cell's reply to each prompt, without the stop token that ended it."""
    width = max(map(len, work.prompts))
    ids = torch.tensor([[work.pad_token_id] * (width - len(row)) + list(row) for row in work.prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in work.prompts], device=model.device)
    with steered(model, cell) if cell.vector is not None else _as_it_is():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=work.new_tokens,
            min_new_tokens=work.min_new_tokens or None,
            eos_token_id=list(work.stop_tokens),
            pad_token_id=work.pad_token_id,
        )
    return [until_stop(row, work.stop_tokens) for row in output[:, width:].tolist()]


def until_stop(row: list[int], stop_tokens: tuple[int, ...]) -> Tokens:
    """A row's tokens before its first stop token."""
    ends = [index for index, token in enumerate(row) if token in stop_tokens]
    return tuple(row[: ends[0]] if ends else row)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def hooked(model: Any, cell: Cell) -> Iterator[None]:
    """Steer by a forward hook on the block. Padding is steered too with scope `all`: nothing looks at it."""
    assert cell.vector is not None
    vector = cell.vector.to(model.device, model.dtype)

    def hook(_module: Any, _arguments: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if cell.scope == "all":
            states = states + vector
        else:
            states = states.clone()
            states[:, -1] += vector
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = model.get_decoder().layers[cell.layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


if __name__ == "__main__":
    serve(("torch", "transformers"), runner(sys.argv[1], hooked))
