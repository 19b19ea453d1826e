"""Open files: sessions, lengths, appends.

A session says that a client holds a file open. Opening for writing always records one; opening for
reading does when the caller names one, and then the file outlives its last name for that reader as
well. Sessions end with close, or with their client (:func:`prune_sessions`).

The length of a file that is being written lags: writers tell how far they came when they settle or
close. What they say counts only if the file was not cut since they opened it, which the truncate
version tells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import FILE_BYTES_MAX, Credentials, FileKind, Inode

from . import keys, records
from .garbage import Trim, add_trim, collect_if_unused, find_trim, has_sessions
from .inodes import find_record, folded, load_record, store_record
from .kv.interface import Transaction
from .permissions import READ, ROOT_UID, WRITE, check_access, without_set_id

PRUNE_SESSIONS_MAX = 500  # in one transaction


class Handle(NamedTuple):
    """Names one open file of one client; both numbers are chosen by the client, not 0."""

    client: int
    session: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenMode:
    """What a file is opened for. ``handle`` may be None for reading only: no session then."""

    read: bool = False
    write: bool = False
    truncate: bool = False
    handle: Handle | None = None


class Wrote(NamedTuple):
    """What a writer says it did."""

    length_bytes: int  # its furthest byte + 1
    truncate_version: int  # of the file as the writer knows it
    mtime_ns: int = 0  # 0: now


class Opened(NamedTuple):
    """``trim``: to be carried out, and noted with ``trim_done``, before the open is answered."""

    inode: Inode
    trim: Trim | None = None
    created: bool = False


def open_file(
    txn: Transaction, inode: InodeId, who: Credentials, mode: OpenMode, now_ns: int
) -> Opened:
    """Check access, record the session, cut the file if asked to."""
    record = load_record(txn, inode)
    if record.kind is FileKind.DIRECTORY and (mode.write or mode.truncate):
        raise Fs3Error(Code.IS_DIRECTORY, f"inode {inode} is a directory: it opens for reading")
    if record.kind is FileKind.SYMLINK:
        raise Fs3Error(Code.LOOP, f"inode {inode} is a symbolic link")
    want = READ * mode.read | WRITE * (mode.write or mode.truncate)
    check_access(record, who, want)
    if record.kind is not FileKind.FILE:
        return Opened(folded(txn, record))
    if record.links == 0 and not has_sessions(txn, inode):
        raise Fs3Error(Code.NOT_FOUND, f"inode {inode}: it was removed")
    add_session(txn, inode, mode, now_ns)
    trim = None
    if mode.truncate:
        record, trim = cut(txn, record, 0, now_ns)
    if mode.write or mode.truncate:
        trim = trim or find_trim(txn, record)
        record = drop_set_id(txn, record, who)
    return Opened(record, trim)


def add_session(txn: Transaction, inode: InodeId, mode: OpenMode, now_ns: int) -> None:
    """Record that ``mode.handle`` holds the file open."""
    if mode.handle is None:
        if mode.write:
            raise Fs3Error(Code.INVALID, "opening for writing needs a session: client and number")
        return
    if 0 in mode.handle:
        raise Fs3Error(Code.INVALID, f"session {mode.handle}: neither number may be 0")
    session = records.SessionRecord(mode.read, mode.write, now_ns)
    txn.set(_row(inode, mode.handle), records.encode_session(session))
    txn.set(_client_row(inode, mode.handle), records.EMPTY)


def has_write_session(txn: Transaction, inode: InodeId, handle: Handle) -> bool:
    """Whether ``handle`` has the file open for writing."""
    value = txn.get(_row(inode, handle))
    return value is not None and records.decode_session(value).write


def drop_set_id(txn: Transaction, record: Inode, who: Credentials) -> Inode:
    """Take set-user-id and set-group-id from a file that somebody other than root may change now.

    Linux does it at the write itself; data does not pass here, so it is done at the open.
    """
    permissions = without_set_id(record.kind, record.permissions)
    if who.uid == ROOT_UID or permissions == record.permissions:
        return record
    record = replace(record, permissions=permissions)
    store_record(txn, record)
    return record


def cut(
    txn: Transaction, record: Inode, length_bytes: int, now_ns: int
) -> tuple[Inode, Trim | None]:
    """Set a file's length; the trim to be done if it may have had bytes past that.

    Cutting at the length counts as shrinking: a writer may have gone further than it told.
    """
    shrinks = length_bytes <= record.length_bytes
    record = replace(
        record,
        length_bytes=length_bytes,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        version=record.version + 1,
        truncate_version=record.truncate_version + shrinks,
    )
    store_record(txn, record)
    return record, add_trim(txn, record, length_bytes) if shrinks else find_trim(txn, record)


def settle_length(txn: Transaction, inode: InodeId, wrote: Wrote, now_ns: int) -> Inode:
    """Make what a writer wrote visible: the length grows, the version and mtime move."""
    record = _load_file(txn, inode)
    _check_length(wrote.length_bytes)
    length_bytes = record.length_bytes
    if wrote.truncate_version == record.truncate_version:
        length_bytes = max(length_bytes, wrote.length_bytes)
    record = replace(
        record,
        length_bytes=length_bytes,
        mtime_ns=wrote.mtime_ns or now_ns,
        ctime_ns=now_ns,
        version=record.version + 1,
    )
    store_record(txn, record)
    return record


def reserve_append(
    txn: Transaction, inode: InodeId, length_bytes: int, now_ns: int
) -> tuple[int, Inode]:
    """Reserve ``length_bytes`` at the end of a file; the offset where they begin, and the inode.

    No two calls get overlapping ranges. Until they are written the bytes read as zeros.
    """
    record = _load_file(txn, inode)
    if length_bytes <= 0:
        raise Fs3Error(Code.INVALID, f"an append of {length_bytes} bytes: at least 1 is allowed")
    offset_bytes = record.length_bytes
    wrote = Wrote(offset_bytes + length_bytes, record.truncate_version)
    return offset_bytes, settle_length(txn, inode, wrote, now_ns)


def close_file(
    txn: Transaction, inode: InodeId, handle: Handle | None, now_ns: int, wrote: Wrote | None = None
) -> Inode | None:
    """End a session, after settling what it wrote; the inode, or None if it is gone already.

    Closing what is closed is fine: the answer to the first time may have been lost.
    """
    record = find_record(txn, inode)
    if record is None:
        return None
    if wrote is not None:
        record = settle_length(txn, inode, wrote, now_ns)
    if handle is not None and txn.get(_row(inode, handle)) is not None:
        _end_session(txn, record, handle, now_ns)
    return folded(txn, record)


def prune_sessions(
    txn: Transaction, client: int, now_ns: int, limit: int = PRUNE_SESSIONS_MAX
) -> int:
    """End sessions of a client that is gone; how many. Repeat while it is ``limit``."""
    rows = txn.range(*keys.range_of(keys.CLIENT_SESSION, client), limit)
    for key, _ in rows:
        inode, handle = InodeId(keys.number_at(key, 1)), Handle(client, keys.number_at(key, 2))
        record = find_record(txn, inode)
        if record is None:
            txn.clear(_row(inode, handle))
            txn.clear(key)
        else:
            _end_session(txn, record, handle, now_ns)
    return len(rows)


def _end_session(txn: Transaction, record: Inode, handle: Handle, now_ns: int) -> None:
    txn.clear(_row(record.inode, handle))
    txn.clear(_client_row(record.inode, handle))
    if record.links == 0:
        collect_if_unused(txn, record, now_ns)


def _load_file(txn: Transaction, inode: InodeId) -> Inode:
    record = load_record(txn, inode)
    if record.kind is not FileKind.FILE:
        raise Fs3Error(
            Code.INVALID, f"inode {inode} is a {record.kind.name.lower()}: only files have a length"
        )
    return record


def _check_length(length_bytes: int) -> None:
    if length_bytes > FILE_BYTES_MAX:
        raise Fs3Error(
            Code.TOO_LARGE, f"a length of {length_bytes} bytes: at most {FILE_BYTES_MAX} is allowed"
        )


def _row(inode: InodeId, handle: Handle) -> bytes:
    return keys.of(keys.SESSION, inode, handle.client, handle.session)


def _client_row(inode: InodeId, handle: Handle) -> bytes:
    return keys.of(keys.CLIENT_SESSION, handle.client, inode, handle.session)
