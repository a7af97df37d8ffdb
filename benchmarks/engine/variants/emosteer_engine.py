"""emosteer's engine: the rows of all cells together."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emosteer.config import ModelConfig
from emosteer.engine import Decoding, Engine, Request, RowSeed
from emosteer.model.language_model import load
from emosteer.steering import Push, Steering
from engine.variants.serving import Run, serve
from engine.work import Cell, Order, Row, Work, read


def requests_of(work: Work, rows: Sequence[Row]) -> list[Request]:
    """The engine's requests for rows. Rows of a cell share its steering, as they do in a sweep."""
    decoding = Decoding(max_new_tokens=work.new_tokens, min_new_tokens=work.min_new_tokens)
    steerings = [_steering(cell) for cell in work.cells]
    return [Request(work.prompts[prompt], RowSeed(0, str(prompt), 0), steerings[cell], decoding) for cell, prompt in rows]


def _steering(cell: Cell) -> Steering | None:
    return None if cell.vector is None else Steering((Push("residual", cell.layer, cell.vector),), cell.scope)


def runner(weights: str) -> Run:
    """Load weights; the engine over them."""
    model = load(ModelConfig(name="benchmark", path=weights, device="cpu"))

    def run(order: Order) -> dict[str, Any]:
        work = read(Path(order.work))
        requests = requests_of(work, order.rows or work.rows())
        started = time.perf_counter()
        # A new one each time: an engine keeps the prompts that it has read.
        engine = Engine(model, batch_rows=order.batch_rows)
        ready = time.perf_counter()
        replies = dict(engine.generate(requests))
        ended = time.perf_counter()
        tokens = [replies[index].tokens for index in range(len(requests))]
        account = asdict(engine.account)
        account["share_spared"] = engine.account.blocks_spared / (engine.account.row_steps * model.n_blocks)
        return {"seconds": ended - ready, "setup_seconds": ready - started, "tokens": tokens, "account": account}

    return run


if __name__ == "__main__":
    serve(("torch", "transformers", "emosteer"), runner(sys.argv[1]))
