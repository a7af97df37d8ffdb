"""A tiny model on disk, and a fresh directory to give commands in."""

from __future__ import annotations

from pathlib import Path

import pytest
from desk import GUARD, Desk, save_tiny_model


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaMA, saved."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama", seed=0)


@pytest.fixture(scope="session")
def other_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, with other weights."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "other-llama", seed=1)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory on PYTHONPATH."""
    directory = tmp_path_factory.mktemp("library")
    (directory / "sitecustomize.py").write_text(GUARD)
    return directory


@pytest.fixture
def desk(tmp_path: Path, tiny_directory: Path, library: Path) -> Desk:
    """A fresh directory to give commands in."""
    return Desk(tmp_path, tiny_directory, library)
