"""How far a log was on stable storage, told by a file beside it.

A write-ahead log that has lost its end, or a whole file, looks like one that never got so far:
nothing in it says what is missing. So whoever syncs it notes here afterwards, by a number that only
grows, how far it was. A log that is found behind its watermark has lost what was promised.

The note itself is not synced every time, which would cost as much as the log's own sync, but once a
second. After the death of the process it is exact; after a power cut it may be up to that much too
low. It is never too high, so it raises no false alarm.

The file holds 16 bytes: "fs3w", the number (8, little-endian), CRC32C of these twelve (4).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from fs3.checksum import crc32c

SYNC_S = 1.0
_RECORD = struct.Struct("<4sQ")
_CRC = struct.Struct("<I")
_MAGIC = b"fs3w"
_BYTES = _RECORD.size + _CRC.size


class FileCalls(Protocol):
    """The calls that it makes."""

    def open(self, path: Path) -> int: ...
    def close(self, fd: int) -> None: ...
    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int, /) -> int: ...
    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int, /) -> int: ...
    def fdatasync(self, fd: int) -> None: ...


class SystemFileCalls:
    """The machine's own."""

    close = staticmethod(os.close)
    preadv = staticmethod(os.preadv)
    pwritev = staticmethod(os.pwritev)
    fdatasync = staticmethod(os.fdatasync)

    def open(self, path: Path) -> int:
        """Open for reading and writing; made if missing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


class Watermark:
    """One file. One thread at a time. Every call may raise OSError."""

    def __init__(
        self,
        path: Path,
        files: FileCalls | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open it; a file that is missing, torn or foreign says 0."""
        self._files = files or SystemFileCalls()
        self._clock_s = clock_s
        self._fd = self._files.open(path)
        self._synced_s = clock_s()
        self.value = self._read()

    def _read(self) -> int:
        buffer = bytearray(_BYTES)
        if self._files.preadv(self._fd, [memoryview(buffer)], 0) != _BYTES:
            return 0
        magic, value = _RECORD.unpack_from(buffer)
        (crc,) = _CRC.unpack_from(buffer, _RECORD.size)
        return int(value) if magic == _MAGIC and crc == crc32c(buffer[: _RECORD.size]) else 0

    def rise(self, value: int) -> None:
        """The log is on stable storage up to ``value``."""
        if value <= self.value:
            return
        record = _RECORD.pack(_MAGIC, value)
        whole = memoryview(record + _CRC.pack(crc32c(record)))
        if self._files.pwritev(self._fd, [whole], 0) != _BYTES:
            raise OSError(f"watermark {value}: a write of {_BYTES} bytes was cut short")
        self.value = value
        if self._clock_s() - self._synced_s >= SYNC_S:
            self._files.fdatasync(self._fd)
            self._synced_s = self._clock_s()

    def close(self) -> None:
        """Let go of the file; no sync."""
        self._files.close(self._fd)
