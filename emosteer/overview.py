"""What became of a sweep's tasks, counted: what `ls` and `status` show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from emosteer.records.cell import ATTRIBUTION, BASELINE, Cell
from emosteer.records.leases import Holder, Process, holders
from emosteer.records.store import Store
from emosteer.records.sweep import DONE, FAILED, PENDING, Sweep
from emosteer.scoring.scorer import Scorer

RUNNING = "running"
STATES = (DONE, FAILED, RUNNING, PENDING)
STAGES = ("attribution", "residual norms", "vectors", "replies", "scores")
"""What tasks lack, in the order in which a worker makes it for all that it holds."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Standing:
    """One task of a sweep: a cell, control, baseline or attribution."""

    cell: Cell
    state: str
    """done, failed, running or pending."""
    holder: Holder | None = None
    """Who runs it; of a pending one whose lease it is, though that process has ended."""
    attempt: int | None = None
    """Which attempt it was or is; None where nobody has begun, or it is not known."""
    node: str | None = None
    """Where it ran or runs: as SLURM names it, else the host."""
    job: str | None = None
    """The SLURM job that ran or runs it; None outside of SLURM."""
    seconds: float | None = None
    """What it took; None where it is not done."""
    lost: int = 0
    """How many workers have ended while they held it."""
    failure: dict[str, Any] | None = None
    """Why it failed."""
    stage: str | None = None
    """Of a running one: the first of `STAGES` that the store lacks for it."""

    @property
    def model(self) -> str:
        return self.cell.model.config.name

    def as_data(self) -> dict[str, Any]:
        """Which task it is, how it stands, and where it runs or ran, as plain data."""
        where = {"attempt": self.attempt, "node": self.node, "job": self.job}
        return {"id": self.cell.id, "kind": self.cell.kind, "state": self.state, **where}

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


def overview(sweep: Sweep, gone: Collection[Process] = ()) -> Overview:
    """Look at every task of a sweep, from its manifests, the store's records and its leases.

    Args:
        sweep: which one.
        gone: processes that are known to have ended: what they hold is pending, though its lease has not expired.

    Raises:
        EmosteerError: a scorer that cannot be imported.
    """
    newest = sweep.manifests()[-1]
    scorers = sweep.scorers()
    lease_seconds = float(newest["settings"]["worker"]["lease_seconds"])
    live = {name: one for name, one in holders(sweep.store.paths.claims).items() if one.is_live(lease_seconds)}
    lost = sweep.attempts()
    standings = [_standing(sweep, task.cell, scorers, live.get(task.cell.id), lost[task.cell.id], gone) for task in sweep.tasks()]
    return Overview(standings, {key: value for key, value in newest.items() if key != "tasks"})


def _standing(
    sweep: Sweep, cell: Cell, scorers: Sequence[Scorer], holder: Holder | None, lost: int, gone: Collection[Process]
) -> Standing:
    state, record = sweep.looked_at(cell, scorers)
    if state == DONE:
        found = (record or {}).get("provenance") or {}
        return Standing(cell, DONE, None, found.get("attempt"), _place(found), found.get("job"), found.get("seconds"), lost)
    if state == FAILED:
        why = sweep.failure(cell) or {}
        return Standing(cell, FAILED, None, why.get("attempt"), _place(why), why.get("job"), None, lost, why)
    if holder is None:
        return Standing(cell, PENDING, lost=lost)
    if holder.process in gone:
        return Standing(cell, PENDING, holder, lost=lost)
    stage = _stage(sweep.store, cell, record is not None)
    return Standing(cell, RUNNING, holder, 1 + lost, holder.node or None, holder.job, None, lost, stage=stage)


def _stage(store: Store, cell: Cell, has_replies: bool) -> str:
    """What the store lacks first of a task that runs."""
    if cell.kind == ATTRIBUTION:
        return "attribution"
    if has_replies:
        return "scores"
    if cell.vector and not store.paths.residual_norms(cell.norms_id).exists():
        return "residual norms"
    if cell.vector and not store.paths.vector(cell.vector_id).exists():
        return "vectors"
    return "replies"


def _place(facts: Mapping[str, Any]) -> str | None:
    """The node, or the host; records of before there were nodes know the host alone."""
    return facts.get("node") or facts.get("host")


def counted(standings: Iterable[Standing]) -> dict[str, int]:
    """How many are done, failed, running, pending, and in `total`."""
    states = Counter(one.state for one in standings)
    return {state: states[state] for state in STATES} | {"total": states.total()}
