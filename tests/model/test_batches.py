from __future__ import annotations

import gc
import logging
import weakref

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emosteer.model.batches import run_in_batches
from emosteer.model.memory import free_memory, is_out_of_memory


@given(st.lists(st.integers(1, 50)), st.integers(1, 120))
def test_every_row_has_its_turn_in_batches_that_fit(sizes: list[int], most: int) -> None:
    batches: list[list[int]] = []
    told: list[tuple[int, int]] = []
    run_in_batches(batches.append, sizes, most, lambda done, total: told.append((done, total)))
    assert sorted(row for batch in batches for row in batch) == list(range(len(sizes)))
    for batch in batches:
        padded = len(batch) * max(sizes[row] for row in batch)
        assert padded <= most or len(batch) == 1
    # No row could have gone with an earlier batch whose largest is its like: padding is between neighbours in size.
    in_order = [sizes[row] for batch in batches for row in batch]
    assert in_order == sorted(sizes, reverse=True)
    done = 0
    for batch, said in zip(batches, told, strict=True):
        done += len(batch)
        assert said == (done, len(sizes))


@given(st.lists(st.integers(1, 9), min_size=1), st.integers(1, 40), st.integers(1, 20))
def test_out_of_memory_halves_and_goes_on(sizes: list[int], most: int, room: int) -> None:
    room = max(room, *sizes)
    done: list[int] = []
    failed: list[int] = []

    def run(rows: list[int]) -> None:
        if len(rows) * max(sizes[row] for row in rows) > room:
            failed.append(len(rows))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        done.extend(rows)

    logging.disable()
    try:
        run_in_batches(run, sizes, most)
    finally:
        logging.disable(logging.NOTSET)
    assert sorted(done) == list(range(len(sizes)))
    assert len(failed) <= 6, "each failure halves what is tried after it"


def test_the_halving_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def run(rows: list[int]) -> None:
        if len(rows) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    run_in_batches(run, [3] * 5, 100)
    assert caplog.messages == ["out of memory with 5 rows at once: going on with 2"]


def test_what_is_no_lack_of_memory_or_cannot_be_halved_raises() -> None:
    def broken(_rows: list[int]) -> None:
        raise RuntimeError("shape mismatch")

    def too_large(_rows: list[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        run_in_batches(broken, [1, 1], 10)
    with pytest.raises(torch.OutOfMemoryError):
        run_in_batches(too_large, [1, 1, 1, 1], 10)


def test_a_failed_batch_has_given_its_tensors_back_when_the_next_begins() -> None:
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def run(rows: list[int]) -> None:
        alive.append(any(ref() is not None for ref in seen))
        held = torch.zeros(len(rows))
        seen.append(weakref.ref(held))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    gc.disable()  # reference counts alone must do it
    try:
        run_in_batches(run, [1, 1, 1, 1], 4)
    finally:
        gc.enable()
    assert alive == [False] * 6


def test_a_real_lack_of_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of memory of what was said"))


def test_free_memory_is_some_of_what_there_is() -> None:
    assert 0 < free_memory(torch.device("cpu")) < psutil.virtual_memory().total
