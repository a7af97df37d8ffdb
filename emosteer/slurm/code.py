"""The code that jobs run: that of the hour of submission, also when the working tree changes while they wait.

From a checkout the package is copied into the sweep's directory, and so are modules of the user's own that a configuration names.
Of an installed wheel the version is kept, and jobs refuse to run another.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import emosteer
from emosteer.records.paths import SlurmPaths
from emosteer.records.publish import publish_directory, publish_file

PACKAGE = Path(emosteer.__file__).parent
OURS = ("emosteer", "hydra_plugins")
NOT_CODE = ("__pycache__", "*.pyc", ".*")


def keep_code(paths: SlurmPaths, functions: Iterable[str]) -> Path | None:
    """Copy what is not installed; the directory to put on Python's path, None where all is.

    Args:
        paths: of the sweep.
        functions: dotted paths that the sweep's configuration names, such as `my_scorers.length`.

    Raises:
        Unwritable: the sweep's directory cannot be written.
    """
    sources = [*([] if is_installed(PACKAGE) else [PACKAGE]), *_own_modules(functions)]
    if not sources:
        return None
    directory = paths.code(_digest(sources))
    if not directory.is_dir():
        publish_directory(directory, lambda draft: _copy(sources, draft))
    return directory


def keep_diff(paths: SlurmPaths, token: str) -> None:
    """Keep what the checkout has changed since its last commit, if anything: with the revision it tells the code that ran."""
    if is_installed(PACKAGE):
        return
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE.parent), "diff", "HEAD"], capture_output=True, timeout=30, check=True)  # noqa: S603, S607
    except (OSError, subprocess.SubprocessError):
        return  # no checkout, or no git: the copy is there all the same
    if done.stdout:
        publish_file(paths.diff(token), done.stdout)


def is_installed(path: Path) -> bool:
    """Whether code lies where packages are installed, and not in a working tree."""
    places = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")}
    return any(path.resolve().is_relative_to(Path(place).resolve()) for place in places)


def _own_modules(functions: Iterable[str]) -> Iterator[Path]:
    """The files and packages of the user's own behind dotted paths, and all that these import, wherever in them."""
    wanted, seen = [function.partition(".")[0] for function in functions], set(OURS)
    while wanted:
        name = wanted.pop()
        for place in () if name in seen else _places(name):
            yield place
            wanted += sorted(_imported(place))
        seen.add(name)


def _places(name: str) -> list[Path]:
    """Where a module's code lies, but for installed ones; a namespace package lies in several places."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    found = spec.submodule_search_locations or ([spec.origin] if spec.has_location and spec.origin else [])
    return [path for path in map(Path, found) if path.exists() and not is_installed(path)]


def _imported(place: Path) -> set[str]:
    """The top-level modules that a file, or any file of a package, imports; one that Python cannot read imports none."""
    names: set[str] = set()
    for path in [place] if place.is_file() else place.rglob("*.py"):
        with contextlib.suppress(SyntaxError, ValueError, OSError):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module.partition(".")[0])
    return names


def _copy(sources: Iterable[Path], target: Path) -> None:
    for source in sources:
        if source.is_dir():
            shutil.copytree(source, target / source.name, ignore=shutil.ignore_patterns(*NOT_CODE))
        else:
            shutil.copy2(source, target / source.name)


def _digest(sources: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        for path in [source] if source.is_file() else sorted(source.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(source.parent)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
