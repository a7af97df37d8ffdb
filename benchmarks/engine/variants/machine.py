"""The machine's own speed at the model's shapes: matrix products with all its linear weights, and reading memory.

Nothing but the products is timed, written into memory that is there already, with the weights both as the model stores them and
transposed. A decoding step of so many rows cannot take less than the fastest of these passes, whatever program does it.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from engine.variants.serving import Run, serve
from engine.work import Order

PASSES = 5
BUFFER_BYTES = 1 << 29
"""Read from memory at once: more than the caches hold."""


def runner(weights: str) -> Run:
    """Load weights; the products with them. `batch_rows` of an order are the rows of a pass."""
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).requires_grad_(False)
    stored = linear_weights(model)
    layouts = {"as stored": [weight.t() for weight in stored], "transposed": [weight.t().contiguous() for weight in stored]}
    n_weights = sum(weight.numel() for weight in stored)
    n_bytes = sum(weight.numel() * weight.element_size() for weight in stored)

    def run(order: Order) -> dict[str, Any]:
        rows = order.batch_rows or 1
        passes = {name: products(matrices, rows, PASSES) for name, matrices in layouts.items()}
        return {"rows": rows, "passes": passes, "flop": 2 * rows * n_weights, "bytes": n_bytes, "bandwidth": bandwidth(PASSES)}

    return run


def linear_weights(model: nn.Module) -> list[Tensor]:
    """The weights [out, in] of all linear maps, that of the logits included, in the order in which a step needs them."""
    return [module.weight for module in model.modules() if isinstance(module, nn.Linear)]


def products(matrices: list[Tensor], rows: int, passes: int) -> list[float]:
    """Seconds of each pass over all matrices [in, out], each multiplied with so many rows."""
    inputs = {n: torch.randn(rows, n) for n in {matrix.shape[0] for matrix in matrices}}
    outputs = {n: torch.empty(rows, n) for n in {matrix.shape[1] for matrix in matrices}}
    seconds = []
    for _ in range(1 + passes):
        started = time.perf_counter()
        for matrix in matrices:
            torch.mm(inputs[matrix.shape[0]], matrix, out=outputs[matrix.shape[1]])
        seconds.append(time.perf_counter() - started)
    return seconds[1:]  # the first one brings the pages


def bandwidth(passes: int, n_bytes: int = BUFFER_BYTES) -> float:
    """Bytes read from memory in a second, the fastest of the passes."""
    buffer = torch.ones(n_bytes // 4)
    seconds = []
    for _ in range(passes):
        started = time.perf_counter()
        buffer.sum()
        seconds.append(time.perf_counter() - started)
    return n_bytes / min(seconds)


if __name__ == "__main__":
    serve(("torch",), runner(sys.argv[1]))
