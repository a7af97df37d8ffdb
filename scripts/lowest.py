"""Prints the oldest versions that pyproject.toml allows, as constraints for pip: how its lower bounds are tried.

    python scripts/lowest.py > lowest.txt && pip install --constraint lowest.txt '.[wandb]'

Names given as arguments are left out: `lowest.py torch` keeps a torch that is already there.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def lowest(requirements: list[str]) -> Iterator[tuple[str, str]]:
    """Name and lower bound of each requirement that has one."""
    for requirement in map(Requirement, requirements):
        for bound in requirement.specifier:
            if bound.operator == ">=":
                yield requirement.name, bound.version


def main(kept: list[str]) -> None:
    """Print a constraint for every dependency and every requirement of an extra."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    declared = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    for name, version in sorted(set(lowest(declared))):
        if name not in kept:
            print(f"{name}=={version}")


if __name__ == "__main__":
    main(sys.argv[1:])
