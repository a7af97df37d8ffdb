"""Writing so that a reader sees all of it or nothing, whenever the writer dies.

Everything is written under a unique temporary name beside its place, flushed to the disk, and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
"""How the name of everything unfinished begins."""


def publish_file(path: Path, content: str | bytes) -> None:
    """Put a file in its place at once, replacing what was there."""
    data = content.encode() if isinstance(content, str) else content
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish_json(path: Path, data: Any) -> None:
    """Put JSON in its place at once; NaN and infinity are refused, since other readers know neither."""
    publish_file(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def publish_directory(path: Path, write: Callable[[Path], None]) -> bool:
    """Put a directory in its place at once; False where another process was first, whose content stays."""
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        write(temporary)
        for written in temporary.rglob("*"):
            if written.is_file():
                with written.open("rb") as file:
                    os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        if path.is_dir():
            return False
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def publish_link(path: Path, target: str) -> None:
    """Put a symbolic link in its place at once, over an older link; what is no link stays."""
    if path.exists() and not path.is_symlink():
        return
    temporary = _temporary(path)
    temporary.symlink_to(target)
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """The JSON in a file, None where there is no such file; raises ValueError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{TEMPORARY}{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
