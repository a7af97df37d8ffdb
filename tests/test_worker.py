"""Whose fault it is when a worker cannot go on, and how it shares a sweep: with a tiny model, in this process."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from judge_server import KEY, completion, rated, serving, well
from tiny_classifier import save_classifier
from tiny_models import bare_model, tokenizer_of

from emosteer import worker as workers
from emosteer.config import register
from emosteer.endings import Stopped, check_stopped, stopped_by_signals
from emosteer.engine import Engine, Origin, Reply, Request
from emosteer.engine.likelihood import mean_divergences
from emosteer.errors import EmosteerError, MachineFault
from emosteer.launcher import Job, open_sweep, submit
from emosteer.model.language_model import load
from emosteer.planning import typed
from emosteer.progress import Silent
from emosteer.records.cell import BASELINE, CELL, PROMPTING
from emosteer.records.claims import Claims
from emosteer.records.sweep import Sweep
from emosteer.resources import Resources
from emosteer.scoring import endpoint
from emosteer.scoring.text import split_words
from emosteer.steering import steering_along
from emosteer.tables import build
from emosteer.timesheet import PARTS
from emosteer.vector_file import load_vector
from emosteer.worker import Worker

SMALL = (
    "model=custom",
    "model.device=cpu",
    "attribution=none",
    "tracking=none",
    "controls=none",
    "prompts.limit=2",
    "generation.max_new_tokens=2",
    "engine.threads=1",
    "layer=1",
    "worker.max_attempts=3",
)
COEFFICIENTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    bare_model("llama", 0).save_pretrained(directory)
    tokenizer_of().save_pretrained(directory)
    return directory


def submitted(directory: Path, model: Path, *more: str, coefficients: Sequence[float | str] = COEFFICIENTS) -> Sweep:
    """Seven cells and their baseline, submitted and not run."""
    register()
    found = open_sweep(str(directory / "store"), directory / "sweep")
    with initialize_config_module("emosteer.conf", version_base="1.3"):
        overrides = (*SMALL, f"model.path={model}", *more)
        config = compose("config", list(overrides))
    jobs = []
    for coefficient in coefficients:
        config.coefficient = coefficient
        jobs.append(Job(typed(config), (*overrides, f"coefficient={coefficient}"), {}, directory))
    submit(jobs, found)
    return found


def test_a_second_instruction_for_a_pair_is_warned_of(tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    def warnings(*more: str) -> list[str]:
        caplog.clear()
        submitted(tmp_path, model, "controls.prompting=true", *more, coefficients=(0.1, 0.2))
        return [record.getMessage() for record in caplog.records if "controls.instruction" in record.getMessage()]

    assert warnings() == []
    assert warnings("seed=3", "controls.instruction=Be glad.") == [], "of another baseline"
    assert warnings("pair=trust_disgust", "controls.instruction=Trust.") == [], "of another pair"
    (line,) = warnings("controls.instruction=Be glad.")
    assert "the sweep has several (2 for joy_sadness)" in line
    assert "compared with the mean over them" in line
    assert warnings("controls.instruction=Be glad.") == [], "it is there already"
    assert "(3 for joy_sadness)" in warnings("controls.instruction=Smile.")[0]


@pytest.fixture
def sweep(tmp_path: Path, model: Path) -> Sweep:
    """Seven cells and their baseline, submitted and not run."""
    return submitted(tmp_path, model)


def left(sweep: Sweep) -> int:
    return len(sweep.unsettled(sweep.tasks(), sweep.scorers()))


def claimed(worker: Worker) -> list[str]:
    return [task.cell.id for task in worker._claim(worker._unsettled())]


def lose(sweep: Sweep, cell_id: str, times: int) -> None:
    """As if so many workers had been killed while they held a cell."""
    cell = next(task.cell for task in sweep.tasks() if task.cell.id == cell_id)
    for number in range(times):
        sweep.record_loss(cell, f"token{number}", {"host": "far", "node": "n9", "job": f"7_{number}", "reason": "it was killed"})


def test_a_broken_device_settles_no_cell(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(*_: Any) -> Iterator[Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
        yield

    monkeypatch.setattr(Engine, "generate", generate)
    worker = Worker(sweep, n_workers=2)
    with pytest.raises(MachineFault, match="does not work any more: CUDA error"):
        worker.run()
    assert left(sweep) == len(COEFFICIENTS) + 1
    assert list(sweep.store.paths.claims.glob("[!.]*")) == [], "others take its cells at once"


def test_a_model_that_one_machine_cannot_load_is_left_to_others(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> Any:
        raise EmosteerError("model.path=/scratch/model does not exist")

    monkeypatch.setattr(workers, "load", load)
    with pytest.raises(MachineFault, match=r"cannot load .*: model.path=/scratch/model"):
        Worker(sweep, n_workers=2).run()
    assert left(sweep) == len(COEFFICIENTS) + 1
    # Alone there is nobody to leave it to: the user is told of each cell.
    Worker(sweep).run()
    assert left(sweep) == 0
    assert {json.loads(path.read_text())["exception"] for path in sweep.paths.failures.iterdir()} == {"EmosteerError"}


def test_who_leaves_without_headway_counts_against_its_cells(sweep: Sweep) -> None:
    worker = Worker(sweep, n_workers=2)
    held = claimed(worker)
    worker.give_up("its time ended")
    assert set(sweep.attempts()) == set(held)
    assert set(sweep.attempts().values()) == {1}

    worker.n_published = 1
    worker.give_up("its time ended")
    assert set(sweep.attempts().values()) == {1}, "who has made headway was merely interrupted"


def test_none_takes_more_than_its_share(sweep: Sweep) -> None:
    one, other = Worker(sweep, n_workers=2), Worker(sweep, n_workers=2)
    first, second = claimed(one), claimed(other)
    assert len(first) == 4
    assert len(second) == 4
    assert not set(first) & set(second)


def test_the_more_workers_a_cell_has_cost_the_fewer_run_beside_it(sweep: Sweep) -> None:
    ids = [task.cell.id for task in sweep.tasks()]
    for cell_id in ids[:3]:
        lose(sweep, cell_id, 1)
    lose(sweep, ids[3], 2)
    worker = Worker(sweep)
    worker.settings["worker"]["cells_per_claim"] = 8
    batches = []
    while batch := claimed(worker):
        batches.append(batch)
    # A quarter of the cells for each worker that was lost, and at last alone.
    assert [len(batch) for batch in batches] == [4, 2, 1, 1]
    assert all(len({sweep.attempts()[cell_id] for cell_id in batch}) == 1 for batch in batches)
    assert [ids[3]] in batches


def test_a_cell_that_has_cost_too_many_workers_is_given_up(sweep: Sweep) -> None:
    doomed = sweep.tasks()[0].cell
    lose(sweep, doomed.id, 3)
    worker = Worker(sweep)
    worker.run()
    failure = sweep.failure(doomed)
    assert failure is not None
    assert failure["exception"] == "WorkerLost"
    assert "3 workers ended while they held it, the last one in job 7_2 on n9: it was killed" in failure["message"]
    assert worker.n_failed == 1
    assert worker.n_published == len(COEFFICIENTS)
    assert left(sweep) == 0

    sweep.forget_failure(doomed)
    assert sweep.attempts()[doomed.id] == 0, "a retry begins anew"
    Worker(sweep).run()
    assert sweep.store.is_done(doomed)


def test_a_sweep_that_grows_while_a_worker_runs_is_run_to_its_end(
    sweep: Sweep, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(sweep)
    publish, published = worker.store.publish, []

    def then_another_command_comes(*given: Any) -> bool:
        if len(published) == len(COEFFICIENTS):  # the last
            with initialize_config_module("emosteer.conf", version_base="1.3"):
                overrides = [*SMALL, f"model.path={model}", "coefficient=0.9"]
                submit(
                    [Job(typed(compose("config", overrides)), tuple(overrides), {}, tmp_path)], Sweep(sweep.paths.root, sweep.store)
                )
        published.append(given[0])
        return publish(*given)

    monkeypatch.setattr(worker.store, "publish", then_another_command_comes)
    worker.run()
    assert len(sweep.tasks()) == len(COEFFICIENTS) + 2
    assert left(sweep) == 0


class Stages(Silent):
    """Keeps what goes on."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def stage(self, text: str) -> None:
        self.texts.append(text)


