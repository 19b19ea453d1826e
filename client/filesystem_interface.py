"""What a mount calls: the one interface between every FUSE front and the file system behind it.

A front (``fuse/front.py``, ``fuse/fusepy_front.py``) turns the kernel's requests into calls of one
:class:`FileSystem` and its answers into replies; it decides nothing about files. An implementation
decides everything about files and knows nothing of FUSE.

Rules that hold for every method:

- **Threads.** Any method may be called from several threads at once, also for the same handle. The
  kernel serialises writers of one inode itself, except for handles opened with ``direct_io``.
- **Blocking.** A call may block; it holds one of the front's few worker threads meanwhile. Only
  ``setlk(wait=True)`` may block without limit: the front gives it a thread of its own.
- **Failure.** Raise ``fs3.errors.Fs3Error``: the process that asked sees its errno. Whatever else
  is raised is logged as a bug and becomes EIO.
- **Permissions are the kernel's.** The mount says ``default_permissions``: the kernel has checked
  mode bits with the caller's real groups before it asks. Do not check again; ``credentials`` say
  who owns what is made. They carry no supplementary groups, because FUSE does not send them. The
  file system's part is: a new entry in a set-gid directory takes the directory's gid, and a new
  directory there the set-gid bit; :func:`permissions_without_privileges` where a method says so;
  the caller's uid and CAP_FSETID rules of chown and chmod are done by the kernel before.
- **Names** are ``str`` as ``os.fsdecode`` makes them (surrogateescape): never empty, never "." or
  "..", without "/" and NUL. Nothing else has been checked, their length neither. The umask has
  been applied to permissions already.
- **Inode ids** are the kernel's node ids. They are never reused, so generations are always 0.

**Look-up counts.** The kernel holds a reference on an inode for every :class:`Entry` it is given
(by lookup, create, mkdir, mknod, symlink, link, and a listing with ``plus``), and returns them in
bulk with ``forget``. While the count is above 0, or a handle is open, the inode must answer, also
after its last name is gone. The root is referenced for ever; ``forget`` may name it.

**Timeouts.** The kernel may answer look-ups and stat by itself for ``entry_timeout_s`` and
``attr_timeout_s``; what must be seen earlier is told through :class:`Notifier`. A negative entry
(``Entry.inode is None``) with a positive timeout lets it also remember that a name is missing.

**Memory.** What ``read`` returns must stay unchanged until the same thread calls the file system
again: the reply has left by then, so one pooled buffer per thread is enough. The data given to
``write`` is a view of the front's buffer and is valid only during the call.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple, Protocol

from fs3.core.types import InodeId
from fs3.types import Credentials, Dentry, Inode, SetAttributes, StatFs

LOCK_END_MAX = (1 << 63) - 1
"""``FileLock.end`` of a lock that reaches to the end of the file, however long it gets."""

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes; a memoryview has format "B"."""


class Entry(NamedTuple):
    """A name's inode and how long the kernel may believe it; counts as one look-up of the inode."""

    inode: Inode | None  # None: there is no such name
    entry_timeout_s: float
    attr_timeout_s: float


MISSING = Entry(None, 0.0, 0.0)
"""No such name, and the kernel shall ask again next time."""


class Attributes(NamedTuple):
    """An inode's attributes and how long the kernel may believe them."""

    inode: Inode
    attr_timeout_s: float


class OpenFile(NamedTuple):
    """An open file or directory.

    ``keep_cache``: the kernel may keep pages it has for this inode (for a directory: its listing),
    since its data version has not changed since the last open on this mount. False drops them: that
    is close-to-open. ``direct_io``: no page cache at all; reads and writes arrive as the program
    made them (split at 1 MiB), also several at once.
    """

    handle: int  # any unsigned 64-bit number; the kernel gives it back in every call
    keep_cache: bool = False
    direct_io: bool = False


class Listed(NamedTuple):
    """One line of a listing."""

    cookie: int  # 1 or more; ``readdir(handle, cookie)`` continues behind this line
    dentry: Dentry
    entry: Entry | None  # only of a listing with ``plus``; None there: the kernel looks it up


class Controlled(NamedTuple):
    """What came of an ioctl."""

    answer: bytes = b""
    stale: bool = False  # the kernel's pages and attributes of the inode are old


class Whence(IntEnum):
    """What lseek looks for."""

    DATA = 3
    HOLE = 4


class RenameFlags(IntFlag):
    """As of renameat2(2)."""

    NONE = 0
    NOREPLACE = 1  # EXISTS if the new name is taken
    EXCHANGE = 2  # swap the two, which both must exist


class XattrFlags(IntFlag):
    """As of setxattr(2)."""

    NONE = 0
    CREATE = 1  # EXISTS if it is there
    REPLACE = 2  # NO_ATTRIBUTE if it is not


