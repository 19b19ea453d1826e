"""Reading ahead of one handle that reads its file in order.

A read that continues where the last one ended (or almost: a kernel's own read-ahead comes through
several threads and may overtake itself) is served from a window that doubles with each success, so
that its pieces come from several chains at once. When half of a window is used the next one is
asked for; it comes in while the reader works, on connections of its own, and no thread waits for
it. Any other read fetches what it asks for and no more, and ends what was ahead.

A window is good while nobody here changed the file and for WINDOW_AGE_S; what other clients write
to an open file is seen after that at the latest. A failure ahead of the reader is not its failure:
the window is dropped, and the read asks for itself.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref

from fs3.errors import Fs3Error
from fs3.log import get_logger

from .chunk_buffers import ChunkBuffers
from .links import Links
from .open_inodes import OpenInode
from .transfers import Transfer, advance

WINDOW_MIN_BYTES = 256 << 10
WINDOW_MAX_BYTES = 4 << 20
WINDOW_AGE_S = 1.0
_SLACK_BYTES = 1 << 20  # by which a read may come too early and still be in order
_PUMP_BYTES = 128 << 10  # a read of so much takes the time to receive what has come meanwhile
_log = get_logger(__name__)


class _Window:
    """A range of the file, asked for or there."""

    __slots__ = ("begun_s", "buffer", "end", "generation", "links", "start", "transfer")

    def __init__(self, start: int, buffer: memoryview, generation: int) -> None:
        self.start = self.end = start
        self.buffer = buffer
        self.generation = generation
        self.begun_s = time.monotonic()
        self.links: Links | None = None
        self.transfer: Transfer | None = None  # while it is under way


class ReadAhead:
    """Of one handle; any thread may call. :meth:`close` gives its memory back."""

    def __init__(self, opened: OpenInode, buffers: ChunkBuffers) -> None:
        self._opened = opened
        self._buffers = buffers
        self._lock = threading.Lock()  # held while a window is waited for: early readers wait
        self._expected = 0  # where the next read in order begins
        self._size = WINDOW_MIN_BYTES // 2  # of the last window
        self._window: _Window | None = None
        self._next: _Window | None = None  # follows it
        _all.add(self)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``offset``; fewer bytes only at the end of the file."""
        if not self._in_order(offset):
            self._expected = offset + len(buffer)
            self._size = WINDOW_MIN_BYTES // 2
            if self._next is not None and self._lock.acquire(blocking=False):
                try:
                    self._drop_next()
                finally:
                    self._lock.release()
            return self._opened.read_into(offset, buffer)
        with self._lock:
            return self._read_in_order(offset, buffer)

    def _in_order(self, offset: int) -> bool:
        if self._expected <= offset <= self._expected + _SLACK_BYTES:
            return True
        return any(w is not None and w.start <= offset < w.end for w in (self._window, self._next))

    def _read_in_order(self, offset: int, buffer: memoryview) -> int:
        length, done = len(buffer), 0
        while done < length:
            at = offset + done
            window = self._window_at(at, length - done)
            if window is None:
                done += self._opened.read_into(at, buffer[done:])
                break
            count = min(length - done, window.end - at)
            begin = at - window.start
            buffer[done : done + count] = window.buffer[begin : begin + count]
            done += count
        self._expected = offset + done
        self._look_ahead(self._expected, length)
        return done

    def _window_at(self, at: int, wanted: int) -> _Window | None:
        """A window that is there and covers ``at``; None: the read must ask for itself."""
        window = self._window
        if window is not None and window.start <= at < window.end and self._is_good(window):
            return window
        window, self._next = self._next, None
        if window is not None and not (window.start <= at < window.end and self._is_good(window)):
            self._release(window)
            window = None
        if window is None:
            if wanted > WINDOW_MAX_BYTES // 2:
                return None
            self._release(self._window)
            self._window = None
            own = self._opened.own_links()
            window = self._begin(at, max(self._size * 2, 2 * wanted), own)
        if window is not None:
            self._release(self._window)
            self._window = window if self._finish(window) else None
        return self._window if window is not None else None

    def _is_good(self, window: _Window) -> bool:
        fresh = time.monotonic() - window.begun_s < WINDOW_AGE_S
        return fresh and window.generation == self._opened.generation

    def _look_ahead(self, at: int, length: int) -> None:
        """Ask for the next window, or receive what has come of it."""
        coming = self._next
        if coming is not None:
            transfer = coming.transfer
            if transfer is not None and (length >= _PUMP_BYTES or transfer.links.wants_write):
                advance([transfer], transfer.links, 0)
            return
        window = self._window
        if window is None or at <= (window.start + window.end) // 2 or not self._is_good(window):
            return
        if time.monotonic() - window.begun_s > WINDOW_AGE_S / 2:
            return  # so slow a reader would find the next one too old
        try:
            self._next = self._begin(window.end, self._size * 2, None)
        except Fs3Error as error:
            _log.info("read_ahead_failed", detail=str(error))

    def _begin(self, start: int, size: int, links: Links | None) -> _Window | None:
        """Ask for a window; None at the end of the file, or if others have all the memory.

        ``links``: the caller's own, if it waits for the window.
        """
        size = min(size, WINDOW_MAX_BYTES)
        buffer = self._buffers.take_ahead(size)
        if buffer is None:
            return None
        window = _Window(start, buffer, self._opened.generation)
        try:
            if links is None:
                links = window.links = self._opened.borrow_links()
            count, window.transfer = self._opened.begin_read(start, buffer, links)
            window.end = start + count
            if window.transfer is not None:
                advance([window.transfer], links, 0)
        except BaseException:
            self._release(window)
            raise
        if not count:
            self._release(window)
            return None
        self._size = size
        return window

    def _finish(self, window: _Window) -> bool:
        """Wait for a window; False if it could not be had."""
        transfer = window.transfer
        if transfer is None:
            return True
        try:
            while not transfer.finished:
                advance([transfer], transfer.links, math.inf)
            transfer.check()
        except Fs3Error as error:
            _log.info("read_ahead_failed", detail=str(error))
            self._release(window)
            return False
        except BaseException:
            self._release(window)
            raise
        self._end_transfer(window)
        return True

    def _end_transfer(self, window: _Window) -> None:
        """Nothing is written to its memory any more."""
        if window.transfer is not None:
            window.transfer.close()
            window.transfer = None
        if window.links is not None:
            self._opened.return_links(window.links)
            window.links = None

    def _release(self, window: _Window | None) -> None:
        if window is not None and window.buffer is not _EMPTY:
            self._end_transfer(window)
            self._buffers.give_ahead(window.buffer)
            window.buffer = _EMPTY
            window.end = window.start

    def _drop_next(self) -> None:
        coming, self._next = self._next, None
        self._release(coming)

    def close(self) -> None:
        """No read may follow."""
        with self._lock:
            self._drop_next()
            self._release(self._window)
            self._window = None


_EMPTY = memoryview(b"")
_all: weakref.WeakSet[ReadAhead] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # Another thread of the parent may have been within a read: its locks would be held for ever.
    buffers = ChunkBuffers()
    for ahead in list(_all):
        ahead._lock = threading.Lock()
        ahead._buffers = buffers
        ahead._window = ahead._next = None


os.register_at_fork(after_in_child=_after_fork_in_child)
