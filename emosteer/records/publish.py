"""Writing so that a reader sees all of it or nothing, whenever the writer dies, the disk fills, or the machine goes down.

Everything is written under a unique temporary name beside its place, flushed to the disk, and renamed; then the directory is flushed.
Rules of network file systems hold: names stay within one directory, no file is locked, and an answer may be lost.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emosteer.errors import Unwritable

log = logging.getLogger(__name__)

TEMPORARY = ".tmp-"
"""How the name of everything unfinished begins."""
ASIDE = ".damaged-"
"""How the name of everything begins that was found damaged."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)
"""What file systems say that cannot flush a directory."""
STALE_TRIES = 3
FLUSHES = 8
"""Files that are flushed at once."""


def publish_file(path: Path, content: str | bytes) -> None:
    """Put a file in its place at once, replacing what was there; raises Unwritable where the disk does not take it."""
    publish_files({path: content})


def publish_files(contents: Mapping[Path, str | bytes]) -> None:
    """Put files in their places, each at once, replacing what was there; they are flushed together, which takes the time of one.

    Raises Unwritable where the disk does not take one of them; then some of the others may be there.
    """
    drafts: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            with naming(path):
                drafts[path] = _temporary(path)
                drafts[path].write_bytes(content.encode() if isinstance(content, str) else content)
        _sync({draft: path for path, draft in drafts.items()})
        for path, draft in drafts.items():
            with naming(path):
                _move(draft, path)
    except BaseException:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
        raise
    _sync({path.parent: path for path in contents})


def publish_json(path: Path, data: Any) -> None:
    """Put JSON in its place at once; NaN and infinity are refused, since other readers know neither."""
    publish_file(path, as_json(data))


def as_json(data: Any) -> str:
    """JSON as it stands in our files; raises ValueError for NaN and infinity, since other readers know neither."""
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def publish_directory(path: Path, write: Callable[[Path], None]) -> bool:
    """Put a directory in its place at once; False where another process was first, whose content stays.

    Raises Unwritable where the disk does not take it, also when another was first: a full disk is told, whoever filled it.
    """
    with naming(path):
        temporary = _temporary(path)
        temporary.mkdir()
        try:
            write(temporary)
            _sync_below(temporary, path)
            try:
                _move(temporary, path)
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and path.is_dir():
                    return False
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync_one(path.parent, path)
    return True


def publish_link(path: Path, target: str) -> None:
    """Put a symbolic link in its place at once, over an older link; what is no link stays."""
    if path.exists() and not path.is_symlink():
        return
    with naming(path):
        temporary = _temporary(path)
        temporary.symlink_to(target)
        temporary.replace(path)


def read_json(path: Path) -> Any:
    """The JSON in a file, None where there is no such file; raises ValueError where it is damaged."""
    data = read_bytes(path)
    return None if data is None else parse_json(data.decode("utf-8"))


def parse_json(text: str) -> Any:
    """The JSON of a text; raises ValueError where it is damaged, nested beyond reading included."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def read_bytes(path: Path) -> bytes | None:
    """What a file holds, None where there is no such file."""
    for left in reversed(range(STALE_TRIES)):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            # Over NFS: another machine has put a new file there since this one was opened.
            if error.errno != errno.ESTALE or not left:
                raise
    raise AssertionError


def names_in(directory: Path) -> set[str]:
    """The names in a directory at one look; none where there is no such directory."""
    try:
        with os.scandir(directory) as entries:
            return {entry.name for entry in entries}
    except FileNotFoundError:
        return set()


def put_aside(path: Path, reason: str, then: str = "it is made again") -> None:
    """Rename a damaged file or directory, so that nobody reads it and a person can; tell so in one line."""
    aside = path.with_name(f"{ASIDE}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return  # another process was faster, and tells it
    except OSError as error:
        raise _unwritable(path, error) from error
    log.warning("%s is damaged (%s): kept as %s, and %s", path, reason, aside.name, then)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say in one line that `path` could not be written, and what to do about it: OSError inside becomes Unwritable."""
    try:
        yield
    except Unwritable:
        raise
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> Unwritable:
    if error.errno in NO_ROOM:
        way_out = "make room there and give the same command again: what is finished is kept"
    elif error.errno in NO_RIGHT:
        way_out = "let yourself write there, or name another place (store=, hydra.sweep.dir=, name=)"
    else:
        way_out = "mend that and give the same command again: what is finished is kept"
    raised = Unwritable(f"cannot write {path}: {error.strerror or error}; {way_out}")
    raised.errno = error.errno
    return raised


def _move(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except FileNotFoundError:
        # Over NFS a rename whose answer was lost is sent again, and then finds its source gone.
        if source.exists() or not target.exists():
            raise


def _sync_below(directory: Path, place: Path) -> None:
    _sync({Path(root, name): place for root, _, files in os.walk(directory) for name in (".", *files)})


def _sync(paths: Mapping[Path, Path]) -> None:
    """Flush files and directories to the disk, all at once: a flush is waiting, and those that wait together share it.

    Args:
        paths: each with the path to name where that fails.
    """
    if len(paths) <= 1:
        for item in paths.items():
            _sync_one(*item)
        return
    # A pool for each call: a process that forks has none.
    with ThreadPoolExecutor(min(len(paths), FLUSHES)) as pool:
        list(pool.map(_sync_one, paths.keys(), paths.values()))


def _sync_one(path: Path, place: Path) -> None:
    """Flush a file, or a directory's names, so that a rename outlives a crash of the machine."""
    if os.name != "posix" and path.is_dir():
        return
    with naming(place):
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in NO_DIRECTORY_SYNC or not path.is_dir():
                raise


def _temporary(path: Path) -> Path:
    if not path.parent.is_dir():  # most are there, and over a network file system this look costs nothing
        path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{TEMPORARY}{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
