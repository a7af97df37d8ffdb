"""A packed manifest gives back every task to the letter, and is small where tasks are alike."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emosteer.errors import Damaged
from emosteer.records.packing import PackedFiles, pack, unpack

LONG = "".join(f"key{i}: value {i * i}\n" for i in range(400))


def task(number: int, **changes: Any) -> dict[str, Any]:
    cell = {"kind": "cell", "layers": [number], "pair": {"name": "joy"}, "attribution": None}
    text = f"{LONG}layer: {number}\n# é \U0001f600 \x85 \r\n"
    return {"cell": cell, "overrides": [f"layer={number}"], "files": {"config.yaml": text, ".hydra/config.yaml": text}} | changes


TASKS = {
    "nothing beside": task(0, files={}),
    "first": task(1),
    "second": task(2),
    "nothing alike": task(3, cell={"kind": "baseline", "layers": None, "pair": None, "attribution": None}, files={"other": "x"}),
    "longer than a window of zlib's": task(4, files={"config.yaml": LONG * 20}),
    "null where others have something": task(5, cell={"kind": "cell", "layers": None, "pair": None, "attribution": {"steps": 1}}),
}


def as_plain(tasks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {cell_id: {**one, "files": dict(one["files"])} for cell_id, one in tasks.items()}


@pytest.mark.parametrize("names", [list(TASKS), ["second", "first"], ["nothing beside"], []])
def test_what_is_packed_comes_back(names: list[str]) -> None:
    tasks = {name: TASKS[name] for name in names}
    on_disk = json.loads(json.dumps(pack(tasks)))

    assert as_plain(unpack(on_disk)) == tasks
    assert list(unpack(on_disk)) == list(tasks)


def test_tasks_that_are_alike_cost_little() -> None:
    few, many = (json.dumps(pack({str(i): task(i) for i in range(n)})) for n in (1, 101))

    assert len(json.dumps(task(0))) > 10_000
    assert (len(many) - len(few)) / 100 < 300


def test_manifests_of_before_are_whole() -> None:
    assert unpack({"tasks": TASKS}) == TASKS


@pytest.mark.parametrize("damage", ["", "!", "~~~~~", "00000000", 3])
def test_files_that_do_not_unpack_are_told(damage: Any) -> None:
    with pytest.raises(Damaged, match="give the command again"):
        dict(PackedFiles(damage, b"{}"))
