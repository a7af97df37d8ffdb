"""A tiny model, a library with a scorer that can be held, and the sweep as it runs when nobody disturbs it."""

from __future__ import annotations

import pytest
from desk import Desk, save_tiny_model
from side_by_side import Bench
from slurm_cluster import accounting_cluster, cluster, idle_cluster
from slurm_desk import GRID, N_RECORDS, PACED

__all__ = ["accounting_cluster", "cluster", "idle_cluster"]


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """What every desk has: a model, and the user's own library."""
    model = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama", seed=0)
    library = tmp_path_factory.mktemp("library")
    (library / "paced.py").write_text(PACED)
    return Bench(model, library)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, bench: Bench) -> Desk:
    """The sweep in a process of this machine, with nobody to disturb it."""
    desk = Desk(tmp_path_factory.mktemp("undisturbed"), bench.model, bench.library)
    done = desk.run(*GRID)
    assert done.code == 0, done.text
    assert len(desk.records()) == N_RECORDS
    return desk