def test_it_tells_how_far_a_vector_is_and_reads_its_texts_once_for_all_sites(sweep: Sweep, tmp_path: Path, model: Path) -> None:
    with initialize_config_module("emosteer.conf", version_base="1.3"):
        overrides = [*SMALL, f"model.path={model}", "coefficient=0.1", "site=mlp"]
        submit([Job(typed(compose("config", overrides)), tuple(overrides), {}, tmp_path)], sweep)
    stages = Stages()
    Worker(sweep, stages).run()
    assert left(sweep) == 0
    begun = [text for text in stages.texts if text == "emotion vector of joy_sadness"]
    told = [text for text in stages.texts if text.startswith("emotion vector of joy_sadness: ")]
    assert len(begun) == 2, "one for each site"
    ends = [text for text in told if text.endswith(": 132 of 132 texts")]
    assert len(ends) == 1
    assert "residual norms: 48 of 48 texts" in stages.texts


CLASSIFIERS = """
calls = {"pooled": [], "whole": []}
refused = set()

def pooled(replies):
    calls["pooled"].append(list(replies))
    if refused & set(replies):
        raise ValueError("it cannot read this")
    return {"pooled": [float(len(reply)) for reply in replies]}

pooled.per_reply = True

def whole(replies):
    calls["whole"].append(list(replies))
    return {"whole": [float(len(set(replies)))] * len(replies)}
"""


