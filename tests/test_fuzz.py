"""Whatever a file or a value holds: an answer, or one line for the user; never another exception, and never a wait without end.

The suite tries a few hundred of each; `HYPOTHESIS_PROFILE=thorough pytest tests/test_fuzz.py` tries 10,000.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_up_sweep import PROVENANCE, made_up_cell, random_replies
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from emosteer import planning
from emosteer.checks import check_sweep_name
from emosteer.composer import Composer
from emosteer.config import ModelConfig, register
from emosteer.datasets import (
    digest,
    load_contrastive_pairs,
    load_diagnostic_pairs,
    load_neutral_texts,
    load_prompts,
    to_json_lines,
)
from emosteer.errors import EmosteerError
from emosteer.hydra_messages import known_keys
from emosteer.model.source import ModelSource, resolve_layers
from emosteer.one_line import LONGEST, one_line
from emosteer.planning import plan, typed
from emosteer.records.cell import Cell
from emosteer.records.claims import Claims
from emosteer.records.store import Resolved, Store
from emosteer.scoring.fluency import duplication, repetition, words
from emosteer.scoring.nrc import nrc
from emosteer.scoring.pronouns import pronouns
from emosteer.scoring.sentiment import sentiment

CHECKS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("quick", max_examples=200, derandomize=True, **CHECKS)
settings.register_profile("thorough", max_examples=10_000, **CHECKS)
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
FUZZ = settings.get_profile("thorough" if THOROUGH else "quick")
SLOW = settings(FUZZ, max_examples=1_000 if THOROUGH else 40)
"""For what Hydra composes, at a tenth of a second and more each."""

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)
"""What JSON can hold, NaN and infinity included, as Python reads it."""


REFUSALS = (EmosteerError, HydraException, OmegaConfBaseException, ValueError, RecursionError)
"""What the command tells in a line, if it is the user's to mend; all others are shown with their traceback."""


def told(error: BaseException) -> str:
    """The line for the user; fails where there is none, or where a terminal would show something else."""
    line = one_line(error)
    assert line, f"{type(error).__name__}: {error}"
    assert line.isprintable(), line
    assert len(line) <= LONGEST
    return line


