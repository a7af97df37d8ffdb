"""Which processes are a cluster's own, and how they end.

They are found by what they are, not by number alone: a pid file of a machine that went down names somebody else's process today.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dev_cluster.errors import ClusterError

HEAD = "head"
"""Where the daemons run that belong to no node."""
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmscriptd", "slurmd", "slurmstepd")
MARK = "EMOSTEER_CLUSTER_NODE"
"""In the environment of every daemon: the node that it serves, or HEAD."""


@dataclass(frozen=True)
class Process:
    """A process of a cluster."""

    pid: int
    program: str
    node: str

    @property
    def is_job(self) -> bool:
        """Whether it is a user's, started by a job: no daemon."""
        return self.program not in DAEMONS


def of_cluster(directory: Path) -> list[Process]:
    """The processes of the cluster in a directory that this user may look into: daemons, step daemons and what jobs started.

    A job's process that dropped its environment is known by its host name's namespace, as long as another one of the node lives.
    The youngest come first, so that a signal reaches children before their parents: where a parent dies, the kernel wakes its stopped
    children with SIGHUP and SIGCONT, and they would have the time to put their things in order.
    """
    everyone = [int(path.name) for path in Path("/proc").glob("[0-9]*") if int(path.name) != os.getpid()]
    nodes = {pid: node for pid in everyone if (node := _node(pid, directory)) is not None}
    namespaces = {_namespace(pid): node for pid, node in nodes.items() if node != HEAD}
    for ours in (_namespace(os.getpid()), None):
        namespaces.pop(ours, None)
    if namespaces:
        nodes |= {pid: namespaces[_namespace(pid)] for pid in everyone if pid not in nodes and _namespace(pid) in namespaces}
    return [Process(pid, _program(pid), nodes[pid]) for pid in sorted(nodes, key=_started, reverse=True)]


def _started(pid: int) -> tuple[int, int]:
    """Sorts processes by their age: clock ticks from the machine's boot to their start, and their number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0, pid
    # The program's name stands in parentheses, and may hold some itself.
    return int(stat.rpartition(")")[2].split()[19]), pid


def _node(pid: int, directory: Path) -> str | None:
    """The node of a process that says itself whose it is."""
    try:
        pairs = (entry.partition("=") for entry in os.fsdecode(Path(f"/proc/{pid}/environ").read_bytes()).split("\0"))
    except OSError:
        return None
    environment = {name: value for name, _, value in pairs}
    if environment.get("SLURM_CONF") == f"{directory}/slurm.conf":
        # A shell of the user's has the first too; what runs on a node has both.
        return environment.get(MARK) or environment.get("SLURMD_NODENAME")
    # A step daemon writes its title over its environment, but holds the log of its node open.
    return _node_of_log(pid, directory) if _program(pid) == "slurmstepd" else None


def _node_of_log(pid: int, directory: Path) -> str | None:
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        opened = _link(descriptor)
        if opened and opened.parent == directory and opened.suffix == ".log":
            return opened.stem
    return None


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _namespace(pid: int) -> Path | None:
    return _link(Path(f"/proc/{pid}/ns/uts"))


def _link(path: Path) -> Path | None:
    try:
        return path.readlink()
    except OSError:
        return None


def send(processes: Iterable[Process], number: signal.Signals) -> None:
    """Signal processes; those that have ended meanwhile are let be."""
    for process in processes:
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            continue


def end(find: Callable[[], list[Process]], patience: float) -> None:
    """End what `find` finds, again and again until it finds nothing: asked at first, after `patience` seconds killed.

    Raises ClusterError for processes that outlive that by ten seconds.
    """
    started, asked = time.monotonic(), set[int]()
    while found := find():
        waited = time.monotonic() - started
        if waited > patience + 10:
            raise ClusterError(f"these processes do not end: {', '.join(f'{one.program} ({one.pid})' for one in found)}")
        if waited >= patience:
            send(found, signal.SIGKILL)
        else:
            send([process for process in found if process.pid not in asked], signal.SIGTERM)
            asked |= {process.pid for process in found}
        time.sleep(0.02)
