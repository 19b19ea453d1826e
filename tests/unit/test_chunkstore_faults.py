"""The chunk store on a disk that is full, broken, damaged or busy."""

import errno
import os
import threading
from pathlib import Path
from random import Random

import pytest
from faulty_files import FaultyFiles, Machine

from fs3.checksum import crc32c
from fs3.core.chunks import ChannelRecord, ChunkMeta, Tag, UpdateKind
from fs3.core.types import chunk_id
from fs3.errors import Code, Fs3Error
from fs3.storageserver.chunkstore.datafiles import ChunkStoreSettings
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import Channel, Commit, Piece, StageRequest
from fs3.storageserver.chunkstore.store import DiskChunkStore

pytestmark = pytest.mark.usefixtures("no_clock_in_stores")  # calls are counted

ROOT = Path("/target")
SETTINGS = ChunkStoreSettings(reserve_bytes=0, growth_bytes_min=64 << 10)
A, B, C = chunk_id(1, 0), chunk_id(1, 1), chunk_id(2, 0)
CONTENT = Random(5).randbytes(200_000)


def write(chunk, version, offset, data, tag=None):
    view = memoryview(data)
    return StageRequest(
        chunk, UpdateKind.WRITE, version, offset, len(data), view, crc32c(data), 1, tag
    )


def put(store, *updates):
    for update in updates:
        [result] = store.stage([update])
        assert result.code is Code.OK, result
        assert store.commit([Commit(update.chunk, update.version, 1)]) == [Code.OK]


def get(store, chunk, offset=0, length=1 << 20, **how):
    buffer = bytearray(length)
    [result] = store.read([Piece(chunk, offset, length)], [memoryview(buffer)], **how)
    return bytes(buffer[: result.length]) if result.code is Code.OK else result.code


class Next:
    """Fails the next call of one name with an errno."""

    def __init__(self):
        self.due: dict[str, int] = {}
        self.counts: dict[str, int] = {}

    def __call__(self, name):
        self.counts[name] = self.counts.get(name, 0) + 1
        number = self.due.pop(name, None)
        if number:
            raise OSError(number, f"injected into {name}")


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def faults():
    return Next()


@pytest.fixture
def store(machine, faults):
    return DiskChunkStore(FaultyFiles(machine, on_call=faults), ROOT, SETTINGS)


@pytest.mark.parametrize("call", ["pwritev", "fallocate"])
def test_full_disk_refuses_that_update_only(store, faults, call):
    put(store, write(A, 1, 0, b"old"))
    faults.due[call] = errno.ENOSPC
    results = store.stage([write(B, 1, 0, CONTENT), write(A, 2, 0, b"new")])
    assert [result.code for result in results] == [Code.NO_SPACE, Code.OK]
    assert store.meta(B) is None
    assert store.failed is None
    assert store.check() == []
    put(store, write(B, 1, 0, CONTENT))
    assert get(store, B) == CONTENT


def test_disk_runs_full_and_serves_again_after_a_removal():
    store = DiskChunkStore(FaultyFiles(Machine(total_bytes=1 << 20)), ROOT, SETTINGS)
    stored = 0
    while store.stage([write(chunk_id(9, stored), 1, 0, b"x" * 60_000)])[0].code is Code.OK:
        store.commit([Commit(chunk_id(9, stored), 1, 1)])
        stored += 1
    assert stored == 16
    assert store.usage().free_bytes == 0
    removal = StageRequest(chunk_id(9, 3), UpdateKind.REMOVE, 2)
    put(store, removal)
    store.sync()  # a removed chunk's block may be needed again until the removal is durable
    put(store, write(A, 1, 0, b"y" * 60_000))
    assert get(store, chunk_id(9, 15)) == b"x" * 60_000
    assert store.check() == []


def test_reserve_and_capacity_stop_growth_before_the_disk_is_full():
    settings = ChunkStoreSettings(reserve_bytes=1 << 20, growth_bytes_min=1)
    store = DiskChunkStore(FaultyFiles(Machine(total_bytes=(1 << 20) + 65_536)), ROOT, settings)
    put(store, write(A, 1, 0, b"x"))
    [result] = store.stage([write(B, 1, 0, b"x")])
    assert result.code is Code.NO_SPACE
    settings = ChunkStoreSettings(reserve_bytes=0, capacity_bytes=1 << 16, growth_bytes_min=1)
    store = DiskChunkStore(FaultyFiles(Machine()), ROOT, settings)
    put(store, write(A, 1, 0, b"x"))
    [result] = store.stage([write(B, 1, 0, b"x")])
    assert (result.code, store.usage().free_bytes) == (Code.NO_SPACE, 0)
    assert "65536 of 65536 bytes" in result.detail


