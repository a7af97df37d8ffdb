"""A worker: a process that holds one model on one device, and runs cells of a sweep until every one is settled."""

from __future__ import annotations

import logging
import math
import os
import platform
import re
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import emosteer
from emosteer import timesheet
from emosteer.bench import Bench, Loaded
from emosteer.cores import choose_threads
from emosteer.endings import check_stopped
from emosteer.engine import Engine, Origin
from emosteer.errors import Damaged, EmosteerError, MachineFault
from emosteer.model.language_model import LanguageModel, load
from emosteer.model.source import find
from emosteer.progress import Reporter, Silent
from emosteer.records import whereabouts
from emosteer.records.cell import ATTRIBUTION, BASELINE, Cell, ModelSpec
from emosteer.records.claims import Claims, Lease
from emosteer.records.publisher import Publisher
from emosteer.records.store import Provenance, Resolved, ScoreSet, StoredReply
from emosteer.records.sweep import Sweep, Task
from emosteer.resources import Resources
from emosteer.scoring.pool import CellReplies, measure_together
from emosteer.scoring.scorer import Context, Scorer
from emosteer.timesheet import Generated, Timesheet
from emosteer.turns import Talk, context_of, hold, prompts_of, stored, talks_for

log = logging.getLogger(__name__)

NO_FAULT_OF_THE_CELL = (OSError, Damaged, MachineFault)
"""A disk that is full or away, and texts that were edited: the worker ends and says so, and the cells stay to be run."""
BROKEN_DEVICE = re.compile(r"(?:CUDA|HIP|cuDNN|CUBLAS|NCCL) error|CUBLAS_STATUS|CUDNN_STATUS|device-side assert", re.IGNORECASE)
"""After such an error nothing runs on the device any more in this process: every later cell would fail with it."""

POOL_TOKENS = 8192
"""Replies of so many tokens, in whole cells, are scored together: several batches of a model."""
SCORING_SECONDS = 5.0
"""Scores of so long are published together, which takes the time of one; of a pool's none is lost that came before."""

VERSIONED = ("torch", "transformers", "tokenizers", "numpy", "scipy", "NRCLex", "simplemma", "vaderSentiment")


@dataclass(frozen=True)
class _Unscored:
    """A cell whose replies are there, and the scorers that have not seen them."""

    task: Task
    scorers: list[Scorer]
    replies: CellReplies


@dataclass
class _Prepared:
    """A cell whose dialogues are ready, with the replies that have come so far."""

    task: Task
    talks: list[Talk]
    resolved: Resolved

    @property
    def is_complete(self) -> bool:
        return all(talk.is_over for talk in self.talks)

    def begin_again(self) -> None:
        """Forget the replies that have come so far."""
        self.talks = [talk.anew() for talk in self.talks]


