"""Codec of the kernel's FUSE protocol: bytes in, tuples out; values in, buffers out. No I/O.

A request is decoded in two steps, both by tables indexed by opcode, because this is the hot path:
:func:`decode_header` gives the header's tuple, and ``DECODERS[opcode](view)`` the arguments': the
fields of the struct in their order, then names as ``str``, then data as a slice of ``view``. An
opcode without an entry has no arguments that we understand.

Replies are ``bytes``, or lists of buffers where data goes out without a copy. The caller puts
``OUT_HEADER`` in front.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import lru_cache
from struct import Struct, error
from typing import Any

from fs3.client.filesystem_interface import Attributes, Entry, FileLock, OpenFile
from fs3.errors import Code, Fs3Error
from fs3.types import INODES_FREE, KIND_TO_MODE, NAME_BYTES_MAX, FileKind, Inode, StatFs

from . import kernel_structs as k

Header = tuple[int, int, int, int, int, int, int, int, int]
"""len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
Arguments = tuple[Any, ...]
Decoder = Callable[[memoryview], Arguments]

HEADER_BYTES = k.IN_HEADER.size
BLOCK_BYTES_MAX = 1 << 20  # st_blksize: what one request carries
_SECOND_NS = 1_000_000_000
_KIND_TO_DT = {kind: stat.S_IFMT(mode) >> 12 for kind, mode in KIND_TO_MODE.items()}


def decode_header(view: memoryview) -> Header:
    """The header of the request that fills ``view``."""
    if len(view) < HEADER_BYTES:
        raise Fs3Error(
            Code.PROTOCOL, f"FUSE request of {len(view)} bytes: the header alone has {HEADER_BYTES}"
        )
    header: Header = k.IN_HEADER.unpack_from(view)
    if header[0] != len(view):
        raise Fs3Error(
            Code.PROTOCOL, f"FUSE request of {len(view)} bytes says that it has {header[0]}"
        )
    return header


def decode_arguments(opcode: int, view: memoryview) -> Arguments:
    """What follows the header; () for an opcode that we do not know."""
    decoder = DECODERS[opcode] if opcode < len(DECODERS) else None
    if decoder is None:
        return ()
    try:
        return decoder(view)
    except (error, ValueError) as reason:
        raise Fs3Error(
            Code.PROTOCOL, f"FUSE request {opcode} of {len(view)} bytes is cut short: {reason}"
        ) from reason


def _names(view: memoryview, at: int, count: int) -> list[str]:
    """``count`` NUL-terminated names from ``at`` on."""
    *names, _ = bytes(view[at:]).split(b"\0", count)
    if len(names) != count:
        raise ValueError(f"{count} names expected, {len(names)} found")
    return [str(name, "utf-8", "surrogateescape") for name in names]


def _one_name(view: memoryview) -> Arguments:
    """The hot path's own: a name that fills the rest of the request."""
    if view[-1] != 0 or len(view) <= HEADER_BYTES:
        raise ValueError("no NUL at the end of the name")
    return (str(view[HEADER_BYTES:-1], "utf-8", "surrogateescape"),)


def _two_names(view: memoryview) -> Arguments:
    return tuple(_names(view, HEADER_BYTES, 2))


def _fields(struct: Struct) -> Decoder:
    def decode(view: memoryview) -> Arguments:
        return struct.unpack_from(view, HEADER_BYTES)

    return decode


def _fields_and_names(struct: Struct, count: int) -> Decoder:
    def decode(view: memoryview) -> Arguments:
        names = _names(view, HEADER_BYTES + struct.size, count)
        return (*struct.unpack_from(view, HEADER_BYTES), *names)

    return decode


_WRITE_DATA_AT = HEADER_BYTES + k.WRITE_IN.size


def _write(view: memoryview) -> Arguments:
    """WRITE_IN's fields, then the data."""
    arguments = k.WRITE_IN.unpack_from(view, HEADER_BYTES)
    data = view[_WRITE_DATA_AT : _WRITE_DATA_AT + arguments[2]]
    if len(data) != arguments[2]:
        raise ValueError(f"{arguments[2]} bytes of data expected, {len(data)} found")
    return (*arguments, data)


def _ioctl(view: memoryview) -> Arguments:
    """IOCTL_IN's fields, then the data."""
    arguments = k.IOCTL_IN.unpack_from(view, HEADER_BYTES)
    data = bytes(view[HEADER_BYTES + k.IOCTL_IN.size :])
    if len(data) < arguments[4]:
        raise ValueError(f"{arguments[4]} bytes of data expected, {len(data)} found")
    return (*arguments, data[: arguments[4]])


