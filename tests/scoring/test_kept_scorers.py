"""A sweep keeps its scorers as they were when its command was given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from emosteer.errors import EmosteerError
from emosteer.scoring.scorer import find_scorers, kept_scorers

CONFIG = {"mine": {"_target_": "my_kept_scorers.length", "unit": 2}}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's module, which each test may edit."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_kept_scorers", raising=False)
    path = tmp_path / "my_kept_scorers.py"
    path.write_text("def length(replies, unit):\n    return {'length': [len(r) / unit for r in replies]}\nlength.version = 3\n")
    return path


def test_their_keys_need_no_import(module: Path) -> None:
    key = find_scorers(CONFIG)[0].key
    module.unlink()
    kept = kept_scorers(CONFIG, {"mine": 3})[0]
    assert kept.key == key
    assert key.startswith("mine-v3-")
    assert kept_scorers(CONFIG, {"mine": 4})[0].key != key


def test_they_measure_when_they_are_wanted(module: Path) -> None:
    assert kept_scorers(CONFIG, {"mine": 3})[0].measure(["four"], lambda: pytest.fail("it asks for no model")) == {"length": [2.0]}


def test_one_that_is_of_another_version_by_now_does_not_measure(module: Path) -> None:
    with pytest.raises(
        EmosteerError, match=r"my_kept_scorers.length is of version 3 by now, .* took version 2: give the command again"
    ):
        kept_scorers(CONFIG, {"mine": 2})[0].measure(["four"], lambda: pytest.fail("it asks for no model"))
