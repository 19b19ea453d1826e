"""Discarding: what a chunk store lets go of at once, without a version. Both stores keep it."""

from __future__ import annotations

from chunk_updates import SETTINGS, A, B, C, get, put, remove, write

from fs3.core.chunks import ChunkMeta, Tag
from fs3.errors import Code
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import Commit
from fs3.storageserver.chunkstore.store import DiskChunkStore


def test_discarded_chunks_are_gone_and_their_space_is_free(store):
    put(store, write(A, 1, 0, b"a" * 70_000), write(B, 1, 0, b"b"), write(C, 1, 0, b"c"))
    assert store.discard([A, C]) == [A, C]
    assert get(store, A) is get(store, C) is Code.NO_CHUNK
    assert store.meta(A) is None
    assert get(store, B) == b"b"
    store.sync()
    assert store.usage().chunks == 1
    assert store.check() == []


def test_what_is_not_there_or_comes_twice_is_discarded_once(store):
    put(store, write(A, 1, 0, b"a"))
    assert store.discard([C, A, A]) == [A]
    assert store.discard([A]) == []


def test_a_chunk_with_a_pending_version_stays(store):
    put(store, write(A, 1, 0, b"old"))
    store.stage([write(A, 2, 0, b"new")])
    assert store.discard([A]) == []
    assert store.commit([Commit(A, 2, 1)]) == [Code.OK]
    assert get(store, A) == b"new"


def test_a_discarded_chunk_can_be_made_anew_from_version_one(store):
    put(store, write(A, 4, 0, b"first", tag=Tag(1, 1, 1)))
    store.discard([A])
    put(store, write(A, 1, 0, b"second"))
    assert store.meta(A) == ChunkMeta(1, 1, 6, store.meta(A).checksum)
    put(store, remove(A, 2))
    assert store.check() == []


def test_discarding_does_not_bring_the_old_version_back_after_a_restart(tmp_path):
    store = DiskChunkStore(Files(), tmp_path, SETTINGS)
    put(store, write(A, 1, 0, b"one"))
    store.sync()
    put(store, write(A, 2, 0, b"two"))
    store.discard([A])
    store.close()
    again = DiskChunkStore(Files(), tmp_path, SETTINGS)
    assert again.meta(A) is None
    assert again.check() == []
    again.close()