def test_capacity_counts_blocks_that_are_there_already():
    """A data file grows by more blocks than one: they must not be used past the capacity."""
    settings = ChunkStoreSettings(reserve_bytes=0, capacity_bytes=(1 << 20) + 65_536)
    store = DiskChunkStore(FaultyFiles(Machine()), ROOT, settings)
    codes = [
        store.stage([write(chunk_id(7, n), 1, 0, b"x" * (1 << 20 if n == 1 else 1))])[0].code
        for n in range(4)
    ]
    assert codes == [Code.OK, Code.OK, Code.NO_SPACE, Code.NO_SPACE]
    assert (store.usage().used_bytes, store.usage().free_bytes) == (settings.capacity_bytes, 0)


@pytest.mark.parametrize("call", ["pwritev", "records.write"])
def test_disk_error_in_a_write_fails_the_store_for_good(store, machine, faults, call):
    put(store, write(A, 1, 0, b"old"))
    faults.due[call] = errno.EIO
    results = store.stage([write(C, 1, 0, b"c"), write(A, 2, 0, b"new")])
    assert [result.code for result in results] == [Code.DISK] * 2
    assert "injected" in store.failed
    assert store.stage([write(A, 2, 0, b"new")])[0].code is Code.DISK
    assert store.commit([Commit(A, 2, 1)]) == [Code.DISK]
    assert get(store, A) is Code.DISK
    with pytest.raises(Fs3Error, match="injected"):
        store.sync()
    store.tick()
    store.close()
    again = DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)
    assert get(again, A) == b"old"
    assert again.check() == []


@pytest.mark.parametrize("call", ["fdatasync", "records.sync"])
def test_failed_sync_is_never_tried_again(store, faults, call):
    put(store, write(A, 1, 0, b"x"))
    faults.due[call] = errno.EIO
    for _ in range(2):
        with pytest.raises(Fs3Error, match="injected") as error:
            store.sync()
        assert error.value.code is Code.DISK
    assert get(store, A) is Code.DISK


def test_disk_error_in_a_read_fails_the_store(store, faults):
    put(store, write(A, 1, 0, CONTENT))
    for length in (10, 100_000):
        assert len(get(store, A, 5, length)) == length
    faults.due["preadv"] = errno.EIO
    assert get(store, A, 5, 10) is Code.DISK
    assert os.strerror(errno.EIO) in store.failed


def test_an_error_at_any_call_leaves_a_store_that_opens_whole():
    def run(files):
        store = DiskChunkStore(files, ROOT, SETTINGS)
        codes = set()
        for version in range(1, 6):
            updates = [write(A, version, version * 9000, CONTENT), write(B, version, 0, b"b")]
            codes |= {result.code for result in store.stage(updates)}
            codes |= set(store.commit([Commit(A, version, 1), Commit(B, version, 1)]))
        store.close()
        return codes

    counted = FaultyFiles(Machine())
    run(counted)
    seen = set()
    for call in range(1, counted.calls + 1):
        for number in (errno.EIO, errno.ENOSPC):
            machine = Machine()
            try:
                seen |= run(FaultyFiles(machine, errors={call: number}, random=Random(call)))
            except Fs3Error as error:
                seen.add(error.code)
            store = DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)
            assert store.check() == []
    assert {Code.DISK, Code.NO_SPACE, Code.OK} <= seen


def flip(machine, name, position):
    file = machine.files[ROOT / name]
    file.cached[position] ^= 4


