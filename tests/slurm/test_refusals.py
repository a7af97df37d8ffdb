"""What SLURM would reject, or leave pending for ever, is refused before submission, with SLURM's own reason; nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from dev_cluster import Cluster
from side_by_side import Bench
from slurm_desk import SlurmDesk

from emosteer.errors import EmosteerError
from emosteer.launcher import open_sweep
from emosteer.records.sweep import Sweep
from emosteer.slurm.options import SlurmOptions
from emosteer.slurm.refusal import check_submittable

WOULD_NOT_RUN = {
    "partition": ({"partition": "nowhere"}, "Invalid partition name specified"),
    "memory": ({"mem_gb": 5000}, "Memory specification can not be satisfied|Requested node configuration is not available"),
    "GPUs": ({"gpus_per_node": "9"}, "Requested node configuration is not available"),
    "a kind of GPU": ({"gpus_per_node": "a100:1"}, "Invalid generic resource|Requested node configuration is not available"),
    "CPUs": ({"cpus_per_task": 500}, "Requested node configuration is not available|More processors requested than permitted"),
    "time": ({"partition": "short", "timeout_min": 120}, "PartitionTimeLimit"),
    "a feature": ({"constraint": "a100"}, "Invalid feature specification"),
    "a node": ({"nodelist": "n7"}, "Invalid node name specified"),
    "the finaliser's partition": ({"finaliser": {"partition": "nowhere"}}, "run a finaliser: .*Invalid partition name specified"),
}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """One that is not on the disk yet."""
    return open_sweep(str(tmp_path / "store"), tmp_path / "sweep")


@pytest.mark.parametrize(("options", "reason"), WOULD_NOT_RUN.values(), ids=WOULD_NOT_RUN)
def test_what_slurm_would_not_run_is_refused_in_its_words(
    cluster: Cluster, sweep: Sweep, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], reason: str
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    before = cluster.jobs(ended=True)
    with pytest.raises(EmosteerError, match=reason) as refused:
        check_submittable(sweep, SlurmOptions(**options))  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    assert cluster.jobs(ended=True) == before
    assert not sweep.paths.root.exists()


def test_what_slurm_would_run_is_not_refused(cluster: Cluster, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    check_submittable(sweep, SlurmOptions(partition="short", timeout_min=60, mem_gb=1.5, cpus_per_task=4))


@pytest.fixture
def desk(cluster: Cluster, bench: Bench, tmp_path: Path) -> SlurmDesk:
    """A desk on the session's cluster."""
    return SlurmDesk(tmp_path, bench.model, bench.library, cluster=cluster, name="refused")


def test_a_refused_command_says_so_in_a_line_and_leaves_nothing(desk: SlurmDesk) -> None:
    done = desk.run(*desk.slurm("mem_gb=5000"))
    assert done.code == 1
    (line,) = done.text.strip().splitlines()
    assert "mem_gb=5000" in line
    assert desk.jobs() == {}
    assert not (desk.directory / "outputs").exists()


def test_what_would_pend_for_ever_is_taken_back(desk: SlurmDesk) -> None:
    """SLURM takes jobs for a partition that is down, and lets them wait."""
    desk.cluster.run("scontrol", "update", "partitionname=short", "state=down")
    try:
        done = desk.run(*desk.slurm("partition=short", "timeout_min=10"))
    finally:
        desk.cluster.run("scontrol", "update", "partitionname=short", "state=up")
    assert done.code == 1
    assert "PartitionDown" in done.text
    assert desk.jobs(ended=False) == {}
    assert [bool(one["ended"]) for one in desk.submissions()] == [True]
    said = desk.status()
    assert (said["exit_code"], said["counts"]["running"]) == (3, 0)


def test_a_command_without_m_does_not_run_here_what_is_meant_for_the_cluster(cluster: Cluster, bench: Bench, tmp_path: Path) -> None:
    desk = SlurmDesk(tmp_path / "single", bench.model, bench.library, cluster=cluster, name="single")
    done = desk.run("layer=1", "hydra/launcher=slurm")
    assert done.code == 1
    assert "hydra/launcher=slurm needs -m" in done.text
    assert not done.imported_torch
    assert desk.records() == {}


def test_a_setup_line_that_fails_ends_the_job(idle_cluster: Cluster, bench: Bench, tmp_path: Path) -> None:
    desk = SlurmDesk(tmp_path / "setup", bench.model, bench.library, cluster=idle_cluster, name="setup")
    desk.submit("setup=['module load cuda/99']", workers=1)
    desk.wait_for(lambda: set(desk.states().values()) == {"FAILED"}, "the jobs have ended")
    assert desk.records() == {}
    said = desk.sweep_command("status", "setup").text
    assert "before it wrote anything" in said
    worker = next(job for job in desk.states() if "_" in job)
    assert "module" in desk.sweep_command("logs", "setup", "--worker", worker).text
