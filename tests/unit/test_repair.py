"""Bad bytes on one replica's disk: served by others, repaired from them, never handed out."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from storage_cluster import WAIT_S, StorageCluster

from fs3 import dataplane
from fs3.compiled import plain
from fs3.core.chunks import UpdateKind
from fs3.core.types import ChainVersion, ChunkVersion, PublicState, chunk_id
from fs3.errors import Code, Fs3Error
from fs3.storageserver import repair
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import Commit, Piece, StageRequest
from fs3.storageserver.settings import RepairSettings

S, Y, OFF = PublicState.SERVING, PublicState.SYNCING, PublicState.OFFLINE
DATA = Random(11).randbytes(200_000)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[StorageCluster]:
    with StorageCluster(tmp_path, 3) as cluster:
        cluster.set_chain((1, S), (2, S), (3, S))
        yield cluster


def damage(cluster: StorageCluster, target: int, slot: int, position: int) -> None:
    """Flip a bit of a chunk behind the store's back."""

    def flip() -> None:
        store = cluster.nodes[target - 1].target.store
        (place,) = store.locate([Piece(chunk_id(7, slot), position, 1)], 0)
        _, _, _, _, size_class, start, before, _ = place
        fd, at = store.data_file(size_class), start + before
        (byte,) = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([byte ^ 16]), at)

    cluster.call(flip)


def wait_until(cluster: StorageCluster, true: Callable[[], bool]) -> None:
    """Return when it holds in the reactor's thread."""
    cluster.wait_until(true, f"problems: {[n.target.report.problem for n in cluster.nodes]}")


def stored(cluster: StorageCluster, target: int, slot: int) -> bytes | Code:
    """What the disk has, verified."""
    buffer = bytearray(1 << 20)
    store = cluster.nodes[target - 1].target.store
    (found,) = store.read([Piece(chunk_id(7, slot), 0, 1 << 20)], [memoryview(buffer)], verify=True)
    return bytes(buffer[: found.length]) if found.code is Code.OK else found.code


@pytest.mark.parametrize("target", [1, 2, 3])
def test_a_read_that_meets_bad_bytes_fails_there_and_has_them_repaired(
    three: StorageCluster, target: int
) -> None:
    three.write(5, DATA)
    damage(three, target, 5, 20_000)
    results, _ = three.read([(5, 20_000, 100)], target)
    assert results[0]["code"] == Code.CORRUPT
    repairs = three.nodes[target - 1].target.repairs
    wait_until(three, lambda: repairs.repaired == 1)
    assert three.read([(5, 20_000, 100)], target)[1] == [DATA[20_000:20_100]]
    assert stored(three, target, 5) == DATA
    assert (repairs.found, repairs.waiting, repairs.complaint) == (1, 0, "")


def test_what_is_suspected_waits_until_it_has_been_looked_at(three: StorageCluster) -> None:
    for slot in range(3):
        three.write(slot, DATA)
        damage(three, 2, slot, 20_000)
    repairs = three.nodes[1].target.repairs

    def suspect_all() -> int:
        for slot in range(3):
            repairs.suspect(chunk_id(7, slot), "a test says so")
        return repairs.waiting

    assert three.call(suspect_all) == 3
    wait_until(three, lambda: repairs.waiting == 0)
    assert repairs.repaired == 3


def test_what_a_reader_says_is_bad_is_looked_at_and_repaired(three: StorageCluster) -> None:
    three.write(5, DATA)
    damage(three, 2, 5, 20_000)
    results, (found,) = three.read([(5, 0, 200_000)], 2)  # whole blocks: the reader compares
    assert results[0]["code"] == Code.OK
    assert crc32c(found) != results[0]["crc"] == crc32c(DATA)
    for slot in (5, 6):  # of 6 nothing is known here
        item = np.array([(chunk_id(7, slot), 1, three.version, 0, 1000)], dataplane.READ_ITEM)
        assert three.request(2, dataplane.SUSPECT, item.tobytes()) == (b"", b"")
    wait_until(three, lambda: three.nodes[1].target.repairs.repaired == 1)
    assert three.read([(5, 0, 200_000)], 2)[1] == [DATA]


@pytest.mark.parametrize("target", [1, 2, 3])
@pytest.mark.parametrize("offset", [20_001, 199_990])
def test_an_overwrite_of_bad_bytes_waits_for_their_repair_and_succeeds(
    three: StorageCluster, target: int, offset: int
) -> None:
    three.write(5, DATA)
    damage(three, target, 5, offset - 5)
    result, detail = three.write(5, b"x" * 7, offset=offset)
    assert result["code"] == Code.OK, detail
    expected = DATA[:offset] + b"x" * 7 + DATA[offset + 7 :]
    assert result["checksum"] == crc32c(expected)
    for each in (1, 2, 3):
        assert stored(three, each, 5) == expected
    assert three.nodes[target - 1].target.repairs.repaired == 1


