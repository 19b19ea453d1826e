"""A namespace on the memory engine, with a clock that ticks, for tests of the namespace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from fs3.core.layout import Layout
from fs3.core.types import ChainId, InodeId
from fs3.errors import Code, Fs3Error
from fs3.metaserver import namespace
from fs3.metaserver.kv.memory import MemoryEngine
from fs3.types import ROOT_INODE, Credentials, Dentry, Inode, SetAttributes

T = TypeVar("T")

ROOT = Credentials(uid=0, gid=0)
ALICE = Credentials(uid=1000, gid=100, gids=(101,))
BOB = Credentials(uid=1001, gid=101)
EVE = Credentials(uid=1002, gid=102)

CHUNK = 1 << 20
TABLES = {1: [ChainId(n) for n in range(1, 9)], 2: [ChainId(n) for n in range(21, 25)]}


class World:
    """Operations by path, committed one by one. Paths here have no symbolic links in them."""

    def __init__(self, engine: MemoryEngine | None = None) -> None:
        self.engine = engine or MemoryEngine(pause=lambda attempt: None)
        self.now_ns = 1_000
        self.engine.run(namespace.make_root, Layout(CHUNK, 4), self.now_ns)
        self._ids = namespace.InodeAllocator(self.engine, block=16)
        self.run(namespace.set_attributes, ROOT_INODE, self._open_to_all(), ROOT, self.now_ns)

    @staticmethod
    def _open_to_all() -> SetAttributes:
        return SetAttributes(permissions=0o777)

    def tick(self) -> int:
        """A later moment."""
        self.now_ns += 10
        return self.now_ns

    def run(self, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """``fn`` in a transaction of its own."""
        return self.engine.run(fn, *args, **kwargs)

    def new(self, who: Credentials = ROOT, permissions: int = 0o755) -> namespace.NewInode:
        """Everything a new inode needs."""
        return namespace.NewInode(
            inode=self._ids.take(), who=who, now_ns=self.tick(), permissions=permissions
        )

    def at(self, path: str) -> Inode:
        """The inode at ``path``, seen by root."""
        found = self.run(namespace.resolve, path, ROOT, follow=False).inode
        assert found is not None
        return found

    def split(self, path: str) -> tuple[InodeId, str]:
        """The directory that holds ``path``, and the name in it."""
        above, _, name = path.rpartition("/")
        return self.at(above or "/").inode, name

    def inode(self, inode: InodeId) -> Inode:
        """The attributes of ``inode``."""
        return self.run(namespace.get_attributes, inode)

    def mkdir(self, path: str, who: Credentials = ROOT, permissions: int = 0o777) -> Inode:
        return self.run(namespace.mkdir, *self.split(path), self.new(who, permissions))

    def create(
        self, path: str, who: Credentials = ROOT, permissions: int = 0o644, **kwargs: Any
    ) -> namespace.Opened:
        new = self.new(who, permissions)
        return self.run(namespace.create, *self.split(path), new, TABLES, **kwargs)

    def symlink(self, path: str, target: str, who: Credentials = ROOT) -> Inode:
        return self.run(namespace.symlink, *self.split(path), target, self.new(who))

    def link(self, path: str, new_path: str, who: Credentials = ROOT) -> Inode:
        inode = self.at(path).inode
        return self.run(namespace.link, inode, *self.split(new_path), who, self.tick())

    def unlink(self, path: str, who: Credentials = ROOT) -> Inode:
        return self.run(namespace.unlink, *self.split(path), who, self.tick())

    def rmdir(self, path: str, who: Credentials = ROOT) -> None:
        self.run(namespace.rmdir, *self.split(path), who, self.tick())

    def rename(self, path: str, new_path: str, who: Credentials = ROOT, **flags: bool) -> Inode:
        ends = (*self.split(path), *self.split(new_path))
        return self.run(namespace.rename, *ends, who, self.tick(), **flags)

    def set(self, path: str, who: Credentials = ROOT, **change: Any) -> namespace.Changed:
        return self.run(
            namespace.set_attributes,
            self.at(path).inode,
            SetAttributes(**change),
            who,
            self.tick(),
        )

    def open(self, path: str, who: Credentials = ROOT, **mode: Any) -> namespace.Opened:
        inode, mode = self.at(path).inode, namespace.OpenMode(**mode)
        return self.run(namespace.open_file, inode, who, mode, self.tick())

    def close(self, inode: InodeId, handle: namespace.Handle | None, **kwargs: Any) -> Inode | None:
        return self.run(namespace.close_file, inode, handle, self.tick(), **kwargs)

    def names(self, path: str) -> list[str]:
        return [entry.name for entry in self.entries(path)]

    def entries(self, path: str, **kwargs: Any) -> list[Dentry]:
        return self.run(namespace.read_directory, self.at(path).inode, ROOT, **kwargs).entries

    def garbage(self) -> list[InodeId]:
        found = self.run(namespace.gc_next, 1000, self.now_ns)
        return [garbage.inode.inode for garbage in found]


def refused(code: Code, action: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """``action`` must be refused with ``code``; the detail."""
    with pytest.raises(Fs3Error) as caught:
        action(*args, **kwargs)
    assert caught.value.code is code, caught.value
    return caught.value.detail
