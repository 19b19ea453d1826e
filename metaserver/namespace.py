"""The namespace: what a metaserver does to names, inodes and open files, as functions of a
transaction. This is the list; the work is in the files named beside it.

Every function takes a transaction first, works through it alone, and raises ``Fs3Error``. Run one
with ``engine.run(fn, ...)``, several in one transaction with a function of your own. Time, inode
ids and chains are handed in, so a function called twice on the same data does the same.

Invariants, true after every commit
- Every entry stands for an inode that exists; ``links`` counts its entries (a directory: 2 and its
  subdirectories).
- Directories are a tree: following ``parent`` leads to the root, inode 1.
- An inode without names exists only while a session holds it or the garbage queue has it.
- ``version`` grows whenever length or data changed, or, in a directory, an entry.

What is not here: decoding requests, carrying out trims and garbage, pushing news to clients.
"""

from __future__ import annotations

from .attributes import (
    Changed,
    get_attributes,
    get_attributes_of,
    set_attributes,
    set_layout,
    statfs,
)
from .directories import Page, Resolved, read_directory, resolve
from .garbage import Garbage, Trim, gc_done, gc_next, trim_done, trims_next
from .inodes import InodeAllocator
from .namespace_entries import (
    ChainTables,
    NewInode,
    create,
    kind_of,
    link,
    lookup,
    make_root,
    mkdir,
    mknod,
    readlink,
    symlink,
)
from .namespace_removal import rename, rmdir, unlink
from .once import once, prune_requests
from .sessions import (
    Handle,
    Opened,
    OpenMode,
    Wrote,
    close_file,
    open_file,
    prune_sessions,
    reserve_append,
    settle_length,
)
from .xattrs import get_xattr, list_xattrs, remove_xattr, set_xattr

__all__ = [
    "ChainTables",
    "Changed",
    "Garbage",
    "Handle",
    "InodeAllocator",
    "NewInode",
    "OpenMode",
    "Opened",
    "Page",
    "Resolved",
    "Trim",
    "Wrote",
    "close_file",
    "create",
    "gc_done",
    "gc_next",
    "get_attributes",
    "get_attributes_of",
    "get_xattr",
    "kind_of",
    "link",
    "list_xattrs",
    "lookup",
    "make_root",
    "mkdir",
    "mknod",
    "once",
    "open_file",
    "prune_requests",
    "prune_sessions",
    "read_directory",
    "readlink",
    "remove_xattr",
    "rename",
    "reserve_append",
    "resolve",
    "rmdir",
    "set_attributes",
    "set_layout",
    "set_xattr",
    "settle_length",
    "statfs",
    "symlink",
    "trim_done",
    "trims_next",
    "unlink",
]
