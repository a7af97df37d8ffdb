"""What became of a sweep's tasks, counted: what `ls` and `status` show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from emosteer.records.cell import BASELINE, Cell
from emosteer.records.leases import Holder, holders
from emosteer.records.sweep import DONE, FAILED, PENDING, Sweep

RUNNING = "running"
STATES = (DONE, FAILED, RUNNING, PENDING)

Key = TypeVar("Key")


@dataclass(frozen=True)
class Standing:
    """One task of a sweep: a cell, control, baseline or attribution."""

    cell: Cell
    state: str
    """done, failed, running or pending."""
    holder: Holder | None = None
    """Who runs it."""

    @property
    def model(self) -> str:
        return self.cell.model.config.name

    @property
    def pair(self) -> str | None:
        """The emotion pair; None for what pairs share: baselines, and most controls."""
        return None if self.cell.pair is None or self.cell.kind == BASELINE else self.cell.pair.name


@dataclass(frozen=True)
class Overview:
    """All tasks of a sweep, and the command that was given last."""

    standings: list[Standing]
    newest: dict[str, Any]
    """The last command's manifest, without its tasks."""

    @cached_property
    def counts(self) -> dict[str, int]:
        """Tasks by state, and `total`."""
        return counted(self.standings)

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(one.model for one in self.standings))

    @property
    def pairs(self) -> list[str]:
        return list(dict.fromkeys(one.pair for one in self.standings if one.pair))

    def by(self, key: Callable[[Standing], Key]) -> dict[Key, dict[str, int]]:
        """Counts for each value of a key, in the order in which they come."""
        groups: dict[Key, list[Standing]] = {}
        for one in self.standings:
            groups.setdefault(key(one), []).append(one)
        return {value: counted(group) for value, group in groups.items()}

    def of_state(self, state: str) -> list[Standing]:
        return [one for one in self.standings if one.state == state]


def overview(sweep: Sweep) -> Overview:
    """Look at every task of a sweep, from its manifests, the store's records and its leases.

    Raises:
        EmosteerError: a scorer that cannot be imported.
    """
    newest = sweep.manifests()[-1]
    scorers = sweep.scorers()
    lease_seconds = float(newest["settings"]["worker"]["lease_seconds"])
    live = {name: one for name, one in holders(sweep.store.paths.claims).items() if one.is_live(lease_seconds)}
    standings = []
    for task in sweep.tasks():
        state, holder = sweep.state(task.cell, scorers), live.get(task.cell.id)
        is_running = state == PENDING and holder is not None
        standings.append(Standing(task.cell, RUNNING, holder) if is_running else Standing(task.cell, state))
    return Overview(standings, {key: value for key, value in newest.items() if key != "tasks"})


def counted(standings: Iterable[Standing]) -> dict[str, int]:
    """How many are done, failed, running, pending, and in `total`."""
    states = Counter(one.state for one in standings)
    return {state: states[state] for state in STATES} | {"total": states.total()}
