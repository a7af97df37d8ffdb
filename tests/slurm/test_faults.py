"""A sweep on a real SLURM ends as if nothing had happened, whatever the cluster does to it meanwhile."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from desk import Desk
from disks import fill, small_disk
from same_results import assert_same_results
from side_by_side import Bench, Fault, Night, params
from slurm_desk import N_RECORDS, N_RUNS, PATIENCE_SECONDS, SlurmDesk

from emosteer.records.publish import TEMPORARY

FAULTS: dict[str, Fault] = {}
KILL = '"$REAL" "$@"; kill -9 $PPID'
"""What a double of sbatch does: SLURM gets the job, and nobody hears of it."""

Play = Callable[[SlurmDesk, Desk], None]


def fault(is_slow: bool = False, **alone: int) -> Callable[[Play], Play]:
    """Play it in the night; with settings, on a cluster of its own."""

    def mark(play: Play) -> Play:
        FAULTS[play.__name__] = Fault(play, alone or None, is_slow)
        return play

    return mark


def state_of(desk: SlurmDesk, job: str) -> str:
    """SLURM's word for a job."""
    return desk.states().get(job, "unknown")


# Nobody is disturbed


@fault(gpus=1)
def nobody_disturbs_it(desk: SlurmDesk, undisturbed: Desk) -> None:
    """Two workers, one on each node, share the sweep."""
    desk.hold()
    desk.submit(overrides=("tracking=wandb", "tracking.mode=offline"))
    assert {holder.node for holder in desk.at_work(2)} == {"n1", "n2"}
    desk.let_go()
    states = desk.ends_as(undisturbed)
    assert set(states.values()) == {"COMPLETED"}
    assert desk.nodes() == {"n1", "n2"}
    assert desk.losses() == []
    assert len(desk.wandb_runs()) == N_RUNS


# The sweep's own faults


@fault()
def a_cell_raises(desk: SlurmDesk, undisturbed: Desk) -> None:
    """24 cells with a bug beside 24 without: it is nobody else's, runs once, and the jobs tell of it."""
    desk.submit(overrides=("vector.method=mean_difference,paced.raises",))
    states = desk.wait_until_ended()
    failures = desk.failures()
    assert len(failures) == N_RECORDS - 1
    for failure in failures:
        assert failure["exception"] == "ZeroDivisionError"
        assert "a bug of the user's own" in failure["traceback"]
        assert 'paced.py", line' in failure["traceback"]
        assert failure["attempt"] == 1
    assert len(desk.submissions()) == 1, "it is not tried again"
    assert state_of(desk, desk.submissions()[0]["finaliser"]) == "FAILED"
    ran = {failure["job"] for failure in failures}
    assert {states[job] for job in ran} == {"FAILED"}
    assert_same_results(desk, undisturbed)
    desk.has_left_nothing()
    desk.says_the_truth(1, done=N_RECORDS, failed=N_RECORDS - 1)


# What befalls a worker


@fault()
def scancel_of_one_of_two_workers(desk: SlurmDesk, undisturbed: Desk) -> None:
    desk.hold()
    desk.submit()
    victim, other = desk.at_work(2)
    desk.cluster.run("scancel", victim.job)
    desk.wait_for(lambda: state_of(desk, victim.job) == "CANCELLED", f"{victim.job} is cancelled")
    desk.let_go()
    states = desk.ends_as(undisturbed)
    assert states[victim.job] == "CANCELLED"
    assert states[other.job] == "COMPLETED", "its sibling is unharmed"
    assert desk.losses() == [], "it gave its cell back"


@fault(gpus=1)
def kill_9_of_the_only_worker(desk: SlurmDesk, undisturbed: Desk) -> None:
    """The results are built on another node, which cannot see for itself that the process is gone."""
    desk.hold()
    desk.submit("nodelist=n1", workers=1, overrides=("+hydra.launcher.finaliser.nodelist=n2",))
    (victim,) = desk.at_work(1)
    # As if it had been writing a record.
    (desk.store / "cells" / f"{TEMPORARY}record.{victim.host}.{victim.pid}.0badcafe").mkdir(parents=True)
    desk.kill(victim)
    desk.wait_for(lambda: state_of(desk, victim.job) == "FAILED", f"{victim.job} failed")
    desk.let_go()
    desk.ends_as(undisturbed)
    assert [(loss["job"], loss["node"]) for loss in desk.losses()] == [(victim.job, victim.node)]
    assert len(desk.submissions()) == 2, "the finaliser brought another worker"


