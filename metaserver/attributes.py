"""Attributes: reading them, chmod, chown, utimens, truncate, a directory's layout, statfs."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from fs3.core.layout import Layout
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import FILE_BYTES_MAX, Credentials, FileKind, Inode, SetAttributes, StatFs

from . import keys
from .garbage import Trim
from .inodes import (
    check_directory,
    find_record,
    folded,
    load_inode,
    load_record,
    store_record,
)
from .kv.interface import Transaction, counter_value
from .namespace_entries import check_layout
from .permissions import ROOT_UID, WRITE, check_access, check_owner, in_group, without_set_id
from .sessions import Handle, cut, drop_set_id, has_write_session


class Changed(NamedTuple):
    """``trim``: to be carried out, and noted with ``trim_done``, before the change is answered."""

    inode: Inode
    trim: Trim | None = None


def get_attributes(txn: Transaction, inode: InodeId) -> Inode:
    """An inode, also one that has no name any more but is still held open."""
    return load_inode(txn, inode)


def get_attributes_of(txn: Transaction, inodes: Iterable[InodeId]) -> list[Inode | None]:
    """Many inodes, in the order asked; None for those that are gone."""
    found = [find_record(txn, inode) for inode in inodes]
    return [None if record is None else folded(txn, record) for record in found]


def set_attributes(
    txn: Transaction,
    inode: InodeId,
    change: SetAttributes,
    who: Credentials,
    now_ns: int,
    handle: Handle | None = None,
) -> Changed:
    """chmod, chown, truncate and utimens, all of it or nothing.

    ``handle``: an open session for writing, through which the length and "now" times may be set
    whatever the permissions say today.
    """
    record = load_record(txn, inode)
    trim = None
    if change.length_bytes is not None or change.atime_now or change.mtime_now:
        through_session = handle is not None and has_write_session(txn, inode, handle)
        by_owner = change.length_bytes is None and who.uid in (ROOT_UID, record.uid)
        if not through_session and not by_owner:
            check_access(record, who, WRITE)
    if change.length_bytes is not None:
        _check_length(record, change.length_bytes)
        record, trim = cut(txn, record, change.length_bytes, now_ns)
        record = drop_set_id(txn, record, who)
    changed = _with_times(txn, record, change, who, now_ns)
    changed = _with_permissions(_with_owner(changed, change, who), change, who)
    if changed != record or _changes_record(change):
        record = replace(changed, ctime_ns=now_ns)
        store_record(txn, record)
    return Changed(folded(txn, record), None if trim is None else trim._replace(inode=record))


def set_layout(
    txn: Transaction, inode: InodeId, layout: Layout, who: Credentials, now_ns: int
) -> Inode:
    """How files made in a directory from now on are spread; fields that are 0 stay."""
    record = load_record(txn, inode)
    check_directory(record)
    check_owner(record, who, "set the layout of")
    layout = Layout(
        layout.chunk_bytes or record.layout.chunk_bytes,
        layout.stripe or record.layout.stripe,
        layout.chain_table or record.layout.chain_table,
    )
    check_layout(layout)
    record = replace(record, layout=layout, ctime_ns=now_ns)
    store_record(txn, record)
    return folded(txn, record)


def statfs(txn: Transaction, capacity_bytes: int, free_bytes: int) -> StatFs:
    """Space, which the caller knows, and the number of inodes, which the store does."""
    inodes = counter_value(txn.get(keys.INODE_COUNT, snapshot=True))
    return StatFs(capacity_bytes=capacity_bytes, free_bytes=free_bytes, inodes=inodes)


def _changes_record(change: SetAttributes) -> bool:
    """Whether anything but the length is set: then ctime moves even if the values are the same."""
    return replace(change, length_bytes=None) != SetAttributes()


def _with_permissions(record: Inode, change: SetAttributes, who: Credentials) -> Inode:
    permissions = change.permissions
    if permissions is None:
        return record
    check_owner(record, who, "change the mode of")
    if permissions & ~0o7777:
        raise Fs3Error(Code.INVALID, f"permissions {permissions:o}: 0 to 7777 (octal) are allowed")
    if record.kind is FileKind.SYMLINK:
        raise Fs3Error(Code.UNSUPPORTED, f"inode {record.inode} is a symbolic link: it has no mode")
    if who.uid != ROOT_UID and not in_group(who, record.gid):
        permissions &= ~stat.S_ISGID
    return replace(record, permissions=permissions)


def _with_owner(record: Inode, change: SetAttributes, who: Credentials) -> Inode:
    if change.uid is None and change.gid is None:
        return record
    uid = record.uid if change.uid is None else change.uid
    gid = record.gid if change.gid is None else change.gid
    check_owner(record, who, "change the owner of")
    if who.uid != ROOT_UID and (
        uid != record.uid or (gid != record.gid and not in_group(who, gid))
    ):
        raise Fs3Error(
            Code.PERMISSION,
            f"uid {who.uid} may not give inode {record.inode} to {uid}:{gid}:"
            " an owner may choose among the own groups only",
        )
    permissions = without_set_id(record.kind, record.permissions)
    return replace(record, uid=uid, gid=gid, permissions=permissions)


def _with_times(
    txn: Transaction, record: Inode, change: SetAttributes, who: Credentials, now_ns: int
) -> Inode:
    if change.atime_ns is not None or change.mtime_ns is not None:
        check_owner(record, who, "set the times of")
    atime_ns = now_ns if change.atime_now else change.atime_ns
    mtime_ns = now_ns if change.mtime_now else change.mtime_ns
    if mtime_ns is not None and record.kind is FileKind.DIRECTORY:
        txn.clear(keys.DIRECTORY_TIME + keys.number(record.inode))
    return replace(
        record,
        atime_ns=record.atime_ns if atime_ns is None else atime_ns,
        mtime_ns=record.mtime_ns if mtime_ns is None else mtime_ns,
    )


def _check_length(record: Inode, length_bytes: int) -> None:
    if record.kind is FileKind.DIRECTORY:
        raise Fs3Error(Code.IS_DIRECTORY, f"inode {record.inode} is a directory: it has no length")
    if record.kind is not FileKind.FILE:
        raise Fs3Error(
            Code.INVALID,
            f"inode {record.inode} is a {record.kind.name.lower()}: only files have a length",
        )
    if not 0 <= length_bytes <= FILE_BYTES_MAX:
        raise Fs3Error(
            Code.TOO_LARGE, f"a length of {length_bytes} bytes: 0 to {FILE_BYTES_MAX} is allowed"
        )
