"""Installs as users make them, from the index into empty environments: each runs a cell of the real model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from distributions import Distributions, build_all, copy_of_project, full_environment, run

pytestmark = pytest.mark.slow

Source = Callable[[Distributions, Path], list[str]]
SOURCES: dict[str, Source] = {
    "wheel": lambda built, _: [f"{built.wheel}[all]"],
    "editable": lambda _, directory: ["--editable", str(copy_of_project(directory / "checkout"))],
    "sdist": lambda built, _: [str(built.sdist)],
}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return build_all(tmp_path_factory.mktemp("build"))


@pytest.mark.parametrize("source", SOURCES)
def test_an_install_runs_a_cell_of_the_real_model(source: str, distributions: Distributions, tmp_path: Path) -> None:
    python = full_environment(tmp_path / "venv", *SOURCES[source](distributions, tmp_path))
    here = tmp_path / "a directory"
    here.mkdir()
    small = ["prompts.limit=2", "generation.max_new_tokens=8", "attribution=none", "controls=none", "tracking=none"]
    emosteer = [str(python), "-I", str(python.parent / "emosteer")]
    run([*emosteer, *small], here)
    results = pd.read_csv(here / "outputs" / "default" / "results.csv")
    assert results["status"].tolist() == ["done"]
    plugins = run([*emosteer, "--info", "plugins"], here)
    assert "hydra_plugins.emosteer" in plugins
    optional = ("OptunaSweeper", "JoblibLauncher", "BaseSubmititLauncher")
    assert [name in plugins for name in optional] == [source == "wheel"] * 3, "the extras come where they are asked for"
