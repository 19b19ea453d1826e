"""A complete file system in memory behind the mount interface: the twin that fronts are tested on.

One lock guards everything, so each operation is one step. Look-up counts are kept and checked: a
node lives exactly as long as it has a name, a handle, or a reference of the kernel's.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lock_table import LockTable
from memory_nodes import Node

from fs3.client.filesystem_interface import (
    LOCK_END_MAX,
    MISSING,
    Attributes,
    Buffer,
    Cancellation,
    Controlled,
    Entry,
    FallocateFlags,
    FileLock,
    Listed,
    LockKind,
    Notifier,
    OpenFile,
    RenameFlags,
    Whence,
    XattrFlags,
    permissions_without_privileges,
)
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import NAME_BYTES_MAX, ROOT_INODE, Credentials, Dentry, SetAttributes, StatFs

TIMEOUT_S = 1.0
CAPACITY_BYTES = 1 << 40
COUNTERS = "user.memory.counters"  # xattr of the root: what the tests want to know of the requests
GATE = "user.memory.gate"  # reading this xattr blocks until somebody sets it
GATE_TIMEOUT_S = 60.0
OVERWRITE = 1 << 30 | 4 << 16 | 1  # ioctl: see MemoryFileSystem.control


@dataclass
class Handle:
    """An open file or directory."""

    node: Node
    names: list[str] = field(default_factory=list)  # of a directory, as of opendir


class MemoryFileSystem:
    """Satisfies ``FileSystem``."""

    def __init__(
        self, direct_io: bool = False, on_attach: Callable[[], object] = lambda: None
    ) -> None:
        self._direct_io = direct_io
        self._on_attach = on_attach
        self._gate = threading.Event()
        self._lock = threading.RLock()  # guards all below
        self._unlocked = threading.Condition(self._lock)
        self._inodes = itertools.count(ROOT_INODE + 1)
        self._handle_numbers = itertools.count(1)
        self._handles: dict[int, Handle] = {}
        root = self._new_node(ROOT_INODE, stat.S_IFDIR | 0o777, 0, 0, 0)
        root.links = 2
        self._nodes = {ROOT_INODE: root}
        self.notifier: Notifier | None = None
        self.write_bytes_max = 0
        self.kept_cache = 0

    # -- life --------------------------------------------------------------------------------------

    def attach(self, notifier: Notifier) -> None:
        self.notifier = notifier
        self._on_attach()

    def detach(self) -> None:
        self.notifier = None

    # -- inside ------------------------------------------------------------------------------------

    def _new_node(self, inode: InodeId, mode: int, uid: int, gid: int, device: int) -> Node:
        return Node(inode, mode, uid, gid, device)

    def _timeout_s(self) -> float:
        """How long the kernel may believe what it is told."""
        return TIMEOUT_S

    def _node(self, inode: InodeId) -> Node:
        try:
            return self._nodes[inode]
        except KeyError:
            raise Fs3Error(Code.STALE_HANDLE, f"inode {inode}: gone") from None

    def _directory(self, inode: InodeId) -> Node:
        node = self._node(inode)
        if not node.is_directory:
            raise Fs3Error(Code.NOT_DIRECTORY, f"inode {inode}: not a directory")
        return node

    def _child(self, parent: Node, name: str) -> Node:
        if name not in parent.entries:
            raise Fs3Error(Code.NOT_FOUND, f"{name!r}: no such entry")
        return self._node(parent.entries[name])

    def _entry(self, node: Node) -> Entry:
        node.lookups += 1
        return Entry(node.attributes(), self._timeout_s(), self._timeout_s())

    def _free(self, parent: Node, name: str) -> None:
        """Check that a new ``name`` may be made."""
        if len(os.fsencode(name)) > NAME_BYTES_MAX:
            raise Fs3Error(Code.NAME_TOO_LONG, f"{name!r}: {NAME_BYTES_MAX} bytes are allowed")
        if name in parent.entries:
            raise Fs3Error(Code.EXISTS, f"{name!r}: exists")
        if parent.links == 0:
            raise Fs3Error(Code.NOT_FOUND, f"directory {parent.inode}: removed")

    def _make(
        self, parent: InodeId, name: str, mode: int, who: Credentials, device: int = 0
    ) -> Node:
        above = self._directory(parent)
        self._free(above, name)
        gid = who.gid
        if above.mode & stat.S_ISGID:
            gid = above.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        inode = InodeId(next(self._inodes))
        node = self._nodes[inode] = self._new_node(inode, mode, who.uid, gid, device)
        if node.is_directory:
            node.links, node.parent = 2, above.inode
            above.links += 1
        above.entries[name] = inode
        above.changed(data=True)
        return node

    def _drop(self, parent: Node, name: str) -> None:
        """Remove a name that is there."""
        node = self._node(parent.entries.pop(name))
        parent.changed(data=True)
        if node.is_directory:
            node.links, node.parent = 0, ROOT_INODE
            parent.links -= 1
        else:
            node.links -= 1
        node.changed(data=False)
        self._collect(node)

    def _collect(self, node: Node) -> None:
        if node.links == 0 and node.lookups == 0 and node.opened == 0:
            self._nodes.pop(node.inode, None)

    # -- names -------------------------------------------------------------------------------------

    def lookup(self, parent: InodeId, name: str, credentials: Credentials) -> Entry:
        with self._lock:
            inode = self._directory(parent).entries.get(name)
            return MISSING if inode is None else self._entry(self._node(inode))

    def forget(self, inode: InodeId, lookups: int) -> None:
        with self._lock:
            node = self._nodes.get(inode)
            if node is None or inode == ROOT_INODE:
                return
            node.lookups -= lookups
            assert node.lookups >= 0, f"inode {inode}: forgotten more often than looked up"
            self._collect(node)

    def mkdir(
        self, parent: InodeId, name: str, permissions: int, credentials: Credentials
    ) -> Entry:
        with self._lock:
            return self._entry(self._make(parent, name, stat.S_IFDIR | permissions, credentials))

    def mknod(
        self, parent: InodeId, name: str, mode: int, device: int, credentials: Credentials
    ) -> Entry:
        with self._lock:
            return self._entry(self._make(parent, name, mode, credentials, device))

    def symlink(self, parent: InodeId, name: str, target: str, credentials: Credentials) -> Entry:
        with self._lock:
            node = self._make(parent, name, stat.S_IFLNK | 0o777, credentials)
            node.symlink = target
            return self._entry(node)

    def readlink(self, inode: InodeId) -> str:
        return self._node(inode).symlink

    def link(self, inode: InodeId, parent: InodeId, name: str, credentials: Credentials) -> Entry:
        with self._lock:
            node, above = self._node(inode), self._directory(parent)
            self._free(above, name)
            above.entries[name] = inode
            above.changed(data=True)
            node.links += 1
            node.changed(data=False)
            return self._entry(node)

    def unlink(self, parent: InodeId, name: str, credentials: Credentials) -> None:
        with self._lock:
            above = self._directory(parent)
            if self._child(above, name).is_directory:
                raise Fs3Error(Code.IS_DIRECTORY, f"{name!r}: a directory")
            self._drop(above, name)

    def rmdir(self, parent: InodeId, name: str, credentials: Credentials) -> None:
        with self._lock:
            above = self._directory(parent)
            node = self._child(above, name)
            if not node.is_directory:
                raise Fs3Error(Code.NOT_DIRECTORY, f"{name!r}: not a directory")
            if node.entries:
                raise Fs3Error(Code.NOT_EMPTY, f"{name!r}: not empty")
            self._drop(above, name)

    def rename(
        self,
        parent: InodeId,
        name: str,
        new_parent: InodeId,
        new_name: str,
        flags: RenameFlags,
        credentials: Credentials,
    ) -> None:
        with self._lock:
            old, new = self._directory(parent), self._directory(new_parent)
            moved = self._child(old, name)
            if flags & RenameFlags.EXCHANGE:
                other = self._child(new, new_name)
                self._place(other, old, name, new)
            elif new_name in new.entries:
                if not self._replace(moved, new, new_name, flags):
                    return
                del old.entries[name]
            else:
                self._free(new, new_name)
                del old.entries[name]
            self._place(moved, new, new_name, old)

    def _place(self, node: Node, parent: Node, name: str, before: Node) -> None:
        parent.entries[name] = node.inode
        if node.is_directory:
            node.parent = parent.inode
            before.links -= 1
            parent.links += 1
        for changed in (parent, before):
            changed.changed(data=True)
        node.changed(data=False)

    def _replace(self, moved: Node, parent: Node, name: str, flags: RenameFlags) -> bool:
        """Remove what a rename lands on; False if both names are the same file."""
        target = self._child(parent, name)
        if flags & RenameFlags.NOREPLACE:
            raise Fs3Error(Code.EXISTS, f"{name!r}: exists")
        if target is moved:
            return False
        if target.is_directory != moved.is_directory:
            code = Code.IS_DIRECTORY if target.is_directory else Code.NOT_DIRECTORY
            raise Fs3Error(code, f"{name!r}: a file and a directory do not replace each other")
        if target.entries:
            raise Fs3Error(Code.NOT_EMPTY, f"{name!r}: not empty")
        self._drop(parent, name)
        return True

    # -- attributes --------------------------------------------------------------------------------

    def getattr(self, inode: InodeId, handle: int | None) -> Attributes:
        with self._lock:
            return Attributes(self._node(inode).attributes(), self._timeout_s())

    def setattr(
        self,
        inode: InodeId,
        changes: SetAttributes,
        handle: int | None,
        clear_privileges: bool,
        credentials: Credentials,
    ) -> Attributes:
        with self._lock:
            node = self._node(inode)
            owner = changes.uid is not None or changes.gid is not None
            node.changed(data=False)
            if changes.length_bytes is not None and changes.length_bytes != node.pages.length:
                node.pages.truncate(changes.length_bytes)
                node.changed(data=True)
            if clear_privileges or (owner and not node.is_directory):
                node.mode = permissions_without_privileges(node.mode)
            if changes.permissions is not None:
                node.mode = stat.S_IFMT(node.mode) | changes.permissions
            node.uid = node.uid if changes.uid is None else changes.uid
            node.gid = node.gid if changes.gid is None else changes.gid
            self._set_times(node, changes)
            return Attributes(node.attributes(), self._timeout_s())

    def _set_times(self, node: Node, changes: SetAttributes) -> None:
        if changes.atime_now:
            node.atime_ns = node.ctime_ns
        if changes.mtime_now:
            node.mtime_ns = node.ctime_ns
        if changes.atime_ns is not None:
            node.atime_ns = changes.atime_ns
        if changes.mtime_ns is not None:
            node.mtime_ns = changes.mtime_ns

    def statfs(self) -> StatFs:
        with self._lock:
            used = sum(node.pages.length for node in self._nodes.values())
            return StatFs(
                capacity_bytes=CAPACITY_BYTES,
                free_bytes=max(CAPACITY_BYTES - used, 0),
                inodes=len(self._nodes),
            )

    def setxattr(self, inode: InodeId, name: str, value: bytes, flags: XattrFlags) -> None:
        with self._lock:
            node = self._node(inode)
            if flags & XattrFlags.CREATE and name in node.xattrs:
                raise Fs3Error(Code.EXISTS, f"{name!r}: set already")
            if flags & XattrFlags.REPLACE and name not in node.xattrs:
                raise Fs3Error(Code.NO_ATTRIBUTE, f"{name!r}: not set")
            node.xattrs[name] = value
            node.changed(data=False)
            if name == GATE:
                self._gate.set()

    def getxattr(self, inode: InodeId, name: str) -> bytes:
        if name == GATE and not self._gate.wait(GATE_TIMEOUT_S):
            raise Fs3Error(Code.UNREACHABLE, "nobody opened the gate")
        with self._lock:
            if inode == ROOT_INODE and name == COUNTERS:
                return f"{self.write_bytes_max} {self.kept_cache} {len(self._nodes)}".encode()
            try:
                return self._node(inode).xattrs[name]
            except KeyError:
                raise Fs3Error(Code.NO_ATTRIBUTE, f"{name!r}: not set") from None

    def listxattr(self, inode: InodeId) -> Sequence[str]:
        with self._lock:
            return list(self._node(inode).xattrs)

    def removexattr(self, inode: InodeId, name: str) -> None:
        with self._lock:
            if self._node(inode).xattrs.pop(name, None) is None:
                raise Fs3Error(Code.NO_ATTRIBUTE, f"{name!r}: not set")

    # -- open files --------------------------------------------------------------------------------

    def _open(self, node: Node) -> OpenFile:
        number = next(self._handle_numbers)
        self._handles[number] = Handle(node)
        node.opened += 1
        keep = node.opened_version == node.version
        node.opened_version = node.version
        self.kept_cache += keep
        return OpenFile(number, keep_cache=keep, direct_io=self._direct_io)

    def open(
        self, inode: InodeId, flags: int, clear_privileges: bool, credentials: Credentials
    ) -> OpenFile:
        with self._lock:
            node = self._node(inode)
            if flags & os.O_TRUNC:
                node.pages.truncate(0)
                node.changed(data=True)
                if clear_privileges:
                    node.mode = permissions_without_privileges(node.mode)
            return self._open(node)

    def create(
        self, parent: InodeId, name: str, permissions: int, flags: int, credentials: Credentials
    ) -> tuple[Entry, OpenFile]:
        with self._lock:
            inode = self._directory(parent).entries.get(name)
            if inode is not None and not flags & os.O_EXCL:
                opened = self.open(inode, flags, False, credentials)
                return self._entry(self._node(inode)), opened
            node = self._make(parent, name, stat.S_IFREG | permissions, credentials)
            return self._entry(node), self._open(node)

    def read(self, handle: int, offset: int, length: int) -> Buffer | list[Buffer]:
        return self._handles[handle].node.pages.read(offset, length)

    def write(
        self, handle: int, offset: int, data: memoryview, append: bool, clear_privileges: bool
    ) -> int:
        with self._lock:
            node = self._handles[handle].node
            node.pages.write(node.pages.length if append else offset, data)
            node.changed(data=True)
            if clear_privileges:
                node.mode = permissions_without_privileges(node.mode)
            self.write_bytes_max = max(self.write_bytes_max, len(data))
            return len(data)

    def flush(self, handle: int, owner: int) -> None:
        node = self._handles[handle].node
        with self._lock:
            self._unlock_all(node.posix_locks, owner)

    def release(self, handle: int, flock_owner: int | None) -> None:
        with self._lock:
            node = self._handles.pop(handle).node
            if flock_owner is not None:
                self._unlock_all(node.flocks, flock_owner)
            node.opened -= 1
            self._collect(node)

    def fsync(self, handle: int, data_only: bool) -> None:
        assert handle in self._handles

    def lseek(self, handle: int, offset: int, whence: Whence) -> int | None:
        with self._lock:
            return self._handles[handle].node.pages.seek(offset, whence is Whence.DATA)

    def control(self, handle: int, command: int, argument: bytes) -> Controlled | None:
        """OVERWRITE puts its argument at the start of the file, behind the kernel's back."""
        if command != OVERWRITE:
            return None
        with self._lock:
            node = self._handles[handle].node
            node.pages.write(0, memoryview(argument))
            node.changed(data=True)
        return Controlled(stale=True)

    def fallocate(self, handle: int, offset: int, length: int, flags: FallocateFlags) -> None:
        known = FallocateFlags.KEEP_SIZE | FallocateFlags.PUNCH_HOLE | FallocateFlags.ZERO_RANGE
        if flags & ~known:
            raise Fs3Error(Code.UNSUPPORTED, f"fallocate flags {flags:#x}: {known:#x} are allowed")
        with self._lock:
            node = self._handles[handle].node
            pages = node.pages
            if flags & (FallocateFlags.PUNCH_HOLE | FallocateFlags.ZERO_RANGE):
                pages.zero(offset, min(length, max(pages.length - offset, 0)))
            if not flags & FallocateFlags.KEEP_SIZE:
                pages.length = max(pages.length, offset + length)
            node.changed(data=True)

    def copy_file_range(
        self, source: int, source_offset: int, target: int, target_offset: int, length: int
    ) -> int:
        with self._lock:
            node = self._handles[target].node
            data = b"".join(self._handles[source].node.pages.read(source_offset, length))
            node.pages.write(target_offset, memoryview(data))
            node.changed(data=True)
            return len(data)

    # -- directories -------------------------------------------------------------------------------

    def opendir(self, inode: InodeId, credentials: Credentials) -> OpenFile:
        with self._lock:
            opened = self._open(self._directory(inode))
            handle = self._handles[opened.handle]
            handle.names = list(handle.node.entries)
            return opened._replace(direct_io=False)

    def readdir(self, handle: int, after: int, plus: bool) -> Iterator[Listed]:
        opened = self._handles[handle]
        for cookie, name in enumerate(opened.names[after:], after + 1):
            with self._lock:
                inode = opened.node.entries.get(name)
                if inode is None:
                    continue
                node = self._node(inode)
                entry = self._entry(node) if plus else None
            yield Listed(cookie, Dentry(name=name, inode=inode, kind=node.kind), entry)

    def releasedir(self, handle: int) -> None:
        self.release(handle, None)

    def fsyncdir(self, handle: int, data_only: bool) -> None:
        assert handle in self._handles

    # -- locks -------------------------------------------------------------------------------------

    def getlk(self, inode: InodeId, owner: int, lock: FileLock) -> FileLock | None:
        with self._lock:
            return self._node(inode).posix_locks.conflict(owner, lock)

    def setlk(
        self,
        inode: InodeId,
        owner: int,
        lock: FileLock,
        flock: bool,
        wait: Cancellation | None,
    ) -> bool:
        if wait is not None:
            wait.on_cancel(self._wake)
        with self._lock:
            node = self._node(inode)
            table = node.flocks if flock else node.posix_locks
            while lock.kind is not LockKind.UNLOCK and table.conflict(owner, lock):
                if wait is None or wait.cancelled:
                    return False
                self._unlocked.wait()
            table.set(owner, lock)
            self._unlocked.notify_all()
            return True

    def _unlock_all(self, table: LockTable, owner: int) -> None:
        table.set(owner, FileLock(LockKind.UNLOCK, 0, LOCK_END_MAX, 0))
        self._unlocked.notify_all()

    def _wake(self) -> None:
        with self._lock:
            self._unlocked.notify_all()
