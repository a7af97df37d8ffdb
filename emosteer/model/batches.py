"""Work on rows of unequal length, in batches of like length that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from emosteer.model.memory import give_back, is_out_of_memory

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Is told how many are done, and of how many."""


def silent(_done: int, _total: int) -> None:
    """Progress that nobody is told of."""


def run_in_batches(run: Callable[[list[int]], None], sizes: Sequence[float], most: float, on_progress: Progress = silent) -> None:
    """Call `run` with the indices of rows that go together, until each row had its turn.

    Rows of like size share a batch, so that padding is small; the largest come first, so that what does not fit shows at once.
    Out of memory, a batch is halved, and so are all later ones. A batch of one row that does not fit raises.

    Args:
        run: called anew with fewer rows where it ran out of memory.
        sizes: of each row, such as its tokens.
        most: size of a batch, whose rows all count as its largest; a larger row is a batch of its own.
        on_progress: told the rows that are done after each batch.
    """
    waiting = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    while waiting:
        largest = sizes[waiting[0]]
        taken = waiting[: max(1, int(most / largest))]
        if _fits(run, taken):
            waiting = waiting[len(taken) :]
            on_progress(len(sizes) - len(waiting), len(sizes))
            continue
        give_back()
        most = largest * (len(taken) // 2)
        log.warning("out of memory with %d rows at once: going on with %d", len(taken), len(taken) // 2)


def _fits(run: Callable[[list[int]], None], rows: list[int]) -> bool:
    # The error holds on to the batch's tensors: it must be gone before the next attempt.
    try:
        run(rows)
    except RuntimeError as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
        return False
    return True
