"""Open files of a mount: the data half of :class:`fs3.client.filesystem.MountedFileSystem`."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import threading

from fs3.core.types import InodeId
from fs3.errors import Code, Fs3Error
from fs3.types import FILE_BYTES_MAX, Credentials, Inode, SetAttributes

from .context import ClientContext, Handle
from .file_locks import FileLocks
from .filesystem_interface import (
    Buffer,
    Cancellation,
    Controlled,
    FallocateFlags,
    FileLock,
    OpenFile,
    Whence,
    permissions_without_privileges,
)
from .mount_nodes import Nodes
from .mount_protocol import ATTACH, DETACH, WROTE, Attached, Wrote, describe, encode_trimmed
from .read_ahead import ReadAhead

_REPLY_BYTES = 1 << 20
_COPY_BYTES_MAX = 64 << 20  # by one copy_file_range: a longer one comes back for the rest
_COPY_STEP_BYTES = 4 << 20
_SCAN_CHUNKS = 256  # looked at in one batch for the next hole or data


class OpenMode:
    """How open(2)'s flags open a file."""

    def __init__(self, flags: int) -> None:
        access = flags & os.O_ACCMODE
        self.read = access in (os.O_RDONLY, os.O_RDWR)
        self.write = access in (os.O_WRONLY, os.O_RDWR)
        self.truncate = bool(flags & os.O_TRUNC)
        self.exclusive = bool(flags & os.O_EXCL)
        self.append = self.write and bool(flags & os.O_APPEND)
        self.sync = bool(flags & os.O_DSYNC)  # which is part of O_SYNC


class MountedFile:
    """What a file handle stands for."""

    __slots__ = ("ahead", "attached", "handle", "inode", "sync", "told")

    def __init__(self, inode: InodeId, handle: Handle, ahead: ReadAhead, *, sync: bool) -> None:
        """``sync``: every write is to be synced here."""
        self.inode = inode
        self.handle = handle
        self.ahead = ahead
        self.sync = sync
        self.attached = 0  # rings that go past the mount
        # What owners of descriptors were told of bytes that are lost.
        self.told: dict[int, Fs3Error] = {}


