"""Files that rings read and write: descriptors on a mount, and files of a native client.

A descriptor stands for the file that the process behind the mount has open. What a ring needs of it
comes from there: which cluster it is, which inode, how long it is; and what a ring wrote is told
there (mount_protocol.py). So a descriptor carries the right to write, as it always does, and its
fsync and close make durable and visible what a ring wrote, too.

Lengths are those of the opening, plus what was written since through the ring. Whenever a read
meets an end or a hole the length is asked for again, so a file that others make longer is read as
far as its mount knows.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
import threading
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fs3.client import mount_protocol
from fs3.client.api import Client, connect
from fs3.client.context import ClientContext
from fs3.client.file import File
from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import FileKind, Inode

Column = NDArray[np.int64]
_NO_SUCH_IOCTL = frozenset((errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP))


class RingFile(Protocol):
    """What a ring asks of a file. All but ``close`` is called by the ring's thread."""

    name: str
    context: ClientContext
    readable: bool
    writable: bool

    @property
    def inode(self) -> Inode:
        """For its id and its layout."""
        ...

    @property
    def length(self) -> int:
        """Bytes, as last known."""
        ...

    def refresh(self) -> int:
        """Bytes, as known to whoever has the file open."""
        ...

    def before_reads(self, offsets: Column, lengths: Column) -> None:
        """What somebody holds back of these ranges is sent."""

    def before_writes(self) -> int:
        """The same for all of the file; returns what :meth:`wrote` must be given."""
        ...

    def wrote(self, end: int, chunks: Column, version: int) -> None:
        """These chunks were written, and all bytes before ``end`` (0: within what there was)."""

    def close(self) -> None:
        """Nothing is under way any more."""


class MountedFile:
    """A descriptor, which stays the caller's and must stay open."""

    def __init__(self, fd: int) -> None:
        """Fs3Error INVALID or UNSUPPORTED if it cannot be."""
        self.name = f"descriptor {fd}"
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        access = flags & os.O_ACCMODE
        self.readable = access in (os.O_RDONLY, os.O_RDWR)
        self.writable = access in (os.O_WRONLY, os.O_RDWR)
        if self.writable and flags & os.O_APPEND:
            raise Fs3Error(Code.INVALID, f"{self.name} was opened with O_APPEND: not for rings")
        self._fd = fd
        attached = self._attach()
        self.context = _client_of(attached.description).context
        self._identity = self._stat()[:2]
        self._length = attached.length_bytes
        self._version = attached.trimmed_version
        self.inode = self.context.metadata.getattr(InodeId(attached.inode))

    def _attach(self) -> mount_protocol.Attached:
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise Fs3Error(Code.INVALID, f"{self.name} is not a regular file")
        answer = mount_protocol.answer_room()
        try:
            fcntl.ioctl(self._fd, mount_protocol.ATTACH, answer, True)
        except OSError as error:
            if error.errno not in _NO_SUCH_IOCTL:
                raise
            raise self._foreign() from error
        return mount_protocol.Attached.decode(answer)

    def _foreign(self) -> Fs3Error:
        try:
            os.getxattr(self._fd, mount_protocol.MOUNT_ATTRIBUTE)
        except OSError:
            return Fs3Error(Code.INVALID, f"{self.name} is not on an fs3 mount")
        return Fs3Error(
            Code.UNSUPPORTED,
            f"{self.name}: its mount has the front fusepy, which serves no rings; direct does",
        )

    def _stat(self) -> tuple[int, int, int]:
        found = os.fstat(self._fd)
        return found.st_dev, found.st_ino, found.st_size

    @property
    def length(self) -> int:
        """As last known."""
        return self._length

    def refresh(self) -> int:
        """As the mount knows it."""
        *identity, length = self._stat()
        if tuple(identity) != self._identity:
            raise Fs3Error(Code.STALE_HANDLE, f"{self.name} is another file's since")
        self._length = length
        return length

    def before_reads(self, offsets: Column, lengths: Column) -> None:
        """An attached mount holds nothing back."""

    def before_writes(self) -> int:
        """An attached mount holds nothing back."""
        return self._version

    def wrote(self, end: int, chunks: Column, version: int) -> None:
        """Tells the mount."""
        for runs in _runs(chunks):
            data = mount_protocol.Wrote(self.inode.inode, end, version, runs).encode()
            fcntl.ioctl(self._fd, mount_protocol.WROTE, data, True)
            self._version = mount_protocol.decode_trimmed(data)
        self._length = max(self._length, end)

    def close(self) -> None:
        """Tells the mount, if the descriptor is still what it was."""
        try:
            if self._stat()[:2] == self._identity:
                fcntl.ioctl(self._fd, mount_protocol.DETACH)
        except OSError:
            pass  # closed, which detaches too


