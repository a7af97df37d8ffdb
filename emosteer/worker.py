"""A worker: a process that holds one model on one device, and runs cells of a sweep until every one is settled."""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch

import emosteer
from emosteer.bench import Bench, Loaded
from emosteer.engine import Engine, Reply, Request, requests_for
from emosteer.errors import Damaged, EmosteerError
from emosteer.model.language_model import load
from emosteer.model.source import find
from emosteer.progress import Reporter, Silent
from emosteer.records.cell import ATTRIBUTION, BASELINE, ModelSpec
from emosteer.records.claims import Claims, Lease
from emosteer.records.store import Provenance, Resolved, StoredReply
from emosteer.records.sweep import Sweep, Task
from emosteer.resources import Resources
from emosteer.scoring.scorer import Context

log = logging.getLogger(__name__)

NO_FAULT_OF_THE_CELL = (OSError, Damaged)
"""A disk that is full or away, and texts that were edited: the worker ends and says so, and the cells stay to be run."""

VERSIONED = ("torch", "transformers", "tokenizers", "numpy", "scipy", "NRCLex", "simplemma", "vaderSentiment")


@dataclass
class _Prepared:
    """A cell whose requests are ready, and the replies that have come so far."""

    task: Task
    requests: list[Request]
    resolved: Resolved
    replies: dict[int, Reply] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return len(self.replies) == len(self.requests)


