"""Making names: look-up, create, mknod, mkdir, symlink, link.

Ids, time and the chains of the chain tables are handed in; an id that a refused or repeated
operation did not use is simply never used.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fs3.core.layout import Layout, check_chunk_bytes, pick_chains
from fs3.core.types import ChainId, InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import (
    LINKS_MAX,
    MODE_TO_KIND,
    PATH_BYTES_MAX,
    ROOT_INODE,
    Credentials,
    FileKind,
    Inode,
)

from . import keys, records
from .inodes import (
    find_entry,
    find_record,
    load_directory,
    load_entry,
    load_inode,
    load_record,
    name_bytes,
    set_entry,
    store_record,
    touch_directory,
)
from .kv.interface import Transaction
from .permissions import ROOT_UID, SEARCH, WRITE, check_access, new_ownership
from .sessions import Opened, OpenMode, add_session, open_file

STRIPE_MAX = 10_000  # chains of one file: their ids must fit into its row
ROOT_PERMISSIONS = 0o755
NO_LAYOUT = Layout(0, 0, 0)  # of what has no data

ChainTables = Mapping[int, Sequence[ChainId]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInode:
    """What every new inode needs: its id, for whom, when, and the mode's low 12 bits."""

    inode: InodeId
    who: Credentials
    now_ns: int
    permissions: int = 0o777


def make_root(txn: Transaction, layout: Layout, now_ns: int) -> Inode:
    """Make the root directory, owned by root, and the id allocator; what is there stays."""
    root = find_record(txn, ROOT_INODE)
    if root is not None:
        return load_inode(txn, ROOT_INODE)
    check_layout(layout)
    root = Inode(
        inode=ROOT_INODE,
        kind=FileKind.DIRECTORY,
        permissions=ROOT_PERMISSIONS,
        uid=0,
        gid=0,
        links=2,
        length_bytes=0,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        layout=layout,
        parent=ROOT_INODE,
    )
    store_record(txn, root)
    txn.set(keys.NEXT_INODE, records.encode_number(ROOT_INODE + 1))
    txn.add(keys.INODE_COUNT, 1)
    return root


def check_layout(layout: Layout) -> None:
    """Refuse a layout that files could not be made with."""
    wrong = check_chunk_bytes(layout.chunk_bytes)
    if wrong is None and not 1 <= layout.stripe <= STRIPE_MAX:
        wrong = f"stripe {layout.stripe} is not allowed: 1 to {STRIPE_MAX} chains are"
    if wrong is None and layout.chain_table < 1:
        wrong = f"chain table {layout.chain_table} is not allowed: tables are numbered from 1"
    if wrong is not None:
        raise Fs3Error(Code.INVALID, wrong)


def lookup(txn: Transaction, parent: InodeId, name: str, who: Credentials) -> Inode:
    """What ``name`` stands for in ``parent``; '.' and '..' are understood."""
    directory = load_directory(txn, parent, who, SEARCH)
    if name == ".":
        return load_inode(txn, parent)
    if name == "..":
        return load_inode(txn, directory.parent)
    inode, _ = load_entry(txn, parent, name_bytes(name))
    return load_inode(txn, inode)


def create(
    txn: Transaction,
    parent: InodeId,
    name: str,
    new: NewInode,
    tables: ChainTables,
    *,
    mode: OpenMode | None = None,
    exclusive: bool = False,
    layout: Layout | None = None,
) -> Opened:
    """Make a file, or open the one that is there unless ``exclusive``; ``mode``: and open it.

    A file just made opens whatever its permissions are. ``layout``: fields not 0 replace those of
    the directory.
    """
    stored_name = name_bytes(name)
    directory = load_directory(txn, parent, new.who, SEARCH)
    existing = find_entry(txn, parent, stored_name)
    if existing is not None:
        if exclusive:
            raise Fs3Error(Code.EXISTS, f"{name!r} in directory {parent} exists")
        if existing[1] is FileKind.DIRECTORY:
            raise Fs3Error(Code.IS_DIRECTORY, f"{name!r} in directory {parent} is a directory")
        return open_file(txn, existing[0], new.who, mode or OpenMode(), new.now_ns)
    check_access(directory, new.who, WRITE | SEARCH)
    record = replace(
        _blank(directory, new, FileKind.FILE),
        layout=_layout_of(directory, layout, new.inode, tables),
    )
    _insert(txn, directory, stored_name, record)
    if mode is not None:
        add_session(txn, record.inode, mode, new.now_ns)
    return Opened(record, created=True)


def mknod(
    txn: Transaction,
    parent: InodeId,
    name: str,
    new: NewInode,
    tables: ChainTables,
    *,
    kind: FileKind,
    device: int = 0,
) -> Inode:
    """Make a file, a FIFO, a socket or, as root, a device."""
    if kind is FileKind.FILE:
        return create(txn, parent, name, new, tables, exclusive=True).inode
    if kind in (FileKind.CHARACTER_DEVICE, FileKind.BLOCK_DEVICE):
        if new.who.uid != ROOT_UID:
            raise Fs3Error(Code.PERMISSION, f"uid {new.who.uid} may not make a device: root may")
    elif kind not in (FileKind.FIFO, FileKind.SOCKET):
        raise Fs3Error(Code.INVALID, f"mknod does not make a {kind.name.lower()}")
    directory, stored_name = _check_new(txn, parent, name, new.who)
    record = replace(_blank(directory, new, kind), device=device)
    return _insert(txn, directory, stored_name, record)


