"""Steps on a GPU recorded once as a CUDA graph and replayed: launching a model's kernels takes longer than they run.

What differs from step to step goes in as tensors, which are copied to where the recorded kernels look; all else that they read or
write (weights, keys and values, additions) stays where it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Inputs = dict[str, Tensor]
Work = Callable[[Inputs], Tensor]

WARM_UPS = 2
"""Runs before the recording, in which libraries choose their kernels and make room."""
MOST_RECORDINGS = 8
"""Recordings that are kept: one for each size of a batch that shrinks."""


class Recorder(Protocol):
    """Makes recordings."""

    def record(self, work: Work, inputs: Inputs) -> Callable[[], Tensor]:
        """A replay of `work(inputs)`, which reads the same tensors each time."""


class CudaRecorder:
    """By CUDA graphs."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work, inputs: Inputs) -> Callable[[], Tensor]:
        """A replay of `work(inputs)`, which reads the same tensors each time.

        Raises:
            RuntimeError: the work looks at a number on the way, or cannot be recorded for another reason.
        """
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                work(inputs)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = work(inputs)

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class Recordings:
    """The recordings of one batch's steps.

    Args:
        recorder: None runs all work as it comes.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self.recorder = recorder
        self._made: dict[Hashable, tuple[Inputs, Callable[[], Tensor]]] = {}

    def run(self, key: Hashable, work: Work, inputs: Inputs) -> Tensor:
        """`work(inputs)`.

        Args:
            key: of all but the inputs' contents that the work depends on.
            work: writes to what it would write the same again: it may run more than once.
            inputs: of the shapes that they have under this key.
        """
        if self.recorder is None:
            return work(inputs)
        if key not in self._made:
            if len(self._made) >= MOST_RECORDINGS:
                self._made.clear()
            own = {name: tensor.clone() for name, tensor in inputs.items()}
            try:
                self._made[key] = own, self.recorder.record(work, own)
            except RuntimeError as error:
                log.warning("steps cannot be recorded, and run slower: %s", error)
                self.recorder = None
                return work(inputs)
        own, replay = self._made[key]
        for name, tensor in inputs.items():
            own[name].copy_(tensor)
        return replay()

    def forget(self) -> None:
        """What recorded work reads or writes lies elsewhere now."""
        self._made.clear()
