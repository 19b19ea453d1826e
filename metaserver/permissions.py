"""Who may do what: POSIX file permissions as pure functions of an inode and the caller.

Refusals follow Linux: ACCESS (EACCES) where the mode bits forbid, PERMISSION (EPERM) where only
the owner or root may act. Root (uid 0) passes every check here.
"""

from __future__ import annotations

import stat

from fs3.errors import Code, Fs3Error
from fs3.types import Credentials, FileKind, Inode

READ, WRITE, SEARCH = 4, 2, 1
ROOT_UID = 0
_WORDS = {READ: "read", WRITE: "write", SEARCH: "search", WRITE | SEARCH: "change entries of"}


def in_group(who: Credentials, gid: int) -> bool:
    """Whether ``who`` belongs to group ``gid``."""
    return who.gid == gid or gid in who.gids


def is_owner(inode: Inode, who: Credentials) -> bool:
    """Whether ``who`` may act as the owner of ``inode``."""
    return who.uid in (ROOT_UID, inode.uid)


def allows(inode: Inode, who: Credentials, want: int) -> bool:
    """Whether the mode bits grant all of ``want``: exactly one class of bits counts."""
    if who.uid == ROOT_UID:
        return True
    if who.uid == inode.uid:
        granted = inode.permissions >> 6
    elif in_group(who, inode.gid):
        granted = inode.permissions >> 3
    else:
        granted = inode.permissions
    return granted & want == want


def check_access(inode: Inode, who: Credentials, want: int) -> None:
    """Raise ACCESS unless the mode bits grant ``want``."""
    if not allows(inode, who, want):
        raise Fs3Error(
            Code.ACCESS,
            f"uid {who.uid} may not {_WORDS.get(want, 'read and write')} inode {inode.inode}:"
            f" it belongs to {inode.uid}:{inode.gid}, mode {inode.permissions:04o}",
        )


def check_owner(inode: Inode, who: Credentials, what: str) -> None:
    """Raise PERMISSION unless ``who`` owns ``inode`` or is root."""
    if not is_owner(inode, who):
        raise Fs3Error(
            Code.PERMISSION,
            f"uid {who.uid} may not {what} inode {inode.inode}: its owner {inode.uid} and root may",
        )


def check_removal(directory: Inode, inode: Inode, who: Credentials) -> None:
    """Raise PERMISSION if ``directory`` is sticky and neither it nor ``inode`` is the caller's."""
    sticky = directory.permissions & stat.S_ISVTX
    if sticky and not is_owner(directory, who) and not is_owner(inode, who):
        raise Fs3Error(
            Code.PERMISSION,
            f"uid {who.uid} may not remove inode {inode.inode} from the sticky directory"
            f" {directory.inode}: the owner of either, and root, may",
        )


def new_ownership(
    directory: Inode, who: Credentials, kind: FileKind, permissions: int
) -> tuple[int, int]:
    """The group and permissions of something made in ``directory``, which may hand its group on."""
    permissions &= 0o7777
    if not directory.permissions & stat.S_ISGID:
        return who.gid, permissions
    if kind is FileKind.DIRECTORY:
        return directory.gid, permissions | stat.S_ISGID
    member = who.uid == ROOT_UID or in_group(who, directory.gid)
    if permissions & stat.S_IXGRP and not member:
        permissions &= ~stat.S_ISGID  # nobody gets a set-group-id program of a foreign group
    return directory.gid, permissions


def without_set_id(kind: FileKind, permissions: int) -> int:
    """Permissions after the data or the owner changed: nothing runs as the old owner any more.

    S_ISGID without group execution does not mean "set group id" and stays.
    """
    if kind is FileKind.DIRECTORY:
        return permissions
    permissions &= ~stat.S_ISUID
    if permissions & stat.S_IXGRP:
        permissions &= ~stat.S_ISGID
    return permissions
