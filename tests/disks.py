"""Disks that are full, and users who may not write, for tests: made for a test and gone after it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PR_CAPBSET_DROP = 24
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
"""What lets root pass over permission bits."""


@contextmanager
def small_disk(at: Path, size: str) -> Iterator[Path]:
    """A file system of so few bytes at a directory; needs root, or the test is skipped and says so."""
    at.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(at)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def resize(disk: Path, size: str) -> None:
    """Give a small disk another size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that is left on a disk; the file to remove."""
    stuffing = disk / "stuffing"
    with stuffing.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return stuffing
    raise AssertionError


def heed_permissions() -> None:
    """In a child before its program starts: root that permission bits bind like anybody."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
            if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "prctl")


@contextmanager
def read_only(*directories: Path) -> Iterator[None]:
    """Take the right to write away from trees, as long as the work inside goes on."""
    paths = [path for directory in directories for path in [directory, *directory.rglob("*")]]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def copied(source: Path, target: Path) -> Path:
    """A copy of a tree."""
    return Path(shutil.copytree(source, target))
