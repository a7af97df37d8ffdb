"""A site's limits on a user's jobs, which need accounting: fewer workers do the same work, and nothing is left of what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from desk import Desk
from dev_cluster import Cluster
from side_by_side import Bench
from slurm_desk import SlurmDesk

pytestmark = pytest.mark.slow
SMALL = ("account=lab", "qos=small")
"""At most 4 jobs of a user in the queue, of at most an hour."""


@pytest.fixture
def desk(accounting_cluster: Cluster, bench: Bench, tmp_path: Path) -> SlurmDesk:
    return SlurmDesk(tmp_path / "limits", bench.model, bench.library, cluster=accounting_cluster, name="limits")


def test_where_a_site_takes_no_more_jobs_fewer_workers_do_the_work(desk: SlurmDesk, undisturbed: Desk) -> None:
    done = desk.submit(*SMALL, workers=8)
    assert "Submitted 3 of 8 (SLURM takes no more) workers" in done.text
    (submission,) = desk.submissions()
    assert sum(submission["arrays"].values()) == 3
    assert submission["finaliser"], "one place is for the job that builds the results"
    desk.wait_until_ended()
    desk.ends_as(undisturbed)


def test_what_slurm_tells_only_in_its_queue_is_taken_back_whole(desk: SlurmDesk) -> None:
    done = desk.run(*desk.slurm(*SMALL, "timeout_min=120"))
    assert done.code == 1
    assert "QOSMax" in done.text
    assert desk.jobs(ended=False) == {}
    assert desk.records() == {}
