"""Inodes, names and directories in a transaction: the words in which the namespace is written.

A directory's own row is not touched when an entry comes or goes; if it were, all creations in one
directory would conflict. What they change is kept beside it and folded in by :func:`load_inode`:

    mtime    the row DIRECTORY_TIME if there is one, else the record's; setting mtime clears the row
    ctime    the later of DIRECTORY_TIME and the record's
    links    the record's 2 and the counter DIRECTORY_LINKS (subdirectories)
    version  the record's and the counter DIRECTORY_CHANGES

All three rows are written without being read. Whoever changes an entry does *read* the directory's
record, so removing the directory or changing its permissions conflicts with it, as it must. See
docs/decisions/0002-directory-times.md.
"""

from __future__ import annotations

import os
from dataclasses import replace
from threading import Lock

from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import NAME_BYTES_MAX, Credentials, FileKind, Inode

from . import keys, records
from .kv.interface import Engine, Transaction, counter_value
from .permissions import SEARCH, WRITE, check_access

INODE_BLOCK = (
    4096  # ids taken from the store at a time; what is left of one is lost with the process
)


def name_bytes(name: str) -> bytes:
    """A name as it is stored; refuses what cannot be the name of an entry."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise Fs3Error(
            Code.INVALID, f"name {name[:64]!r}: not empty, not '.' or '..', without '/' and NUL"
        )
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError as error:
        raise Fs3Error(Code.INVALID, f"name {name[:64]!r} is not the name of a file") from error
    if len(encoded) > NAME_BYTES_MAX:
        raise Fs3Error(
            Code.NAME_TOO_LONG,
            f"a name of {len(encoded)} bytes: at most {NAME_BYTES_MAX} are allowed",
        )
    return encoded


def find_record(txn: Transaction, inode: InodeId) -> Inode | None:
    """An inode's own row, or None; a directory's lacks what is folded in."""
    value = txn.get(keys.INODE + keys.number(inode))
    return None if value is None else records.decode_inode(inode, value)


def load_record(txn: Transaction, inode: InodeId) -> Inode:
    """An inode's own row; NOT_FOUND if it was removed."""
    record = find_record(txn, inode)
    if record is None:
        raise Fs3Error(Code.NOT_FOUND, f"inode {inode}: it was removed")
    return record


def load_inode(txn: Transaction, inode: InodeId) -> Inode:
    """An inode as callers see it."""
    return folded(txn, load_record(txn, inode))


def folded(txn: Transaction, record: Inode) -> Inode:
    """``record`` with, if it is a directory, what is kept beside it."""
    if record.kind is not FileKind.DIRECTORY:
        return record
    # Not counted as read: a caller's decisions never rest on a directory's times and counters.
    number = keys.number(record.inode)
    time_row = txn.get(keys.DIRECTORY_TIME + number, snapshot=True)
    links = counter_value(txn.get(keys.DIRECTORY_LINKS + number, snapshot=True))
    changes = counter_value(txn.get(keys.DIRECTORY_CHANGES + number, snapshot=True))
    changed_ns = None if time_row is None else records.decode_time(time_row)
    return replace(
        record,
        mtime_ns=record.mtime_ns if changed_ns is None else changed_ns,
        ctime_ns=max(record.ctime_ns, changed_ns or 0),
        links=record.links + links,
        version=record.version + changes,
    )


def store_record(txn: Transaction, record: Inode) -> None:
    """Write an inode's own row. Never give it a folded directory."""
    txn.set(keys.INODE + keys.number(record.inode), records.encode_inode(record))


def check_directory(record: Inode) -> None:
    """Raise NOT_DIRECTORY unless it is one."""
    if record.kind is not FileKind.DIRECTORY:
        raise Fs3Error(Code.NOT_DIRECTORY, f"inode {record.inode} is a {record.kind.name.lower()}")


def load_directory(txn: Transaction, inode: InodeId, who: Credentials, want: int) -> Inode:
    """A directory's own row, after checking that ``who`` may ``want`` there."""
    record = load_record(txn, inode)
    check_directory(record)
    check_access(record, who, want)
    return record


def load_parent(txn: Transaction, parent: InodeId, who: Credentials) -> Inode:
    """The own row of a directory whose entries ``who`` is about to change."""
    return load_directory(txn, parent, who, WRITE | SEARCH)


def find_entry(txn: Transaction, parent: InodeId, name: bytes) -> tuple[InodeId, FileKind] | None:
    """What ``name`` stands for in ``parent``, or None."""
    value = txn.get(keys.dentry(parent, name))
    return None if value is None else records.decode_dentry(value)


def load_entry(txn: Transaction, parent: InodeId, name: bytes) -> tuple[InodeId, FileKind]:
    """What ``name`` stands for in ``parent``; NOT_FOUND if nothing."""
    entry = find_entry(txn, parent, name)
    if entry is None:
        raise Fs3Error(
            Code.NOT_FOUND, f"{os.fsdecode(name)!r} in directory {parent}: no such entry"
        )
    return entry


def set_entry(txn: Transaction, parent: InodeId, name: bytes, record: Inode) -> None:
    """Let ``name`` stand for ``record``."""
    txn.set(keys.dentry(parent, name), records.encode_dentry(record.inode, record.kind))


def touch_directory(
    txn: Transaction, directory: InodeId, now_ns: int, subdirectories: int = 0
) -> None:
    """Note that an entry came or went, and how the number of subdirectories changed."""
    number = keys.number(directory)
    txn.set(keys.DIRECTORY_TIME + number, records.encode_time(now_ns))
    txn.add(keys.DIRECTORY_CHANGES + number, 1)
    if subdirectories:
        txn.add(keys.DIRECTORY_LINKS + number, subdirectories)


def erase_inode(txn: Transaction, record: Inode) -> None:
    """Remove an inode's rows. Its names, sessions and chunks are gone already."""
    number = keys.number(record.inode)
    txn.clear(keys.INODE + number)
    if record.kind is FileKind.DIRECTORY:
        for prefix in (keys.DIRECTORY_TIME, keys.DIRECTORY_CHANGES, keys.DIRECTORY_LINKS):
            txn.clear(prefix + number)
    if txn.range(*keys.range_of(keys.XATTR, record.inode), limit=1):
        txn.clear_range(*keys.range_of(keys.XATTR, record.inode))
    txn.add(keys.INODE_COUNT, -1)


class InodeAllocator:
    """Gives out inode ids, each once in the life of a cluster. For any number of threads.

    Ids are taken from the store in blocks, each committed before its first id is used: a process
    that dies loses the rest of its block and nobody ever gets those.
    """

    def __init__(self, engine: Engine, block: int = INODE_BLOCK) -> None:
        self._engine = engine
        self._block = block
        self._lock = Lock()
        self._next = 0
        self._end = 0

    def take(self) -> InodeId:
        """An id that nothing ever had."""
        with self._lock:
            if self._next == self._end:
                self._next = self._engine.run(self._reserve)
                self._end = self._next + self._block
            self._next += 1
            return InodeId(self._next - 1)

    def _reserve(self, txn: Transaction) -> int:
        value = txn.get(keys.NEXT_INODE)
        if value is None:
            raise Fs3Error(Code.NOT_READY, "the file system has no root yet: make_root() makes it")
        first = records.decode_number(value)
        txn.set(keys.NEXT_INODE, records.encode_number(first + self._block))
        return first
