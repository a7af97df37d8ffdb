"""From Hydra's jobs to a sweep: what our launcher, the task function and the commands do with composed configurations.

Nothing here imports torch before there is a cell to run.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import emosteer
from emosteer.bench import Bench
from emosteer.checks import SECRET, check_writable
from emosteer.config import Config
from emosteer.cores import prepare_openmp
from emosteer.errors import EmosteerError
from emosteer.planning import plan
from emosteer.progress import reporting
from emosteer.records.cell import CELL, PROMPTING, Cell
from emosteer.records.publish import publish_link
from emosteer.records.store import Store
from emosteer.records.sweep import DONE, Command, Sweep, Task
from emosteer.scoring.scorer import find_scorers
from emosteer.timesheet import IMPORTING, Timesheet

log = logging.getLogger(__name__)

MOST_CELLS = 10_000


@dataclass(frozen=True)
class Job:
    """One of Hydra's jobs: a composed configuration, and the files about it that are kept beside the replies."""

    config: Config
    overrides: tuple[str, ...]
    files: dict[str, str]
    output_dir: Path
    """Where Hydra puts a job's own files, under the directory of the call: `hydra.sweep.dir` and `hydra.sweep.subdir`."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job's cell."""

    cell: Cell
    error: str | None
    """Why it failed; None where it is done."""


def open_sweep(store: str, directory: Path) -> Sweep:
    """The sweep in a directory, over a store."""
    return Sweep(directory.absolute(), Store(Path(store).expanduser().absolute()))


def check_device(device: str) -> None:
    """Raise EmosteerError where a model is to run here on a device that this machine has not. Only a name asks torch."""
    if device in ("auto", "all", "cpu"):
        return
    from emosteer.model.language_model import choose_device

    choose_device(device)


def submit(jobs: Sequence[Job], sweep: Sweep) -> list[Cell]:
    """Turn jobs into cells and join them to a sweep; the cell of each job, in order.

    Raises:
        EmosteerError: a value that cannot be used, a probe, or more cells than a sweep can have. Nothing is written then.
    """
    check_number_of_cells(len(jobs))
    if any(job.config.probe for job in jobs):
        raise EmosteerError("probe=true checks one model, and runs no cell: give it without -m")
    plans = [plan(job.config) for job in jobs]
    check_writable("store", sweep.store.paths.root)
    tasks: dict[str, Task] = {}
    texts: dict[str, Sequence[Any]] = {}
    for job, planned in zip(jobs, plans, strict=True):
        texts |= planned.texts
        for cell in planned.cells:
            is_cell = cell.kind == CELL
            tasks.setdefault(cell.id, Task(cell, job.overrides if is_cell else (), job.files if is_cell else {}))
    _warn_of_instructions(sweep, [task.cell for task in tasks.values()])
    for items in texts.values():
        sweep.store.keep_texts(items)
    config = jobs[-1].config
    sweep.add(Command(_command_line(), _settings(config), _provenance(), list(tasks.values())))
    _apply_mode(config.mode, sweep, [task.cell for task in tasks.values()])
    return [planned.cells[0] for planned in plans]


def _warn_of_instructions(sweep: Sweep, cells: Sequence[Cell]) -> None:
    """Say that cells cannot be compared with their own instruction where a sweep gets a further one for the same pair.

    A cell is the same under whatever instruction it is compared with, and cannot know one.
    """
    asked = {cell.id: cell for cell in cells if cell.kind == PROMPTING}
    if not asked:
        return
    before = {task.cell.id: task.cell for task in sweep.tasks() if task.cell.kind == PROMPTING}
    instructions: dict[tuple[str, str], set[str]] = {}
    for cell in {**before, **asked}.values():
        instructions.setdefault(_asked_of(cell), set()).add(cell.instruction)
    added = {_asked_of(cell) for key, cell in asked.items() if key not in before}
    several = {pair: len(instructions[pair, baseline]) for pair, baseline in sorted(added) if len(instructions[pair, baseline]) > 1}
    if several:
        told = ", ".join(f"{n} for {pair}" for pair, n in several.items())
        log.warning(
            "controls.instruction: the sweep has several (%s), and cells are compared with the mean over them (m_beyond_prompting). "
            "Each has its own row in the results; to compare with one alone, give each its own sweep (name=...)",
            told,
        )


def _asked_of(cell: Cell) -> tuple[str, str]:
    return cell.pair.name if cell.pair else "", cell.baseline_id


def check_number_of_cells(number: float) -> None:
    """Raise EmosteerError for more cells than a sweep can have."""
    if number > MOST_CELLS:
        raise EmosteerError(f"{number:,.0f} cells: a sweep has at most {MOST_CELLS:,}; split it under several names")


