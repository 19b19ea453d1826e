"""One process per target: a lock on a file in its directory, gone with the process that has it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fs3.errors import Code, Fs3Error

_NAME = "lock"


class DirectoryLock:
    """Held from construction to :meth:`close`."""

    def __init__(self, directory: Path) -> None:
        """Fs3Error BUSY if another process has it, another OSError if the disk fails."""
        self._fd = os.open(directory / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise Fs3Error(
                Code.BUSY,
                f"target directory {directory} is in use by process {holder};"
                " only one may have it open: stop that one first",
            ) from error
        except OSError:
            os.close(self._fd)
            raise
        os.truncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let go. The file stays: removing it would let two processes in."""
        os.close(self._fd)
