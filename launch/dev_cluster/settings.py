"""What a cluster is like: its options, its ports, and the names that stand in its configuration."""

from __future__ import annotations

import json
import random
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dev_cluster.errors import ClusterError

NODES = ("n1", "n2")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
"""Files that pass for GPUs. SLURM numbers devices only, so files made for the purpose will not do."""
LISTENERS = ("slurmctld", *NODES, "slurmdbd", "mariadbd")


@dataclass(frozen=True)
class Settings:
    """The options of a cluster."""

    accounting: bool = False
    """Whether there are slurmdbd and its database: `sacct`, accounts and submit limits."""
    max_array_size: int = 1001
    """One more than the largest index of a job array."""
    cpus: int = 4
    """Of each node, whatever the machine has."""
    memory: int = 8192
    """MB of each node, whatever the machine has. Nothing holds jobs to what they asked for."""
    gpus: int = 1
    """Fake GPUs of each node."""

    def __post_init__(self) -> None:
        if not 1 <= self.gpus <= len(DEVICES):
            raise ClusterError(f"a node has 1 to {len(DEVICES)} fake GPUs, not {self.gpus}")
        for name in ("cpus", "memory", "max_array_size"):
            if getattr(self, name) < 1:
                raise ClusterError(f"{name} is at least 1, not {getattr(self, name)}")


def free_ports() -> dict[str, int]:
    """A free port for each listener, below those that the system gives to outgoing connections."""
    ports: dict[str, int] = {}
    for listener in LISTENERS:
        while (port := random.randint(10_000, 32_000)) in ports.values() or not _is_free(port):  # noqa: S311
            pass
        ports[listener] = port
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class Record:
    """What a cluster's directory remembers of it."""

    settings: Settings
    ports: dict[str, int] = field(default_factory=free_ports)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Record:
        """Raises ClusterError for a file that no cluster wrote."""
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            return cls(Settings(**kept["settings"]), kept["ports"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClusterError(f"{path} does not describe a cluster: {error}") from error