@pytest.fixture
def classifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Scorers of the user's own, of which one looks at each reply alone."""
    (tmp_path / "my_classifiers.py").write_text(CLASSIFIERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_classifiers", raising=False)
    import my_classifiers  # type: ignore[import-not-found]

    module: ModuleType = my_classifiers
    return module


OWN = ("+scorers.pooled._target_=my_classifiers.pooled", "+scorers.whole._target_=my_classifiers.whole")


def replies(sweep: Sweep) -> dict[str, list[str]]:
    return {task.cell.id: [reply.reply for reply in sweep.store.replies(task.cell)] for task in sweep.tasks()}


def scores(sweep: Sweep, scorer: str) -> dict[str, list[float]]:
    """A metric that is named as its scorer, of each cell that has it."""
    (key,) = [one.key for one in sweep.scorers() if one.name == scorer]
    found = {task.cell.id: sweep.store.scores(task.cell, key) for task in sweep.tasks()}
    return {cell_id: metrics[scorer] for cell_id, metrics in found.items() if metrics is not None}


@pytest.mark.parametrize("room", ["all cells", "one cell"])
def test_a_scorer_of_single_replies_gets_those_of_many_cells(
    tmp_path: Path, model: Path, classifiers: ModuleType, monkeypatch: pytest.MonkeyPatch, room: str
) -> None:
    if room == "one cell":
        monkeypatch.setattr(workers, "POOL_TOKENS", 1)
    sweep = submitted(tmp_path, model, *OWN)
    Worker(sweep).run()

    texts = replies(sweep)
    assert len({tuple(own) for own in texts.values()}) > 1
    n_calls = 1 if room == "all cells" else len(texts)
    assert len(classifiers.calls["pooled"]) == n_calls
    assert len(classifiers.calls["whole"]) == len(texts)
    if room == "all cells":
        assert sorted(classifiers.calls["pooled"][0]) == sorted({text for own in texts.values() for text in own})
    assert scores(sweep, "pooled") == {cell_id: [float(len(text)) for text in own] for cell_id, own in texts.items()}
    assert scores(sweep, "whole") == {cell_id: [float(len(set(own)))] * len(own) for cell_id, own in texts.items()}


def test_a_reply_that_a_scorer_cannot_bear_fails_its_cells_and_no_other(
    tmp_path: Path, model: Path, classifiers: ModuleType, sweep: Sweep
) -> None:
    Worker(sweep).run()
    texts = replies(sweep)
    in_cells = {text: {cell_id for cell_id, own in texts.items() if text in own} for own in texts.values() for text in own}
    text, bad = min(in_cells.items(), key=lambda item: len(item[1]))
    assert 0 < len(bad) < len(texts)

    classifiers.refused.add(text)
    again = submitted(tmp_path, model, *OWN)
    Worker(again).run()
    assert set(scores(again, "pooled")) == set(texts) - bad
    assert set(scores(again, "whole")) == set(texts), "the other scorers go on"
    failures = [json.loads(path.read_text()) for path in again.paths.failures.iterdir()]
    assert {failure["id"] for failure in failures} == bad
    assert {failure["message"] for failure in failures} == {"it cannot read this"}


DEAF = """
import signal

n_calls = 0

def deaf(replies):
    global n_calls
    n_calls += 1
    try:
        signal.raise_signal(signal.SIGTERM)
    except:
        AFTERWARDS
    return {"deaf": [0.0] * len(replies)}
"""


@pytest.mark.parametrize("afterwards", ["pass", "raise ImportError('it failed to import')"])
def test_a_library_that_swallows_a_signal_neither_fails_a_cell_nor_keeps_the_worker(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, afterwards: str
) -> None:
    name = f"deaf_{len(afterwards)}"
    (tmp_path / f"{name}.py").write_text(DEAF.replace("AFTERWARDS", afterwards))
    monkeypatch.syspath_prepend(tmp_path)
    sweep = submitted(tmp_path, model, f"+scorers.deaf._target_={name}.deaf")
    with pytest.raises(Stopped), stopped_by_signals():
        Worker(sweep).run()
    check_stopped()  # what comes after that is not asked to end

    assert sys.modules[name].n_calls == 1
    assert [sweep.failure(task.cell) for task in sweep.tasks()] == [None] * len(sweep.tasks())
    assert Claims(sweep.store.paths.claims, 60).taken() == set()


def test_a_signal_that_is_swallowed_while_tokens_are_chosen_ends_the_worker(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    class Deaf(Silent):
        def tokens(self, n: int, rows: float) -> None:
            told.append(n)
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped), stopped_by_signals():
        Worker(sweep, Deaf()).run()

    assert len(told) == 1
    assert left(sweep) == len(sweep.tasks())


def test_the_divergence_of_each_reply_from_the_unsteered_model(tmp_path: Path, model: Path) -> None:
    """By hand for each cell: steered as it was, under the instruction that it had; 0 for the baseline."""
    options = ("scorers=kl", "controls.prompting=true", "controls.instruction='Be {target}.'", "decay=0.5")
    sweep = submitted(tmp_path, model, *options)
    Worker(sweep).run()
    found, cells = scores(sweep, "kl"), {task.cell.id: task.cell for task in sweep.tasks()}
    (baseline,) = (cell for cell in cells.values() if cell.kind == BASELINE)
    (prompting,) = (cell for cell in cells.values() if cell.kind == PROMPTING)
    assert found[baseline.id] == [0, 0]
    assert len({*found[prompting.id]} | {value for cell_id in cells for value in found[cell_id]}) > 10

    lm = load(baseline.model.config)
    for cell in cells.values():
        prompts, stored = sweep.store.prompts(cell.prompts), sweep.store.replies(cell)
        steering = None
        if cell.vector:
            vector = load_vector(sweep.store.paths.vector(cell.vector_id))
            steering = steering_along(vector, [1], cell.coefficient, decay=0.5)
        plain = [lm.dialogue.prompt(prompt.messages) for prompt in prompts]
        told = [lm.dialogue.prompt(({"role": "system", "content": "Be joy."}, *prompt.messages)) for prompt in prompts]
        origins = [Origin(prompt, steering) for prompt in (told if cell is prompting else plain)]
        texts = [(prompt, reply.tokens) for prompt, reply in zip(plain, stored, strict=True)]
        assert found[cell.id] == pytest.approx(mean_divergences(Engine(lm), texts, origins), rel=2e-3, abs=2e-6), cell.id


def test_a_coefficient_is_found_that_costs_what_was_asked_for(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell and controls have it, whoever comes first; the cell's own replies to those prompts cost what is told."""
    options = ("scorers=kl", "controls.random=1", "controls.negative=true", "prompts.limit=3", "generation.max_new_tokens=4")
    found = ("auto_coefficient.prompts=2", "auto_coefficient.target=0.02", "auto_coefficient.tolerance=0.2")
    sweep = submitted(tmp_path, model, *options, *found, coefficients=("auto", 0.1))
    looked_for: list[str] = []
    find = Resources._find_strength
    monkeypatch.setattr(Resources, "_find_strength", lambda self, cell: looked_for.append(cell.id) or find(self, cell))
    Worker(sweep).run()

    cells = {task.cell.id: task.cell for task in sweep.tasks()}
    auto = [cell for cell in cells.values() if cell.strength]
    (cell,) = (one for one in auto if one.kind == CELL)
    assert looked_for == [cell.id], "once for all three"
    assert len(auto) == 3
    told = [sweep.store.record(one)["resolved"] for one in auto]
    assert len({json.dumps(resolved["found"]) for resolved in told}) == 1
    size = told[0]["found"]["coefficient"]
    assert sorted(resolved["coefficient_fraction"] for resolved in told) == [-size, size, size]
    assert told[0]["found"]["status"] == "found"
    assert abs(told[0]["found"]["cost"] - 0.02) <= 0.2 * 0.02
    own = scores(sweep, "kl")[cell.id]
    assert sum(own[:2]) / 2 == pytest.approx(told[0]["found"]["cost"], rel=2e-3)

    again = open_sweep(str(tmp_path / "store"), tmp_path / "another")
    monkeypatch.setattr(Resources, "_find_strength", lambda self, cell: pytest.fail("it is in the store"))
    sweep.store.discard(cells[next(one.id for one in auto if one.negative)].baseline())
    resources = Resources(again.store, Claims(again.store.paths.claims, 60.0), load(cell.model.config))
    assert resources.strength(cell).coefficient == size


def test_a_coefficient_split_among_blocks_is_a_smaller_one_at_each(tmp_path: Path, model: Path) -> None:
    split = submitted(tmp_path / "a", model, "layer=[0,2]", "across_blocks=split", coefficients=(1.0,))
    each = submitted(tmp_path / "b", model, "layer=[0,2]", coefficients=(0.5, 1.0))
    told = []
    for sweep in (split, each):
        Worker(sweep).run()
        told += [[r.tokens for r in sweep.store.replies(t.cell)] for t in sweep.tasks() if t.cell.kind == CELL]
    assert told[0] == told[1] != told[2]


def test_a_target_out_of_reach_is_a_result_and_a_warning(tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = submitted(tmp_path, model, "auto_coefficient.target=500", coefficients=("auto",))
    with caplog.at_level(logging.WARNING):
        Worker(sweep).run()
    (cell,) = (task.cell for task in sweep.tasks() if task.cell.kind == CELL)
    found = sweep.store.record(cell)["resolved"]["found"]
    assert (found["coefficient"], found["status"], len(found["steps"])) == (1.0, "out of reach", 5)
    assert "coefficient=auto of joy_sadness at block 1: out of reach; kl " in caplog.text
    assert " instead of 500 at 1, the largest of 5 that were tried" in caplog.text


@pytest.mark.parametrize("damage", ["", "{}", '{"id": "other", "coefficient": 1, "cost": 0, "status": "found", "steps": [[1, 0]]}'])
def test_a_damaged_record_of_a_coefficient_is_put_aside_and_made_again(tmp_path: Path, model: Path, damage: str) -> None:
    sweep = submitted(tmp_path, model, "auto_coefficient.target=500", coefficients=("auto",))
    (cell,) = (task.cell for task in sweep.tasks() if task.cell.kind == CELL)
    path = sweep.store.paths.strength(cell.strength_id)
    path.parent.mkdir(parents=True)
    path.write_text(damage)
    Worker(sweep).run()
    assert json.loads(path.read_text())["coefficient"] == 1.0
    assert len(list(path.parent.glob(".damaged-*"))) == 1


def test_a_disk_that_fills_beside_the_decoding_ends_the_worker_and_settles_nothing(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(sweep)
    publish, published = worker.store.publish, []

    def until_it_is_full(*given: Any) -> bool:
        if len(published) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", "/the/disk")
        is_first = publish(*given)
        published.append(given[0].id)
        assert (sweep.store.paths.claims / given[0].id).exists(), "the lease is held until its cell is on the disk"
        return is_first

    monkeypatch.setattr(worker.store, "publish", until_it_is_full)
    with pytest.raises(EmosteerError, match="/the/disk: No space left on device; give the same command again"):
        worker.run()
    assert worker.n_published == 3
    assert {task.cell.id for task in sweep.tasks() if sweep.store.is_done(task.cell)} == set(published)
    assert not sweep.paths.failures.exists() or list(sweep.paths.failures.iterdir()) == []
    assert list(sweep.store.paths.claims.glob("[!.]*")) == [], "its leases are given back"
    assert left(sweep) == len(COEFFICIENTS) + 1, "nothing has scores"


def test_a_record_says_how_the_engine_went_and_where_the_time_did(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a stand-in for the engine's arithmetic, which keeps its account as the engine does."""

    def generate(
        engine: Engine, requests: Sequence[Request], on_tokens: Callable[[int], None] = lambda n: None
    ) -> Iterator[tuple[int, Reply]]:
        account = engine.account
        account.path, account.reason, account.batch_rows = "shared", "its first rows agree", 64
        with account.timing("prefill"):
            sum(range(100_000))
        for _ in range(2):
            account.steps, account.row_steps, account.tokens = account.steps + 1, account.row_steps + 16, account.tokens + 16
            on_tokens(16)
        yield from ((number, Reply((5, 6), finished=False)) for number in range(len(requests)))

    caplog.set_level(logging.INFO, "emosteer")
    told: list[tuple[int, float]] = []
    monkeypatch.setattr(Engine, "generate", generate)
    monkeypatch.setattr(workers.Silent, "tokens", lambda _, n, rows: told.append((n, rows)))
    worker = Worker(sweep)
    worker.run()
    assert told == [(16, 16.0), (16, 16.0)]
    records = [sweep.store.record(task.cell) for task in sweep.tasks()]
    for found in (record["provenance"] for record in records if record):
        assert (found["engine_path"], found["engine_reason"]) == ("shared", "its first rows agree")
        assert (found["batch_rows"], found["rows"], found["threads"]) == (64, 16.0, 1)
        assert found["tokens_per_second"] > 0
        assert tuple(found["spent"]) == PARTS
        assert found["spent"]["loading"] > 0
        assert found["spent"]["prefill"] > 0
    assert worker.sheet.generated.tokens == 32
    assert worker.sheet.seconds["scoring"] > 0
    assert "1 CPU thread: engine.threads" in caplog.messages
    assert any(" goes the way shared: gives the logits" in message for message in caplog.messages)


CLASSIFIER = "+scorers.feelings={_target_: emosteer.scoring.classifier.classifier, path: %s}"
JUDGE = "+scorers.judge={_target_: emosteer.scoring.judge.judge, base_url: '%s', model: made-up, emotions: [joy, trust], "
JUDGE += "attempts: 2, backoff: 0.01, key_env: MY_KEY}"


def test_a_judge_that_is_down_fails_the_cells_alone_and_is_asked_again_when_they_are_retried(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("EMOSTEER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(endpoint, "_down", {})
    with serving(lambda *_: (503, {"error": KEY})) as server:
        sweep = submitted(tmp_path, model, CLASSIFIER % save_classifier(tmp_path / "classifier"), JUDGE % server.url)
        Worker(sweep).run()

        assert left(sweep) == 0
        failures = [json.loads(path.read_text()) for path in sweep.paths.failures.iterdir()]
        assert len(failures) == len(COEFFICIENTS) + 1
        assert all("HTTP 503" in failure["message"] for failure in failures)
        assert len(server.calls) <= 2 * 4, "not cell by cell"
        feelings = next(one.key for one in sweep.scorers() if one.name == "feelings")
        stored = [sweep.store.scores(task.cell, feelings) for task in sweep.tasks()]
        assert all(one and set(one) == {"classifier_joy", "classifier_sadness", "classifier_mixed_other"} for one in stored)
        assert "judge_joy" not in build(sweep).results.dropna(axis="columns", how="all")

        server.say = well
        endpoint._down.clear()
        for task in sweep.tasks():
            sweep.forget_failure(task.cell)
        calls = len(server.calls)
        Worker(sweep).run()
    tables = build(sweep)
    assert set(tables.results["status"]) == {"done"}
    texts = {text for text in tables.replies["reply"] if split_words(text)}
    assert len(server.calls) - calls == len(texts), "each text once"
    for row in tables.replies.to_dict("records"):
        if row["reply"] in texts:
            assert row["judge_joy"] == rated(row["reply"])["joy"]
        else:
            assert math.isnan(row["judge_joy"])
    assert {"judge_joy_delta", "classifier_joy_q"} <= set(tables.results)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if KEY.encode() in path.read_bytes()], "the key is nowhere"


def test_what_was_not_computed_stands_beside_the_scores_with_the_reason(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setattr(endpoint, "_down", {})
    with serving(lambda *_: (200, completion("Very joyful!"))) as server:
        sweep = submitted(tmp_path, model, JUDGE % server.url)
        Worker(sweep).run()
    (judge,) = [one.key for one in sweep.scorers() if one.name == "judge"]
    for task in sweep.tasks():
        stored = json.loads(sweep.store.cell_paths(task.cell).score(judge).read_text())
        assert stored["metrics"]["judge_joy"] == [None, None]
        assert sorted(number for numbers in stored["not_computed"].values() for number in numbers) == [0, 1]
        assert set(map(str, sweep.store.scores(task.cell, judge)["judge_joy"])) == {"nan"}  # type: ignore[index]
    assert "replies not computed: the judge's answer is not what was asked for" in caplog.text
    assert set(build(sweep).results["status"]) == {"done"}


def test_a_classifier_or_judge_that_cannot_be_used_is_refused_before_anything_is_written(tmp_path: Path, model: Path) -> None:
    for scorer, told in ((CLASSIFIER % model, "is LlamaForCausalLM"), (JUDGE % "http://localhost:1", "key_env=MY_KEY")):
        with pytest.raises(EmosteerError, match=told):
            submitted(tmp_path, model, scorer)
    assert list(tmp_path.iterdir()) == []
