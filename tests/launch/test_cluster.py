"""The development cluster: what it promises to tests that stand on it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dev_cluster.cluster
import pytest
from dev_cluster import Cluster, ClusterError, Settings, packages
from dev_cluster.settings import DEVICES, NODES, Record

PROGRAM = Path(dev_cluster.__file__).parent
NOBODY = 65534
WHERE = 'echo "$(hostname) gpu=$CUDA_VISIBLE_DEVICES"'


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as made:
        yield Path(made) / "c"


def until(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.1)


def submit(cluster: Cluster, script: str, *options: str, output: str = "out.%j") -> str:
    done = cluster.run("sbatch", "--parsable", f"--output={cluster.directory}/{output}", *options, "--wrap", script)
    return done.stdout.strip()


def state(cluster: Cluster, job: str) -> str:
    return next((one.state for one in cluster.jobs(ended=True) if one.id == job), "unknown")


def ends_as(cluster: Cluster, job: str, wanted: str, seconds: float = 30) -> None:
    until(lambda: state(cluster, job) == wanted, seconds)


def runs(cluster: Cluster, program: str) -> list[int]:
    return [one.pid for one in cluster.processes() if one.program == program]


def ports(cluster: Cluster) -> dict[str, int]:
    return json.loads((cluster.directory / "cluster.json").read_text())["ports"]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def command_lines() -> list[str]:
    """Those of every process of the machine."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_text(errors="replace").strip("\0").replace("\0", " "))
    return lines


def command(*arguments: str | Path, as_user: tuple[str, ...] = (), python: str = sys.executable, program: Path = PROGRAM) -> str:
    words = [*as_user, python, str(program), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_runs_on_each_node_with_a_gpu_of_its_own(idle_cluster: Cluster) -> None:
    done = idle_cluster.run("srun", "--nodes=2", "--ntasks=2", "--gpus-per-node=1", "sh", "-c", WHERE)
    names = NODES if idle_cluster.nodes_have_names else [socket.gethostname()] * 2
    assert sorted(done.stdout.splitlines()) == [f"{name} gpu=0" for name in names]


def test_python_in_a_job_sees_the_name_of_its_node(idle_cluster: Cluster) -> None:
    if not idle_cluster.nodes_have_names:
        pytest.skip("the system allows no namespaces")
    for node in NODES:
        done = idle_cluster.run("srun", f"--nodelist={node}", sys.executable, "-c", "import socket; print(socket.gethostname())")
        assert done.stdout == f"{node}\n"


def test_a_second_gpu_waits_and_a_third_node_is_refused(idle_cluster: Cluster) -> None:
    first = submit(idle_cluster, "sleep 60", "--nodes=2", "--gpus-per-node=1")
    second = submit(idle_cluster, "true", "--gpus-per-node=1")
    until(lambda: [one.state for one in idle_cluster.jobs()] == ["RUNNING", "PENDING"] or state(idle_cluster, first) == "RUNNING", 10)
    assert state(idle_cluster, second) == "PENDING"
    with pytest.raises(ClusterError, match="Requested node configuration is not available"):
        submit(idle_cluster, "true", "--gpus-per-node=2")
    with pytest.raises(ClusterError, match="Invalid job array specification"):
        submit(idle_cluster, "true", "--array=0-1001")


def test_what_ended_is_shown_only_when_asked_for(idle_cluster: Cluster) -> None:
    job = submit(idle_cluster, "exit 3", "--job-name=with|bar")
    until(lambda: not idle_cluster.jobs(), 10)
    (ended,) = [one for one in idle_cluster.jobs(ended=True) if one.id == job]
    assert (ended.state, ended.name, ended.partition, ended.reason) == ("FAILED", "with|bar", "main", "NonZeroExitCode")


def test_signals_reach_a_job_and_scancel_ends_it(idle_cluster: Cluster) -> None:
    output = idle_cluster.directory / "signals"
    job = submit(idle_cluster, "trap 'echo USR2' USR2; echo ready; while :; do sleep 0.1; done", output="signals")
    until(lambda: output.exists() and "ready" in output.read_text(), 10)
    idle_cluster.run("scancel", "--batch", "--signal=USR2", job)
    until(lambda: "USR2" in output.read_text(), 10)
    idle_cluster.run("scancel", job)
    ends_as(idle_cluster, job, "CANCELLED")
    assert not [one for node in NODES for one in idle_cluster.node_processes(node) if one.is_job]


def test_a_requeued_job_starts_again_in_seconds(idle_cluster: Cluster) -> None:
    output = idle_cluster.directory / "restarts"
    job = submit(idle_cluster, "echo start $SLURM_RESTART_COUNT; [ $SLURM_RESTART_COUNT ] || sleep 60", output="restarts")
    until(lambda: state(idle_cluster, job) == "RUNNING" and output.exists(), 10)
    idle_cluster.run("scontrol", "requeue", job)
    ends_as(idle_cluster, job, "COMPLETED")
    assert "start 1" in output.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("partition", "is_warned"), [("preemptible", True), ("preemptible_nograce", False)])
