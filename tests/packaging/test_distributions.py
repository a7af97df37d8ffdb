"""The wheel and the sdist: what they hold, what they say of themselves, and that a wheel works away from the repository."""

from __future__ import annotations

from email import message_from_bytes
from pathlib import Path

import pandas as pd
import pytest
from distributions import PROJECT, Distributions, bare_environment, build, build_all, copy_of_project, run, wheel_files
from packaging.metadata import Metadata
from tiny_models import bare_model, tokenizer_of

import emosteer


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return build_all(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def python(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel, and the other packages of this one."""
    return bare_environment(tmp_path_factory.mktemp("bare") / "venv", distributions.wheel)


def test_the_wheel_holds_the_package_and_the_plugin_and_nothing_else(distributions: Distributions) -> None:
    package = {file for file in distributions.files if file.startswith("emosteer/")}
    plugin = {file.removeprefix("launch/") for file in distributions.files if file.startswith("launch/hydra_plugins/")}
    info = f"emosteer-{emosteer.__version__}.dist-info"
    about = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert set(wheel_files(distributions.wheel)) == package | plugin | about
    assert {"emosteer/py.typed", "emosteer/conf/config.yaml", "hydra_plugins/emosteer/__init__.py"} < package | plugin
    assert "hydra_plugins/__init__.py" not in plugin, "hydra_plugins is shared with other packages"


def test_the_sdist_holds_the_whole_project(distributions: Distributions) -> None:
    assert set(distributions.sdist_files) == distributions.files | {"PKG-INFO"}
    wanted = {".ci/run", "Makefile", "launch/hydra_plugins/emosteer/__init__.py", "requirements-model.txt", "scripts/setup.sh"}
    assert wanted < distributions.files


def test_the_sdist_makes_the_same_wheel(distributions: Distributions) -> None:
    assert distributions.wheel_of_sdist.read_bytes() == distributions.wheel.read_bytes()


def test_a_build_is_the_same_twice(distributions: Distributions, tmp_path: Path) -> None:
    copy = copy_of_project(tmp_path / "elsewhere")
    for path in copy.rglob("*"):
        path.touch()
    assert build(copy, "wheel", tmp_path).read_bytes() == distributions.wheel.read_bytes()
    assert build(copy, "sdist", tmp_path).read_bytes() == distributions.sdist.read_bytes()


def test_metadata_is_valid_and_complete(distributions: Distributions) -> None:
    written = wheel_files(distributions.wheel)[f"emosteer-{emosteer.__version__}.dist-info/METADATA"]
    metadata = Metadata.from_email(written, validate=True)
    assert (metadata.name, str(metadata.version)) == ("emosteer", emosteer.__version__)
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (PROJECT / "README.md").read_text()
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.requires_python is not None
    assert all(metadata.requires_python.contains(version) for version in ("3.11", "3.12", "3.13"))
    assert set(metadata.provides_extra or ()) == {
        "all",
        "dashboard",
        "dev",
        "docs",
        "joblib",
        "optuna",
        "slurm",
        "submitit",
        "trackio",
        "wandb",
    }
    assert all((metadata.summary, metadata.author, metadata.keywords, metadata.classifiers, metadata.license_files))
    assert message_from_bytes(distributions.sdist_files["PKG-INFO"]).items() == message_from_bytes(written).items()


def test_an_installed_wheel_is_what_runs(python: Path, tmp_path: Path) -> None:
    where = "import emosteer, hydra_plugins.emosteer as plugin; print(emosteer.__file__); print(plugin.__file__)"
    environment = python.parents[1]
    assert all(Path(path).is_relative_to(environment) for path in run([str(python), "-I", "-c", where], tmp_path).split())


def test_an_installed_wheel_explains_itself(python: Path, tmp_path: Path) -> None:
    scripts = python.parent
    assert "layer" in run([str(python), "-I", str(scripts / "emosteer"), "--help"], tmp_path)
    assert "status" in run([str(python), "-I", str(scripts / "emosteer-sweep"), "--help"], tmp_path)
    assert "\nlayer:" in run([str(python), "-I", str(scripts / "emosteer"), "--cfg", "job"], tmp_path)
    assert not list(tmp_path.iterdir()), "asking leaves nothing"


def test_an_installed_wheel_runs_a_sweep(python: Path, tmp_path: Path) -> None:
    model = tmp_path / "a model"
    bare_model("llama", 0).save_pretrained(model)
    tokenizer_of().save_pretrained(model)
    options = ["attribution=none", "tracking=none", "prompts.limit=6", "generation.max_new_tokens=8", "statistics.n_resamples=199"]
    command = [str(python), "-I", str(python.parent / "emosteer"), "-m", "model=custom", f"model.path={model}", "model.device=cpu"]
    run([*command, *options, "layer=1,2", "name=away"], tmp_path)
    results = pd.read_csv(tmp_path / "outputs" / "away" / "results.csv")
    assert set(results[results["vector_method"] == "mean_difference"]["layer"]) == {1, 2}


def test_an_unpacked_sdist_runs_its_tests(distributions: Distributions, python: Path, tmp_path: Path) -> None:
    unpacked = distributions.unpacked_sdist(tmp_path)
    chosen = ["tests/records/test_cell.py", "tests/test_datasets.py"]
    assert " passed" in run([str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen], unpacked)
