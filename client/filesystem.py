"""The file system behind a mount: ``FileSystem`` on the native client, for every front.

**Caching is close-to-open.** Opening asks the metaserver every time, and lets the kernel keep its
pages only if the data version is the one that this mount knows: as it was at the last open or
release here, moved on by nothing but our own changes. Names of files are never cached by the
kernel (a look-up each time: another mount may have put another file in their place), those of
directories for a second, as are attributes; attributes of a file with unsettled writes are asked
each time, and answered here. Missing names are not cached. :class:`CacheTimes` relaxes it.

**Writes** are gathered per inode and sent in chunk-sized pieces (open_inodes.py); flush, that is
close(2), sends them and settles the length. Reads through this mount see them at once. Memory for
gathered writes, read-ahead and replies is bounded.

**Permissions** were checked by the kernel, so the metaserver is asked as root, except where
something is made: that is asked in the name of its owner-to-be. The kernel does not tell that
user's supplementary groups; if the directory's own group is what lets him write, he is in it.

**Locks** (fcntl, flock) hold within this mount; other mounts do not see them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import Credentials, Dentry, FileKind, Inode, SetAttributes, StatFs

from .context import ClientContext
from .filesystem_interface import (
    Attributes,
    Entry,
    Listed,
    Notifier,
    OpenFile,
    RenameFlags,
    XattrFlags,
    permissions_without_privileges,
)
from .mount_files import MountedFiles, OpenMode
from .mount_listing import Listing
from .mount_nodes import Nodes
from .mount_protocol import MOUNT_ATTRIBUTE, describe

ROOT = Credentials(uid=0, gid=0)
_GROUP_WRITE_SEARCH = 0o030
_CAPABILITY = "security.capability"
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTimes:
    """How long the kernel may answer by itself, in seconds."""

    file_entry_s: float = 0.0  # above 0 an open may reach a file that was replaced meanwhile
    directory_entry_s: float = 1.0
    attributes_s: float = 1.0
    missing_s: float = 0.0


class MountedFileSystem(MountedFiles):
    """See the module; the methods are described in filesystem_interface.py."""

    def __init__(
        self, context: ClientContext, times: CacheTimes | None = None, *, read_only: bool = False
    ) -> None:
        """``context`` belongs to the mount from now on, and is closed by :meth:`detach`."""
        super().__init__()
        self._context = context
        self._times = times or CacheTimes()
        self._read_only = read_only
        self._nodes = Nodes()
        self._listings: dict[int, Listing] = {}
        self.notifier: Notifier | None = None
        context.metadata.who = ROOT

    def attach(self, notifier: Notifier) -> None:
        """Nothing to prepare: connections are made when they are needed."""
        self.notifier = notifier

    def detach(self) -> None:
        """Write what is left, end every session, disconnect."""
        with contextlib.ExitStack() as stack:  # each is done whatever becomes of the others
            stack.callback(self._context.close)
            for handle in list(self._files):
                stack.callback(self.release, handle, None)

    # -- answers ---------------------------------------------------------------------------------

    def _entry(self, inode: Inode) -> Entry:
        """Counts as a look-up."""
        self._nodes.learn(inode, lookups=1)
        opened = self._context.files.find(inode.inode)
        if opened is not None:
            opened.learn(inode)
        is_directory = inode.kind is FileKind.DIRECTORY
        entry_s = self._times.directory_entry_s if is_directory else self._times.file_entry_s
        attributes = self._attributes(inode)
        return Entry(attributes.inode, entry_s, attributes.attr_timeout_s)

    def _attributes(self, inode: Inode) -> Attributes:
        """With what was written here and not told yet; the kernel asks again while there is any."""
        opened = self._context.files.find(inode.inode)
        if opened is None:
            return Attributes(inode, self._times.attributes_s)
        return Attributes(opened.view(), 0.0 if opened.dirty else self._times.attributes_s)

    def _inode(self, inode: InodeId) -> Inode:
        """Attributes that are a second old at most."""
        fresh = self._nodes.fresh(inode, self._times.attributes_s)
        if fresh is not None:
            return fresh
        found = self._context.metadata.getattr(inode)
        self._nodes.learn(found)
        opened = self._context.files.find(inode)
        if opened is not None:
            opened.learn(found)
        return found

    def _check_writable(self) -> None:
        if self._read_only:
            raise Fs3Error(Code.READ_ONLY, "the file system is mounted read-only")

    # -- names -----------------------------------------------------------------------------------

    def lookup(self, parent: InodeId, name: str, credentials: Credentials) -> Entry:
        """Always asked of the metaserver."""
        try:
            return self._entry(self._context.metadata.lookup(parent, name))
        except Fs3Error as error:
            if error.code is not Code.NOT_FOUND:
                raise
            return Entry(None, self._times.missing_s, 0.0)

    def forget(self, inode: InodeId, lookups: int) -> None:
        """The kernel dropped references."""
        self._nodes.forget(inode, lookups)

    def _make(
        self, parent: InodeId, credentials: Credentials, make: Callable[[Credentials], _Made]
    ) -> _Made:
        """Make something in ``parent`` in the name of its owner-to-be."""
        self._check_writable()
        try:
            return make(self._creator(self._inode(parent), credentials))
        except Fs3Error as error:
            if error.code is not Code.ACCESS:
                raise
        # The directory's permissions may have changed in the last second.
        directory = self._context.metadata.getattr(parent)
        self._nodes.learn(directory)
        return make(self._creator(directory, credentials))

    def _creator(self, directory: Inode, credentials: Credentials) -> Credentials:
        by_group = directory.permissions & _GROUP_WRITE_SEARCH == _GROUP_WRITE_SEARCH
        if not by_group or credentials.uid in (0, directory.uid):
            return credentials
        return replace(credentials, gids=(*credentials.gids, directory.gid))

    def mkdir(
        self, parent: InodeId, name: str, permissions: int, credentials: Credentials
    ) -> Entry:
        """See ``FileSystem``."""
        metadata = self._context.metadata
        return self._entry(
            self._make(
                parent, credentials, lambda who: metadata.mkdir(parent, name, permissions, who)
            )
        )

    def mknod(
        self, parent: InodeId, name: str, mode: int, device: int, credentials: Credentials
    ) -> Entry:
        """See ``FileSystem``."""
        metadata = self._context.metadata
        return self._entry(
            self._make(
                parent, credentials, lambda who: metadata.mknod(parent, name, mode, device, who)
            )
        )

    def symlink(self, parent: InodeId, name: str, target: str, credentials: Credentials) -> Entry:
        """See ``FileSystem``."""
        metadata = self._context.metadata
        return self._entry(
            self._make(parent, credentials, lambda who: metadata.symlink(parent, name, target, who))
        )

    def create(
        self, parent: InodeId, name: str, permissions: int, flags: int, credentials: Credentials
    ) -> tuple[Entry, OpenFile]:
        """See ``FileSystem``."""
        mode = OpenMode(flags)
        session = self._context.new_session()
        inode, _ = self._make(
            parent,
            credentials,
            lambda who: self._context.metadata.create(
                parent,
                name,
                permissions,
                exclusive=mode.exclusive,
                truncate=mode.truncate,
                read=mode.read,
                write=mode.write,
                session=session,
                who=who,
            ),
        )
        entry = self._entry(inode)
        return entry, self._opened(inode, session, mode)

    def readlink(self, inode: InodeId) -> str:
        """A target never changes: what is remembered is good however old it is."""
        node = self._nodes.find(inode)
        return node.inode.symlink if node is not None else self._inode(inode).symlink

    def link(self, inode: InodeId, parent: InodeId, name: str, credentials: Credentials) -> Entry:
        """See ``FileSystem``."""
        self._check_writable()
        linked = self._context.metadata.link(inode, parent, name)
        self._nodes.names_changed()
        return self._entry(linked)

    def unlink(self, parent: InodeId, name: str, credentials: Credentials) -> None:
        """Sessions keep a file that is open, here or elsewhere."""
        self._check_writable()
        self._context.metadata.unlink(parent, name)
        self._nodes.names_changed()

    def rmdir(self, parent: InodeId, name: str, credentials: Credentials) -> None:
        """See ``FileSystem``."""
        self._check_writable()
        self._context.metadata.rmdir(parent, name)
        self._nodes.names_changed()

    def rename(
        self,
        parent: InodeId,
        name: str,
        new_parent: InodeId,
        new_name: str,
        flags: RenameFlags,
        credentials: Credentials,
    ) -> None:
        """See ``FileSystem``."""
        self._check_writable()
        self._context.metadata.rename(
            parent,
            name,
            new_parent,
            new_name,
            no_replace=bool(flags & RenameFlags.NOREPLACE),
            exchange=bool(flags & RenameFlags.EXCHANGE),
        )
        self._nodes.names_changed()

    # -- attributes ------------------------------------------------------------------------------

    def getattr(self, inode: InodeId, handle: int | None) -> Attributes:
        """See ``FileSystem``."""
        return self._attributes(self._inode(inode))

    def setattr(
        self,
        inode: InodeId,
        changes: SetAttributes,
        handle: int | None,
        clear_privileges: bool,
        credentials: Credentials,
    ) -> Attributes:
        """What was written here is settled first, so that the change comes after it."""
        self._check_writable()
        owner_changes = changes.uid is not None or changes.gid is not None
        if changes.permissions is None and (clear_privileges or owner_changes):
            old = self._inode(inode)
            permissions = permissions_without_privileges(old.permissions)
            if old.kind is not FileKind.DIRECTORY and permissions != old.permissions:
                changes = replace(changes, permissions=permissions)
        opened = self._context.files.find(inode)
        if opened is not None:
            changed = opened.change(changes)
        else:
            changed = self._context.metadata.setattr(inode, changes)
        self._nodes.learn(changed)
        return self._attributes(changed)

    def statfs(self) -> StatFs:
        """See ``FileSystem``."""
        return self._context.metadata.statfs()

    def setxattr(self, inode: InodeId, name: str, value: bytes, flags: XattrFlags) -> None:
        """See ``FileSystem``."""
        self._check_writable()
        if name == MOUNT_ATTRIBUTE:
            raise Fs3Error(Code.PERMISSION, f"{name} is the mount's own: it cannot be set")
        node = self._nodes.find(inode)
        if node is not None:
            node.no_capability_s = 0.0
        self._context.metadata.setxattr(
            inode,
            name,
            value,
            create=bool(flags & XattrFlags.CREATE),
            replace=bool(flags & XattrFlags.REPLACE),
        )

    def getxattr(self, inode: InodeId, name: str) -> bytes:
        """The kernel asks for the file's capabilities before every write: "none" is remembered."""
        if name == MOUNT_ATTRIBUTE:
            return describe(self._context.addresses, self._context.cluster_id)
        node = self._nodes.find(inode) if name == _CAPABILITY else None
        now_s = time.monotonic()
        if node is not None and now_s - node.no_capability_s < self._times.attributes_s:
            raise Fs3Error(Code.NO_ATTRIBUTE, f"inode {inode} has no attribute {name!r}")
        try:
            return self._context.metadata.getxattr(inode, name)
        except Fs3Error as error:
            if error.code is Code.NO_ATTRIBUTE and node is not None:
                node.no_capability_s = now_s
            raise

    def listxattr(self, inode: InodeId) -> Sequence[str]:
        """See ``FileSystem``."""
        return self._context.metadata.listxattrs(inode)

    def removexattr(self, inode: InodeId, name: str) -> None:
        """See ``FileSystem``."""
        self._check_writable()
        self._context.metadata.removexattr(inode, name)

    # -- open files and directories --------------------------------------------------------------

    def open(
        self, inode: InodeId, flags: int, clear_privileges: bool, credentials: Credentials
    ) -> OpenFile:
        """See ``FileSystem``."""
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self._check_writable()
        return super().open(inode, flags, clear_privileges, credentials)

    def opendir(self, inode: InodeId, credentials: Credentials) -> OpenFile:
        """See ``FileSystem``."""
        number = next(self._numbers)
        self._listings[number] = Listing(inode, self._context.metadata)
        return OpenFile(number)

    def readdir(self, handle: int, after: int, plus: bool) -> Iterator[Listed]:
        """Directories come with their entry; of files only if the kernel may remember it."""
        listing = self._listings.get(handle)
        if listing is None:
            raise Fs3Error(Code.STALE_HANDLE, f"directory handle {handle} is not open")
        for cookie, dentry in listing.lines(after, attributes=plus):
            yield Listed(cookie, dentry, self._listed(dentry) if plus else None)

    def _listed(self, dentry: Dentry) -> Entry | None:
        inode = dentry.attributes
        if inode is None:
            return None
        if inode.kind is not FileKind.DIRECTORY and not self._times.file_entry_s:
            return None
        return self._entry(inode)

    def releasedir(self, handle: int) -> None:
        """See ``FileSystem``."""
        self._listings.pop(handle, None)

    def fsyncdir(self, handle: int, data_only: bool) -> None:
        """The metaserver stores every change before it answers."""
