"""Data flows one way: a module imports only from those to its left, and the packages that it may know."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import emosteer

PACKAGE = Path(emosteer.__file__).parent
LAYERS = (
    ("config", "cores", "endings", "errors"),
    ("dotted", "datasets"),
    ("model",),
    ("attribution", "vectors"),
    ("steering",),
    ("engine",),
    ("scoring", "statistics", "strength"),
    ("records",),
    ("scored",),
    ("agreement", "caveats", "predictions"),
    ("sources",),
    ("checks", "figures", "measures", "progress", "stories", "tables", "timesheet", "turns", "vector_file"),
    ("bench", "composer", "conversation", "hydra_messages", "objective", "overview", "resources", "vector_formats"),
    ("one_line",),
    ("alignment", "planning", "summary", "tracking", "worker"),
    ("report",),
    ("arguments", "finaliser", "launcher", "model_card"),
    ("comparison", "exporting", "hydra_jobs", "slurm"),
    ("api",),
    ("probe",),
    ("callback", "main", "sweep_cli"),
    ("__main__",),
)
"""From left to right. Those of one layer know nothing of each other."""
PLACE = {name: place for place, names in enumerate(LAYERS) for name in names}

FRONT_ENDS = ("hydra", "omegaconf", "wandb", "typer", "rich")
FILES = ("pathlib", "os", "json", "shutil", "tempfile", "pyarrow", "pandas")
MODELS = ("torch", "transformers", "safetensors")
UNKNOWN = {
    "model": FRONT_ENDS,
    "attribution": FRONT_ENDS + FILES,
    "vectors": FRONT_ENDS + FILES,
    "steering": FRONT_ENDS + FILES,
    "engine": FRONT_ENDS + FILES,
    "scoring": FRONT_ENDS,
    "statistics": FRONT_ENDS + FILES + MODELS,
    "records": FRONT_ENDS + MODELS,
    "launcher": MODELS,
    "scored": FRONT_ENDS + MODELS,
    "agreement": FRONT_ENDS + MODELS,
    "caveats": FRONT_ENDS + MODELS,
    "predictions": FRONT_ENDS + MODELS,
    "tables": FRONT_ENDS + MODELS,
    "alignment": FRONT_ENDS + MODELS,
    "report": (*FRONT_ENDS, "torch", "transformers"),
}
"""What a module must not import, at its top or in a function: torch code knows nothing of Hydra, files or W&B, records nothing
of models."""


def sources() -> Iterator[tuple[str, Path]]:
    """Module or package of emosteer -> each of its files."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if name not in ("__init__", "conf"):
            yield name, path


def imported(source: str) -> set[str]:
    """Every module that a source imports, wherever in it (`torch.nn`, `emosteer.model.capture`), but for a type checker alone."""
    nodes = list(ast.walk(ast.parse(source)))
    for_types = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    unread = {inner for block in for_types for statement in block.body for inner in ast.walk(statement)}
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import) and node not in unread:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node not in unread:
            assert node.level == 0, "imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def our_own(source: str) -> set[str]:
    """The modules and packages of emosteer that a source imports."""
    parts = (name.split(".") for name in imported(source))
    return {part[1] for part in parts if part[0] == "emosteer" and len(part) > 1 and not part[1].startswith("__")}


@pytest.mark.parametrize(("name", "path"), list(sources()), ids=lambda value: str(getattr(value, "name", value)))
def test_imports_come_from_the_left(name: str, path: Path) -> None:
    assert name in PLACE, f"say in LAYERS where {name} stands"
    wrong = {other for other in our_own(path.read_text(encoding="utf-8")) - {name} if PLACE[other] >= PLACE[name]}
    assert not wrong, f"{name} stands left of {wrong}, or beside"


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_module_knows_only_its_own_trade(name: str) -> None:
    for owner, path in sources():
        if owner == name:
            packages = {module.split(".")[0] for module in imported(path.read_text(encoding="utf-8"))}
            assert not packages & set(UNKNOWN[name]), path.name


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import torch.nn\ndef f():\n    from emosteer import tables, __version__\n    from emosteer.model.capture import capture"
    source += "\nif TYPE_CHECKING:\n    from emosteer.worker import Loaded"
    assert imported(source) >= {"torch.nn", "emosteer.tables", "emosteer.model.capture.capture"}
    assert our_own(source) == {"tables", "model"}
