"""The chunk store in memory, for the simulator and for tests: same contract, and faults on demand.

Every mutation is a batch in a journal since the last sync. :meth:`power_loss` keeps a prefix of it,
and may take single chunks of that prefix back to what the sync covered, as a disk does that wrote
the records but not the bytes. Contents are plain ``bytes``, made by rules written apart from the
real store's, so that each checks the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fs3.checksum import CHECKSUM_BLOCK_BYTES, crc32c
from fs3.core.chunks import ChannelRecord, ChunkMeta, UpdateKind
from fs3.core.kv import is_value
from fs3.core.types import (
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    CHUNK_CONTENT_BYTES_MAX,
    ChunkId,
    ChunkVersion,
    chunk_owner,
)
from fs3.errors import Code, Fs3Error

from .index import Index
from .interface import (
    BadChunk,
    Channel,
    Commit,
    Piece,
    ReadResult,
    Rows,
    StageRequest,
    StageResult,
    Usage,
    Verified,
)
from .records import NO_VERSION, Pending, Version
from .scanning import channel_record


class Entry(NamedTuple):
    """A chunk with its contents."""

    committed: Version = NO_VERSION
    content: bytes = b""
    pending: Pending | None = None
    pending_content: bytes = b""


class Batch(NamedTuple):
    """What one mutation changed; None: the chunk is gone."""

    chunks: dict[ChunkId, Entry | None]
    channels: dict[tuple[int, int], ChannelRecord]


class MemoryChunkStore:
    """A target's chunks in memory. ``capacity_bytes`` bounds the sum of their lengths."""

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.capacity_bytes = capacity_bytes
        self._failed: str | None = None
        self._index = Index()
        self._entries: dict[ChunkId, Entry] = {}
        self._synced: tuple[dict[ChunkId, Entry], dict[tuple[int, int], ChannelRecord]] = ({}, {})
        self._journal: list[Batch] = []
        self._damaged: dict[ChunkId, int] = {}

    # -- faults ------------------------------------------------------------------------------------

    def crash(self) -> None:
        """The process dies and the store is opened again: nothing that a call did is lost."""
        self._rebuild(self._entries, self._index.channels)

    def power_loss(self, random: Random) -> None:
        """The machine loses power, and the store is opened again."""
        entries, channels = dict(self._synced[0]), dict(self._synced[1])
        covered: dict[ChunkId, Entry | None] = dict(entries)
        for batch in self._journal[: random.randint(0, len(self._journal))]:
            for chunk, entry in batch.chunks.items():
                if entry is None:
                    entries.pop(chunk, None)
                    covered[chunk] = None
                else:
                    entries[chunk] = entry
            channels.update(batch.channels)
        for chunk in sorted(entries):
            entry = entries[chunk]
            older = covered.get(chunk)
            if _safe(entry, older):
                continue
            if random.random() < 0.3:
                if entry.committed.version != (older.committed.version if older else 0):
                    channels = _without(channels, chunk, older)
                entries.pop(chunk)
                if older is not None and older.committed.version:
                    entries[chunk] = older._replace(pending=None, pending_content=b"")
        self._rebuild(entries, channels)
        self.sync()

    def fail(self, reason: str) -> None:
        """The disk answers EIO from now on."""
        self._failed = reason

    def damage(self, chunk: ChunkId, position: int) -> None:
        """The disk flips a bit of the committed content at ``position``."""
        self._damaged[chunk] = position

    def _rebuild(
        self, entries: dict[ChunkId, Entry], channels: dict[tuple[int, int], ChannelRecord]
    ) -> None:
        self._index, self._entries = Index(), {}
        self._index.channels.update(channels)
        for chunk, entry in entries.items():
            self._put(chunk, entry)
            if entry.pending and entry.pending.tag:
                record = channel_record(chunk, entry.pending, pending=True)
                self._index.note_pending(entry.pending.tag, record)

    # -- what the core asks ------------------------------------------------------------------------

    @property
    def failed(self) -> str | None:
        """Why the store has failed, or None while it works."""
        return self._failed

    @property
    def columns(self) -> npt.NDArray[np.void]:
        """The index's table; its fields include those of ``COLUMNS``."""
        return self._index.table

    def rows(self, chunks: Sequence[ChunkId]) -> Rows:
        """Each chunk's row in ``columns``, -1 for an unknown one."""
        return self._index.rows(chunks)

    def dirty(self, chunks: Sequence[ChunkId]) -> list[int]:
        """Positions of those chunks that have a pending version."""
        return self._index.dirty(chunks)

    def meta(self, chunk: ChunkId) -> ChunkMeta | None:
        """The chunk's versions, or None."""
        return self._index.meta(chunk)

    def channel(self, client: int, channel: int) -> ChannelRecord | None:
        """The newest update on the channel, or None."""
        return self._index.channel(client, channel)

    # -- mutations ---------------------------------------------------------------------------------

    def stage(self, updates: Sequence[StageRequest]) -> list[StageResult]:
        """Make each update its chunk's pending version."""
        return [self._stage_one(update) for update in updates]

    def _stage_one(self, update: StageRequest) -> StageResult:
        if self._failed is not None:
            return StageResult(Code.DISK, detail=self._failed)
        entry = self._entries.get(update.chunk, Entry())
        base = Entry() if update.kind is UpdateKind.REPLACE else entry
        if update.version <= base.committed.version:
            return StageResult(
                Code.STALE_UPDATE, detail=f"version {update.version} is committed already"
            )
        try:
            content = _applied(base.content, update)
        except Fs3Error as error:
            return StageResult(error.code, detail=error.detail)
        used = self.usage().used_bytes
        if content and used + len(content) > self.capacity_bytes:
            detail = f"{used} of {self.capacity_bytes} bytes are used"
            return StageResult(Code.NO_SPACE, detail=detail)
        version = Version(
            version=update.version,
            chain_version=update.chain_version,
            length=len(content),
            checksum=crc32c(content),
        )
        pending = Pending(version, update.kind is UpdateKind.REMOVE, update.tag)
        self._forget_channel(entry)
        entry = entry._replace(pending=pending, pending_content=content)
        self._apply(Batch({update.chunk: entry}, {}))
        if update.tag:
            record = channel_record(update.chunk, pending, pending=True)
            self._index.note_pending(update.tag, record)
        return StageResult(Code.OK, len(content), version.checksum)

    def create(self, updates: Sequence[StageRequest]) -> list[StageResult]:
        """Store chunks that are not there yet, committed."""
        return [self._create_one(update) for update in updates]

    def _create_one(self, update: StageRequest) -> StageResult:
        if update.chunk in self._entries and self._failed is None:
            return StageResult(Code.EXISTS)
        result = self._stage_one(update)
        if result.code is Code.OK:
            self._commit_one(Commit(update.chunk, update.version, update.chain_version))
        return result

    def commit(self, commits: Sequence[Commit]) -> list[Code]:
        """Make pending versions committed."""
        if self._failed is not None:
            return [Code.DISK] * len(commits)
        return [self._commit_one(commit) for commit in commits]

    def _commit_one(self, commit: Commit) -> Code:
        entry = self._entries.get(commit.chunk, Entry())
        pending = entry.pending
        if pending is None or pending.version.version != commit.version:
            return Code.OK if commit.version <= entry.committed.version else Code.NO_CHUNK
        channels = {}
        if pending.tag:
            record = channel_record(commit.chunk, pending, pending=False)
            if self._index.is_newest(pending.tag[:2], record):
                channels[pending.tag[:2]] = record
        self._forget_channel(entry)
        version = pending.version._replace(chain_version=commit.chain_version)
        after = None if pending.removed else Entry(version, entry.pending_content)
        self._damaged.pop(commit.chunk, None)
        self._apply(Batch({commit.chunk: after}, channels))
        return Code.OK

    def drop(self, chunks: Sequence[ChunkId]) -> None:
        """Forget pending versions."""
        for chunk in chunks:
            entry = self._entries.get(chunk)
            if entry is None or entry.pending is None or self._failed is not None:
                continue
            self._forget_channel(entry)
            after = entry._replace(pending=None, pending_content=b"")
            self._apply(Batch({chunk: after if entry.committed.version else None}, {}))

    def discard(self, chunks: Sequence[ChunkId]) -> list[ChunkId]:
        """Remove committed chunks that have no pending version."""
        known = {c: self._entries[c] for c in chunks if c in self._entries}
        gone = [c for c, entry in known.items() if entry.pending is None and not self._failed]
        if gone:
            self._apply(Batch(dict.fromkeys(gone), {}))
        return gone

    def restore(self, chunk: ChunkId, version: ChunkVersion, content: memoryview) -> Code:
        """Put a damaged content right."""
        if self._failed is not None:
            return Code.DISK
        entry = self._entries.get(chunk, Entry())
        if version != entry.committed.version or not version:
            return Code.STALE_UPDATE
        if bytes(content) != entry.content:
            return Code.CORRUPT
        self._damaged.pop(chunk, None)
        return Code.OK

    def put_channels(self, channels: Sequence[Channel]) -> None:
        """Take over channel records, unless a newer sequence is known."""
        for client, channel, record in channels:
            if self._index.is_newest((client, channel), record):
                self._apply(Batch({}, {(client, channel): record}))

    def _forget_channel(self, entry: Entry) -> None:
        if entry.pending and entry.pending.tag:
            self._index.forget_pending(entry.pending.tag)

    def _apply(self, batch: Batch) -> None:
        self._journal.append(batch)
        self._index.channels.update(batch.channels)
        for chunk, entry in batch.chunks.items():
            self._put(chunk, entry)

    def _put(self, chunk: ChunkId, entry: Entry | None) -> None:
        if entry is not None:
            self._entries[chunk] = entry
            self._index.put(chunk, entry.committed, entry.pending)
        elif self._entries.pop(chunk, None):
            self._index.release_rows([self._index.remove(chunk)])

    # -- reads -------------------------------------------------------------------------------------

    def read(
        self,
        pieces: Sequence[Piece],
        buffers: Sequence[memoryview],
        *,
        pending: bool = False,
        verify: bool = False,
    ) -> list[ReadResult]:
        """Read each piece into its buffer."""
        if self._failed is not None:
            return [ReadResult(Code.DISK, detail=self._failed)] * len(pieces)
        return [
            self._read_one(piece, buffer, pending, verify)
            for piece, buffer in zip(pieces, buffers, strict=True)
        ]

    def _read_one(
        self, piece: Piece, buffer: memoryview, pending: bool, verify: bool
    ) -> ReadResult:
        chunk, offset, length = piece
        entry = self._entries.get(chunk, Entry())
        version, content = entry.committed, entry.content
        if pending and entry.pending:
            version, content = entry.pending.version, entry.pending_content
        if version.version == 0 or (pending and entry.pending and entry.pending.removed):
            return ReadResult(Code.NO_CHUNK)
        if offset < 0:
            return ReadResult(Code.INVALID, detail=f"offset {offset}: 0 or more is allowed")
        part = content[offset : offset + max(0, length)]
        buffer[: len(part)] = part
        position = self._damaged.get(chunk, -1)
        if version is entry.committed and position >= 0:
            start = position - position % CHECKSUM_BLOCK_BYTES
            end = min(start + CHECKSUM_BLOCK_BYTES, len(content))
            touched = start < offset + len(part) and offset < end
            if touched and (verify or offset > start or offset + len(part) < end):
                return ReadResult(Code.CORRUPT, detail=f"byte {position} is damaged")
            if touched:
                buffer[position - offset] ^= 1
        return ReadResult(Code.OK, len(part), ChunkVersion(version.version), crc32c(part))

    def count(self) -> int:
        """How many chunks there are."""
        return len(self._entries)

    def scan(
        self, after: ChunkId | None, limit: int, *, owner: int | None = None
    ) -> list[tuple[ChunkId, ChunkMeta]]:
        """Up to ``limit`` chunks behind ``after`` in chunk order."""
        found = [
            (chunk, meta)
            for chunk in sorted(self._entries)
            if (after is None or chunk > after)
            and (owner is None or chunk_owner(chunk) == owner)
            and (meta := self._index.meta(chunk))
        ]
        return found[: max(0, limit)]

    def last_chunk(self, owner: int) -> tuple[ChunkId, ChunkMeta] | None:
        """The owner's committed chunk with the greatest slot."""
        found = self.scan(None, len(self._entries), owner=owner)
        return next((pair for pair in reversed(found) if pair[1].version), None)

    def scan_channels(self, after: tuple[int, int] | None, limit: int) -> list[Channel]:
        """Up to ``limit`` channels behind ``after``."""
        keys = sorted(key for key in self._index.channels if after is None or key > after)
        return [Channel(*key, self._index.channels[key]) for key in keys[:limit]]

    def verify(self, after: ChunkId | None, limit: int) -> Verified:
        """Report damaged ones among the next chunks."""
        page = self.scan(after, limit)
        bad = [
            BadChunk(chunk, meta.version, f"byte {self._damaged[chunk]} is damaged")
            for chunk, meta in page
            if chunk in self._damaged
        ]
        last = page[-1][0] if page and len(page) == limit else None
        return Verified(last, len(page), sum(meta.length for _, meta in page), bad)

    def check(self) -> list[str]:
        """Every inconsistency of the whole store."""
        return [bad.detail for bad in self.verify(None, len(self._entries) + 1).bad]

    # -- durability and space ----------------------------------------------------------------------

    def sync(self) -> None:
        """Everything so far survives a power loss."""
        if self._failed is not None:
            raise Fs3Error(Code.DISK, self._failed)
        self._synced = dict(self._entries), dict(self._index.channels)
        self._journal.clear()

    def tick(self) -> None:
        """Sync, unless failed."""
        if self._failed is None:
            self.sync()

    def usage(self) -> Usage:
        """Space taken and left; a chunk takes its length rounded up to 64 KiB."""
        used = sum(
            -(-len(content) // CHUNK_BYTES_MIN) * CHUNK_BYTES_MIN
            for entry in self._entries.values()
            for content in (entry.content, entry.pending_content)
        )
        free = max(0, self.capacity_bytes - used)
        return Usage(self.capacity_bytes, used, free, len(self._entries))

    def close(self) -> None:
        """Sync, unless failed."""
        self.tick()


def _applied(content: bytes, update: StageRequest) -> bytes:
    """The content after ``update``; Fs3Error if it makes no sense."""
    offset, length = update.offset, update.length
    longest = CHUNK_CONTENT_BYTES_MAX if is_value(update.chunk) else CHUNK_BYTES_MAX
    if offset < 0 or length < 0 or offset + length > longest:
        raise Fs3Error(
            Code.INVALID,
            f"bytes {offset} to {offset + length} of a chunk: 0 to {longest} are allowed",
        )
    if update.kind is UpdateKind.REMOVE:
        return b""
    if update.kind is UpdateKind.TRUNCATE:
        return content[:length].ljust(length, b"\0")
    if update.kind is UpdateKind.EXTEND:
        return content.ljust(length, b"\0")
    data = b"" if update.data is None else bytes(update.data)
    if len(data) != length:
        raise Fs3Error(Code.INVALID, f"{len(data)} bytes of data came for a length of {length}")
    if data and crc32c(data) != update.checksum:
        raise Fs3Error(Code.CORRUPT, f"data does not have the CRC {update.checksum:08x}")
    if update.kind is UpdateKind.REPLACE or not data:
        return data or content
    return content[:offset].ljust(offset, b"\0") + data + content[offset + length :]


def _safe(entry: Entry, older: Entry | None) -> bool:
    """Whether the sync covered the bytes of ``entry``: unchanged, or only committed since."""
    if older is None or entry == older:
        return entry == older
    staged = older.pending
    return staged is not None and staged.version.version == entry.committed.version


def _without(
    channels: dict[tuple[int, int], ChannelRecord], chunk: ChunkId, older: Entry | None
) -> dict[tuple[int, int], ChannelRecord]:
    """The channels without updates of ``chunk`` that are undone."""
    version = older.committed.version if older else 0
    return {
        key: record
        for key, record in channels.items()
        if record.chunk != chunk or record.version <= version
    }