class FallocateFlags(IntFlag):
    """As of fallocate(2); a file system refuses with UNSUPPORTED what it cannot do."""

    NONE = 0
    KEEP_SIZE = 1
    PUNCH_HOLE = 2  # always with KEEP_SIZE
    ZERO_RANGE = 16


class LockKind(IntEnum):
    """F_RDLCK, F_WRLCK and F_UNLCK of fcntl(2); LOCK_SH, LOCK_EX and LOCK_UN of flock(2)."""

    READ = 0
    WRITE = 1
    UNLOCK = 2


class FileLock(NamedTuple):
    """A byte-range lock; flock(2) locks cover the whole range."""

    kind: LockKind
    start: int
    end: int  # the last byte locked, inclusive
    pid: int  # of the process that asked; for F_GETLK's answer


class Cancellation:
    """Says that the caller of a blocking call has given up; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []
        self.cancelled = False

    def cancel(self) -> None:
        """Set :attr:`cancelled`, then run the callbacks, once."""
        with self._lock:
            self.cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Run ``callback`` when cancelled, at once if that has happened; it must not block."""
        with self._lock:
            if not self.cancelled:
                self._callbacks.append(callback)
                return
        callback()


class Notifier(Protocol):
    """How a file system tells the kernel that what it remembers is old.

    Both methods wait for locks that the kernel holds while it asks the file system: never call them
    from inside a :class:`FileSystem` method, nor with a lock held that such a method takes. An
    inode or a name that the kernel does not know is no error.
    """

    def invalidate_inode(self, inode: InodeId, offset: int = 0, length: int = 0) -> None:
        """Forget the attributes and the pages of a range.

        Length 0 means to the end, a negative offset no pages at all.
        """

    def invalidate_entry(self, parent: InodeId, name: str) -> None:
        """Forget what ``name`` stands for, also that it is missing."""


def permissions_without_privileges(permissions: int) -> int:
    """The permissions after a write by someone unprivileged: no set-uid, no effective set-gid."""
    permissions &= ~stat.S_ISUID
    if permissions & stat.S_IXGRP:
        permissions &= ~stat.S_ISGID
    return permissions


