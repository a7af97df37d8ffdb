"""The command `emosteer`, with the seconds counted in which its model computes: counted_command.py FILE ARGUMENT...

Counted is what the engine's account holds (prefill, decoding, likelihoods), and of the rest every forward of a model and every
gradient: norms, vectors, attribution. FILE gets the sums as JSON. A call inside one that is counted is not counted again.
"""

from __future__ import annotations

import atexit
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = {"prefill": 0.0, "decode": 0.0, "likelihood": 0.0, "other forwards": 0.0, "gradients": 0.0}


class Counter:
    """Adds to `SECONDS`, at the outermost of the calls that are counted."""

    depth = 0

    @contextmanager
    def counting(self, what: str) -> Iterator[None]:
        """Count the time inside."""
        self.depth += 1
        started = time.perf_counter()
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                SECONDS[what] += time.perf_counter() - started

    def counted(self, call: Callable[..., Any], what: str) -> Callable[..., Any]:
        """The same call, counted."""

        def run(*arguments: Any, **options: Any) -> Any:
            with self.counting(what):
                return call(*arguments, **options)

        return run


def watch() -> None:
    """Count from now on. Loads torch."""
    import torch
    from transformers import PreTrainedModel

    from emosteer.engine.account import Account

    counter = Counter()
    timing = Account.timing

    @contextmanager
    def counted_timing(account: Account, what: str) -> Iterator[None]:
        with counter.counting(what), timing(account, what):
            yield

    setattr(Account, "timing", counted_timing)  # noqa: B010 - mypy lets no method be replaced
    setattr(PreTrainedModel, "__call__", counter.counted(PreTrainedModel.__call__, "other forwards"))  # noqa: B010
    for owner, name in ((torch.autograd, "grad"), (torch.autograd, "backward"), (torch.Tensor, "backward")):
        setattr(owner, name, counter.counted(getattr(owner, name), "gradients"))


def main() -> None:
    """Run the command; where it loads torch anyway, start to count."""
    told, sys.argv[1:] = Path(sys.argv[1]), sys.argv[2:]
    sys.argv[0] = "emosteer"
    from emosteer import launcher
    from emosteer.main import main as emosteer

    work = launcher.work

    def watched_work(*arguments: Any, **options: Any) -> None:
        from emosteer.cores import prepare_openmp

        prepare_openmp()
        watch()
        work(*arguments, **options)

    setattr(launcher, "work", watched_work)  # noqa: B010
    atexit.register(lambda: told.write_text(json.dumps(SECONDS), encoding="utf-8"))
    emosteer()


if __name__ == "__main__":
    main()
