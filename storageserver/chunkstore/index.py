"""The in-memory index: chunk id -> row, rows in one numpy table, pending versions beside it.

A row is read by one ``struct.unpack_from`` and written by one ``pack_into``: neither gives up the
interpreter lock, so a reader in another thread sees a whole row, old or new. The table doubles by
copying; a reader that holds the old one reads the past, which its registration (see blocks.py)
keeps readable. A removed chunk's row is reused only when the owner says that nobody reads.

Each change of a row is stamped behind it (fs3/core/stamps.py): that is how clients of this machine
see it without asking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fs3.core.chunks import ChannelRecord, ChunkMeta, Tag
from fs3.core.stamps import Stamps
from fs3.core.types import ChunkId

from .interface import Rows
from .records import NO_VERSION, ROW, ROW_DTYPE, VERSION, Pending, Version

_ROW_BYTES = ROW.size


class Index:
    """What the store knows of every chunk. Changed by the owner thread only."""

    def __init__(self, rows: int = 256, stamps: Stamps | None = None) -> None:
        self.stamps = stamps or Stamps()
        self.row_of: dict[ChunkId, int] = {}
        self.pendings: dict[ChunkId, Pending] = {}
        self.channels: dict[tuple[int, int], ChannelRecord] = {}
        self.pending_channels: dict[tuple[int, int], ChannelRecord] = {}
        self.table: npt.NDArray[np.void] = np.zeros(rows, dtype=ROW_DTYPE)
        self.view: memoryview = self.table.view(np.uint8).data
        self._unused = list(range(rows - 1, -1, -1))

    def __len__(self) -> int:
        return len(self.row_of)

    def version(self, chunk: ChunkId) -> Version | None:
        """The committed version (number 0 if only one is pending); None for an unknown chunk."""
        row = self.row_of.get(chunk)
        if row is None:
            return None
        return Version._make(VERSION.unpack_from(self.view, row * _ROW_BYTES))

    def put(self, chunk: ChunkId, committed: Version, pending: Pending | None) -> None:
        """Set both versions of a chunk."""
        row = self.row_of.get(chunk)
        fresh = row is None
        if row is None:
            if not self._unused:
                self._grow()
            row = self._unused.pop()
        number = pending.version.version if pending else 0
        if pending:
            self.pendings[chunk] = pending
        ROW.pack_into(self.view, row * _ROW_BYTES, *committed, number)
        if fresh:  # visible only when whole
            self.row_of[chunk] = row
        if not pending:
            self.pendings.pop(chunk, None)
        self.stamps.changed(row)

    def remove(self, chunk: ChunkId) -> int:
        """Forget a chunk; its row is to be given to :meth:`release_rows` when nobody reads."""
        row = self.row_of.pop(chunk)
        self.pendings.pop(chunk, None)
        ROW.pack_into(self.view, row * _ROW_BYTES, *NO_VERSION, 0)
        self.stamps.changed(row)
        return row

    def remove_all(self, chunks: Sequence[ChunkId]) -> tuple[Rows, npt.NDArray[np.void]]:
        """Forget chunks that are known and have nothing pending: their rows, and what these say.

        Rows keep what they say until they are used again: who has found one reads what was there.
        """
        forget = self.row_of.pop
        rows = np.fromiter((forget(chunk) for chunk in chunks), np.int64, len(chunks))
        self.stamps.changed_all(rows)
        return rows, self.table[rows]

    def release_rows(self, rows: Sequence[int]) -> None:
        """Let removed chunks' rows be used again."""
        self._unused.extend(rows)

    def meta(self, chunk: ChunkId) -> ChunkMeta | None:
        """The chunk's versions as the core sees them."""
        committed = self.version(chunk)
        if committed is None:
            return None
        pending = self.pendings.get(chunk)
        fields = (
            committed.version,
            committed.chain_version,
            committed.length,
            committed.checksum,
        )
        if pending is None:
            return ChunkMeta._make((*fields, 0, 0, 0, False))
        staged = pending.version
        return ChunkMeta._make(
            (*fields, staged.version, staged.length, staged.checksum, pending.removed)
        )

    def channel(self, client: int, channel: int) -> ChannelRecord | None:
        """The newest update on a channel, pending or committed.

        A client that gave an update up uses its channel for the next one while the first may still
        be under way, in another chunk: whichever ends last, the greater sequence is the newer.
        """
        key = (client, channel)
        pending, committed = self.pending_channels.get(key), self.channels.get(key)
        if pending is None or committed is None:
            return pending or committed
        return pending if pending.sequence >= committed.sequence else committed

    def note_pending(self, tag: Tag, record: ChannelRecord) -> None:
        """A tagged update is staged."""
        known = self.pending_channels.get(tag[:2])
        if known is None or known.sequence <= tag.sequence:
            self.pending_channels[tag[:2]] = record

    def forget_pending(self, tag: Tag) -> None:
        """It is pending no more."""
        known = self.pending_channels.get(tag[:2])
        if known is not None and known.sequence == tag.sequence:
            del self.pending_channels[tag[:2]]

    def is_newest(self, key: tuple[int, int], record: ChannelRecord) -> bool:
        """No later update on the channel is committed."""
        known = self.channels.get(key)
        return known is None or known.sequence <= record.sequence

    def rows(self, chunks: Sequence[ChunkId]) -> Rows:
        """Each chunk's row, -1 for an unknown one."""
        get = self.row_of.get
        return np.fromiter((get(chunk, -1) for chunk in chunks), np.int64, len(chunks))

    def dirty(self, chunks: Sequence[ChunkId]) -> list[int]:
        """Positions of those with a pending version."""
        pendings = self.pendings
        if not pendings:
            return []
        return [position for position, chunk in enumerate(chunks) if chunk in pendings]

    def versions(self) -> Iterator[tuple[ChunkId, Version]]:
        """Every chunk with its committed version."""
        for chunk, row in self.row_of.items():
            yield chunk, Version._make(VERSION.unpack_from(self.view, row * _ROW_BYTES))

    def _grow(self) -> None:
        old = len(self.table)
        table = np.zeros(2 * old, dtype=ROW_DTYPE)
        table[:old] = self.table
        self.table = table
        self.view = table.view(np.uint8).data
        self._unused.extend(range(2 * old - 1, old - 1, -1))
