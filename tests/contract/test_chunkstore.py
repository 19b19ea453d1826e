"""The contract of a chunk store, which the one on a disk and the one in memory both keep."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chunk_history import run_machine
from chunk_updates import PATTERN, SETTINGS, A, B, C, get, put, remove, resize, write

from fs3.checksum import crc32c
from fs3.core.chunks import ChannelRecord, ChunkMeta, Tag, UpdateKind
from fs3.core.types import chunk_id
from fs3.errors import Code, Fs3Error
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import (
    Channel,
    ChunkStore,
    Commit,
    Piece,
)
from fs3.storageserver.chunkstore.memory import MemoryChunkStore
from fs3.storageserver.chunkstore.store import DiskChunkStore


class StoreTests:
    """What every chunk store does. Subclasses make one and open it again."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[ChunkStore]:
        raise NotImplementedError

    @pytest.fixture
    def reopened(self) -> Callable[[ChunkStore], ChunkStore]:
        raise NotImplementedError

    def test_committed_write_is_read_with_version_and_crc(self, store):
        put(store, write(A, 1, 0, b"hello"), chain_version=7)
        assert get(store, A) == b"hello"
        assert store.meta(A) == ChunkMeta(1, 7, 5, crc32c(b"hello"))
        [result] = store.read([Piece(A, 1, 3)], [memoryview(bytearray(3))])
        assert result == (Code.OK, 3, 1, crc32c(b"ell"), "")

    def test_pending_version_is_invisible_until_committed(self, store):
        put(store, write(A, 1, 0, b"old"))
        [staged] = store.stage([write(A, 2, 0, b"newer")])
        assert staged == (Code.OK, 5, crc32c(b"newer"), "")
        assert get(store, A) == b"old"
        assert get(store, A, pending=True) == b"newer"
        assert store.meta(A) == ChunkMeta(1, 1, 3, crc32c(b"old"), 2, 5, crc32c(b"newer"), False)
        assert store.commit([Commit(A, 2, 1)]) == [Code.OK]
        assert get(store, A) == get(store, A, pending=True) == b"newer"

    def test_first_write_stays_unreadable_while_pending(self, store):
        store.stage([write(A, 1, 0, b"x")])
        assert get(store, A) is Code.NO_CHUNK
        assert get(store, A, pending=True) == b"x"
        assert store.meta(A).version == 0

    def test_drop_forgets_the_pending_version_only(self, store):
        put(store, write(A, 1, 0, b"old"))
        store.stage([write(A, 2, 0, b"new"), write(B, 1, 0, b"b")])
        store.drop([A, B, C])
        assert store.meta(A) == ChunkMeta(1, 1, 3, crc32c(b"old"))
        assert store.meta(B) is None
        assert get(store, A, pending=True) == b"old"
        assert store.commit([Commit(A, 2, 1), Commit(B, 1, 1)]) == [Code.NO_CHUNK, Code.NO_CHUNK]

    def test_staging_again_replaces_the_pending_version(self, store):
        put(store, write(A, 1, 0, b"12"))
        store.stage([write(A, 2, 2, b"aaaa")])
        store.stage([write(A, 2, 2, b"bb"), write(A, 3, 3, b"c")])
        assert get(store, A, pending=True) == b"12\0c"
        assert store.commit([Commit(A, 2, 1)]) == [Code.NO_CHUNK]
        assert store.commit([Commit(A, 3, 1)]) == [Code.OK]
        assert get(store, A) == b"12\0c"
        assert store.check() == []

    def test_commit_of_a_committed_version_does_nothing(self, store):
        put(store, write(A, 5, 0, b"x"), chain_version=2)
        assert store.commit([Commit(A, 5, 9), Commit(A, 4, 9)]) == [Code.OK, Code.OK]
        assert store.meta(A).chain_version == 2
        assert store.commit([Commit(A, 6, 9), Commit(B, 1, 9)]) == [Code.NO_CHUNK] * 2

    def test_update_of_an_older_version_is_stale(self, store):
        put(store, write(A, 3, 0, b"x"))
        results = store.stage([write(A, 3, 0, b"y"), write(A, 2, 0, b"y"), remove(A, 1)])
        assert [result.code for result in results] == [Code.STALE_UPDATE] * 3
        assert get(store, A, pending=True) == b"x"

    @pytest.mark.parametrize("gap", [1, 16_000, 16_384, 70_000])
    def test_write_behind_the_end_fills_the_gap_with_zeros(self, store, gap):
        put(store, write(A, 1, 0, b"abc"))
        # Something longer was there once: a gap must not show it.
        store.stage([write(A, 2, 0, PATTERN[:100_000])])
        store.drop([A])
        put(store, write(A, 3, 3 + gap, b"z"))
        assert get(store, A) == b"abc" + bytes(gap) + b"z"
        assert store.meta(A).checksum == crc32c(b"abc" + bytes(gap) + b"z")

    @pytest.mark.parametrize("length", [0, 1, 16_384, 16_385, 65_536, 65_537, 200_000])
    def test_truncate_sets_the_length_exactly(self, store, length):
        put(store, write(A, 1, 0, PATTERN[:100_000]), resize(A, 2, UpdateKind.TRUNCATE, length))
        expected = PATTERN[: min(length, 100_000)].ljust(length, b"\0")
        assert get(store, A) == expected
        assert store.meta(A)[:4] == (2, 1, length, crc32c(expected))
        put(store, write(A, 3, length, b"tail"))
        assert get(store, A) == expected + b"tail"
        assert store.check() == []

    def test_extend_grows_and_never_cuts(self, store):
        put(store, write(A, 1, 0, b"abc"), resize(A, 2, UpdateKind.EXTEND, 2))
        assert get(store, A) == b"abc"
        put(store, resize(A, 3, UpdateKind.EXTEND, 20_000), resize(B, 1, UpdateKind.EXTEND, 3))
        assert get(store, A) == b"abc" + bytes(19_997)
        assert get(store, B) == bytes(3)

    def test_empty_write_makes_an_empty_chunk(self, store):
        put(store, write(A, 1, 0, b""))
        assert get(store, A) == b""
        assert store.meta(A) == ChunkMeta(1, 1, 0, 0)
        put(store, write(A, 2, 0, b"now"), write(A, 3, 2, b""))
        assert get(store, A) == b"now"

    def test_removal_is_pending_first_and_then_final(self, store):
        put(store, write(A, 1, 0, b"abc"))
        store.stage([remove(A, 2)])
        assert store.meta(A) == ChunkMeta(1, 1, 3, crc32c(b"abc"), 2, 0, 0, True)
        assert get(store, A) == b"abc"
        assert get(store, A, pending=True) is Code.NO_CHUNK
        assert store.commit([Commit(A, 2, 1)]) == [Code.OK]
        assert store.meta(A) is None
        assert get(store, A) is Code.NO_CHUNK
        put(store, write(A, 1, 0, b"again"))
        assert get(store, A) == b"again"

    def test_removal_of_a_missing_chunk_leaves_nothing(self, store):
        put(store, remove(A, 1, Tag(1, 1, 1)))
        assert store.meta(A) is None
        assert store.channel(1, 1) == ChannelRecord(1, A, 1, 0, 0)
        assert store.scan(None, 10) == []

    def test_replace_sets_content_at_any_version(self, store):
        put(store, write(A, 9, 0, PATTERN[:50_000]))
        put(store, write(A, 4, 0, b"from the predecessor", kind=UpdateKind.REPLACE))
        assert store.meta(A).version == 4
        assert get(store, A) == b"from the predecessor"
        put(store, write(A, 5, 0, b"", kind=UpdateKind.REPLACE))
        assert get(store, A) == b""

    def test_data_with_a_wrong_checksum_changes_nothing(self, store):
        put(store, write(A, 1, 0, b"good"))
        for data in (b"bad!", PATTERN[:40_000]):
            request = write(A, 2, 0, data)._replace(checksum=crc32c(data) ^ 1)
            [result] = store.stage([request])
            assert result.code is Code.CORRUPT
        assert store.meta(A) == ChunkMeta(1, 1, 4, crc32c(b"good"))
        assert store.check() == []

    def test_bounds_are_refused_with_the_value(self, store):
        limit = 64 << 20
        bad = [
            write(A, 1, limit, b"x"),
            write(A, 1, -1, b"x"),
            resize(A, 1, UpdateKind.TRUNCATE, limit + 1),
            write(A, 1, 0, b"x")._replace(length=2),
        ]
        results = store.stage([*bad, write(B, 1, 0, b"fine")])
        assert [result.code for result in results] == [Code.INVALID] * 4 + [Code.OK]
        assert str(limit + 1) in results[0].detail
        assert store.meta(A) is None

    def test_read_is_short_at_the_end_and_empty_behind_it(self, store):
        put(store, write(A, 1, 0, b"abcdef"))
        assert get(store, A, 4, 10) == b"ef"
        assert get(store, A, 6, 10) == b""
        assert get(store, A, 7, 10) == b""
        [result] = store.read([Piece(A, -1, 4)], [memoryview(bytearray(4))])
        assert result.code is Code.INVALID

    def test_read_of_unknown_chunks_in_a_batch_harms_no_other(self, store):
        put(store, write(A, 1, 0, b"aaa"), write(C, 1, 0, b"ccc"))
        buffers = [memoryview(bytearray(3)) for _ in range(3)]
        results = store.read([Piece(A, 0, 3), Piece(B, 0, 3), Piece(C, 0, 3)], buffers)
        assert [r.code for r in results] == [Code.OK, Code.NO_CHUNK, Code.OK]
        assert [bytes(b) for b in buffers] == [b"aaa", bytes(3), b"ccc"]

    @pytest.mark.parametrize("verify", [False, True])
    @pytest.mark.parametrize("size", [10, 16_384, 40_000, 300_000])
    def test_any_range_reads_back_with_its_crc(self, store, size, verify):
        content = PATTERN[:size]
        put(store, write(A, 1, 0, content))
        borders = {0, 1, size // 2, 16_383, 16_384, 16_385, 32_768, size - 1, size}
        for start in sorted(borders):
            for end in sorted(borders):
                if start <= end:
                    length = end - start
                    assert get(store, A, start, length, verify=verify) == content[start:end]

    def test_channel_shows_the_pending_update_and_keeps_the_committed_one(self, store):
        put(store, write(A, 1, 0, b"one", Tag(8, 2, 10)))
        first = ChannelRecord(10, A, 1, 3, crc32c(b"one"))
        assert store.channel(8, 2) == first
        store.stage([write(B, 1, 0, b"two!", Tag(8, 2, 11))])
        assert store.channel(8, 2) == ChannelRecord(11, B, 1, 4, crc32c(b"two!"), True)
        store.drop([B])
        assert store.channel(8, 2) == first
        assert store.channel(8, 3) is None
        assert store.scan_channels(None, 10) == [Channel(8, 2, first)]

    def test_of_two_updates_on_a_channel_the_later_is_known_whichever_ends_last(self, store):
        """Its client gave the first one up, which goes on in another chunk."""
        store.stage([write(A, 1, 0, b"one", Tag(8, 2, 10))])
        put(store, write(B, 1, 0, b"two!", Tag(8, 2, 11)))
        second = ChannelRecord(11, B, 1, 4, crc32c(b"two!"))
        assert store.channel(8, 2) == second
        store.commit([Commit(A, 1, 1)])
        assert store.channel(8, 2) == second
        assert store.scan_channels(None, 10) == [Channel(8, 2, second)]

    def test_an_update_that_ends_leaves_the_record_of_a_later_one_that_is_pending(self, store):
        store.stage([write(A, 1, 0, b"one", Tag(8, 2, 10))])
        store.stage([write(B, 1, 0, b"two!", Tag(8, 2, 11))])
        store.stage([write(C, 1, 0, b"0", Tag(8, 2, 9))])
        second = ChannelRecord(11, B, 1, 4, crc32c(b"two!"), True)
        assert store.channel(8, 2) == second
        store.commit([Commit(A, 1, 1)])
        store.drop([C])
        assert store.channel(8, 2) == second

    def test_channels_are_taken_over_unless_a_newer_one_is_known(self, store):
        put(store, write(A, 1, 0, b"one", Tag(8, 2, 10)))
        mine = store.channel(8, 2)
        older, newer = ChannelRecord(9, B, 3, 1, 2), ChannelRecord(5, C, 3, 1, 2)
        store.put_channels([Channel(8, 2, older), Channel(9, 0, newer)])
        assert store.channel(8, 2) == mine
        assert store.scan_channels(None, 1) == [Channel(8, 2, mine)]
        assert store.scan_channels((8, 2), 5) == [Channel(9, 0, newer)]

    def test_scan_pages_in_chunk_order_and_by_owner(self, store):
        chunks = [chunk_id(owner, slot) for owner in (1, 2, 300) for slot in (0, 255, 256)]
        for chunk in reversed(chunks):
            put(store, write(chunk, 1, 0, b"x"))
        pending = chunk_id(2, 7)
        store.stage([write(pending, 1, 0, b"x")])
        everything = sorted([*chunks, pending])
        found, after = [], None
        while page := store.scan(after, 3):
            found += [chunk for chunk, meta in page if meta == store.meta(chunk)]
            after = page[-1][0]
        assert found == everything
        mine = [chunk for chunk, _ in store.scan(None, 100, owner=2)]
        assert mine == [chunk_id(2, slot) for slot in (0, 7, 255, 256)]
        assert [c for c, _ in store.scan(chunk_id(2, 7), 1, owner=2)] == [chunk_id(2, 255)]
        assert store.scan(None, 0) == []

    def test_last_chunk_is_the_committed_one_with_the_greatest_slot(self, store):
        put(store, write(chunk_id(5, 3), 1, 0, b"x"), write(chunk_id(5, 300), 1, 0, b"xyz"))
        put(store, write(chunk_id(6, 900), 1, 0, b"x"))
        store.stage([write(chunk_id(5, 400), 1, 0, b"x")])
        chunk, meta = store.last_chunk(5)
        assert (chunk, meta.length) == (chunk_id(5, 300), 3)
        assert store.last_chunk(4) is None

    def test_rows_give_a_batch_of_versions_in_one_pass(self, store):
        put(store, write(A, 4, 0, b"aaa"), write(C, 2, 0, b"c"), chain_version=6)
        store.stage([write(C, 3, 0, b"c")])
        rows = store.rows([C, B, A])
        assert rows[1] == -1
        columns = store.columns[rows[[0, 2]]]
        assert columns["version"].tolist() == [2, 4]
        assert columns["chain_version"].tolist() == [6, 6]
        assert columns["length"].tolist() == [1, 3]
        assert columns["pending_version"].tolist() == [3, 0]

    def test_thousands_of_chunks_keep_their_rows_apart(self, store):
        chunks = [chunk_id(9, slot) for slot in range(1500)]
        store.stage([write(c, 1, 0, c) for c in chunks])
        assert set(store.commit([Commit(c, 1, 1) for c in chunks])) == {Code.OK}
        put(store, *[remove(c, 2) for c in chunks[::3]])
        put(store, *[write(c, 1, 0, b"again") for c in chunks[::6]])
        for i in (0, 1, 3, 6, 1498, 1499):
            expected = b"again" if i % 6 == 0 else Code.NO_CHUNK if i % 3 == 0 else chunks[i]
            assert get(store, chunks[i]) == expected
        assert store.check() == []

    def test_usage_counts_chunks_and_returns_what_is_freed(self, store):
        before = store.usage()
        assert before.used_bytes == before.chunks == 0
        put(store, write(A, 1, 0, PATTERN[:100_000]))
        assert store.usage().used_bytes >= 100_000
        assert store.usage().chunks == 1
        put(store, remove(A, 2))
        store.sync()
        assert store.usage().used_bytes == store.usage().chunks == 0
        assert 0 < store.usage().free_bytes <= store.usage().capacity_bytes

    def test_verify_walks_all_chunks_in_steps(self, store):
        put(store, *[write(chunk_id(1, slot), 1, 0, b"12345") for slot in range(5)])
        first = store.verify(None, 3)
        assert (first.chunks, first.length_bytes, first.bad) == (3, 15, [])
        second = store.verify(first.last, 3)
        assert (second.chunks, second.last) == (2, None)

    def test_opened_again_everything_is_there(self, store, reopened):
        put(store, write(A, 1, 0, PATTERN[:100_000], Tag(1, 2, 3)), write(B, 1, 0, b""))
        put(store, write(A, 2, 50_000, b"middle"), write(A, 3, 100_000, b"appended"))
        store.stage([write(B, 2, 3, b"pending", Tag(1, 2, 4)), remove(A, 4)])
        chunks, channels = store.scan(None, 10), store.scan_channels(None, 10)
        pending = store.channel(1, 2)
        content, staged = get(store, A), get(store, B, pending=True)
        store = reopened(store)
        assert store.scan(None, 10) == chunks
        assert store.scan_channels(None, 10) == channels
        assert store.channel(1, 2) == pending
        assert (get(store, A), get(store, B, pending=True)) == (content, staged)
        assert store.check() == []
        assert store.commit([Commit(A, 4, 1), Commit(B, 2, 1)]) == [Code.OK, Code.OK]
        assert get(store, B) == b"\0\0\0pending"
        final = pending._replace(pending=False)
        assert store.channel(1, 2) == final
        assert store.scan_channels(None, 10) == [Channel(1, 2, final)]

    def test_a_random_history_matches_a_dictionary(self, store, reopened):
        run_machine(lambda: (store, reopened))

    def test_restore_takes_the_content_of_the_committed_version_only(self, store):
        put(store, write(A, 1, 0, PATTERN[:100_000]), write(A, 2, 0, b"second"))
        before = store.meta(A)
        content = b"second" + PATTERN[6:100_000]
        store.stage([write(A, 3, 100_000, b"appended")])
        pending = store.meta(A)
        for version, given, expected in (
            (2, content, Code.OK),
            (2, content[:-1], Code.CORRUPT),
            (2, PATTERN[:100_000], Code.CORRUPT),
            (1, PATTERN[:100_000], Code.STALE_UPDATE),
            (3, content + b"appended", Code.STALE_UPDATE),
        ):
            assert store.restore(A, version, memoryview(given)) is expected
        assert store.restore(B, 0, memoryview(b"")) is Code.STALE_UPDATE
        assert store.meta(A) == pending
        assert get(store, A) == content
        assert store.commit([Commit(A, 3, 1)]) == [Code.OK]
        assert get(store, A) == content + b"appended"
        assert (before.version, before.length) == (2, 100_000)
        store.sync()
        assert store.check() == []


class TestDiskChunkStore(StoreTests):
    @pytest.fixture
    def opened(self) -> Iterator[list[DiskChunkStore]]:
        opened: list[DiskChunkStore] = []
        yield opened
        for store in opened:
            store.close()

    @pytest.fixture
    def store(self, tmp_path, opened):
        opened.append(DiskChunkStore(Files(), tmp_path / "target", SETTINGS))
        return opened[-1]

    @pytest.fixture
    def reopened(self, tmp_path, opened):
        def reopen(store):
            store.close()
            opened.remove(store)
            opened.append(DiskChunkStore(Files(), tmp_path / "target", SETTINGS))
            return opened[-1]

        return reopen

    def test_second_opening_of_a_store_is_refused(self, store, tmp_path):
        with pytest.raises(Fs3Error, match="lock"):
            DiskChunkStore(Files(), tmp_path / "target", SETTINGS)


class TestMemoryChunkStore(StoreTests):
    @pytest.fixture
    def store(self, tmp_path):
        return MemoryChunkStore()

    @pytest.fixture
    def reopened(self):
        def reopen(store):
            store.crash()
            return store

        return reopen

    def test_damage_is_met_by_checksum_or_refusal(self, store):
        put(store, write(A, 1, 0, PATTERN[:50_000]))
        store.damage(A, 20_000)
        assert get(store, A, 0, 16_384) == PATTERN[:16_384]
        assert get(store, A, 17_000, 10) is Code.CORRUPT
        assert get(store, A, verify=True) is Code.CORRUPT
        buffer = bytearray(50_000)
        [result] = store.read([Piece(A, 0, 50_000)], [memoryview(buffer)])
        assert result.crc != crc32c(buffer)
        assert [bad.chunk for bad in store.verify(None, 9).bad] == [A]
        put(store, write(A, 2, 0, PATTERN[:50_000], kind=UpdateKind.REPLACE))
        assert get(store, A, verify=True) == PATTERN[:50_000]

    def test_failed_store_answers_disk(self, store):
        put(store, write(A, 1, 0, b"x"))
        store.fail("EIO")
        assert store.stage([write(A, 2, 0, b"y")])[0].code is Code.DISK
        assert store.commit([Commit(A, 2, 1)]) == [Code.DISK]
        assert get(store, A) is Code.DISK
        with pytest.raises(Fs3Error, match="EIO"):
            store.sync()

    def test_full_store_answers_no_space(self):
        store = MemoryChunkStore(capacity_bytes=200_000)
        put(store, write(A, 1, 0, PATTERN[:100_000]))
        assert store.stage([write(B, 1, 0, PATTERN[:100_000])])[0].code is Code.NO_SPACE
        put(store, remove(A, 2))
        put(store, write(B, 1, 0, PATTERN[:100_000]))
