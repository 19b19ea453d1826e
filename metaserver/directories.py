"""Reading directories and walking paths."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import PATH_BYTES_MAX, ROOT_INODE, Credentials, Dentry, FileKind, Inode

from . import keys, records
from .inodes import find_entry, find_record, folded, load_directory, load_record, name_bytes
from .kv.interface import Transaction
from .permissions import READ, SEARCH

PAGE_ENTRIES = 128
PAGE_ENTRIES_MAX = 4096
SYMLINKS_MAX = 40  # followed in one walk


class Page(NamedTuple):
    """Entries in the order of their names' bytes; ``more`` may follow after the last of them."""

    entries: list[Dentry]
    more: bool


class Resolved(NamedTuple):
    """Where a path leads. ``inode`` is None where only the last component is missing.

    ``parent`` and ``name`` say where the last component stands; ``name`` is "" if the path ends in
    the root, '.' or '..', which have no entry of their own.
    """

    inode: Inode | None
    parent: InodeId
    name: str


def read_directory(
    txn: Transaction,
    inode: InodeId,
    who: Credentials,
    *,
    after: str = "",
    limit: int = PAGE_ENTRIES,
    attributes: bool = False,
) -> Page:
    """A page of a directory behind the name ``after``, without '.' and '..'.

    Pages are separate transactions: an entry that stands all the while comes exactly once.
    """
    if not 1 <= limit <= PAGE_ENTRIES_MAX:
        raise Fs3Error(
            Code.INVALID, f"a page of {limit} entries: 1 to {PAGE_ENTRIES_MAX} are allowed"
        )
    load_directory(txn, inode, who, READ)
    begin, end = keys.range_of(keys.DENTRY, inode)
    if after:
        begin = keys.dentry(inode, os.fsencode(after)) + b"\0"
    rows = txn.range(begin, end, limit + 1)
    entries = []
    for key, value in rows[:limit]:
        child, kind = records.decode_dentry(value)
        entries.append(Dentry(name=keys.dentry_name(key), inode=child, kind=kind))
    if attributes:
        entries = [_with_attributes(txn, entry) for entry in entries]
    return Page(entries, len(rows) > limit)


def _with_attributes(txn: Transaction, entry: Dentry) -> Dentry:
    record = find_record(txn, entry.inode)
    return entry if record is None else replace(entry, attributes=folded(txn, record))


class _Walk:
    """A path being walked: where it stands, and what is still to come, last first."""

    def __init__(self, txn: Transaction, path: str, start: InodeId) -> None:
        self._txn = txn
        self._links = 0
        self.here = load_record(txn, start)
        self.parent = self.here.parent
        self.name = ""
        self.todo: list[str] = []
        self.push(path)

    def push(self, path: str) -> None:
        """Go on with ``path`` before the rest."""
        if path.startswith("/"):
            self.here = load_record(self._txn, ROOT_INODE)
            self.parent, self.name = ROOT_INODE, ""
        parts = [part for part in path.split("/") if part]
        if path.endswith("/") and parts:
            parts.append(".")  # it must be a directory, and is followed
        self.todo += reversed(parts)

    def step(self, who: Credentials, follow_last: bool) -> bool:
        """Take the next component; False if it is missing."""
        part = self.todo.pop()
        directory = load_directory(self._txn, self.here.inode, who, SEARCH)
        if part in (".", ".."):
            self.here = directory if part == "." else load_record(self._txn, directory.parent)
            if part == ".." or self.here.inode == ROOT_INODE or self.name == "":
                self.parent, self.name = self.here.parent, ""
            return True
        self.parent, self.name = directory.inode, part
        entry = find_entry(self._txn, directory.inode, name_bytes(part))
        if entry is None:
            return False
        found = load_record(self._txn, entry[0])
        if found.kind is FileKind.SYMLINK and (self.todo or follow_last):
            self._links += 1
            if self._links > SYMLINKS_MAX:
                raise Fs3Error(
                    Code.LOOP, f"more than {SYMLINKS_MAX} symbolic links, the last at {part!r}"
                )
            self.push(found.symlink)
            return True
        self.here = found
        return True


def resolve(
    txn: Transaction,
    path: str,
    who: Credentials,
    *,
    follow: bool = True,
    want_parent: bool = False,
    start: InodeId = ROOT_INODE,
) -> Resolved:
    """Walk ``path`` from the root, or from ``start`` if it is relative.

    ``follow``: also a symbolic link at the end. With ``want_parent`` a missing last component is
    no error. Absolute symbolic links lead from this file system's root.
    """
    if not path or "\0" in path:
        raise Fs3Error(Code.INVALID if path else Code.NOT_FOUND, f"path {path[:64]!r}")
    path_bytes = len(os.fsencode(path))
    if path_bytes > PATH_BYTES_MAX:
        raise Fs3Error(
            Code.NAME_TOO_LONG,
            f"a path of {path_bytes} bytes: at most {PATH_BYTES_MAX} are allowed",
        )
    walk = _Walk(txn, path, start)
    while walk.todo:
        if not walk.step(who, follow):
            if want_parent and not [part for part in walk.todo if part != "."]:
                return Resolved(None, walk.parent, walk.name)
            raise Fs3Error(
                Code.NOT_FOUND,
                f"{path!r}: there is no {walk.name!r} in the directory with inode {walk.parent}",
            )
    return Resolved(folded(txn, walk.here), walk.parent, walk.name)
