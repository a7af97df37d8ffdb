"""How many threads a process takes: on made-up machines below a directory, and on this one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from emosteer.cores import Threads, choose_threads, prepare_openmp

V1 = "3:memory:{path}\n2:cpu,cpuacct:{path}\n"
V2 = "0::{path}\n"
MOUNT_V1 = "32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
MOUNT_V2 = "35 25 0:30 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
MEMORY = "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], None]:
    """Put a file of the kernel's below the made-up root."""

    def write(path: str, text: str) -> None:
        at = tmp_path / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text)

    return write


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine of idle CPUs, of which a process may use some."""

    def machine(usable: Sequence[int], busy: Sequence[float] = (0.0,) * 64) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(usable))
        monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: [100 * share for share in busy])

    return machine


def test_as_asked_then_as_the_user_says_in_the_environment(tmp_path: Path, machine: Callable[..., None]) -> None:
    machine(range(8))
    assert choose_threads(3, {"OMP_NUM_THREADS": "5"}, tmp_path) == Threads(3, "engine.threads")
    assert choose_threads(None, {"OMP_NUM_THREADS": "5,2"}, tmp_path) == Threads(5, "OMP_NUM_THREADS")
    for nothing in ("", "0", "many", "-1"):
        assert choose_threads(None, {"OMP_NUM_THREADS": nothing}, tmp_path).n == 8


def test_one_for_each_core_and_not_for_its_hyperthreads(
    tmp_path: Path, machine: Callable[..., None], write: Callable[[str, str], None]
) -> None:
    for cpu in range(8):
        write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    machine(range(8))
    assert choose_threads(None, {}, tmp_path) == Threads(4, "the cores that this process may use")
    machine([0, 1, 4, 5])
    assert choose_threads(None, {}, tmp_path).n == 2, "two cores, with both of their threads"
    machine([0, 1, 2, 7])
    assert choose_threads(None, {}, tmp_path).n == 4, "one thread of each of four cores"


def test_what_others_keep_busy_is_left_to_them(
    tmp_path: Path, machine: Callable[..., None], write: Callable[[str, str], None]
) -> None:
    machine(range(4), busy=[1.0, 0.1, 0.9, 0.0, 0.0, 0.0])
    assert choose_threads(None, {}, tmp_path) == Threads(2, "others keep 2.0 of the 4 cores busy that this process may use")
    machine([2, 3], busy=[1.0, 1.0, 0.0, 0.0])
    assert choose_threads(None, {}, tmp_path).n == 2, "elsewhere they may do what they like"
    machine(range(4), busy=[1.0] * 4)
    assert choose_threads(None, {}, tmp_path).n == 1
    # CPU 1 is switched off: the second number is CPU 2's.
    write("sys/devices/system/cpu/online", "0,2-3\n")
    machine([2, 3], busy=[0.0, 1.0, 0.0])
    assert choose_threads(None, {}, tmp_path).n == 1


def test_a_core_with_one_busy_hyperthread_still_has_the_other(
    tmp_path: Path, machine: Callable[..., None], write: Callable[[str, str], None]
) -> None:
    for cpu in range(4):
        write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 2},{cpu % 2 + 2}\n")
    machine(range(4), busy=[1.0, 0.0, 0.0, 0.0])
    assert choose_threads(None, {}, tmp_path).n == 2
    machine(range(4), busy=[1.0, 0.0, 1.0, 0.0])
    assert choose_threads(None, {}, tmp_path).n == 1


@pytest.mark.parametrize(
    ("variables", "n"),
    [
        ({"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "12"}, 3),
        ({"SLURM_CPUS_ON_NODE": "6"}, 6),
        ({"SLURM_CPUS_PER_TASK": "64"}, 8),
        ({"SLURM_CPUS_PER_TASK": "", "SLURM_CPUS_ON_NODE": "?"}, 8),
    ],
)
def test_slurm_says_how_many_where_it_binds_nothing(
    tmp_path: Path, machine: Callable[..., None], variables: dict[str, str], n: int
) -> None:
    machine(range(8))
    assert choose_threads(None, variables, tmp_path).n == n


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "n"),
    [
        # Version 2: its own group, a slice above it, and no limit.
        (V2.format(path="/a/b"), MOUNT_V2.format(top="/"), {"a/b/cpu.max": "250000 100000"}, 2),
        (V2.format(path="/a/b"), MOUNT_V2.format(top="/"), {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        (V2.format(path="/a/b"), MOUNT_V2.format(top="/"), {"a/b/cpu.max": "max 100000", "c/cpu.max": "100000 100000"}, 8),
        # In a container with a namespace of its own, and in one that sees the host's path.
        (V2.format(path="/"), MOUNT_V2.format(top="/"), {"cpu.max": "50000 100000"}, 1),
        (V2.format(path="/docker/x"), MOUNT_V2.format(top="/docker/x"), {"cpu.max": "400000 100000"}, 4),
        (V2.format(path="/../other"), MOUNT_V2.format(top="/"), {"cpu.max": "400000 100000"}, 4),
        # Version 1, and both: the memory group's file is no CPU quota.
        (V1.format(path="/a"), MEMORY + MOUNT_V1.format(top="/"), {"cpu,cpuacct/a/cpu.cfs_": "150000 50000"}, 3),
        (V1.format(path="/a"), MOUNT_V1.format(top="/"), {"cpu,cpuacct/a/cpu.cfs_": "-1 100000"}, 8),
        (V1.format(path="/docker/x"), MOUNT_V1.format(top="/docker/x"), {"cpu,cpuacct/cpu.cfs_": "200000 100000"}, 2),
        (V1.format(path="/a"), MEMORY, {"memory/a/cpu.cfs_": "100000 100000"}, 8),
        (V1.format(path="/a") + V2.format(path="/"), MOUNT_V1.format(top="/"), {"cpu,cpuacct/a/cpu.cfs_": "500000 100000"}, 5),
    ],
)
def test_the_quota_of_a_container(
    tmp_path: Path,
    machine: Callable[..., None],
    write: Callable[[str, str], None],
    groups: str,
    mounts: str,
    files: dict[str, str],
    n: int,
) -> None:
    machine(range(8))
    write("proc/self/cgroup", groups)
    write("proc/self/mountinfo", "22 1 0:20 / / rw - ext4 /dev/vda rw\n" + mounts)
    for path, text in files.items():
        if path.endswith("cfs_"):
            quota, period = text.split()
            write(f"sys/fs/cgroup/{path}quota_us", f"{quota}\n")
            write(f"sys/fs/cgroup/{path}period_us", f"{period}\n")
        else:
            write(f"sys/fs/cgroup/{path}", f"{text}\n")
    chosen = choose_threads(None, {}, tmp_path)
    assert chosen.n == n
    assert ("quota" in chosen.reason) == (n < 8)


def test_this_machine_bound_to_one_cpu() -> None:
    """As SLURM binds a task: the real kernel, in a process of its own."""
    taskset = shutil.which("taskset")
    cpu = min(os.sched_getaffinity(0))
    code = "from emosteer.cores import choose_threads; print(choose_threads().n)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "SLURM_"))}
    if taskset:
        command, bind = [taskset, "-c", str(cpu), sys.executable, "-c", code], None
    else:
        command, bind = [sys.executable, "-c", code], lambda: os.sched_setaffinity(0, {cpu})
    done = subprocess.run(command, env=environment, preexec_fn=bind, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_what_the_user_says_of_openmp_stays() -> None:
    plain: dict[str, str] = {}
    prepare_openmp(plain)
    assert int(plain.pop("GOMP_SPINCOUNT")) > 0
    assert plain == {}
    for own in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}):
        asked = dict(own)
        prepare_openmp(asked)
        assert asked == own


def test_the_commands_say_it_before_torch_is_loaded(tmp_path: Path) -> None:
    """A module of the user's may import torch as soon as a configuration names it: it finds the environment ready."""
    (tmp_path / "my_early_scorers.py").write_text(
        "import os\nimport torch\nprint('SPINS', os.environ.get('GOMP_SPINCOUNT'))\ndef none(replies):\n    return {}\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_WAIT", "GOMP_"))}
    command = [sys.executable, "-m", "emosteer.main", "+scorers.none._target_=my_early_scorers.none", "model=custom", "model.path=no"]
    done = subprocess.run(
        command, env={**environment, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "SPINS 2" in done.stdout, done.stderr


def test_importing_the_package_leaves_the_environment_alone() -> None:
    code = "import os; before = dict(os.environ); import emosteer, emosteer.cores, emosteer.api; assert dict(os.environ) == before"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_WAIT", "GOMP_"))}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
