"""Requests that wait, for locks mostly: each has a thread, so that none holds a worker.

If waiters took workers, a few of them would stop the very unlock that they wait for. INTERRUPT,
which the kernel sends when the waiting process gets a signal, cancels the wait.

The interrupt may be read by another worker before the request that it belongs to has got here;
such an early one is remembered by its request number, which the kernel never uses twice.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from fs3.client.filesystem_interface import Cancellation

WAITS_MAX = 1024
_EARLY_INTERRUPTS_MAX = 256


class Waits:
    """The waits under way, by request number."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._waits: dict[int, tuple[Cancellation, threading.Thread]] = {}
        self._early: deque[int] = deque(maxlen=_EARLY_INTERRUPTS_MAX)
        self._closed = False

    def start(self, unique: int, wait: Callable[[Cancellation], None]) -> bool:
        """Run ``wait`` in a thread; False if there are too many or the mount is going away.

        Too many for the mount, or for the machine.
        """
        cancellation = Cancellation()

        def run() -> None:
            try:
                wait(cancellation)
            finally:
                with self._lock:
                    del self._waits[unique]

        thread = threading.Thread(target=run, name=f"fuse-wait-{unique}", daemon=True)
        with self._lock:
            if self._closed or len(self._waits) >= WAITS_MAX:
                return False
            self._waits[unique] = cancellation, thread
            if unique in self._early:
                cancellation.cancel()
            try:
                thread.start()
            except RuntimeError:  # no thread to be had; nobody could join this one
                del self._waits[unique]
                return False
        return True

    def interrupt(self, unique: int) -> None:
        """A signal came for who made request ``unique``; only waits are cut short by it."""
        with self._lock:
            found = self._waits.get(unique)
            if found is None:
                self._early.append(unique)
                return
        found[0].cancel()

    def close(self) -> None:
        """Cancel every wait and let it end; no more can be started."""
        with self._lock:
            self._closed = True
            waits = list(self._waits.values())
        for cancellation, _ in waits:
            cancellation.cancel()
        for _, thread in waits:
            thread.join()
