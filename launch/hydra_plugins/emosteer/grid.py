"""The sweeper of `emosteer -m`: Hydra's basic sweeper, which validates once per set of group choices.

The basic one composes every job's configuration to validate it, at 70 to 110 ms each, and the launcher composes it again.
Hydra imports this module outside sys.modules, so that its dataclass cannot have postponed annotations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


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

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose one job for each set of group choices: plain values are checked when the cells are planned."""
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        groups: dict[frozenset[str], Sequence[str]] = {}
        for overrides in batch:
            parsed = parser.parse_overrides(list(overrides))
            chosen = frozenset(o.input_line or "" for o in parsed if loader.get_group_options(o.key_or_group))
            groups.setdefault(chosen, overrides)
        super().validate_batch_is_legal(list(groups.values()))
