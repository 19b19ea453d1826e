"""An open file: what ``Client.open`` returns, raw, or wrapped in Python's own buffers."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, NoReturn

from fs3.errors import Code, Fs3Error
from fs3.types import Inode

from .context import ClientContext, Handle
from .open_inodes import OpenInode
from .read_ahead import ReadAhead

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class OpenMode:
    """A mode string as the builtin ``open`` knows it, taken apart."""

    def __init__(self, mode: str) -> None:
        letters = set(mode)
        kinds = letters & set("rwax")
        if len(letters) != len(mode) or letters - set("rwaxbt+") or len(kinds) != 1:
            self._refuse(mode)
        if {"b", "t"} <= letters:
            self._refuse(mode)
        self.kind = kinds.pop()
        self.binary = "b" in letters
        self.update = "+" in letters
        self.read = self.update or self.kind == "r"
        self.write = self.update or self.kind != "r"
        self.append = self.kind == "a"
        self.raw = self.kind + ("b+" if self.update else "b")

    def _refuse(self, mode: str) -> NoReturn:
        raise Fs3Error(
            Code.INVALID,
            f"mode {mode!r} is not allowed: one of r, w, a, x, with + to update, and b or t is",
        )


class File(io.RawIOBase):
    """An unbuffered binary file of fs3.

    What is written is gathered in the client and leaves in chunk-sized writes; it is readable
    through this client at once, and by everybody after :meth:`flush`, :meth:`fsync` or close.
    ``pread``, ``pwrite`` and their kin do not use the file position and may be called by several
    threads at once; everything else is for one thread at a time. Failures are Fs3Error (OSError);
    one that happened in the background is raised by the next write, flush, fsync or close.
    """

    def __init__(self, context: ClientContext, handle: Handle, name: str, mode: OpenMode) -> None:
        super().__init__()
        self._context = context
        self._handle = handle
        self.opened: OpenInode | None = handle.opened  # None once the file is closed
        self._mode = mode
        self._position = 0
        self._ahead = ReadAhead(handle.opened, context.files.buffers)
        self.name = name
        self.mode = mode.raw
        if mode.append:
            self._position = handle.opened.length

    # -- what it is ------------------------------------------------------------------------------

    @property
    def handle(self) -> Handle:
        """The open handle; ValueError once the file is closed."""
        self._check_open()
        return self._handle

    @property
    def context(self) -> ClientContext:
        """The client that opened it."""
        return self._context

    def inode(self) -> Inode:
        """The inode with everything that this client wrote to it."""
        return self.handle.opened.view()

    def __len__(self) -> int:
        return self.handle.opened.length

    def __bool__(self) -> bool:
        return True

    def readable(self) -> bool:
        """Opened for reading?"""
        self._check_open()
        return self._mode.read

    def writable(self) -> bool:
        """Opened for writing?"""
        self._check_open()
        return self._mode.write

    def seekable(self) -> bool:
        """Always."""
        self._check_open()
        return True

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _check_readable(self) -> None:
        if not self.readable():
            raise io.UnsupportedOperation("not readable")

    def _check_writable(self) -> None:
        if not self.writable():
            raise io.UnsupportedOperation("not writable")

    # -- position --------------------------------------------------------------------------------

    def tell(self) -> int:
        """The position, bytes from the start."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; beyond the end is allowed."""
        self._check_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self)}
        if whence not in bases:
            raise ValueError(f"whence {whence} is not allowed: 0, 1 and 2 are")
        position = bases[whence] + offset
        if position < 0:
            raise Fs3Error(Code.INVALID, f"position {position} is before the start of the file")
        self._position = position
        return position

    # -- reading ---------------------------------------------------------------------------------

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read at the position into ``buffer``; fewer bytes only at the end of the file."""
        self._check_readable()
        with memoryview(buffer).cast("B") as view:
            count = self._ahead.read_into(self._position, view)
        self._position += count
        return count

    def readall(self) -> bytes:
        """Everything from the position to the end."""
        self._check_readable()
        data = bytearray(max(len(self) - self._position, 0))
        with memoryview(data) as view:
            count = self.handle.opened.read_into(self._position, view)
        self._position += count
        return bytes(data) if count == len(data) else bytes(data[:count])

    def pread(self, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; fewer only at the end of the file."""
        self._check_readable()
        data = bytearray(min(length, max(len(self) - offset, 0)))
        with memoryview(data) as view:
            count = self.readinto_at(view, offset)
        return bytes(data[:count])

    def readinto_at(self, buffer: WriteableBuffer, offset: int) -> int:
        """Read from ``offset`` into ``buffer``, without a copy on the way."""
        self._check_readable()
        if offset < 0:
            raise Fs3Error(Code.INVALID, f"offset {offset} is not allowed: 0 or more is")
        with memoryview(buffer).cast("B") as view:
            return self.handle.opened.read_into(offset, view)

    # -- writing ---------------------------------------------------------------------------------

    def write(self, data: ReadableBuffer) -> int:
        """Write all of ``data`` at the position, or at the end of the file in mode "a".

        An append reserves its place with the metaserver, so that appends of many clients never
        overlap. Returns the number of bytes, which is always all of them.
        """
        self._check_writable()
        with memoryview(data).cast("B") as view:
            length = len(view)
            if self._mode.append:
                if length:
                    self._position = self._append(view) + length
            else:
                self._write(view, self._position)
                self._position += length
        return length

    def pwrite(self, data: ReadableBuffer, offset: int) -> int:
        """Write all of ``data`` at ``offset``; returns the number of bytes."""
        self._check_writable()
        if offset < 0:
            raise Fs3Error(Code.INVALID, f"offset {offset} is not allowed: 0 or more is")
        with memoryview(data).cast("B") as view:
            self._write(view, offset)
            return len(view)

    def _write(self, data: memoryview, offset: int) -> None:
        self._handle.opened.write(offset, data, self._handle.session)

    def _append(self, data: memoryview) -> int:
        return self._handle.opened.append(data, self._handle.session)

    def truncate(self, size: int | None = None) -> int:
        """Set the length in bytes (default: the position): cut, or extend with zeros."""
        self._check_writable()
        length = self._position if size is None else size
        if length < 0:
            raise Fs3Error(Code.INVALID, f"length {length} is not allowed: 0 or more is")
        session = self._handle.session if self._handle.client == self._context.client_id else 0
        self._handle.opened.truncate(length, session)
        return length

    def flush(self) -> None:
        """Make what was written visible to every client; it survives the death of any process."""
        self._check_open()
        if self._mode.write:
            self._handle.opened.flush(self._handle.session)

    def fsync(self) -> None:
        """The same, on stable storage of every replica: it survives a power cut."""
        self._check_open()
        self._handle.opened.sync(self._handle.session)

    def close(self) -> None:
        """Flush and close; idempotent."""
        if self.closed:
            return
        try:
            if not self._context.closed:
                self._ahead.close()
                self._context.drop(self._handle)
        finally:
            # RawIOBase.close would flush, through a handle that is gone.
            self._mode.write = False
            self.opened = None
            super().close()


