"""Handlers of requests about open files and locks."""

from __future__ import annotations

import errno
import os

from fs3.client.filesystem_interface import (
    LOCK_END_MAX,
    Cancellation,
    FallocateFlags,
    FileLock,
    FileSystem,
    LockKind,
    Whence,
)
from fs3.core.types import InodeId

from . import kernel as codec
from . import kernel_structs as k
from .handlers import Callers, Handler, Reply
from .kernel import Arguments, Header

_O_APPEND = os.O_APPEND
_COPY_BYTES_MAX = 1 << 31  # what the 32 bits of the reply can say, as a round number


class FileOperations:
    """The data half of a mount."""

    def __init__(self, filesystem: FileSystem, callers: Callers) -> None:
        self._filesystem = filesystem
        self._callers = callers

    def table(self) -> dict[int, Handler]:
        """Handlers by opcode; SETLKW, which may have to wait, is made of the lock methods below."""
        op = k.Opcode
        return {
            op.OPEN: self._open,
            op.CREATE: self._create,
            op.READ: self._read,
            op.WRITE: self._write,
            op.FLUSH: self._flush,
            op.RELEASE: self._release,
            op.FSYNC: self._fsync,
            op.LSEEK: self._lseek,
            op.FALLOCATE: self._fallocate,
            op.COPY_FILE_RANGE: self._copy_file_range,
            op.GETLK: self._getlk,
            op.SETLK: self.take_lock,
        }

    # -- open files --------------------------------------------------------------------------------

    def _open(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        flags, open_flags = arguments
        clear = bool(open_flags & k.OPEN_KILL_SUIDGID)
        return codec.encode_open(
            self._filesystem.open(node, flags, clear, self._callers.of(header))
        )

    def _create(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        flags, mode, _, _, name = arguments
        made = self._filesystem.create(node, name, mode & 0o7777, flags, self._callers.of(header))
        return codec.encode_create(*made)

    def _read(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        return self._filesystem.read(arguments[0], arguments[1], arguments[2])

    def _write(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        handle, offset, _, write_flags, _, flags, data = arguments
        append = bool(flags & _O_APPEND) and not write_flags & k.WRITE_CACHE
        clear = bool(write_flags & k.WRITE_KILL_SUIDGID)
        written = self._filesystem.write(handle, offset, data, append, clear)
        return k.WRITE_OUT.pack(written)

    def _flush(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        self._filesystem.flush(arguments[0], arguments[1])
        return 0

    def _release(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        handle, _, release_flags, owner = arguments
        self._filesystem.release(handle, owner if release_flags & k.RELEASE_FLOCK_UNLOCK else None)
        return 0

    def _fsync(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        self._filesystem.fsync(arguments[0], bool(arguments[1] & k.FSYNC_FDATASYNC))
        return 0

    def _lseek(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        handle, offset, whence = arguments
        found = self._filesystem.lseek(handle, offset, Whence(whence))
        return errno.ENXIO if found is None else k.LSEEK_OUT.pack(found)

    def _fallocate(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        handle, offset, length, mode = arguments
        self._filesystem.fallocate(handle, offset, length, FallocateFlags(mode))
        return 0

    def _copy_file_range(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        source, source_offset, _, target, target_offset, length, _ = arguments
        copied = self._filesystem.copy_file_range(
            source, source_offset, target, target_offset, min(length, _COPY_BYTES_MAX)
        )
        return k.WRITE_OUT.pack(copied)

    # -- locks -------------------------------------------------------------------------------------

    def _getlk(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        owner, lock, _ = _lock(arguments)
        found = self._filesystem.getlk(node, owner, lock)
        return codec.encode_lock(found or lock._replace(kind=LockKind.UNLOCK))

    def take_lock(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        """Take, change or drop a lock without waiting."""
        owner, lock, flock = _lock(arguments)
        return 0 if self._filesystem.setlk(node, owner, lock, flock, None) else errno.EAGAIN

    def wait_for_lock(
        self, node: InodeId, arguments: Arguments, cancellation: Cancellation
    ) -> Reply:
        """Take a lock, waiting for it; EINTR if cancelled."""
        owner, lock, flock = _lock(arguments)
        return 0 if self._filesystem.setlk(node, owner, lock, flock, cancellation) else errno.EINTR


def _lock(arguments: Arguments) -> tuple[int, FileLock, bool]:
    """Owner, lock, and whether it is flock(2)'s."""
    _, owner, start, end, kind, pid, flags = arguments
    lock = FileLock(LockKind(kind), start, min(end, LOCK_END_MAX), pid)
    return owner, lock, bool(flags & k.LK_FLOCK)
