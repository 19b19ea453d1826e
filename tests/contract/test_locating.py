"""Where ranges of chunks lie, as a disk store tells it, and that they stay there while held."""

import os
import random

import numpy as np
import pytest

from fs3.checksum import crc32c
from fs3.core.chunks import UpdateKind
from fs3.core.types import chunk_id
from fs3.dataplane import LOCATE_RESULT
from fs3.errors import Code
from fs3.storageserver.chunkstore.datafiles import ChunkStoreSettings
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import Commit, Piece, StageRequest
from fs3.storageserver.chunkstore.store import DiskChunkStore

SETTINGS = ChunkStoreSettings(
    reserve_bytes=0, growth_bytes_min=64 << 10, idle_bytes_max=0, idle_ticks=0
)
A, B = chunk_id(1, 0), chunk_id(1, 1)
PATTERN = bytes((i * 7 + i // 251) % 256 for i in range(750_000))


@pytest.fixture
def store(tmp_path):
    made = DiskChunkStore(Files(), tmp_path / "target", SETTINGS)
    yield made
    made.close()


def write(chunk, version, offset, data):
    crc = crc32c(data)
    return StageRequest(
        chunk, UpdateKind.WRITE, version, offset, len(data), memoryview(data), crc, 1
    )


def put(store, *updates):
    for update in updates:
        [result] = store.stage([update])
        assert result.code is Code.OK, result
        assert store.commit([Commit(update.chunk, update.version, 1)]) == [Code.OK]


def locate(store, chunk, ranges):
    """The places of ranges (offset, length) of a chunk."""
    pieces = [Piece(chunk, offset, length) for offset, length in ranges]
    return np.array(store.locate(pieces, 0), LOCATE_RESULT)


def bytes_at(store, place):
    """The bytes of a place, whose CRC is right."""
    before, length, after = (int(place[name]) for name in ("before", "length", "after"))
    found = os.pread(
        store.data_file(int(place["file"])), before + length + after, int(place["position"])
    )
    assert crc32c(found) == place["crc"]
    return found[before : before + length]


@pytest.mark.parametrize(
    "update",
    [
        write(A, 2, 0, bytes(100_000)),
        write(A, 2, 90_000, bytes(10)),
        write(A, 2, 100_000, PATTERN[:20_000]),
        StageRequest(A, UpdateKind.TRUNCATE, 2, length=30_000),
        StageRequest(A, UpdateKind.EXTEND, 2, length=200_000),
        StageRequest(A, UpdateKind.REMOVE, 2),
    ],
    ids=lambda update: f"{update.kind.name}-{update.offset}-{update.length}",
)
def test_located_bytes_stay_while_held_whatever_happens_to_their_chunk(store, update):
    put(store, write(A, 1, 0, PATTERN[:100_000]))
    token = store.hold()
    ranges = [(0, 100_000), (20_000, 1000), (16_384, 16_384), (99_000, 1000), (40_000, 50_000)]
    places = locate(store, A, ranges)
    put(store, update)
    for slot in range(8):  # whatever was freed would be taken now
        put(store, write(chunk_id(2, slot), 1, 0, bytes([slot + 1]) * 100_000))
    store.sync()
    store.tick()
    for place, (offset, length) in zip(places, ranges, strict=True):
        assert bytes_at(store, place) == PATTERN[offset : offset + length]
    store.let_go(token)
    assert store.check() == []


def test_a_block_that_was_held_is_reused_afterwards(store):
    put(store, write(A, 1, 0, PATTERN[:100_000]))
    store.sync()
    token = store.hold()
    (place,) = locate(store, A, [(0, 100)])
    put(store, write(A, 2, 0, bytes(100_000)))
    store.sync()
    store.sync()  # the undo version's block is free as well
    store.let_go(token)
    for slot in range(8):
        put(store, write(chunk_id(2, slot), 1, 0, bytes([slot + 1]) * 100_000))
    with pytest.raises(AssertionError):
        bytes_at(store, place)


def test_located_ranges_are_cut_at_the_chunks_end_and_unknown_chunks_have_none(store):
    put(store, write(A, 3, 0, PATTERN[:50_000]), write(B, 1, 0, PATTERN[:16_384]))
    ranges = [(49_000, 5000), (50_000, 10), (60_000, 10), (0, 0), (49_152, 848)]
    places = locate(store, A, ranges)
    assert places["length"].tolist() == [1000, 0, 0, 0, 848]
    assert places["code"].tolist() == [Code.OK] * 5
    assert places["version"].tolist() == [3] * 5
    assert bytes_at(store, places[0]) == PATTERN[49_000:50_000]
    assert bytes_at(store, places[4]) == PATTERN[49_152:50_000]
    (whole,) = locate(store, B, [(0, 20_000)])
    assert bytes_at(store, whole) == PATTERN[:16_384]
    (nothing,) = locate(store, chunk_id(7, 7), [(0, 1)])
    assert (nothing["code"], nothing["length"]) == (Code.NO_CHUNK, 0)


def test_a_pending_version_is_not_located(store):
    store.stage([write(A, 1, 0, PATTERN[:100])])
    (nothing,) = locate(store, A, [(0, 100)])
    assert nothing["code"] == Code.NO_CHUNK
    store.commit([Commit(A, 1, 1)])
    store.stage([write(A, 2, 0, bytes(100))])
    (place,) = locate(store, A, [(0, 100)])
    assert bytes_at(store, place) == PATTERN[:100]


def test_random_ranges_are_located_with_the_crc_of_what_is_there(store):
    rng = random.Random(5)
    size = 700_001
    put(store, write(A, 1, 0, PATTERN[:size]))
    ranges = [(rng.randrange(size), rng.randrange(1, 200_000)) for _ in range(200)]
    for place, (offset, length) in zip(locate(store, A, ranges), ranges, strict=True):
        assert bytes_at(store, place) == PATTERN[offset : min(offset + length, size)]
