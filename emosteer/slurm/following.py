"""What a person sees of a sweep whose workers run elsewhere: how to follow it, and how it goes, from its records, leases and workers.

SLURM is asked last and seldom: records say what is done, leases what runs. It alone knows what still waits in the queue.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from emosteer.errors import EmosteerError
from emosteer.overview import RUNNING, Overview, overview
from emosteer.records.sweep import DONE, FAILED, PENDING, Sweep
from emosteer.records.workers import WorkerState, workers
from emosteer.slurm.client import NoSlurm, SlurmAway, SlurmRefused
from emosteer.slurm.submission import FINALISER, jobs
from emosteer.slurm.submitting import Submitted

log = logging.getLogger(__name__)

LOOK_SECONDS, QUEUE_SECONDS, LINE_SECONDS = 2.0, 10.0, 30.0
SILENT_SECONDS = 60.0
"""A worker that has not written for so long is not counted as working: it beats every few seconds."""


@dataclass(frozen=True)
class View:
    """How a sweep stands at one moment."""

    overview: Overview
    workers: list[WorkerState]
    """That work now."""
    waiting: int | None
    """Workers in SLURM's queue that have not started; None where SLURM does not say."""
    live: int | None
    """Jobs in SLURM's queue that have not ended; None where SLURM does not say."""

    @property
    def is_settled(self) -> bool:
        """Whether every cell is done or failed."""
        counts = self.overview.counts
        return not counts[RUNNING] + counts[PENDING]

    @property
    def n_working(self) -> int:
        """Workers that beat, and processes outside of SLURM that hold a cell."""
        holders = {(one.holder.host, one.holder.pid) for one in self.overview.standings if one.holder and one.holder.job is None}
        return len({(worker.host, worker.pid) for worker in self.workers} | holders)

    @property
    def tokens_per_second(self) -> float:
        return sum(worker.tokens_per_second for worker in self.workers if worker.stage == "generating")

    @property
    def seconds_left(self) -> float | None:
        """At the workers' pace until now; None where none has finished a cell."""
        pace = sum(worker.published / max(worker.seen - worker.started, 1.0) for worker in self.workers)
        counts = self.overview.counts
        return (counts[RUNNING] + counts[PENDING]) / pace if pace else None


def view(sweep: Sweep, ask_slurm: bool = True) -> View:
    """Look at a sweep. SLURM that is away, or not on this machine, is no error: what it would say is None then."""
    now = time.time()
    working = [one for one in workers(sweep.paths.slurm) if one.ended is None and now - one.seen < SILENT_SECONDS]
    waiting = live = None
    if ask_slurm:
        try:
            own = [job for job in jobs(sweep).values() if not job.is_ended]
            waiting, live = sum(job.state == "PENDING" and not job.name.endswith(FINALISER) for job in own), len(own)
        except (SlurmAway, SlurmRefused, NoSlurm) as away:
            log.debug("%s", away)
    return View(overview(sweep), working, waiting, live)


def tell(sweep: Sweep, submitted: Submitted) -> None:
    """Say what was submitted, and the three commands that follow it."""
    own, options = submitted.submission, submitted.submission.slurm_options()
    name = shlex.quote(str(sweep.paths.root) if sweep.paths.root.parent.name != "outputs" else sweep.name)
    if not submitted.new_workers:
        live = submitted.live_workers
        print(f"{live} {_workers(live)} of {sweep.name} in the queue already, for the new cells too.", flush=True)
        return
    wanted = min(options.workers, own.n_unsettled or options.workers)
    fewer = submitted.new_workers < wanted and not submitted.live_workers
    asked = f" of {wanted} (SLURM takes no more)" if fewer else ""
    submitted_workers = f"{submitted.new_workers}{asked} {_workers(submitted.new_workers)}"
    print(f"Submitted {submitted_workers} as job {', '.join(own.arrays)}, and job {own.finaliser} for the results.")
    print(f"  how it goes:  emosteer-sweep watch {name}")
    print(f"  what failed:  emosteer-sweep status {name}")
    print(f"  to end it:    emosteer-sweep cancel {name}")
    print(f"Results will be in {sweep.paths.root}", flush=True)


def wait(sweep: Sweep) -> None:
    """Show how a sweep goes until every cell is settled.

    Raises:
        EmosteerError: all of its jobs have ended, and cells are left.
    """
    if (last := follow(sweep)).is_settled:
        return
    counts = last.overview.counts
    raise EmosteerError(
        f"the jobs of {sweep.name} have ended, and {counts[RUNNING] + counts[PENDING]} cells are left{_says_slurm(sweep)}; "
        f"`emosteer-sweep status {sweep.name}` tells more, and the same command goes on"
    )