@fault()
def requeue_of_one_and_the_time_limit_of_the_other(desk: SlurmDesk, undisturbed: Desk) -> None:
    desk.hold()
    desk.submit()
    requeued, told = desk.at_work(2)
    desk.cluster.run("scontrol", "requeue", requeued.job)
    desk.cluster.run("scancel", "--signal=USR2", told.job)
    for one in (requeued, told):
        desk.wait_for(lambda job=one.job: state_of(desk, job) == "PENDING", f"{one.job} is to start again")
    desk.let_go()
    states = desk.ends_as(undisturbed)
    assert set(states.values()) == {"COMPLETED"}
    assert len(desk.submissions()) == 1
    starts = {path.name for path in (desk.sweep / "slurm" / "workers").glob("[!.]*.json")}
    assert {f"{requeued.job}.1.json", f"{told.job}.1.json"} <= starts, "the same jobs started again"


def preempted(desk: SlurmDesk, undisturbed: Desk, partition: str) -> None:
    desk.hold()
    desk.submit(f"partition={partition}", workers=1, overrides=("+hydra.launcher.finaliser.partition=main",))
    (victim,) = desk.at_work(1)
    urgent = ("--partition=urgent", f"--nodelist={victim.node}", "--exclusive", f"--output={desk.directory}/urgent")
    desk.cluster.run("sbatch", *urgent, "--wrap=sleep 2")
    desk.wait_for(lambda: state_of(desk, victim.job) == "PENDING", f"{victim.job} is preempted")
    desk.let_go()
    states = desk.ends_as(undisturbed)
    assert set(states.values()) == {"COMPLETED"}
    assert len(desk.submissions()) == 1


@fault(gpus=1)
def preemption_with_grace(desk: SlurmDesk, undisturbed: Desk) -> None:
    preempted(desk, undisturbed, "preemptible")


@fault(gpus=1)
def preemption_without_grace(desk: SlurmDesk, undisturbed: Desk) -> None:
    preempted(desk, undisturbed, "preemptible_nograce")


# What befalls a node


@fault(gpus=1)
def a_node_is_lost_with_its_worker(desk: SlurmDesk, undisturbed: Desk) -> None:
    desk.hold()
    desk.submit()
    at_work = {holder.node: holder for holder in desk.at_work(2)}
    desk.cluster.kill_node("n1")
    desk.note("n1 is lost")
    desk.let_go()
    desk.wait_for(lambda: desk.cluster.node_state("n1").startswith("down"), "SLURM misses n1")
    desk.ends_as(undisturbed)
    assert [(loss["job"], loss["node"]) for loss in desk.losses()] == [(at_work["n1"].job, "n1")]


@fault(gpus=2)
def a_node_is_down_and_its_worker_lives_on(desk: SlurmDesk, undisturbed: Desk) -> None:
    """SLURM starts the worker again while its first attempt, on a node that SLURM has given up, still works."""
    desk.hold()
    desk.submit("nodelist=n1", workers=1, overrides=("+hydra.launcher.finaliser.nodelist=n2",))
    (first,) = desk.at_work(1)
    desk.cluster.kill_slurmd("n1")
    desk.cluster.set_node("n1", "down")
    # The job is bound to n1, as no other attempt may: SLURM lets it wait for the node, unless it is told that n2 will do.
    desk.cluster.run("scontrol", "update", f"jobid={first.job}", "nodelist=n2")
    second = desk.wait_for(
        lambda: next((one for one in desk.holders() if one.job == first.job and one.pid != first.pid), None), "a second attempt works"
    )
    assert second.node == "n2"
    assert Path(f"/proc/{first.pid}").exists(), "the first attempt lives"
    desk.let_go()
    desk.ends_as(undisturbed)
    assert desk.nodes() == {"n1", "n2"}


