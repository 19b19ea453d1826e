"""Bytes of a frame that are fetched just before they are sent.

An answer's body can be megabytes that lie in files. Read whole before anything is sent, it goes
through memory that no cache holds, twice, and the receiver waits meanwhile. So a frame may carry a
:class:`Source` instead: one :class:`Window` of memory, the same for every connection of a thread,
is filled from it again and again, as the sockets take it. A connection that does not drain holds no
memory: what it did not take of the window is fetched again when somebody else has used that.
"""

from __future__ import annotations

import mmap
from typing import Protocol

# It fits into a core's second cache; a smaller one costs more calls, a bigger one more misses.
WINDOW_BYTES = 512 << 10


class Source(Protocol):
    """A part of a frame's body."""

    def __len__(self) -> int:
        """In bytes; it does not change."""

    def fetch(self, start: int, window: memoryview) -> int:
        """Put the bytes from ``start`` on into ``window``; how many came, 1 at least.

        Fs3Error if they cannot be had: the frame, and with it the connection, breaks off.
        """


class Window:
    """Memory that sources are sent through. Used by one thread."""

    def __init__(self, length_bytes: int = WINDOW_BYTES) -> None:
        self._memory = memoryview(mmap.mmap(-1, length_bytes))
        self._source: Source | None = None  # whose bytes are in it,
        self._start = self._end = 0  # and which of them

    def of(self, source: Source, start: int) -> memoryview:
        """Bytes of ``source`` from ``start`` on, good until this is called again."""
        if source is not self._source or not self._start <= start < self._end:
            self._source = None  # in case that nothing comes
            count = source.fetch(start, self._memory)
            self._source, self._start, self._end = source, start, start + count
        return self._memory[start - self._start : self._end - self._start]

    def forget(self, source: Source) -> None:
        """It has been sent: keep nothing of it."""
        if source is self._source:
            self._source = None