class Worker:
    """Runs a sweep's cells.

    Args:
        sweep: whose cells; others may work on it at the same time.
        report: is told of the progress.
        bench: holds the model that an earlier worker of this process has loaded, and this one's afterwards.
        n_workers: that share the sweep; none takes more than its share at a time.
        sheet: where it writes what its time goes to; None for one of its own.
    """

    def __init__(
        self,
        sweep: Sweep,
        report: Reporter | None = None,
        bench: Bench | None = None,
        n_workers: int = 1,
        sheet: Timesheet | None = None,
    ) -> None:
        self.sweep, self.store = sweep, sweep.store
        self.report: Reporter = report or Silent()
        settings = sweep.settings()
        self.settings = settings
        self.scorers = sweep.scorers()
        self.claims = Claims(self.store.paths.claims, float(settings["worker"]["lease_seconds"]))
        self.leases: dict[str, Lease] = {}
        self._cells: dict[str, Cell] = {}
        """Those that this worker has held, by id."""
        self.lost: Counter[str] = Counter()
        """By cell id, how many workers have ended while they held it."""
        self.n_workers = n_workers
        self.n_published = self.n_failed = 0
        """What this worker itself has settled."""
        self.bench = bench or Bench()
        self.sheet = sheet or Timesheet()
        self._resources: Resources | None = None
        self._told = 0
        self.threads = choose_threads(settings["engine"]["threads"])
        log.info("%d CPU %s: %s", self.threads.n, "thread" if self.threads.n == 1 else "threads", self.threads.reason)
        torch.set_num_threads(self.threads.n)

    def run(self) -> None:
        """Work until every task is settled: done, or failed for good; also those that join the sweep meanwhile.

        While others hold the last live leases it waits, and takes over what expires. Interrupted, it gives its leases back.
        """
        unsettled = self._unsettled()
        try:
            with self.claims.heartbeat():
                while unsettled:
                    check_stopped()
                    claimed = self._claim(unsettled)
                    if claimed:
                        self._run_claimed(claimed)
                    else:
                        with self._stage(timesheet.WAITING, "waiting for cells that other workers hold"):
                            time.sleep(min(1.0, self.claims.lease_seconds / 4))
                    before = len(unsettled)
                    unsettled = self.sweep.unsettled(unsettled, self.scorers)
                    # Cells are told as their replies come; others settled the rest, or it needed no replies.
                    self.report.settled(max(0, before - len(unsettled) - self._told))
                    self._told = 0
                    unsettled = unsettled or self._unsettled()
                self.claims.tidy(task.cell.id for task in self.sweep.tasks())
        except EmosteerError:
            raise
        except OSError as error:
            where = error.filename or self.store.paths.root
            raise EmosteerError(f"{where}: {error.strerror or error}; give the same command again when that is mended") from error
        finally:
            self.claims.release_all()

    def give_up(self, reason: str, has_headway: bool | None = None) -> None:
        """Write down why this worker leaves with cells in its hands; only where it has made no headway.

        So a cell that takes longer than workers are given is given up at last, and one that is merely interrupted never.

        Args:
            reason: for people.
            has_headway: None for whether it has published any cell.
        """
        if not (self.n_published if has_headway is None else has_headway):
            for cell_id, lease in self.leases.items():
                self._record_loss(self._cells[cell_id], lease.token, {**whereabouts.here(), "reason": reason})

    @contextmanager
    def _stage(self, part: str, text: str) -> Iterator[None]:
        """Tell what goes on inside, and count its time."""
        self.report.stage(text)
        with self.sheet.on(part):
            yield

    def _unsettled(self) -> list[Task]:
        """What the sweep lacks now, by all commands that were given so far."""
        self.scorers = self.sweep.scorers()
        return self.sweep.unsettled(self.sweep.tasks(), self.scorers)

    def _claim(self, unsettled: Sequence[Task]) -> list[Task]:
        """Tasks of one model, the one at hand first, up to the number that fills a batch well.

        The more workers a cell has cost, the fewer run beside it, the last time none: who brings its worker down is found out.
        """
        self.lost = self.sweep.attempts()
        by_model: dict[str, list[Task]] = defaultdict(list)
        for task in unsettled:
            by_model[task.cell.model.key].append(task)
        at_hand = self.bench.loaded.key if self.bench.loaded else None
        for key in sorted(by_model, key=lambda key: key != at_hand):
            claimed: list[Task] = []
            share = math.ceil(len(unsettled) / self.n_workers)
            # One look tells which are held: those are tried last, since each costs several looks, and may be dead.
            held = self.claims.taken()
            for task in sorted(by_model[key], key=lambda task: (task.cell.id in held, self.lost[task.cell.id], _order(task))):
                if claimed and not self._fits(task, claimed, share):
                    break
                if self._take(task):
                    claimed.append(task)
            # Another worker may have settled one between the look and the claim.
            still = self.sweep.unsettled(claimed, self.scorers)
            there = {task.cell.id for task in still}
            self._release([task for task in claimed if task.cell.id not in there])
            if still:
                return still
        return []

    def _fits(self, task: Task, claimed: Sequence[Task], share: int) -> bool:
        """Whether one more task goes with those that are claimed: as many workers lost, and room for it."""
        lost = self.lost[claimed[0].cell.id]
        most = min(share, int(self.settings["worker"]["cells_per_claim"]) // 4**lost)
        return self.lost[task.cell.id] == lost and len(claimed) < most

    def _take(self, task: Task) -> bool:
        """Claim a task; not where others hold it, nor where it has cost as many workers as it may."""
        cell = task.cell
        lease = self.claims.take(cell.id)
        # Told by whoever takes the dead lease away: another worker may have been given the cell in that moment, and sees no dead one.
        if (dead := self.claims.buried.pop(cell.id, None)) is not None:
            known = {key: dead.get(key) for key in ("host", "node", "job", "pid")}
            self._record_loss(cell, str(dead.get("token")), {**known, "reason": "it was killed, or its machine was lost"})
        if lease is None:
            return False
        self.leases[cell.id], self._cells[cell.id] = lease, cell
        most = self.settings["worker"].get("max_attempts")
        if most is not None and self.lost[cell.id] >= int(most):
            log.error("%s is given up: %d workers ended while they held it", cell.id, self.lost[cell.id])
            self.n_failed += 1
            self.sweep.give_up(task)
            self._release([task])
            return False
        return True

    def _record_loss(self, cell: Cell, token: str, facts: dict[str, Any]) -> None:
        self.lost[cell.id] += 1
        self.sweep.record_loss(cell, token, {**facts, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})

    def _release(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self.claims.release(self.leases.pop(task.cell.id))

    def _run_claimed(self, tasks: list[Task]) -> None:
        try:
            loaded = self._load(tasks[0].cell.model)
        except Exception as error:
            if self.n_workers > 1:
                # On this machine; one that cannot load it must not settle for all what others can run.
                raise MachineFault(f"{whereabouts.node()} cannot load {tasks[0].cell.model.config.name}: {error}") from error
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
        if self.bench.loaded is None or self.bench.loaded.key != spec.key:
            self.bench.loaded = self._resources = None  # frees the last one's memory first
            with self._stage(timesheet.LOADING, f"loading {spec.config.name}"):
                self.bench.loaded = self._loaded(spec)
        self.sheet.follow(self.bench.loaded.engine.account)
        return self.bench.loaded

    def _loaded(self, spec: ModelSpec) -> Loaded:
        source = find(spec.config)
        if source.fingerprint != spec.fingerprint:
            raise EmosteerError(
                f"{spec.config.path} is not the model that was submitted: {source.fingerprint} instead of {spec.fingerprint}"
            )
        model = load(spec.config, source)
        if model.device.type == "cpu" and os.environ.get("CUDA_VISIBLE_DEVICES"):
            log.warning("there is a GPU for this process, and torch runs on the CPU: is it a build for CUDA, and model.device auto?")
        log.info("%s on %s, %s, %d blocks", model.name, model.device, model.dtype, model.n_blocks)
        return Loaded(spec.key, model, self._new_engine(model))

    def _new_engine(self, model: LanguageModel) -> Engine:
        settings = self.settings["engine"]
        batch_rows = settings["batch_rows"]
        # Sweeps of before have no path.
        return Engine(model, int(batch_rows) if batch_rows else None, settings.get("path"))

    def _resources_of(self, loaded: Loaded) -> Resources:
        if self._resources is None or self._resources.model is not loaded.model:
            vectors = [task.cell for task in self.sweep.tasks() if task.cell.vector and task.cell.model.key == loaded.key]
            sites = [cell.site for cell in vectors]
            self._resources = Resources(
                self.store, self.claims, loaded.model, sites, self.report.stage, self._new_engine, loaded.engine
            )
        return self._resources

    def _attribute(self, loaded: Loaded, task: Task) -> None:
        pair = task.cell.pair.name if task.cell.pair else "pair"
        try:
            with self._stage(timesheet.ATTRIBUTION, f"attribution patching of {pair}"):
                self._resources_of(loaded).attribution(task.cell)
        except NO_FAULT_OF_THE_CELL:
            raise
        except Exception as error:
            self._fail(task, error)

    def _generate(self, loaded: Loaded, tasks: Sequence[Task]) -> None:
        prepared = []
        if any(task.cell.vector and not self.store.paths.vector(task.cell.vector_id).exists() for task in tasks):
            self.report.stage("emotion vectors")
        with self.sheet.on(timesheet.VECTORS):
            for task in tasks:
                try:
                    prepared.append(self._prepare(loaded, task))
                except NO_FAULT_OF_THE_CELL:
                    raise
                except Exception as error:
                    self._fail(task, error)
        if prepared:
            with self._stage(timesheet.DECODE, "generating"), Publisher() as publisher:
                self._reply(loaded, prepared, publisher)
                with self.sheet.on(timesheet.WRITING):
                    publisher.finish()

    def _prepare(self, loaded: Loaded, task: Task) -> _Prepared:
        cell = task.cell
        resources = self._resources_of(loaded)
        if cell.strength is not None:
            resources.vector(cell.owner())
            # What it generates counts as generated.
            with self.sheet.on(timesheet.DECODE):
                resources.strength(cell)
        steering, resolved = resources.steering(cell)
        prompts = self.store.prompts(cell.prompts)
        talks = talks_for(loaded.model, prompts, cell.generation, cell.seed, steering, cell.prompts_name, cell.instruction)
        return _Prepared(task, talks, resolved)

    def _reply(self, loaded: Loaded, prepared: Sequence[_Prepared], publisher: Publisher) -> None:
        """Generate and publish; where the batch raises, every cell runs alone, so that only the bad one fails."""
        started, generated, last = time.perf_counter(), 0, Generated.by(loaded.engine.account)

        def count(n: int) -> None:
            nonlocal generated, last
            check_stopped()
            now = Generated.by(loaded.engine.account)
            self.report.tokens(n, (now - last).rows)
            generated, last = generated + n, now

        done = _completed(loaded.engine, prepared, count)
        while True:
            try:
                cell = next(done, None)
            except Exception as error:
                rest = [one for one in prepared if not one.is_complete]
                if len(prepared) == 1:
                    self._fail(prepared[0].task, error)
                for one in rest if len(prepared) > 1 else ():
                    one.begin_again()
                    self._reply(loaded, [one], publisher)
                return
            if cell is None:
                return
            share = sum(talk.n_tokens for talk in cell.talks) / max(generated, 1)
            self._publish(loaded, cell, (time.perf_counter() - started) * min(share, 1.0), publisher)

    def _publish(self, loaded: Loaded, done: _Prepared, seconds: float, publisher: Publisher) -> None:
        cell = done.task.cell
        replies = stored(done.talks)
        provenance = Provenance(
            attempt=max(self.leases[cell.id].attempt, 1 + self.lost[cell.id]),
            seconds=round(seconds, 3),
            **whereabouts.here(),
            device=str(loaded.model.device),
            versions=versions(),
            threads=self.threads.n,
            tokens_per_second=round(self.sheet.tokens_per_second, 1),
            **self.sheet.facts(),
        )
        with self.sheet.on(timesheet.WRITING):
            write = partial(self.store.publish, cell, replies, done.resolved, provenance, done.task.files)
            publisher.hand_over(write, then=self._count_published)

    def _count_published(self) -> None:
        self._told += 1
        self.n_published += 1
        self.report.settled(1)

    def _score(self, loaded: Loaded, tasks: Sequence[Task]) -> None:
        with self._stage(timesheet.SCORING, "scoring"):
            scores: list[ScoreSet] = []
            started = time.monotonic()
            for one in self._scores(loaded, tasks):
                scores.append(one)
                if time.monotonic() - started > SCORING_SECONDS:
                    self._publish_scores(scores)
                    scores, started = [], time.monotonic()
            self._publish_scores(scores)

    def _publish_scores(self, scores: Sequence[ScoreSet]) -> None:
        with self.sheet.on(timesheet.WRITING):
            self.store.publish_all_scores(scores)

    def _scores(self, loaded: Loaded, tasks: Sequence[Task]) -> Iterator[ScoreSet]:
        """What the scorers say of cells that they have not seen yet."""
        for pool in self._pools(loaded, tasks):
            wanted = [scorer for scorer in self.scorers if any(scorer in one.scorers for one in pool)]
            # First those that read steered replies: what they learn of the unsteered model, others need not ask again.
            for scorer in sorted(wanted, key=lambda scorer: not scorer.needs_origins):
                own = [one for one in pool if scorer in one.scorers]
                for one, found in zip(own, measure_together(scorer, [one.replies for one in own]), strict=True):
                    check_stopped()
                    if isinstance(found, Exception):
                        # The other scorers go on: one that fails takes none of their columns with it.
                        self._fail(one.task, found)
                    else:
                        scores = ScoreSet(one.task.cell, scorer.key, scorer.facts(), found)
                        for reason, numbers in scores.not_computed.items():
                            told = (scorer.name, one.task.cell.id, len(numbers), reason)
                            log.warning("scorer %s of %s: %d replies not computed: %s", *told)
                        yield scores

    def _pools(self, loaded: Loaded, tasks: Sequence[Task]) -> Iterator[list[_Unscored]]:
        """Cells that lack scores, so many together as a pool has room for."""
        pool: list[_Unscored] = []
        n_tokens = 0
        for task in tasks:
            missing = self.sweep.unscored(task.cell, self.scorers)
            try:
                replies = self.store.replies(task.cell) if missing else []
            except Damaged:
                continue  # put aside and told: the next round runs it again
            if missing:
                texts = [reply.reply for reply in replies]
                context, origins = partial(self._context, loaded, task, replies), partial(self._origins, loaded, task, replies)
                pool.append(_Unscored(task, missing, CellReplies(texts, context, origins)))
                n_tokens += sum(len(reply.tokens) for reply in replies)
            if n_tokens >= POOL_TOKENS:
                yield pool
                pool, n_tokens = [], 0
        if pool:
            yield pool

    def _context(self, loaded: Loaded, task: Task, replies: Sequence[StoredReply]) -> Context:
        return context_of(loaded.engine, self.store.prompts(task.cell.prompts), replies, self.store.answers)

    def _origins(self, loaded: Loaded, task: Task, replies: Sequence[StoredReply]) -> list[Origin]:
        cell = task.cell
        steering, _ = self._resources_of(loaded).steering(cell)
        prompts = prompts_of(loaded.model.dialogue, self.store.prompts(cell.prompts), replies, cell.instruction)
        return [Origin(prompt, steering) for prompt in prompts]

    def _fail(self, task: Task, error: Exception) -> None:
        check_stopped()  # it may be no fault of the cell
        if isinstance(error, RuntimeError) and BROKEN_DEVICE.search(str(error)):
            raise MachineFault(f"the device of {whereabouts.node()} does not work any more: {error}") from error
        lease = self.leases.get(task.cell.id)
        self.n_failed += 1
        log.error("%s failed: %s: %s", task.cell.id, type(error).__name__, error)
        facts = {
            "exception": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
            "attempt": max(lease.attempt if lease else 1, 1 + self.lost[task.cell.id]),
            **whereabouts.here(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "overrides": list(task.overrides),
        }
        self.sweep.record_failure(task.cell, facts)


@cache
def versions() -> dict[str, str]:
    """The versions of what can change a result; looked up once, as they are read from files."""
    found = {"emosteer": emosteer.__version__, "python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _completed(engine: Engine, prepared: Sequence[_Prepared], on_tokens: Callable[[int], None]) -> Iterator[_Prepared]:
    """Hold all cells' dialogues in common batches; yield each cell when its last reply is there."""
    owners = [cell for cell in prepared for _ in cell.talks]
    for index in hold(engine, [talk for cell in prepared for talk in cell.talks], on_tokens):
        if owners[index].is_complete:
            yield owners[index]


def _order(task: Task) -> int:
    """Attribution, which cells may wait for, and the baseline first; the others as they came."""
    return {ATTRIBUTION: 0, BASELINE: 1}.get(task.cell.kind, 2)
