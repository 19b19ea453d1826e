"""What the rows of the namespace hold, as bytes. The layouts are in docs/formats.md.

Every value begins with its format's number. A newer release may append fields to a value without
a new number: what stands behind the known fields is ignored. A new number means that an older
release would misread it, so that release refuses; the code of an old number is kept for ever.
Numbers are little-endian, without padding.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from fs3.core.layout import Layout
from fs3.core.types import ChainId, InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import FileKind, Inode

FORMAT = 1
_FORMAT_BYTE = b"\x01"

# format, kind, permissions, uid, gid, links, length, atime, mtime, ctime, version,
# truncate version, parent, device, chunk bytes, stripe, chain table, chains, symlink bytes
_INODE = struct.Struct("<BBHIIIQqqqQQQIIIIIH")
_DENTRY = struct.Struct("<BBQ")  # format, kind, inode
_TIME = struct.Struct("<Bq")  # format, nanoseconds
_SESSION = struct.Struct("<BBq")  # format, 1 read + 2 write, opened at
_TRIM = struct.Struct("<BQQ")  # format, truncate version, bytes kept
_NUMBER = struct.Struct("<BQ")  # format, number

EMPTY = _FORMAT_BYTE  # of a row whose key says it all


class SessionRecord(NamedTuple):
    """How a file is open."""

    read: bool
    write: bool
    opened_at_ns: int


class TrimRecord(NamedTuple):
    """A shrink: chunks past ``keep_bytes`` are to be cut."""

    truncate_version: int
    keep_bytes: int


def encode_inode(inode: Inode) -> bytes:
    """An inode's row."""
    layout = inode.layout
    symlink = os.fsencode(inode.symlink)
    fixed = _INODE.pack(
        FORMAT,
        inode.kind,
        inode.permissions,
        inode.uid,
        inode.gid,
        inode.links,
        inode.length_bytes,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        inode.version,
        inode.truncate_version,
        inode.parent,
        inode.device,
        layout.chunk_bytes,
        layout.stripe,
        layout.chain_table,
        len(layout.chains),
        len(symlink),
    )
    return fixed + struct.pack(f"<{len(layout.chains)}I", *layout.chains) + symlink


def decode_inode(inode: InodeId, value: bytes) -> Inode:
    """The inode in a row; ``inode`` is from its key."""
    (
        _,
        kind,
        permissions,
        uid,
        gid,
        links,
        length_bytes,
        atime_ns,
        mtime_ns,
        ctime_ns,
        version,
        truncate_version,
        parent,
        device,
        chunk_bytes,
        stripe,
        chain_table,
        chain_count,
        symlink_bytes,
    ) = _unpack(_INODE, value, "inode")
    chains_end = _INODE.size + 4 * chain_count
    if len(value) < chains_end + symlink_bytes:
        raise Fs3Error(Code.CORRUPT, f"inode {inode}: its row has only {len(value)} bytes")
    chains = struct.unpack_from(f"<{chain_count}I", value, _INODE.size)
    return Inode(
        inode=inode,
        kind=_kind(kind),
        permissions=permissions,
        uid=uid,
        gid=gid,
        links=links,
        length_bytes=length_bytes,
        atime_ns=atime_ns,
        mtime_ns=mtime_ns,
        ctime_ns=ctime_ns,
        layout=Layout(chunk_bytes, stripe, chain_table, tuple(map(ChainId, chains))),
        version=version,
        truncate_version=truncate_version,
        symlink=os.fsdecode(value[chains_end : chains_end + symlink_bytes]),
        device=device,
        parent=InodeId(parent),
    )


def encode_dentry(inode: InodeId, kind: FileKind) -> bytes:
    """A name's row."""
    return _DENTRY.pack(FORMAT, kind, inode)


def decode_dentry(value: bytes) -> tuple[InodeId, FileKind]:
    """What a name stands for."""
    _, kind, inode = _unpack(_DENTRY, value, "dentry")
    return InodeId(inode), _kind(kind)


def encode_time(time_ns: int) -> bytes:
    """A row that holds a moment."""
    return _TIME.pack(FORMAT, time_ns)


def decode_time(value: bytes) -> int:
    """The moment in a row, ns."""
    time_ns: int = _unpack(_TIME, value, "time")[1]
    return time_ns


def encode_session(record: SessionRecord) -> bytes:
    """A session's row."""
    return _SESSION.pack(FORMAT, record.read + 2 * record.write, record.opened_at_ns)


def decode_session(value: bytes) -> SessionRecord:
    """How a session holds its file open."""
    _, mode, opened_at_ns = _unpack(_SESSION, value, "session")
    return SessionRecord(bool(mode & 1), bool(mode & 2), opened_at_ns)


def encode_trim(record: TrimRecord) -> bytes:
    """The row of a shrink that is under way."""
    return _TRIM.pack(FORMAT, *record)


def decode_trim(value: bytes) -> TrimRecord:
    """A shrink that is under way."""
    return TrimRecord(*_unpack(_TRIM, value, "trim")[1:])


def encode_number(number: int) -> bytes:
    """A row that holds one number (not a counter: those have no format byte)."""
    return _NUMBER.pack(FORMAT, number)


def decode_number(value: bytes) -> int:
    """The number in a row."""
    number: int = _unpack(_NUMBER, value, "number")[1]
    return number


def encode_answer(time_ns: int, answer: bytes) -> bytes:
    """The row of a request: when it was answered, and what."""
    return _TIME.pack(FORMAT, time_ns) + answer


def decode_answer(value: bytes) -> tuple[int, bytes]:
    """When a request was answered (ns), and what."""
    return decode_time(value), value[_TIME.size :]


def encode_xattr(value: bytes) -> bytes:
    """An extended attribute's row."""
    return _FORMAT_BYTE + value


def decode_xattr(value: bytes) -> bytes:
    """An extended attribute's value."""
    _check_format(value, "extended attribute")
    return value[1:]


def _kind(number: int) -> FileKind:
    try:
        return FileKind(number)
    except ValueError:
        raise Fs3Error(Code.CORRUPT, f"a row says that something is of kind {number}") from None


def _unpack(layout: struct.Struct, value: bytes, what: str) -> tuple[int, ...]:
    _check_format(value, what)
    if len(value) < layout.size:
        raise Fs3Error(
            Code.CORRUPT, f"{what} row of {len(value)} bytes: it should have {layout.size} or more"
        )
    return layout.unpack_from(value)


def _check_format(value: bytes, what: str) -> None:
    if not value or value[0] == 0:
        raise Fs3Error(Code.CORRUPT, f"{what} row {value[:8]!r} has no format number")
    if value[0] > FORMAT:
        raise Fs3Error(
            Code.UNSUPPORTED,
            f"{what} row of format {value[0]}, written by a newer release:"
            f" this one reads formats up to {FORMAT}",
        )