def test_flipped_bit_on_disk_is_never_read_as_good(store, machine):
    put(store, write(A, 1, 0, CONTENT))
    flip(machine, "blocks.02", 20_000)
    assert get(store, A, 0, 16_384) == CONTENT[:16_384]
    assert get(store, A, 16_384, 10) is Code.CORRUPT
    for start, end in ((0, 200_000), (10_000, 110_000), (16_384, 150_000)):
        buffer = bytearray(end - start)
        [result] = store.read([Piece(A, start, end - start)], [memoryview(buffer)])
        assert result.crc == crc32c(CONTENT[start:end]) != crc32c(buffer)
    buffer = bytearray(200_000)
    [result] = store.read([Piece(A, 0, 200_000)], [memoryview(buffer)], verify=True)
    assert result.code is Code.CORRUPT
    assert "byte 16384" in result.detail
    assert [bad.chunk for bad in store.verify(None, 10).bad] == [A]
    assert len(store.check()) == 1
    assert store.failed is None


def test_update_that_builds_on_damaged_bytes_is_refused(store, machine):
    put(store, write(A, 1, 0, CONTENT))
    flip(machine, "blocks.02", 20_000)
    [result] = store.stage([write(A, 2, 17_000, b"patch")])
    assert result.code is Code.CORRUPT
    # Elsewhere it may go on: the damaged block keeps its checksum, and stays visible.
    put(store, write(A, 2, 100_000, b"patch"))
    assert get(store, A, 20_000, 5) is Code.CORRUPT
    put(store, write(A, 3, 16_384, CONTENT[:16_384]))
    assert store.check() == []


@pytest.mark.parametrize("call", ["open_records", "records.sync", "open"])
def test_store_that_failed_to_open_can_be_opened_again(store, machine, faults, call):
    put(store, write(A, 1, 0, b"x"))
    store.close()
    faults.due[call] = errno.EIO
    files = FaultyFiles(machine, on_call=faults)
    with pytest.raises(Fs3Error, match="injected") as error:
        DiskChunkStore(files, ROOT, SETTINGS)
    assert error.value.code is Code.DISK
    assert get(DiskChunkStore(files, ROOT, SETTINGS), A) == b"x"


def test_data_file_cut_short_is_named_when_the_store_opens(store, machine):
    put(store, write(A, 1, 0, CONTENT))
    store.close()
    machine.files[ROOT / "blocks.02"].cached.clear()
    with pytest.raises(Fs3Error, match=r"blocks.02, which has 0 blocks"):
        DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)


def test_data_file_cut_short_while_open_is_corrupt(store, machine):
    put(store, write(A, 1, 0, CONTENT))
    del machine.files[ROOT / "blocks.02"].cached[100_000:]
    assert get(store, A, 0, 16_384) == CONTENT[:16_384]
    assert get(store, A, 90_000, 20_000) is Code.CORRUPT
    assert get(store, A, 150_000, 10) is Code.CORRUPT
    assert store.failed is None


def test_lost_records_are_an_error_and_not_an_empty_store(store, machine):
    put(store, write(A, 1, 0, b"x"))
    store.close()
    machine.records.clear()
    with pytest.raises(Fs3Error, match="does not exist"):
        DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)


def test_store_of_another_format_is_refused(store, machine):
    store.close()
    [records] = machine.records.values()
    records.current[b"mformat"] = b"fs3 chunk store 9"
    with pytest.raises(Fs3Error, match=r"chunk store 9.*this release opens"):
        DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)


def test_two_chunks_in_one_block_are_refused_at_open(store, machine):
    put(store, write(A, 1, 0, b"a"), write(B, 1, 0, b"b"))
    store.close()
    [records] = machine.records.values()
    records.current[b"c" + B] = records.current[b"c" + A]
    with pytest.raises(Fs3Error, match="another chunk lies"):
        DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)


def test_block_is_not_reused_while_a_read_is_under_way(machine):
    busy = []

    def meanwhile(name):
        if name == "preadv" and busy:
            busy.pop()
            removal = StageRequest(A, UpdateKind.REMOVE, 2)
            put(store, removal, write(B, 1, 0, bytes(60_000)), write(C, 1, 0, bytes(60_000)))

    store = DiskChunkStore(FaultyFiles(machine, on_call=meanwhile), ROOT, SETTINGS)
    for length in (100, 50_000):
        put(store, write(A, 1, 0, CONTENT[:60_000]))
        busy.append(True)
        assert get(store, A, 5, length) == CONTENT[5 : 5 + length]
        assert get(store, A) is Code.NO_CHUNK
        put(store, StageRequest(B, UpdateKind.REMOVE, 2), StageRequest(C, UpdateKind.REMOVE, 2))
        store.sync()
        assert store.check() == []
        assert store.usage().used_bytes == 0


