"""The order of use on disk and back."""

from __future__ import annotations

import pytest

from fs3.core.kv import NAMESPACE_FIRST
from fs3.core.recency import Recency
from fs3.core.types import chunk_id
from fs3.storageserver.eviction_snapshot import FILE, read_snapshot, rows_of, write_snapshot

A, B, C = (chunk_id(NAMESPACE_FIRST + n, n) for n in range(3))


@pytest.fixture
def path(tmp_path):
    first, second = Recency(), Recency()
    first.stored(A, 1, 100)
    first.used([A], 900)
    second.stored(B, 1, 500)
    write_snapshot(tmp_path / FILE, rows_of([first, second], 1_000_000), 1_001_000)
    return tmp_path / FILE


def test_times_come_back_by_the_clock_of_the_reader(path):
    past = read_snapshot(path, now_ms=50, wall_ms=1_002_000)
    assert past.of(A) == (50 - 1900, 50 - 1100)
    assert past.of(B) == (50 - 1500, 50 - 1500)
    assert past.of(C) == (50 - 1000, 50 - 1000)


def test_nothing_is_of_the_future(path):
    past = read_snapshot(path, now_ms=50, wall_ms=0)
    assert {past.of(chunk) for chunk in (A, B, C)} == {(50, 50)}


@pytest.mark.parametrize("damage", [b"", b"fs3r", b"other and long enough to be a header"])
def test_a_file_that_makes_no_sense_is_as_good_as_none(path, damage):
    path.write_bytes(damage)
    assert read_snapshot(path, 7, 8).of(A) == (7, 7)
    path.write_bytes(b"fs3r\x01\0\0\0" + bytes(8) + b"half a row")
    assert read_snapshot(path, 7, 8).of(A) == (7, 7)
    path.unlink()
    assert read_snapshot(path, 7, 8).of(A) == (7, 7)
    assert read_snapshot(None, 7, 8).of(A) == (7, 7)