def answer_or_line(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returns, or the line that refuses it."""
    try:
        return call(), ""
    except EmosteerError as error:
        return None, told(error)


# Data files

TEXTS: dict[str, tuple[Callable[[Path], list[Any]], dict[str, Any]]] = {
    "pairs": (load_contrastive_pairs, {"id": "a", "positive": "I am glad.", "negative": "I am low.", "topic": "mood"}),
    "diagnostics": (
        load_diagnostic_pairs,
        {
            "id": "a",
            "clean": "I won.",
            "corrupted": "I lost.",
            "reply_prefix": "I am",
            "expressive": ["glad", "happy"],
            "counterpart": ["sad"],
            "topic": "sport",
        },
    ),
    "prompts": (load_prompts, {"id": "a", "text": "How are you?", "category": "small talk"}),
    "dialogues": (
        load_prompts,
        {
            "id": "a",
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hello."},
                {"role": "assistant", "content": "Hello!"},
                {"role": "user", "content": "How are you?"},
            ],
        },
    ),
    "neutral": (load_neutral_texts, {"id": "a", "text": "The train leaves at nine."}),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("texts") / "texts.jsonl"


def load_or_be_told(load: Callable[[Path], list[Any]], path: Path, content: bytes) -> list[Any]:
    """What a file with this content holds; nothing where it is refused with file and line."""
    path.write_bytes(content)
    items, line = answer_or_line(lambda: load(path))
    if line:
        assert re.match(rf"{re.escape(str(path))}(:\d+)?: \S", line), line
        return []
    assert items
    assert len({item.id for item in items}) == len(items)
    key = digest(items)
    path.write_bytes(to_json_lines(items).encode())
    again = load(path)
    assert again == items
    assert digest(again) == key
    return items


@pytest.mark.parametrize("kind", TEXTS)
@FUZZ
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-16", "surrogatepass")))
def test_bytes_are_no_texts(kind: str, content: bytes, file: Path) -> None:
    load_or_be_told(TEXTS[kind][0], file, content)


@pytest.mark.parametrize("kind", TEXTS)
@FUZZ
@given(data=st.data())
def test_json_lines_of_anything(kind: str, data: st.DataObject, file: Path) -> None:
    load, good = TEXTS[kind]
    near = st.fixed_dictionaries({key: st.just(value) | ANYTHING for key, value in good.items()})
    records = data.draw(st.lists(ANYTHING | near, max_size=4))
    lines = [json.dumps(record, ensure_ascii=data.draw(st.booleans())) for record in records]
    load_or_be_told(load, file, "\n".join(lines).encode(errors="surrogatepass"))


@pytest.mark.parametrize("kind", TEXTS)
@FUZZ
@given(data=st.data())
def test_a_good_file_with_one_change(kind: str, data: st.DataObject, file: Path) -> None:
    load, good = TEXTS[kind]
    records = [{**good, "id": str(i)} for i in range(3)]
    changed = data.draw(st.sampled_from(records))
    key = data.draw(st.sampled_from([*good, "unheard"]))
    if data.draw(st.booleans()):
        changed.pop(key, None)
    else:
        changed[key] = data.draw(ANYTHING)
    content = bytearray("\n".join(map(json.dumps, records)), "utf-8")
    if data.draw(st.booleans()):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    load_or_be_told(load, file, bytes(content))


# Values of the configuration


def nowhere(model: ModelConfig) -> ModelSource:
    """Stands for `find`: every model is there, and has 30 blocks."""
    return ModelSource(model.path, model.gguf_file, None, f"sha256:{model.path}", 30)


@pytest.fixture(scope="module")
def composer() -> Iterator[Composer]:
    register()
    with pytest.MonkeyPatch.context() as patch, initialize_config_module("emosteer.conf", version_base="1.3"):
        patch.setattr(planning, "find", nowhere)
        planning._source.cache_clear()
        loader = GlobalHydra.instance().config_loader()
        yield Composer(loader, loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN))
    planning._source.cache_clear()


KEYS = known_keys()
GROUPS = [key for key in KEYS if ("." not in key and f"{key}.name" in KEYS) or key in ("vector", "attribution", "generation")]
PLAIN = [key for key in KEYS if key not in GROUPS]
QUOTED = st.text(max_size=20).map(lambda text: "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'")
NUMBERS = (st.integers() | st.floats() | st.decimals()).map(str)
PIECES = st.sampled_from([*"[]{}()$:=,.+~@/\\'\"#%! \t", "${", "hydra:", "job.num", "oc.env:X", "null", "???", "1e400", "auto"])
VALUES = st.text(max_size=20) | QUOTED | NUMBERS | st.lists(PIECES | st.text(max_size=3), max_size=8).map("".join)
NASTY = [
    "99999999999999999999",
    "-1e400",
    "1e-400",
    "1e999999999999",
    "0x1F",
    "1_000",
    "9" * 5000,
    "1." + "0" * 100_000 + "1",
    "x" * 100_000,
    "'" + "y z" * 30_000 + "'",
    "[" * 200 + "]" * 200,
    "{a:" * 100 + "1" + "}" * 100,
    "${" * 100 + "}" * 100,
    "${oc.env:EMOSTEER_NOT_SET}",
    "${hydra:job.num}",
    "${hydra.job.num}",
    "${hydra:runtime}",
    "${seed}",
    "${layer}",
    "${pair}",
    "${pair.name}",
    "${generation}",
    "a/b",
    "../x",
    "${oc.decode:'['}",
    "${basename:${model}}",
    "'a\0b'",
    "a\0b",
    "\ud800",
    "'\u202eevil'",
    "'\x1b[31mred'",
    "'a\nb'",
    "???",
    "'???'",
    "null",
    "[]",
    "{}",
    "",
    "' '",
    "/dev/null",
    "'~nobody/x'",
    "/",
    ".",
]


@pytest.fixture(scope="module")
def desk(composer: Composer) -> Iterator[Desk]:
    whole = composer.compose([], 0).copy()
    jobs = []
    for number in (0, 7):
        job = copy.deepcopy(whole.whole)
        job.hydra.job.num, job.hydra.job.id = number, str(number)
        jobs.append(job)
    yield Desk(OverridesParser.create(), whole.task, jobs)
    HydraConfig.instance().cfg = None


@dataclass(frozen=True)
class Desk:
    """Where a value is typed."""

    parser: OverridesParser
    task: DictConfig
    """The configuration without the value."""
    jobs: list[DictConfig]
    """Hydra's part, of two jobs."""

    def plan_or_tell(self, override: str) -> None:
        """The configuration with the override is planned, or refused in a line; what is planned does not depend on the job."""
        try:
            config = copy.deepcopy(self.task)
            # Hydra's own way of putting a value in, without composing all else again.
            ConfigLoaderImpl._apply_overrides_to_config(self.parser.parse_overrides([override]), config)
            cells = [self._plan(config, job) for job in (self.jobs if "hydra" in override else self.jobs[:1])]
        except REFUSALS as error:
            told(error)
        else:
            assert [cell.id for cell in cells[0]] == [cell.id for cell in cells[-1]]
            assert all("/" not in cell.id and len(cell.id.encode()) < 200 for cell in cells[0])
            assert all(json.loads(json.dumps(cell.to_json())) for cell in cells[0])

    def _plan(self, config: DictConfig, job: DictConfig) -> list[Cell]:
        HydraConfig.instance().set_config(job)
        return plan(typed(config)).cells


@pytest.mark.parametrize("value", NASTY, ids=lambda value: ascii(value[:20]))
def test_a_nasty_value_of_any_key_is_planned_or_refused_in_a_line(desk: Desk, value: str) -> None:
    for key in PLAIN:
        desk.plan_or_tell(f"{key}={value}")


@FUZZ
@given(key=st.sampled_from(PLAIN), value=VALUES)
def test_any_value_is_planned_or_refused_in_a_line(desk: Desk, key: str, value: str) -> None:
    desk.plan_or_tell(f"{key}={value}")


@SLOW
@given(group=st.sampled_from(GROUPS), value=VALUES)
def test_any_option_of_a_group_is_planned_or_refused_in_a_line(composer: Composer, group: str, value: str) -> None:
    try:
        plan(typed(composer.compose([f"{group}={value}"], 0).copy().task))
    except REFUSALS as error:
        told(error)


OVERRIDES = st.sampled_from(
    [
        *("layer=1", "layer=[1,2]", "layer=0.5", "layer=auto", "layer={a:1}", "seed=3", "seed=${layer}", "~layer", "name=x"),
        *(
            "coefficient=0.1",
            "coefficient=1e-3",
            "coefficient=null",
            "scope=all",
            "layr=1",
            "+mine=1",
            "++mine=2",
            "mine=3",
            "+mine.a=1",
        ),
        *(
            "pair=love_hate",
            "pair=custom",
            "pair=nothing",
            "pair={name:a}",
            "pair.name=b",
            "pair.path=c",
            "~pair",
            "~pair.path",
            "+pair=x",
        ),
        *("generation=sampled", "generation.n_samples=2", "generation={temperature:0.5}", "++generation.x=1", "~generation.top_p"),
        *(
            "scorers.nrc.lemmatise=false",
            "~scorers.nrc",
            "+scorers.a._target_=b.c",
            "+scorers.a={_target_:b.c,n:1}",
            "++scorers.nrc.n=1",
        ),
        *("controls=none", "controls.random=2", "attribution=none", "tracking=none", "tracking.tags=[a,b]", "tracking.tags=[]"),
        *(
            "objective=beyond_random",
            "+objective.at_most.x=1",
            "experiment=demo",
            "experiment=paper",
            "experiment=nothing",
            "store=s",
        ),
        *(
            "'name=q'",
            "name='a b'",
        ),
    ]
)


def plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False, enum_to_str=True)


