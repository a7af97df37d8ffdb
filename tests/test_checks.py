"""What can be refused from a configuration's values, before a data file is read or a model is looked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from emosteer import conf
from emosteer.checks import CHOICES, SECRET, check_ids_hold_no_hydra_values, check_known_keys, check_no_secrets, check_writable
from emosteer.config import ENGINE_PATHS, QUANTIZATIONS, VECTOR_METHODS, register
from emosteer.errors import EmosteerError
from emosteer.model.source import DTYPES
from emosteer.planning import typed


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    register()
    with initialize_config_module("emosteer.conf", version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("config", list(overrides), return_hydra_config=True)


SECRETS = [
    "WANDB_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "DB_PASSWORD",
    "api_key",
    "wandb_api_key",
    "apikey",
    "hf_token",
    "auth_token",
    "password",
    "client_secret",
    "credentials",
]
NO_SECRETS = [
    "max_new_tokens",
    "stop_token",
    "pad_token_id",
    "key",
    "monkey",
    "keys",
    "seed",
    "OMP_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
]


@pytest.mark.parametrize("key", SECRETS)
@pytest.mark.parametrize("prefix", ["+hydra.job.env_set.", "+scorers.mine.", "+"])
def test_a_secret_is_refused_without_being_shown(prefix: str, key: str) -> None:
    with pytest.raises(EmosteerError, match="a secret does not belong on a command line") as refused:
        check_no_secrets(composed(f"{prefix}{key}=hunter2"))

    assert key in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("key", NO_SECRETS)
def test_other_keys_pass(key: str) -> None:
    assert not SECRET.search(key)
    check_no_secrets(composed(f"+hydra.job.env_set.{key}=1"))


def test_a_secret_of_the_environment_is_not_copied_into_hydras_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")

    with pytest.raises(EmosteerError, match=r"hydra\.job\.env_set\.WANDB_API_KEY: a secret"):
        check_no_secrets(composed("hydra.job.env_copy=[WANDB_API_KEY]"))
    check_no_secrets(composed("+hydra.job.env_set.WANDB_MODE=offline", "hydra.job.env_copy=[HOME]"))


@pytest.mark.parametrize(
    "override",
    ["seed=${hydra:job.num}", "coefficient='${ hydra:job.num}'", "pair.name=x-${hydra:job.name}", "layer=['${hydra:job.num}']",
     "+scorers.mine._target_=${hydra:job.name}", "prompts.path=${hydra:runtime.cwd}/mine.jsonl", "model.path=${hydra.runtime.cwd}"],
)  # fmt: skip
def test_hydras_values_stay_out_of_ids(override: str) -> None:
    with pytest.raises(EmosteerError, match="must not enter a cell's id"):
        typed(compose("config", [override]))


@pytest.mark.parametrize(
    "override", ["store=${hydra:runtime.cwd}/store", "tracking.tags=['${hydra:job.name}']", "name=${hydra:job.name}"]
)
def test_hydras_values_may_say_where_results_go(override: str) -> None:
    check_ids_hold_no_hydra_values(OmegaConf.to_container(compose("config", [override])))


def test_a_key_that_a_group_does_not_know_is_refused_and_ones_own_at_the_top_pass() -> None:
    with pytest.raises(EmosteerError, match=r"controls\.randm: no such key; controls has random"):
        check_known_keys({"controls": {"random": 1, "randm": 3}})
    check_known_keys({"mine": {"anything": 1}, "scorers": {"mine": {"_target_": "a.b"}}, "seed": 3})

    assert typed(compose("config", ["+mine=3", "layer=${mine}"])).layer == 3


def test_a_place_that_cannot_be_written_is_refused_and_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(EmosteerError, match=r"store=.*file/store: .*file is a file; give another place"):
        check_writable("store", file / "store")

    check_writable("store", tmp_path / "new" / "store")
    monkeypatch.chdir(tmp_path)
    check_writable("store", Path("new/store"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

    # Root may write anywhere, whatever the permissions say.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(EmosteerError, match="cannot be written to; give another place, or mend its permissions"):
        check_writable("store", tmp_path / "new" / "store")


def test_the_help_names_every_choice() -> None:
    template = yaml.safe_load((Path(conf.__file__).parent / "hydra" / "help" / "emosteer.yaml").read_text(encoding="utf-8"))[
        "template"
    ]
    told = " ".join(template.partition("Keys whose values are names")[2].split())
    choices = {**CHOICES, "engine.path": ENGINE_PATHS, "vector.method": VECTOR_METHODS, "model.dtype": DTYPES}
    for key, values in {**choices, "model.quantization": QUANTIZATIONS}.items():
        assert f"{key} {', '.join(values)}" in told
