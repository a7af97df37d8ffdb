"""Between Hydra's own objects and ours: jobs of composed configurations, and refusals that Hydra prints in one line."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from emosteer.errors import EmosteerError
from emosteer.launcher import Job
from emosteer.planning import typed


class Refused(CompactHydraException):
    """An error for the user, which Hydra prints without a traceback."""


@contextmanager
def refusals() -> Iterator[None]:
    """Turn EmosteerError into what Hydra prints in one line."""
    try:
        yield
    except EmosteerError as error:
        raise Refused(str(error)) from None


def job(cfg: DictConfig) -> Job:
    """A job of a composed configuration, with Hydra's part still in it; raises EmosteerError for a wrong value."""
    config = typed(cfg)
    overrides = tuple(OmegaConf.to_container(cfg.hydra.overrides.task) or ())
    task = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    hydra = OmegaConf.masked_copy(cfg, ["hydra"])
    yaml = OmegaConf.to_yaml(task)
    folder = cfg.hydra.output_subdir
    files = {"config.yaml": yaml}
    if folder is not None:
        files |= {
            f"{folder}/config.yaml": yaml,
            f"{folder}/hydra.yaml": OmegaConf.to_yaml(hydra),
            f"{folder}/overrides.yaml": OmegaConf.to_yaml(cfg.hydra.overrides.task),
        }
    return Job(config, tuple(map(str, overrides)), files)


def with_hydra(cfg: DictConfig) -> DictConfig:
    """A task function's configuration, with Hydra's part put back into it."""
    whole = copy.deepcopy(cfg)
    with open_dict(whole):
        whole.hydra = HydraConfig.get()
    return whole


def sweep_directory(cfg: DictConfig) -> Path:
    """Where the sweep of a multirun lies."""
    return Path(str(cfg.hydra.sweep.dir))