def test_the_urgent_preempt_the_preemptible(idle_cluster: Cluster, partition: str, is_warned: bool) -> None:
    output = idle_cluster.directory / partition
    script = "trap 'echo warned' USR2; echo start; [ $SLURM_RESTART_COUNT ] || while :; do sleep 0.1; done"
    options = (f"--partition={partition}", "--nodes=1", "--exclusive", "--nodelist=n1", "--signal=B:USR2@60")
    job = submit(idle_cluster, script, *options, "--time=30", "--open-mode=append", output=partition)
    until(lambda: output.exists() and "start" in output.read_text(), 10)
    urgent = submit(idle_cluster, "true", "--partition=urgent", "--nodelist=n1", "--exclusive")
    ends_as(idle_cluster, urgent, "COMPLETED")
    assert ("warned" in output.read_text()) == is_warned
    ends_as(idle_cluster, job, "COMPLETED")


def test_the_main_partition_is_not_preempted(idle_cluster: Cluster) -> None:
    job = submit(idle_cluster, "sleep 60", "--nodelist=n1", "--exclusive")
    until(lambda: state(idle_cluster, job) == "RUNNING", 10)
    urgent = submit(idle_cluster, "true", "--partition=urgent", "--nodelist=n1", "--exclusive")
    time.sleep(2)
    assert (state(idle_cluster, job), state(idle_cluster, urgent)) == ("RUNNING", "PENDING")


def test_jobs_outlive_a_controller_that_goes_and_comes(idle_cluster: Cluster) -> None:
    job = submit(idle_cluster, "sleep 4; echo done", output="outlives")
    until(lambda: state(idle_cluster, job) == "RUNNING", 10)
    for leave in (idle_cluster.stop_controller, idle_cluster.kill_controller):
        leave()
        assert not runs(idle_cluster, "slurmctld")
        with pytest.raises(ClusterError):
            idle_cluster.run("squeue", timeout=1)
        idle_cluster.start_controller()
    ends_as(idle_cluster, job, "COMPLETED")
    assert (idle_cluster.directory / "outlives").read_text() == "done\n"


def test_work_outlives_its_slurmd(idle_cluster: Cluster) -> None:
    job = submit(idle_cluster, "sleep 3; echo done", "--nodelist=n1", output="alone")
    until(lambda: "sleep" in [one.program for one in idle_cluster.node_processes("n1")], 10)
    idle_cluster.kill_slurmd("n1")
    programs = [one.program for one in idle_cluster.node_processes("n1")]
    assert "sleep" in programs
    assert "slurmd" not in programs
    idle_cluster.start_node("n1")
    ends_as(idle_cluster, job, "COMPLETED")
    assert (idle_cluster.directory / "alone").read_text() == "done\n"


@pytest.mark.slow
def test_a_lost_node_is_seen_down_and_its_job_runs_elsewhere(idle_cluster: Cluster) -> None:
    output = idle_cluster.directory / "lost"
    script = "echo at $SLURMD_NODENAME; [ $SLURM_RESTART_COUNT ] || sleep 300"
    job = submit(idle_cluster, script, "--open-mode=append", output="lost")
    until(lambda: output.exists() and "at" in output.read_text(), 10)
    (lost,) = [one.node for one in idle_cluster.jobs() if one.id == job]
    (other,) = set(NODES) - {lost}
    idle_cluster.kill_node(lost)
    assert not idle_cluster.node_processes(lost)
    assert idle_cluster.node_processes(other)
    until(lambda: idle_cluster.node_state(lost).startswith("down"), 60)
    ends_as(idle_cluster, job, "COMPLETED")
    assert output.read_text().split() == ["at", lost, "at", other]
    idle_cluster.start_node(lost)
    assert idle_cluster.node_state(lost) == "idle"


