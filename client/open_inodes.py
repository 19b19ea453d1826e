"""Files that this client has open: what it wrote and has not yet sent, and how long they are.

All handles of one inode within one client share one :class:`OpenInode`, so that each sees what the
others wrote. Writes are gathered (write_behind.py), and leave when enough has come together, when
somebody asks for the bytes, after a second, or at flush, which waits for them.

- The local length is the larger of what the metaserver said and what was written since; telling
  the metaserver (settling) is what makes it visible to others.
- The lock of an inode is held while its writes are sent, never while bytes are fetched. No lock is
  held over several inodes.
- Bytes that could not be written are lost. Every handle that was open then is told once, by its
  next write, flush, fsync or close.
- A chunk that was written without sync is remembered until it was synced, also when the file is
  closed: an fsync covers what any handle of this client wrote. Many are synced in the background.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from fs3.core.types import chunk_id
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.types import FILE_BYTES_MAX, Inode, SetAttributes

from .chunk_buffers import ChunkBuffers
from .data import DataClient, chunk_items, cut, items_of
from .links import Links
from .metadata import Closing, Metadata
from .transfers import Transfer
from .write_behind import WriteBehind

DIRTY_AGE_S = 1.0
FILE_UNSYNCED_CHUNKS = 1024  # of one inode: then they are synced in the background
_log = get_logger(__name__)


class OpenInode:
    """One inode, for all its handles. Any thread may call."""

    def __init__(
        self,
        inode: Inode,
        metadata: Metadata,
        data: DataClient,
        buffers: ChunkBuffers,
        unsynced: set[int],
    ) -> None:
        """``unsynced``: chunks that handles left which are closed by now."""
        self._metadata = metadata
        self._data = data
        self.handles = 0  # guarded by the table's lock
        self.generation = 0  # grows at every change made here; cached bytes stand on it
        # The data version that is known here whole: it moves along with changes made here, and
        # stands when somebody else made one.
        self.known_version = -1
        self.said = inode  # by the metaserver, last
        # The newest truncate version that is known to be trimmed: what is written now comes behind
        # that cut. Of a newer one that is merely heard of, chunks may still be on their way out.
        self._trimmed_version = 0
        self._untold: dict[int, Fs3Error | None] = {}  # by session: what its handle is not told yet
        self._facts = threading.RLock()  # guards these four; never held for long, unlike the next
        self._lock = threading.RLock()  # guards all below
        self._gather_not = 0  # so many want every write to be sent at once
        self._unsynced = unsynced  # chunks that were sent, and may be lost in a power cut
        self._behind = WriteBehind(inode.inode, inode.layout, data, buffers, unsynced, self._lost)
        self.dirty = False  # written to since the metaserver was told
        self._written_end = 0  # of the bytes written since then
        self._written_version = 0  # the truncate version when the first of them was written
        self._mtime_ns = 0

    def forget_writes(self, buffers: ChunkBuffers) -> None:
        """In a forked child: what was gathered is the parent's to send."""
        self._facts = threading.RLock()
        self._lock = threading.RLock()
        self._behind.forget(buffers)
        self._unsynced.clear()
        self.dirty, self._written_end = False, 0
        self._untold = dict.fromkeys(self._untold)

    # -- handles ---------------------------------------------------------------------------------

    def attach(self, session: int) -> None:
        """One more handle."""
        with self._facts:
            self._untold[session] = None

    def detach(self, session: int) -> None:
        """A handle is gone."""
        with self._facts:
            self._untold.pop(session, None)

    @property
    def unsynced(self) -> set[int]:
        """Chunks that may be lost in a power cut."""
        return set(self._unsynced)

    def failure(self, session: int) -> Fs3Error | None:
        """What :meth:`tell` would raise."""
        return self._untold.get(session)

    def tell(self, session: int) -> None:
        """Raise what a handle has not been told yet."""
        with self._facts:
            error = self._untold.get(session)
            if error is not None:
                self._untold[session] = None
        if error is not None:
            raise error

    def _lost(self, error: Fs3Error) -> None:
        with self._facts:
            for session, untold in self._untold.items():
                self._untold[session] = untold or error

    # -- what it looks like ----------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Bytes, with everything written here."""
        return max(self.said.length_bytes, self._written_end)

    def view(self) -> Inode:
        """The inode as this client sees it."""
        inode = self.said
        if not self.dirty:
            return inode
        mtime_ns = max(self._mtime_ns, inode.mtime_ns)
        return replace(inode, length_bytes=self.length, mtime_ns=mtime_ns, ctime_ns=mtime_ns)

    def learn(self, inode: Inode, *, own_change: bool = False, trimmed: bool = False) -> None:
        """What the metaserver says now; answers may overtake each other.

        ``own_change``: it is the answer to a change of data or length made here. ``trimmed``: the
        metaserver has answered when every cut up to this one was carried out.
        """
        with self._facts:
            if own_change or trimmed:
                self._trimmed_version = max(self._trimmed_version, inode.truncate_version)
            if own_change and inode.version == self.known_version + 1:
                self.known_version = inode.version
            old = self.said
            if inode.truncate_version > old.truncate_version:
                self._data.written.forget(inode.inode)
            if (inode.version, inode.ctime_ns) >= (old.version, old.ctime_ns):
                if inode.version != old.version:
                    self.generation += 1
                self.said = inode

    # -- reading ---------------------------------------------------------------------------------

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``offset``; fewer bytes only at the end of the file."""
        with self._lock:
            count = max(min(len(buffer), self.length - offset), 0)
            if count and not self._behind.empty:
                if self._behind.copy(offset, buffer[:count]):
                    return count
                self._behind.send_touched(offset, count)
        if count:
            self._fetch(offset, buffer if count == len(buffer) else buffer[:count])
        return count

    def _fetch(self, offset: int, buffer: memoryview) -> None:
        layout, inode = self.said.layout, self.said.inode
        index, within = divmod(offset, layout.chunk_bytes)
        if within + len(buffer) <= layout.chunk_bytes:
            chain = layout.chains[index % len(layout.chains)]
            self._data.read_piece(chunk_id(inode, index), chain, within, buffer)
        else:
            items = items_of(layout, inode, offset, len(buffer))
            self._data.read_pieces(items, cut(buffer, items))

    def begin_read(
        self, offset: int, buffer: memoryview, links: Links
    ) -> tuple[int, Transfer | None]:
        """How many bytes there are to read, and the transfer that brings them, to be moved on."""
        count = self.prepare_read(offset, len(buffer))
        if not count:
            return 0, None
        items = items_of(self.said.layout, self.said.inode, offset, count)
        transfer, _ = self._data.begin_reads(items, cut(buffer[:count], items), links)
        return count, transfer

    def own_links(self) -> Links:
        """The calling thread's connections, for a transfer that it finishes itself."""
        return self._data.own_links()

    def borrow_links(self) -> Links:
        """Connections for a transfer of :meth:`begin_read`; see :meth:`return_links`."""
        return self._data.borrow_links()

    def return_links(self, links: Links) -> None:
        """Nothing is under way on them any more."""
        self._data.return_links(links)

    def prepare_read(self, offset: int, length: int) -> int:
        """How many of these bytes there are; those gathered here are sent."""
        with self._lock:
            count = max(min(length, self.length - offset), 0)
            if count and not self._behind.empty:
                self._behind.send_touched(offset, count)
            return count

    # -- writing ---------------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview, session: int) -> None:
        """Take all of ``data``; what cannot be gathered any more is sent before this returns."""
        end = offset + len(data)
        if end > FILE_BYTES_MAX:
            raise Fs3Error(
                Code.TOO_LARGE, f"a file of {end} bytes; at most {FILE_BYTES_MAX} are allowed"
            )
        if not len(data):
            return
        with self._lock:
            self.tell(session)  # before anything is taken: who is refused may write it again
            version = self._trimmed_version
            self._behind.write(offset, data)
            self._wrote(end, version)
            if self._gather_not:
                self._behind.send_all()
            self.tell(session)

    def gather_not(self, change: int) -> None:
        """1: send every write at once, for somebody reads past this class; -1: he is done."""
        with self._lock:
            self._gather_not += change
            self.send_gathered()

    def append(self, data: memoryview, session: int) -> int:
        """Write at the end of the file, wherever other clients have moved it; returns where."""
        with self._lock:
            self.tell(session)
            if self._written_end > self.said.length_bytes:
                self.settle()
            offset, inode = self._metadata.reserve_append(self.said.inode, len(data))
            self.learn(inode, own_change=True)
            self.write(offset, data, session)
            return offset

    def _wrote(self, end: int, version: int) -> None:
        """``version``: the trimmed one before the first of the bytes left."""
        self.generation += 1
        if not self.dirty:
            self.dirty = True
            self._written_version = version
        self._written_version = min(self._written_version, version)
        self._written_end = max(self._written_end, end)
        self._mtime_ns = max(time.time_ns(), self._mtime_ns + 1)  # tells one write from the next

    def send_gathered(self) -> None:
        """What was written here has left; the length is not told yet."""
        with self._lock:
            self._behind.send_all()

    # -- making it visible, and safe -------------------------------------------------------------

    def upkeep(self, now_s: float) -> None:
        """Send what was gathered a while ago (``now_s``: monotonic), sync when it is much."""
        if self._behind.is_older(DIRTY_AGE_S, now_s):
            self.send_gathered()
        if len(self._unsynced) > FILE_UNSYNCED_CHUNKS:
            with self._lock:
                self._sync_sent()

    def flush(self, session: int) -> None:
        """Every byte written here is at the storageservers, and the metaserver knows the length."""
        with self._lock:
            self.settle()
            self.tell(session)

    def sync(self, session: int) -> None:
        """The same, on stable storage."""
        with self._lock:
            self._behind.send_all(sync=True)
            self.tell(session)  # first: syncing what is left may fail by itself
            self._sync_sent()
            self._check_kept()
            self.settle()
            self.tell(session)

    def _sync_sent(self) -> None:
        if self._unsynced:
            indices = sorted(self._unsynced)
            zeros = [0] * len(indices)
            inode = self.said
            self._data.sync_chunks(chunk_items(inode.layout, inode.inode, indices, zeros, zeros))
            self._unsynced.clear()

    def _check_kept(self) -> None:
        """Fs3Error DISK if a power cut took back what was written here, told once."""
        inode = self.said.inode
        if not self._data.written.take_lost(inode):
            return
        if self._metadata.getattr(inode).truncate_version > self.said.truncate_version:
            return  # somebody else has cut the file: those chunks may have gone for that reason
        raise Fs3Error(
            Code.DISK,
            f"inode {inode}: its storageservers lost power, and with it some of what was written"
            " since the last fsync",
        )

    def settle(self) -> None:
        """Send what is gathered, and tell the metaserver how far was written.

        Of bytes that were lost it is the handles that are told.
        """
        with self._lock:
            self.send_gathered()
            if self.dirty:
                # If somebody cut the file since, the metaserver looks at what is stored.
                settled = self._metadata.settle(
                    self.said.inode, self._written_end, self._written_version, self._mtime_ns
                )
                self.learn(settled, own_change=True)
                self.dirty, self._written_end = False, 0

    def finish(self) -> None:
        """For handles that nobody will close: settle, and raise what one of them is not told."""
        with self._lock:
            self.settle()
            for session in list(self._untold):
                self.tell(session)

    @property
    def trimmed_version(self) -> int:
        """To be asked before writing past this class, for :meth:`wrote_elsewhere`."""
        return self._trimmed_version

    def wrote_elsewhere(self, end: int, chunks: set[int], trimmed_version: int) -> None:
        """A batch has written up to ``end``; ``chunks`` are those that it did not sync."""
        with self._lock:
            self._wrote(end, trimmed_version)
            self._unsynced |= chunks

    def closing(self, session: int) -> Closing:
        """What ends a session and settles what was written; call :meth:`closed` afterwards."""
        with self._lock:
            self.send_gathered()
            inode = self.said
            if not self.dirty:
                return Closing(inode.inode, session)
            end, version = self._written_end, self._written_version
            return Closing(inode.inode, session, True, end, version, self._mtime_ns)

    def closed(self, closing: Closing, inode: Inode | None) -> None:
        """A session was ended, and ``inode`` is what it settled to (None: it is gone)."""
        with self._lock:
            if inode is not None:
                self.learn(inode, own_change=closing.wrote)
            if closing.wrote and self._mtime_ns == closing.mtime_ns:
                self.dirty, self._written_end = False, 0

    def truncate(self, length: int, session: int = 0) -> Inode:
        """Set the length exactly."""
        return self.change(SetAttributes(length_bytes=length), session)

    def extend(self, length: int) -> None:
        """Let the file be at least so long; never cut what others may have written meanwhile."""
        with self._lock:
            while self.length < length:
                self._wrote(length, self._trimmed_version)
                self.settle()

    def change(self, changes: SetAttributes, session: int = 0) -> Inode:
        """Set attributes of a file that may have been written to here; in that order."""
        with self._lock:
            if changes.length_bytes != 0:
                self.settle()
            self._behind.finish()  # it must not follow the cut
            inode = self._metadata.setattr(self.said.inode, changes, session)
            self.learn(inode, own_change=changes.length_bytes is not None)
            if changes.length_bytes == 0:
                self._behind.drop()
                self.dirty, self._written_end = False, 0
            if changes.length_bytes is not None:
                self.generation += 1
                chunk_bytes = self.said.layout.chunk_bytes
                chunks = -(-changes.length_bytes // chunk_bytes)
                self._unsynced -= {index for index in self._unsynced if index >= chunks}
            return self.said

    # -- holes -----------------------------------------------------------------------------------

    def chunks_present(self, first: int, count: int) -> list[bool]:
        """Which of ``count`` chunks from ``first`` on hold any byte; the others are holes."""
        self.settle()
        indices = list(range(first, first + count))
        inode = self.said
        items = chunk_items(inode.layout, inode.inode, indices, [0] * count, [1] * count)
        found = self._data.read_pieces(items, [memoryview(bytearray(1)) for _ in indices])
        return [bool(length) for length in found.tolist()]
