"""Random faults at random moments, for minutes on end: nothing is lost, and nothing is there twice.

`EMOSTEER_SOAK_SECONDS=1800 pytest -m slow tests/slurm/test_soak.py -s` for half an hour; `EMOSTEER_SOAK_SEED=...` for the faults of
an earlier one, though not at the same instants.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from desk import Desk
from dev_cluster import Cluster, ClusterError
from dev_cluster.processes import HEAD
from dev_cluster.settings import NODES
from side_by_side import Bench, cluster_of
from slurm_desk import GRID, PATIENCE_SECONDS, Holder, SlurmDesk

SECONDS = float(os.environ.get("EMOSTEER_SOAK_SECONDS", "300"))
SEED = int(os.environ.get("EMOSTEER_SOAK_SEED") or secrets.randbits(32))
CELL_SECONDS, WORKERS, LAYERS = 1.5, 4, 3
LEAST_HITS, MOST_TIMES = 20, 3

N_COEFFICIENTS = max(20, round(SECONDS / LAYERS))
COEFFICIENTS = [round(0.02 + 0.5 * i / N_COEFFICIENTS, 5) for i in range(N_COEFFICIENTS)]
SOAK = (
    *(word for word in GRID if not word.startswith("coefficient=")),
    f"coefficient={','.join(map(str, COEFFICIENTS))}",
    "prompts.limit=2",
)
"""About as many cells as there are seconds: with four workers that are never left in peace, they outlast the faults."""

ASKED = ("max_attempts=20", "partition=preemptible")
FINALISER = ("+hydra.launcher.finaliser.partition=main",)

FaultOf = Callable[[SlurmDesk, Holder], None]


def kill_9(desk: SlurmDesk, victim: Holder) -> None:
    desk.kill(victim)


def scancel(desk: SlurmDesk, victim: Holder) -> None:
    desk.cluster.run("scancel", victim.job)


def requeue(desk: SlurmDesk, victim: Holder) -> None:
    desk.cluster.run("scontrol", "requeue", victim.job)


def time_limit(desk: SlurmDesk, victim: Holder) -> None:
    desk.cluster.run("scancel", "--signal=USR2", victim.job)


def preemption(desk: SlurmDesk, victim: Holder) -> None:
    where = (f"--nodelist={victim.node}", "--exclusive", f"--output={desk.directory}/urgent")
    desk.cluster.run("sbatch", "--partition=urgent", *where, "--wrap=sleep 1")


def lost_node(desk: SlurmDesk, victim: Holder) -> None:
    desk.cluster.kill_node(victim.node)
    desk.cluster.start_node(victim.node)


def node_down(desk: SlurmDesk, victim: Holder) -> None:
    """Its worker lives on."""
    desk.cluster.kill_slurmd(victim.node)
    desk.cluster.set_node(victim.node, "down")
    time.sleep(1)
    desk.cluster.set_node(victim.node, "resume")
    desk.cluster.start_node(victim.node)


def controller_away(desk: SlurmDesk, victim: Holder) -> None:
    """Not killed: a job whose end it had not saved would run for ever by its books, until it asks the node a minute later."""
    desk.cluster.stop_controller()
    desk.kill(victim)
    time.sleep(3)
    desk.cluster.start_controller()


FAULTS: dict[FaultOf, int] = {
    kill_9: 4,
    scancel: 2,
    requeue: 3,
    time_limit: 3,
    preemption: 2,
    lost_node: 2,
    node_down: 2,
    controller_away: 2,
}
"""How often each is drawn, beside the others."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, bench: Bench) -> Desk:
    """The same cells with nobody to disturb them."""
    desk = Desk(tmp_path_factory.mktemp("soak-reference"), bench.model, bench.library)
    done = desk.run(*SOAK, "worker.cells_per_claim=32")
    assert done.code == 0, done.text
    return desk


@pytest.mark.slow
def test_after_random_faults_nothing_is_lost_or_there_twice(
    reference: Desk, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled(), cluster_of(cpus=8, gpus=3) as cluster:
        n_records = len(reference.records())
        print(f"\nsoak: seed {SEED}, {SECONDS:.0f} s, {n_records} records")
        desk = SlurmDesk(
            tmp_path, bench.model, bench.library, cluster=cluster, name="soak", environment={"PACED_SECONDS": str(CELL_SECONDS)}
        )
        desk.submit(*ASKED, workers=WORKERS, grid=SOAK, overrides=FINALISER)
        hits = disturb(desk, random.Random(SEED), n_records)
        print(f"soak: {hits.total()} faults hit a worker with a cell: {dict(hits)}")
        assert hits.total() >= LEAST_HITS * min(1.0, SECONDS / 300)
        desk.wait_until_ended(patience=PATIENCE_SECONDS + 2 * SECONDS)
        print(f"soak: {len(desk.submissions())} submissions, {len(desk.losses())} workers lost with a cell")
        desk.ends_as(reference)


def disturb(desk: SlurmDesk, chance: random.Random, n_records: int) -> Counter[str]:
    """Disturb a sweep until the time is over, or nearly all is done; how many faults of each kind hit a worker with a cell.

    A slow machine gets more time, until enough have hit.
    """
    hits: Counter[str] = Counter()
    started = time.monotonic()

    def time_is_over(now: float) -> bool:
        return now > SECONDS if hits.total() >= LEAST_HITS * min(1.0, SECONDS / 300) else now > MOST_TIMES * SECONDS

    while not time_is_over(now := time.monotonic() - started) and (done := len(desk.records())) < 0.9 * n_records:
        time.sleep(chance.uniform(1.0, 6.0))
        (fault,) = chance.choices(list(FAULTS), list(FAULTS.values()))
        # A lease may be all that is left of its holder.
        holders = [one for one in desk.holders() if Path(f"/proc/{one.pid}").exists()]
        if holders:
            victim = chance.choice(holders)
            print(f"soak: {now:6.1f} s, {done} records: {fault.__name__}, {victim.job} on {victim.node}", flush=True)
            hits[fault.__name__] += 1
            with contextlib.suppress(ClusterError):  # a job that ended meanwhile
                fault(desk, victim)
            recover(desk.cluster)
        else:
            print(f"soak: {now:6.1f} s, {done} records: nobody holds a cell", flush=True)
    return hits


def recover(cluster: Cluster) -> None:
    """Bring back what is down; jobs go on."""
    running = {(one.node, one.program) for one in cluster.processes()}
    if (HEAD, "slurmctld") not in running:
        cluster.start_controller()
    for node in NODES:
        if (node, "slurmd") not in running:
            cluster.start_node(node)
        elif cluster.node_state(node).startswith(("down", "drain")):
            cluster.set_node(node, "resume")