def test_syncs_that_wait_share_one_flush(machine):
    began, go_on = threading.Event(), threading.Event()
    counts = Next()

    def gate(name):
        counts(name)
        if name == "fdatasync":
            began.set()
            assert go_on.wait(60)

    store = DiskChunkStore(FaultyFiles(machine, on_call=gate), ROOT, SETTINGS)
    put(store, write(A, 1, 0, b"x"))
    threads = [threading.Thread(target=store.sync)]
    threads[0].start()
    assert began.wait(60)
    put(store, write(A, 2, 0, b"y"))  # not covered by the flush under way
    threads += [threading.Thread(target=store.sync) for _ in range(5)]
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert counts.counts["fdatasync"] == 2
    machine.lose_power(Random(1))
    assert get(DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS), A) == b"y"


def test_reads_from_many_threads_see_whole_versions_only(machine):
    store = DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)
    contents = [bytes([i]) * 40_000 for i in range(50)]
    put(store, write(A, 1, 0, contents[0]))
    problems, stop = [], threading.Event()

    def reader():
        while not stop.is_set():
            found = get(store, A, verify=True)
            if found not in contents:
                problems.append(found)

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version, content in enumerate(contents[1:], start=2):
        put(store, write(A, version, 0, content))
        if version % 10 == 0:
            store.tick()
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    store.tick()
    assert store.check() == []


def test_no_block_is_let_go_while_a_reader_that_comes_now_would_find_it(store, monkeypatch):
    """Readers that came before are waited for, later ones are not: the index must be first."""
    retired = []
    retire = store._readers.retire

    def check_and_retire(free, size_class, numbers):
        index = store._index
        shown = [index.version(chunk) for chunk in index.row_of]
        shown += [pending.version for pending in index.pendings.values()]
        if free == store._allocator._put_back:
            gone = [(size_class, number) for number in numbers]
            retired.extend(gone)
            assert not {*gone} & {(v.size_class, v.block) for v in shown}
        else:
            assert not {*numbers} & {*index.row_of.values()}
        retire(free, size_class, numbers)

    monkeypatch.setattr(store._readers, "retire", check_and_retire)

    def expect(blocks):
        assert len(retired) == blocks
        retired.clear()

    put(store, write(A, 1, 0, CONTENT), write(A, 2, 0, CONTENT[::-1]))
    expect(1)  # overwritten
    store.stage([write(A, 3, 0, CONTENT)])
    store.stage([write(A, 4, 0, CONTENT)])
    expect(1)  # staged anew
    store.drop([A])
    expect(1)
    store.stage([write(B, 1, 0, CONTENT)])
    store.drop([B])
    expect(1)
    assert store.restore(A, 2, memoryview(CONTENT[::-1])) is Code.OK
    expect(1)
    put(store, StageRequest(A, UpdateKind.REMOVE, 5))
    expect(1)
    put(store, write(C, 1, 0, CONTENT))
    assert store.discard([C]) == [C]
    expect(1)


def test_discarded_chunks_that_a_power_cut_brings_back_are_whole(machine, store):
    """Until the records' removal is on stable storage nobody else may lie in their blocks."""
    old, new = ([chunk_id(owner, slot) for slot in range(5)] for owner in (1, 2))
    put(store, *(write(chunk, 1, 0, CONTENT) for chunk in old))
    store.sync()
    assert store.discard(old) == old
    put(store, *(write(chunk, 1, 0, CONTENT[::-1]) for chunk in new))
    assert store.check() == []
    machine.boots += 1  # all data has reached the disk, and no record since the sync
    for records in machine.records.values():
        records.current = dict(records.synced)
    store = DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)
    assert [get(store, chunk, verify=True) for chunk in old] == [CONTENT] * 5
    assert [store.meta(chunk) for chunk in new] == [None] * 5
    assert store.check() == []