class Worker:
    """Runs a sweep's cells.

    Args:
        sweep: whose cells; others may work on it at the same time.
        report: is told of the progress.
        bench: holds the model that an earlier worker of this process has loaded, and this one's afterwards.
    """

    def __init__(self, sweep: Sweep, report: Reporter | None = None, bench: Bench | None = None) -> None:
        self.sweep, self.store = sweep, sweep.store
        self.report: Reporter = report or Silent()
        settings = sweep.settings()
        self.settings = settings
        self.scorers = sweep.scorers()
        self.claims = Claims(self.store.paths.claims, float(settings["worker"]["lease_seconds"]))
        self.leases: dict[str, Lease] = {}
        self.bench = bench or Bench()
        self._resources: Resources | None = None
        self._told = 0
        torch.set_num_threads(int(settings["engine"]["threads"] or free_cores()))

    def run(self) -> None:
        """Work until every task is settled: done, or failed for good.

        While others hold the last live leases it waits, and takes over what expires. Interrupted, it gives its leases back.
        """
        unsettled = self.sweep.unsettled(self.sweep.tasks(), self.scorers)
        try:
            with self.claims.heartbeat():
                while unsettled:
                    claimed = self._claim(unsettled)
                    if claimed:
                        self._run_claimed(claimed)
                    else:
                        self.report.stage("waiting for cells that other workers hold")
                        time.sleep(min(1.0, self.claims.lease_seconds / 4))
                    before = len(unsettled)
                    unsettled = self.sweep.unsettled(unsettled, self.scorers)
                    # Cells are told as their replies come; others settled the rest, or it needed no replies.
                    self.report.settled(max(0, before - len(unsettled) - self._told))
                    self._told = 0
        except EmosteerError:
            raise
        except OSError as error:
            where = error.filename or self.store.paths.root
            raise EmosteerError(f"{where}: {error.strerror or error}; give the same command again when that is mended") from error
        finally:
            self.claims.release_all()

    def _claim(self, unsettled: Sequence[Task]) -> list[Task]:
        """Tasks of one model, the one at hand first, up to the number that fills a batch well."""
        by_model: dict[str, list[Task]] = defaultdict(list)
        for task in unsettled:
            by_model[_model_key(task.cell.model)].append(task)
        at_hand = self.bench.loaded.key if self.bench.loaded else None
        for key in sorted(by_model, key=lambda key: key != at_hand):
            claimed: list[Task] = []
            # One look tells which are held: those are tried last, since each costs several looks, and may be dead.
            held = self.claims.taken()
            for task in sorted(by_model[key], key=lambda task: (task.cell.id in held, _order(task))):
                if len(claimed) == int(self.settings["worker"]["cells_per_claim"]):
                    break
                lease = self.claims.take(task.cell.id)
                if lease is not None:
                    self.leases[task.cell.id] = lease
                    claimed.append(task)
            # Another worker may have settled one between the look and the claim.
            still = self.sweep.unsettled(claimed, self.scorers)
            there = {task.cell.id for task in still}
            self._release([task for task in claimed if task.cell.id not in there])
            if still:
                return still
        return []

    def _release(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self.claims.release(self.leases.pop(task.cell.id))

    def _run_claimed(self, tasks: list[Task]) -> None:
        try:
            loaded = self._load(tasks[0].cell.model)
        except Exception as error:
            for task in tasks:
                self._fail(task, error)
            self._release(tasks)
            return
        for task in [t for t in tasks if t.cell.kind == ATTRIBUTION]:
            self._attribute(loaded, task)
        cells = [t for t in tasks if t.cell.kind != ATTRIBUTION]
        self._generate(loaded, [t for t in cells if not self.store.is_done(t.cell)])
        self._score(loaded, [t for t in cells if self.store.is_done(t.cell)])
        self._release(tasks)

    def _load(self, spec: ModelSpec) -> Loaded:
        if self.bench.loaded is None or self.bench.loaded.key != _model_key(spec):
            self.bench.loaded = self._resources = None  # frees the last one's memory first
            self.report.stage(f"loading {spec.config.name}")
            source = find(spec.config)
            if source.fingerprint != spec.fingerprint:
                raise EmosteerError(
                    f"{spec.config.path} is not the model that was submitted: {source.fingerprint} instead of {spec.fingerprint}"
                )
            model = load(spec.config, source)
            log.info("%s on %s, %s, %d blocks", model.name, model.device, model.dtype, model.n_blocks)
            batch_rows = self.settings["engine"]["batch_rows"]
            engine = Engine(model, int(batch_rows) if batch_rows else None)
            self.bench.loaded = Loaded(_model_key(spec), model, engine)
        return self.bench.loaded

    def _resources_of(self, loaded: Loaded) -> Resources:
        if self._resources is None or self._resources.model is not loaded.model:
            self._resources = Resources(self.store, self.claims, loaded.model)
        return self._resources

    def _attribute(self, loaded: Loaded, task: Task) -> None:
        pair = task.cell.pair.name if task.cell.pair else "pair"
        self.report.stage(f"attribution patching of {pair}")
        try:
            self._resources_of(loaded).attribution(task.cell)
        except NO_FAULT_OF_THE_CELL:
            raise
        except Exception as error:
            self._fail(task, error)

    def _generate(self, loaded: Loaded, tasks: Sequence[Task]) -> None:
        prepared = []
        if any(task.cell.vector and not self.store.paths.vector(task.cell.vector_id).exists() for task in tasks):
            self.report.stage("emotion vectors")
        for task in tasks:
            try:
                prepared.append(self._prepare(loaded, task))
            except NO_FAULT_OF_THE_CELL:
                raise
            except Exception as error:
                self._fail(task, error)
        if prepared:
            self.report.stage("generating")
            self._reply(loaded, prepared)

    def _prepare(self, loaded: Loaded, task: Task) -> _Prepared:
        cell = task.cell
        steering, resolved = self._resources_of(loaded).steering(cell)
        prompts = self.store.prompts(cell.prompts)
        requests = requests_for(loaded.model, prompts, cell.generation, cell.seed, steering, where=cell.prompts_name)
        return _Prepared(task, requests, resolved)

    def _reply(self, loaded: Loaded, prepared: Sequence[_Prepared]) -> None:
        """Generate and publish; where the batch raises, every cell runs alone, so that only the bad one fails."""
        started, generated = time.perf_counter(), 0

        def count(n: int) -> None:
            nonlocal generated
            generated += n
            self.report.tokens(n)

        done = _completed(loaded.engine, prepared, count)
        while True:
            try:
                cell = next(done, None)
            except Exception as error:
                rest = [one for one in prepared if not one.is_complete]
                if len(prepared) == 1:
                    self._fail(prepared[0].task, error)
                for one in rest if len(prepared) > 1 else ():
                    one.replies.clear()
                    self._reply(loaded, [one])
                return
            if cell is None:
                return
            share = sum(len(reply.tokens) for reply in cell.replies.values()) / max(generated, 1)
            self._publish(loaded, cell, (time.perf_counter() - started) * min(share, 1.0))

    def _publish(self, loaded: Loaded, done: _Prepared, seconds: float) -> None:
        cell = done.task.cell
        replies = [
            StoredReply(
                request.row_seed.prompt_id,
                request.row_seed.sample,
                loaded.model.dialogue.reply(done.replies[i].tokens),
                done.replies[i].tokens,
                done.replies[i].finished,
            )
            for i, request in enumerate(done.requests)
        ]
        provenance = Provenance(
            attempt=self.leases[cell.id].attempt,
            seconds=round(seconds, 3),
            host=socket.gethostname(),
            device=str(loaded.model.device),
            versions=versions(),
        )
        self.store.publish(cell, replies, done.resolved, provenance, done.task.files)
        self._told += 1
        self.report.settled(1)

    def _score(self, loaded: Loaded, tasks: Sequence[Task]) -> None:
        self.report.stage("scoring")
        for task in tasks:
            missing = self.sweep.unscored(task.cell, self.scorers)
            if not missing:
                continue
            try:
                replies = self.store.replies(task.cell)
            except Damaged:
                continue  # put aside and told: the next round runs it again
            texts = [reply.reply for reply in replies]
            for scorer in missing:
                try:
                    metrics = scorer.measure(texts, partial(self._context, loaded, task, replies))
                except Damaged:
                    raise
                except Exception as error:
                    # The other scorers go on: one that fails takes none of their columns with it.
                    self._fail(task, error)
                    continue
                self.store.publish_scores(task.cell, scorer.key, scorer.facts(), metrics)

    def _context(self, loaded: Loaded, task: Task, replies: Sequence[StoredReply]) -> Context:
        prompts = {p.id: loaded.model.dialogue.prompt(p.messages) for p in self.store.prompts(task.cell.prompts)}
        return Context(loaded.engine, [prompts[reply.prompt_id] for reply in replies], [reply.tokens for reply in replies])

    def _fail(self, task: Task, error: Exception) -> None:
        lease = self.leases.get(task.cell.id)
        log.error("%s failed: %s: %s", task.cell.id, type(error).__name__, error)
        facts = {
            "exception": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
            "attempt": lease.attempt if lease else 1,
            "host": socket.gethostname(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "overrides": list(task.overrides),
        }
        self.sweep.record_failure(task.cell, facts)


def free_cores() -> int:
    """CPU threads worth using: what OMP_NUM_THREADS says, else the cores that nobody else keeps busy right now.

    Two threads on two contended cores can be ten times slower than one.
    """
    if asked := os.environ.get("OMP_NUM_THREADS"):
        return max(1, int(asked.split(",")[0]))
    busy = sum(psutil.cpu_percent(interval=0.2, percpu=True)) / 100
    return max(1, min(torch.get_num_threads(), round((os.cpu_count() or 1) - busy)))


def versions() -> dict[str, str]:
    """The versions of what can change a result."""
    found = {"emosteer": emosteer.__version__, "python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _completed(engine: Engine, prepared: Sequence[_Prepared], on_tokens: Callable[[int], None]) -> Iterator[_Prepared]:
    """Generate all cells' rows in common batches; yield each cell when its last reply is there."""
    owners = [(cell, i) for cell in prepared for i in range(len(cell.requests))]
    requests = [request for cell in prepared for request in cell.requests]
    for index, reply in engine.generate(requests, on_tokens):
        cell, i = owners[index]
        cell.replies[i] = reply
        if cell.is_complete:
            yield cell


def _order(task: Task) -> int:
    """Attribution, which cells may wait for, and the baseline first; the others as they came."""
    return {ATTRIBUTION: 0, BASELINE: 1}.get(task.cell.kind, 2)


def _model_key(spec: ModelSpec) -> str:
    """Tells models that have to be loaded apart."""
    return repr(spec)
