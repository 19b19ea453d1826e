"""What metaservers and clients say about files. Times are nanoseconds since 1970, sizes bytes."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from enum import IntEnum

from fs3.core.layout import Layout
from fs3.core.types import InodeId

ROOT_INODE = InodeId(1)
NAME_BYTES_MAX = 255
INODES_FREE = 1 << 32  # what programs that ask are told: only space limits them
PATH_BYTES_MAX = 4096
LINKS_MAX = 65_000
FILE_BYTES_MAX = 1 << 50


class FileKind(IntEnum):
    """What an inode is. The numbers are stored and sent."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5
    CHARACTER_DEVICE = 6
    BLOCK_DEVICE = 7


KIND_TO_MODE = {
    FileKind.FILE: stat.S_IFREG,
    FileKind.DIRECTORY: stat.S_IFDIR,
    FileKind.SYMLINK: stat.S_IFLNK,
    FileKind.FIFO: stat.S_IFIFO,
    FileKind.SOCKET: stat.S_IFSOCK,
    FileKind.CHARACTER_DEVICE: stat.S_IFCHR,
    FileKind.BLOCK_DEVICE: stat.S_IFBLK,
}
MODE_TO_KIND = {mode: kind for kind, mode in KIND_TO_MODE.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """On whose behalf. ``gids`` are the supplementary groups."""

    uid: int
    gid: int
    gids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inode:
    """An inode as the metaserver knows it, and as every client sees it."""

    inode: InodeId
    kind: FileKind
    permissions: int  # the low 12 bits of st_mode
    uid: int
    gid: int
    links: int
    length_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    layout: Layout
    version: int = 0  # grows when data or length change; a cache that stands on it is good
    truncate_version: int = 0  # grows at every shrink; a length hint of an older one is ignored
    symlink: str = ""
    device: int = 0
    parent: InodeId = InodeId(0)  # noqa: RUF009 - an int; of a directory

    @property
    def mode(self) -> int:
        """``st_mode``: kind and permissions."""
        return KIND_TO_MODE[self.kind] | self.permissions


@dataclass(frozen=True, slots=True, kw_only=True)
class Dentry:
    """One name in a directory; ``inode`` comes along in listings that ask for it."""

    name: str
    inode: InodeId
    kind: FileKind
    attributes: Inode | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAttributes:
    """What setattr changes; None leaves a field alone. ``*_NOW`` are said with ``times_now``."""

    permissions: int | None = None
    uid: int | None = None
    gid: int | None = None
    length_bytes: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    atime_now: bool = False
    mtime_now: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StatFs:
    """Space as a user sees it: divided by the number of replicas."""

    capacity_bytes: int
    free_bytes: int
    inodes: int