def test_a_node_that_an_administrator_sets_down_gives_its_job_away(idle_cluster: Cluster) -> None:
    job = submit(idle_cluster, "[ $SLURM_RESTART_COUNT ] || sleep 300")
    until(lambda: state(idle_cluster, job) == "RUNNING", 10)
    (node,) = [one.node for one in idle_cluster.jobs() if one.id == job]
    idle_cluster.set_node(node, "down")
    assert idle_cluster.node_state(node) == "down"
    ends_as(idle_cluster, job, "COMPLETED")
    idle_cluster.set_node(node, "resume")
    until(lambda: idle_cluster.node_state(node) == "idle", 10)
    with pytest.raises(ClusterError, match="no state 'fast'"):
        idle_cluster.set_node(node, "fast")
    with pytest.raises(ClusterError, match="no node 'n3'"):
        idle_cluster.kill_node("n3")


def test_without_accounting_there_is_no_sacct(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="Slurm accounting storage is disabled"):
        cluster.run("sacct")


def test_down_ends_every_process_and_frees_every_port(directory: Path) -> None:
    with Cluster(directory) as cluster:
        # One that will not be asked, one that left its parents, one that also forgot its environment.
        script = "trap '' TERM; setsid sleep 311 & env -i setsid sleep 312 & python3 -c 'import time; time.sleep(313)'"
        submit(cluster, script, "--export=NONE")
        until(lambda: len(runs(cluster, "sleep")) == 2, 10)
        assert all(listens(ports(cluster)[name]) for name in ("slurmctld", *NODES))
    assert cluster.processes() == []
    assert not [port for port in ports(cluster).values() if listens(port)]
    left = command_lines()
    assert not [line for line in left if str(directory) in line or line in ("sleep 311", "sleep 312")]
    cluster.down()
    with cluster:
        assert cluster.jobs(ended=True) == []


def test_down_leaves_alone_what_only_speaks_to_the_cluster(directory: Path) -> None:
    with Cluster(directory) as cluster:
        bystander = subprocess.Popen(["sleep", "60"], env={**os.environ, **cluster.environment})
    try:
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_down_works_without_a_controller(directory: Path) -> None:
    with Cluster(directory) as cluster:
        submit(cluster, "sleep 300")
        until(lambda: bool(runs(cluster, "sleep")), 10)
        cluster.kill_controller()
    assert cluster.processes() == []


def test_a_failed_start_says_why_and_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        occupied = {**Record(Settings()).ports, "n2": taken.getsockname()[1]}
        monkeypatch.setattr(dev_cluster.cluster, "Record", lambda settings: Record(settings, occupied))
        cluster = Cluster(directory)
        with pytest.raises(ClusterError, match=r"(?s)n2\.log ends:.*[Aa]ddress already in use"):
            cluster.up()
    assert cluster.processes() == []


def test_two_clusters_know_nothing_of_each_other(cluster: Cluster, directory: Path) -> None:
    mine = {one.pid for one in cluster.processes()}
    with Cluster(directory, Settings(cpus=9, memory=1000, gpus=2, max_array_size=5)) as other:
        assert not set(ports(other).values()) & set(ports(cluster).values())
        assert not {one.pid for one in other.processes()} & mine
        assert other.run("sinfo", "--noheader", "--partition=main", "--format=%c %m %G").stdout.split() == ["9", "1000", "gpu:2"]
        assert other.run("srun", "--gpus=2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES").stdout == "0,1\n"
        with pytest.raises(ClusterError, match="Invalid job array specification"):
            submit(other, "true", "--array=0-5")
    assert {one.pid for one in cluster.processes()} >= mine


def test_the_command_says_how_to_use_it(directory: Path) -> None:
    try:
        said = command("up", directory)
        assert f"export SLURM_CONF={directory}/slurm.conf" in said
        assert "slurmctld" in command("status", directory)
        refused = subprocess.run([sys.executable, PROGRAM, "up", directory], capture_output=True, text=True, timeout=60)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert "take it down first" in refused.stderr
        assert Cluster(directory).settings == Settings()
    finally:
        command("down", directory)
    assert command("status", directory) == f"{directory}: down\n"
    command("down", directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="all the other tests run as a user who is not root")
