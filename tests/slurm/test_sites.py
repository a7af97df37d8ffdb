"""Every recipe for a site composes, asks SLURM for what it says, and names its own command."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from emosteer.config import register
from emosteer.records.paths import SlurmPaths
from emosteer.slurm.options import SlurmOptions
from emosteer.slurm.script import write_script

SITES = Path(__file__).parents[2] / "launch" / "sites"
RECIPES = sorted((SITES / "hydra" / "launcher").glob("*.yaml"))
CONF = Path(__file__).parents[2] / "emosteer" / "conf"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_asks_for_what_it_says(recipe: Path, tmp_path: Path) -> None:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        search = f"hydra.searchpath=[file://{SITES}]"
        composed = compose("config", [search, f"hydra/launcher={recipe.stem}"], return_hydra_config=True)
    launcher: dict[str, Any] = OmegaConf.to_container(composed.hydra.launcher)  # type: ignore[assignment]
    options = SlurmOptions(**{field.name: launcher[field.name] for field in fields(SlurmOptions)})
    options.check()
    for parameters in (options.for_workers(), options.for_finaliser()):
        text = write_script(SlurmPaths(tmp_path), "job", "a.module", [], parameters, options.python).read_text()
        assert f"#SBATCH --time={parameters['timeout_min']}" in text
        assert parameters["partition"] is None or f"#SBATCH --partition={parameters['partition']}" in text
        assert all(line in text for line in options.setup or [])
    assert f"hydra/launcher={recipe.stem}" in recipe.read_text(), "it carries the command that runs it"


def test_there_is_one_for_each_kind_of_site() -> None:
    kinds = ("plain", "account", "preemptible", "no_internet", "no_sacct", "large_model", "modules")
    assert {recipe.stem for recipe in RECIPES} == {f"site_{kind}" for kind in kinds}
