"""The table of remembered places, beside a plain model."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from fs3 import dataplane
from fs3.checksum import CHECKSUM_BLOCK_BYTES, crc32c
from fs3.core.kv import NAMESPACE_FIRST
from fs3.core.stamps import Stamps, StampView, served_word
from fs3.core.types import ChainId, ChainVersion, ChunkId, chunk_id
from fs3.errors import Fs3Error
from fs3.transport.remembered import Remembered

BLOCK = CHECKSUM_BLOCK_BYTES
ROWS = 1000


def items_of(pieces: list[tuple[ChunkId, int, int]], chain: int = 1, version: int = 1) -> Any:
    made = np.zeros(len(pieces), dataplane.READ_ITEM)
    for item, (chunk, offset, length) in zip(made, pieces, strict=True):
        item["chunk"] = np.frombuffer(chunk, "V24")[0]
        item["chain"], item["chain_version"] = chain, version
        item["offset"], item["length"] = offset, length
    return made


class Told:
    """Chunks in one file, each with a row of its own, as a server would tell of them."""

    def __init__(self, chunks_max: int, crcs_max: int) -> None:
        self.memory = {15: memoryview(bytearray(64 + 8 * ROWS))}
        self.memory[31] = memoryview(bytearray(64 + 8 * ROWS))
        self.stamps = {number: Stamps(memory) for number, memory in self.memory.items()}
        self.remembered = Remembered(
            lambda number: StampView(self.memory[number]), {3: 3, 0: 0}, chunks_max, crcs_max
        )
        self.content: dict[ChunkId, bytes] = {}

    def learn(self, chunks: list[ChunkId], stamps: int = 15) -> None:
        places = np.zeros(len(chunks), dataplane.CHUNK_PLACE)
        crcs: list[int] = []
        for at, chunk in enumerate(chunks):
            content = self.content[chunk]
            mine = [crc32c(content[s : s + BLOCK]) for s in range(0, len(content), BLOCK)]
            row = chunk[-1]
            stamp = self.stamps[stamps].stamp(row)
            fields = (len(content), crc32c(content), len(mine))
            places[at] = (at, stamps, row, stamp, 5, row << 20, 3, *fields)
            crcs += mine
        items = items_of([(chunk, 0, 1) for chunk in chunks])
        self.remembered.learn(items, places, np.array(crcs, np.uint32))


def chunk(number: int) -> ChunkId:
    return chunk_id(7, number)


def test_places_are_those_of_the_newest_chunks_and_memory_is_bounded():
    rng = random.Random(3)
    told = Told(8, 40)
    order: list[ChunkId] = []
    for _ in range(300):
        chunks = [chunk(n) for n in rng.sample(range(20), rng.randrange(1, 5))]
        for each in chunks:
            told.content[each] = rng.randbytes(rng.randrange(1, 9 * BLOCK))
        told.learn(chunks)
        order = [c for c in order if c not in chunks] + chunks
        known = [c for c in order if told.remembered.find(items_of([(c, 0, 1)]))]
        assert len(told.remembered) == len(known) <= 8
        assert known == order[len(order) - len(known) :]  # the newest
        needed = [-(-len(told.content[c]) // BLOCK) for c in known]
        assert sum(needed) <= 40
        assert known[-1] == chunks[-1]
        for each in known:
            content = told.content[each]
            start = rng.randrange(len(content) + 100)
            length = rng.randrange(len(content) + 100)
            found = told.remembered.find(items_of([(each, start, length)]))
            assert found is not None
            assert found.entries["version"].tolist() == [5]
            [piece] = told.remembered.pieces(found)
            _, crc, position, before, got, after, _ = piece
            assert got == len(content[start : start + length])
            if got:
                begin = position - (each[-1] << 20)
                assert begin + before == start
                assert crc == crc32c(content[begin : begin + before + got + after])
    assert len(told.remembered._chunks) == 8
    assert len(told.remembered._crcs) == 40


def test_a_batch_is_located_piece_by_piece():
    rng = random.Random(4)
    told = Told(64, 4096)
    for number in range(20):
        told.content[chunk(number)] = rng.randbytes(rng.choice([1, BLOCK, 70_000, 150_000]))
    told.learn([chunk(number) for number in range(20)])
    pieces = [
        (chunk(rng.randrange(20)), rng.randrange(160_000), rng.choice([0, 1, 4096, BLOCK, 90_000]))
        for _ in range(200)
    ]
    found = told.remembered.find(items_of(pieces))
    assert found is not None
    for asked, piece in zip(pieces, told.remembered.pieces(found), strict=True):
        single = told.remembered.find(items_of([asked]))
        assert single is not None
        assert told.remembered.pieces(single) == [piece]


def test_a_batch_stands_if_all_of_it_does_and_what_does_not_is_forgotten():
    told = Told(64, 4096)
    for number in range(6):
        told.content[chunk(number)] = b"x" * 10
    told.learn([chunk(n) for n in range(3)], 15)
    told.learn([chunk(n) for n in range(3, 6)], 31)
    items = items_of([(chunk(n), 0, 1) for n in range(6)])
    found = told.remembered.find(items)
    assert found is not None
    assert told.remembered.standing(found)
    told.stamps[31].changed(1)  # nobody's
    assert told.remembered.standing(found)
    told.stamps[31].changed(4)
    assert not told.remembered.standing(found)
    assert told.remembered.find(items) is None
    assert told.remembered.unknown(items) == [4]


def test_every_target_of_a_batch_must_serve():
    told = Told(64, 4096)
    for number in range(2):
        told.content[chunk(number)] = b"x" * 10
    told.learn([chunk(0)], 15)
    told.learn([chunk(1)], 31)
    items = items_of([(chunk(0), 0, 1), (chunk(1), 0, 1)], chain=1, version=4)
    items["chain"][1] = 2
    found = told.remembered.find(items)
    assert found is not None

    def serving(now_ms: int = 0) -> bool:
        return told.remembered.serving(found, lambda: now_ms)

    told.stamps[15].serve(ChainId(1), ChainVersion(4), 100)
    assert not serving()
    told.stamps[31].serve(ChainId(2), ChainVersion(4), 50)
    assert serving()
    assert not serving(50)
    told.stamps[31].serve(ChainId(2), ChainVersion(5), 100)
    assert not serving()
    assert served_word(2, 5) == told.memory[31].cast("Q")[0]


def test_of_each_chunk_one_item_is_wanted():
    told = Told(4, 40)
    value = chunk_id(NAMESPACE_FIRST, 1)
    items = items_of([(chunk(1), 0, 1), (value, 0, 1), (chunk(1), 5, 1), (chunk(2), 0, 1)])
    assert told.remembered.unknown(items) == [0, 1, 3]


@pytest.mark.parametrize(
    "wrong",
    [{"item": 1}, {"crcs": 2}, {"length": 40_000}, {"row": ROWS}, {"length": 1 << 30}],
    ids=str,
)
def test_places_that_make_no_sense_are_refused(wrong):
    told = Told(4, 40)
    place = {"item": 0, "stamps": 15, "row": 1, "stamp": 1, "length": 9, "crcs": 1} | wrong
    places = np.zeros(1, dataplane.CHUNK_PLACE)
    for name, value in place.items():
        places[name] = value
    items = items_of([(chunk(1), 0, 1)])
    with pytest.raises(Fs3Error, match="PROTOCOL"):
        told.remembered.learn(items, places, np.zeros(1, np.uint32))
    assert not len(told.remembered)
