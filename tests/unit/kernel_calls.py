"""What a kernel asks of the file system behind a mount, in short words, for tests."""

from __future__ import annotations

import os

from fake_cluster import FakeCluster

from fs3.client.filesystem import MountedFileSystem
from fs3.client.filesystem_interface import FileSystem
from fs3.types import ROOT_INODE, Credentials

ROOT = Credentials(uid=0, gid=0)
USER = Credentials(uid=1000, gid=1000)


class NoKernel:
    """A notifier that nobody listens to."""

    def invalidate_inode(self, inode, offset=0, length=0) -> None:
        """Nothing is cached."""

    def invalidate_entry(self, parent, name) -> None:
        """Nothing is cached."""


class Mount:
    """Short words for what a kernel does."""

    def __init__(self, cluster: FakeCluster, **options) -> None:
        self.fs = MountedFileSystem(cluster.client().context, **options)
        front: FileSystem = self.fs  # mypy sees that the protocol is kept
        front.attach(NoKernel())

    def lookup(self, name: str, parent=ROOT_INODE):
        return self.fs.lookup(parent, name, ROOT).inode

    def create(self, name: str, flags: int = os.O_RDWR, who=ROOT, permissions=0o644):
        entry, opened = self.fs.create(ROOT_INODE, name, permissions, flags | os.O_CREAT, who)
        return entry.inode.inode, opened.handle

    def open(self, name: str, flags: int = os.O_RDONLY):
        inode = self.lookup(name).inode
        return self.fs.open(inode, flags, False, ROOT)

    def write(self, handle: int, offset: int, data: bytes, *, append: bool = False) -> None:
        assert self.fs.write(handle, offset, memoryview(data), append, False) == len(data)

    def read(self, handle: int, offset: int = 0, length: int = 1 << 20) -> bytes:
        return bytes(self.fs.read(handle, offset, length))

    def close(self, handle: int) -> None:
        self.fs.flush(handle, 0)
        self.fs.release(handle, None)

    def put(self, name: str, data: bytes) -> None:
        _, handle = self.create(name, os.O_WRONLY | os.O_TRUNC)
        self.write(handle, 0, data)
        self.close(handle)

    def get(self, name: str) -> bytes:
        handle = self.open(name).handle
        try:
            return self.read(handle)
        finally:
            self.close(handle)
