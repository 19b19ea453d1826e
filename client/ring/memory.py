"""Memory that I/O goes into and comes out of."""

from __future__ import annotations

import mmap
import os
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING

from fs3.errors import Code, Fs3Error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_SHARED_MEMORY = "/dev/shm"  # where Linux keeps what shm_open(3) opens


class Iov:
    """A region of memory. ``iov[a:b]`` is a part of it, not a copy."""

    __slots__ = ("memory",)

    def __init__(self, source: int | SharedMemory | WriteableBuffer) -> None:
        """``source``: so many bytes, allocated; shared memory; or any writable buffer.

        Shared memory is mapped once more, so that it may be closed and unlinked at once.
        Allocated memory is shared with children that are forked later.
        """
        if isinstance(source, int):
            if source < 1:
                raise Fs3Error(Code.INVALID, f"a region of {source} bytes: 1 or more is allowed")
            memory = memoryview(mmap.mmap(-1, source))
        elif isinstance(source, SharedMemory):
            memory = _mapped(source)
        else:
            memory = memoryview(source)
        if memory.readonly:
            raise Fs3Error(Code.INVALID, "the buffer is read-only; a writable one is needed")
        self.memory = memory.cast("B")

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.memory)

    def __len__(self) -> int:
        return len(self.memory)

    def __getitem__(self, part: slice) -> Iov:
        _check_step(part)
        return Iov(self.memory[part])

    def __setitem__(self, part: slice, data: ReadableBuffer) -> None:
        """``iov[a:b] = data``, which must be as long."""
        _check_step(part)
        with memoryview(data) as view:
            self.memory[part] = view.cast("B")

    def __bytes__(self) -> bytes:
        return bytes(self.memory)

    def __repr__(self) -> str:
        return f"<Iov of {len(self.memory)} bytes>"


def _mapped(shared: SharedMemory) -> memoryview:
    # By its file, because a SharedMemory that attaches would unlink it when this process ends.
    fd = os.open(os.path.join(_SHARED_MEMORY, shared.name), os.O_RDWR | os.O_CLOEXEC)
    try:
        return memoryview(mmap.mmap(fd, shared.size))
    finally:
        os.close(fd)


def _check_step(part: slice) -> None:
    if not isinstance(part, slice) or part.step not in (None, 1):
        raise IndexError(f"iov[{part}]: only slices with step 1 are allowed")
