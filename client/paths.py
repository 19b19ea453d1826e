"""Operations on paths: what the ``os`` module does for a mounted file system.

Paths are absolute within fs3; ``.`` and ``..`` are taken out before the server sees them (``..``
by the letter, not through symbolic links). Failures are Fs3Error, which is an OSError of the class
that ``os`` would raise: FileNotFoundError, FileExistsError, PermissionError and so on.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from typing import TypeAlias

from fs3.core.layout import Layout, check_chunk_bytes
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import (
    INODES_FREE,
    NAME_BYTES_MAX,
    ROOT_INODE,
    Dentry,
    FileKind,
    Inode,
    SetAttributes,
)

from .context import ClientContext

Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
BLOCK_BYTES = 512  # the unit of st_blocks


def plain(path: Path) -> str:
    """An absolute path without "", "." and ".."; Fs3Error INVALID if it is none."""
    text = os.fsdecode(path)
    if not text.startswith("/"):
        raise Fs3Error(Code.INVALID, f"path {text!r} is not allowed: an absolute one is")
    if "\0" in text:
        raise Fs3Error(Code.INVALID, f"path {text!r} is not allowed: one without NUL is")
    normal = posixpath.normpath(text)
    return normal[1:] if normal.startswith("//") else normal


def stat_of(inode: Inode) -> os.stat_result:
    """An inode as ``os.stat`` shows it, nanoseconds included."""
    times = (inode.atime_ns, inode.mtime_ns, inode.ctime_ns)
    seconds = [ns // 1_000_000_000 for ns in times]
    exact = [ns / 1e9 for ns in times]
    blocks = -(-inode.length_bytes // BLOCK_BYTES)
    values = [inode.mode, inode.inode, 0, inode.links, inode.uid, inode.gid, inode.length_bytes]
    chunk_bytes = inode.layout.chunk_bytes
    return os.stat_result((*values, *seconds, *exact, *times, chunk_bytes, blocks, inode.device))


class DirEntry:
    """One line of :meth:`PathOperations.scandir`, like ``os.DirEntry``, with its attributes."""

    def __init__(self, directory: str, dentry: Dentry) -> None:
        self.name = dentry.name
        self.path = posixpath.join(directory, dentry.name)
        self._dentry = dentry

    def inode(self) -> int:
        """The inode id."""
        return self._dentry.inode

    def is_dir(self) -> bool:
        """A directory itself; symbolic links are not followed."""
        return self._dentry.kind is FileKind.DIRECTORY

    def is_file(self) -> bool:
        """A regular file itself; symbolic links are not followed."""
        return self._dentry.kind is FileKind.FILE

    def is_symlink(self) -> bool:
        """A symbolic link."""
        return self._dentry.kind is FileKind.SYMLINK

    def stat(self) -> os.stat_result:
        """The attributes as they were when the directory was listed, links not followed."""
        if self._dentry.attributes is None:
            raise Fs3Error(Code.NOT_FOUND, f"{self.path}: it was removed while it was listed")
        return stat_of(self._dentry.attributes)

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"


class PathOperations:
    """The part of a client that deals in names and attributes."""

    _context: ClientContext

    # -- looking ---------------------------------------------------------------------------------

    def _find(self, path: Path, *, follow: bool = True) -> Inode:
        """The inode, with what this client has written to it and not yet told."""
        text = plain(path)
        try:
            inode = self._context.metadata.resolve(text, follow=follow).inode
        except Fs3Error as error:
            raise _named(error, text) from error
        if inode is None:
            raise Fs3Error(Code.NOT_FOUND, f"{text}: no such file or directory")
        opened = self._context.files.find(inode.inode)
        if opened is None:
            return inode
        opened.learn(inode)
        return opened.view()

    def _place(self, path: Path, *, follow: bool = False) -> tuple[InodeId, str, Inode | None]:
        """Parent, name, and the inode if the name is taken."""
        text = plain(path)
        if text == "/":
            raise Fs3Error(Code.INVALID, "the root has no name to make, move or remove")
        try:
            found = self._context.metadata.resolve(text, follow=follow, want_parent=True)
        except Fs3Error as error:
            raise _named(error, text) from error
        return found.parent, found.name, found.inode

    def stat(self, path: Path) -> os.stat_result:
        """Attributes of what ``path`` leads to."""
        return stat_of(self._find(path))

    def lstat(self, path: Path) -> os.stat_result:
        """The same, of a symbolic link itself."""
        return stat_of(self._find(path, follow=False))

    def inode(self, path: Path, *, follow: bool = True) -> Inode:
        """The inode as fs3 knows it: with layout and versions."""
        return self._find(path, follow=follow)

    def exists(self, path: Path) -> bool:
        """Does it lead anywhere?"""
        return self._kind(path) is not None

    def isfile(self, path: Path) -> bool:
        """Does it lead to a regular file?"""
        return self._kind(path) is FileKind.FILE

    def isdir(self, path: Path) -> bool:
        """Does it lead to a directory?"""
        return self._kind(path) is FileKind.DIRECTORY

    def islink(self, path: Path) -> bool:
        """Is it a symbolic link itself?"""
        return self._kind(path, follow=False) is FileKind.SYMLINK

    def _kind(self, path: Path, *, follow: bool = True) -> FileKind | None:
        try:
            return self._find(path, follow=follow).kind
        except Fs3Error as error:
            if error.code in (Code.NOT_FOUND, Code.NOT_DIRECTORY, Code.LOOP):
                return None
            raise

    def listdir(self, path: Path = "/") -> list[str]:
        """The names in a directory, in order."""
        return [dentry.name for dentry in self._entries(path, attributes=False)]

    def scandir(self, path: Path = "/") -> Iterator[DirEntry]:
        """The entries of a directory with their attributes, page by page."""
        text = plain(path)
        for dentry in self._entries(path, attributes=True):
            yield DirEntry(text, dentry)

    def _entries(self, path: Path, *, attributes: bool) -> Iterator[Dentry]:
        inode = self._find(path)
        if inode.kind is not FileKind.DIRECTORY:
            raise Fs3Error(Code.NOT_DIRECTORY, f"{plain(path)}: not a directory")
        after, more = "", True
        while more:
            page, more = self._context.metadata.readdir(inode.inode, after, attributes=attributes)
            yield from page
            after = page[-1].name if page else after

    def walk(self, top: Path = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        """``(directory, names of directories, names of others)``, from the top down.

        A caller may take names out of the list of directories to leave them alone. Symbolic links
        are not followed.
        """
        text = plain(top)
        directories: list[str] = []
        others: list[str] = []
        for dentry in self._entries(text, attributes=False):
            kept = directories if dentry.kind is FileKind.DIRECTORY else others
            kept.append(dentry.name)
        yield text, directories, others
        for name in directories:
            yield from self.walk(posixpath.join(text, name))

    def readlink(self, path: Path) -> str:
        """Where a symbolic link leads."""
        inode = self._find(path, follow=False)
        if inode.kind is not FileKind.SYMLINK:
            raise Fs3Error(Code.INVALID, f"{plain(path)}: not a symbolic link")
        return inode.symlink

    def statvfs(self) -> os.statvfs_result:
        """Space and inodes of the cluster; replicas count once."""
        space = self._context.metadata.statfs()
        block = 4096
        total, free = space.capacity_bytes // block, space.free_bytes // block
        inodes = space.inodes + INODES_FREE, INODES_FREE, INODES_FREE
        return os.statvfs_result((block, block, total, free, free, *inodes, 0, NAME_BYTES_MAX))

    # -- making, moving, removing ----------------------------------------------------------------

    def mkdir(self, path: Path, permissions: int = 0o755) -> None:
        """Make a directory. ``permissions`` are taken as they are: no umask is applied."""
        parent, name, inode = self._place(path)
        if inode is not None:
            raise Fs3Error(Code.EXISTS, f"{plain(path)}: it exists")
        self._context.metadata.mkdir(parent, name, permissions)

    def makedirs(self, path: Path, permissions: int = 0o755, exist_ok: bool = False) -> None:
        """Make a directory and those above it that are missing."""
        text = plain(path)
        if self.isdir(text):
            if not exist_ok:
                raise Fs3Error(Code.EXISTS, f"{text}: it exists")
            return
        above = posixpath.dirname(text)
        if above != "/":
            self.makedirs(above, permissions, exist_ok=True)
        try:
            self.mkdir(text, permissions)
        except Fs3Error as error:
            # Somebody else may have made it meanwhile.
            if error.code is not Code.EXISTS or not exist_ok or not self.isdir(text):
                raise

    def unlink(self, path: Path) -> None:
        """Remove a name that is not a directory's. Open files go on working."""
        parent, name, inode = self._place(path)
        if inode is None:
            raise Fs3Error(Code.NOT_FOUND, f"{plain(path)}: no such file or directory")
        self._context.metadata.unlink(parent, name)

    remove = unlink

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        parent, name, inode = self._place(path)
        if inode is None:
            raise Fs3Error(Code.NOT_FOUND, f"{plain(path)}: no such file or directory")
        self._context.metadata.rmdir(parent, name)

    def rmtree(self, path: Path) -> None:
        """Remove a directory and everything in it; symbolic links are removed, not followed."""
        top = self._find(path, follow=False)
        if top.kind is not FileKind.DIRECTORY:
            raise Fs3Error(Code.NOT_DIRECTORY, f"{plain(path)}: not a directory")
        self._empty(top.inode)
        if top.inode != ROOT_INODE:
            self.rmdir(path)

    def _empty(self, directory: InodeId) -> None:
        metadata = self._context.metadata
        while True:
            page, _ = metadata.readdir(directory)  # always the first: the ones before are gone
            if not page:
                return
            for dentry in page:
                if dentry.kind is FileKind.DIRECTORY:
                    self._empty(dentry.inode)
                    metadata.rmdir(directory, dentry.name)
                else:
                    metadata.unlink(directory, dentry.name)

    def rename(
        self, source: Path, target: Path, *, no_replace: bool = False, exchange: bool = False
    ) -> None:
        """Move a name in one step, replacing what is at ``target`` unless ``no_replace``.

        With ``exchange`` the two, which both must exist, are swapped.
        """
        parent, name, inode = self._place(source)
        if inode is None:
            raise Fs3Error(Code.NOT_FOUND, f"{plain(source)}: no such file or directory")
        new_parent, new_name, _ = self._place(target)
        self._context.metadata.rename(
            parent, name, new_parent, new_name, no_replace=no_replace, exchange=exchange
        )

    replace = rename

    def link(self, source: Path, target: Path) -> None:
        """Give the file at ``source`` another name."""
        inode = self._find(source, follow=False)
        parent, name, _ = self._place(target)
        self._context.metadata.link(inode.inode, parent, name)

    def symlink(self, target: str, path: Path) -> None:
        """Make a symbolic link at ``path`` that says ``target``."""
        parent, name, _ = self._place(path)
        self._context.metadata.symlink(parent, name, target)

    # -- attributes ------------------------------------------------------------------------------

    def _change(self, path: Path, changes: SetAttributes, *, follow: bool = True) -> None:
        inode = self._find(path, follow=follow)
        opened = self._context.files.find(inode.inode)
        if opened is not None:
            opened.change(changes)
        else:
            self._context.metadata.setattr(inode.inode, changes)

    def chmod(self, path: Path, permissions: int) -> None:
        """Set the low 12 bits of the mode."""
        self._change(path, SetAttributes(permissions=stat.S_IMODE(permissions)))

    def chown(
        self, path: Path, uid: int = -1, gid: int = -1, *, follow_symlinks: bool = True
    ) -> None:
        """Set owner and group; -1 leaves one alone."""
        changes = SetAttributes(uid=None if uid < 0 else uid, gid=None if gid < 0 else gid)
        self._change(path, changes, follow=follow_symlinks)

    def utime(
        self,
        path: Path,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """Set access and modification time: seconds, or nanoseconds, or (neither) now."""
        if times is not None and ns is not None:
            raise Fs3Error(Code.INVALID, "times and ns are both given; one of them is allowed")
        if times is not None:
            ns = (int(times[0] * 1e9), int(times[1] * 1e9))
        if ns is None:
            changes = SetAttributes(atime_now=True, mtime_now=True)
        else:
            changes = SetAttributes(atime_ns=ns[0], mtime_ns=ns[1])
        self._change(path, changes, follow=follow_symlinks)

    def truncate(self, path: Path, length: int) -> None:
        """Set a file's length in bytes: cut, or extend with zeros."""
        if length < 0:
            raise Fs3Error(Code.INVALID, f"length {length} is not allowed: 0 or more is")
        self._change(path, SetAttributes(length_bytes=length))

    def getxattr(self, path: Path, name: str) -> bytes:
        """An extended attribute; Fs3Error NO_ATTRIBUTE (ENODATA) if there is none."""
        return self._context.metadata.getxattr(self._find(path).inode, name)

    def setxattr(
        self, path: Path, name: str, value: bytes, *, create: bool = False, replace: bool = False
    ) -> None:
        """Set one; ``create``: it must not exist yet, ``replace``: it must."""
        inode = self._find(path).inode
        self._context.metadata.setxattr(inode, name, value, create=create, replace=replace)

    def listxattr(self, path: Path) -> list[str]:
        """The names of all."""
        return self._context.metadata.listxattrs(self._find(path).inode)

    def removexattr(self, path: Path, name: str) -> None:
        """Remove one."""
        self._context.metadata.removexattr(self._find(path).inode, name)

    def set_layout(
        self, path: Path, *, chunk_bytes: int | None = None, stripe: int | None = None
    ) -> None:
        """How files that are made in a directory from now on are spread.

        ``chunk_bytes``: a power of two from 64 KiB to 64 MiB; ``stripe``: over how many chains.
        """
        inode = self._find(path)
        old = inode.layout
        layout = Layout(
            chunk_bytes=old.chunk_bytes if chunk_bytes is None else chunk_bytes,
            stripe=old.stripe if stripe is None else stripe,
            chain_table=old.chain_table,
        )
        # On the wire 0 means "as it is", and there are no negative numbers.
        wrong = check_chunk_bytes(layout.chunk_bytes)
        if wrong is None and not 1 <= layout.stripe < 1 << 32:
            wrong = f"stripe {layout.stripe} is not allowed: 1 or more chains are"
        if wrong is not None:
            raise Fs3Error(Code.INVALID, wrong)
        self._context.metadata.set_layout(inode.inode, layout)


def _named(error: Fs3Error, path: str) -> Fs3Error:
    """The same failure, with the path that it is about."""
    return error if path in error.detail else Fs3Error(error.code, f"{path}: {error.detail}")
