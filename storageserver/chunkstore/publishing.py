"""Publishing: how a version becomes what everybody sees, and how another one is let go.

One atomic batch of records, then memory (see store.py). A block is let go when the index shows it
no more: whoever begins to read in between must not find it, for nobody waits for a reader that came
after.
"""

from __future__ import annotations

from collections.abc import Sequence

from fs3.core.chunks import ChannelRecord
from fs3.core.types import ChunkId

from .allocator import Allocator, Readers
from .epochs import Epochs
from .files import Operation, Records
from .flushing import Flusher
from .health import Health
from .index import Index
from .interface import Channel
from .records import (
    NO_VERSION,
    Pending,
    Version,
    channel_key,
    chunk_key,
    encode_channel,
    encode_chunk,
)
from .scanning import channel_record


class Publisher:
    """Under the store's lock only."""

    def __init__(
        self,
        index: Index,
        allocator: Allocator,
        readers: Readers,
        epochs: Epochs,
        records: Records,
        flusher: Flusher,
        health: Health,
        channels_max: int,
    ) -> None:
        self._index = index
        self._allocator = allocator
        self._readers = readers
        self._epochs = epochs
        self._records = records
        self._flusher = flusher
        self._health = health
        self._channels_max = channels_max

    def write(self, operations: list[Operation]) -> bool:
        """One atomic batch; False if the disk failed, now or before."""
        if self._health.failed is None and operations:
            self._flusher.changed = True
            try:
                self._records.write(operations)
            except OSError as error:
                self._health.fail(error)
        return self._health.failed is None

    def committed(self, chunk: ChunkId) -> Version:
        """The committed version, or none."""
        return self._index.version(chunk) or NO_VERSION

    def publish_staged(self, staged: dict[ChunkId, Pending], operations: list[Operation]) -> None:
        """Records, then memory. If the disk fails the staged versions are let go."""
        index = self._index
        before = {chunk: self.committed(chunk) for chunk in staged}
        for chunk, pending in staged.items():
            undo = self._epochs.undo_of(chunk, before[chunk])
            operations.append((chunk_key(chunk), encode_chunk(before[chunk], pending, undo)))
        if not self.write(operations):
            for pending in staged.values():
                self._allocator.release(pending.version.size_class, pending.version.block)
            return
        for chunk, pending in staged.items():
            old = index.pendings.get(chunk)
            index.put(chunk, before[chunk], pending)
            self._let_go(old)
            if pending.tag:
                index.note_pending(pending.tag, channel_record(chunk, pending, pending=True))

    def publish_commits(self, ready: dict[ChunkId, tuple[Version, Pending]]) -> None:
        """Each pending version becomes the committed one, or the removal of its chunk."""
        operations: list[Operation] = []
        undos: dict[ChunkId, tuple[Version, ...]] = {}
        for chunk, (version, pending) in ready.items():
            undos[chunk] = undo = self._epochs.new_undo(chunk, self.committed(chunk))
            value = None if pending.removed else encode_chunk(version, None, undo)
            operations.append((chunk_key(chunk), value))
            if pending.tag:
                record = channel_record(chunk, pending, pending=False)
                self.keep_channel(pending.tag[:2], record, operations)
        if not self.write(operations):
            return
        for chunk, (version, pending) in ready.items():
            if pending.tag:
                self._index.forget_pending(pending.tag)
            self.replace(chunk, None if pending.removed else version, None, undos[chunk])

    def drop(self, chunks: Sequence[ChunkId]) -> None:
        """Forget pending versions."""
        operations: list[Operation] = []
        dropped: dict[ChunkId, Version] = {}
        for chunk in chunks:
            if chunk in self._index.pendings:
                dropped[chunk] = committed = self.committed(chunk)
                undo = self._epochs.undo_of(chunk, committed)
                value = encode_chunk(committed, None, undo) if committed.version else None
                operations.append((chunk_key(chunk), value))
        if not self.write(operations):
            return
        for chunk, committed in dropped.items():
            pending = self._index.pendings[chunk]
            if committed.version:
                self._index.put(chunk, committed, None)
            else:
                self.replace(chunk, None, None, ())
            self._let_go(pending)

    def keep_channel(
        self, key: tuple[int, int], record: ChannelRecord, operations: list[Operation]
    ) -> None:
        """Remember ``record``, unless a newer is known; who was unused longest makes room."""
        if not self._index.is_newest(key, record):
            return
        channels = self._index.channels
        channels.pop(key, None)  # to the end of the order
        channels[key] = record
        operations.append((channel_key(*key), encode_channel(record, self._epochs.current)))
        if len(channels) > self._channels_max:
            oldest = next(iter(channels))
            del channels[oldest]
            operations.append((channel_key(*oldest), None))

    def replace(
        self,
        chunk: ChunkId,
        version: Version | None,
        pending: Pending | None,
        undo: tuple[Version, ...],
    ) -> None:
        """Show a new committed version (None: the chunk is gone), then let the old one go."""
        old = self.committed(chunk)
        if version is None:
            row = self._index.remove(chunk)
            self._readers.retire(lambda _, rows: self._index.release_rows(rows), 0, (row,))
        else:
            self._index.put(chunk, version, pending)
        self._epochs.replaced(chunk, old, version, undo)

    def _let_go(self, pending: Pending | None) -> None:
        """A pending version's block and channel, when the index has another one, or none."""
        if pending is not None:
            self._allocator.release(pending.version.size_class, pending.version.block)
            if pending.tag:
                self._index.forget_pending(pending.tag)

    def put_channels(self, channels: Sequence[Channel]) -> None:
        """Take over channel records, unless a newer sequence is known."""
        operations: list[Operation] = []
        for client, channel, record in channels:
            known = self._index.channels.get((client, channel))
            if known is None or known.sequence < record.sequence:
                self.keep_channel((client, channel), record, operations)
        self.write(operations)
