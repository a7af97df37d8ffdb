"""The loop over cells, steered by the library steering-vectors: its own hook, told to add at the last position of each forward.

Left to itself the library adds at every position of the prompt. The last position of the prompt's forward, and the only one of each
later forward, are what emosteer steers with scope `generated`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from steering_vectors import SteeringVector

from engine.variants.loop import runner
from engine.variants.serving import serve
from engine.work import Cell


@contextmanager
def steered(model: Any, cell: Cell) -> Iterator[None]:
    """Steer by the library's patch of the block."""
    assert cell.vector is not None
    where = slice(-1, None) if cell.scope == "generated" else None
    # Not `apply`, which refuses every choice of positions: its own default is one already.
    patch = SteeringVector({cell.layer: cell.vector}).patch_activations(model, token_indices=where)
    try:
        yield
    finally:
        patch.remove()


if __name__ == "__main__":
    serve(("torch", "transformers", "steering-vectors"), runner(sys.argv[1], steered))