class ClientFile:
    """A file that a native client has open."""

    def __init__(self, file: File) -> None:
        self.name = str(file.name)
        self.context = file.context
        self.readable = file.readable()
        self.writable = file.writable()
        if self.writable and file.mode.startswith("a"):
            raise Fs3Error(Code.INVALID, f'{self.name} was opened in mode "a": not for rings')
        self._opened = file.handle.opened

    @property
    def inode(self) -> Inode:
        """As this client sees it."""
        return self._opened.view()

    @property
    def length(self) -> int:
        """With everything that this client wrote."""
        return self._opened.length

    def refresh(self) -> int:
        """The same: close-to-open."""
        return self._opened.length

    def before_reads(self, offsets: Column, lengths: Column) -> None:
        """Send what was gathered of these ranges."""
        if self._opened.dirty:
            for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
                self._opened.prepare_read(offset, length)

    def before_writes(self) -> int:
        """Send what was gathered, so that it does not come later."""
        version = self._opened.trimmed_version
        self._opened.send_gathered()
        return version

    def wrote(self, end: int, chunks: Column, version: int) -> None:
        """As after a batch: flush, fsync and close of the file settle it."""
        self._opened.wrote_elsewhere(end, set(chunks.tolist()), version)

    def close(self) -> None:
        """The file stays its owner's."""


class Registered:
    """One registration; ends when it is over and nothing is under way on it."""

    def __init__(self, file: RingFile) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._users = 1  # the registration itself

    def take(self) -> Registered:
        """I/O begins."""
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        """I/O, or the registration, is over."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self.file.close()


_registered: dict[int, Registered] = {}
_numbers = itertools.count(1)
_clients: dict[tuple[str, ...], Client] = {}  # of mounts, by cluster; they end with the process


def register_fd(file: int | File | Any) -> int:  # noqa: ANN401 - anything with fileno()
    """Make an open file known to rings; returns the handle that they want.

    ``file``: a descriptor on an fs3 mount, anything with such a ``fileno()``, or a raw file of a
    native client (``open_file``, or ``open(..., buffering=0)``). It must stay open until
    :func:`deregister_fd`. Not for appending (O_APPEND): a ring writes where it is told.

    Raises Fs3Error: INVALID for a file that is not fs3's, or not regular.
    """
    made: RingFile
    if isinstance(file, File):
        made = ClientFile(file)
    else:
        made = MountedFile(file if isinstance(file, int) else file.fileno())
    if made.inode.kind is not FileKind.FILE:
        raise Fs3Error(Code.INVALID, f"{made.name} is not a regular file")
    number = next(_numbers)
    _registered[number] = Registered(made)
    return number


def deregister_fd(handle: int) -> None:
    """The end of a registration. I/O that is under way goes on."""
    found = _registered.pop(handle, None)
    if found is None:
        raise _unknown(handle)
    found.release()


def registered(handle: int) -> Registered:
    """Of :func:`register_fd`; Fs3Error INVALID if it is over."""
    found = _registered.get(handle)
    if found is None:
        raise _unknown(handle)
    return found


def _unknown(handle: int) -> Fs3Error:
    return Fs3Error(Code.INVALID, f"handle {handle} is not registered: register_fd() gives handles")


def _client_of(description: bytes) -> Client:
    addresses, cluster_id = mount_protocol.decode_description(description)
    key = (cluster_id, *addresses)
    client = _clients.get(key)
    if client is None:
        made = connect(addresses, cluster_id=cluster_id)
        client = _clients.setdefault(key, made)
        if client is not made:  # another thread was faster
            made.close()
    return client


def _runs(chunks: Column) -> list[list[tuple[int, int]]]:
    """Neighbours together: (first, how many), as many in each list as one WROTE takes."""
    numbers = np.unique(chunks)
    if len(numbers) > mount_protocol.CHUNKS_MAX:
        parts = np.split(
            numbers, range(mount_protocol.CHUNKS_MAX, len(numbers), mount_protocol.CHUNKS_MAX)
        )
        return [runs for part in parts for runs in _runs(part)]
    starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
    counts = np.diff(starts, append=len(numbers))
    runs = list(zip(numbers[starts].tolist(), counts.tolist(), strict=True))
    step = mount_protocol.RUNS_MAX
    return [runs[at : at + step] for at in range(0, len(runs), step)]
