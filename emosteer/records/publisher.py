"""Publishing beside other work: what is handed over is written by a thread of its own, in order, while its owner goes on.

A flush to the disk is waiting, over a network file system long. Who is killed loses what is not written yet, as ever: at most `ROOM`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

ROOM = 8
"""So much may wait to be written; then its owner waits."""


class Publisher:
    """Writes in order, one at a time. When its `with` block ends all is written, also where an exception ended it.

    What a write raises comes out of the owner's next call, at the latest at the end of the block.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "publisher")
        self._under_way: deque[tuple[Future[object], Callable[[], None]]] = deque()

    def hand_over(self, write: Callable[[], object], then: Callable[[], None]) -> None:
        """Have something written; waits where `ROOM` is full.

        Args:
            write: is called in the other thread.
            then: is called in the owner's thread, once that is written.

        Raises:
            Unwritable: or whatever an earlier write raised.
        """
        while self._under_way and (len(self._under_way) >= ROOM or self._under_way[0][0].done()):
            self._settle()
        self._under_way.append((self._thread.submit(write), then))

    def finish(self) -> None:
        """Wait until all is written; raises what a write raised."""
        while self._under_way:
            self._settle()

    def _settle(self) -> None:
        written, then = self._under_way[0]
        written.result()
        self._under_way.popleft()
        then()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._thread.shutdown()
            for written, then in self._under_way:
                if written.exception() is None:
                    then()
