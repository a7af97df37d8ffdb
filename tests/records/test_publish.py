"""A reader sees all of a file or directory, or nothing of it, whenever its writer dies."""

from __future__ import annotations

import errno
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

from emosteer.errors import EmosteerError, Unwritable
from emosteer.records.publish import TEMPORARY, naming, publish_directory, publish_file, publish_files, publish_json, read_json

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


@pytest.mark.parametrize("is_there", [False, True])
def test_a_full_disk_is_no_sign_that_another_was_first(tmp_path: Path, is_there: bool) -> None:
    def full(directory: Path) -> None:
        if is_there:
            (tmp_path / "cell").mkdir()
            (tmp_path / "cell" / "a").write_text("another's")
        raise OSError(28, "No space left on device")

    with pytest.raises(Unwritable, match=r"cannot write .*/cell: No space left on device; make room there and give the same command"):
        publish_directory(tmp_path / "cell", full)


def test_a_rename_that_finds_no_room_is_no_sign_of_it_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cell").mkdir()

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(Unwritable, match="Disk quota exceeded; make room there"):
        publish_directory(tmp_path / "cell", lambda directory: (directory / "a").write_text("a") and None)
    assert [path.name for path in tmp_path.iterdir()] == ["cell"]


def test_what_cannot_be_written_is_an_error_for_the_user_and_for_the_machine() -> None:
    """The one prints it in a line, the other does not take it for a cell's failure."""
    with pytest.raises(EmosteerError) as caught, naming(Path("/nowhere")):
        raise PermissionError(errno.EACCES, "Permission denied")

    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.EACCES
    assert str(caught.value).startswith("cannot write /nowhere: Permission denied; let yourself write there")
    assert "\n" not in str(caught.value)


def test_a_rename_whose_answer_was_lost_has_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of a network file system sends it again, and is told that its source is gone."""
    replace = Path.replace

    def twice(self: Path, target: Path) -> Path:
        replace(self, target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", twice)
    publish_file(tmp_path / "file", "whole")

    assert publish_directory(tmp_path / "cell", lambda directory: (directory / "a").write_text("whole") and None)
    assert (tmp_path / "file").read_text() == (tmp_path / "cell" / "a").read_text() == "whole"


@pytest.mark.parametrize(("times", "reads"), [(2, True), (3, False)])
def test_a_stale_handle_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, reads: bool) -> None:
    publish_json(tmp_path / "file", [1])
    read, left = Path.read_bytes, [times]

    def stale(self: Path) -> bytes:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", stale)
    if reads:
        assert read_json(tmp_path / "file") == [1]
    else:
        with pytest.raises(OSError, match="Stale"):
            read_json(tmp_path / "file")


def test_files_are_published_together(tmp_path: Path) -> None:
    contents: dict[Path, str | bytes] = {tmp_path / "a": "é", tmp_path / "deep" / "b": b"\x00", tmp_path / "c": ""}
    (tmp_path / "c").write_text("old")

    publish_files(contents)
    publish_files({})

    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} == {Path("a"), Path("deep/b"), Path("c")}
    assert [path.read_bytes() for path in contents] == ["é".encode(), b"\x00", b""]


def test_of_files_that_are_published_together_all_are_flushed_before_one_is_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in "abcdefghijkl"]
    there: list[int] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        there.append(sum(path.exists() for path in paths))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    publish_files(dict.fromkeys(paths, "x"))

    assert there == [0] * len(paths) + [len(paths)], "the files, and then their directory"


@pytest.mark.parametrize("fails", ["writing", "flushing"])
def test_of_files_that_are_published_together_one_that_fails_leaves_nothing(
    tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no directory")
    if fails == "flushing":
        monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    second = tmp_path / "file" / "b" if fails == "writing" else tmp_path / "b"

    with pytest.raises(Unwritable, match="cannot write"):
        publish_files({tmp_path / "a": "a", second: "b"})

    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_names_are_flushed_with_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a crash of the machine may lose a rename that the next command counts on."""
    flushed: list[str] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    publish_file(tmp_path / "file", "x")
    assert [Path(path).name.startswith(TEMPORARY) for path in flushed] == [True, False]
    assert flushed[-1] == str(tmp_path)

    flushed.clear()

    def write(directory: Path) -> None:
        (directory / "sub").mkdir()
        (directory / "sub" / "a").write_text("a")

    publish_directory(tmp_path / "cell", write)
    draft = next(path for path in flushed if Path(path).name.startswith(TEMPORARY))
    assert set(flushed) == {draft, f"{draft}/sub", f"{draft}/sub/a", str(tmp_path)}
    assert flushed[-1] == str(tmp_path)


def test_nothing_stays_open(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    for number in range(50):
        publish_file(tmp_path / f"file{number}", "x")
        publish_directory(tmp_path / f"cell{number}", lambda directory: (directory / "a").write_text("a") and None)
        read_json(tmp_path / "absent")

    assert open_files() == before
