"""Where sweeps lie, and how one is opened by what the user calls it."""

from __future__ import annotations

from pathlib import Path

from emosteer.errors import Damaged, EmosteerError
from emosteer.records.cell import Cell
from emosteer.records.packing import unpack
from emosteer.records.paths import SweepPaths
from emosteer.records.publish import read_json
from emosteer.records.store import Store
from emosteer.records.sweep import Sweep

OUTPUTS = Path("outputs")
HOW_TO_MAKE_ONE = "`emosteer -m layer=8,12 coefficient=0.1,0.2 name=mine` makes one"
MOST_NAMES, MOST_CELLS = 12, 4
MANIFEST = {"time": str, "line": list, "store": str, "settings": dict, "provenance": dict}
"""What a manifest has, besides its tasks."""


def sweep_directories(directory: Path) -> list[Path]:
    """The sweeps in a directory, in the order of their names; the directory itself, where that is one."""
    if _manifests(directory):
        return [directory]
    return sorted(path for path in directory.iterdir() if path.is_dir() and _manifests(path))


def open_sweep(name: str) -> Sweep:
    """The sweep that has a name under outputs/, or lies in a directory.

    Raises:
        EmosteerError: there is none, or a manifest of it is damaged.
    """
    candidates = [Path(name), OUTPUTS / name]
    for directory in candidates:
        if _manifests(directory):
            return sweep_in(directory)
    places = " and ".join(dict.fromkeys(str(path.absolute()) for path in candidates))
    raise EmosteerError(f"{name}: no sweep there (looked in {places}); {_choice()}")


def sweep_in(directory: Path) -> Sweep:
    """The sweep in a directory that holds one, over the store that its newest command names.

    Raises:
        EmosteerError: a command's manifest is damaged. Without it the cells that it brought would be missing unsaid, and `gc` would
            take them for unreferenced.
    """
    manifests = _manifests(directory)
    for path in manifests:
        if not _is_whole(path):
            raise EmosteerError(
                f"{path.absolute()} is damaged: restore it, or move it away and repeat that command (finished cells are kept)"
            )
    store = Path(read_json(manifests[-1])["store"])
    # A tree that was moved keeps its store beside its sweeps.
    root = directory.resolve()
    beside = root.parent / store.name
    return Sweep(root, Store(store if store.exists() or not beside.exists() else beside))


def cell_called(sweep: Sweep, name: str) -> Cell:
    """The cell, control, baseline or attribution of a sweep that has an id, or alone begins with it.

    Raises:
        EmosteerError: there is none, or several.
    """
    cells = {task.cell.id: task.cell for task in sweep.tasks()}
    if name in cells:
        return cells[name]
    found = [cell_id for cell_id in cells if cell_id.startswith(name)]
    if len(found) == 1:
        return cells[found[0]]
    if found:
        more = f" and {len(found) - MOST_CELLS} more" if len(found) > MOST_CELLS else ""
        raise EmosteerError(f"{name}: so begin {', '.join(found[:MOST_CELLS])}{more}; give more of the id")
    raise EmosteerError(f"{name}: no task of {sweep.name} is called so; `emosteer-sweep status {sweep.name} --cells` lists them")


def _manifests(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in SweepPaths(directory).commands.iterdir() if path.suffix == ".json" and path.name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_whole(manifest: Path) -> bool:
    """Whether a file is a command's manifest."""
    try:
        read = read_json(manifest)
        for task in unpack(read).values():
            _ = Cell.from_json(task["cell"]), tuple(task["overrides"]), dict(task["files"])
        return all(isinstance(read[key], kind) for key, kind in MANIFEST.items())
    except (ValueError, KeyError, TypeError, AttributeError, Damaged):
        return False


def _choice() -> str:
    """What there is instead."""
    try:
        names = [path.name for path in sweep_directories(OUTPUTS)]
    except OSError:
        names = []
    if not names:
        return f"there are none under {OUTPUTS}/ either: {HOW_TO_MAKE_ONE}"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"under {OUTPUTS}/ lie: {', '.join(names[:MOST_NAMES])}{more}"
