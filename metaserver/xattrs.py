"""Extended attributes: ``user.``, ``trusted.`` and ``security.`` names, as Linux treats them.

user.      on files and directories; read and written by whoever may read and write the inode, but
           on a sticky directory written by its owner only
trusted.   root's, and invisible to others
security.  everybody reads, root writes
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace

from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import Credentials, FileKind, Inode

from . import keys, records
from .inodes import load_record, store_record
from .kv.interface import Transaction
from .permissions import READ, ROOT_UID, WRITE, check_access, check_owner

NAME_BYTES_MAX = 255
VALUE_BYTES_MAX = 64 << 10
LIST_BYTES_MAX = 64 << 10  # of one inode's names, each with its NUL: what listxattr(2) can return


def get_xattr(txn: Transaction, inode: InodeId, name: str, who: Credentials) -> bytes:
    """An attribute's value."""
    record, stored_name = _load(txn, inode, name)
    if name.startswith("user."):
        check_access(record, who, READ)
    hidden = name.startswith("trusted.") and who.uid != ROOT_UID
    value = None if hidden else txn.get(keys.xattr(inode, stored_name))
    if value is None:
        raise Fs3Error(Code.NO_ATTRIBUTE, f"inode {inode} has no attribute {name!r}")
    return records.decode_xattr(value)


def list_xattrs(txn: Transaction, inode: InodeId, who: Credentials) -> list[str]:
    """The names of an inode's attributes that ``who`` may know of."""
    load_record(txn, inode)
    names = [keys.xattr_name(key) for key, _ in txn.range(*keys.range_of(keys.XATTR, inode))]
    return [n for n in names if who.uid == ROOT_UID or not n.startswith("trusted.")]


def set_xattr(
    txn: Transaction,
    inode: InodeId,
    name: str,
    value: bytes,
    who: Credentials,
    now_ns: int,
    *,
    create: bool = False,
    replace_only: bool = False,
) -> None:
    """Set an attribute; ``create``: it must be new, ``replace_only``: it must be there."""
    record, stored_name = _load(txn, inode, name)
    _check_change(record, name, who)
    if len(value) > VALUE_BYTES_MAX:
        raise Fs3Error(
            Code.TOO_LARGE,
            f"an attribute of {len(value)} bytes: at most {VALUE_BYTES_MAX} are allowed",
        )
    row = keys.xattr(inode, stored_name)
    exists = txn.get(row) is not None
    if exists and create:
        raise Fs3Error(Code.EXISTS, f"inode {inode} has an attribute {name!r} already")
    if not exists and replace_only:
        raise Fs3Error(Code.NO_ATTRIBUTE, f"inode {inode} has no attribute {name!r}")
    if not exists:
        _check_room(txn, inode, stored_name)
    txn.set(row, records.encode_xattr(value))
    store_record(txn, replace(record, ctime_ns=now_ns))


def remove_xattr(
    txn: Transaction, inode: InodeId, name: str, who: Credentials, now_ns: int
) -> None:
    """Remove an attribute that is there."""
    record, stored_name = _load(txn, inode, name)
    _check_change(record, name, who)
    row = keys.xattr(inode, stored_name)
    if txn.get(row) is None:
        raise Fs3Error(Code.NO_ATTRIBUTE, f"inode {inode} has no attribute {name!r}")
    txn.clear(row)
    store_record(txn, replace(record, ctime_ns=now_ns))


def _load(txn: Transaction, inode: InodeId, name: str) -> tuple[Inode, bytes]:
    space, dot, rest = name.partition(".")
    if not dot or space not in ("user", "trusted", "security"):
        raise Fs3Error(
            Code.UNSUPPORTED,
            f"attribute {name[:64]!r}: user., trusted. and security. names are kept",
        )
    stored_name = os.fsencode(name)
    if not rest or "\0" in name:
        raise Fs3Error(Code.INVALID, f"attribute {name[:64]!r}: a name without NUL must follow")
    if len(stored_name) > NAME_BYTES_MAX:
        raise Fs3Error(
            Code.NAME_TOO_LONG,
            f"an attribute name of {len(stored_name)} bytes: at most {NAME_BYTES_MAX} are allowed",
        )
    return load_record(txn, inode), stored_name


def _check_change(record: Inode, name: str, who: Credentials) -> None:
    if not name.startswith("user."):
        if who.uid != ROOT_UID:
            raise Fs3Error(Code.PERMISSION, f"uid {who.uid} may not set {name!r}: root may")
        return
    if record.kind not in (FileKind.FILE, FileKind.DIRECTORY):
        raise Fs3Error(
            Code.PERMISSION,
            f"inode {record.inode} is a {record.kind.name.lower()}:"
            " files and directories have user attributes",
        )
    if record.kind is FileKind.DIRECTORY and record.permissions & stat.S_ISVTX:
        check_owner(record, who, "set attributes of the sticky directory")
    check_access(record, who, WRITE)


def _check_room(txn: Transaction, inode: InodeId, new_name: bytes) -> None:
    rows = txn.range(*keys.range_of(keys.XATTR, inode))
    prefix_bytes = len(keys.xattr(inode, b""))
    total = sum(len(key) - prefix_bytes + 1 for key, _ in rows) + len(new_name) + 1
    if total > LIST_BYTES_MAX:
        raise Fs3Error(
            Code.NO_SPACE,
            f"inode {inode} has {len(rows)} attributes, with names of {total} bytes:"
            f" at most {LIST_BYTES_MAX} are allowed",
        )
