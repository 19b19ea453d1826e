"""Calls of a KV cache that nobody waits for: a few threads, and a descriptor that tells of results.

Engines ask from threads that must not block (a scheduler, an event loop). Each call here is one
batch of the cache, run by a thread with its own connections; when one ends its result is queued and
the descriptor becomes readable.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple


class Ended(NamedTuple):
    """A call that has ended: ``result``, or why there is none."""

    number: int
    result: Any
    error: BaseException | None


class BatchedCalls:
    """Any thread may use it."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fs3-kv")
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._ended: deque[Ended] = deque()
        self._under_way = 0
        self._next = 0
        self._closed = False

    def fileno(self) -> int:
        """Readable when a call has ended since :meth:`take`."""
        return self._event_fd

    def submit(self, call: Callable[..., Any], *arguments: Any) -> int:
        """Begin a call; the number under which it will end. Never blocks."""
        with self._lock:
            self._next += 1
            number = self._next
            self._under_way += 1
        future = self._pool.submit(call, *arguments)
        future.add_done_callback(lambda done: self._end(number, done))
        return number

    def _end(self, number: int, done: Future[Any]) -> None:
        failure = done.exception()
        result = done.result() if failure is None else None
        with self._lock:
            self._ended.append(Ended(number, result, failure))
            self._under_way -= 1
            if not self._closed:
                os.eventfd_write(self._event_fd, 1)

    def take(self) -> list[Ended]:
        """Those that have ended since the last time."""
        with self._lock:
            if self._ended and not self._closed:
                os.eventfd_read(self._event_fd)
            ended, self._ended = list(self._ended), deque()
            return ended

    @property
    def under_way(self) -> int:
        """Calls that have not ended."""
        return self._under_way

    def close(self) -> None:
        """Wait for what is under way; idempotent."""
        self._pool.shutdown()
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._event_fd)
