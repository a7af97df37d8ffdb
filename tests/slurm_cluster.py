"""A SLURM for tests: two nodes on this machine, without accounting, that all tests of a session share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
from dev_cluster import Cluster, Settings


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One for the session, in the state that the test before left it in. Its directory is short: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as directory, Cluster(directory) as up:
        yield up


@pytest.fixture
def idle_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """The same, without jobs, and with all of its nodes: before the test, and after it too, whatever it killed."""
    cluster.mend()
    try:
        yield cluster
    finally:
        cluster.mend()


@pytest.fixture(scope="session")
def accounting_cluster() -> Iterator[Cluster]:
    """Another one, with sacct, the account 'lab' and the QOS 'small'; some five seconds."""
    settings = Settings(accounting=True)
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as directory, Cluster(directory, settings) as up:
        yield up
