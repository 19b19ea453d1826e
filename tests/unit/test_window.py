"""A client's end of the memory that it shares with a storageserver for what it writes."""

from __future__ import annotations

import os

import pytest

from fs3.errors import Fs3Error
from fs3.transport.window import PREFIX, REPLY, WORTH_BYTES, WriteWindow

SLOT = 100_000


@pytest.fixture
def memory():
    descriptor = os.memfd_create("test")
    os.ftruncate(descriptor, 3 * SLOT)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def window(memory):
    made = WriteWindow()
    made.install(REPLY.pack(SLOT, 3), memory)
    return made


def put(window, number, *parts):
    prefix = window.put(number, [memoryview(part) for part in parts])
    return None if prefix is None else PREFIX.unpack(prefix)


def test_parts_lie_one_behind_the_other_in_a_slot(window, memory):
    parts = b"header", os.urandom(50_000), b"", os.urandom(40_000)
    slot, length = put(window, 1, *parts)
    assert os.pread(memory, length, slot * SLOT) == b"".join(parts)
    other = put(window, 2, bytes(50_000))
    assert other is not None
    assert other[0] != slot
    assert os.pread(memory, length, slot * SLOT) == b"".join(parts)


def test_a_slot_is_free_when_its_request_is_answered_and_not_before(window):
    slots = [put(window, number, bytes(SLOT))[0] for number in range(3)]
    assert sorted(slots) == [0, 1, 2]
    assert put(window, 3, bytes(SLOT)) is None
    window.answered(77)
    assert put(window, 3, bytes(SLOT)) is None
    window.answered(1)
    window.answered(1)
    assert put(window, 3, bytes(SLOT))[0] == slots[1]
    assert put(window, 4, bytes(SLOT)) is None


def test_what_is_small_or_too_large_or_has_no_window_is_sent_along(window):
    assert put(window, 1, bytes(WORTH_BYTES - 1)) is None
    assert put(window, 1, bytes(SLOT), b"x") is None
    assert put(WriteWindow(), 1, bytes(50_000)) is None
    window.close()
    assert put(window, 1, bytes(50_000)) is None


@pytest.mark.parametrize("shape", [(SLOT, 4), (SLOT, 0)])
def test_memory_that_is_less_than_was_said_is_refused(memory, shape):
    with pytest.raises(Fs3Error, match="a window of"):
        WriteWindow().install(REPLY.pack(*shape), memory)
