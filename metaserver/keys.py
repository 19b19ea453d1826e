"""Where everything lies in the metadata engine: one four-letter prefix per kind of row.

Numbers in keys are big-endian, so that the order of keys is the order of numbers; names are their
bytes (``os.fsencode``). Values are in records.py; both are documented, with offsets and an example,
in docs/formats.md. Prefixes are never reused for something else.

The rows of the cluster manager and of the operator's settings have their prefixes reserved here;
what they hold is decided where they are written.
"""

from __future__ import annotations

import os

from fs3.core.types import InodeId

# The namespace.
INODE = b"INOD"  # inode -> record
DENTRY = b"DENT"  # parent inode, name -> inode and kind
DIRECTORY_TIME = b"DIRT"  # inode -> when its entries last changed
DIRECTORY_CHANGES = b"DIRC"  # inode -> counter: how often its entries changed
DIRECTORY_LINKS = b"DIRL"  # inode -> counter: its subdirectories
XATTR = b"XATT"  # inode, name -> value
SESSION = b"SESS"  # inode, client, session -> how it is open
CLIENT_SESSION = b"CSES"  # client, inode, session -> nothing: the same, found by client
REQUEST = b"IDEM"  # client, request -> the first answer
GARBAGE = b"GCQU"  # when, inode -> nothing: unlinked and closed, chunks not yet freed
TRIM = b"TRIM"  # inode -> a shrink whose chunks are not yet cut
COUNTER = b"COUN"  # name -> counter or allocator

NEXT_INODE = COUNTER + b"next-inode"  # the first inode id that was never given out
INODE_COUNT = COUNTER + b"inodes"  # counter
NAMESPACES_END = COUNTER + b"kv-namespaces-end"  # the first id of a KV namespace never given out

# The cluster manager (manager_store.py) and the operator.
NODE = b"NODE"
TARGET = b"TARG"
CHAIN = b"CHAI"
CHAIN_TABLE = b"CHTB"
HELD_TARGET = b"HELD"
JOB = b"JOBS"  # number -> message Job of proto/cluster.proto
ROUTING_VERSION = b"ROUT"
LEASE = b"LEAS"
CONFIG = b"CONF"
CLIENT = b"CLIE"
KV_NAMESPACE = b"KVNS"  # id -> message KvNamespace of proto/cluster.proto
QUOTA = b"QUOT"
USER = b"USER"

NUMBER_BYTES = 8


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with ``prefix`` (whose first letter is below 0xff)."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,))


def number(value: int) -> bytes:
    """An unsigned 64-bit number as it stands in a key."""
    return value.to_bytes(NUMBER_BYTES, "big")


def number_at(key: bytes, position: int) -> int:
    """The ``position``-th number after a key's prefix."""
    begin = len(INODE) + position * NUMBER_BYTES
    return int.from_bytes(key[begin : begin + NUMBER_BYTES], "big")


def of(prefix: bytes, *numbers: int) -> bytes:
    """The key, or the beginning of keys, of ``prefix`` and ``numbers``."""
    return prefix + b"".join([n.to_bytes(NUMBER_BYTES, "big") for n in numbers])


def range_of(prefix: bytes, *numbers: int) -> tuple[bytes, bytes]:
    """The range of all keys that begin so."""
    begin = of(prefix, *numbers)
    return begin, prefix_end(begin)


def dentry(parent: InodeId, name: bytes) -> bytes:
    """The key of one name in a directory."""
    return DENTRY + number(parent) + name


def dentry_name(key: bytes) -> str:
    """The name in a dentry's key."""
    return os.fsdecode(key[len(DENTRY) + NUMBER_BYTES :])


def xattr(inode: InodeId, name: bytes) -> bytes:
    """The key of one extended attribute."""
    return XATTR + number(inode) + name


def xattr_name(key: bytes) -> str:
    """The name in an extended attribute's key."""
    return os.fsdecode(key[len(XATTR) + NUMBER_BYTES :])
