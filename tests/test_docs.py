"""The site builds without a warning, and what it and the README say can be typed and followed."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer
from documents import PAGES, ROOT, Command, anchors, commands, jobs, links, write_example_files
from safetensors.numpy import save_file
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser

from emosteer.config import Config, ModelConfig
from emosteer.datasets import SHIPPED
from emosteer.planning import plan, typed
from emosteer.sweep_cli import app

ALL_COMMANDS = [command for page in PAGES for command in commands(page)]
OURS = [command for command in ALL_COMMANDS if command.words[0] == "emosteer"]
SWEEP = [command for command in ALL_COMMANDS if command.words[0] == "emosteer-sweep" and len(command.words) > 1]
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
DATA = {"prompts.jsonl": "prompts/conversation.jsonl", "awe_d.jsonl": "diagnostics/love_hate.jsonl"}
"""Files that commands of the datasheet name and no page shows -> shipped ones of the same format."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built where no network answers."""
    directory = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-E", "-q", "-b", "html", ROOT / "docs", directory],
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert not built.stderr
    return directory


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The extension that writes the configuration reference."""
    sys.path.insert(0, str(ROOT / "docs" / "_extensions"))
    try:
        return importlib.import_module("configuration")
    finally:
        sys.path.pop(0)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with all files that pages show and commands name, `a-model` of 32 blocks and no layers, and `a-classifier`."""
    for page in PAGES:
        write_example_files(page, tmp_path)
    for name, shipped in DATA.items():
        shutil.copy(SHIPPED / shipped, tmp_path / name)
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = tmp_path / "a-model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"num_hidden_layers": 32}))
    save_file({"nothing": np.zeros(1)}, model / "model.safetensors")
    classifier = shutil.copytree(model, tmp_path / "a-classifier")
    head = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "joy", "1": "anger"}}
    (classifier / "config.json").write_text(json.dumps({"num_hidden_layers": 2, **head}))
    monkeypatch.setenv("JUDGE_KEY", "made-up")
    return tmp_path


def test_pages_fetch_nothing(site: Path) -> None:
    pages = list(site.glob("*.html"))
    assert len(pages) > 10
    for page in pages:
        fetched = re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(https?:[^"]+)', page.read_text(encoding="utf-8"))
        assert not fetched, page.name


def test_formulas_are_drawn(site: Path) -> None:
    method = (site / "method.html").read_text(encoding="utf-8")
    assert method.count('display="block"') == (ROOT / "docs" / "method.md").read_text().count("$$") / 2
    assert "$$" not in method


def test_every_key_is_described_and_listed(site: Path, reference: ModuleType) -> None:
    page = (site / "configuration.html").read_text(encoding="utf-8")
    keys = [*reference.keys(Config)]
    keys += [key for group, schema in reference.groups().items() for key in reference.keys(schema, f"{group}.")]
    assert len(keys) > 40
    assert [key.name for key in keys if not key.description] == [], "give these a docstring in emosteer/config.py"
    assert [key.name for key in keys if f">{key.name}</span>" not in page] == []


def test_every_option_is_listed(site: Path, reference: ModuleType) -> None:
    page = (site / "configuration.html").read_text(encoding="utf-8")
    options = [f"{path.parent.name}={path.stem}" for path in (ROOT / "emosteer" / "conf").glob("[!h]*/*.yaml")]
    assert len(options) > 25
    assert [option for option in options if f">{option}</span>" not in page] == []


def test_every_sweep_command_is_listed(site: Path) -> None:
    page = (site / "command-line.html").read_text(encoding="utf-8")
    names = list(typer.main.get_command(app).commands)
    assert [name for name in names if f'>emosteer-sweep</span> <span class="pre">{name}</span>' not in page] == []


@pytest.mark.parametrize("command", OURS, ids=str)
def test_commands_are_accepted(command: Command, desk: Path) -> None:
    """Composed and planned, as the command does before it loads a model; with a model on disk instead of the hub's."""
    for task in jobs(command):
        config = typed(task)
        config.model = ModelConfig(name=config.model.name, path=str(desk / "a-model"), dtype=config.model.dtype)
        assert plan(config)


@pytest.mark.parametrize("command", SWEEP, ids=str)
def test_sweep_commands_exist(command: Command) -> None:
    group = typer.main.get_command(app)
    name, *arguments = command.words[1:]
    if name.startswith("-"):
        assert name in [option for parameter in group.params for option in parameter.opts]
        return
    found = group.commands[name]
    if arguments:  # a sentence may name a command without any
        # Parses them, and calls nothing.
        found.make_context(name, arguments)


def test_there_are_commands() -> None:
    assert len(OURS) > 25
    assert {command.page for command in OURS} >= {"README.md", "docs/sweeps.md", "docs/extending.md", "docs/index.md"}
    assert len(SWEEP) > 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        # Headings that are generated are known to Sphinx alone, which warns.
        assert not anchor or anchor in anchors(target) or "<!-- generated" in target.read_text(encoding="utf-8"), link


@pytest.mark.real_model
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    document = Sybil(parsers=[PythonCodeBlockParser()]).parse(page)
    examples = list(document.examples())
    assert examples
    for example in examples:
        example.evaluate()
