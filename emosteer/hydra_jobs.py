"""Between Hydra's own objects and ours: jobs of composed configurations, and refusals that Hydra prints in one line."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, open_dict

from emosteer.checks import given_overrides
from emosteer.composer import Composed, files
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


def job(composed: Composed) -> Job:
    """A job of a composed configuration; raises EmosteerError for a wrong value."""
    overrides = tuple(given_overrides(composed.whole, "task"))
    output_dir = Path(str(composed.whole.hydra.runtime.output_dir))
    return Job(typed(composed.task), overrides, files(composed), output_dir)


def with_hydra(task: DictConfig) -> Composed:
    """A task function's configuration, with Hydra's part put back to it."""
    whole = copy.deepcopy(task)
    with open_dict(whole):
        whole.hydra = HydraConfig.get()
    return Composed(whole, task)


def sweep_directory(cfg: DictConfig) -> Path:
    """Where the sweep of a multirun lies."""
    return Path(str(cfg.hydra.sweep.dir))