@fault(gpus=1)
def the_disk_fills(desk: SlurmDesk, undisturbed: Desk) -> None:
    with small_disk(desk.directory / "outputs", "24m") as disk:
        desk.hold()
        desk.submit()
        desk.at_work(2)
        stuffing = fill(disk)
        desk.let_go()
        arrays = desk.submissions()[0]["arrays"]
        workers = [f"{array}_{i}" for array, n in arrays.items() for i in range(n)]
        desk.wait_for(lambda: {state_of(desk, job) for job in workers} == {"FAILED"}, "the workers failed")
        stuffing.unlink()
        desk.wait_until_ended()
        desk.submit()
        desk.ends_as(undisturbed)


# What befalls the controller


@fault(gpus=1)
def the_controller_is_away_for_15_s_while_workers_work(desk: SlurmDesk, undisturbed: Desk) -> None:
    desk.hold()
    desk.submit()
    victim, _ = desk.at_work(2)
    desk.cluster.stop_controller()
    desk.kill(victim)
    desk.let_go()
    time.sleep(15)
    desk.cluster.start_controller()
    desk.ends_as(undisturbed)


@fault(gpus=1)
def the_controller_is_away_for_15_s_during_submission(desk: SlurmDesk, undisturbed: Desk) -> None:
    """It takes the workers, and is gone before it says so."""
    stop = f"kill -STOP $(cat {desk.cluster.directory}/slurmctld.pid)"
    desk_with(desk, f'"$REAL" "$@" >/dev/null; {stop}; exec "$REAL" "$@"')
    submitter = desk.popen(*desk.slurm())
    desk.wait_for(lambda: (desk.directory / "sbatch-was-here").exists(), "sbatch is asked")
    desk.cluster.stop_controller()
    time.sleep(15)
    desk.cluster.start_controller()
    out, err = submitter.communicate(timeout=PATIENCE_SECONDS)
    assert submitter.returncode == 0, out + err
    desk.note("submitted")
    desk.ends_as(undisturbed)
    assert is_submitted_once(desk)


# What befalls the submitter


def desk_with(desk: SlurmDesk, instead: str, number: int = 1) -> None:
    """Put a double of sbatch before the real one, for what cannot be asked for otherwise: it is the real one, but for one of the
    scripts that it really submits, by its number."""
    double = desk.directory / "bin" / "sbatch"
    double.parent.mkdir()
    was_here = desk.directory / "sbatch-was-here"
    double.write_text(
        f"""#!/bin/bash
REAL=$(PATH=${{PATH#*:}} command -v sbatch)
case " $* " in *" --test-only "*) exec "$REAL" "$@";; esac
echo "$*" >> '{was_here}'
[ $(wc -l < '{was_here}') = {number} ] || exec "$REAL" "$@"
{instead}
"""
    )
    double.chmod(double.stat().st_mode | stat.S_IXUSR)
    desk.environment["PATH"] = f"{double.parent}:{os.environ['PATH']}"


def is_submitted_once(desk: SlurmDesk, workers: int = 2) -> bool:
    """Whether the queue has seen so many workers, and one finaliser, and the sweep knows all of them."""
    jobs = {id_.partition("_")[0] for id_ in desk.jobs()}
    known = [id_ for one in desk.submissions() for id_ in (*one["arrays"], one["finaliser"]) if id_]
    return len(desk.jobs()) == workers + 1 and jobs == set(known) and len(known) == len(jobs)


@fault()
def the_submitter_is_killed_before_it_wrote_down_the_id(desk: SlurmDesk, undisturbed: Desk) -> None:
    desk_with(desk, KILL)
    killed_and_given_again(desk, undisturbed)