def _setxattr(view: memoryview) -> Arguments:
    """SETXATTR_IN's fields, the name, the value as bytes."""
    size, flags = k.SETXATTR_IN.unpack_from(view, HEADER_BYTES)
    name, nul, rest = bytes(view[HEADER_BYTES + k.SETXATTR_IN.size :]).partition(b"\0")
    if not nul or len(rest) < size:
        raise ValueError(f"a name and {size} bytes of value expected")
    return size, flags, str(name, "utf-8", "surrogateescape"), rest[:size]


def _batch_forget(view: memoryview) -> Arguments:
    """Pairs of node id and count."""
    (count,) = k.BATCH_FORGET_IN.unpack_from(view, HEADER_BYTES)
    at = HEADER_BYTES + k.BATCH_FORGET_IN.size
    pairs = view[at : at + count * k.FORGET_ONE.size]
    if len(pairs) != count * k.FORGET_ONE.size:
        raise ValueError(f"{count} pairs expected")
    return tuple(k.FORGET_ONE.iter_unpack(pairs))


def _init(view: memoryview) -> Arguments:
    """major, minor, max_readahead, and all 64 flags in one number."""
    major, minor, max_readahead, flags = k.INIT_IN.unpack_from(view, HEADER_BYTES)
    if flags & k.Init.INIT_EXT:
        (flags2,) = k.INIT_IN_FLAGS2.unpack_from(view, HEADER_BYTES + k.INIT_IN.size)
        flags |= flags2 << 32
    return major, minor, max_readahead, flags


_DECODERS: dict[k.Opcode, Decoder] = {
    k.Opcode.LOOKUP: _one_name,
    k.Opcode.FORGET: _fields(k.FORGET_IN),
    k.Opcode.GETATTR: _fields(k.GETATTR_IN),
    k.Opcode.SETATTR: _fields(k.SETATTR_IN),
    k.Opcode.SYMLINK: _two_names,
    k.Opcode.MKNOD: _fields_and_names(k.MKNOD_IN, 1),
    k.Opcode.MKDIR: _fields_and_names(k.MKDIR_IN, 1),
    k.Opcode.UNLINK: _one_name,
    k.Opcode.RMDIR: _one_name,
    k.Opcode.RENAME: _fields_and_names(k.RENAME_IN, 2),
    k.Opcode.LINK: _fields_and_names(k.LINK_IN, 1),
    k.Opcode.OPEN: _fields(k.OPEN_IN),
    k.Opcode.READ: _fields(k.READ_IN),
    k.Opcode.WRITE: _write,
    k.Opcode.RELEASE: _fields(k.RELEASE_IN),
    k.Opcode.FSYNC: _fields(k.FSYNC_IN),
    k.Opcode.SETXATTR: _setxattr,
    k.Opcode.GETXATTR: _fields_and_names(k.GETXATTR_IN, 1),
    k.Opcode.LISTXATTR: _fields(k.GETXATTR_IN),
    k.Opcode.REMOVEXATTR: _one_name,
    k.Opcode.FLUSH: _fields(k.FLUSH_IN),
    k.Opcode.INIT: _init,
    k.Opcode.OPENDIR: _fields(k.OPEN_IN),
    k.Opcode.READDIR: _fields(k.READ_IN),
    k.Opcode.RELEASEDIR: _fields(k.RELEASE_IN),
    k.Opcode.FSYNCDIR: _fields(k.FSYNC_IN),
    k.Opcode.GETLK: _fields(k.LK_IN),
    k.Opcode.SETLK: _fields(k.LK_IN),
    k.Opcode.SETLKW: _fields(k.LK_IN),
    k.Opcode.CREATE: _fields_and_names(k.CREATE_IN, 1),
    k.Opcode.INTERRUPT: _fields(k.INTERRUPT_IN),
    k.Opcode.IOCTL: _ioctl,
    k.Opcode.BATCH_FORGET: _batch_forget,
    k.Opcode.FALLOCATE: _fields(k.FALLOCATE_IN),
    k.Opcode.READDIRPLUS: _fields(k.READ_IN),
    k.Opcode.RENAME2: _fields_and_names(k.RENAME2_IN, 2),
    k.Opcode.LSEEK: _fields(k.LSEEK_IN),
    k.Opcode.COPY_FILE_RANGE: _fields(k.COPY_FILE_RANGE_IN),
}
DECODERS: list[Decoder | None] = [
    _DECODERS.get(k.Opcode(number)) if number in set(k.Opcode) else None
    for number in range(max(k.Opcode) + 1)
]


# -- replies -------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _timeout(timeout_s: float) -> tuple[int, int]:
    """Seconds and nanoseconds."""
    whole = int(timeout_s)
    return whole, int((timeout_s - whole) * _SECOND_NS)


