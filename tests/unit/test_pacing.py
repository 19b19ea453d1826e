"""How many copies of a resync may be under way."""

from __future__ import annotations

from fs3.core.limits import Limits
from fs3.core.pacing import Pacing
from fs3.core.types import chunk_id

LIMITS = Limits(resync_window=4, resync_window_bytes=200)


def start(pacing: Pacing, now_ms: int, length_bytes: int, count: int = 100) -> int:
    """Start copies of this length for as long as it is allowed: how many."""
    for number in range(count):
        if not pacing.allows(now_ms, 0):
            return number
        pacing.started(chunk_id(1, number), length_bytes)
    return count


def test_while_nobody_writes_a_second_large_copy_goes_with_the_first():
    assert start(Pacing(LIMITS), 0, 100) == 2
    assert start(Pacing(LIMITS), 0, 1000) == 1


def test_of_small_copies_there_may_be_as_many_as_the_window_says():
    assert start(Pacing(LIMITS), 0, 10) == 4


def test_while_clients_write_and_a_second_longer_there_is_one():
    pacing = Pacing(LIMITS)
    pacing.update_sent(chunk_id(7, 0))
    pacing.update_sent(chunk_id(7, 1))
    assert start(pacing, 1, 10) == 1
    pacing.finished(chunk_id(1, 0))
    pacing.update_ended(chunk_id(7, 0), 4000)
    assert start(pacing, 5500, 10) == 1
    pacing.finished(chunk_id(1, 0))
    pacing.update_ended(chunk_id(7, 1), 5000)
    assert start(pacing, 5999, 10) == 1
    pacing.finished(chunk_id(1, 0))
    assert start(pacing, 6000, 10, 3) == 3


def test_a_copy_that_has_arrived_makes_room_for_another():
    pacing = Pacing(LIMITS)
    start(pacing, 0, 100)
    pacing.finished(chunk_id(1, 0))
    assert pacing.allows(0, 0)
    pacing.finished(chunk_id(9, 9))  # not one of them: its own update brought it
    pacing.started(chunk_id(1, 7), 100)
    assert not pacing.allows(0, 0)


def test_copies_keep_to_the_rate():
    pacing, brought = Pacing(LIMITS), []
    for now_ms in range(0, 3000, 100):
        if pacing.allows(now_ms, 100):
            pacing.started(chunk_id(1, 0), 100)
            pacing.finished(chunk_id(1, 0))
            brought.append(now_ms)
    assert brought == [0, 1000, 2000]
