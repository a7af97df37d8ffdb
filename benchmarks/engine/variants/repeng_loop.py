"""The loop over cells, steered by the library repeng: its wrapper around the block, with an operator that adds at the last position.

Left to itself the library adds at every position that is no padding, in prompt and reply. Its `operator` says how a control is added,
and so can leave all positions but the last alone: what emosteer steers with scope `generated`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from repeng import ControlModel
from torch import Tensor

from engine.variants.loop import runner
from engine.variants.serving import serve
from engine.work import Cell


@contextmanager
def steered(model: Any, cell: Cell) -> Iterator[None]:
    """Steer by the library's wrapper around the block."""
    assert cell.vector is not None
    options = {"operator": _add_at_the_last_position} if cell.scope == "generated" else {}
    wrapped = ControlModel(model, [cell.layer])
    wrapped.set_raw_control({cell.layer: cell.vector}, **options)
    try:
        yield
    finally:
        wrapped.unwrap()


def _add_at_the_last_position(states: Tensor, control: Tensor) -> Tensor:
    states = states.clone()
    states[:, -1] += control[:, -1]
    return states


if __name__ == "__main__":
    serve(("torch", "transformers", "repeng"), runner(sys.argv[1], steered))