def test_blocks_of_discarded_chunks_are_free_when_that_is_durable(store):
    chunks = [chunk_id(1, slot) for slot in range(7)]
    put(store, *(write(chunk, 1, 0, CONTENT[: 30_000 * slot]) for slot, chunk in enumerate(chunks)))
    store.sync()
    put(store, write(chunks[6], 2, 0, CONTENT))  # this epoch's, with one to go back to
    used = store.usage().used_bytes
    assert store.discard(chunks) == chunks
    assert 0 < store.usage().used_bytes < used
    assert store.check() == []
    store.sync()
    assert store.usage()[1:2] == (0,)
    assert store.check() == []
    put(store, *(write(chunk, 1, 0, CONTENT) for chunk in chunks))
    assert all(get(store, chunk) == CONTENT for chunk in chunks)
    assert store.check() == []


def test_channels_unused_longest_make_room(machine):
    settings = ChunkStoreSettings(reserve_bytes=0, channels_max=2)
    store = DiskChunkStore(FaultyFiles(machine), ROOT, settings)
    for client in (1, 2, 1, 3):
        version = (store.meta(A) or ChunkMeta()).version + 1
        put(store, write(A, version, 0, b"x", Tag(client, 0, version)))
    record = ChannelRecord(4, A, 4, 1, crc32c(b"x"))
    assert store.channel(2, 0) is None
    assert store.channel(3, 0) == record
    assert [channel.client for channel in store.scan_channels(None, 10)] == [1, 3]
    store.put_channels([Channel(5, 0, record)])
    assert [channel.client for channel in store.scan_channels(None, 10)] == [3, 5]


def test_idle_blocks_give_their_disk_space_back_and_are_used_again(machine, faults):
    settings = ChunkStoreSettings(
        reserve_bytes=0, idle_bytes_max=1 << 16, idle_ticks=0, punch_bytes=1 << 20
    )
    store = DiskChunkStore(FaultyFiles(machine, on_call=faults), ROOT, settings)
    put(store, *[write(chunk_id(3, i), 1, 0, b"x" * 60_000) for i in range(40)])
    put(store, *[StageRequest(chunk_id(3, i), UpdateKind.REMOVE, 2) for i in range(40)])
    store.tick()
    once = faults.counts["punch"]
    assert 1 <= once <= 16
    for _ in range(4):
        store.tick()
    assert store.check() == []
    free_bytes = store.usage().free_bytes
    put(store, *[write(chunk_id(3, i), 1, 0, CONTENT[:60_000]) for i in range(40)])
    assert store.usage().free_bytes < free_bytes
    assert get(store, chunk_id(3, 39)) == CONTENT[:60_000]
    assert store.check() == []


def test_disk_without_hole_punching_keeps_working(machine, faults):
    settings = ChunkStoreSettings(reserve_bytes=0, idle_bytes_max=0, idle_ticks=0)
    store = DiskChunkStore(FaultyFiles(machine, on_call=faults), ROOT, settings)
    put(store, write(A, 1, 0, b"x"), StageRequest(A, UpdateKind.REMOVE, 2))
    faults.due["punch"] = errno.EOPNOTSUPP
    store.tick()
    assert store.failed is None
    put(store, write(A, 1, 0, b"y"))
    assert store.check() == []


def test_fresh_store_takes_little_disk(tmp_path):
    store = DiskChunkStore(Files(), tmp_path / "target")
    try:
        put(store, write(A, 1, 0, b"x" * 4096), write(B, 1, 0, CONTENT))
        taken = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*"))
        assert taken < 4 << 20
    finally:
        store.close()


def test_records_are_those_of_the_worked_example_in_the_formats_page(store, machine):
    store.stage([write(chunk_id(1, 0), 1, 0, b"fs3!" * 5000, Tag(7, 0, 1))])
    store.commit([Commit(chunk_id(1, 0), 1, 3)])
    [records] = machine.records.values()
    chunk = records.current[b"c" + chunk_id(1, 0)]
    expected = (
        "01000000 0100000000000000 0300000000000000 0100000000000000 00000000 204e0000"
        "204e0000 39f6596a 144af345 00000000"
    )
    assert chunk == bytes.fromhex(expected)
    assert records.current[b"s" + bytes(7)] == bytes.fromhex("11eb0071" + "00" * 12)
    channel = records.current[b"h" + (7).to_bytes(8, "big") + bytes(4)]
    fields = "0100000000000000 0100000000000000 204e0000 39f6596a"
    assert channel == bytes.fromhex(fields) + chunk_id(1, 0) + bytes.fromhex("0100000000000000")
