"""Which blocks chunks lie in, and what the blocks that nobody needs cost."""

import os
import tempfile
from pathlib import Path

import pytest
from faulty_files import FaultyFiles, File, Machine

from fs3.checksum import crc32c
from fs3.core import kv
from fs3.core.chunks import UpdateKind
from fs3.core.types import CHUNK_BYTES_MAX, chunk_id
from fs3.errors import Code, Fs3Error
from fs3.storageserver.chunkstore import recovery, staging
from fs3.storageserver.chunkstore import store as store_module
from fs3.storageserver.chunkstore.datafiles import ChunkStoreSettings
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import Commit, Piece, StageRequest
from fs3.storageserver.chunkstore.records import class_bytes, class_of
from fs3.storageserver.chunkstore.store import DiskChunkStore

ROOT = Path("/target")
SETTINGS = ChunkStoreSettings(reserve_bytes=0, growth_bytes_min=64 << 10)
VALUE, FILE = chunk_id(kv.NAMESPACE_FIRST, 1), chunk_id(1, 0)


@pytest.fixture
def machine():
    return Machine()


def opened(machine, settings=SETTINGS):
    return DiskChunkStore(FaultyFiles(machine), ROOT, settings)


def put(store, chunk, content, version=1):
    request = StageRequest(
        chunk,
        UpdateKind.WRITE,
        version,
        0,
        len(content),
        memoryview(content),
        crc32c(content),
        1,
        None,
    )
    assert store.stage([request])[0].code is Code.OK
    assert store.commit([Commit(chunk, version, 1)]) == [Code.OK]


def put_nothing_more(store, chunk, version):
    """What a put of a key that is there comes to."""
    store.stage([StageRequest(chunk, UpdateKind.EXTEND, version, 0, 0, None, 0, 1, None)])
    assert store.commit([Commit(chunk, version, 1)]) == [Code.OK]


def get(store, chunk, length):
    buffer = memoryview(bytearray(length))
    [found] = store.read([Piece(chunk, 0, length)], [buffer], verify=True)
    assert found.code is Code.OK
    return bytes(buffer[: found.length])


@pytest.mark.parametrize("power", range(11))
def test_a_value_and_its_header_fit_a_block_of_their_size(power):
    """The largest header there is, and four pages more than the value."""
    size = (64 << 10) << power
    longest = size + kv.HEADER_BYTES + kv.KEY_BYTES_MAX
    assert class_bytes(class_of(longest, roomy=True)) == size + 16384
    assert class_bytes(class_of(size, roomy=False)) == size


def test_values_take_little_more_than_their_size_and_read_back(machine):
    store = opened(machine)
    content = os.urandom(64 << 10)
    for slot in range(5):
        chunk = chunk_id(kv.NAMESPACE_FIRST, slot)
        put(store, chunk, kv.header(b"key", len(content)) + content)
    assert store.usage().used_bytes == 5 * (80 << 10)
    store.close()
    store = opened(machine)
    for slot in range(5):
        chunk = chunk_id(kv.NAMESPACE_FIRST, slot)
        assert get(store, chunk, 1 << 20) == kv.header(b"key", len(content)) + content
    assert store.check() == []


def test_a_chunk_of_a_file_may_not_be_longer_than_the_largest_block_of_files(machine):
    store = opened(machine)
    data = bytes(10)
    for chunk, code in ((VALUE, Code.OK), (FILE, Code.INVALID)):
        request = StageRequest(
            chunk, UpdateKind.WRITE, 1, CHUNK_BYTES_MAX, 10, memoryview(data), crc32c(data), 1, None
        )
        assert store.stage([request])[0].code is code


def test_a_value_takes_the_smallest_block_that_holds_it(machine):
    store = opened(machine)
    for length, block in (
        (1, 64),
        (64 << 10, 64),
        (65 << 10, 80),
        (81 << 10, 128),
        (129 << 10, 144),
    ):
        put(store, VALUE, os.urandom(length))
        store.sync()
        assert store.usage().used_bytes == block << 10
        store.discard([VALUE])
    store.close()


