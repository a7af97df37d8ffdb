"""How many CPU threads serve a model here: one for each core that this process may use and that nobody else keeps busy.

Threads on cores that others use are worse than none: at the end of every operation all wait for the slowest. Nothing here imports
torch, since what OpenMP reads has to stand in the environment before torch starts it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK_SECONDS = 0.2
"""So long it looks what others keep busy."""
SPINS = "20000"
"""Of GNU's OpenMP, which torch's wheels bring: a fifth of a millisecond, instead of its own 3.

A step of SmolLM2's matrix products for 112 rows, by two threads on a virtual machine's two cores: where those were free 0.14 s with
either, 0.19 s with none (OMP_WAIT_POLICY=passive); where others used them too 3.3 s with 3 ms, 0.53 s with this, 0.29 s with none. By
one thread 0.27 s.
"""
ROOT = Path("/")
CPUS = "sys/devices/system/cpu"


@dataclass(frozen=True)
class Threads:
    """How many threads, and why not more."""

    n: int
    reason: str
    """For people."""


@dataclass(frozen=True)
class _Bound:
    """CPUs beyond which more threads do not help."""

    cpus: float
    reason: str


def choose_threads(asked: int | None = None, environment: Mapping[str, str] = os.environ, root: Path = ROOT) -> Threads:
    """CPU threads worth using: as asked, else as OMP_NUM_THREADS says, else one for each free core.

    Free are those of the physical cores that this process is bound to (so SLURM and `taskset` limit it) which nobody else keeps busy
    now; not more than the CPU quota of a container, and than the CPUs that SLURM has given to a task.

    Args:
        asked: by the user; None leaves it to the machine.
        environment: of this process.
        root: below which the kernel's files lie.
    """
    if asked:
        return Threads(asked, "engine.threads")
    if user := _number(environment.get("OMP_NUM_THREADS", "").split(",")[0]):
        return Threads(user, "OMP_NUM_THREADS")
    cores = _cores(root)
    loads = _loads(root)
    # A core with two CPUs, one of them busy, still has one for a thread of ours.
    free = sum(max(1 - loads.get(cpu, 0.0) for cpu in core) for core in cores)
    bounds = [
        _Bound(len(cores), "the cores that this process may use"),
        *_quotas(root),
        *_of_slurm(environment),
        _Bound(round(free), f"others keep {len(cores) - free:.1f} of the {len(cores)} cores busy that this process may use"),
    ]
    least = min(bounds, key=lambda bound: int(bound.cpus))
    return Threads(max(1, int(least.cpus)), least.reason)


def prepare_openmp(environment: MutableMapping[str, str] = os.environ) -> None:
    """Say how long OpenMP's threads spin before they sleep, where the user has not; to be called before torch is imported.

    A thread that spins may hold the core that the thread it waits for would run on, where other processes came meanwhile.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)


def _cores(root: Path) -> list[list[int]]:
    """The CPUs that this process may use, those of one physical core together."""
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return [[cpu] for cpu in range(psutil.cpu_count(logical=False) or 1)]
    cores: dict[str, list[int]] = defaultdict(list)
    for cpu in sorted(os.sched_getaffinity(0)):
        cores[_read(root / CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") or f"cpu{cpu} alone"].append(cpu)
    return list(cores.values())


def _loads(root: Path) -> dict[int, float]:
    """CPU -> share of the time that it is busy now."""
    percents = psutil.cpu_percent(LOOK_SECONDS, percpu=True)
    online = list(_listed(_read(root / CPUS / "online"))) or range(len(percents))
    return {cpu: percent / 100 for cpu, percent in zip(online, percents, strict=False)}


def _listed(ranges: str) -> Iterator[int]:
    """Numbers of a list as the kernel writes it: `0-3,8`."""
    for part in ranges.split(",") if ranges else ():
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _of_slurm(environment: Mapping[str, str]) -> Iterator[_Bound]:
    """What SLURM has given: it binds a process to its CPUs on most sites, and not on all."""
    for variable in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if cpus := _number(environment.get(variable, "")):
            yield _Bound(cpus, variable)
            return


def _quotas(root: Path) -> Iterator[_Bound]:
    """What the control groups of this process allow: its own, and those above it that can be seen."""
    for group in _control_groups(root):
        if cpus := _quota(group):
            yield _Bound(cpus, f"a CPU quota of {cpus:g}")


def _control_groups(root: Path) -> Iterator[Path]:
    own = [line.split(":", 2)[1:] for line in _read(root / "proc/self/cgroup").splitlines()]
    for line in _read(root / "proc/self/mountinfo").splitlines():
        place, _, kind = line.partition(" - ")
        top, mounted = place.split()[3:5]
        for controllers, path in own:
            if _limits_cpus(kind, controllers):
                # In a container the mount may show a part of the tree, and the path all of it.
                inside = path.removeprefix(top).lstrip("/") if ".." not in path and path.startswith(top) else ""
                group = root / mounted.lstrip("/") / inside
                yield group
                yield from list(group.parents)[: len(Path(inside).parts)]


def _limits_cpus(kind: str, controllers: str) -> bool:
    """Whether a mount (type, source and options, as in `mountinfo`) shows the control groups of these controllers, CPUs among them.

    Version 2 has one tree for all controllers, and names none.
    """
    name, *_, options = kind.split()
    return (
        name == "cgroup2" if not controllers else name == "cgroup" and "cpu" in options.split(",") and "cpu" in controllers.split(",")
    )


def _quota(group: Path) -> float | None:
    """CPUs that a control group may use, by version 2 or 1; None where it has no limit."""
    quota, _, period = _read(group / "cpu.max").partition(" ")
    quota, period = quota or _read(group / "cpu.cfs_quota_us"), period or _read(group / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _number(text: str) -> int | None:
    """A whole number above 0, or None."""
    return int(text) or None if text.strip().isdecimal() else None


def _read(path: Path) -> str:
    """A file of the kernel's; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
