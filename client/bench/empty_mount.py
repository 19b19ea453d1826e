"""A mount with nothing behind it: one file of zeros. What the kernel and the front themselves cost.

``python -m fs3.client.bench.empty_mount DIRECTORY`` says "ready" and serves until SIGTERM.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from fs3.client.filesystem_interface import (
    Attributes,
    Buffer,
    Entry,
    FileSystem,
    Notifier,
    OpenFile,
)
from fs3.core.layout import Layout
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import ROOT_INODE, Credentials, FileKind, Inode, SetAttributes, StatFs

FILE = "zeros"
LENGTH_BYTES = 1 << 40
_INODE = InodeId(2)
_TIMEOUT_S = 3600.0
_ZEROS = memoryview(bytes(1 << 20))


def _inode(inode: InodeId) -> Inode:
    root = inode == ROOT_INODE
    return Inode(
        inode=inode,
        kind=FileKind.DIRECTORY if root else FileKind.FILE,
        permissions=0o777 if root else 0o666,
        uid=0,
        gid=0,
        links=2 if root else 1,
        length_bytes=0 if root else LENGTH_BYTES,
        atime_ns=0,
        mtime_ns=0,
        ctime_ns=0,
        layout=Layout(1 << 20, 1),
    )


class EmptyFileSystem:
    """As much of a ``FileSystem`` as who reads and writes the one file asks for."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise Fs3Error(Code.UNSUPPORTED, f"{name}: the empty mount has one file to read and write")

    def detach(self) -> None:
        """Nothing is open."""

    def forget(self, inode: InodeId, lookups: int) -> None:
        """Nothing is remembered."""

    def flush(self, handle: int, owner: int) -> None:
        """Nothing was kept."""

    def release(self, handle: int, flock_owner: int | None) -> None:
        """Nothing is open."""

    def attach(self, notifier: Notifier) -> None:
        """Whoever started this process waits for it."""
        print("ready", flush=True)

    def lookup(self, parent: InodeId, name: str, credentials: Credentials) -> Entry:
        """The one file."""
        found = _inode(_INODE) if name == FILE else None
        return Entry(found, _TIMEOUT_S, _TIMEOUT_S)

    def getattr(self, inode: InodeId, handle: int | None) -> Attributes:
        """They never change."""
        return Attributes(_inode(inode), _TIMEOUT_S)

    def setattr(
        self,
        inode: InodeId,
        changes: SetAttributes,
        handle: int | None,
        clear_privileges: bool,
        credentials: Credentials,
    ) -> Attributes:
        """As if."""
        return Attributes(_inode(inode), _TIMEOUT_S)

    def getxattr(self, inode: InodeId, name: str) -> bytes:
        """The kernel asks before a write."""
        raise Fs3Error(Code.NO_ATTRIBUTE, f"no attribute {name!r}")

    def statfs(self) -> StatFs:
        """Something."""
        return StatFs(capacity_bytes=LENGTH_BYTES, free_bytes=LENGTH_BYTES, inodes=2)

    def open(
        self, inode: InodeId, flags: int, clear_privileges: bool, credentials: Credentials
    ) -> OpenFile:
        """Any number."""
        return OpenFile(1)

    def read(self, handle: int, offset: int, length: int) -> Buffer | list[Buffer]:
        """Zeros."""
        return _ZEROS[:length]

    def write(
        self, handle: int, offset: int, data: memoryview, append: bool, clear_privileges: bool
    ) -> int:
        """They go nowhere."""
        return len(data)


@contextmanager
def empty_mount(mountpoint: Path) -> Iterator[Path]:
    """The file of zeros, served by a process of its own until the block ends."""
    mountpoint.mkdir(exist_ok=True)
    command = [sys.executable, "-m", __name__, str(mountpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            if server.stdout.readline() != "ready\n":
                raise Fs3Error(Code.NOT_READY, f"{mountpoint}: the empty mount did not come up")
            yield mountpoint / FILE
        finally:
            server.terminate()


def main() -> None:
    """Serve."""
    from fs3.client.fuse import front
    from fs3.client.fuse.negotiation import FrontOptions

    front.serve(cast(FileSystem, EmptyFileSystem()), sys.argv[1], FrontOptions())


if __name__ == "__main__":
    main()