def link_jobs(jobs: Sequence[Job], cells: Sequence[Cell], sweep: Sweep) -> None:
    """Make each job's output directory a link to its cell in the store, where Hydra's files will be."""
    for job, cell in zip(jobs, cells, strict=True):
        link, target = job.output_dir, sweep.store.cell_paths(cell).directory
        link.parent.mkdir(parents=True, exist_ok=True)
        # Relative, so that a tree which is moved keeps them.
        publish_link(link, os.path.relpath(target, link.parent))


def unlink_jobs(sweep: Sweep) -> None:
    """Take away the links that an earlier command left, before a launcher of Hydra's own writes jobs' files into their directories.

    Through a link of the same number they would go into the store, to a cell of other values.
    """
    for path in sweep.paths.root.rglob("*"):
        if path.is_symlink() and path.resolve().is_relative_to(sweep.store.paths.root.resolve()):
            path.unlink()


def work(sweep: Sweep, bench: Bench | None = None) -> None:
    """Run what a sweep lacks, in this process.

    Args:
        sweep: whose cells.
        bench: a model that an earlier call left there is used again.
    """
    scorers = sweep.scorers()
    tasks = sweep.tasks()
    unsettled = sweep.unsettled(tasks, scorers)
    if not unsettled:
        log.info("Nothing to run: all %d cells of %s are there (controls and baselines counted).", len(tasks), sweep.name)
        return
    if len(unsettled) < len(tasks):
        log.info("%d of %d cells are there already.", len(tasks) - len(unsettled), len(tasks))
    with logging_to(sweep), reporting(len(tasks), len(tasks) - len(unsettled)) as report:
        sheet = Timesheet()
        report.stage("loading torch")
        with sheet.on(IMPORTING):
            prepare_openmp()
            from emosteer.worker import Worker
        Worker(sweep, report, bench, sheet=sheet).run()
        log.info("took: %s", sheet)


def outcomes(sweep: Sweep, cells: Sequence[Cell]) -> list[Outcome]:
    """What became of cells."""
    scorers = sweep.scorers()
    return [Outcome(cell, None if sweep.state(cell, scorers) == DONE else _why(sweep, cell)) for cell in cells]


def failed_tasks(sweep: Sweep) -> list[Cell]:
    """Every task of a sweep that failed for good: cells, controls, baselines, attributions."""
    scorers = sweep.scorers()
    return [task.cell for task in sweep.tasks() if sweep.state(task.cell, scorers) != DONE]


def _why(sweep: Sweep, cell: Cell) -> str:
    failure = sweep.failure(cell)
    return f"{failure['exception']}: {failure['message']}" if failure else "it was not run"


def _apply_mode(mode: str, sweep: Sweep, cells: Sequence[Cell]) -> None:
    if mode == "reuse":
        return
    for cell in cells:
        sweep.forget_failure(cell)
        if mode == "force":
            sweep.store.discard(cell)


def _settings(config: Config) -> dict[str, Any]:
    scorers = find_scorers(config.scorers)
    return {
        "scorers": {scorer.name: {"_target_": scorer.target, **scorer.options} for scorer in scorers},
        "scorer_versions": {scorer.name: scorer.version for scorer in scorers},
        "statistics": asdict(config.statistics),
        "tracking": asdict(config.tracking),
        "engine": asdict(config.engine),
        "worker": asdict(config.worker),
    }


def _command_line() -> list[str]:
    """As typed, with values of keys that look like secrets left out."""
    shown = []
    for argument in [Path(sys.argv[0]).name, *sys.argv[1:]]:
        key, equals, _ = argument.partition("=")
        shown.append(f"{key}=***" if equals and SECRET.search(key.rpartition(".")[2]) else argument)
    return shown


def _provenance() -> dict[str, Any]:
    checkout = Path(emosteer.__file__).parent.parent
    return {
        "emosteer": emosteer.__version__,
        "python": sys.version.split()[0],
        "host": socket.gethostname(),
        "directory": str(Path.cwd()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "git": _git(checkout, "rev-parse", "HEAD") if (checkout / ".git").exists() else None,
        "git_dirty": bool(_git(checkout, "status", "--porcelain")) if (checkout / ".git").exists() else None,
    }


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10, check=True)  # noqa: S603, S607
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@contextmanager
def logging_to(sweep: Sweep) -> Iterator[None]:
    """One log file per worker, under the sweep's logs/."""
    sweep.paths.logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(sweep.paths.logs / f"{socket.gethostname()}-{os.getpid()}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
