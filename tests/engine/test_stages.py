"""Rows that have read the same are one row below the steered blocks: which those are, what it spares, and where it is not done."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from mixtures import stopping_model
from reference import hooked_generate, replies
from tiny_models import random_tokens, random_vector, tiny_model, true_parts
from zoo import WITH_STATES, WITHOUT_INTERFACE, ZOO

from emosteer.engine import Decoding, Engine, Request, RowSeed
from emosteer.engine.body import NotByRowError
from emosteer.engine.histories import Histories, Moves
from emosteer.steering import Push, Steering

N_TOKENS = 12


class Rooms:
    """What slots hold: the whole history of each, moved about as layers do."""

    def __init__(self) -> None:
        self.held: list[tuple[object, ...]] = [()] * 100

    def carry_out(self, moves: Moves) -> None:
        before = list(self.held)
        for slot, source in moves:
            self.held[slot] = before[source]


def assert_one_by_history(histories: Histories, rooms: Rooms, told: Sequence[tuple[object, ...]]) -> None:
    slots = histories.slots
    assert set(slots) == set(range(histories.n_slots))
    assert histories.n_slots == len(set(told))
    for slot, history in zip(slots, told, strict=True):
        assert slot is not None
        assert rooms.held[slot] == history
    assert [told[row] for row in histories.rows] == rooms.held[: histories.n_slots]


@pytest.mark.parametrize("seed", range(20))
def test_rows_have_a_slot_together_while_they_have_read_the_same(seed: int) -> None:
    chance, n_rows, begun = random.Random(seed), 8, 0
    histories, rooms = Histories(n_rows), Rooms()
    told: list[tuple[object, ...]] = [()] * n_rows
    rows = list(range(n_rows))
    for _ in range(30):
        if rows:
            keys = [(begun, chance.randrange(3)) for _ in rows]
            begun += 1
            rooms.carry_out(histories.put(rows, keys))
            for row, key in zip(rows, keys, strict=True):
                slot = histories.slots[row]
                assert slot is not None
                told[row] = rooms.held[slot] = (key,)
            assert_one_by_history(histories, rooms, told)
        for _ in range(chance.randrange(3)):
            tokens = [chance.choice((5, 5, 5, 6, 7)) for _ in told]
            rooms.carry_out(histories.part(tokens))
            slots = [slot for slot in histories.slots if slot is not None]
            assert [rooms.held[slot] for slot in slots] == told
            told = [(*history, token) for history, token in zip(told, tokens, strict=True)]
            for slot, history in zip(slots, told, strict=True):
                rooms.held[slot] = history
            assert_one_by_history(histories, rooms, told)
        if len(told) > 4 and chance.random() < 0.1:
            kept = sorted(chance.sample(range(len(told)), len(told) - 1))
            rooms.carry_out(histories.keep(kept))
            told = [told[row] for row in kept]
            assert_one_by_history(histories, rooms, told)
        rows = chance.sample(range(len(told)), chance.randrange(len(told) // 2))


def cells(*places_and_lengths: tuple[str, int, float], scope: str = "generated") -> list[Request]:
    """The baseline and a cell for each place and length, over two prompts of one beginning, all of the same number of tokens."""
    steerings = [None] + [Steering((Push(site, at, random_vector(3, length)),), scope) for site, at, length in places_and_lengths]
    decoding = Decoding(N_TOKENS, min_new_tokens=N_TOKENS)
    prompts = [random_tokens(9)[0], (*random_tokens(9)[0][:-1], 11)]
    return [Request(prompt, RowSeed(0, str(prompt), 0), steering, decoding) for steering in steerings for prompt in prompts]


@pytest.mark.parametrize("scope", ["generated", "all"])
def test_what_is_spared_is_what_rows_have_in_common(scope: str) -> None:
    model = tiny_model()
    requests = cells(("residual", 2, 0.0), ("residual", 2, 15.0), ("mlp", 1, 6.0), ("attention", 3, 15.0), scope=scope)
    engine = Engine(model)
    got = [reply.tokens for reply in replies(engine, requests)]
    places = {(site, layer): module for layer in range(4) for site, module in true_parts("llama", layer).items()}
    assert got == [hooked_generate(model, request, places) for request in requests]
    assert len(set(got)) > 4

    # Below block 1 all rows of a prompt are one while their tokens are equal; below block 3 all but those steered at block 1.
    first = [4 if r.steering is None else {"residual": 3, "mlp": 1, "attention": 3}[r.steering.pushes[0].site] for r in requests]
    spared = 0
    for step in range(N_TOKENS):
        for start, stop in ((0, 1), (1, 3)):
            together = [(r.prompt, reply[:step]) for r, reply, at in zip(requests, got, first, strict=True) if at >= stop]
            spared += (len(together) - len(set(together))) * (stop - start)
    assert engine.account.blocks_spared == spared > 0


def test_rows_alone_and_unsteered_rows_spare_nothing() -> None:
    engine = Engine(tiny_model())
    replies(engine, cells())
    assert engine.account.blocks_spared == 0
    engine = Engine(tiny_model(), batch_rows=1)
    replies(engine, cells(("residual", 2, 1.0)))
    assert engine.account.blocks_spared == 0


def test_a_model_whose_blocks_do_not_go_by_row_runs_them_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = cells(("residual", 2, 6.0))
    expected = replies(Engine(tiny_model()), requests)

    @contextmanager
    def refused(_blocks: Any, narrowings: Sequence[Any]) -> Iterator[None]:
        if narrowings:
            raise NotByRowError("block 0 is given states [2, 3, 1, 32]")
        yield

    monkeypatch.setattr("emosteer.engine.shared.narrowed", refused)
    with caplog.at_level(logging.INFO, logger="emosteer"):
        engine = Engine(tiny_model())
    assert engine.path == "shared"
    assert "rows with one history do not run as one: NotByRowError: block 0 is given states [2, 3, 1, 32]" in caplog.text
    assert replies(engine, requests) == expected
    assert engine.account.blocks_spared == 0


@pytest.mark.parametrize("name", [name for name in ZOO if name not in {*WITHOUT_INTERFACE, "llama4_tempered"}])
def test_architectures_run_rows_of_one_history_as_one(name: str) -> None:
    engine = Engine(stopping_model(name))
    engine.chooser.choose(24)
    assert (engine.path, engine.chooser.narrows) == ("shared", True)
    replies(engine, cells(("residual", 1, 0.0)))
    assert (engine.account.blocks_spared > 0) == (name not in WITH_STATES)
