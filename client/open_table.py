"""The inodes that a client has open, and what it remembers of those that it has closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from fs3.core.types import InodeId
from fs3.errors import Fs3Error
from fs3.types import Inode

from .chunk_buffers import ChunkBuffers
from .data import DataClient
from .metadata import Metadata
from .open_inodes import OpenInode
from .unsynced import Unsynced

CLIENT_UNSYNCED_CHUNKS = 16_384  # of all inodes that are closed: then they are synced
_SYNC_CHUNKS = 1024  # at a time


class OpenInodes:
    """The inodes that this client has open, by id."""

    def __init__(self, metadata: Metadata, data: DataClient) -> None:
        self._metadata = metadata
        self._data = data
        self._lock = threading.RLock()  # see ChunkBuffers
        self._table: dict[InodeId, OpenInode] = {}
        self._left = Unsynced()  # chunks of inodes that are closed
        self.buffers = ChunkBuffers()

    def acquire(self, inode: Inode, session: int, *, writer: bool) -> OpenInode:
        """The shared state for one more handle; ``inode`` is what the metaserver just said."""
        with self._lock:
            found = self._table.get(inode.inode)
            if found is None:
                unsynced = self._left.pop(inode.inode)
                found = OpenInode(inode, self._metadata, self._data, self.buffers, unsynced)
                self._table[inode.inode] = found
            found.handles += 1
        found.attach(session)
        found.learn(inode, trimmed=writer)  # a writer's open waits for trims
        return found

    def release(self, opened: OpenInode, session: int) -> None:
        """A handle is gone. Everything it wrote has been settled."""
        opened.detach(session)
        with self._lock:
            opened.handles -= 1
            if not opened.handles:
                inode = opened.view()
                del self._table[inode.inode]
                self._left.put(inode.inode, inode.layout, opened.unsynced)

    def find(self, inode: InodeId) -> OpenInode | None:
        """The shared state, if the inode is open here."""
        return self._table.get(inode)

    def __iter__(self) -> Iterator[OpenInode]:
        with self._lock:
            return iter(list(self._table.values()))

    @property
    def unsynced_chunks(self) -> int:
        """Of inodes that are closed."""
        return self._left.count

    def upkeep(self, now_s: float) -> None:
        """Send what is old, sync what is much; what cannot be synced now is tried again."""
        failure: Fs3Error | None = None
        for opened in self:
            try:
                opened.upkeep(now_s)
            except Fs3Error as error:
                failure = error
        if failure is not None:
            raise failure
        while self._left.count > CLIENT_UNSYNCED_CHUNKS:
            with self._lock:
                oldest = self._left.oldest(_SYNC_CHUNKS)
            self._data.sync_chunks(np.concatenate([left.items(i) for i, left in oldest]))
            with self._lock:
                self._left.drop(oldest)

    def after_fork(self) -> None:
        """In the child: handles work on, but what the parent gathered is the parent's to send."""
        self._lock = threading.RLock()  # see ChunkBuffers
        self._left = Unsynced()
        self.buffers = ChunkBuffers()
        for opened in self._table.values():
            opened.forget_writes(self.buffers)
