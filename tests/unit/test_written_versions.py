"""How a client notices that a power cut took its writes back."""

from __future__ import annotations

import numpy as np

from fs3 import dataplane
from fs3.client.written_versions import CHUNKS_MAX, WrittenVersions
from fs3.core.types import InodeId, chunk_id
from fs3.errors import Code

FILE = InodeId(7)
A, B = chunk_id(7, 0), chunk_id(7, 1)


def results(*versions: int, code: Code = Code.OK):
    made = np.zeros(len(versions), dataplane.WRITE_RESULT)
    made["version"] = versions
    made["code"] = code
    return made


def update(written: WrittenVersions, chunk: bytes, version: int, *, sync: bool = False) -> None:
    written.note([chunk], written.known([chunk]), results(version), sync=sync)


def test_versions_that_grow_tell_of_no_loss() -> None:
    written = WrittenVersions()
    for version in (1, 2, 5):
        update(written, A, version)
    update(written, A, 6, sync=True)
    assert not written.take_lost(FILE)


def test_an_update_that_makes_an_old_version_tells_of_a_loss_once() -> None:
    for sync in (False, True):
        written = WrittenVersions()
        update(written, A, 5)
        update(written, A, 5, sync=sync)
        assert not written.take_lost(InodeId(8))
        assert written.take_lost(FILE)
        assert not written.take_lost(FILE)


def test_a_chunk_that_never_was_on_stable_storage_is_missed() -> None:
    written = WrittenVersions()
    update(written, A, 1)
    update(written, A, 0, sync=True)  # a sync of a chunk that is not there makes nothing
    assert written.take_lost(FILE)


def test_what_was_synced_may_be_of_any_version_later() -> None:
    written = WrittenVersions()
    update(written, A, 5)
    update(written, A, 6, sync=True)
    update(written, A, 1)
    assert not written.take_lost(FILE)


def test_answers_that_come_out_of_order_are_no_loss() -> None:
    written = WrittenVersions()
    update(written, A, 3)
    first, second = written.known([A]), written.known([A])
    written.note([A], second, results(5), sync=False)
    written.note([A], first, results(4), sync=False)
    update(written, A, 5)
    assert written.take_lost(FILE), "version 5 was the newest, whatever came last"


def test_a_sync_does_not_cover_what_was_written_behind_it() -> None:
    written = WrittenVersions()
    update(written, A, 3)
    syncing = written.known([A])
    update(written, A, 5)
    written.note([A], syncing, results(4), sync=True)
    update(written, A, 5)
    assert written.take_lost(FILE)


def test_failures_say_nothing() -> None:
    written = WrittenVersions()
    update(written, A, 3)
    written.note([A], written.known([A]), results(0, code=Code.NO_SPACE), sync=False)
    assert not written.take_lost(FILE)


def test_a_file_that_was_cut_begins_anew() -> None:
    written = WrittenVersions()
    update(written, A, 5)
    update(written, B, 5)
    update(written, B, 1)
    written.forget(FILE)
    update(written, A, 1)
    assert not written.take_lost(FILE)


def test_memory_is_bounded() -> None:
    written = WrittenVersions()
    chunks = [chunk_id(9, slot) for slot in range(CHUNKS_MAX + 10)]
    written.note(chunks, written.known(chunks), results(*[4] * len(chunks)), sync=False)
    update(written, chunks[0], 1)
    assert not written.take_lost(InodeId(9))
    update(written, chunks[-1], 1)
    assert written.take_lost(InodeId(9))