class FileSystem(Protocol):
    """Everything a mount can ask. The module's docstring has the rules."""

    # -- life ------------------------------------------------------------------------------------

    def attach(self, notifier: Notifier) -> None:
        """The mount is about to serve; called once, first. It must not use the mount itself.

        If it raises, the mount is undone.
        """

    def detach(self) -> None:
        """The mount is gone and no call is running; called once, last. Handles may be left open."""

    # -- names -----------------------------------------------------------------------------------

    def lookup(self, parent: InodeId, name: str, credentials: Credentials) -> Entry:
        """What ``name`` stands for. A missing name is an Entry without inode, not an error."""
        ...

    def forget(self, inode: InodeId, lookups: int) -> None:
        """The kernel has dropped so many of its references. Must not fail."""

    def mkdir(
        self, parent: InodeId, name: str, permissions: int, credentials: Credentials
    ) -> Entry:
        """Make a directory; EXISTS if the name is taken."""
        ...

    def mknod(
        self, parent: InodeId, name: str, mode: int, device: int, credentials: Credentials
    ) -> Entry:
        """Make a file, FIFO, socket or device; ``mode`` is a whole st_mode."""
        ...

    def symlink(self, parent: InodeId, name: str, target: str, credentials: Credentials) -> Entry:
        """Make a symbolic link. Its target never changes: the kernel caches it."""
        ...

    def readlink(self, inode: InodeId) -> str:
        """The target of a symbolic link."""
        ...

    def link(self, inode: InodeId, parent: InodeId, name: str, credentials: Credentials) -> Entry:
        """Give a non-directory another name; the entry carries the new link count."""
        ...

    def unlink(self, parent: InodeId, name: str, credentials: Credentials) -> None:
        """Remove a non-directory's name. Open handles go on working."""

    def rmdir(self, parent: InodeId, name: str, credentials: Credentials) -> None:
        """Remove an empty directory."""

    def rename(
        self,
        parent: InodeId,
        name: str,
        new_parent: InodeId,
        new_name: str,
        flags: RenameFlags,
        credentials: Credentials,
    ) -> None:
        """Move a name, replacing what is there (rename(2)), or as ``flags`` say, in one step."""

    # -- attributes ------------------------------------------------------------------------------

    def getattr(self, inode: InodeId, handle: int | None) -> Attributes:
        """The attributes; through a handle they include what was written through it."""
        ...

    def setattr(
        self,
        inode: InodeId,
        changes: SetAttributes,
        handle: int | None,
        clear_privileges: bool,
        credentials: Credentials,
    ) -> Attributes:
        """Change attributes; another length than before truncates, or extends with zeros.

        With ``clear_privileges`` (an unprivileged truncate), and whenever uid or gid change on a
        non-directory, the permissions become :func:`permissions_without_privileges` of themselves,
        unless ``changes`` sets permissions too.
        """
        ...

    def statfs(self) -> StatFs:
        """Space and inodes."""
        ...

    def setxattr(self, inode: InodeId, name: str, value: bytes, flags: XattrFlags) -> None:
        """Set one extended attribute. Names of "system." (ACLs) never get here."""

    def getxattr(self, inode: InodeId, name: str) -> bytes:
        """Its value; NO_ATTRIBUTE if there is none."""
        ...

    def listxattr(self, inode: InodeId) -> Sequence[str]:
        """The names of all."""
        ...

    def removexattr(self, inode: InodeId, name: str) -> None:
        """Remove one; NO_ATTRIBUTE if there is none."""

    # -- open files ------------------------------------------------------------------------------

    def open(
        self, inode: InodeId, flags: int, clear_privileges: bool, credentials: Credentials
    ) -> OpenFile:
        """Open a file. ``flags`` are open(2)'s, O_TRUNC included: the file is then emptied here.

        What another mount closed or fsynced before this call began must be seen through the handle.
        ``clear_privileges`` goes with O_TRUNC and means the same as in setattr.
        """
        ...

    def create(
        self, parent: InodeId, name: str, permissions: int, flags: int, credentials: Credentials
    ) -> tuple[Entry, OpenFile]:
        """Open ``name``, making a file if it is missing; with O_EXCL in ``flags`` EXISTS if not."""
        ...

    def read(self, handle: int, offset: int, length: int) -> Buffer | list[Buffer]:
        """The bytes, scattered if it likes; fewer than asked only at the end of the file."""
        ...

    def write(
        self, handle: int, offset: int, data: memoryview, append: bool, clear_privileges: bool
    ) -> int:
        """Write all of ``data`` and return its length, or fail.

        ``append``: the file is in O_APPEND mode now, and the offset is only the kernel's guess: the
        data goes to the end of the file, wherever other mounts have moved it.
        """
        ...

    def flush(self, handle: int, owner: int) -> None:
        """A descriptor was closed: make its data visible to all and report what went wrong.

        Comes once per close(2), so possibly several times for one handle. The POSIX locks that
        ``owner`` holds on the inode go away, as fcntl(2) says.
        """

    def release(self, handle: int, flock_owner: int | None) -> None:
        """The last descriptor is gone: free the handle and the flock of ``flock_owner``."""

    def fsync(self, handle: int, data_only: bool) -> None:
        """Put the data, and unless ``data_only`` the attributes, on stable storage."""

    def lseek(self, handle: int, offset: int, whence: Whence) -> int | None:
        """Where data or a hole is next, at or after ``offset``; None: nowhere (becomes ENXIO).

        The end of the file counts as a hole. At or behind the end the answer is None.
        """
        ...

    def fallocate(self, handle: int, offset: int, length: int, flags: FallocateFlags) -> None:
        """Reserve, punch or zero a range."""

    def copy_file_range(
        self, source: int, source_offset: int, target: int, target_offset: int, length: int
    ) -> int:
        """Copy between two open files, without the data passing the kernel; how many bytes it was.

        0 at the end of the source. UNSUPPORTED lets the kernel copy by reading and writing.
        """
        ...

    def control(self, handle: int, command: int, argument: bytes) -> Controlled | None:
        """An ioctl on an open file; None if there is no such command."""
        ...

    # -- directories -----------------------------------------------------------------------------

    def opendir(self, inode: InodeId, credentials: Credentials) -> OpenFile:
        """Open a directory for reading."""
        ...

    def readdir(self, handle: int, after: int, plus: bool) -> Iterator[Listed]:
        """The lines behind cookie ``after`` (0: from the start), without "." and "..".

        Every name that stays in the directory from opendir to the end is listed exactly once. The
        front takes lines until a reply is full and drops the iterator; an entry it took but could
        not send is given back with ``forget``. A cookie stays good until ``releasedir``.
        """
        ...

    def releasedir(self, handle: int) -> None:
        """Free the handle."""

    def fsyncdir(self, handle: int, data_only: bool) -> None:
        """Put the directory's entries on stable storage."""

    # -- locks -----------------------------------------------------------------------------------

    def getlk(self, inode: InodeId, owner: int, lock: FileLock) -> FileLock | None:
        """A POSIX lock of another owner that is in the way of ``lock``, or None."""
        ...

    def setlk(
        self,
        inode: InodeId,
        owner: int,
        lock: FileLock,
        flock: bool,
        wait: Cancellation | None,
    ) -> bool:
        """Take, change or drop a lock; False if another owner's is in the way.

        With ``wait`` it blocks until it has the lock, or until ``wait`` is cancelled: then False,
        and nothing is held that was not before. ``flock`` locks and POSIX locks do not see each
        other. ``owner`` is the kernel's number, unique on this mount only.
        """
        ...
