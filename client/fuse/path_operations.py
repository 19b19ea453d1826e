"""A file system by paths, as libfuse's high-level interface asks, over the one by inodes.

libfuse gives a path with every call; it is walked from the root by look-ups, whose references are
given back when the call is done. A call through an open file uses its handle, and then needs no
path: the file may have lost its last name (libfuse passes None).

To the kernel each path is an inode of its own here, so the names of a hard-linked file have
separate caches: attributes are therefore not cached at all, and pages are dropped at every open.
What the detour costs further, apart from time: names are believed for :data:`NAME_TIMEOUT_S`
whatever the entry says; an open file that is removed lives on under a .fuse_hidden name until it is
closed, and its directory cannot be removed until then; locks are the kernel's own, among the
processes of this machine; holes are not found by lseek; copy_file_range reads and writes.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from fs3.client.filesystem_interface import (
    FallocateFlags,
    FileSystem,
    OpenFile,
    RenameFlags,
    XattrFlags,
)
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import (
    INODES_FREE,
    KIND_TO_MODE,
    NAME_BYTES_MAX,
    ROOT_INODE,
    Credentials,
    Inode,
    SetAttributes,
)

NAME_TIMEOUT_S = 1.0
_BLOCK_BYTES = 4096


class FileInfo(Protocol):
    """The fields of libfuse's struct fuse_file_info that matter here."""

    fh: int
    flags: int
    lock_owner: int
    writepage: int
    direct_io: int


class NoNotifier:
    """libfuse's high-level interface cannot make the kernel forget: timeouts do, in a second."""

    def invalidate_inode(self, inode: InodeId, offset: int = 0, length: int = 0) -> None:
        """Wait for the timeout."""

    def invalidate_entry(self, parent: InodeId, name: str) -> None:
        """Wait for the timeout."""


