"""What is handed over is written in order, beside other work, and nothing of it is lost or kept silent."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from emosteer.errors import Unwritable
from emosteer.records.publisher import ROOM, Publisher


class Disk:
    """Writes as slowly as the test wants, and fails where it wants."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.told: list[int] = []
        self.goes_on = threading.Event()
        self.full_at: int | None = None
        self.threads: set[int] = set()

    def write(self, number: int) -> Callable[[], None]:
        def write() -> None:
            assert self.goes_on.wait(10)
            self.threads.add(threading.get_ident())
            if number == self.full_at:
                raise Unwritable(f"cannot write {number}")
            self.written.append(number)

        return write

    def tell(self, number: int) -> Callable[[], None]:
        def tell() -> None:
            assert threading.get_ident() not in self.threads, "in the owner's thread"
            assert number in self.written
            self.told.append(number)

        return tell


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_its_owner_goes_on_until_the_room_is_full(disk: Disk) -> None:
    with Publisher() as publisher:
        for number in range(ROOM):
            publisher.hand_over(disk.write(number), disk.tell(number))
        assert disk.written == disk.told == [], "the disk has not moved yet"
        threading.Timer(0.05, disk.goes_on.set).start()
        publisher.hand_over(disk.write(ROOM), disk.tell(ROOM))
        assert disk.written[:1] == [0], "it had to wait for the first"
    assert disk.written == disk.told == list(range(ROOM + 1))


def publish(disk: Disk, n: int, interrupted: bool = False) -> None:
    """Hand over so many, and let the disk move."""
    with Publisher() as publisher:
        for number in range(n):
            publisher.hand_over(disk.write(number), disk.tell(number))
            if number == 2:
                disk.goes_on.set()
        if interrupted:
            raise KeyboardInterrupt
        publisher.finish()
        disk.told.append(-1)


def test_an_error_comes_out_of_a_later_call(disk: Disk) -> None:
    disk.full_at = 1
    with pytest.raises(Unwritable, match="cannot write 1"):
        publish(disk, 1000)
    assert disk.told == disk.written, "who came behind is written, and told"
    assert disk.told[:2] == [0, 2]
    assert len(disk.told) < 2 * ROOM, "its owner was told soon"


def test_an_error_comes_out_at_the_end(disk: Disk) -> None:
    disk.full_at = 1
    with pytest.raises(Unwritable, match="cannot write 1"):
        publish(disk, 3)
    assert disk.told == [0, 2]


def test_who_is_interrupted_still_writes_what_is_finished(disk: Disk) -> None:
    disk.full_at = 0
    with pytest.raises(KeyboardInterrupt):
        publish(disk, 3, interrupted=True)
    assert disk.written == disk.told == [1, 2]
