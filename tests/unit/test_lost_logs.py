"""Records that lost their end, and what a power cut does to exactly-once records."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import pytest
from faulty_files import FaultyFiles, Machine

from fs3.checksum import crc32c
from fs3.core.chunks import Tag, UpdateKind
from fs3.core.types import ChunkId, ChunkVersion, chunk_id
from fs3.errors import Code, Fs3Error
from fs3.storageserver.chunkstore.datafiles import ChunkStoreSettings
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import Commit, StageRequest
from fs3.storageserver.chunkstore.records import encode_channel
from fs3.storageserver.chunkstore.recovery import WATERMARK_FILE
from fs3.storageserver.chunkstore.store import DiskChunkStore
from fs3.watermark import SYNC_S, Watermark

SETTINGS = ChunkStoreSettings(reserve_bytes=0, growth_bytes_min=64 << 10)
A = chunk_id(1, 0)
ROOT = Path("/target")


def put(store: DiskChunkStore, chunk: ChunkId, version: int, data: bytes, client: int) -> None:
    kind = UpdateKind.WRITE if data else UpdateKind.REMOVE
    number, tag = ChunkVersion(version), Tag(client, 0, version)
    request = StageRequest(
        chunk, kind, number, 0, len(data), memoryview(data), crc32c(data), 1, tag
    )
    assert store.stage([request])[0].code is Code.OK
    assert store.commit([Commit(chunk, number, 1)]) == [Code.OK]


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A store of two synced chunks, as the death of its process leaves it."""
    DiskChunkStore(Files(), tmp_path / "target", SETTINGS).close()  # a table has the first rows
    store = DiskChunkStore(Files(), tmp_path / "target", SETTINGS)
    for slot in range(2):
        put(store, chunk_id(1, slot), 1, b"content", 7)
        store.sync()
    image = tmp_path / "image"
    shutil.copytree(tmp_path / "target", image)  # as if the process had died here
    store.close()
    return image


def logs(root: Path) -> list[Path]:
    return [path for path in (root / "records").glob("*.log") if path.stat().st_size]


def test_a_store_whose_log_is_gone_does_not_open_as_an_older_one(killed: Path) -> None:
    for log in logs(killed):
        log.unlink()
    for _ in range(2):
        with pytest.raises(Fs3Error, match="lost their end") as caught:
            DiskChunkStore(Files(), killed, SETTINGS)
        assert caught.value.code is Code.CORRUPT


def test_a_store_whose_log_is_cut_short_does_not_open_as_an_older_one(killed: Path) -> None:
    (log,) = logs(killed)
    os.truncate(log, log.stat().st_size // 2)
    with pytest.raises(Fs3Error, match="lost their end"):
        DiskChunkStore(Files(), killed, SETTINGS)


def test_an_operator_may_use_what_is_left(killed: Path) -> None:
    (log,) = logs(killed)
    os.truncate(log, log.stat().st_size // 2)
    (killed / WATERMARK_FILE).unlink()
    store = DiskChunkStore(Files(), killed, SETTINGS)
    assert store.check() == []
    store.close()


def test_a_store_of_a_killed_process_opens(killed: Path) -> None:
    store = DiskChunkStore(Files(), killed, SETTINGS)
    assert len(store.scan(None, 10)) == 2
    store.close()


def test_a_watermark_is_read_back_and_only_rises(tmp_path: Path) -> None:
    mark = Watermark(tmp_path / "mark")
    assert mark.value == 0
    mark.rise(1 << 40)
    mark.rise(5)
    mark.close()
    assert Watermark(tmp_path / "mark").value == 1 << 40


@pytest.mark.parametrize("content", [b"", b"fs3w", bytes(16), b"x" * 16, b"fs3w" + bytes(12)])
def test_a_watermark_that_makes_no_sense_says_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mark").write_bytes(content)
    assert Watermark(tmp_path / "mark").value == 0


def test_a_watermark_is_synced_now_and_then(tmp_path: Path) -> None:
    calls: list[str] = []
    now_s = [0.0]
    files = FaultyFiles(Machine(), on_call=calls.append)
    mark = Watermark(tmp_path / "mark", files, lambda: now_s[0])
    for value in range(1, 10):
        mark.rise(value)
    assert "fdatasync" not in calls
    now_s[0] = SYNC_S
    for value in range(10, 20):
        mark.rise(value)
    assert calls.count("fdatasync") == 1


@pytest.mark.parametrize("removal_synced", [True, False])
def test_a_synced_channel_record_outlives_its_chunk_and_the_power(removal_synced: bool) -> None:
    """The chunk is removed and made again; the power cut takes the new one back."""
    machine = Machine()
    store = DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)
    put(store, A, 1, b"first", client=7)
    put(store, A, 2, b"second", client=8)
    if removal_synced:
        put(store, A, 3, b"", client=9)
    store.sync()
    if not removal_synced:
        put(store, A, 3, b"", client=9)
    put(store, A, 1, b"again", client=10)
    for records in machine.records.values():  # every record got to the disk, none of the bytes did
        records.sync()
    for file in machine.files.values():
        file.cached = bytearray(file.durable.ljust(len(file.cached), b"\0"))
    machine.boots += 1
    store = DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)
    assert store.meta(A) is None
    for client, sequence in ((7, 1), (8, 2)):
        record = store.channel(client, 0)
        assert record is not None, f"client {client}'s update would be applied again"
        assert record.sequence == sequence
    assert store.channel(10, 0) is None, "what was undone must not look done"
    assert (store.channel(9, 0) is not None) is removal_synced
    assert store.check() == []


def test_a_channel_record_of_an_older_release_is_read() -> None:
    machine = Machine()
    store = DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS)
    put(store, A, 1, b"first", client=7)
    store.sync()
    (records,) = machine.records.values()
    (key,) = [key for key in records.current if key.startswith(b"h")]
    found = store.channel(7, 0)
    assert found is not None
    records.current[key] = encode_channel(found, 0)[:48]
    records.sync()
    machine.lose_power(Random(1))
    assert DiskChunkStore(FaultyFiles(machine), ROOT, SETTINGS).channel(7, 0) == found
