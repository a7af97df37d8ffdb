"""A Python environment for each library that is measured: pinned versions that it accepts, and the very torch that runs here."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from emosteer.model.source import cache_dir

REQUIREMENTS = Path(__file__).parent / "requirements"
"""`<name>.txt`: all packages of an environment with their versions, but torch."""


class EnvironmentNotBuiltError(Exception):
    """An environment that the benchmark needs cannot be built here."""


def interpreter(name: str) -> Path:
    """The interpreter of an environment, which is built where it is not there yet.

    Raises:
        EnvironmentNotBuiltError: with what pip says.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    torch = distribution("torch")
    made_of = (
        f"{requirements.read_text(encoding='utf-8')}\0{torch.locate_file('torch')}\0{torch.version}\0{sys.executable}\0{sys.version}"
    )
    directory = cache_dir() / "benchmark" / f"{name}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    python = directory / "bin" / "python"
    ready = directory / "ready"
    if not ready.exists():
        print(f"building {directory}", file=sys.stderr, flush=True)
        shutil.rmtree(directory, ignore_errors=True)
        _build(directory, python, requirements, torch)
        ready.touch()
    return python


def _build(directory: Path, python: Path, requirements: Path, torch: Distribution) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    _call([sys.executable, "-m", "venv", str(directory)])
    _link_torch(torch, next(directory.glob("lib/python*/site-packages")), set(pinned(requirements)))
    _call([*pip, "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--requirement", str(requirements)])
    # Whether every package is one that the others accept.
    _call([*pip, "check"])


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentNotBuiltError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def pinned(requirements: Path) -> dict[str, str]:
    """Name -> version of a file's packages."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def _link_torch(torch: Distribution, site: Path, others: set[str]) -> None:
    """Make this process's torch, and what it alone needs, that environment's too.

    The same build in each: another one would be another machine. And gigabytes are not copied.
    """
    for found in _with_needs(torch, others):
        for top in {Path(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (link := site / top).exists():
                link.symlink_to(Path(str(found.locate_file(top))).resolve())


def _with_needs(found: Distribution, seen: set[str]) -> Iterator[Distribution]:
    """A distribution, and all that it needs of what is installed here; those of `seen` are left out."""
    seen.add(canonicalize_name(found.metadata["Name"]))
    yield found
    for needed in map(Requirement, found.requires or ()):
        if canonicalize_name(needed.name) in seen or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        try:
            yield from _with_needs(distribution(needed.name), seen)
        except PackageNotFoundError as error:
            raise EnvironmentNotBuiltError(f"torch needs {needed.name}, which is not installed: {error}") from None
