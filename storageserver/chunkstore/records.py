"""What the store keeps in RocksDB: keys, values, and their encoding (docs/formats.md has offsets).

    c + chunk id                     a chunk: committed version, pending version, undo versions
    s + class + block + segment      CRCs of 64 whole checksum blocks (1 MiB) of a data block
    h + client + channel             newest committed update of a channel
    m + name                         the store's own state

A *version* says everything about one content of a chunk except the CRCs of its whole checksum
blocks, which belong to the data block: a version that shares its block with a longer one (an append
in place) shares them, too. The CRC of a partial last checksum block stands in the version itself,
since it is what an append changes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from fs3.checksum import CHECKSUM_BLOCK_BYTES
from fs3.core.chunks import ChannelRecord, Tag
from fs3.core.types import (
    CHUNK_BYTES_MIN,
    CHUNK_ID_BYTES,
    CHUNK_ROOM_BYTES,
    ChunkId,
    ChunkVersion,
)
from fs3.errors import Code, Fs3Error

FORMAT = 1
_PLAIN_CLASSES = 11
SIZE_CLASSES = 2 * _PLAIN_CLASSES
# The bytes of a block, by class: 64 KiB << 0 to 64 KiB << 10, and the same with room for a header,
# so that a value of the KV cache of as many bytes does not take a block of twice the size.
BLOCK_BYTES = (
    *(CHUNK_BYTES_MIN << k for k in range(_PLAIN_CLASSES)),
    *((CHUNK_BYTES_MIN << k) + CHUNK_ROOM_BYTES for k in range(_PLAIN_CLASSES)),
)
NO_CLASS = 255  # of a version without bytes, which has no block
SEGMENT_SLOTS = 64  # CRCs in one segment record

CHUNK_PREFIX, SEGMENT_PREFIX, CHANNEL_PREFIX, STATE_PREFIX = b"c", b"s", b"h", b"m"
FORMAT_KEY = b"mformat"
DURABLE_KEY = b"mdurable"  # the newest epoch whose data is on stable storage
OPEN_KEY = b"mopen"  # boot id of the machine that has the store open; empty: closed cleanly


class Version(NamedTuple):
    """One content of a chunk, and where it lies."""

    version: int = 0  # 0: the chunk was never committed
    chain_version: int = 0
    epoch: int = 0  # durability epoch in which it was staged
    block: int = 0
    length: int = 0
    high: int = 0  # bytes of the block that some committed version uses; append in place behind
    checksum: int = 0  # of the whole content
    tail: int = 0  # CRC of the partial last checksum block; 0 if there is none
    size_class: int = NO_CLASS


CONTENT_FIELDS = 3  # of a version: the fields from here on say what its bytes are


class Pending(NamedTuple):
    """A staged version."""

    version: Version
    removed: bool
    tag: Tag | None


class ChunkRecord(NamedTuple):
    """The value behind a chunk's key. ``undo``: older versions, newest first (see store.py)."""

    committed: Version
    pending: Pending | None
    undo: tuple[Version, ...]


VERSION = struct.Struct("<QQQIIIIIB3x")
_HEAD = struct.Struct("<BBBx")
_TAG = struct.Struct("<QIQ")
_CHANNEL = struct.Struct(f"<QQII{CHUNK_ID_BYTES}s")
_CHANNEL_EPOCH = struct.Struct("<Q")
_CHANNEL_KEY = struct.Struct(">cQI")
_SEGMENT_KEY = struct.Struct(">cBIH")
_PENDING, _REMOVED, _TAGGED = 1, 2, 4
_NO_UNDO: tuple[Version, ...] = ()
NO_VERSION = Version()
EPOCH_MAX = (1 << 64) - 1


def encode_epoch(epoch: int) -> bytes:
    """The value behind DURABLE_KEY."""
    return epoch.to_bytes(8, "little")


def decode_epoch(value: bytes) -> int:
    """The epoch in that value."""
    return int.from_bytes(value, "little")


def class_bytes(size_class: int) -> int:
    """The bytes of a block."""
    return BLOCK_BYTES[size_class]


def class_of(length: int, *, roomy: bool) -> int:
    """The class of the smallest blocks for ``length`` bytes; ``roomy``: with more room, too."""
    if length == 0:
        return NO_CLASS
    plain = _power_class(length)
    if not roomy:
        return plain
    with_room = _PLAIN_CLASSES + _power_class(max(1, length - CHUNK_ROOM_BYTES))
    if plain < _PLAIN_CLASSES and class_bytes(plain) < class_bytes(with_room):
        return plain
    return with_room


def _power_class(length: int) -> int:
    return max(0, (length - 1).bit_length() - (CHUNK_BYTES_MIN.bit_length() - 1))


