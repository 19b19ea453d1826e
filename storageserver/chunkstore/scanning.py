"""Walks over a store in key order: pages of chunks and channels, and the scrubber's step."""

from __future__ import annotations

from itertools import islice

from fs3.core.chunks import ChannelRecord, ChunkMeta
from fs3.core.types import CHUNK_ID_BYTES, ChunkId, ChunkVersion

from .files import Records
from .index import Index
from .interface import BadChunk, Channel, Verified
from .reading import Reader
from .records import (
    CHANNEL_PREFIX,
    CHUNK_PREFIX,
    Pending,
    channel_key,
    chunk_key,
    decode_channel,
    decode_channel_key,
)

_VERIFY_BYTES = 1 << 20
_SLOT_BYTES = CHUNK_ID_BYTES - 8


def channel_record(chunk: ChunkId, staged: Pending, *, pending: bool) -> ChannelRecord:
    """What a tagged staged version says about its channel, before or after its commit."""
    assert staged.tag
    version = staged.version
    return ChannelRecord(
        staged.tag.sequence,
        chunk,
        ChunkVersion(version.version),
        version.length,
        version.checksum,
        pending,
    )


def scan_chunks(
    records: Records, index: Index, after: ChunkId | None, limit: int, owner: int | None
) -> list[tuple[ChunkId, ChunkMeta]]:
    """Up to ``limit`` chunks behind ``after``, of one owner if given."""
    prefix = CHUNK_PREFIX if owner is None else CHUNK_PREFIX + owner.to_bytes(8, "big")
    start = prefix if after is None else max(prefix, chunk_key(after) + b"\0")
    found: list[tuple[ChunkId, ChunkMeta]] = []
    if limit <= 0:
        return found
    for key, _ in records.items(start):
        if not key.startswith(prefix):
            break
        chunk = ChunkId(key[1:])
        meta = index.meta(chunk)
        if meta is not None:  # else removed since the walk began
            found.append((chunk, meta))
            if len(found) == limit:
                break
    return found


def last_chunk(records: Records, index: Index, owner: int) -> tuple[ChunkId, ChunkMeta] | None:
    """The owner's committed chunk with the greatest slot."""
    prefix = CHUNK_PREFIX + owner.to_bytes(8, "big")
    for key, _ in records.items_down(prefix + b"\xff" * _SLOT_BYTES):
        if not key.startswith(prefix):
            break
        chunk = ChunkId(key[1:])
        meta = index.meta(chunk)
        if meta is not None and meta.version:
            return chunk, meta
    return None


def scan_channels(records: Records, after: tuple[int, int] | None, limit: int) -> list[Channel]:
    """Up to ``limit`` channels behind ``after``."""
    start = CHANNEL_PREFIX if after is None else channel_key(*after) + b"\0"
    return [
        Channel(*decode_channel_key(key), decode_channel(value))
        for key, value in islice(records.items(start), limit)
        if key.startswith(CHANNEL_PREFIX)
    ]


def verify_chunks(
    records: Records, index: Index, reader: Reader, after: ChunkId | None, limit: int
) -> Verified:
    """Check the committed versions of the next chunks against their checksums."""
    page = scan_chunks(records, index, after, limit, None)
    scratch = memoryview(bytearray(_VERIFY_BYTES))
    bad: list[BadChunk] = []
    length = 0
    for chunk, _ in page:
        version = index.version(chunk)
        if version is None or not version.version:
            continue
        length += version.length
        wrong = reader.verify_version(version, scratch)
        if wrong is not None:
            bad.append(BadChunk(chunk, ChunkVersion(version.version), wrong))
    last = page[-1][0] if len(page) == limit else None
    return Verified(last, len(page), length, bad)