def killed_and_given_again(desk: SlurmDesk, undisturbed: Desk) -> None:
    """The submitter is killed when SLURM has what it sent, and the same command is given again."""
    desk.hold()
    submitter = desk.popen(*desk.slurm())
    assert submitter.wait(timeout=PATIENCE_SECONDS) == -9
    assert not desk.submissions()[0]["is_whole"]
    desk.at_work(2)
    desk.submit()
    desk.let_go()
    desk.ends_as(undisturbed)
    assert is_submitted_once(desk)


@fault()
def two_submitters_at_once(desk: SlurmDesk, undisturbed: Desk) -> None:
    desk.hold()
    submitters = [desk.popen(*desk.slurm(), "tracking=wandb", "tracking.mode=offline") for _ in range(2)]
    for submitter in submitters:
        out, err = submitter.communicate(timeout=PATIENCE_SECONDS)
        assert submitter.returncode == 0, out + err
    desk.let_go()
    desk.ends_as(undisturbed)
    assert is_submitted_once(desk)
    assert len(desk.wandb_runs()) == N_RUNS


@fault(gpus=2, max_array_size=2)
def more_workers_than_an_array_may_have(desk: SlurmDesk, undisturbed: Desk) -> None:
    desk.hold()
    desk.submit(workers=3)
    assert sorted(desk.submissions()[0]["arrays"].values()) == [1, 2]
    desk.at_work(3)
    desk.let_go()
    desk.ends_as(undisturbed)
    assert is_submitted_once(desk, workers=3)


