"""What is declared, what is imported, and what CI installs agree."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from distributions import PROJECT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = DECLARED["optional-dependencies"]
APART = {"trackio": "tests/tracking/trackio.txt"}
"""Extras that tests install into environments of their own, because they want other versions than the rest; their pins."""
OLDEST_PYTHON = "3.11.2"
"""Debian 12's."""
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)")


def pins(file: str = "constraints.txt") -> dict[str, str]:
    """The version that CI installs of each distribution."""
    lines = [line for line in (PROJECT / file).read_text().splitlines() if not line.startswith("#")]
    found = [PIN.fullmatch(line) for line in lines]
    assert all(found), "every line is name==version: no path, no address, no local build"
    return {canonicalize_name(match[1]): match[2] for match in found if match}


@pytest.mark.parametrize("group", ["dependencies", *EXTRAS])
def test_every_requirement_is_pinned_within_its_bounds(group: str) -> None:
    pinned = pins(APART.get(group, "constraints.txt"))
    for requirement in map(Requirement, DECLARED["dependencies"] if group == "dependencies" else EXTRAS[group]):
        if requirement.name == "emosteer":
            assert requirement.extras <= set(EXTRAS)
        else:
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), str(requirement)


def test_what_requirements_require_is_pinned_and_installed() -> None:
    pinned = pins()
    assert {name: pinned.get(name) for name in everything()} == everything()


def test_what_is_pinned_runs_on_the_oldest_python() -> None:
    demands = {name: distribution(name).metadata["Requires-Python"] or "" for name in everything()}
    assert [name for name, python in demands.items() if not SpecifierSet(python).contains(OLDEST_PYTHON)] == []


@cache
def everything() -> dict[str, str]:
    """Name and installed version of all that the project and its extras bring."""
    extras = [group for name, group in EXTRAS.items() if name not in APART]
    declared = [Requirement(one) for group in (DECLARED["dependencies"], *extras) for one in group]
    seen: set[str] = set()
    return dict(found for requirement in declared if requirement.name != "emosteer" for found in closure(requirement, seen))


def closure(requirement: Requirement, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Name and installed version (without a local build's suffix) of a requirement and of all that it requires."""
    name = canonicalize_name(requirement.name)
    if str(requirement) in seen:
        return
    seen.add(str(requirement))
    found = distribution(name)
    yield name, found.version.partition("+")[0]
    for needed in map(Requirement, found.requires or ()):
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
            yield from closure(needed, seen)


def test_all_that_the_package_imports_is_declared() -> None:
    always = {canonicalize_name(Requirement(one).name) for one in DECLARED["dependencies"]}
    of_wandb = [*EXTRAS["wandb"], *EXTRAS["dashboard"]]
    with_wandb = always | {canonicalize_name(Requirement(one).name) for one in of_wandb}
    with_submitit = always | {canonicalize_name(Requirement(one).name) for one in EXTRAS["slurm"]}
    owners = packages_distributions()
    for module in [*PROJECT.glob("emosteer/**/*.py"), *PROJECT.glob("launch/hydra_plugins/**/*.py")]:
        if module.name == "trackio_writer.py":
            continue  # runs where trackio is
        declared = with_wandb if "wandb" in module.name else with_submitit if module.match("slurm/script.py") else always
        needed = {canonicalize_name(owners.get(name, [name])[0]) for name in imported(module)}
        assert needed <= declared, f"{module.relative_to(PROJECT)} imports what is not declared"


def imported(module: Path) -> set[str]:
    """The packages that a module imports, besides the standard library and the project."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"emosteer", "hydra_plugins"}
