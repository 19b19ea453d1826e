"""Memory for gathered writes and for reading ahead: used again, bounded for the whole client."""

from __future__ import annotations

import mmap
import threading

CLIENT_DIRTY_BYTES = 256 << 20  # gathered, of all inodes: beyond it every write is sent at once
CLIENT_AHEAD_BYTES = 128 << 20  # in windows of all handles: beyond it nothing is read ahead
_POOL_BYTES = 64 << 20  # kept for later when nobody uses it


class ChunkBuffers:
    """Chunk-sized memory, used again: touching fresh memory costs more than the copy into it."""

    def __init__(self) -> None:
        # Reentrant, as all locks on the way of a close: the collector, which runs anywhere, may
        # close a file while its thread has one.
        self._lock = threading.RLock()
        self._free: dict[int, list[memoryview]] = {}
        self._free_bytes = 0
        self._dirty_bytes = 0
        self._ahead_bytes = 0

    def take(self, size: int) -> memoryview:
        """A buffer with arbitrary content."""
        with self._lock:
            free = self._free.get(size)
            if free:
                self._free_bytes -= size
                return free.pop()
        # Private: what a forked child does with it must not show in the parent.
        return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def give(self, buffer: memoryview) -> None:
        """Nobody looks at it any more."""
        with self._lock:
            if self._free_bytes + len(buffer) <= _POOL_BYTES:
                self._free_bytes += len(buffer)
                self._free.setdefault(len(buffer), []).append(buffer)

    def take_ahead(self, size: int) -> memoryview | None:
        """A buffer to read ahead into; None if others have too much. For :meth:`give_ahead`."""
        with self._lock:
            if self._ahead_bytes + size > CLIENT_AHEAD_BYTES:
                return None
            self._ahead_bytes += size
        return self.take(size)

    def give_ahead(self, buffer: memoryview) -> None:
        """Nobody looks at it any more."""
        with self._lock:
            self._ahead_bytes -= len(buffer)
        self.give(buffer)

    def account(self, dirty_bytes: int) -> bool:
        """Count bytes that are gathered (or, negative, gone); False if there are too many."""
        with self._lock:
            self._dirty_bytes += dirty_bytes
            return self._dirty_bytes <= CLIENT_DIRTY_BYTES
