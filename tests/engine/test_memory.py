"""How many rows a batch gets."""

from __future__ import annotations

import pytest
from tiny_models import tiny_model

from emosteer.engine import memory

GIB = 1 << 30


@pytest.mark.parametrize(
    ("free", "positions", "expected"),
    [
        pytest.param(1 << 50, 1, 448, id="as many as gain anything"),
        pytest.param(1 << 50, 1 << 24, 192, id="enough, where rows are long"),
        pytest.param(1 << 20, 1 << 24, 1, id="one, where nothing fits"),
    ],
)
def test_rows_of_the_cpu(monkeypatch: pytest.MonkeyPatch, free: int, positions: int, expected: int) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    assert memory.fitting_rows(model, positions, at_once=16) == expected


def test_rows_between_keep_their_keys_and_values_below_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(memory, "free_memory", lambda device: 1 << 50)
    config = model.model.config
    per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * (model.width // config.num_attention_heads) * 4
    positions = GIB // per_position // 300
    rows = memory.fitting_rows(model, positions, at_once=16)
    assert 300 <= rows < 302
    assert rows * per_position * positions <= GIB
