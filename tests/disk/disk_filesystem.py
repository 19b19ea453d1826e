"""The file system of a disk that can lose power, be slow, fail and lie: for daemons to live on.

All in memory. What :mod:`volatile` says of a loss of power holds; the page cache of the kernel is
not used, so that every read and write of a daemon arrives here.

- :meth:`FaultyDisk.freeze_after`: from the n-th change on (a write, a sync, a name) nothing is done
  and nobody is answered, until the power is cut. So a cut can be in the middle of anything.
- :meth:`FaultyDisk.add_rule`: what lies below a path is slow, fails, or is not synced although the
  disk says so.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from memory_filesystem import MemoryFileSystem
from memory_nodes import Node
from volatile import VolatileEntries, VolatilePages

from fs3.client.filesystem_interface import (
    Attributes,
    Buffer,
    Entry,
    FallocateFlags,
    OpenFile,
    RenameFlags,
)
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import ROOT_INODE, Credentials, SetAttributes, StatFs

CLOSE_TIMEOUT_S = 60.0  # for dead processes to let go of their files
OPERATIONS = ("read", "write", "sync", "name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What happens to these operations below a path (from the top of the disk; "" is all of it)."""

    path: str = ""
    operations: tuple[str, ...] = OPERATIONS
    delay_s: float = 0.0  # each takes so much longer
    bytes_per_s: float = 0.0  # reads and writes are no faster than this; 0: as fast as they go
    errno: str = ""  # "EIO" or "ENOSPC": what they fail with
    pretend: bool = False  # syncs succeed and do nothing

    def applies(self, operation: str, path: str) -> bool:
        """Whether it is about this operation."""
        below = not self.path or path == self.path or path.startswith(self.path + "/")
        return operation in self.operations and below


_ERRORS = {"EIO": Code.DISK, "ENOSPC": Code.NO_SPACE}