def _says_slurm(sweep: Sweep) -> str:
    """What SLURM says of jobs that ended otherwise than well; nothing where it says nothing."""
    try:
        said = Counter(f"{job.state} ({job.reason})" for job in jobs(sweep).values() if job.is_ended and job.state != "COMPLETED")
    except (SlurmAway, SlurmRefused, NoSlurm):
        return ""
    return ": " + ", ".join(f"{n} {what}" for what, n in said.most_common()) if said else ""


def follow(sweep: Sweep, until: Callable[[View], bool] = lambda view: view.is_settled) -> View:
    """Show how a sweep goes until something is so, or its jobs have ended; the last view.

    On a terminal a table that is drawn anew, elsewhere a line now and then.
    """
    is_terminal = sys.stderr.isatty()
    console = Console(stderr=True)
    shown: AbstractContextManager[Live | None] = Live(console=console, auto_refresh=False) if is_terminal else nullcontext()
    told = 0.0
    with shown as screen:
        for seen in views(sweep):
            if screen is not None:
                screen.update(drawn(sweep, seen), refresh=True)
            elif time.monotonic() - told > LINE_SECONDS:
                told = time.monotonic()
                console.print(line(seen), highlight=False, soft_wrap=True)
            if until(seen):
                break
    return seen


def views(sweep: Sweep) -> Iterator[View]:
    """Look at a sweep every few seconds, until nobody works on it any more; at least once."""
    asked, gone = -QUEUE_SECONDS, 0
    live: int | None = None
    waiting: int | None = None
    while True:
        is_time = time.monotonic() - asked > QUEUE_SECONDS
        seen = view(sweep, is_time)
        if is_time:
            asked, live, waiting = time.monotonic(), seen.live, seen.waiting
            # Between a requeue and the queue a job can be nowhere: twice nothing is nothing.
            gone = gone + 1 if live == 0 else 0
        yield View(seen.overview, seen.workers, waiting, live)
        if gone > 1 and not seen.overview.counts[RUNNING]:
            return
        time.sleep(LOOK_SECONDS)


def line(seen: View) -> str:
    """A view in one line."""
    counts = seen.overview.counts
    parts = [f"{counts[state]:,} {state}" for state in (DONE, RUNNING, FAILED, PENDING) if counts[state]]
    at_work = f"{seen.n_working} {_workers(seen.n_working)} at work"
    parts.append(f"{at_work}, {seen.waiting} in the queue" if seen.waiting else at_work)
    if seen.tokens_per_second:
        parts.append(f"{seen.tokens_per_second:,.0f} tokens/s")
    if seen.seconds_left is not None and not seen.is_settled:
        parts.append(f"about {duration(seen.seconds_left)} left")
    return f"{time.strftime('%H:%M:%S')} " + "; ".join(parts)


def _workers(n: int) -> str:
    return "worker" if n == 1 else "workers"


def drawn(sweep: Sweep, seen: View) -> Group:
    """A view as a bar, and a line for each node."""
    counts = seen.overview.counts
    settled = counts[DONE] + counts[FAILED]
    head = Table.grid(padding=(0, 2))
    head.add_row(
        sweep.name, ProgressBar(total=max(counts["total"], 1), completed=settled, width=40), f"{settled:,}/{counts['total']:,}"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("node", "workers", "cells", "tokens/s", "now"):
        table.add_column(heading, justify="left" if heading in ("node", "now") else "right")
    for node, own in by_node(seen.workers).items():
        stages = ", ".join(sorted({worker.stage for worker in own}))
        rate = sum(worker.tokens_per_second for worker in own if worker.stage == "generating")
        table.add_row(node, str(len(own)), f"{sum(worker.published for worker in own):,}", f"{rate:,.0f}" if rate else "-", stages)
    return Group(head, line(seen), *([table] if seen.workers else []))


def by_node(workers: Sequence[WorkerState]) -> dict[str, list[WorkerState]]:
    """Workers by the node that they run on, in the order of the nodes' names."""
    found: dict[str, list[WorkerState]] = {}
    for worker in sorted(workers, key=lambda worker: worker.node):
        found.setdefault(worker.node, []).append(worker)
    return found


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
