"""Updates for tests of chunk stores, and what they come to."""

from __future__ import annotations

from fs3.checksum import crc32c
from fs3.core.chunks import UpdateKind
from fs3.core.types import chunk_id
from fs3.errors import Code
from fs3.storageserver.chunkstore.datafiles import ChunkStoreSettings
from fs3.storageserver.chunkstore.interface import Commit, Piece, StageRequest

SETTINGS = ChunkStoreSettings(
    reserve_bytes=0, growth_bytes_min=64 << 10, idle_bytes_max=0, idle_ticks=0
)
A, B, C = chunk_id(1, 0), chunk_id(1, 1), chunk_id(2, 0)
PATTERN = bytes((i * 7 + i // 251) % 256 for i in range(300_000))


def write(chunk, version, offset, data, tag=None, kind=UpdateKind.WRITE):
    return StageRequest(
        chunk, kind, version, offset, len(data), memoryview(data), crc32c(data), 1, tag
    )


def resize(chunk, version, kind, length):
    return StageRequest(chunk, kind, version, 0, length)


def remove(chunk, version, tag=None):
    return StageRequest(chunk, UpdateKind.REMOVE, version, tag=tag)


def put(store, *updates, chain_version=1):
    for update in updates:
        [result] = store.stage([update])
        assert result.code is Code.OK, result
        commit = Commit(update.chunk, update.version, chain_version)
        assert store.commit([commit]) == [Code.OK]


def get(store, chunk, offset=0, length=1 << 20, **how):
    buffer = bytearray(length)
    [result] = store.read([Piece(chunk, offset, length)], [memoryview(buffer)], **how)
    if result.code is not Code.OK:
        return result.code
    content = bytes(buffer[: result.length])
    assert result.crc == crc32c(content)
    return content