class FaultyDisk(MemoryFileSystem):
    """Satisfies ``FileSystem``. One lock guards everything, as in the class below it."""

    def __init__(self, capacity_bytes: int, on_attach: Callable[[], object]) -> None:
        self._numbers = itertools.count(1)
        self._renaming: int | None = None
        self._places: dict[InodeId, tuple[InodeId, str]] = {}  # where each was last named
        super().__init__(direct_io=True, on_attach=on_attach)
        self._capacity_bytes = capacity_bytes
        self._used_bytes = 0
        self._rules: list[Rule] = []
        self._synchronous: set[int] = set()  # handles opened with O_SYNC or O_DSYNC
        self._power = threading.Condition(self._lock)
        self._changes_left: int | None = None  # until the disk freezes
        self._cuts = 0
        self.changes = 0

    def _new_node(self, inode: InodeId, mode: int, uid: int, gid: int, device: int) -> Node:
        node = super()._new_node(inode, mode, uid, gid, device)
        if stat.S_ISDIR(mode):
            node.entries = _Names(self, inode)
        else:
            node.pages = VolatilePages()
        return node

    def _timeout_s(self) -> float:
        return 0.0

    # -- what the tests order ----------------------------------------------------------------------

    def add_rule(self, **fields: Any) -> None:
        """From now on; the first rule that applies counts."""
        rule = Rule(**{**fields, "operations": tuple(fields.get("operations", OPERATIONS))})
        with self._lock:
            self._rules.append(rule)

    def clear_rules(self) -> None:
        """A good disk again."""
        with self._lock:
            self._rules.clear()

    def freeze_after(self, changes: int) -> None:
        """The disk stands still from that change on."""
        with self._lock:
            self._changes_left = changes

    def is_frozen(self) -> bool:
        """Whether it stands still."""
        return self._changes_left == 0

    def cut_power(self, seed: int, *, keep_some: bool) -> None:
        """Lose what was not synced. Everybody who uses the disk must have been killed."""
        random = Random(seed)
        with self._power:
            self._changes_left = 0
            self._cuts += 1
            self._power.notify_all()  # who waits fails, and so can die
            if not self._power.wait_for(lambda: not self._handles, CLOSE_TIMEOUT_S):
                open_paths = sorted({self._path(h.node) for h in self._handles.values()})
                raise Fs3Error(Code.BUSY, f"still open: {', '.join(open_paths)}")
            self._lose(random, keep_some)
            self._changes_left = None

    def _lose(self, random: Random, keep_some: bool) -> None:
        alive = {ROOT_INODE}
        below = [ROOT_INODE]
        links: dict[InodeId, int] = {}
        while below:
            node = self._nodes[below.pop()]
            if not node.is_directory:
                continue
            assert isinstance(node.entries, VolatileEntries)
            node.entries.lose_power(random, keep_some=keep_some)
            for name, inode in node.entries.items():
                self._places[inode] = node.inode, name
                links[inode] = links.get(inode, 0) + 1
                if inode not in alive:
                    alive.add(inode)
                    below.append(inode)
        self._nodes = {inode: node for inode, node in self._nodes.items() if inode in alive}
        for inode, node in sorted(self._nodes.items()):
            if node.is_directory:
                children = (self._nodes[child].is_directory for child in node.entries.values())
                node.links = 2 + sum(children)
            else:
                node.links = links[inode]
                assert isinstance(node.pages, VolatilePages)
                node.pages.lose_power(random, keep_some=keep_some)
        self._used_bytes = sum(node.pages.length for node in self._nodes.values())

    # -- inside ------------------------------------------------------------------------------------

    def named(self, parent: InodeId, name: str, inode: InodeId) -> None:
        """``inode`` got this name."""
        self._places[inode] = parent, name

    def change_number(self) -> int:
        """Of a change of names; all of one rename have the same."""
        return self._renaming or next(self._numbers)

    def _path(self, node: Node) -> str:
        parts: list[str] = []
        inode = node.inode
        while inode in self._places:
            inode, name = self._places[inode]
            parts.append(name)
        return "/".join(reversed(parts))

    def _collect(self, node: Node) -> None:
        """A node without a name stays while a loss of power may give it one again."""
        if not node.links and not self._may_return(node.inode):
            super()._collect(node)

    def _may_return(self, inode: InodeId) -> bool:
        parent = self._nodes.get(self._places.get(inode, (InodeId(0), ""))[0])
        entries = parent.entries if parent is not None else None
        return isinstance(entries, VolatileEntries) and inode in entries.may_return()

    def _before(self, operation: str, node: Node, length: int = 0) -> Rule | None:
        """The operation is about to be done: wait, fail, or go on under a rule."""
        with self._power:
            cuts = self._cuts
            if operation != "read":
                self.changes += 1
                if self._changes_left:
                    self._changes_left -= 1
            while self._changes_left == 0 and operation != "read" and self._cuts == cuts:
                self._power.wait()
            if self._cuts != cuts or (self._changes_left == 0 and operation != "read"):
                raise Fs3Error(Code.DISK, "the power is cut")
            if not self._rules:
                return None
            path = self._path(node)
            rule = next((rule for rule in self._rules if rule.applies(operation, path)), None)
        if rule is None:
            return None
        delay_s = rule.delay_s + (length / rule.bytes_per_s if rule.bytes_per_s else 0.0)
        if delay_s:
            time.sleep(delay_s)
        if rule.errno:
            raise Fs3Error(_ERRORS[rule.errno], f"{path}: {operation} shall fail")
        return rule

    # -- bytes -------------------------------------------------------------------------------------

    def read(self, handle: int, offset: int, length: int) -> Buffer | list[Buffer]:
        self._before("read", self._handles[handle].node, length)
        return super().read(handle, offset, length)

    def write(
        self, handle: int, offset: int, data: memoryview, append: bool, clear_privileges: bool
    ) -> int:
        node = self._handles[handle].node
        self._before("write", node, len(data))
        with self._lock:
            before = node.pages.length
            end = before + len(data) if append else offset + len(data)
            self._take_space(end - before)
            written = super().write(handle, offset, data, append, clear_privileges)
        if handle in self._synchronous:
            self.fsync(handle, data_only=True)
        return written

    def fallocate(self, handle: int, offset: int, length: int, flags: FallocateFlags) -> None:
        node = self._handles[handle].node
        self._before("write", node)
        with self._lock:
            if not flags & FallocateFlags.KEEP_SIZE:
                self._take_space(offset + length - node.pages.length)
            super().fallocate(handle, offset, length, flags)

    def setattr(
        self,
        inode: InodeId,
        changes: SetAttributes,
        handle: int | None,
        clear_privileges: bool,
        credentials: Credentials,
    ) -> Attributes:
        node = self._node(inode)
        self._before("write", node)
        with self._lock:
            before = node.pages.length
            answer = super().setattr(inode, changes, handle, clear_privileges, credentials)
            self._used_bytes += node.pages.length - before
            return answer

    def _take_space(self, more_bytes: int) -> None:
        if more_bytes > 0:
            if self._used_bytes + more_bytes > self._capacity_bytes:
                raise Fs3Error(Code.NO_SPACE, f"{self._capacity_bytes} bytes are the disk's")
            self._used_bytes += more_bytes

    def statfs(self) -> StatFs:
        with self._lock:
            free = self._capacity_bytes - self._used_bytes
            return StatFs(capacity_bytes=self._capacity_bytes, free_bytes=free, inodes=1 << 20)

    def fsync(self, handle: int, data_only: bool) -> None:
        node = self._handles[handle].node
        rule = self._before("sync", node)
        if rule is None or not rule.pretend:
            with self._lock:
                assert isinstance(node.pages, VolatilePages)
                node.pages.sync()

    def fsyncdir(self, handle: int, data_only: bool) -> None:
        node = self._handles[handle].node
        rule = self._before("sync", node)
        if rule is not None and rule.pretend:
            return
        with self._lock:
            assert isinstance(node.entries, VolatileEntries)
            node.entries.sync()
            for gone in [n for n in self._nodes.values() if not n.links]:
                self._collect(gone)

    # -- names -------------------------------------------------------------------------------------

    def open(
        self, inode: InodeId, flags: int, clear_privileges: bool, credentials: Credentials
    ) -> OpenFile:
        if flags & os.O_TRUNC:
            self._before("write", self._node(inode))
        with self._lock:
            if flags & os.O_TRUNC:
                self._used_bytes -= self._node(inode).pages.length
            opened = super().open(inode, flags, clear_privileges, credentials)
        if flags & os.O_DSYNC:
            self._synchronous.add(opened.handle)
        return opened

    def create(
        self, parent: InodeId, name: str, permissions: int, flags: int, credentials: Credentials
    ) -> tuple[Entry, OpenFile]:
        self._before("name", self._node(parent))
        entry, opened = super().create(parent, name, permissions, flags, credentials)
        if flags & os.O_DSYNC:
            self._synchronous.add(opened.handle)
        return entry, opened

    def release(self, handle: int, flock_owner: int | None) -> None:
        with self._power:
            super().release(handle, flock_owner)
            self._synchronous.discard(handle)
            self._power.notify_all()

    def mkdir(
        self, parent: InodeId, name: str, permissions: int, credentials: Credentials
    ) -> Entry:
        self._before("name", self._node(parent))
        return super().mkdir(parent, name, permissions, credentials)

    def unlink(self, parent: InodeId, name: str, credentials: Credentials) -> None:
        self._before("name", self._node(parent))
        with self._lock:
            node = self._child(self._directory(parent), name)
            super().unlink(parent, name, credentials)
            if not node.links:
                self._used_bytes -= node.pages.length

    def rmdir(self, parent: InodeId, name: str, credentials: Credentials) -> None:
        self._before("name", self._node(parent))
        super().rmdir(parent, name, credentials)

    def rename(
        self,
        parent: InodeId,
        name: str,
        new_parent: InodeId,
        new_name: str,
        flags: RenameFlags,
        credentials: Credentials,
    ) -> None:
        self._before("name", self._node(parent))
        with self._lock:
            self._renaming = next(self._numbers)
            try:
                super().rename(parent, name, new_parent, new_name, flags, credentials)
            finally:
                self._renaming = None


class _Names(VolatileEntries):
    """A directory's names, which the disk finds its paths by."""

    def __init__(self, disk: FaultyDisk, directory: InodeId) -> None:
        super().__init__(disk.change_number)
        self._disk = disk
        self._directory = directory

    def __setitem__(self, name: str, inode: InodeId) -> None:
        super().__setitem__(name, inode)
        self._disk.named(self._directory, name, inode)
