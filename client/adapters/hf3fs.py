"""The ring under the names of 3FS's own Python module, for programs that were written for that.

    import fs3.client.adapters.hf3fs as io      # instead of: import hf3fs_fuse.io as io

or install ``deploy/hf3fs_fuse`` beside fs3, and change nothing. What those programs rely on holds:

- Shared memory may be unlinked right after :func:`make_iovec`: it is mapped there.
- Results come in the order of preparation, so they may be matched by position.
- A ring and its memory may be used again after a wait that timed out: what was late then neither
  comes out of a later wait nor writes to the memory. A late write may still happen in its file.
- Every request ends, with an error if need be, so a wait without timeout returns.
- A file is visible to others from its fsync or close on.

What only tunes 3FS's daemon (``numa``, ``priority``, ``timeout`` of a ring, ``block_size`` of a
region, ``flags`` of a descriptor) is taken and has no effect: there is no such daemon here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import IntEnum
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fs3.client.fuse.mount import SUBTYPE
from fs3.client.ring import Iov, Ring
from fs3.client.ring import deregister_fd as _deregister
from fs3.client.ring import register_fd as _register
from fs3.errors import Code, Fs3Error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "IorPriority",
    "deregister_fd",
    "extract_mount_point",
    "force_fsync",
    "hardlink",
    "ioring",
    "iovec",
    "make_ioring",
    "make_iovec",
    "punch_hole",
    "read_file",
    "register_fd",
]

ALLOW_READ_UNCOMMITTED, FORBID_READ_HOLES = 1, 2  # flags of a ring
_ENTRY_BYTES = 48  # of a prepared I/O and its result
_ZEROS_BYTES = 1 << 20
_handles: dict[int, int] = {}  # by descriptor


class IorPriority(IntEnum):
    """Of a ring; here all are served alike."""

    HIGH = -1
    NORMAL = 0
    LOW = 1


# -- descriptors -----------------------------------------------------------------------------------


def register_fd(fd: int, flags: int = 0) -> None:
    """Make a descriptor on a mount known to rings; it must stay open until it is deregistered."""
    handle = _register(fd)
    before = _handles.pop(fd, None)
    _handles[fd] = handle
    if before is not None:  # the number was another file's, which was closed
        _deregister(before)


def deregister_fd(fd: int) -> None:
    """The end of it. One that is not registered is no error: programs clean up twice."""
    handle = _handles.pop(fd, None)
    if handle is not None:
        _deregister(handle)


def _not_registered(fd: int) -> OSError:
    return OSError(errno.EBADF, f"descriptor {fd} is not registered: register_fd({fd}) first")


def extract_mount_point(path: str | os.PathLike[str]) -> str | None:
    """The fs3 mount that ``path``, which need not exist, is on; None if it is on none."""
    resolved = os.path.realpath(path)
    best, kind = "", ""
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split(" ")
            place = _unescaped(fields[4])
            inside = resolved == place or resolved.startswith(place.rstrip("/") + "/")
            if inside and len(place) >= len(best):  # of two on one directory the later is on top
                best, kind = place, fields[fields.index("-") + 1]
    return best if kind == f"fuse.{SUBTYPE}" else None


def _unescaped(field: str) -> str:
    """The kernel writes white space and backslashes as three octal digits."""
    first, *others = field.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in others)


def force_fsync(fd: int) -> None:
    """Length and data on stable storage, also what a ring wrote."""
    os.fsync(fd)


def hardlink(target: str | os.PathLike[str], link_name: str | os.PathLike[str]) -> None:
    """Another name for a file."""
    os.link(target, link_name)


def punch_hole(
    file: int | str | os.PathLike[str], starts: Sequence[int], ends: Sequence[int], flags: int = 0
) -> None:
    """Make ranges of a file read as zeros. They are overwritten; their space stays taken."""
    if len(starts) != len(ends):
        raise Fs3Error(Code.INVALID, f"{len(starts)} starts and {len(ends)} ends: as many of both")
    fd = file if isinstance(file, int) else os.open(file, os.O_WRONLY)
    try:
        length = os.fstat(fd).st_size
        zeros = memoryview(bytes(_ZEROS_BYTES))
        for start, end in zip(starts, ends, strict=True):
            for at in range(start, min(end, length), _ZEROS_BYTES):
                os.pwrite(fd, zeros[: min(end, length) - at], at)
    finally:
        if fd is not file:
            os.close(fd)


# -- memory ----------------------------------------------------------------------------------------


class iovec:
    """A region of shared memory; ``iov[a:b]`` is a part of it.

    A part that was given to ``prepare`` is what ``wait`` returns, with ``result`` (bytes, or minus
    the errno) and ``userdata``. ``base_off`` is where in the whole region it begins.
    """

    def __init__(self, memory: Iov, base_off: int = 0) -> None:
        self.memory = memory
        self.base_off = base_off
        self.result: int | None = None
        self.userdata: Any = None

    def __len__(self) -> int:
        return len(self.memory)

    def __getitem__(self, part: slice) -> iovec:
        memory = self.memory[part]
        return iovec(memory, self.base_off + part.indices(len(self.memory))[0])

    def __setitem__(self, part: slice, data: ReadableBuffer) -> None:
        self.memory[part] = data

    def __bytes__(self) -> bytes:
        return bytes(self.memory)

    def __buffer__(self, flags: int) -> memoryview:
        """For ``memoryview(iov)``, from Python 3.12 on."""
        return self.memory.memory


def make_iovec(
    shm: SharedMemory, hf3fs_mount_point: str, block_size: int = 0, numa: int = -1
) -> iovec:
    """Map shared memory for rings; it may be closed and unlinked at once."""
    return iovec(Iov(shm))


# -- rings -----------------------------------------------------------------------------------------


class ioring:
    """A ring for reads, or for writes. For one thread at a time."""

    def __init__(self, entries: int, for_read: bool, io_depth: int, flags: int = 0) -> None:
        """See :func:`make_ioring`."""
        if flags & ~ALLOW_READ_UNCOMMITTED:
            raise Fs3Error(
                Code.UNSUPPORTED,
                f"ring flags {flags}: 0 and {ALLOW_READ_UNCOMMITTED} are allowed; a hole is read"
                f" as zeros, so {FORBID_READ_HOLES} (forbid holes) cannot be kept",
            )
        self.entries = entries
        self._for_read = bool(for_read)
        self._depth = io_depth
        self._ring = Ring(entries, "read" if for_read else "write")
        self._prepared: list[tuple[iovec, int, int]] = []  # part, handle, offset
        self._parts: dict[int, iovec] = {}  # in flight, by the number that the ring knows
        self._number = 0

    def __del__(self) -> None:
        if hasattr(self, "_ring"):
            self._ring.close()

    @staticmethod
    def size_for_entries(entries: int) -> int:
        """Bytes that so many I/Os take; of this process's own memory, nothing is to be provided."""
        return entries * _ENTRY_BYTES

    def prepare(
        self,
        iov: iovec,
        read: bool,
        fd: int,
        off: int,
        userdata: Any = None,
    ) -> None:
        """Prepare one I/O between a part of a region and an offset of a registered descriptor.

        OSError: EBADF, not registered; EACCES, not opened for it; EAGAIN, the ring is full; EINVAL.
        """
        if bool(read) != self._for_read:
            wanted = "reads" if self._for_read else "writes"
            raise Fs3Error(Code.INVALID, f"prepare(read={read}) on a ring for {wanted}")
        handle = _handles.get(fd)
        if handle is None:
            raise _not_registered(fd)
        self._ring.check(handle, off, len(iov), len(self._prepared) + 1)
        iov.userdata = userdata
        iov.result = None
        self._prepared.append((iov, handle, off))

    def submit(self) -> ioring:
        """Start what is prepared; with a depth above 0 as many times so many as there are."""
        count = len(self._prepared)
        if self._depth > 0:
            count -= count % self._depth
        self._start(count)
        return self

    def _start(self, count: int) -> None:
        step = -self._depth if self._depth < 0 else max(count, 1)
        for at in range(0, count, step):
            for part, handle, offset in self._prepared[at : min(at + step, count)]:
                self._parts[self._number] = part
                self._ring.prep_io(handle, offset, part.memory, self._number)
                self._number += 1
            self._ring.submit()
        del self._prepared[:count]

    def wait(
        self,
        *,
        max_results: int | None = None,
        min_results: int | None = None,
        timeout: timedelta | float | None = None,
    ) -> list[iovec]:
        """The parts that have their ``result``, in the order of preparation.

        Waits for ``min_results`` of them (None: for one; 0: for none). If they have not come within
        ``timeout`` (a timedelta, or seconds), what is late is given up, and never comes.
        """
        wanted = 1 if min_results is None else min_results
        if self._ring.in_flight < wanted:
            self._start(len(self._prepared))  # else it would wait for what nobody starts
        wanted = min(wanted, self._ring.in_flight)
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        results = self._ring.wait(wanted, seconds, max_results=max_results or None)
        parts = []
        for number, result in results[["userdata", "result"]].tolist():
            part = self._parts.pop(number)
            part.result = result
            parts.append(part)
        if len(parts) < min(wanted, max_results or wanted):
            self._ring.cancel()
            self._parts.clear()
        return parts