def test_another_user_brings_one_up(directory: Path) -> None:
    as_nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    # By way of a shell: setpriv still has root's rights where it looks for the program.
    may_run = [
        one
        for one in (sys.executable, "/usr/bin/python3")
        if subprocess.run([*as_nobody, "sh", "-c", f"{one} -c ''"]).returncode == 0
    ]
    directory.parent.chmod(0o755)
    program = directory.with_name("program")
    shutil.copytree(PROGRAM, program / "dev_cluster")
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    given = {"as_user": as_nobody, "python": may_run[0], "program": program / "dev_cluster"}
    try:
        command("up", directory, **given)
        cluster = Cluster(directory)
        srun = ("srun", "--chdir=/", "--nodes=2", "--gpus-per-node=1", "sh", "-c", f"id -u; {WHERE}")
        done = subprocess.run(
            [*as_nobody, *srun], env={**os.environ, **cluster.environment}, capture_output=True, text=True, timeout=30
        )
        names = NODES if cluster.nodes_have_names else [socket.gethostname()] * 2
        assert sorted(done.stdout.splitlines()) == sorted([str(NOBODY)] * 2 + [f"{name} gpu=0" for name in names]), done.stderr
        assert {Path(f"/proc/{one.pid}").stat().st_uid for one in cluster.processes()} == {NOBODY}
    finally:
        command("down", directory, **given)
    assert cluster.processes() == []
    with pytest.raises(ClusterError, match="belongs to another user"):
        cluster.up()


def test_what_is_somebody_elses_is_not_wiped(directory: Path) -> None:
    directory.mkdir()
    (directory / "thesis.tex").write_text("words")
    with pytest.raises(ClusterError, match="does not describe a cluster"):
        Cluster(directory).up()
    assert (directory / "thesis.tex").read_text() == "words"


@pytest.mark.parametrize("name", ["with space", "with%percent", "l" * 90])
def test_a_path_that_slurm_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="a cluster's directory has"):
        Cluster(f"/tmp/{name}")


@pytest.mark.parametrize("wrong", [{"gpus": 0}, {"gpus": len(DEVICES) + 1}, {"cpus": 0}, {"memory": 0}, {"max_array_size": 0}])
def test_settings_that_make_no_cluster_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ClusterError, match=f"not {next(iter(wrong.values()))}"):
        Settings(**wrong)


def test_who_may_not_install_is_told_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ClusterError, match="as root, run apt-get install --no-install-recommends munge slurm-client slurmctld slurmd "
    ) as told:
        packages.install(accounting=False)
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_accounting_keeps_jobs_and_holds_to_limits(accounting_cluster: Cluster) -> None:
    job = submit(accounting_cluster, "exit 7")
    sacct = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,Account,QOS,State,ExitCode")
    until(lambda: f"{job}|lab|normal|FAILED|7:0" in accounting_cluster.run(*sacct).stdout.splitlines(), 30)
    for _ in range(4):
        submit(accounting_cluster, "sleep 60", "--qos=small", "--time=60")
    with pytest.raises(ClusterError, match="QOSMaxSubmitJobPerUserLimit"):
        submit(accounting_cluster, "true", "--qos=small", "--time=60")
    with pytest.raises(ClusterError, match="Invalid account"):
        submit(accounting_cluster, "true", "--account=other")
    with pytest.raises(ClusterError, match="Invalid qos"):
        submit(accounting_cluster, "true", "--qos=large")


def test_processes_end_in_spite_of_a_deaf_ear() -> None:
    """What is found is asked once, and killed when it does not go."""
    deaf = subprocess.Popen(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"], stdout=subprocess.PIPE, text=True)
    assert deaf.stdout is not None
    deaf.stdout.readline()
    process = dev_cluster.processes.Process(deaf.pid, "sh", "n1")
    dev_cluster.processes.end(lambda: [process] if deaf.poll() is None else [], patience=0.3)
    assert deaf.wait() == -signal.SIGKILL
    deaf.stdout.close()
