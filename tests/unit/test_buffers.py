"""Pooled buffers: aligned, reused, bounded, and released exactly as often as taken."""

import gc
import mmap
import threading

import numpy as np
import pytest

from fs3.buffers import BUFFER_BYTES_MIN, BufferPool
from fs3.errors import Code, Fs3Error

MIB = 1 << 20


def address_of(buffer):
    return np.frombuffer(buffer.view, np.uint8).ctypes.data


@pytest.mark.parametrize("length", [1, 4096, 4097, 100_000, MIB, MIB + 1])
def test_a_buffer_has_the_length_asked_for_and_is_page_aligned(length):
    pool = BufferPool(8 * MIB)
    with pool.take(length) as buffer:
        assert len(buffer) == len(buffer.view) == length
        assert address_of(buffer) % mmap.PAGESIZE == 0
        buffer.view[:] = b"x" * length
    assert pool.used_bytes == 0


def test_memory_is_reused_rather_than_mapped_anew():
    pool = BufferPool(8 * MIB)
    first = pool.take(MIB)
    address = address_of(first)
    first.release()
    with pool.take(MIB - 5) as again:
        assert address_of(again) == address


def test_memory_is_not_reused_while_somebody_holds_a_reference():
    pool = BufferPool(8 * MIB)
    buffer = pool.take(MIB)
    assert buffer.retain() is buffer
    buffer.release()
    with pool.take(MIB) as other:
        assert address_of(other) != address_of(buffer)
    assert pool.used_bytes == MIB
    buffer.release()
    assert pool.used_bytes == 0


def test_beyond_its_bound_the_pool_is_busy_and_says_what_is_used():
    pool = BufferPool(2 * MIB)
    first, second = pool.take(MIB), pool.take(MIB)
    with pytest.raises(Fs3Error, match="2097152 of 2097152 bytes are in use") as caught:
        pool.take(1)
    assert caught.value.code is Code.BUSY
    first.release()
    pool.take(MIB).release()
    second.release()


def test_idle_memory_of_another_size_makes_room():
    pool = BufferPool(2 * MIB)
    for buffer in [pool.take(MIB), pool.take(MIB)]:
        buffer.release()
    small = [pool.take(BUFFER_BYTES_MIN) for _ in range(2 * MIB // BUFFER_BYTES_MIN)]
    assert pool.used_bytes == 2 * MIB
    for buffer in small:
        buffer.release()
    pool.take(2 * MIB).release()
    assert pool.used_bytes == 0


def test_what_the_pool_can_never_hold_is_too_large():
    with pytest.raises(Fs3Error, match="at most 1048576") as caught:
        BufferPool(MIB).take(MIB + 1)
    assert caught.value.code is Code.TOO_LARGE


def test_releasing_twice_and_retaining_what_is_gone_are_errors():
    pool = BufferPool(MIB)
    buffer = pool.take(1)
    buffer.release()
    with pytest.raises(ValueError, match="released more often"):
        buffer.release()
    with pytest.raises(ValueError, match="released buffer"):
        buffer.retain()
    assert pool.used_bytes == 0


def test_references_are_counted_right_from_many_threads():
    pool = BufferPool(MIB)
    buffer = pool.take(100)

    def churn():
        for _ in range(2000):
            buffer.retain()
            buffer.release()

    threads = [threading.Thread(target=churn) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.used_bytes == BUFFER_BYTES_MIN
    buffer.release()
    assert pool.used_bytes == 0


class _Collecting(dict):
    """The collector runs whenever something is looked up in it."""

    def get(self, *arguments):
        gc.collect()
        return super().get(*arguments)


def test_a_buffer_that_the_collector_releases_while_another_is_taken_hangs_nobody():
    pool = BufferPool(MIB)
    pool._idle = _Collecting()

    class Owner:
        def __init__(self):
            self.buffer = pool.take(5000)
            self.me = self  # only the collector ends it

        def __del__(self):
            self.buffer.release()

    def take():
        Owner()
        pool.take(5000).release()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert pool.used_bytes == 0