def make_ioring(
    hf3fs_mount_point: str,
    entries: int,
    for_read: bool = True,
    io_depth: int = 0,
    priority: int | None = None,
    timeout: float | None = None,
    numa: int = -1,
    flags: int = 0,
) -> ioring:
    """A ring of ``entries`` I/Os.

    ``io_depth`` 0: ``submit`` starts all that is prepared; above 0: batches of exactly so many (the
    rest when it is waited for); below 0: batches of at most so many.
    """
    if extract_mount_point(hf3fs_mount_point) is None:
        raise Fs3Error(Code.INVALID, f"{hf3fs_mount_point} is not on an fs3 mount")
    return ioring(entries, for_read, io_depth, flags)


def read_file(
    fn: str | os.PathLike[str],
    hf3fs_mount_point: str | None = None,
    block_size: int = 1 << 30,
    off: int = 0,
    priority: int | None = None,
    cb: Callable[[memoryview, int], Any] | None = None,
) -> bytes | None:
    """The content of a file from ``off`` on, read in blocks.

    With ``cb`` each block is handed to ``cb(block, offset)`` instead, valid during the call. What
    that returns says how to go on: an int, at that offset; something true, not at all.
    """
    fd = os.open(fn, os.O_RDONLY)
    try:
        register_fd(fd)
        try:
            return _read_blocks(fd, block_size, off, cb)
        finally:
            deregister_fd(fd)
    finally:
        os.close(fd)


def _read_blocks(
    fd: int, block_size: int, off: int, cb: Callable[[memoryview, int], Any] | None
) -> bytes | None:
    memory = Iov(max(1, min(block_size, os.fstat(fd).st_size)))
    block = memory.memory
    blocks: list[bytes] = []
    on_block = cb or (lambda block, _: blocks.append(bytes(block)))
    with Ring(1, "read") as ring:
        while True:
            ring.prep_io(_handles[fd], off, memory)
            ring.submit()
            result = int(ring.wait()["result"][0])
            if result < 0:
                raise OSError(-result, os.strerror(-result))
            if not result:
                break
            answer = on_block(block[:result], off)
            if isinstance(answer, int) and not isinstance(answer, bool):
                off = answer
                continue
            if answer:
                break
            off += result
    return None if cb else b"".join(blocks)