@fault()
def cancelled_at_half_and_resumed_on_three_workers(desk: SlurmDesk, undisturbed: Desk) -> None:
    desk.hold(after=N_RECORDS // 2)
    desk.submit()
    desk.wait_for(lambda: len(desk.records()) >= N_RECORDS // 2, "half is done")
    desk.at_work(2)
    desk.cancel()
    desk.wait_until_ended()
    n_done = desk.status()["counts"]["done"]
    assert 0 < n_done < N_RECORDS
    desk.says_the_truth(3, done=n_done, pending=N_RECORDS - n_done)
    assert [one["ended"] for one in desk.submissions()] == ["cancelled"]
    before = desk.times()
    desk.let_go()
    desk.submit(workers=3, overrides=("tracking=wandb", "tracking.mode=offline"))
    desk.ends_as(undisturbed)
    assert {cell: desk.times()[cell] for cell in before} == before, "what was there was not run again"
    assert len(desk.wandb_runs()) == N_RUNS


# What takes its time


@fault(gpus=1, is_slow=True)
def the_controller_is_killed_and_started_again(desk: SlurmDesk, undisturbed: Desk) -> None:
    """While workers wait in the queue, while they work, and while the finaliser waits."""
    desk.hold()
    desk.submit()
    for moment in ("submitted", "at work"):
        desk.cluster.kill_controller()
        desk.note(f"killed when {moment}")
        time.sleep(2)
        desk.cluster.start_controller()
        desk.at_work(2)
    desk.let_go()
    desk.ends_as(undisturbed)
    assert is_submitted_once(desk)


@fault(is_slow=True)
def the_submitter_is_killed_before_it_wrote_down_the_finaliser(desk: SlurmDesk, undisturbed: Desk) -> None:
    desk_with(desk, KILL, number=2)
    killed_and_given_again(desk, undisturbed)


@fault(gpus=1, is_slow=True)
def a_time_limit_of_a_minute(desk: SlurmDesk, undisturbed: Desk) -> None:
    """The sweep takes longer than its only worker gets: SLURM tells it, and it starts again."""
    desk.environment["PACED_SECONDS"] = "3"
    desk.submit("timeout_min=1", "signal_delay_s=1", workers=1)
    states = desk.ends_as(undisturbed)
    assert set(states.values()) == {"COMPLETED"}
    starts = list((desk.sweep / "slurm" / "workers").glob("[!.]*.json"))
    assert len(starts) > 1, "the limit was reached"


@fault(gpus=1, is_slow=True)
def a_hard_time_limit(desk: SlurmDesk, undisturbed: Desk) -> None:
    """The worker is not told: SLURM ends it."""
    desk.environment["PACED_SECONDS"] = "5"
    desk.submit("timeout_min=1", "signal_delay_s=0", workers=1)
    timed_out = desk.wait_for(lambda: [id_ for id_, state in desk.states().items() if state == "TIMEOUT"], "a worker timed out")
    assert timed_out
    desk.ends_as(undisturbed)
    assert len(desk.submissions()) > 1


@fault(gpus=1, is_slow=True)
def a_cell_takes_longer_than_the_time_limit(desk: SlurmDesk, undisturbed: Desk) -> None:
    """It is given up after so many workers, says why, and takes no other with it."""
    long = max(undisturbed.replies())
    desk.environment["PACED_LONG"] = ascii([json.loads(line)["reply"] for line in undisturbed.replies()[long].strip().split("\n")])
    desk.submit("timeout_min=1", "signal_delay_s=1", "max_attempts=2", workers=1)
    desk.wait_until_ended()
    (failure,) = desk.failures()
    assert (failure["id"], failure["exception"]) == (long, "WorkerLost")
    assert "its time ended" in failure["message"]
    assert "timeout_min" in failure["message"]
    assert desk.replies() == undisturbed.replies()
    desk.has_left_nothing()
    desk.says_the_truth(1, done=N_RECORDS - 1, failed=1)


def release(desk: SlurmDesk) -> None:
    """Let jobs start that were submitted on hold."""
    desk.cluster.run("scontrol", "release", *{job.partition("_")[0] for job in desk.jobs(ended=False)})


@fault(is_slow=True)
def told_again_and_again_before_it_has_a_cell(desk: SlurmDesk, undisturbed: Desk) -> None:
    """A worker whose time is too short for any cell starts again so many times, and then leaves it to the finaliser."""
    desk.submit("max_attempts=2", workers=1, overrides=("+hydra.launcher.additional_parameters.hold=true",))
    (array,) = desk.submissions()[0]["arrays"]
    release(desk)
    for start in range(3):
        started = desk.sweep / "slurm" / "workers" / f"{array}_0.{start}.json"
        desk.wait_for(started.exists, f"start {start}")
        desk.cluster.run("scancel", "--signal=USR2", f"{array}_0")
    desk.wait_for(lambda: state_of(desk, f"{array}_0") == "FAILED", "it is not started again")
    desk.wait_for(lambda: len(desk.submissions()) == 2 and desk.submissions()[1]["is_whole"], "the finaliser brought another")
    release(desk)
    desk.ends_as(undisturbed)
    assert len(desk.submissions()) == 2


# The night


@contextmanager
def played(request: pytest.FixtureRequest, test: str, night: Night) -> Iterator[Night]:
    """Play the faults that a test was selected with, and end the night with it."""
    asked = [item.callspec.params["name"] for item in request.session.items if getattr(item, "originalname", None) == test]
    night.begin([(name, FAULTS[name]) for name in asked])
    try:
        yield night
    finally:
        night.end()


@pytest.fixture(scope="module")
def night(
    request: pytest.FixtureRequest, bench: Bench, undisturbed: Desk, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Night]:
    """On clusters without accounting, as most of the faults are played."""
    with played(
        request, "test_a_sweep_ends_as_if_nothing_had_happened", Night(bench, undisturbed, tmp_path_factory.mktemp("n"))
    ) as night:
        yield night


@pytest.fixture(scope="module")
def night_with_sacct(
    request: pytest.FixtureRequest, bench: Bench, undisturbed: Desk, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Night]:
    """On clusters with accounting."""
    directory = tmp_path_factory.mktemp("n")
    with played(request, "test_with_accounting_too", Night(bench, undisturbed, directory, accounting=True)) as night:
        yield night


@pytest.mark.parametrize("name", params(FAULTS))
def test_a_sweep_ends_as_if_nothing_had_happened(name: str, night: Night) -> None:
    for note in night.outcome(name):
        print(note)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if not fault.is_slow])
def test_with_accounting_too(name: str, night_with_sacct: Night) -> None:
    for note in night_with_sacct.outcome(name):
        print(note)
