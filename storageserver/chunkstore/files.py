"""The file layer: all calls by which the store touches the machine, so that tests can fail them.

``Files`` does data files and directories; ``Records`` is the ordered store of the records, RocksDB
in :class:`RocksRecords`. Both raise ``OSError`` and nothing else. A write is in the page cache (or
the unsynced write-ahead log) when it returns: it survives the process, not the machine.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, cast

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBRecoveryMode,
    Options,
    Rdict,
    WriteBatch,
)

from fs3 import compiled, durable
from fs3.compiled import Failure

Operation: TypeAlias = tuple[bytes, bytes | None]  # key and value; None deletes

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_libc = ctypes.CDLL(None, use_errno=True)
_TMPFS = 0x01021994
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _file_system(fd: int) -> int:
    """The kind of file system that an open file is in, as statfs(2) has it."""
    found = (ctypes.c_long * 32)()  # struct statfs begins with it
    if _libc.fstatfs(fd, found) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(found[0])


class Space(NamedTuple):
    """The file system below, in bytes."""

    total_bytes: int
    free_bytes: int


class Records(Protocol):
    """An ordered map of bytes with atomic batches."""

    def write(self, operations: Sequence[Operation]) -> None:
        """Apply all of them or none; visible and process safe on return."""

    def get(self, key: bytes) -> bytes | None:
        """The value behind a key."""

    def items(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys from ``start`` on, ascending."""

    def items_down(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys from ``start`` (or the next below) on, descending."""

    def sync(self) -> None:
        """Return when every batch written so far is on stable storage."""

    def close(self) -> None:
        """Release the store; no sync."""


class FileLayer(Protocol):
    """See :class:`Files`, the real one."""

    def open(self, path: Path) -> int: ...
    def close(self, fd: int) -> None: ...
    def size(self, fd: int) -> int: ...
    def allocated(self, fd: int) -> int: ...
    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int, /) -> int: ...
    def read_pieces(
        self,
        pieces: bytes,
        buffers: Sequence[memoryview],
        split: bool = False,
        crcs: memoryview | None = None,
        /,
    ) -> list[Failure]: ...
    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int, /) -> int: ...
    def fallocate(self, fd: int, offset: int, length: int) -> bool: ...
    def punch(self, fd: int, offset: int, length: int) -> None: ...
    def fdatasync(self, fd: int) -> None: ...
    def make_directory(self, path: Path) -> None: ...
    def sync_directory(self, path: Path) -> None: ...
    def listdir(self, path: Path) -> list[str]: ...
    def space(self, path: Path) -> Space: ...
    def boot_id(self) -> str: ...
    def open_records(self, path: Path, *, create: bool) -> Records: ...


class Files:
    """The machine's own files."""

    preadv = staticmethod(os.preadv)
    read_pieces = staticmethod(compiled.read_pieces)
    pwritev = staticmethod(os.pwritev)
    fdatasync = staticmethod(os.fdatasync)
    close = staticmethod(os.close)

    def __init__(self, boot_id_file: Path = BOOT_ID_FILE) -> None:
        self._boot_id_file = boot_id_file

    def open(self, path: Path) -> int:
        """Open for reading and writing; made if missing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def size(self, fd: int) -> int:
        """Length of an open file in bytes."""
        return os.fstat(fd).st_size

    def allocated(self, fd: int) -> int:
        """Disk space of an open file in bytes; holes have none."""
        return os.fstat(fd).st_blocks * 512

    def fallocate(self, fd: int, offset: int, length: int) -> bool:
        """Make a file longer, by a range that has disk space; ENOSPC if there is none.

        False: it has none yet. A tmpfs fills a range with zeros to reserve it, which costs more
        than writing there does: it gets its memory as it is written, and ENOSPC comes then.
        """
        if _file_system(fd) == _TMPFS:
            os.truncate(fd, offset + length)
            return False
        os.posix_fallocate(fd, offset, length)
        return True

    def punch(self, fd: int, offset: int, length: int) -> None:
        """Give a range's disk space back; it reads as zeros."""
        if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def make_directory(self, path: Path) -> None:
        """Make a directory and those above it, their names on stable storage."""
        durable.make_directory(path)

    def sync_directory(self, path: Path) -> None:
        """Put a directory's names on stable storage."""
        durable.sync_directory(path)

    def listdir(self, path: Path) -> list[str]:
        """The names in a directory; none if it is missing."""
        return sorted(os.listdir(path)) if path.is_dir() else []

    def space(self, path: Path) -> Space:
        """Of the file system that holds ``path``."""
        stat = os.statvfs(path)
        return Space(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)

    def boot_id(self) -> str:
        """Differs after every start of the machine."""
        return self._boot_id_file.read_text().strip()

    def open_records(self, path: Path, *, create: bool) -> Records:
        """Open the RocksDB at ``path``."""
        return RocksRecords(path, create=create)


class RocksRecords:
    """RocksDB, small enough that a process can hold many."""

    def __init__(self, path: Path, *, create: bool) -> None:
        try:
            self._rocks = Rdict(str(path), _options(create))
        except Exception as error:
            raise OSError(errno.EIO, f"RocksDB in {path}: {error}") from error

    def write(self, operations: Sequence[Operation]) -> None:
        """One atomic batch, into the write-ahead log (not synced) and the memtable."""
        batch = WriteBatch(raw_mode=True)
        for key, value in operations:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        try:
            self._rocks.write(batch)
        except Exception as error:
            raise OSError(errno.EIO, f"RocksDB write: {error}") from error

    def get(self, key: bytes) -> bytes | None:
        """The value behind a key."""
        try:
            value: bytes | None = self._rocks.get(key)
        except Exception as error:
            raise OSError(errno.EIO, f"RocksDB read: {error}") from error
        return value

    def items(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys from ``start`` on, ascending."""
        return self._walk(self._rocks.items(from_key=start))

    def items_down(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys from ``start`` (or the next below) on, descending."""
        return self._walk(self._rocks.items(backwards=True, from_key=start))

    def _walk(self, items: Iterable[tuple[object, object]]) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from cast("Iterable[tuple[bytes, bytes]]", items)  # as raw mode has it
        except Exception as error:
            raise OSError(errno.EIO, f"RocksDB walk: {error}") from error

    def sync(self) -> None:
        """Flush and fsync the write-ahead log."""
        try:
            self._rocks.flush_wal(True)
        except Exception as error:
            raise OSError(errno.EIO, f"RocksDB log sync: {error}") from error

    def close(self) -> None:
        """Close RocksDB."""
        self._rocks.close()


def _options(create: bool) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(create)
    options.set_write_buffer_size(4 << 20)
    options.set_max_write_buffer_number(2)
    options.set_max_background_jobs(2)
    options.set_target_file_size_base(8 << 20)
    options.set_max_open_files(64)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    options.set_max_total_wal_size(16 << 20)
    # A torn end of the log is a power cut: keep all that stands before it, and nothing behind.
    options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    table = BlockBasedOptions()
    table.set_block_cache(Cache(1 << 20))
    options.set_block_based_table_factory(table)
    return options
