"""Putting bad bytes of a chunk store right: what is read, what a power cut may leave."""

from pathlib import Path
from random import Random

import pytest
from faulty_files import FaultyFiles, Machine, Stopped

from fs3.checksum import crc32c
from fs3.core.chunks import UpdateKind
from fs3.core.types import chunk_id
from fs3.errors import Code
from fs3.storageserver.chunkstore.datafiles import ChunkStoreSettings
from fs3.storageserver.chunkstore.interface import Commit, Piece, StageRequest
from fs3.storageserver.chunkstore.store import DiskChunkStore

ROOT = Path("/target")
SETTINGS = ChunkStoreSettings(reserve_bytes=0, growth_bytes_min=64 << 10)
A, B = chunk_id(1, 0), chunk_id(1, 1)
CONTENT = Random(6).randbytes(200_000)


def open_store(machine, **how):
    return DiskChunkStore(FaultyFiles(machine, **how), ROOT, SETTINGS)


def write(chunk, version, offset, data):
    return StageRequest(
        chunk, UpdateKind.WRITE, version, offset, len(data), memoryview(data), crc32c(data), 1
    )


def put(store, update):
    assert store.stage([update])[0].code is Code.OK
    assert store.commit([Commit(update.chunk, update.version, 1)]) == [Code.OK]


def get(store, chunk):
    buffer = bytearray(1 << 20)
    [result] = store.read([Piece(chunk, 0, 1 << 20)], [memoryview(buffer)], verify=True)
    return bytes(buffer[: result.length]) if result.code is Code.OK else result.code


def flip(machine, position, name="blocks.02"):
    machine.files[ROOT / name].cached[position] ^= 4


@pytest.fixture
def machine():
    return Machine()


def test_bad_bytes_are_good_again_and_nothing_else_has_changed(machine):
    store = open_store(machine)
    put(store, write(A, 1, 0, CONTENT))
    before = store.meta(A)
    flip(machine, 100_000)
    assert get(store, A) is Code.CORRUPT
    assert store.restore(A, 1, memoryview(CONTENT)) is Code.OK
    assert get(store, A) == CONTENT
    assert store.meta(A) == before
    store.close()
    store = open_store(machine)
    assert get(store, A) == CONTENT
    assert store.meta(A) == before
    assert store.check() == []


def test_bytes_behind_the_end_of_a_truncated_file_come_back(machine):
    store = open_store(machine)
    put(store, write(A, 1, 0, CONTENT))
    del machine.files[ROOT / "blocks.02"].cached[50_000:]
    assert get(store, A) is Code.CORRUPT
    assert store.restore(A, 1, memoryview(CONTENT)) is Code.OK
    assert get(store, A) == CONTENT


def test_an_append_that_is_pending_on_bad_bytes_stays_pending(machine):
    store = open_store(machine)
    put(store, write(A, 1, 0, CONTENT))
    assert store.stage([write(A, 2, 200_000, b"more")])[0].code is Code.OK
    flip(machine, 100_000)
    assert store.restore(A, 1, memoryview(CONTENT)) is Code.OK
    assert get(store, A) == CONTENT
    assert store.commit([Commit(A, 2, 1)]) == [Code.OK]
    assert get(store, A) is Code.CORRUPT  # it lies where it was appended, and says so
    assert store.restore(A, 2, memoryview(CONTENT + b"more")) is Code.OK
    assert get(store, A) == CONTENT + b"more"
    store.sync()
    assert store.check() == []


def test_a_full_disk_refuses_the_restoration_and_keeps_the_record():
    machine = Machine(total_bytes=256 << 10)
    store = open_store(machine)
    put(store, write(A, 1, 0, CONTENT))
    before = store.meta(A)
    assert store.restore(A, 1, memoryview(CONTENT)) is Code.NO_SPACE
    assert store.meta(A) == before
    assert store.check() == []


@pytest.mark.parametrize("power", [False, True])
def test_a_cut_at_any_call_leaves_the_version_with_good_bytes_or_bad_ones_that_show(power):
    def damaged():
        machine = Machine()
        files = FaultyFiles(machine)
        store = DiskChunkStore(files, ROOT, SETTINGS)
        put(store, write(A, 1, 0, CONTENT))
        put(store, write(B, 1, 0, b"beside"))
        store.sync()
        flip(machine, 100_000)
        machine.files[ROOT / "blocks.02"].sync()
        return machine, files, store

    def act(store):
        assert store.restore(A, 1, memoryview(CONTENT)) is Code.OK
        put(store, write(A, 2, 0, b"v2"))
        store.sync()

    machine, files, store = damaged()
    before = files.calls
    act(store)
    seen = set()
    for call in range(1, files.calls - before + 1):
        machine, files, store = damaged()
        files.random, files.stop_at = Random(call), files.calls + call
        with pytest.raises(Stopped):
            act(store)
        if power:
            machine.lose_power(Random(call))
        store = open_store(machine)
        found = get(store, A)
        assert found in (Code.CORRUPT, CONTENT, b"v2" + CONTENT[2:])
        assert get(store, B) == b"beside"
        assert store.meta(A).version in (1, 2)
        seen.add(found if found is Code.CORRUPT else found[:2])
    assert Code.CORRUPT in seen
    assert len(seen) > 1
