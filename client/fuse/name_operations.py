"""Handlers of requests about names, attributes and listings."""

from __future__ import annotations

import errno
import os

from fs3.client.filesystem_interface import FileSystem, RenameFlags, XattrFlags
from fs3.core.types import InodeId
from fs3.types import ROOT_INODE, FileKind, SetAttributes

from . import kernel as codec
from . import kernel_structs as k
from .handlers import Callers, Handler, Reply
from .kernel import Arguments, Header

_DOTS = 2  # "." and ".." have the cookies 1 and 2; the file system's follow
_ACL_PREFIX = "system."  # storing ACLs that nobody enforces would be a lie
_SECOND_NS = 1_000_000_000


class NameOperations:
    """The namespace half of a mount."""

    def __init__(self, filesystem: FileSystem, callers: Callers) -> None:
        self._filesystem = filesystem
        self._callers = callers

    def table(self) -> dict[int, Handler]:
        """Handlers by opcode."""
        op = k.Opcode
        return {
            op.LOOKUP: self._lookup,
            op.FORGET: self._forget,
            op.BATCH_FORGET: self._batch_forget,
            op.READLINK: self._readlink,
            op.SYMLINK: self._symlink,
            op.MKNOD: self._mknod,
            op.MKDIR: self._mkdir,
            op.UNLINK: self._unlink,
            op.RMDIR: self._rmdir,
            op.RENAME: self._rename,
            op.RENAME2: self._rename2,
            op.LINK: self._link,
            op.GETATTR: self._getattr,
            op.SETATTR: self._setattr,
            op.STATFS: lambda *_: codec.encode_statfs(self._filesystem.statfs()),
            op.SETXATTR: self._setxattr,
            op.GETXATTR: self._getxattr,
            op.LISTXATTR: self._listxattr,
            op.REMOVEXATTR: self._removexattr,
            op.OPENDIR: self._opendir,
            op.READDIR: lambda node, arguments, _: self._listing(node, arguments, False),
            op.READDIRPLUS: lambda node, arguments, _: self._listing(node, arguments, True),
            op.RELEASEDIR: self._releasedir,
            op.FSYNCDIR: self._fsyncdir,
        }

    # -- names -------------------------------------------------------------------------------------

    def _lookup(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        entry = self._filesystem.lookup(node, arguments[0], self._callers.of(header))
        if entry.inode is None and not entry.entry_timeout_s:
            return errno.ENOENT
        return codec.encode_entry(entry)

    def _forget(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        self._filesystem.forget(node, arguments[0])
        return None

    def _batch_forget(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        for inode, lookups in arguments:
            self._filesystem.forget(InodeId(inode), lookups)
        return None

    def _readlink(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        return os.fsencode(self._filesystem.readlink(node))

    def _symlink(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        name, target = arguments
        return codec.encode_entry(
            self._filesystem.symlink(node, name, target, self._callers.of(header))
        )

    def _mknod(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        mode, device, _, name = arguments
        made = self._filesystem.mknod(node, name, mode, device, self._callers.of(header))
        return codec.encode_entry(made)

    def _mkdir(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        mode, _, name = arguments
        made = self._filesystem.mkdir(node, name, mode & 0o7777, self._callers.of(header))
        return codec.encode_entry(made)

    def _unlink(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        self._filesystem.unlink(node, arguments[0], self._callers.of(header))
        return 0

    def _rmdir(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        self._filesystem.rmdir(node, arguments[0], self._callers.of(header))
        return 0

    def _rename(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        new_parent, name, new_name = arguments
        return self._rename2(node, (new_parent, 0, name, new_name), header)

    def _rename2(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        new_parent, flags, name, new_name = arguments
        if flags & ~(RenameFlags.NOREPLACE | RenameFlags.EXCHANGE):
            return errno.EINVAL  # RENAME_WHITEOUT is for overlays
        self._filesystem.rename(
            node, name, InodeId(new_parent), new_name, RenameFlags(flags), self._callers.of(header)
        )
        return 0

    def _link(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        inode, name = arguments
        made = self._filesystem.link(InodeId(inode), node, name, self._callers.of(header))
        return codec.encode_entry(made)

    # -- attributes --------------------------------------------------------------------------------

    def _getattr(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        flags, handle = arguments
        found = self._filesystem.getattr(node, handle if flags & k.GETATTR_FH else None)
        return codec.encode_attributes(found)

    def _setattr(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        valid, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, uid, gid = arguments
        atime_now, mtime_now = bool(valid & k.FATTR_ATIME_NOW), bool(valid & k.FATTR_MTIME_NOW)
        set_atime = valid & k.FATTR_ATIME and not atime_now
        set_mtime = valid & k.FATTR_MTIME and not mtime_now
        changes = SetAttributes(
            permissions=mode & 0o7777 if valid & k.FATTR_MODE else None,
            uid=uid if valid & k.FATTR_UID else None,
            gid=gid if valid & k.FATTR_GID else None,
            length_bytes=size if valid & k.FATTR_SIZE else None,
            atime_ns=atime * _SECOND_NS + atime_ns if set_atime else None,
            mtime_ns=mtime * _SECOND_NS + mtime_ns if set_mtime else None,
            atime_now=atime_now,
            mtime_now=mtime_now,
        )
        through = handle if valid & k.FATTR_FH else None
        clear = bool(valid & k.FATTR_KILL_SUIDGID)
        changed = self._filesystem.setattr(node, changes, through, clear, self._callers.of(header))
        return codec.encode_attributes(changed)

    def _setxattr(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        _, flags, name, value = arguments
        if name.startswith(_ACL_PREFIX):
            return errno.EOPNOTSUPP
        self._filesystem.setxattr(node, name, value, XattrFlags(flags))
        return 0

    def _getxattr(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        room, name = arguments
        if name.startswith(_ACL_PREFIX):
            return errno.EOPNOTSUPP
        return _sized(self._filesystem.getxattr(node, name), room)

    def _listxattr(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        names = self._filesystem.listxattr(node)
        return _sized(b"".join(os.fsencode(name) + b"\0" for name in names), arguments[0])

    def _removexattr(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        if arguments[0].startswith(_ACL_PREFIX):
            return errno.EOPNOTSUPP
        self._filesystem.removexattr(node, arguments[0])
        return 0

    # -- directories -------------------------------------------------------------------------------

    def _opendir(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        return codec.encode_open(
            self._filesystem.opendir(node, self._callers.of(header)), directory=True
        )

    def _listing(self, node: InodeId, arguments: Arguments, plus: bool) -> Reply:
        """As many lines as fit; an empty reply is the end."""
        handle, cookie, room = arguments[:3]
        lines = []
        if cookie < _DOTS:
            for line in self._dots(node, plus)[cookie:]:
                lines.append(line)
                room -= len(line)
        for listed in self._filesystem.readdir(handle, max(cookie - _DOTS, 0), plus):
            dentry, next_cookie = listed.dentry, listed.cookie + _DOTS
            what = dentry.name, dentry.inode, dentry.kind, next_cookie
            line = (
                codec.encode_direntplus(*what, listed.entry) if plus else codec.encode_dirent(*what)
            )
            room -= len(line)
            if room < 0:
                if listed.entry is not None and listed.entry.inode is not None:
                    self._filesystem.forget(listed.entry.inode.inode, 1)
                break
            lines.append(line)
        return b"".join(lines)

    def _dots(self, node: InodeId, plus: bool) -> list[bytes]:
        """The lines of "." and "..", which hold no look-up."""
        above = self._filesystem.getattr(node, None).inode.parent or ROOT_INODE
        lines = [(".", node, FileKind.DIRECTORY, 1), ("..", above, FileKind.DIRECTORY, 2)]
        if plus:
            return [codec.encode_direntplus(*line, None) for line in lines]
        return [codec.encode_dirent(*line) for line in lines]

    def _releasedir(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        self._filesystem.releasedir(arguments[0])
        return 0

    def _fsyncdir(self, node: InodeId, arguments: Arguments, header: Header) -> Reply:
        self._filesystem.fsyncdir(arguments[0], bool(arguments[1] & k.FSYNC_FDATASYNC))
        return 0


def _sized(value: bytes, room: int) -> Reply:
    """An xattr reply: its size if the caller asks for that by giving no room, else the value."""
    if room == 0:
        return k.GETXATTR_OUT.pack(len(value))
    return value if len(value) <= room else errno.ERANGE
