"""Doing something again and again from a thread, while other work goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def beating(seconds: float, beat: Callable[[], None], name: str) -> Iterator[None]:
    """Call `beat` every so many seconds from a thread of that name, as long as the work inside goes on; first after one pause."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds):
            beat()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