class PathOperations:
    """What mfusepy calls, by name; ``caller`` is its ``fuse_get_context``: (uid, gid, pid)."""

    use_ns = True  # times are integers of nanoseconds
    flag_nopath = flag_nullpath_ok = True  # calls through a handle need no path

    def __init__(self, filesystem: FileSystem, caller: Callable[[], tuple[int, int, int]]) -> None:
        self._filesystem = filesystem
        self._caller = caller
        self._lock = threading.Lock()  # guards the two below
        self._inodes: dict[int, InodeId] = {}  # of open files, by handle
        self._directories: dict[int, InodeId] = {}  # of open directories

    # -- life ------------------------------------------------------------------------------------

    def init(self, path: str) -> None:
        self._filesystem.attach(NoNotifier())

    def destroy(self, path: str) -> None:
        self._filesystem.detach()

    # -- paths -----------------------------------------------------------------------------------

    def _who(self) -> Credentials:
        uid, gid, _ = self._caller()
        return Credentials(uid=uid, gid=gid)

    @contextmanager
    def _walk(self, path: str) -> Iterator[InodeId]:
        """The inode of ``path``, referenced until the block ends."""
        who, at, held = self._who(), ROOT_INODE, []
        try:
            for name in path.split("/"):
                if not name:
                    continue
                found = self._filesystem.lookup(at, name, who).inode
                if found is None:
                    raise Fs3Error(Code.NOT_FOUND, f"{path}: no such entry as {name!r}")
                at = found.inode
                held.append(at)
            yield at
        finally:
            for inode in held:
                self._filesystem.forget(inode, 1)

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[InodeId, str]]:
        above, _, name = path.rpartition("/")
        with self._walk(above) as parent:
            yield parent, name

    @contextmanager
    def _target(self, path: str | None, info: FileInfo | None) -> Iterator[InodeId]:
        """The inode of an open file, or else of a path."""
        if info is not None:
            with self._lock:
                inode = self._inodes.get(info.fh)
            if inode is not None:
                yield inode
                return
        if path is None:
            raise Fs3Error(Code.STALE_HANDLE, "neither a path nor an open file")
        with self._walk(path) as inode:
            yield inode

    def _made(self, inode: Inode | None) -> int:
        """Give back the reference that making an entry brought."""
        if inode is not None:
            self._filesystem.forget(inode.inode, 1)
        return 0

    # -- names -----------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int) -> int:
        with self._parent(path) as (parent, name):
            made = self._filesystem.mkdir(parent, name, mode & 0o7777, self._who())
            return self._made(made.inode)

    def mknod(self, path: str, mode: int, device: int) -> int:
        with self._parent(path) as (parent, name):
            made = self._filesystem.mknod(parent, name, mode, device, self._who())
            return self._made(made.inode)

    def symlink(self, path: str, target: str) -> int:
        with self._parent(path) as (parent, name):
            made = self._filesystem.symlink(parent, name, target, self._who())
            return self._made(made.inode)

    def link(self, path: str, existing: str) -> int:
        with self._walk(existing) as inode, self._parent(path) as (parent, name):
            made = self._filesystem.link(inode, parent, name, self._who())
            return self._made(made.inode)

    def readlink(self, path: str) -> str:
        with self._walk(path) as inode:
            return self._filesystem.readlink(inode)

    def unlink(self, path: str) -> None:
        with self._parent(path) as (parent, name):
            self._filesystem.unlink(parent, name, self._who())

    def rmdir(self, path: str) -> None:
        with self._parent(path) as (parent, name):
            self._filesystem.rmdir(parent, name, self._who())

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        with self._parent(old) as (parent, name), self._parent(new) as (new_parent, new_name):
            self._filesystem.rename(
                parent, name, new_parent, new_name, RenameFlags(flags), self._who()
            )

    # -- attributes ------------------------------------------------------------------------------

    def getattr(self, path: str | None, info: FileInfo | None = None) -> dict[str, int]:
        with self._target(path, info) as inode:
            handle = None if info is None else info.fh
            return _stat(self._filesystem.getattr(inode, handle).inode)

    def _change(self, path: str | None, info: FileInfo | None, changes: SetAttributes) -> None:
        who = self._who()
        truncates = changes.length_bytes is not None
        with self._target(path, info) as inode:
            handle = None if info is None else info.fh
            self._filesystem.setattr(inode, changes, handle, truncates and who.uid != 0, who)

    def chmod(self, path: str | None, mode: int, info: FileInfo | None = None) -> None:
        self._change(path, info, SetAttributes(permissions=mode & 0o7777))

    def chown(self, path: str | None, uid: int, gid: int, info: FileInfo | None = None) -> None:
        changes = SetAttributes(uid=None if uid < 0 else uid, gid=None if gid < 0 else gid)
        self._change(path, info, changes)

    def truncate(self, path: str | None, length: int, info: FileInfo | None = None) -> None:
        self._change(path, info, SetAttributes(length_bytes=length))

    def utimens(
        self, path: str | None, changes: SetAttributes, info: FileInfo | None = None
    ) -> None:
        """Takes the changes ready made: see ``fusepy_front``."""
        self._change(path, info, changes)

    def statfs(self, path: str) -> dict[str, int]:
        found = self._filesystem.statfs()
        free = found.free_bytes // _BLOCK_BYTES
        return {
            "f_bsize": _BLOCK_BYTES,
            "f_frsize": _BLOCK_BYTES,
            "f_blocks": found.capacity_bytes // _BLOCK_BYTES,
            "f_bfree": free,
            "f_bavail": free,
            "f_files": found.inodes + INODES_FREE,
            "f_ffree": INODES_FREE,
            "f_favail": INODES_FREE,
            "f_namemax": NAME_BYTES_MAX,
        }

    def getxattr(self, path: str, name: str) -> bytes:
        _refuse_acl(name)
        with self._walk(path) as inode:
            return self._filesystem.getxattr(inode, name)

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        _refuse_acl(name)
        with self._walk(path) as inode:
            self._filesystem.setxattr(inode, name, value, XattrFlags(flags))

    def listxattr(self, path: str) -> list[str]:
        with self._walk(path) as inode:
            return list(self._filesystem.listxattr(inode))

    def removexattr(self, path: str, name: str) -> None:
        _refuse_acl(name)
        with self._walk(path) as inode:
            self._filesystem.removexattr(inode, name)

    # -- open files ------------------------------------------------------------------------------

    def _opened(self, inode: InodeId, opened: OpenFile, info: FileInfo) -> int:
        with self._lock:
            self._inodes[opened.handle] = inode
        info.fh = opened.handle
        info.direct_io = int(opened.direct_io)
        return 0

    def open(self, path: str, info: FileInfo) -> int:
        who = self._who()
        with self._walk(path) as inode:
            opened = self._filesystem.open(inode, info.flags, who.uid != 0, who)
            return self._opened(inode, opened, info)

    def create(self, path: str, mode: int, info: FileInfo) -> int:
        with self._parent(path) as (parent, name):
            entry, opened = self._filesystem.create(
                parent, name, mode & 0o7777, info.flags, self._who()
            )
            if entry.inode is None:
                raise Fs3Error(Code.BUG, f"{path}: created, but without an inode")
            self._opened(entry.inode.inode, opened, info)
            return self._made(entry.inode)

    def read(self, path: str | None, length: int, offset: int, info: FileInfo) -> bytes:
        data = self._filesystem.read(info.fh, offset, length)
        return b"".join(data) if isinstance(data, list) else bytes(data)

    def write(self, path: str | None, data: bytes, offset: int, info: FileInfo) -> int:
        append = bool(info.flags & os.O_APPEND) and not info.writepage
        clear = self._caller()[0] != 0
        return self._filesystem.write(info.fh, offset, memoryview(data), append, clear)

    def flush(self, path: str | None, info: FileInfo) -> None:
        self._filesystem.flush(info.fh, info.lock_owner)

    def release(self, path: str | None, info: FileInfo) -> None:
        with self._lock:
            self._inodes.pop(info.fh, None)
        self._filesystem.release(info.fh, None)

    def fsync(self, path: str | None, data_only: int, info: FileInfo) -> None:
        self._filesystem.fsync(info.fh, bool(data_only))

    def fallocate(
        self, path: str | None, mode: int, offset: int, length: int, info: FileInfo
    ) -> None:
        self._filesystem.fallocate(info.fh, offset, length, FallocateFlags(mode))

    # -- directories -----------------------------------------------------------------------------

    def opendir(self, path: str) -> int:
        with self._walk(path) as inode:
            handle = self._filesystem.opendir(inode, self._who()).handle
            with self._lock:
                self._directories[handle] = inode
            return handle

    def readdir_with_offset(
        self, path: str | None, offset: int, handle: int
    ) -> Iterator[tuple[str, dict[str, int], int]]:
        """Name, kind and where to go on; "." and ".." are the offsets 1 and 2."""
        if offset < 2:
            inode = self._directories[handle]
            above = self._filesystem.getattr(inode, None).inode.parent or ROOT_INODE
            dots = [(".", inode, 1), ("..", above, 2)]
            for name, number, cookie in dots[offset:]:
                yield name, {"st_mode": stat.S_IFDIR, "st_ino": number}, cookie
        for listed in self._filesystem.readdir(handle, max(offset - 2, 0), False):
            dentry = listed.dentry
            found = {"st_mode": KIND_TO_MODE[dentry.kind], "st_ino": dentry.inode}
            yield dentry.name, found, listed.cookie + 2

    def releasedir(self, path: str | None, handle: int) -> None:
        with self._lock:
            self._directories.pop(handle, None)
        self._filesystem.releasedir(handle)

    def fsyncdir(self, path: str | None, data_only: int, handle: int) -> None:
        self._filesystem.fsyncdir(handle, bool(data_only))


def _refuse_acl(name: str) -> None:
    """As the direct front: storing ACLs that nobody enforces would be a lie."""
    if name.startswith("system."):
        raise Fs3Error(Code.UNSUPPORTED, f"{name}: ACLs are not supported")


def _stat(inode: Inode) -> dict[str, int]:
    return {
        "st_ino": inode.inode,
        "st_mode": inode.mode,
        "st_nlink": inode.links,
        "st_uid": inode.uid,
        "st_gid": inode.gid,
        "st_rdev": inode.device,
        "st_size": inode.length_bytes,
        "st_blocks": (inode.length_bytes + 511) >> 9,
        "st_blksize": min(inode.layout.chunk_bytes, 1 << 20),
        "st_atime": inode.atime_ns,
        "st_mtime": inode.mtime_ns,
        "st_ctime": inode.ctime_ns,
    }
