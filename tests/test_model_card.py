"""What a card says of a cell whose coefficient was found, and split among blocks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from made_up_sweep import join, made_up_cell, publish

from emosteer.config import AutoCoefficientConfig
from emosteer.model_card import CardOf, model_card
from emosteer.records.cell import StrengthSpec
from emosteer.records.store import Store
from emosteer.records.sweep import Sweep
from emosteer.tables import build


def test_the_coefficient_that_was_found_and_each_blocks_share_of_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    sweep = Sweep(tmp_path / "mine", store)
    made = made_up_cell(store, layers=(1, 3), across_blocks="split")
    assert made.vector is not None
    cell = dataclasses.replace(made, coefficient=None, strength=StrengthSpec(AutoCoefficientConfig(), made.vector))
    found = {"coefficient": 0.25, "cost": 0.1, "status": "found", "steps": [[0.25, 0.1]]}
    join(sweep, [cell, cell.baseline()])
    for one in (cell, cell.baseline()):
        publish(store, sweep.scorers(), one, found=found)
    card = model_card(CardOf(cell, build(sweep), 0.95, {}, (1, 3), 0.125, (12.5, 25.0), ["vector.safetensors"]))
    assert "with the coefficient 0.25, it pushes" in card
    assert "12.5, 25, that is 0.125 residual norms." in card
    assert 'layer=[1, 3], coefficient=0.25, across_blocks="split"' in card