def class_slots(size_class: int) -> int:
    """How many whole checksum blocks a block has."""
    return class_bytes(size_class) // CHECKSUM_BLOCK_BYTES


def encode_chunk(
    committed: Version, pending: Pending | None, undo: tuple[Version, ...] = _NO_UNDO
) -> bytes:
    """The value behind a chunk's key."""
    if pending is None:
        parts = [_HEAD.pack(FORMAT, 0, len(undo)), VERSION.pack(*committed)]
    else:
        flags = _PENDING | (pending.removed and _REMOVED) | (_TAGGED if pending.tag else 0)
        parts = [
            _HEAD.pack(FORMAT, flags, len(undo)),
            VERSION.pack(*committed),
            VERSION.pack(*pending.version),
        ]
        if pending.tag:
            parts.append(_TAG.pack(*pending.tag))
    parts += [VERSION.pack(*version) for version in undo]
    return b"".join(parts)


def decode_chunk(chunk: ChunkId, value: bytes) -> ChunkRecord:
    """The record in ``value``; CORRUPT if it is none."""
    try:
        form, flags, undo_count = _HEAD.unpack_from(value)
        _check_format(form)
        position = _HEAD.size
        committed = Version._make(VERSION.unpack_from(value, position))
        position += VERSION.size
        pending = None
        if flags & _PENDING:
            version = Version._make(VERSION.unpack_from(value, position))
            position += VERSION.size
            tag = None
            if flags & _TAGGED:
                tag = Tag._make(_TAG.unpack_from(value, position))
                position += _TAG.size
            pending = Pending(version, bool(flags & _REMOVED), tag)
        undo = tuple(
            Version._make(VERSION.unpack_from(value, position + i * VERSION.size))
            for i in range(undo_count)
        )
    except struct.error as error:
        raise Fs3Error(
            Code.CORRUPT, f"record of chunk {chunk.hex()} has {len(value)} bytes: too short"
        ) from error
    return ChunkRecord(committed, pending, undo)


def _check_format(form: int) -> None:
    if form != FORMAT:
        raise Fs3Error(Code.UNSUPPORTED, f"chunk record format {form}: this release reads {FORMAT}")


def chunk_key(chunk: ChunkId) -> bytes:
    """The key of a chunk's record."""
    return CHUNK_PREFIX + chunk


def segment_key(size_class: int, block: int, segment: int) -> bytes:
    """The key of 64 CRCs of a block."""
    return _SEGMENT_KEY.pack(SEGMENT_PREFIX, size_class, block, segment)


def decode_segment_key(key: bytes) -> tuple[int, int, int]:
    """Class, block, segment."""
    _, size_class, block, segment = _SEGMENT_KEY.unpack(key)
    return size_class, block, segment


def channel_key(client: int, channel: int) -> bytes:
    """The key of a channel's record."""
    return _CHANNEL_KEY.pack(CHANNEL_PREFIX, client, channel)


def decode_channel_key(key: bytes) -> tuple[int, int]:
    """Client, channel."""
    _, client, channel = _CHANNEL_KEY.unpack(key)
    return client, channel


def encode_channel(record: ChannelRecord, epoch: int) -> bytes:
    """The value behind a channel's key; ``epoch``: in which it is written."""
    fields = record.sequence, record.version, record.length, record.checksum, record.chunk
    return _CHANNEL.pack(*fields) + _CHANNEL_EPOCH.pack(epoch)


def decode_channel(value: bytes) -> ChannelRecord:
    """The record in ``value``."""
    sequence, version, length, checksum, chunk = _CHANNEL.unpack_from(value)
    return ChannelRecord(sequence, ChunkId(chunk), ChunkVersion(version), length, checksum)


def channel_epoch(value: bytes) -> int:
    """The epoch in which it was written; of a value of before there were any, the last of all."""
    if len(value) == _CHANNEL.size:
        return EPOCH_MAX
    return int(_CHANNEL_EPOCH.unpack_from(value, _CHANNEL.size)[0])


# A row of the index: a version and, of a pending one, the number. Same layout as VERSION + "<Q".
ROW = struct.Struct("<QQQIIIIIB3xQ")
ROW_DTYPE = np.dtype(
    [
        ("version", "<u8"),
        ("chain_version", "<u8"),
        ("epoch", "<u8"),
        ("block", "<u4"),
        ("length", "<u4"),
        ("high", "<u4"),
        ("checksum", "<u4"),
        ("tail", "<u4"),
        ("size_class", "u1"),
        ("unused", "u1", (3,)),
        ("pending_version", "<u8"),
    ]
)
assert ROW_DTYPE.itemsize == ROW.size
