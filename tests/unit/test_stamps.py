"""Stamps: what one end writes the other believes, at every moment in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fs3.core.stamps import ROWS_MAX, STAMPS_BYTES, Stamps, StampView, served_word
from fs3.core.types import ChainId, ChainVersion

CHAIN, OTHER = ChainId(7), ChainId(8)


def version(number: int) -> ChainVersion:
    return ChainVersion(number)


@pytest.fixture
def memory() -> memoryview:
    return memoryview(bytearray(64 + 8 * 10))


def test_the_size_is_that_of_all_rows():
    assert STAMPS_BYTES == 64 + 8 * ROWS_MAX


def test_who_serves_what_until_when(memory):
    stamps, view = Stamps(memory), StampView(memory)
    word = served_word(CHAIN, 3)
    assert not view.serves(word, lambda: 0)
    stamps.serve(CHAIN, version(3), 100)
    assert view.serves(word, lambda: 99)
    assert not view.serves(word, lambda: 100)
    assert not view.serves(served_word(CHAIN, 4), lambda: 0)
    assert not view.serves(served_word(OTHER, 3), lambda: 0)
    stamps.serve(CHAIN, version(3), 200)
    assert view.serves(word, lambda: 199)
    stamps.serve(CHAIN, version(4), 200)
    assert not view.serves(word, lambda: 0)
    assert view.serves(served_word(CHAIN, 4), lambda: 199)
    stamps.withdraw()
    assert not view.serves(served_word(CHAIN, 4), lambda: 0)


def test_a_replica_that_never_had_a_lease_serves_nothing(memory):
    Stamps(memory).serve(CHAIN, version(1), -1)
    assert not StampView(memory).serves(served_word(CHAIN, 1), lambda: 0)


def test_nothing_served_is_no_chain(memory):
    assert not StampView(memory).serves(served_word(CHAIN, 1), lambda: -1)
    assert served_word(1, 0) != served_word(0, 1) != 0


def test_stamps_grow_with_every_change_of_their_row_alone(memory):
    stamps, view = Stamps(memory), StampView(memory)
    assert view.rows == 10
    for row in (3, 3, 9):
        stamps.changed(row)
    assert [stamps.stamp(row) for row in range(12)] == [0, 0, 0, 2, 0, 0, 0, 0, 0, 1, 0, 0]
    assert view.stands(3, 2)
    assert not view.stands(3, 1)
    rows, noted = np.array([9, 3, 0]), np.array([1, 1, 0], np.uint64)
    assert view.standing(rows, noted).tolist() == [True, False, True]


def test_rows_without_memory_have_no_stamp(memory):
    stamps = Stamps(memory)
    stamps.changed(10)
    assert stamps.stamp(10) == 0
    none = Stamps()
    none.changed(0)
    none.serve(CHAIN, version(1), 100)
    none.withdraw()
    assert none.stamp(0) == 0
    assert none.descriptor == -1


def test_a_lease_is_never_believed_for_what_it_was_not_written_for():
    """Whatever words are written between two looks: only leases that stood are found to stand.

    Versions 1 and 4 have a lease until 100, versions 2 and 3 until 10; it is 50.
    """
    moves: list[Callable[[Stamps], None]] = [
        lambda s: s.serve(CHAIN, version(1), 100),
        lambda s: s.serve(CHAIN, version(2), 10),
        lambda s: s.serve(CHAIN, version(4), 100),
        lambda s: s.withdraw(),
        lambda s: s.serve(CHAIN, version(3), 10),
        lambda s: s.serve(CHAIN, version(1), 100),
    ]
    writes: list[tuple[int, int]] = []

    class Noted:
        """Words that note what is written to them."""

        def __setitem__(self, at: int, word: int) -> None:
            writes.append((at, word))

    stamps = Stamps(memoryview(bytearray(64)))
    stamps._words = Noted()  # type: ignore[assignment]
    for move in moves:
        move(stamps)

    class Between:
        """Words of which so many more are written before each look."""

        def __init__(self, steps: list[int]) -> None:
            self.words = [0] * 8
            self.left = iter(writes)
            self.steps = iter(steps)

        def __getitem__(self, at: int) -> int:
            for _ in range(next(self.steps, 0)):
                where, word = next(self.left, (7, 0))
                self.words[where] = word
            return self.words[at]

    def schedules() -> Iterator[list[int]]:
        for first in range(len(writes) + 1):
            for second in range(len(writes) - first + 1):
                for third in range(len(writes) - first - second + 1):
                    yield [first, second, third]

    found = {1: 0, 2: 0, 3: 0, 4: 0}
    for steps in schedules():
        for number in found:
            view: Any = StampView(memoryview(bytearray(64)))
            view._words = Between(steps)
            found[number] += view.serves(served_word(CHAIN, number), lambda: 50)
    assert min(found[1], found[4]) > 0
    assert found[2] == found[3] == 0