def test_a_store_that_does_not_come_up_stays_of_the_format_before(machine, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(recovery, "_FORMAT_VALUE", b"fs3 chunk store 1")
        opened(machine).close()

    def fails(*_arguments):
        raise Fs3Error(Code.CORRUPT, "its log is gone")

    with monkeypatch.context() as bad:
        bad.setattr(store_module, "check_watermark", fails)
        with pytest.raises(Fs3Error):
            opened(machine)
    monkeypatch.setattr(recovery, "_FORMAT_VALUE", b"fs3 chunk store 1")
    opened(machine).close()


def test_a_store_of_the_format_before_is_opened_with_values_where_they_are(machine, monkeypatch):
    content = kv.header(b"key", 64 << 10) + os.urandom(64 << 10)
    with monkeypatch.context() as before:
        before.setattr(recovery, "_FORMAT_VALUE", b"fs3 chunk store 1")
        before.setattr(staging, "is_value", lambda chunk: False)
        store = opened(machine)
        put(store, VALUE, content)
        assert store.usage().used_bytes == 128 << 10
        store.close()
    store = opened(machine)
    assert get(store, VALUE, 1 << 20) == content
    put_nothing_more(store, VALUE, 2)
    assert store.usage().used_bytes == 128 << 10, "it was copied for nothing"
    assert get(store, VALUE, 1 << 20) == content
    store.discard([VALUE])
    put(store, VALUE, content)
    store.sync()
    assert store.usage().used_bytes == 80 << 10
    store.close()
    monkeypatch.setattr(recovery, "_FORMAT_VALUE", b"fs3 chunk store 1")
    monkeypatch.setattr(recovery, "_FORMAT_BEFORE", b"")
    with pytest.raises(Fs3Error) as refused:
        opened(machine)
    assert refused.value.code is Code.UNSUPPORTED


def test_blocks_that_are_needed_again_and_again_keep_their_disk_space(machine):
    calls = []
    settings = ChunkStoreSettings(reserve_bytes=0, idle_bytes_max=0, idle_ticks=3)
    store = DiskChunkStore(FaultyFiles(machine, on_call=calls.append), ROOT, settings)
    content = os.urandom(64 << 10)
    for _ in range(9):
        for slot in range(40):
            put(store, chunk_id(kv.NAMESPACE_FIRST, slot), content)
        store.discard([chunk_id(kv.NAMESPACE_FIRST, slot) for slot in range(40)])
        store.tick()
    calls.clear()
    for slot in range(30):
        put(store, chunk_id(kv.NAMESPACE_FIRST, slot), content)
    store.discard([chunk_id(kv.NAMESPACE_FIRST, slot) for slot in range(30)])
    for _ in range(2):
        store.tick()
    assert "fallocate" not in calls
    before = store.usage()
    for _ in range(6):
        store.tick()
    assert "punch" in calls
    assert store.usage().used_bytes == before.used_bytes == 0
    assert store.check() == []


def test_a_tmpfs_gives_its_memory_when_it_is_written():
    if not Path("/dev/shm").is_mount():
        pytest.skip("/dev/shm is not mounted")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        root = Path(directory) / "target"
        settings = ChunkStoreSettings(reserve_bytes=0, growth_bytes_min=8 << 20)
        store = DiskChunkStore(Files(), root, settings)
        content = kv.header(b"key", 64 << 10) + os.urandom(64 << 10)
        put(store, VALUE, content)
        data_file = root / "blocks.11"
        assert data_file.stat().st_size >= 7 << 20
        assert data_file.stat().st_blocks * 512 <= 128 << 10
        assert get(store, VALUE, 1 << 20) == content
        store.close()


FULL = ChunkStoreSettings(
    reserve_bytes=1 << 20, growth_bytes_min=4 << 20, idle_bytes_max=0, idle_ticks=0
)


def create(store, slot):
    content = bytes(64 << 10)
    request = StageRequest(
        chunk_id(1, slot),
        UpdateKind.WRITE,
        1,
        0,
        len(content),
        memoryview(content),
        crc32c(content),
    )
    return store.create([request])[0].code


@pytest.mark.parametrize("restarted", [False, True])
def test_blocks_without_disk_space_are_not_taken_out_of_the_reserve(restarted):
    machine = Machine(total_bytes=(6 << 20) + (32 << 10))  # and small files
    machine.sparse = True
    store = opened(machine, FULL)
    assert create(store, 0) is Code.OK
    assert store.usage().free_bytes >= 4 << 20  # the file is long enough for all of that
    other = File()
    machine.files[Path("/target/other")] = other
    other.take(0, 3 << 20)
    if restarted:
        store.close()
        store = opened(machine, FULL)
        assert store.usage().free_bytes <= machine.total_bytes - machine.used_bytes - (1 << 20)
    codes = [create(store, slot) for slot in range(1, 60)]
    assert codes.count(Code.OK) == 31  # 2 MiB, with the first
    assert set(codes) == {Code.OK, Code.NO_SPACE}
    assert machine.total_bytes - machine.used_bytes >= 1 << 20
    assert store.check() == []
    gone = [chunk_id(1, slot) for slot in range(5)]
    store.discard(gone)
    store.sync()
    assert [create(store, slot) for slot in range(5)] == [Code.OK] * 5