def kind_of(mode: int) -> FileKind:
    """The kind in an ``st_mode``; a mode without one is a file's."""
    kind = MODE_TO_KIND.get(stat.S_IFMT(mode) or stat.S_IFREG)
    if kind is None:
        raise Fs3Error(Code.INVALID, f"mode {mode:o} names no kind of file")
    return kind


def mkdir(txn: Transaction, parent: InodeId, name: str, new: NewInode) -> Inode:
    """Make a directory; it takes over its parent's layout."""
    directory, stored_name = _check_new(txn, parent, name, new.who)
    record = replace(
        _blank(directory, new, FileKind.DIRECTORY),
        links=2,
        layout=directory.layout,
        parent=parent,
    )
    return _insert(txn, directory, stored_name, record)


def symlink(txn: Transaction, parent: InodeId, name: str, target: str, new: NewInode) -> Inode:
    """Make a symbolic link to ``target``, which is not looked at."""
    target_bytes = len(os.fsencode(target))
    if target_bytes == 0 or "\0" in target:
        raise Fs3Error(Code.INVALID, f"symlink target {target[:64]!r}: not empty and without NUL")
    if target_bytes >= PATH_BYTES_MAX:
        raise Fs3Error(
            Code.NAME_TOO_LONG,
            f"a symlink target of {target_bytes} bytes: less than {PATH_BYTES_MAX} are allowed",
        )
    directory, stored_name = _check_new(txn, parent, name, new.who)
    record = replace(
        _blank(directory, replace(new, permissions=0o777), FileKind.SYMLINK),
        permissions=0o777,
        length_bytes=target_bytes,
        symlink=target,
    )
    return _insert(txn, directory, stored_name, record)


def readlink(txn: Transaction, inode: InodeId) -> str:
    """Where a symbolic link points."""
    record = load_record(txn, inode)
    if record.kind is not FileKind.SYMLINK:
        raise Fs3Error(
            Code.INVALID, f"inode {inode} is a {record.kind.name.lower()}, not a symbolic link"
        )
    return record.symlink


def link(
    txn: Transaction,
    inode: InodeId,
    new_parent: InodeId,
    new_name: str,
    who: Credentials,
    now_ns: int,
) -> Inode:
    """Give a file one more name."""
    record = load_record(txn, inode)
    if record.kind is FileKind.DIRECTORY:
        raise Fs3Error(Code.PERMISSION, f"inode {inode} is a directory: it has one name")
    if record.links == 0:
        raise Fs3Error(Code.NOT_FOUND, f"inode {inode}: it was removed")
    if record.links >= LINKS_MAX:
        raise Fs3Error(
            Code.TOO_MANY_LINKS, f"inode {inode} has {record.links} names: {LINKS_MAX} are allowed"
        )
    _, stored_name = _check_new(txn, new_parent, new_name, who)
    record = replace(record, links=record.links + 1, ctime_ns=now_ns)
    store_record(txn, record)
    set_entry(txn, new_parent, stored_name, record)
    touch_directory(txn, new_parent, now_ns)
    return record


def _check_new(
    txn: Transaction, parent: InodeId, name: str, who: Credentials
) -> tuple[Inode, bytes]:
    """The directory, and the name as stored, where something new may be made.

    That a name exists is told before that the directory may not be written, as Linux does.
    """
    stored_name = name_bytes(name)
    directory = load_directory(txn, parent, who, SEARCH)
    if find_entry(txn, parent, stored_name) is not None:
        raise Fs3Error(Code.EXISTS, f"{name!r} in directory {parent} exists")
    check_access(directory, who, WRITE | SEARCH)
    return directory, stored_name


def _blank(directory: Inode, new: NewInode, kind: FileKind) -> Inode:
    """A new inode without what is particular to its kind."""
    gid, permissions = new_ownership(directory, new.who, kind, new.permissions)
    return Inode(
        inode=new.inode,
        kind=kind,
        permissions=permissions,
        uid=new.who.uid,
        gid=gid,
        links=1,
        length_bytes=0,
        atime_ns=new.now_ns,
        mtime_ns=new.now_ns,
        ctime_ns=new.now_ns,
        layout=NO_LAYOUT,
    )


def _insert(txn: Transaction, directory: Inode, name: bytes, record: Inode) -> Inode:
    store_record(txn, record)
    set_entry(txn, directory.inode, name, record)
    is_directory = record.kind is FileKind.DIRECTORY
    touch_directory(txn, directory.inode, record.ctime_ns, int(is_directory))
    txn.add(keys.INODE_COUNT, 1)
    return record


def _layout_of(
    directory: Inode, asked: Layout | None, inode: InodeId, tables: ChainTables
) -> Layout:
    """A new file's layout: what was asked for, else the directory's; its chains picked."""
    layout = replace(directory.layout, chains=())
    if asked is not None:
        layout = Layout(
            asked.chunk_bytes or layout.chunk_bytes,
            asked.stripe or layout.stripe,
            asked.chain_table or layout.chain_table,
        )
        check_layout(layout)
    table = tables.get(layout.chain_table, ())
    if not table:
        raise Fs3Error(Code.NOT_READY, f"chain table {layout.chain_table} has no chains")
    return replace(layout, chains=pick_chains(table, layout.stripe, inode))
