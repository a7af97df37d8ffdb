"""The repository's papers, citation and hooks; and that its tests can be told apart."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

import emosteer

ROOT = Path(__file__).parent.parent
CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
HOOKS: list[dict[str, Any]] = [
    hook for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"] for hook in repo["hooks"]
]


def test_the_citation_is_of_this_version() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] == "software"
    assert CITATION["version"] == emosteer.__version__
    assert CITATION["license"] == "Apache-2.0"


@pytest.mark.parametrize("work", [CITATION, *CITATION["references"]], ids=lambda work: work["title"])
def test_a_cited_work_has_what_the_format_requires(work: dict[str, Any]) -> None:
    assert work["title"]
    for author in work["authors"]:
        assert author.get("name") or (author.get("family-names") and author.get("given-names"))


def test_the_paper_and_the_lexicon_are_cited() -> None:
    assert {author["family-names"] for work in CITATION["references"] for author in work["authors"]} >= {"Chebrolu", "Mohammad"}
    assert all(work["type"] == "article" and isinstance(work["year"], int) for work in CITATION["references"])


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_runs_what_is_there(hook: dict[str, Any]) -> None:
    """Hooks are local: none is fetched, and each is a pattern or a program of the project's environment."""
    assert hook["language"] in ("system", "pygrep")
    if hook["language"] == "system":
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/")
        assert program.removeprefix(".venv/bin/") in (ROOT / "Makefile").read_text(encoding="utf-8")
        assert (ROOT / program).exists()


def test_modules_of_the_tests_have_names_of_their_own() -> None:
    """Tests lie in no package, so that pytest imports each by its name alone."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py")
    assert {name for name, count in names.items() if count > 1} == set()
