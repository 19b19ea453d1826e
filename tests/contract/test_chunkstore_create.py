"""Creating: chunks that are there whole, committed, at once. Both stores keep it."""

from __future__ import annotations

from pathlib import Path

from chunk_updates import SETTINGS, A, B, C, get, put, write

from fs3.core.chunks import ChannelRecord, Tag
from fs3.errors import Code
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import Commit
from fs3.storageserver.chunkstore.store import DiskChunkStore


def codes(results):
    return [result.code for result in results]


def test_what_is_created_is_committed(store):
    results = store.create([write(A, 1, 0, b"a" * 70_000), write(B, 1, 0, b"b")])
    assert codes(results) == [Code.OK, Code.OK]
    assert [result.length for result in results] == [70_000, 1]
    assert get(store, A) == b"a" * 70_000
    assert get(store, B) == b"b"
    assert store.meta(A).version == 1
    assert not store.meta(A).pending_version
    assert results[0].checksum == store.meta(A).checksum
    assert store.check() == []


def test_what_is_there_or_on_its_way_or_comes_twice_stays_as_it_is(store):
    put(store, write(A, 1, 0, b"old"))
    store.stage([write(B, 1, 0, b"staged")])
    results = store.create([write(c, 1, 0, b"new") for c in (A, B, C, C)])
    assert codes(results) == [Code.EXISTS, Code.EXISTS, Code.OK, Code.EXISTS]
    assert get(store, A) == b"old"
    assert store.commit([Commit(B, 1, 1)]) == [Code.OK]
    assert get(store, B) == b"staged"
    assert store.check() == []


def test_bad_data_is_refused_and_the_rest_is_stored(store):
    results = store.create([write(A, 1, 0, b"a")._replace(checksum=7), write(B, 1, 0, b"b")])
    assert codes(results) == [Code.CORRUPT, Code.OK]
    assert store.meta(A) is None
    assert get(store, B) == b"b"


def test_its_tag_is_remembered(store):
    store.create([write(A, 1, 0, b"a", tag=Tag(1, 2, 3))])
    checksum = store.meta(A).checksum
    assert store.channel(1, 2) == ChannelRecord(3, A, 1, 1, checksum)
    store.discard([A])
    assert store.channel(1, 2) == ChannelRecord(3, A, 1, 1, checksum)


def test_it_is_there_after_a_restart(tmp_path: Path):
    store = DiskChunkStore(Files(), tmp_path, SETTINGS)
    store.create([write(A, 1, 0, b"one", tag=Tag(1, 2, 3))])
    store.close()
    store = DiskChunkStore(Files(), tmp_path, SETTINGS)
    assert get(store, A) == b"one"
    assert store.channel(1, 2).sequence == 3
    assert store.check() == []
    store.close()
