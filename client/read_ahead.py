"""Reading ahead of one handle that reads its file in order.

A read that continues where the last one ended (or almost: a kernel's own read-ahead comes through
several threads and may overtake itself) fetches a window that doubles with each success, so that
its pieces come from several chains at once. Any other read fetches what it asks for and no more.

A window is good while nobody here changed the file and for WINDOW_AGE_S; what other clients write
to an open file is seen after that at the latest.
"""

from __future__ import annotations

import os
import threading
import time
import weakref

from .chunk_buffers import ChunkBuffers
from .open_inodes import OpenInode

WINDOW_MIN_BYTES = 256 << 10
WINDOW_MAX_BYTES = 4 << 20
WINDOW_AGE_S = 1.0
_SLACK_BYTES = 1 << 20  # by which a read may come too early and still be in order


class ReadAhead:
    """Of one handle; any thread may call. :meth:`close` gives its memory back."""

    def __init__(self, opened: OpenInode, buffers: ChunkBuffers) -> None:
        self._opened = opened
        self._buffers = buffers
        self._lock = threading.Lock()  # held while a window is fetched: early readers wait
        self._expected = 0  # where the next read in order begins
        self._size = WINDOW_MIN_BYTES // 2
        self._buffer: memoryview | None = None
        self._start = self._end = 0  # of the window, in the file
        self._generation = -1
        self._fetched_s = 0.0
        _all.add(self)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``offset``; fewer bytes only at the end of the file."""
        length = len(buffer)
        if not self._expected <= offset <= self._expected + _SLACK_BYTES and not (
            self._start <= offset < self._end
        ):
            self._size = WINDOW_MIN_BYTES // 2
            self._expected = offset + length
            return self._opened.read_into(offset, buffer)
        with self._lock:
            if self._serve(offset, buffer):
                return length
            size = min(self._size * 2, WINDOW_MAX_BYTES)
            if length >= size or not self._room(size):
                self._expected = offset + length
                return self._opened.read_into(offset, buffer)
            return self._fetch(offset, size, buffer)

    def _serve(self, offset: int, buffer: memoryview) -> bool:
        """Copy from the window if it has all of it and is good."""
        end = offset + len(buffer)
        fresh = time.monotonic() - self._fetched_s < WINDOW_AGE_S
        if self._buffer is None or not self._start <= offset <= end <= self._end or not fresh:
            return False
        if self._generation != self._opened.generation:
            return False
        buffer[:] = self._buffer[offset - self._start : end - self._start]
        self._expected = end
        return True

    def _room(self, size: int) -> bool:
        if self._buffer is None or len(self._buffer) < size:
            self._release()
            self._buffer = self._buffers.take_ahead(size)
        return self._buffer is not None

    def _fetch(self, offset: int, size: int, buffer: memoryview) -> int:
        """A new window, and from it what was asked for."""
        assert self._buffer is not None
        self._start = self._end = offset  # if the fetch fails, there is no window
        self._generation = self._opened.generation
        self._fetched_s = time.monotonic()
        self._end = offset + self._opened.read_into(offset, self._buffer[:size])
        self._size = size
        count = min(len(buffer), self._end - offset)
        buffer[:count] = self._buffer[:count]
        self._expected = offset + count
        return count

    def _release(self) -> None:
        if self._buffer is not None:
            self._buffers.give_ahead(self._buffer)
            self._buffer = None
        self._start = self._end = 0

    def close(self) -> None:
        """No read may follow."""
        with self._lock:
            self._release()


_all: weakref.WeakSet[ReadAhead] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # Another thread of the parent may have been within a read: its locks would be held for ever.
    buffers = ChunkBuffers()
    for ahead in list(_all):
        ahead._lock = threading.Lock()
        ahead._buffers = buffers
        ahead._buffer = None
        ahead._start = ahead._end = 0


os.register_at_fork(after_in_child=_after_fork_in_child)
