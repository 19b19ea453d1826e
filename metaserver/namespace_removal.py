"""Taking names away and moving them: unlink, rmdir, rename.

A directory's parent is in its record, so a move writes it, and the walk that looks for loops reads
the records on its way up: two moves that would make a loop together conflict.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import ROOT_INODE, Credentials, FileKind, Inode

from . import keys
from .garbage import collect_if_unused
from .inodes import (
    erase_inode,
    find_entry,
    folded,
    load_entry,
    load_parent,
    load_record,
    name_bytes,
    set_entry,
    store_record,
    touch_directory,
)
from .kv.interface import Transaction
from .permissions import WRITE, check_access, check_removal


def unlink(txn: Transaction, parent: InodeId, name: str, who: Credentials, now_ns: int) -> Inode:
    """Remove a name of anything but a directory; the inode as it is then, perhaps without names."""
    stored_name = name_bytes(name)
    directory = load_parent(txn, parent, who)
    inode, kind = load_entry(txn, parent, stored_name)
    record = load_record(txn, inode)
    check_removal(directory, record, who)
    if kind is FileKind.DIRECTORY:
        raise Fs3Error(Code.IS_DIRECTORY, f"{name!r} in directory {parent} is a directory")
    txn.clear(keys.dentry(parent, stored_name))
    touch_directory(txn, parent, now_ns)
    return _drop_name(txn, record, now_ns)


def rmdir(txn: Transaction, parent: InodeId, name: str, who: Credentials, now_ns: int) -> None:
    """Remove an empty directory."""
    if name == "..":
        raise Fs3Error(Code.NOT_EMPTY, "'..' is not empty: it holds the directory it was seen from")
    stored_name = name_bytes(name)
    directory = load_parent(txn, parent, who)
    inode, kind = load_entry(txn, parent, stored_name)
    record = load_record(txn, inode)
    check_removal(directory, record, who)
    if kind is not FileKind.DIRECTORY:
        raise Fs3Error(
            Code.NOT_DIRECTORY, f"{name!r} in directory {parent} is a {kind.name.lower()}"
        )
    _check_empty(txn, record)
    txn.clear(keys.dentry(parent, stored_name))
    touch_directory(txn, parent, now_ns, -1)
    erase_inode(txn, record)


class _End(NamedTuple):
    """One end of a rename: the directory's record, and the name in it."""

    directory: Inode
    name: bytes

    @property
    def inode(self) -> InodeId:
        return self.directory.inode


def rename(
    txn: Transaction,
    parent: InodeId,
    name: str,
    new_parent: InodeId,
    new_name: str,
    who: Credentials,
    now_ns: int,
    *,
    no_replace: bool = False,
    exchange: bool = False,
) -> Inode:
    """Move a name; what stood at the new one goes, or with ``exchange`` takes the old one."""
    if no_replace and exchange:
        raise Fs3Error(Code.INVALID, "rename: no_replace and exchange exclude each other")
    source = _End(load_parent(txn, parent, who), name_bytes(name))
    target = _End(load_parent(txn, new_parent, who), name_bytes(new_name))
    moved = load_record(txn, load_entry(txn, parent, source.name)[0])
    entry = load_entry(txn, new_parent, target.name) if exchange else None
    entry = entry or find_entry(txn, new_parent, target.name)
    if entry is not None and no_replace:
        raise Fs3Error(Code.EXISTS, f"{new_name!r} in directory {new_parent} exists")
    check_removal(source.directory, moved, who)
    _check_move(txn, moved, source, target, who)
    if entry is not None and entry[0] == moved.inode:
        return folded(txn, moved)  # two names of one file: POSIX wants both to stay
    other = None if entry is None else load_record(txn, entry[0])
    if other is not None:
        check_removal(target.directory, other, who)
        if exchange:
            _check_move(txn, other, target, source, who)
        else:
            _replace(txn, moved, other, target, now_ns)
    if exchange and other is not None:
        _place(txn, other, target, source, now_ns)
    else:
        txn.clear(keys.dentry(parent, source.name))
    moved = _place(txn, moved, source, target, now_ns)
    touch_directory(txn, parent, now_ns)
    if new_parent != parent:
        touch_directory(txn, new_parent, now_ns)
    return folded(txn, moved)


def _check_move(
    txn: Transaction, moved: Inode, source: _End, target: _End, who: Credentials
) -> None:
    """Whether ``moved`` may go from one directory to the other; both ends were checked already."""
    if moved.kind is not FileKind.DIRECTORY or source.inode == target.inode:
        return
    above = target.directory
    while True:
        if above.inode == moved.inode:
            raise Fs3Error(
                Code.INVALID,
                f"directory {moved.inode} cannot move into {target.inode}: that lies within it",
            )
        if above.inode == ROOT_INODE:
            break
        above = load_record(txn, above.parent)
    check_access(moved, who, WRITE)  # its '..' changes


def _replace(txn: Transaction, moved: Inode, other: Inode, target: _End, now_ns: int) -> None:
    """Take away what ``moved`` comes in the place of."""
    if other.kind is FileKind.DIRECTORY:
        if moved.kind is not FileKind.DIRECTORY:
            raise Fs3Error(
                Code.IS_DIRECTORY,
                f"{os.fsdecode(target.name)!r} is a directory: a file cannot take its place",
            )
        _check_empty(txn, other)
        touch_directory(txn, target.inode, now_ns, -1)
        erase_inode(txn, other)
        return
    if moved.kind is FileKind.DIRECTORY:
        raise Fs3Error(
            Code.NOT_DIRECTORY,
            f"{os.fsdecode(target.name)!r} is a {other.kind.name.lower()}: a directory cannot"
            " take its place",
        )
    _drop_name(txn, other, now_ns)


def _place(txn: Transaction, moved: Inode, source: _End, target: _End, now_ns: int) -> Inode:
    """Let the name at ``target`` stand for ``moved``."""
    set_entry(txn, target.inode, target.name, moved)
    parent = moved.parent
    if moved.kind is FileKind.DIRECTORY:
        parent = target.inode
        if source.inode != target.inode:
            txn.add(keys.DIRECTORY_LINKS + keys.number(source.inode), -1)
            txn.add(keys.DIRECTORY_LINKS + keys.number(target.inode), 1)
    moved = replace(moved, ctime_ns=now_ns, parent=parent)
    store_record(txn, moved)
    return moved


def _drop_name(txn: Transaction, record: Inode, now_ns: int) -> Inode:
    """Take one name from a file; without names it stays as long as somebody has it open."""
    record = replace(record, links=record.links - 1, ctime_ns=now_ns)
    store_record(txn, record)
    if record.links == 0:
        collect_if_unused(txn, record, now_ns)
    return record


def _check_empty(txn: Transaction, record: Inode) -> None:
    rows = txn.range(*keys.range_of(keys.DENTRY, record.inode), limit=1)
    if rows:
        raise Fs3Error(
            Code.NOT_EMPTY,
            f"directory {record.inode} is not empty: {keys.dentry_name(rows[0][0])!r} is in it",
        )
