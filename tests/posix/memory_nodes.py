"""What the memory file system stores: inodes, and sparse file contents in fixed pages."""

from __future__ import annotations

import stat
import time
from dataclasses import dataclass, field

from lock_table import LockTable

from fs3.client.filesystem_interface import Buffer
from fs3.core.layout import Layout
from fs3.core.types import InodeId
from fs3.types import MODE_TO_KIND, ROOT_INODE, FileKind, Inode

PAGE_BYTES = 64 << 10
ZEROS = memoryview(bytes(PAGE_BYTES))
LAYOUT = Layout(1 << 20, 1)


class Pages:
    """Sparse bytes. Pages never change size, so views of them can leave without a copy."""

    def __init__(self) -> None:
        self.pages: dict[int, memoryview] = {}
        self.length = 0

    def read(self, offset: int, length: int) -> list[Buffer]:
        """Views of the bytes up to the end; a hole reads as zeros."""
        end, views = min(offset + length, self.length), []
        while offset < end:
            index, within = divmod(offset, PAGE_BYTES)
            take = min(PAGE_BYTES - within, end - offset)
            views.append(self.pages.get(index, ZEROS)[within : within + take])
            offset += take
        return views

    def write(self, offset: int, data: memoryview) -> None:
        """Copy ``data`` in, growing the file if needed."""
        at = 0
        while at < len(data):
            index, within = divmod(offset + at, PAGE_BYTES)
            take = min(PAGE_BYTES - within, len(data) - at)
            page = self.pages.get(index)
            if page is None:
                page = self.pages[index] = memoryview(bytearray(PAGE_BYTES))
            page[within : within + take] = data[at : at + take]
            at += take
        self.length = max(self.length, offset + len(data))

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros; whole pages become holes."""
        end = offset + length
        while offset < end:
            index, within = divmod(offset, PAGE_BYTES)
            take = min(PAGE_BYTES - within, end - offset)
            if take == PAGE_BYTES:
                self.pages.pop(index, None)
            elif index in self.pages:
                self.pages[index][within : within + take] = bytes(take)
            offset += take

    def truncate(self, length: int) -> None:
        """Cut or extend; what lies behind the end is zero, so that growing shows zeros."""
        if length < self.length:
            last = (length + PAGE_BYTES - 1) // PAGE_BYTES
            for index in [index for index in self.pages if index >= last]:
                del self.pages[index]
            self.zero(length, last * PAGE_BYTES - length)
        self.length = length

    def seek(self, offset: int, data: bool) -> int | None:
        """The next data or hole from ``offset`` on; the end counts as a hole."""
        if offset >= self.length:
            return None
        while offset < self.length and (offset // PAGE_BYTES in self.pages) is not data:
            offset = (offset // PAGE_BYTES + 1) * PAGE_BYTES
        if offset < self.length:
            return offset
        return None if data else self.length


@dataclass
class Node:
    """An inode. ``lookups`` and ``opened`` keep it alive after its last name is gone."""

    inode: InodeId
    mode: int
    uid: int
    gid: int
    device: int = 0
    parent: InodeId = ROOT_INODE
    symlink: str = ""
    links: int = 1
    version: int = 0
    lookups: int = 0
    opened: int = 0
    opened_version: int | None = None  # data version at the last open, for keep_cache
    entries: dict[str, InodeId] = field(default_factory=dict)
    pages: Pages = field(default_factory=Pages)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    posix_locks: LockTable = field(default_factory=LockTable)
    flocks: LockTable = field(default_factory=LockTable)
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0

    def __post_init__(self) -> None:
        self.atime_ns = self.mtime_ns = self.ctime_ns = time.time_ns()

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def kind(self) -> FileKind:
        return MODE_TO_KIND[stat.S_IFMT(self.mode)]

    def changed(self, data: bool) -> None:
        """Attributes changed just now; with ``data`` contents too."""
        self.ctime_ns = time.time_ns()
        if data:
            self.mtime_ns = self.ctime_ns
            self.version += 1

    def attributes(self) -> Inode:
        """The node as the front sees it."""
        length = len(self.symlink.encode("utf-8", "surrogateescape")) or self.pages.length
        return Inode(
            inode=self.inode,
            kind=self.kind,
            permissions=self.mode & 0o7777,
            uid=self.uid,
            gid=self.gid,
            links=self.links,
            length_bytes=length,
            atime_ns=self.atime_ns,
            mtime_ns=self.mtime_ns,
            ctime_ns=self.ctime_ns,
            layout=LAYOUT,
            version=self.version,
            symlink=self.symlink,
            device=self.device,
            parent=self.parent,
        )