class WriteBuffer(io.BufferedWriter):
    """Python's own, but flush goes through to the cluster."""

    def flush(self) -> None:
        """Make what was written visible to every client."""
        super().flush()
        self.raw.flush()

    def fsync(self) -> None:
        """The same, on stable storage of every replica."""
        super().flush()
        _file(self.raw).fsync()


class UpdateBuffer(io.BufferedRandom):
    """Python's own, but flush goes through to the cluster."""

    def flush(self) -> None:
        """Make what was written visible to every client."""
        super().flush()
        self.raw.flush()

    def fsync(self) -> None:
        """The same, on stable storage of every replica."""
        super().flush()
        _file(self.raw).fsync()


class TextFile(io.TextIOWrapper):
    """Python's own, with :meth:`fsync`."""

    def fsync(self) -> None:
        """Flush, and put what was written on stable storage of every replica."""
        self.flush()
        _file(self.buffer.raw).fsync()  # type: ignore[attr-defined]  # every buffer of ours has it


def _file(raw: object) -> File:
    assert isinstance(raw, File)
    return raw


def buffered(
    raw: File,
    mode: OpenMode,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
) -> io.IOBase:
    """What the builtin ``open`` would put around a raw file."""
    line_buffering = buffering == 1 and not mode.binary
    if buffering == 0:
        if not mode.binary:
            raise Fs3Error(Code.INVALID, "buffering 0 is for binary modes; text needs a buffer")
        return raw
    if buffering in (-1, 1):
        buffering = _buffer_bytes(raw, mode)
    buffer: UpdateBuffer | io.BufferedReader | WriteBuffer
    if mode.update:
        buffer = UpdateBuffer(raw, buffering)
    elif mode.read:
        buffer = io.BufferedReader(raw, buffering)
    else:
        buffer = WriteBuffer(raw, buffering)
    if mode.binary:
        return buffer
    return TextFile(buffer, encoding, errors, newline, line_buffering)


def _buffer_bytes(raw: File, mode: OpenMode) -> int:
    """A request for 8 KiB costs the same as for 256: large files are read through large buffers."""
    if mode.update or mode.write:
        return 64 << 10
    return min(max(len(raw), io.DEFAULT_BUFFER_SIZE), 1 << 20)