class MountedFiles:
    """Handles, reads, writes, locks. Any thread may call; see ``FileSystem`` for what each does."""

    _context: ClientContext
    _nodes: Nodes

    def __init__(self) -> None:
        self._files: dict[int, MountedFile] = {}
        self._numbers = itertools.count(1)
        self._locks = FileLocks()
        self._replies = threading.local()
        self._attaching = threading.Lock()  # guards the counts of attached rings

    # -- open and close --------------------------------------------------------------------------

    def open(
        self, inode: InodeId, flags: int, clear_privileges: bool, credentials: Credentials
    ) -> OpenFile:
        """The metaserver is asked every time: that is close-to-open."""
        mode = OpenMode(flags)
        if mode.truncate:
            self._flush_inode(inode)  # what was gathered for it must not follow the cut
        session = self._context.new_session()
        try:
            opened = self._context.metadata.open(
                inode, read=mode.read, write=mode.write, truncate=mode.truncate, session=session
            )
            if mode.truncate and clear_privileges:
                opened = self._without_privileges(opened)
        except Fs3Error:
            self._context.abandon([(inode, session)])
            raise
        return self._opened(opened, session, mode)

    def _flush_inode(self, inode: InodeId) -> None:
        opened = self._context.files.find(inode)
        if opened is not None:
            opened.settle()

    def _opened(self, inode: Inode, session: int, mode: OpenMode) -> OpenFile:
        """A handle. The kernel keeps its pages if nobody but this mount changed the data.

        O_APPEND goes past the page cache: there the kernel would keep the bytes where it believes
        the end is, and cut one write in two at the border of a page that it has not read, so that
        somebody else's could come between. There it asks for no sync after each write, either.
        """
        handle = self._context.hold(inode, session, writer=mode.write or mode.truncate)
        self._nodes.learn(inode)
        opened, node = handle.opened, self._nodes.find(inode.inode)
        if opened.known_version < 0 and node is not None:
            opened.known_version = node.cached_version
        keep_cache = opened.known_version == inode.version
        opened.known_version = inode.version
        number = next(self._numbers)
        ahead = ReadAhead(opened, self._context.files.buffers)
        sync = mode.append and mode.sync
        self._files[number] = MountedFile(inode.inode, handle, ahead, sync=sync)
        return OpenFile(number, keep_cache=keep_cache, direct_io=mode.append)

    def _file(self, handle: int) -> MountedFile:
        file = self._files.get(handle)
        if file is None:
            raise Fs3Error(Code.STALE_HANDLE, f"file handle {handle} is not open")
        return file

    def flush(self, handle: int, owner: int) -> None:
        """A descriptor was closed: what it wrote is visible everywhere from here on.

        Every process that has inherited it closes it; one that does not care must not take the
        bad news away from the one that goes on to fsync. So each owner is told.
        """
        file = self._file(handle)
        self._locks.drop_ranges(file.inode, owner)
        if not file.handle.writer:
            return
        file.handle.opened.settle()
        failure = file.handle.opened.failure(file.handle.session)
        if failure is not None and file.told.get(owner) is not failure:
            file.told[owner] = failure
            raise failure

    def release(self, handle: int, flock_owner: int | None) -> None:
        """The last descriptor is gone."""
        file = self._files.pop(handle, None)
        if file is None:
            return
        if flock_owner is not None:
            self._locks.drop_flock(file.inode, flock_owner)
        file.ahead.close()
        while file.attached:
            self._detach(file)
        if file.told:
            with contextlib.suppress(Fs3Error):  # somebody knows
                file.handle.opened.tell(file.handle.session)
        try:
            self._context.drop(file.handle)
        finally:
            node = self._nodes.find(file.inode)
            if node is not None:
                node.cached_version = file.handle.opened.known_version
                node.fetched_s = 0.0  # what it says is from before the last settling

    def fsync(self, handle: int, data_only: bool) -> None:
        """Data on stable storage; the metaserver's attributes always are."""
        file = self._file(handle)
        file.told.clear()
        file.handle.opened.sync(file.handle.session)

    # -- reading and writing ---------------------------------------------------------------------

    def read(self, handle: int, offset: int, length: int) -> Buffer | list[Buffer]:
        """Into a buffer of the calling thread, which the front has sent before it calls again."""
        file = self._file(handle)
        view = self._reply_buffer(length)[:length]
        return view[: file.ahead.read_into(offset, view)]

    def _reply_buffer(self, length: int) -> memoryview:
        buffer: memoryview | None = getattr(self._replies, "buffer", None)
        if buffer is None or len(buffer) < length:
            buffer = memoryview(mmap.mmap(-1, max(length, _REPLY_BYTES)))
            self._replies.buffer = buffer
        return buffer

    def write(
        self, handle: int, offset: int, data: memoryview, append: bool, clear_privileges: bool
    ) -> int:
        """Gathered with its neighbours, and sent later at the latest by flush."""
        file = self._file(handle)
        opened = file.handle.opened
        if clear_privileges:
            self._without_privileges(opened.view())
        if append:
            opened.append(data, file.handle.session)
        else:
            opened.write(offset, data, file.handle.session)
        if file.sync:
            opened.sync(file.handle.session)
        return len(data)

    def _without_privileges(self, inode: Inode) -> Inode:
        """Take set-uid and set-gid away if they are there."""
        permissions = permissions_without_privileges(inode.permissions)
        if permissions == inode.permissions:
            return inode
        changed = self._context.metadata.setattr(
            inode.inode, SetAttributes(permissions=permissions)
        )
        opened = self._context.files.find(inode.inode)
        if opened is not None:
            opened.learn(changed)
        self._nodes.learn(changed)
        return changed

    def lseek(self, handle: int, offset: int, whence: Whence) -> int | None:
        """A chunk that is there is data, whole; one that is not is a hole."""
        opened = self._file(handle).handle.opened
        length = opened.length
        if offset >= length:
            return None
        chunk_bytes = opened.view().layout.chunk_bytes
        chunks = -(-length // chunk_bytes)
        want = whence is Whence.DATA
        first = offset // chunk_bytes
        while first < chunks:
            count = min(_SCAN_CHUNKS, chunks - first)
            present = opened.chunks_present(first, count)
            if want in present:
                return max(offset, (first + present.index(want)) * chunk_bytes)
            first += count
        return None if want else length

    def fallocate(self, handle: int, offset: int, length: int, flags: FallocateFlags) -> None:
        """Extends the file. Space is not reserved; holes cannot be punched."""
        if flags & ~FallocateFlags.KEEP_SIZE:
            raise Fs3Error(Code.UNSUPPORTED, f"fallocate with {flags!r}: only KEEP_SIZE is allowed")
        opened = self._file(handle).handle.opened
        if not flags:
            opened.extend(offset + length)

    def copy_file_range(
        self, source: int, source_offset: int, target: int, target_offset: int, length: int
    ) -> int:
        """Through this process, but not through the kernel."""
        reader, writer = self._file(source).handle.opened, self._file(target).handle
        length = min(length, _COPY_BYTES_MAX)
        step = memoryview(bytearray(min(length, _COPY_STEP_BYTES)))
        done = 0
        while done < length:
            part = step[: length - done]
            count = reader.read_into(source_offset + done, part)
            writer.opened.write(target_offset + done, part[:count], writer.session)
            done += count
            if count < len(part):
                break
        return done

    # -- past the mount --------------------------------------------------------------------------

    def control(self, handle: int, command: int, argument: bytes) -> Controlled | None:
        """See mount_protocol.py."""
        file = self._file(handle)
        if command == ATTACH:
            return self._attach(file)
        if command == WROTE:
            return self._wrote(file, Wrote.decode(argument))
        if command == DETACH:
            self._detach(file)
            return Controlled()
        return None

    def _attach(self, file: MountedFile) -> Controlled:
        opened = file.handle.opened
        with self._attaching:
            file.attached += 1
        opened.gather_not(1)
        opened.settle()
        description = describe(self._context.addresses, self._context.cluster_id)
        attached = Attached(file.inode, opened.length, opened.trimmed_version, description)
        return Controlled(attached.encode(), stale=True)  # which has the kernel write its pages

    def _detach(self, file: MountedFile) -> None:
        with self._attaching:
            if not file.attached:
                return
            file.attached -= 1
        file.handle.opened.gather_not(-1)

    def _wrote(self, file: MountedFile, wrote: Wrote) -> Controlled:
        if not file.handle.writer:
            raise Fs3Error(Code.ACCESS, f"inode {file.inode} was not opened for writing here")
        if wrote.inode != file.inode:
            raise Fs3Error(
                Code.STALE_HANDLE, f"the descriptor is of inode {file.inode}, not {wrote.inode}"
            )
        opened = file.handle.opened
        chunks_max = -(-FILE_BYTES_MAX // opened.view().layout.chunk_bytes)
        if wrote.end > FILE_BYTES_MAX or any(sum(run) > chunks_max for run in wrote.runs):
            raise Fs3Error(
                Code.TOO_LARGE, f"{wrote} ends behind the {FILE_BYTES_MAX} bytes that are allowed"
            )
        chunks = {i for first, count in wrote.runs for i in range(first, first + count)}
        self._without_privileges(opened.view())
        opened.wrote_elsewhere(wrote.end, chunks, wrote.trimmed_version)
        return Controlled(encode_trimmed(opened.trimmed_version), stale=True)

    # -- locks -----------------------------------------------------------------------------------

    def getlk(self, inode: InodeId, owner: int, lock: FileLock) -> FileLock | None:
        """Of this mount only."""
        return self._locks.blocker(inode, owner, lock)

    def setlk(
        self, inode: InodeId, owner: int, lock: FileLock, flock: bool, wait: Cancellation | None
    ) -> bool:
        """Of this mount only."""
        return self._locks.set(inode, owner, lock, flock=flock, wait=wait)