@SLOW
@given(jobs=st.lists(st.lists(OVERRIDES, max_size=5), min_size=1, max_size=3))
def test_a_jobs_configuration_is_the_one_that_hydra_composes(composer: Composer, jobs: list[list[str]]) -> None:
    for number, overrides in enumerate(jobs):
        try:
            theirs: DictConfig | None = composer.loader.load_sweep_config(composer.master, overrides)
        except REFUSALS:
            theirs = None
        try:
            ours: DictConfig | None = composer.compose(overrides, number).copy().whole
        except REFUSALS:
            ours = None
        assert (ours is None) == (theirs is None), overrides
        if ours is None or theirs is None:
            continue
        mine, hydras = plain(ours), plain(theirs)
        for config in (mine, hydras):
            # What the launcher says of the job itself: tests/test_composer.py.
            for key in ("id", "num"):
                del config["hydra"]["job"][key]
            del config["hydra"]["runtime"]["output_dir"]
        assert mine == hydras


# Names, blocks, replies


@FUZZ
@given(name=st.text(max_size=12) | st.text("aé感.-_ +=,@/~\0\n", max_size=6) | st.text(min_size=150, max_size=260))
@example("a" * 200)
@example("é" * 100)
def test_every_name_that_passes_is_a_directory_of_that_name(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    _, line = answer_or_line(lambda: check_sweep_name(name))
    if line:
        assert line.startswith("name=")
        return
    directory = tmp_path_factory.getbasetemp() / "names"
    directory.mkdir(exist_ok=True)
    (directory / name).mkdir(exist_ok=True)
    assert os.listdir(directory) == [name]  # noqa: PTH208 - as the file system spells it
    (directory / name).rmdir()
    assert os.path.basename(name) == name  # noqa: PTH119
    assert name.strip(". ") == name


REQUESTS = ANYTHING | st.integers(-3, 40) | st.floats(-0.2, 1.2) | st.lists(st.integers(-1, 31) | st.floats(0, 1), max_size=4)


@FUZZ
@given(request=REQUESTS | st.from_regex(r"\d+(\+\d+)+", fullmatch=True), n_blocks=st.integers(1, 200))
@example("9" * 5000 + "+1", 30)
@example(10**5000, 30)
@example([10**5000], 30)
def test_a_request_for_blocks_gets_blocks_or_a_line(request: Any, n_blocks: int) -> None:
    layers, line = answer_or_line(lambda: resolve_layers(request, n_blocks, "tiny"))
    if line:
        assert line.startswith("layer")
        return
    if layers is None:
        assert request == "auto"
        return
    assert layers
    assert list(layers) == sorted(set(layers))
    assert 0 <= layers[0] <= layers[-1] < n_blocks


REPLIES = st.text() | st.text("aI we'US’joy.,!?%1\n -—\u0301\u00ad👍") | st.sampled_from(["", " ", "I", "joy " * 50, "." * 300])


@pytest.mark.parametrize("scorer", [nrc, sentiment, pronouns, words, repetition, duplication], ids=lambda scorer: scorer.__name__)
@FUZZ
@given(replies=st.lists(REPLIES, max_size=4))
def test_a_scorer_has_a_value_for_every_reply(scorer: Callable[[Sequence[str]], dict[str, list[float]]], replies: list[str]) -> None:
    scores = scorer(replies)
    assert scores
    for metric, values in scores.items():
        assert len(values) == len(replies)
        assert all(isinstance(value, float) and math.isfinite(value) for value in values)
        least, most = {"sentiment": (-1, 1), "words": (0, math.inf)}.get(metric, (0, 100))
        assert all(least <= value <= most for value in values)
    assert scorer(list(replies)) == scores


# Records and leases

DEEP = b"[" * 100_000
"""JSON that is too deep to be read."""


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every part of plain data."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(deeper for key, part in parts for deeper in places(part, (*place, key)))]


def changed(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of plain data with another value at one place."""
    if not place:
        return value
    copied = copy.deepcopy(data)
    part = copied
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    return copied


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("records") / "store")


def damage(data: st.DataObject, content: bytes) -> bytes:
    """A file with one change: to a value, a byte, its end, or all of it."""
    way = data.draw(st.sampled_from(["value", "bytes", "end", "all"]))
    if way == "value":
        lines = content.decode().rstrip("\n").split("\n") if b"\n{" in content else [content.decode()]
        i = data.draw(st.integers(0, len(lines) - 1))
        record = json.loads(lines[i])
        lines[i] = json.dumps(changed(record, data.draw(st.sampled_from(places(record))), data.draw(ANYTHING)))
        return "\n".join(lines).encode(errors="replace")
    if way == "bytes":
        at = data.draw(st.integers(0, len(content) - 1))
        return content[:at] + data.draw(st.binary(max_size=3)) + content[at + data.draw(st.integers(0, 3)) :]
    if way == "end":
        return content[: data.draw(st.integers(0, len(content) - 1))]
    return data.draw(st.binary(max_size=50) | ANYTHING.map(lambda value: json.dumps(value).encode()) | st.just(DEEP))


@pytest.mark.parametrize("name", ["record", "replies"])
@FUZZ
@given(data=st.data())
def test_a_damaged_record_is_put_aside_or_read_whole(name: str, data: st.DataObject, store: Store) -> None:
    cell = made_up_cell(store)
    shutil.rmtree(store.cell_paths(cell).directory, ignore_errors=True)
    replies = random_replies(store, cell, 0)
    store.publish(cell, replies, Resolved((2,), 3.0, 0.2), PROVENANCE)
    path = getattr(store.cell_paths(cell), name)
    path.write_bytes(damage(data, path.read_bytes()))

    store.check(cell)
    if store.is_done(cell):
        record = store.record(cell)
        assert record is not None
        assert record["id"] == cell.id
        assert store.replies(cell) == replies
    else:
        assert not store.cell_paths(cell).directory.exists()
    shutil.rmtree(store.paths.root / "cells", ignore_errors=True)  # with what was put aside


@FUZZ
@given(data=st.data())
def test_damaged_scores_are_put_aside_or_read(data: st.DataObject, store: Store) -> None:
    cell = made_up_cell(store)
    store.publish_scores(cell, "mine-v1-0", {"scorer": "mine"}, {"joy": [0.5, math.nan, 2.0], "fear": [0.0, 1.0, 2.0]})
    path = store.cell_paths(cell).score("mine-v1-0")
    path.write_bytes(damage(data, path.read_bytes()))

    scores = store.scores(cell, "mine-v1-0", 3)
    assert path.exists() == (scores is not None)
    assert all(len(values) == 3 for values in (scores or {}).values())
    shutil.rmtree(store.paths.root / "cells", ignore_errors=True)


@FUZZ
@given(data=st.data())
def test_a_cell_of_changed_json_is_a_cell_or_an_error_that_its_readers_expect(data: st.DataObject, store: Store) -> None:
    plain_cell = json.loads(json.dumps(made_up_cell(store).to_json()))
    record = data.draw(st.sampled_from(places(plain_cell)).flatmap(lambda at: ANYTHING.map(lambda v: changed(plain_cell, at, v))))
    try:
        cell = Cell.from_json(record)
        _ = cell.id
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    assert Cell.from_json(cell.to_json()).id == cell.id


OWNERS = st.fixed_dictionaries(
    {},
    optional={
        "host": st.just(socket.gethostname()) | ANYTHING,
        "pid": st.just(os.getpid()) | st.integers() | ANYTHING,
        "started": st.floats() | ANYTHING,
        "ticks": ANYTHING,
        "token": ANYTHING,
        "attempt": ANYTHING,
    },
)


@FUZZ
@given(content=OWNERS.map(lambda owner: json.dumps(owner).encode()) | ANYTHING.map(lambda v: json.dumps(v).encode()) | st.binary())
@example(content=DEEP)
@example(content=json.dumps({"host": socket.gethostname(), "pid": 10**30}).encode())
@example(content=json.dumps({"host": socket.gethostname(), "pid": math.inf}).encode())
@example(content=json.dumps({"attempt": math.inf, "host": socket.gethostname()}).encode())
def test_whatever_a_lease_holds_it_is_waited_for_or_taken_over(content: bytes, store: Store) -> None:
    claims = Claims(store.paths.claims, lease_seconds=60.0)
    path = store.paths.claims / "cell"
    path.write_bytes(content)

    lease = claims.take("cell")
    if lease is not None:
        assert lease.attempt >= 1
        claims.release(lease)
        assert not path.exists()
    path.unlink(missing_ok=True)