def test_a_cut_within_bad_bytes_waits_for_their_repair_and_succeeds(
    three: StorageCluster,
) -> None:
    three.write(5, DATA)
    damage(three, 2, 5, 40_000)
    result, detail = three.write(5, b"", kind=UpdateKind.TRUNCATE, length=40_010)
    assert result["code"] == Code.OK, detail
    assert stored(three, 2, 5) == DATA[:40_010]


def test_writes_to_a_chunk_under_repair_lose_nothing(three: StorageCluster) -> None:
    three.write(5, DATA)
    expected = bytearray(DATA)
    for turn in range(30):
        if turn % 10 == 0:
            damage(three, 2, 5, 100_000)
            three.read([(5, 100_000, 10)], 2)
        offset = turn * 3000
        result, detail = three.write(5, bytes([turn]) * 500, offset=offset)
        assert result["code"] == Code.OK, detail
        expected[offset : offset + 500] = bytes([turn]) * 500
    wait_until(three, lambda: three.nodes[1].target.repairs.waiting == 0)
    three.read([(5, 100_000, 10)], 2)
    wait_until(three, lambda: stored(three, 2, 5) == expected)
    assert stored(three, 1, 5) == stored(three, 3, 5) == expected


def test_an_update_of_a_chunk_that_is_being_brought_waits_for_it(
    three: StorageCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    three.write(5, DATA)
    three.write(6, DATA)
    damage(three, 2, 5, 20_000)
    asked, may_go_on = threading.Event(), threading.Event()
    fetch = repair.fetch_chunk

    def slow_fetch(*arguments: Any) -> Any:
        asked.set()
        assert may_go_on.wait(WAIT_S)
        return fetch(*arguments)

    monkeypatch.setattr(repair, "fetch_chunk", slow_fetch)
    three.read([(5, 20_000, 10)], 2)
    assert asked.wait(WAIT_S)
    results: list[int] = []
    write = threading.Thread(target=lambda: results.append(three.write(5, b"new")[0]["code"]))
    write.start()
    cases = three.nodes[1].target.repairs._cases
    wait_until(three, lambda: len(cases[chunk_id(7, 5)].held) == 1)
    assert three.write(6, b"beside")[0]["code"] == Code.OK  # other chunks do not wait
    assert results == []
    may_go_on.set()
    write.join()
    assert results == [Code.OK]
    assert three.call(lambda: three.nodes[1].target.repairs.repaired) == 1
    assert stored(three, 2, 5) == b"new" + DATA[3:]


def test_data_that_came_bad_is_refused_at_once_and_blames_no_disk(three: StorageCluster) -> None:
    three.write(5, DATA)
    result, _ = three.write(5, b"abc", crc=1)
    assert result["code"] == Code.CORRUPT
    assert three.call(lambda: three.nodes[0].target.repairs.found) == 0
    assert three.write(5, b"abc")[0]["code"] == Code.OK


def test_a_chunk_that_no_replica_has_good_is_reported_and_others_are_served(
    three: StorageCluster,
) -> None:
    three.write(5, DATA)
    three.write(6, b"beside")
    for target in (1, 2, 3):
        damage(three, target, 5, 20_000)
    assert three.read([(5, 20_000, 10)], 2)[0][0]["code"] == Code.CORRUPT
    repairs = three.nodes[1].target.repairs
    wait_until(three, lambda: "no other" in repairs.complaint or "CRC" in repairs.complaint)
    assert three.write(5, b"x", offset=20_001)[0]["code"] == Code.CORRUPT
    assert three.read([(6, 0, 10)], 2)[1] == [b"beside"]
    problem = three.call(lambda: three.nodes[1].target.report.problem)
    assert "1 bad chunks cannot be repaired" in problem
    # Whoever writes all of it anew makes it good.
    assert three.write(5, DATA)[0]["code"] == Code.OK
    wait_until(three, lambda: repairs.complaint == "")


def test_a_single_replica_with_bad_bytes_goes_on_and_is_repaired_when_another_returns(
    three: StorageCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "_PAUSE_S_MIN", 30.0)
    three.write(5, DATA)
    three.set_chain((1, S), (2, OFF), (3, OFF))
    damage(three, 1, 5, 20_000)
    assert three.read([(5, 20_000, 10)], 1)[0][0]["code"] == Code.CORRUPT
    repairs = three.nodes[0].target.repairs
    wait_until(three, lambda: "no other replica serves" in repairs.complaint)
    assert three.nodes[0].target.problem == ""
    three.set_chain((1, S), (2, S), (3, OFF))  # and is not left to wait for its next turn
    wait_until(three, lambda: repairs.repaired == 1)
    assert repairs.complaint == ""


def test_too_many_bad_chunks_take_the_target_out_but_never_the_last_one(tmp_path: Path) -> None:
    with StorageCluster(tmp_path, 2, RepairSettings(bad_chunks_max=2)) as two:
        two.set_chain((1, S), (2, S))
        for slot in range(3):
            two.write(slot, DATA)
            damage(two, 2, slot, 50_000)
            two.read([(slot, 50_000, 10)], 2)
        wait_until(two, lambda: "3 bad chunks within 3600 s" in two.nodes[1].target.problem)
        assert two.read([(1, 0, 10)], 2)[0][0]["code"] == Code.NOT_SERVING
        two.set_chain((1, S), (2, OFF))
        for slot in range(3):
            damage(two, 1, slot, 50_000)
            two.read([(slot, 50_000, 10)], 1)
        repairs = two.nodes[0].target.repairs
        wait_until(two, lambda: repairs.complaint.startswith("3 bad chunks"))
        assert two.nodes[0].target.problem == ""
        assert two.read([(1, 0, 10)], 1)[1] == [DATA[:10]]


def test_a_resync_source_with_bad_bytes_repairs_them_first(three: StorageCluster) -> None:
    three.write(5, DATA)
    three.set_chain((1, S), (2, S), (3, OFF))
    three.write(5, b"newer")
    damage(three, 2, 5, 150_000)
    three.set_chain((1, S), (2, S), (3, Y))
    assert three.nodes[2].uptodate.wait(WAIT_S), "the resync never ended"
    three.set_chain((1, S), (2, S), (3, S))
    assert stored(three, 3, 5) == stored(three, 2, 5) == b"newer" + DATA[5:]


def test_good_bytes_elsewhere_that_are_not_ours_take_the_target_out(three: StorageCluster) -> None:
    three.write(5, DATA)

    def rewrite() -> None:  # the same version with another content, as if it had been so for ever
        other = DATA[::-1]
        store = three.nodes[1].target.store
        update = StageRequest(
            chunk_id(7, 5),
            UpdateKind.REPLACE,
            ChunkVersion(1),
            0,
            len(other),
            memoryview(other),
            crc32c(other),
        )
        assert store.stage([update])[0].code is Code.OK
        assert store.commit([Commit(chunk_id(7, 5), ChunkVersion(1), ChainVersion(1))])

    three.call(rewrite)
    damage(three, 2, 5, 20_000)
    assert three.read([(5, 20_000, 10)], 2)[0][0]["code"] == Code.CORRUPT
    wait_until(three, lambda: "cannot be repaired" in three.nodes[1].target.problem)
    assert "has checksum" in three.nodes[1].target.problem
    assert three.read([(5, 20_000, 10)], 1)[1] == [DATA[20_000:20_010]]


def test_records_that_cannot_be_read_take_the_target_out_and_nothing_else(
    three: StorageCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    three.write(5, DATA)
    three.set_chain((1, S), (2, S), (3, OFF))
    target = three.nodes[1].target

    def fails(*_: object, **__: object) -> None:
        raise Fs3Error(Code.DISK, "injected into the records")

    monkeypatch.setattr(target.store, "scan", fails)
    three.set_chain((1, S), (2, S), (3, Y))  # target 2 is to say what it has
    wait_until(three, lambda: target.problem == "injected into the records")
    three.set_chain((1, S), (2, OFF), (3, OFF))
    assert three.write(5, b"on")[0]["code"] == Code.OK


def test_a_disk_that_is_gone_takes_the_target_out_when_its_space_is_asked_for(
    three: StorageCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = three.nodes[1].target

    def gone(_: Path) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(Files, "space", lambda _, path: gone(path))
    assert three.call(target.usage) == (0, 0, 0, 0)
    wait_until(three, lambda: "the disk is gone" in target.problem)
    assert three.nodes[0].target.problem == ""


class FailingReads(Files):
    """A disk on which reads fail from some moment on."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = False

    def preadv(self, fd, buffers, offset, /):  # type: ignore[no-untyped-def]
        if self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.preadv(fd, buffers, offset)

    def read_pieces(self, pieces, buffers, split=False, crcs=None, /):  # type: ignore[no-untyped-def]
        return plain.read_pieces(pieces, buffers, split, crcs, preadv=self.preadv)


def test_a_disk_that_fails_takes_its_own_target_out_and_the_chain_goes_on(tmp_path: Path) -> None:
    disk = FailingReads()
    with StorageCluster(tmp_path, 3, files={2: disk}) as three:
        three.set_chain((1, S), (2, S), (3, S))
        three.write(5, DATA)
        disk.failing = True
        assert three.read([(5, 0, 10)], 2)[0][0]["code"] == Code.DISK
        wait_until(three, lambda: os.strerror(errno.EIO) in three.nodes[1].target.problem)
        assert three.read([(5, 0, 10)], 2)[0][0]["code"] == Code.NOT_SERVING
        three.set_chain((1, S), (3, S), (2, OFF))
        assert three.write(5, b"on")[0]["code"] == Code.OK
        assert three.read([(5, 0, 4)], 3)[1] == [b"on" + DATA[2:4]]
