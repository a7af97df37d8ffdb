"""A job composed here equals the job that Hydra composes from its files, whatever came before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from emosteer.composer import Composed, Composer, files
from emosteer.config import Config, register

JOBS = [
    [],
    ["layer=3"],
    ["layer=4", "coefficient=0.3"],
    ["coefficient=1e-3", "layer=[8,10]"],
    ["layer=auto"],
    ["layer=null"],
    ["name='a b, c=d'"],
    ["name=1e3", "seed=7"],
    ["name='true'"],
    ["pair=trust_disgust"],
    ["pair=trust_disgust", "pair.primary=joy"],
    ["pair.primary=joy", "pair=trust_disgust"],
    ["model=custom", "model.path=/models/mine", "layer=0.5"],
    ["experiment=demo", "layer=9"],
    ["layer=2"],
    ["+mine=3", "layer=${mine}"],
    ["layer=5"],
    ["++coefficient=0.4"],
    ["~scorers.perplexity"],
    ["scorers=kl", "~scorers.perplexity"],
    ["~controls"],
    ["layer=5", "coefficient=0.2"],
    ["scorers={nrc: {lemmatise: false}}"],
    ["+scorers.mine._target_=my.scorer", "+scorers.mine.words=[a,b]"],
    ["tracking.tags=[a,'b c']", "tracking=none"],
    ["generation=sampled", "generation.temperature=0.5", "generation.n_samples=2"],
    ["objective=beyond_random", "objective.at_most={perplexity_ratio: 1.5}"],
    ["prompts.path='${oc.env:HOME}/prompts.jsonl'"],
]
WRONG = [
    ["+experiment=demo"],
    ["scorers={mine: {_target_: my.scorer}}"],
    ["layr=3"],
    ["pair=joy"],
    ["seed=abc"],
    ["layer=[1,"],
    ["layer=1,2"],
    ["~nothing"],
    ["+seed=3"],
    ["pairs=joy_sadness"],
]


@pytest.fixture
def loader() -> Iterator[ConfigLoaderImpl]:
    register()
    setup_globals()
    with initialize_config_module("emosteer.conf", version_base="1.3"):
        found = GlobalHydra.instance().config_loader()
        assert isinstance(found, ConfigLoaderImpl)
        yield found


@pytest.fixture
def master(loader: ConfigLoaderImpl) -> DictConfig:
    """A multirun's configuration, with settings of Hydra's own that every job has."""
    given = ["hydra.sweep.subdir='${hydra.job.override_dirname}/${hydra.job.num}'", "hydra.verbose=true"]
    return loader.load_configuration("config", given, run_mode=RunMode.MULTIRUN)


def plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False)


def read_back(config: DictConfig) -> Any:
    """What is left of a configuration that OmegaConf wrote and read."""
    return plain(OmegaConf.create(OmegaConf.to_yaml(config)))


def by_hydra(loader: ConfigLoaderImpl, master: DictConfig, overrides: list[str], number: int) -> DictConfig:
    """As Hydra's own launchers do it."""
    config = loader.load_sweep_config(master, overrides)
    OmegaConf.set_struct(config, False)
    config.hydra.job.id, config.hydra.job.num = str(number), number
    return config


def assert_as_hydra_does(composed: Composed, expected: DictConfig) -> None:
    ours, theirs = plain(composed.whole), plain(expected)
    directory = ours["hydra"]["runtime"].pop("output_dir")
    theirs["hydra"]["runtime"].pop("output_dir")
    assert ours == theirs
    assert directory == str(Path(expected.hydra.sweep.dir, expected.hydra.sweep.subdir).absolute())
    assert OmegaConf.get_type(composed.task) is Config
    theirs.pop("hydra")
    assert plain(composed.task) == theirs


def test_every_job_of_a_multirun_is_as_hydra_composes_it(loader: ConfigLoaderImpl, master: DictConfig) -> None:
    composer = Composer(loader, master)

    for number, overrides in enumerate([*JOBS, *reversed(JOBS)]):
        assert_as_hydra_does(composer.compose(overrides, number), by_hydra(loader, master, overrides, number))


@pytest.mark.parametrize("overrides", WRONG, ids=" ".join)
def test_what_is_wrong_is_said_as_hydra_says_it(loader: ConfigLoaderImpl, master: DictConfig, overrides: list[str]) -> None:
    with pytest.raises(HydraException) as theirs:
        loader.load_sweep_config(master, overrides)
    with pytest.raises(HydraException) as ours:
        Composer(loader, master).compose(overrides, 0)

    assert type(ours.value) is type(theirs.value)
    assert str(ours.value) == str(theirs.value)


def test_a_wrong_job_leaves_nothing_in_the_next(loader: ConfigLoaderImpl, master: DictConfig) -> None:
    composer = Composer(loader, master)
    composer.compose(["layer=3", "seed=1"], 0)
    with pytest.raises(HydraException):
        composer.compose(["layer=4", "seed=abc"], 1)

    composed = composer.compose(["layer=5", "seed=2"], 2)

    assert_as_hydra_does(composed, by_hydra(loader, master, ["layer=5", "seed=2"], 2))


def test_a_copy_stays_as_it_is(loader: ConfigLoaderImpl, master: DictConfig) -> None:
    composer = Composer(loader, master)
    kept = composer.compose(["layer=3"], 0).copy()
    composer.compose(["layer=4"], 1)

    assert (kept.task.layer, kept.whole.layer, kept.whole.hydra.job.num) == (3, 3, 0)


def test_hydra_composes_once_for_each_set_of_choices(
    loader: ConfigLoaderImpl, master: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that time grows by some milliseconds a cell; benchmarks/composition.py measures them."""
    composer, calls = Composer(loader, master), []
    compose = loader.load_sweep_config
    monkeypatch.setattr(loader, "load_sweep_config", lambda *given: calls.append(given[1]) or compose(*given))

    for number in range(200):
        pair = ("joy_sadness", "trust_disgust")[number % 2]
        composer.compose([f"pair={pair}", f"layer={number}", f"coefficient={number / 100}"], number)

    assert calls == [["pair=joy_sadness"], ["pair=trust_disgust"]]


def test_the_files_beside_the_replies_read_as_hydras_own(loader: ConfigLoaderImpl, master: DictConfig) -> None:
    composer = Composer(loader, master)

    for number, overrides in enumerate(JOBS):
        composed = composer.compose(overrides, number)
        written = {name: plain(OmegaConf.create(text)) for name, text in files(composed).items()}

        assert set(written) == {"config.yaml", ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"}
        assert written["config.yaml"] == written[".hydra/config.yaml"] == read_back(composed.task)
        assert written[".hydra/hydra.yaml"] == read_back(OmegaConf.masked_copy(composed.whole, ["hydra"]))
        assert written[".hydra/overrides.yaml"] == overrides


def test_without_an_output_subdir_there_are_no_files_of_hydras(loader: ConfigLoaderImpl) -> None:
    master = loader.load_configuration("config", ["hydra.output_subdir=null"], run_mode=RunMode.MULTIRUN)

    assert set(files(Composer(loader, master).compose(["layer=1"], 0))) == {"config.yaml"}
