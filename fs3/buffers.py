"""Pooled, page-aligned memory for payloads.

Memory that a process touches for the first time is slow (a page fault per 4 KiB, under 1 GB/s), so
a buffer is never given back to the kernel while the pool has room: it is reused. Buffers come in
powers of two, each its own anonymous mapping, hence aligned for O_DIRECT and for a NIC.

Invariants: the mapped bytes, in use and idle, never exceed ``bytes_max``; a buffer's memory is
reused only after its last reference is released; whoever takes or retains a buffer releases it once
and touches neither ``view`` nor a slice of it afterwards.
"""

from __future__ import annotations

import mmap
import threading
from types import TracebackType
from typing import NamedTuple

from fs3.errors import Code, Fs3Error

BUFFER_BYTES_MIN = 4 << 10
BUFFER_BYTES_MAX = 256 << 20


class _Memory(NamedTuple):
    """A mapping and the whole of it as a view."""

    mapping: mmap.mmap
    view: memoryview


class PooledBuffer:
    """``view`` is exactly as long as was asked for. Its content is whatever was there before.

    References are counted, because a payload may be forwarded to a neighbour while it is written to
    disk: :meth:`retain` before handing it on, :meth:`release` when done. Any thread may do either.
    """

    __slots__ = ("_memory", "_pool", "_references", "view")

    def __init__(self, pool: BufferPool, memory: _Memory, length_bytes: int) -> None:
        self._pool = pool
        self._memory = memory
        self._references = 1
        self.view = memory.view[:length_bytes]

    def __len__(self) -> int:
        return len(self.view)

    def retain(self) -> PooledBuffer:
        """One more reference; returns self."""
        with self._pool.lock:
            if self._references < 1:
                raise ValueError("a released buffer was retained")
            self._references += 1
        return self

    def release(self) -> None:
        """One reference less; the last one gives the memory back."""
        with self._pool.lock:
            if self._references < 1:
                raise ValueError("a buffer was released more often than retained")
            self._references -= 1
            if not self._references:
                self._pool.give_back(self._memory)

    def __enter__(self) -> PooledBuffer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class BufferPool:
    """Thread-safe. ``lock`` guards everything in it and the reference counts of its buffers."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        # Reentrant: the collector may run anywhere, and release buffers of what it finds.
        self.lock = threading.RLock()
        self._idle: dict[int, list[_Memory]] = {}  # size class -> unused memory, newest last
        self._mapped_bytes = 0
        self._idle_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Mapped and taken; 0 once everything is back."""
        return self._mapped_bytes - self._idle_bytes

    def take(self, length_bytes: int) -> PooledBuffer:
        """A buffer with one reference, the caller's.

        Fs3Error TOO_LARGE if this pool can never hold so much, BUSY if it cannot now.
        """
        size = max(BUFFER_BYTES_MIN, 1 << (length_bytes - 1).bit_length())
        limit = min(BUFFER_BYTES_MAX, self.bytes_max)
        if size > limit:
            raise Fs3Error(
                Code.TOO_LARGE, f"a buffer of {length_bytes} bytes; at most {limit} are allowed"
            )
        memory = self._take_idle(size, length_bytes)
        if memory is None:
            try:
                mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            except OSError as error:
                with self.lock:
                    self._mapped_bytes -= size
                raise Fs3Error(
                    Code.BUSY, f"no buffer of {length_bytes} bytes: {error.strerror}"
                ) from error
            memory = _Memory(mapping, memoryview(mapping))
        return PooledBuffer(self, memory, length_bytes)

    def _take_idle(self, size: int, length_bytes: int) -> _Memory | None:
        """Unused memory; None: ``size`` more bytes may be mapped, and are counted already."""
        with self.lock:
            idle = self._idle.get(size)
            if idle:
                self._idle_bytes -= size
                return idle.pop()
            if self._mapped_bytes + size > self.bytes_max:
                self._unmap_idle(self._mapped_bytes + size - self.bytes_max)
            if self._mapped_bytes + size > self.bytes_max:
                raise Fs3Error(
                    Code.BUSY,
                    f"no buffer of {length_bytes} bytes: {self.used_bytes} of"
                    f" {self.bytes_max} bytes are in use",
                )
            self._mapped_bytes += size
            return None

    def give_back(self, memory: _Memory) -> None:
        """For PooledBuffer, which holds the lock."""
        size = len(memory.mapping)
        self._idle.setdefault(size, []).append(memory)
        self._idle_bytes += size

    def _unmap_idle(self, wanted_bytes: int) -> None:
        """Make room for another size class: the largest idle ones go first."""
        for size in sorted(self._idle, reverse=True):
            idle = self._idle[size]
            while idle and wanted_bytes > 0:
                # The mapping goes with its last view: nobody needs to know who still has slices.
                idle.pop(0)
                self._mapped_bytes -= size
                self._idle_bytes -= size
                wanted_bytes -= size
