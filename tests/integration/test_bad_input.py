"""What a person gets wrong is told in one line that names key, value and remedy, before anything is made or torch is imported.

Most commands run in this process, at a tenth of the time; some run as a person runs them, to show that both say the same.
"""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from bad_input import DEVICES, MISTAKES, PLAIN, SECRET, Mistake, left_behind, make_bad_files
from desk import Desk
from hydra.core.global_hydra import GlobalHydra

import emosteer.main
from emosteer import planning
from emosteer.one_line import LONGEST

AS_A_PERSON = (
    "layer=40",
    "pair=joy_sadnes",
    "name=a/b",
    "store=../bad/a-file",
    "seed=range(0,1000000000)",
    "model.path=../bad/cut-head",
    "model.path=nobody/nothing",
    "prompts.path=../bad/prompts/nowhere.jsonl",
    "+scorers.mine._target_=bad_raises.f",
)


@dataclass
class Told:
    """How a command ended."""

    code: int
    out: str
    err: str
    left: list[str] = field(default_factory=list)


def check_refusal(told: Told, mistake: Mistake) -> None:
    lines = told.err.splitlines()
    assert len(lines) == 1, told.err
    assert mistake.line in lines[0]
    assert len(lines[0]) <= LONGEST
    assert lines[0].isprintable()
    assert told.code == 1
    assert told.out == ""
    assert told.left == []
    assert SECRET not in told.err


@pytest.fixture(scope="module")
def area(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path) -> Path:
    """A directory with `bad`, and room for directories in which commands are given."""
    directory = tmp_path_factory.mktemp("area")
    make_bad_files(directory / "bad", tiny_directory)
    return directory


@pytest.fixture
def here(area: Path, tmp_path: Path) -> Path:
    """A fresh directory beside `bad`."""
    directory = area / tmp_path.name
    directory.mkdir()
    return directory


@pytest.fixture
def emosteer_in_process(area: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str]], Told]]:
    """Calls the command's main function as if it had been typed in the fresh directory."""
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(area / "bad" / "library"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def call(arguments: list[str]) -> Told:
        monkeypatch.setattr(sys, "argv", ["emosteer", *arguments])
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                emosteer.main.main()
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else 1
                if isinstance(left.code, str):
                    print(left.code, file=sys.stderr)
        return Told(code, out.getvalue(), err.getvalue(), left_behind(here))

    for remembered in (planning._source, planning._read_once, planning._check_fit_once):
        remembered.cache_clear()
    GlobalHydra.instance().clear()
    yield call
    GlobalHydra.instance().clear()
    os.environ.pop("HYDRA_FULL_ERROR", None)  # main() sets it
    root.handlers[:], root.level = handlers, level


CASES = [pytest.param(mistake, mode, id=f"{mode}: {ascii(str(mistake))[1:-1]}") for mistake in MISTAKES for mode in mistake.modes]


@pytest.mark.parametrize(("mistake", "mode"), CASES)
def test_a_mistake_is_told_in_a_line_and_leaves_nothing(
    mistake: Mistake, mode: str, emosteer_in_process: Callable[[list[str]], Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in mistake.environment.items():
        monkeypatch.setenv(key, value)

    check_refusal(emosteer_in_process(mistake.arguments(mode)), mistake)


@pytest.fixture
def desk_beside_bad(area: Path, here: Path, tiny_directory: Path, library: Path) -> Desk:
    """Real commands, given in the fresh directory, with the bad functions within reach."""
    paths = os.pathsep.join([str(library), str(area / "bad" / "library")])
    return Desk(here, tiny_directory, library, options=PLAIN, environment={"PYTHONPATH": paths})


def run_as_a_person(desk: Desk, mistake: Mistake, mode: str) -> tuple[Told, bool]:
    """How a real command ended, and whether it imported torch."""
    there = replace(desk, options=(), environment={**desk.environment, **mistake.environment})
    done = there.run(*mistake.arguments(mode))
    return Told(done.code, done.out, done.err, left_behind(desk.directory)), done.imported_torch


@pytest.mark.parametrize("typed", AS_A_PERSON)
def test_a_person_is_told_the_same_before_torch_is_imported(typed: str, desk_beside_bad: Desk) -> None:
    mistake = next(mistake for mistake in MISTAKES if mistake.given == (typed,))

    told, imported_torch = run_as_a_person(desk_beside_bad, mistake, mistake.modes[-1])

    check_refusal(told, mistake)
    assert not imported_torch


@pytest.mark.parametrize("mistake", DEVICES, ids=str)
def test_a_device_that_is_not_there_is_told_before_a_model_is_loaded(mistake: Mistake, desk_beside_bad: Desk) -> None:
    check_refusal(run_as_a_person(desk_beside_bad, mistake, mistake.modes[-1])[0], mistake)


def without_rights(desk: Desk, *arguments: str) -> Told:
    """How a command ends for a user who may do no more than files' permissions say, as root otherwise may."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*drop, sys.executable, "-m", "emosteer.main", *arguments]
    done = subprocess.run(command, cwd=desk.directory, env=environment, capture_output=True, text=True, check=False)
    return Told(done.returncode, done.stdout, done.stderr, left_behind(desk.directory))


LOCKED = "../bad/locked cannot be written to; give another place, or mend its permissions"
CLOSED = "prompts.path=../bad/closed.jsonl: Permission denied; give the path of a file of JSON lines that can be read"


@pytest.mark.parametrize(
    ("mistake", "mode"),
    [
        (Mistake(("store=../bad/locked/store",), LOCKED), "single"),
        (Mistake(("hydra.sweep.dir=../bad/locked/x",), LOCKED), "sweep"),
        (Mistake(("hydra.run.dir=../bad/locked/x",), LOCKED), "single"),
        (Mistake(("prompts.path=../bad/closed.jsonl",), CLOSED), "single"),
    ],
)
def test_what_may_not_be_read_or_written_is_told_in_a_line(desk_beside_bad: Desk, area: Path, mistake: Mistake, mode: str) -> None:
    closed, locked = area / "bad" / "closed.jsonl", area / "bad" / "locked"
    closed.touch(mode=0o000)
    locked.mkdir(exist_ok=True)
    locked.chmod(0o555)

    check_refusal(without_rights(desk_beside_bad, *mistake.arguments(mode)), mistake)
    assert list(locked.iterdir()) == []