def _attr(inode: Inode) -> tuple[int, ...]:
    """The fields of struct fuse_attr."""
    length, kind = inode.length_bytes, inode.kind
    atime_s, atime_ns = divmod(inode.atime_ns, _SECOND_NS)
    mtime_s, mtime_ns = divmod(inode.mtime_ns, _SECOND_NS)
    ctime_s, ctime_ns = divmod(inode.ctime_ns, _SECOND_NS)
    block = 4096
    if kind is FileKind.FILE:
        block = min(inode.layout.chunk_bytes, BLOCK_BYTES_MAX)
    # fmt: off
    return (
        inode.inode, length, (length + 511) >> 9, atime_s, mtime_s, ctime_s,
        atime_ns, mtime_ns, ctime_ns, KIND_TO_MODE[kind] | inode.permissions,
        inode.links, inode.uid, inode.gid, inode.device, block, 0,
    )
    # fmt: on


def _entry(entry: Entry) -> tuple[int, ...]:
    """The fields of struct fuse_entry_out; node id 0 says that the name is missing."""
    inode, entry_timeout_s, attr_timeout_s = entry
    entry_s, entry_ns = _timeout(entry_timeout_s)
    if inode is None:
        return (0, 0, entry_s, 0, entry_ns, 0, *_NO_ATTR)
    attr_s, attr_ns = _timeout(attr_timeout_s)
    return (inode.inode, 0, entry_s, attr_s, entry_ns, attr_ns, *_attr(inode))


_NO_ATTR = (0,) * len(k.ATTR_FORMAT)
_NO_ENTRY = (0, 0, 0, 0, 0, 0, *_NO_ATTR)


def encode_entry(entry: Entry) -> bytes:
    """The reply to LOOKUP, MKDIR, MKNOD, SYMLINK and LINK."""
    return k.ENTRY_OUT.pack(*_entry(entry))


def encode_attributes(attributes: Attributes) -> bytes:
    """The reply to GETATTR and SETATTR."""
    inode, timeout_s = attributes
    return k.ATTR_OUT.pack(*_timeout(timeout_s), *_attr(inode))


def encode_open(opened: OpenFile, directory: bool = False) -> bytes:
    """The reply to OPEN and OPENDIR."""
    return k.OPEN_OUT.pack(opened.handle, _open_flags(opened, directory))


def encode_create(entry: Entry, opened: OpenFile) -> bytes:
    """The reply to CREATE."""
    return k.CREATE_OUT.pack(*_entry(entry), opened.handle, _open_flags(opened, False))


def _open_flags(opened: OpenFile, directory: bool) -> int:
    flags = 0
    if opened.keep_cache:
        flags |= k.FOPEN_KEEP_CACHE
    if directory:
        return flags | k.FOPEN_CACHE_DIR if opened.keep_cache else flags
    if opened.direct_io:
        # Several writers at once: the file system orders them, as it must between mounts anyway.
        flags |= k.FOPEN_DIRECT_IO | k.FOPEN_PARALLEL_DIRECT_WRITES
    return flags


def encode_dirent(name: str, inode: int, kind: FileKind, cookie: int) -> bytes:
    """One line of the reply to READDIR."""
    raw = os.fsencode(name)
    line = k.DIRENT.pack(inode, cookie, len(raw), _KIND_TO_DT[kind]) + raw
    return line + bytes(-len(line) % 8)


def encode_direntplus(
    name: str, inode: int, kind: FileKind, cookie: int, entry: Entry | None
) -> bytes:
    """One line of the reply to READDIRPLUS; without entry the kernel looks the name up itself."""
    raw = os.fsencode(name)
    fields = _NO_ENTRY if entry is None else _entry(entry)
    line = k.DIRENTPLUS.pack(*fields, inode, cookie, len(raw), _KIND_TO_DT[kind]) + raw
    return line + bytes(-len(line) % 8)


def encode_statfs(statfs: StatFs, block_bytes: int = 4096) -> bytes:
    """The reply to STATFS. Nothing but space limits the inodes; programs ask for enough of them."""
    blocks, free = statfs.capacity_bytes // block_bytes, statfs.free_bytes // block_bytes
    return k.STATFS_OUT.pack(
        *(blocks, free, free, statfs.inodes + INODES_FREE, INODES_FREE),
        *(block_bytes, NAME_BYTES_MAX, block_bytes),
    )


def encode_lock(lock: FileLock) -> bytes:
    """The reply to GETLK."""
    return k.LK_OUT.pack(lock.start, lock.end, lock.kind, lock.pid)


def encode_invalidate_inode(inode: int, offset: int, length: int) -> list[bytes]:
    """A notification, header included."""
    body = k.NOTIFY_INVAL_INODE_OUT.pack(inode, offset, length)
    return [k.OUT_HEADER.pack(16 + len(body), k.NOTIFY_INVAL_INODE, 0), body]


def encode_invalidate_entry(parent: int, name: str) -> list[bytes]:
    """A notification, header included."""
    raw = os.fsencode(name)
    body = k.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(raw), 0) + raw + b"\0"
    return [k.OUT_HEADER.pack(16 + len(body), k.NOTIFY_INVAL_ENTRY, 0), body]
