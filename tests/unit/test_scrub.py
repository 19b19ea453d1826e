"""The scrubber: a pass sees every chunk, keeps to its rate, survives a restart, reports the bad."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fs3.checksum import crc32c
from fs3.clock import SystemClock
from fs3.core.chunks import UpdateKind
from fs3.core.types import ChunkVersion, TargetId, chunk_id
from fs3.errors import Code, Fs3Error
from fs3.storageserver.chunkstore.interface import BadChunk, Commit, StageRequest
from fs3.storageserver.chunkstore.memory import MemoryChunkStore
from fs3.storageserver.scrub import Scrubber
from fs3.storageserver.settings import ScrubSettings

FAST = 1 << 40
CHUNKS = 600  # more than one step takes


@pytest.fixture
def store() -> MemoryChunkStore:
    made = MemoryChunkStore()
    data = b"some bytes"
    for slot in range(CHUNKS):
        made.stage(
            [
                StageRequest(
                    chunk_id(1, slot),
                    UpdateKind.WRITE,
                    ChunkVersion(1),
                    0,
                    len(data),
                    memoryview(data),
                    crc32c(data),
                )
            ]
        )
        made.commit([Commit(chunk_id(1, slot), ChunkVersion(1), 1)])
    return made


class Seen:
    """What a scrubber said."""

    def __init__(self) -> None:
        self.bad: list[BadChunk] = []
        self.failures: list[str] = []


@contextmanager
def scrubbing(
    store: Any, directory: Path, seen: Seen | None = None, **settings: float
) -> Iterator[Scrubber]:
    seen = seen or Seen()
    scrubber = Scrubber(
        TargetId(1),
        store,
        directory,
        ScrubSettings(**settings),
        clock=SystemClock(),
        on_bad=seen.bad.append,
        fail=seen.failures.append,
    )
    scrubber.start()
    try:
        yield scrubber
    finally:
        scrubber.close()


def wait_until(true: Callable[[], bool]) -> None:
    pause, deadline_s = threading.Event(), time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline_s, "it never came true"
        pause.wait(0.01)


def test_a_pass_sees_every_chunk_and_reports_the_bad_ones(
    store: MemoryChunkStore, tmp_path: Path
) -> None:
    bad = [chunk_id(1, 3), chunk_id(1, CHUNKS - 1)]
    for chunk in bad:
        store.damage(chunk, 5)
    seen = Seen()
    with scrubbing(store, tmp_path, seen, bytes_per_s=FAST) as scrubber:
        wait_until(lambda: scrubber.progress.finished_ns > 0)
        progress = scrubber.progress
        assert (progress.chunks, progress.length_bytes, progress.bad) == (CHUNKS, 10 * CHUNKS, 2)
        assert [found.chunk for found in seen.bad] == bad
        assert not progress.running  # the next one is a day away
        scrubber.begin()
        wait_until(lambda: scrubber.progress.finished_ns > progress.finished_ns)
        assert len(seen.bad) == 4


def test_it_keeps_to_its_rate_which_can_be_changed(store: MemoryChunkStore, tmp_path: Path) -> None:
    # Each chunk counts for 16 KiB, so a first step of two is paid for in 0.1 s.
    began_s = time.monotonic()
    with scrubbing(store, tmp_path, bytes_per_s=320 << 10) as scrubber:
        wait_until(lambda: scrubber.progress.chunks > 2)
        assert time.monotonic() - began_s >= 0.1
        assert scrubber.progress.running
        scrubber.set_rate(FAST)
        wait_until(lambda: not scrubber.progress.running)
        assert scrubber.progress.chunks == CHUNKS


def test_at_rate_zero_it_rests_until_it_is_given_one(
    store: MemoryChunkStore, tmp_path: Path
) -> None:
    with scrubbing(store, tmp_path, bytes_per_s=0) as scrubber:
        scrubber.begin()
        scrubber.set_rate(0)
        assert (scrubber.progress.running, scrubber.progress.chunks) == (True, 0)
        scrubber.set_rate(FAST)
        wait_until(lambda: scrubber.progress.finished_ns > 0)


def test_a_restart_goes_on_where_the_pass_was(store: MemoryChunkStore, tmp_path: Path) -> None:
    with scrubbing(store, tmp_path, bytes_per_s=1) as scrubber:
        wait_until(lambda: scrubber.progress.chunks > 0)
        before = scrubber.progress
    with scrubbing(store, tmp_path, bytes_per_s=0) as scrubber:
        assert scrubber.progress == before
        scrubber.set_rate(FAST)
        wait_until(lambda: scrubber.progress.finished_ns > 0)
        assert scrubber.progress.chunks == CHUNKS
        assert scrubber.progress.started_ns == before.started_ns


@pytest.mark.parametrize(
    "content", ["", "{", '{"position": "xy"}', '{"else": 1}', '{"position": "00"}']
)
def test_a_progress_file_that_makes_no_sense_begins_anew(
    store: MemoryChunkStore, tmp_path: Path, content: str
) -> None:
    (tmp_path / "scrub.json").write_text(content)
    with scrubbing(store, tmp_path, bytes_per_s=FAST) as scrubber:
        wait_until(lambda: scrubber.progress.finished_ns > 0)
        assert scrubber.progress.chunks == CHUNKS


def test_a_disk_that_fails_ends_the_scrub_and_is_reported(tmp_path: Path) -> None:
    class Failing(MemoryChunkStore):
        def verify(self, after: Any, limit: int) -> Any:
            self.fail("injected")
            raise Fs3Error(Code.DISK, "injected")

    seen = Seen()
    with scrubbing(Failing(), tmp_path, seen, bytes_per_s=FAST):
        wait_until(lambda: seen.failures == ["injected"])
