"""The sweeper of `emosteer -m`: Hydra's basic one, which composes as much as it must, and gives up nothing for one failed cell.

The basic one composes every job's configuration to validate it, at 70 to 110 ms each, and the launcher composes it again.
Hydra imports this module outside sys.modules, so that its dataclass cannot have postponed annotations.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

MULTIRUN = "multirun.yaml"


@dataclass
class GridSweeperConf:
    """`hydra/sweeper=grid`, the default: the Cartesian product of all lists."""

    _target_: str = "hydra_plugins.emosteer.grid.GridSweeper"
    max_batch_size: int | None = None
    """Jobs that are handed to the launcher at once; null for all."""
    params: dict[str, str] = field(default_factory=dict)
    """Axes, as on the command line: `layer: 8,12,16`."""


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="emosteer")


class GridSweeper(BasicSweeper):
    """The Cartesian product of the axes."""

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run every combination; what each job returned, by batch.

        A sweep that is refused before its first cell leaves no directory behind. When a job failed, the others go on, and the first
        failure is raised when the results are built.
        """
        from emosteer.hydra_jobs import Refused, refusals

        assert self.config is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        axes = parser.parse_overrides([*self._parse_config(), *arguments])
        with refusals():
            _check_product(axes, self.max_batch_size)
        self.overrides = self.split_arguments(axes, self.max_batch_size)
        with _directory_of(self.config):
            returns = self._launch_batches()
        failed = [returned for batch in returns for returned in batch if returned.status != JobStatus.COMPLETED]
        if failed:
            # Hydra leaves it out when a job failed.
            self.hydra_context.callbacks.on_multirun_end(config=self.config, config_name=self.config.hydra.job.config_name)
            error = failed[0]._return_value
            if isinstance(error, Refused):
                raise error  # in one line: `return_value` would print all overrides with it
            _ = failed[0].return_value  # raises
        return returns

    def _launch_batches(self) -> list[Sequence[JobReturn]]:
        assert self.launcher is not None
        returns: list[Sequence[JobReturn]] = []
        first = 0
        while not self.is_done():
            batch = self.get_job_batch()
            self.validate_batch_is_legal(batch)
            returns.append(self.launcher.launch(batch, initial_job_idx=first))
            first += len(batch)
        return returns

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose one job for each set of group choices: plain values are checked when the cells are planned."""
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        groups: dict[tuple[str, ...], Sequence[str]] = {}
        is_group: dict[str, bool] = {}
        for overrides in batch:
            for line in overrides:
                key = line.partition("=")[0]
                if key not in is_group:
                    is_group[key] = bool(loader.get_group_options(key.lstrip("+~").partition("@")[0]))
            groups.setdefault(tuple(line for line in overrides if is_group[line.partition("=")[0]]), overrides)
        super().validate_batch_is_legal(list(groups.values()))


def _check_product(axes: Sequence[Override], batch_size: int | None) -> None:
    """Refuse too many or no cells, and batches of none, before the product is made, which may not fit into memory."""
    from emosteer.errors import EmosteerError
    from emosteer.launcher import check_number_of_cells

    if batch_size is not None and batch_size < 1:
        raise EmosteerError(f"hydra.sweeper.max_batch_size={batch_size}: give a whole number of at least 1, or null for one batch")
    # Of several overrides of one key the last holds.
    numbers = {}
    for axis in axes:
        numbers[axis.get_key_element()] = number = _number_of_values(axis)
        if number == 0:
            raise EmosteerError(f"{axis.input_line}: no value matches, there is nothing to run; give at least one")
    check_number_of_cells(math.prod(numbers.values()))


def _number_of_values(axis: Override) -> float:
    if not axis.is_discrete_sweep():
        return 1
    value = axis.value()
    if not isinstance(value, RangeSweep):
        return sum(1 for _ in axis.sweep_iterator())
    start, stop, step = (float(bound or 0) for bound in (value.start, value.stop, value.step))
    if step == 0 or not math.isfinite((stop - start) / step):
        from emosteer.errors import EmosteerError

        raise EmosteerError(f"{axis.input_line}: give a range of finite numbers with a step other than 0")
    return max(0.0, math.ceil((stop - start) / step))


@contextmanager
def _directory_of(config: DictConfig) -> Iterator[None]:
    """The sweep's directory with Hydra's record of the multirun; gone again if nothing else came into it."""
    directory = Path(config.hydra.sweep.dir)
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, directory / MULTIRUN)
    try:
        yield
    finally:
        if made and [path.name for path in directory.iterdir()] == [MULTIRUN]:
            (directory / MULTIRUN).unlink()
            for path in made:
                if not any(path.iterdir()):
                    path.rmdir()
