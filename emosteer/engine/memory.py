"""How many rows fit into the memory that is free."""

from __future__ import annotations

import torch

from emosteer.model.language_model import LanguageModel
from emosteer.model.memory import free_memory

MOST_ROWS = {"cpu": 448, "cuda": 512, "mps": 64}
"""Rows beyond which a batch gains nothing (measured on the CPU: nearly saturated at 224)."""
SHARE = 4
"""A batch takes a part of the memory that is free: a quarter."""
ENOUGH_ROWS, ENOUGH_BYTES = 192, 1 << 30
"""On the CPU more rows than that gain little, and are taken only where their keys and values stay below so many bytes."""


def most_rows(device: torch.device) -> int:
    """Rows beyond which a batch on a device gains nothing."""
    return MOST_ROWS.get(device.type, min(MOST_ROWS.values()))


def fitting_rows(model: LanguageModel, positions: int, at_once: int) -> int:
    """Rows whose keys and values, counted generously, fill a quarter of the free memory, or on the CPU are enough; at least 1.

    Args:
        model: the model.
        positions: that a row keeps for itself.
        at_once: rows whose logits are made at a time.
    """
    config = model.model.config.get_text_config()
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or model.width // config.num_attention_heads
    per_row = 2 * model.n_blocks * kv_heads * head_width * model.dtype.itemsize * max(1, positions)
    # Scores, their copies in float32, and what a sampled row's noise takes.
    logits = 4 * 4 * config.vocab_size * min(at_once, most_rows(model.device))
    room = free_memory(model.device) // SHARE - logits
    most = most_rows(model.device)
    if model.device.type == "cpu":
        most = min(most, max(ENOUGH_ROWS, ENOUGH_BYTES // per_row))
    return max(1, min(most, room // per_row))
