"""Sweeps that are disturbed, several at a time, since most of them wait most of the time: for SLURM, for a node to be missed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import pytest
from _pytest.mark import ParameterSet
from desk import Desk
from dev_cluster import Cluster, Settings
from slurm_desk import SlurmDesk

AT_ONCE = 4
BUSY = {"cpus": 16, "gpus": 5, "memory": 65536}
"""A cluster for several sweeps at a time."""


@dataclass(frozen=True)
class Bench:
    """What every desk has."""

    model: Path
    library: Path


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a sweep, and how it must end."""

    play: Callable[[SlurmDesk, Desk], None]
    """Disturbs a sweep at a desk, and compares it with the undisturbed one."""
    alone: dict[str, int] | None = None
    """Settings of a cluster of its own, where others would be disturbed too; None where they are not."""
    is_slow: bool = False


def params(faults: Mapping[str, Fault]) -> list[ParameterSet]:
    """For parametrize: the name of each."""
    return [pytest.param(name, marks=[pytest.mark.slow] if fault.is_slow else []) for name, fault in faults.items()]


class Night:
    """Plays faults side by side, each at a desk of its own, and keeps what became of them.

    Args:
        bench: what their desks have.
        undisturbed: the sweep to compare with.
        directory: for the desks.
        accounting: whether the clusters have `sacct`.
    """

    def __init__(self, bench: Bench, undisturbed: Desk, directory: Path, accounting: bool = False) -> None:
        self.bench, self.undisturbed, self.directory, self.accounting = bench, undisturbed, directory, accounting
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._playing: dict[str, Future[list[str]]] = {}
        self._shared: Cluster | None = None
        self._lock, self._clusters = Lock(), ExitStack()

    def begin(self, faults: Iterable[tuple[str, Fault]]) -> None:
        """Start playing, those first that wait longest."""
        for name, fault in sorted(faults, key=lambda one: one[1].alone is None):
            self._playing[name] = self._pool.submit(self._play, name, fault)

    def outcome(self, name: str) -> list[str]:
        """What was seen while a fault was played; raises what it raised."""
        return self._playing[name].result()

    def end(self) -> None:
        """Wait for what is being played, and take the clusters down."""
        self._pool.shutdown(cancel_futures=True)
        self._clusters.close()

    def _play(self, name: str, fault: Fault) -> list[str]:
        with self._cluster(fault) as cluster:
            desk = SlurmDesk(self.directory / name, self.bench.model, self.bench.library, cluster=cluster, name=name)
            try:
                fault.play(desk, self.undisturbed)
            except BaseException as error:
                error.add_note("\n".join(desk.notes))
                raise
            finally:
                desk.let_go()
            return desk.notes

    @contextmanager
    def _cluster(self, fault: Fault) -> Iterator[Cluster]:
        if fault.alone is not None:
            with cluster_of(accounting=self.accounting, **fault.alone) as own:
                yield own
            return
        with self._lock:
            if self._shared is None:
                self._shared = self._clusters.enter_context(cluster_of(accounting=self.accounting, **BUSY))
        yield self._shared


@contextmanager
def cluster_of(**settings: int) -> Iterator[Cluster]:
    """A cluster whose directory has a short path: sockets lie in it."""
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as directory,
        Cluster(directory, Settings(**settings)) as cluster,  # type: ignore[arg-type]
    ):
        yield cluster
