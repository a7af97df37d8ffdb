"""A reader sees all of a file or directory, or nothing of it, whenever its writer dies."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from emosteer.records.publish import TEMPORARY, publish_directory, publish_file, publish_json, read_json

KILLS = 12
FILE_WRITER = """
import sys
from pathlib import Path
from emosteer.records.publish import publish_file
print("ready", flush=True)
for number in range(10**9):
    publish_file(Path(sys.argv[1]), f"{number:09}" * 200_000)
"""
DIRECTORY_WRITER = """
import sys
from pathlib import Path
from emosteer.records.publish import publish_directory
print("ready", flush=True)

def write(directory):
    for part in ("a", "b", "c"):
        (directory / part).write_text(part * 1_000_000)

for number in range(10**9):
    publish_directory(Path(sys.argv[1]) / str(number), write)
"""


def killed(program: str, path: Path, chance: random.Random) -> None:
    """Run a writer, and kill it at a random moment."""
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.08))
        process.send_signal(signal.SIGKILL)


def test_a_killed_writer_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    chance, path = random.Random(1), tmp_path / "file"
    seen = 0
    for _ in range(KILLS):
        killed(FILE_WRITER, path, chance)
        if path.exists():
            text = path.read_text()
            assert text == text[:9] * 200_000
            seen += 1

    assert seen > 0
    assert all(p.name.startswith(TEMPORARY) for p in tmp_path.iterdir() if p != path)


def test_a_killed_writer_leaves_no_part_of_a_directory(tmp_path: Path) -> None:
    chance = random.Random(2)
    for _ in range(KILLS):
        killed(DIRECTORY_WRITER, tmp_path, chance)
    published = [path for path in tmp_path.iterdir() if not path.name.startswith(TEMPORARY)]

    assert published
    for directory in published:
        assert {path.name: path.read_text() for path in directory.iterdir()} == {part: part * 1_000_000 for part in "abc"}


def test_a_file_is_replaced_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    publish_file(path, "one")
    publish_file(path, "zwei \U0001f600".encode())

    assert path.read_text(encoding="utf-8") == "zwei \U0001f600"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    publish_file(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        publish_file(path, "new")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_that_others_cannot_read_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        publish_json(tmp_path / "file.json", {"value": value})

    assert list(tmp_path.iterdir()) == []


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    assert read_json(path) is None

    data = {"text": "naïve \u2028 \U0001f600 \x00", "numbers": [1, 0.1, None, True]}
    publish_json(path, data)
    assert read_json(path) == data
    assert json.loads(path.read_text(encoding="utf-8")) == data

    path.write_text("{")
    with pytest.raises(ValueError, match="Expecting"):
        read_json(path)


def test_of_many_writers_of_a_directory_one_is_first_and_its_content_stays(tmp_path: Path) -> None:
    path, start, first = tmp_path / "cell", threading.Barrier(8), []

    def publish(number: int) -> None:
        start.wait()
        if publish_directory(path, lambda directory: [(directory / p).write_text(str(number)) for p in "ab"] and None):
            first.append(number)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(first) == 1
    assert {(path / p).read_text() for p in "ab"} == {str(first[0])}
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_is_there_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "cell"
    assert publish_directory(path, lambda directory: (directory / "a").write_text("old") and None)

    assert not publish_directory(path, lambda directory: (directory / "a").write_text("new") and None)
    assert (path / "a").read_text() == "old"


def test_what_writing_a_directory_raises_leaves_nothing(tmp_path: Path) -> None:
    def broken(directory: Path) -> None:
        (directory / "a").write_text("half")
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="luck"):
        publish_directory(tmp_path / "cell", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_sign_that_another_was_first(tmp_path: Path) -> None:
    def full(directory: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        publish_directory(tmp_path / "cell", full)
