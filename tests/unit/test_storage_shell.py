"""The storageserver's shells over real sockets and real stores, without processes or a manager."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c
from storage_cluster import WAIT_S, StorageCluster

from fs3 import dataplane
from fs3.core import messages as m
from fs3.core.chunks import UpdateKind
from fs3.core.types import CHUNK_CONTENT_BYTES_MAX, PublicState, chunk_id
from fs3.errors import Code, Fs3Error

S, Y, W, OFF = (
    PublicState.SERVING,
    PublicState.SYNCING,
    PublicState.WAITING,
    PublicState.OFFLINE,
)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[StorageCluster]:
    with StorageCluster(tmp_path, 3) as cluster:
        cluster.set_chain((1, S), (2, S), (3, S))
        yield cluster


def test_a_write_is_readable_at_every_replica(three: StorageCluster) -> None:
    data = os.urandom(100_000)
    result, _ = three.write(5, data)
    assert (result["code"], result["length"], result["version"]) == (Code.OK, 100_000, 1)
    assert result["checksum"] == crc32c(data)
    for target in (1, 2, 3):
        results, (found,) = three.read([(5, 0, 200_000)], target)
        assert results[0]["code"] == Code.OK
        assert found == data
        assert results[0]["crc"] == crc32c(data)


def test_pieces_of_a_batch_keep_their_order_and_holes_say_so(three: StorageCluster) -> None:
    for slot in range(4):
        three.write(slot, bytes([slot]) * 70_000)
    pieces = [(3, 10, 5), (9, 0, 100), (0, 69_990, 100), (1, 20_000, 30_000)]
    results, found = three.read(pieces, 2)
    assert results["code"].tolist() == [Code.OK, Code.NO_CHUNK, Code.OK, Code.OK]
    assert found == [b"\3" * 5, b"", b"\0" * 10, b"\1" * 30_000]


def test_overwrite_append_truncate_and_remove_reach_every_replica(three: StorageCluster) -> None:
    three.write(1, b"a" * 1000)
    three.write(1, b"b" * 10, offset=500)
    three.write(1, b"c" * 10, offset=1500, sync=True)
    expected = b"a" * 500 + b"b" * 10 + b"a" * 490 + bytes(500) + b"c" * 10
    for target in (1, 2, 3):
        assert three.read([(1, 0, 5000)], target)[1] == [expected]
    three.write(1, b"", kind=UpdateKind.TRUNCATE, length=505)
    three.write(1, b"", kind=UpdateKind.EXTEND, length=507)
    for target in (1, 2, 3):
        assert three.read([(1, 0, 5000)], target)[1] == [expected[:505] + b"\0\0"]
    assert three.write(1, b"", kind=UpdateKind.REMOVE)[0]["code"] == Code.OK
    for target in (1, 2, 3):
        assert three.read([(1, 0, 5000)], target)[0][0]["code"] == Code.NO_CHUNK


def test_writes_enter_at_the_head_only_and_at_the_right_chain_version(
    three: StorageCluster,
) -> None:
    assert three.write(1, b"x", target=2)[0]["code"] == Code.NOT_SERVING
    assert three.write(1, b"x", version=9)[0]["code"] == Code.STALE_CHAIN
    results, _ = three.read([(1, 0, 1)], 3, version=9)
    assert results[0]["code"] == Code.STALE_CHAIN


def test_a_repeated_update_is_answered_from_the_record(three: StorageCluster) -> None:
    first, _ = three.write(1, b"one", tag=(77, 1, 1))
    three.write(1, b"two", tag=(78, 1, 1))
    again, _ = three.write(1, b"one", tag=(77, 1, 1))
    assert again == first
    assert three.read([(1, 0, 9)], 1)[1] == [b"two"]
    # Also by another head.
    three.set_chain((2, S), (3, S), (1, OFF))
    again, _ = three.write(1, b"one", tag=(77, 1, 1), target=2)
    assert again == first
    assert three.read([(1, 0, 9)], 3)[1] == [b"two"]


def test_data_that_does_not_match_its_checksum_is_refused(three: StorageCluster) -> None:
    item = np.zeros(1, dataplane.WRITE_ITEM)
    item["chunk"] = np.frombuffer(chunk_id(7, 1), "V24")
    item["chain"], item["chain_version"], item["length"], item["kind"] = 1, three.version, 3, 1
    item["crc"] = 123
    head = np.zeros(1, dataplane.WRITE_PREFIX).tobytes() + item.tobytes()
    reply, _ = three.request(1, dataplane.WRITE_BATCH, head, b"abc")
    results, details = dataplane.decode_results(reply, dataplane.WRITE_RESULT, 1)
    assert results[0]["code"] == Code.CORRUPT
    assert "0000007b" in details[0]
    assert three.read([(1, 0, 9)], 1)[0][0]["code"] == Code.NO_CHUNK


def test_without_a_lease_nothing_is_served(three: StorageCluster) -> None:
    three.write(1, b"x")
    three.set_chain((1, S), (2, S), (3, S), lease_ms=0)
    # The lease of the version before is still in force: it was granted for longer.
    assert three.read([(1, 0, 1)], 1)[0][0]["code"] == Code.OK


def test_a_returning_replica_is_resynced_while_writes_go_on(three: StorageCluster) -> None:
    for slot in range(20):
        three.write(slot, bytes([slot]) * 50_000)
    three.set_chain((1, S), (2, S), (3, OFF))
    for slot in range(10):
        three.write(slot, bytes([100 + slot]) * 60_000)
    three.write(11, b"", kind=UpdateKind.REMOVE)
    three.set_chain((1, S), (2, S), (3, Y))
    three.write(12, b"during" * 100)
    node = three.nodes[2]
    assert node.uptodate.wait(WAIT_S), "the resync never ended"
    three.set_chain((1, S), (2, S), (3, S))
    three.wait_until(lambda: node.target.core.serving)  # it has joined its predecessor
    for slot in range(20):
        assert three.read([(slot, 0, 70_000)], 3)[1] == three.read([(slot, 0, 70_000)], 1)[1]
    scans = [
        three.call(
            lambda n=n: [(c, m.version, m.checksum) for c, m in n.target.store.scan(None, 99)]
        )
        for n in three.nodes
    ]
    assert scans[0] == scans[1] == scans[2]


def test_bad_requests_get_one_clear_error_each(three: StorageCluster) -> None:
    with pytest.raises(Fs3Error, match="whole items") as error:
        three.request(1, dataplane.READ_BATCH, b"x" * 41)
    assert error.value.code is Code.PROTOCOL
    with pytest.raises(Fs3Error, match="the items write 0 bytes, the body has 3"):
        three.request(1, dataplane.WRITE_BATCH, bytes(16), b"abc")
    with pytest.raises(Fs3Error, match="reach beyond the largest chunk"):
        three.read([(1, CHUNK_CONTENT_BYTES_MAX, 1)], 1)
    with pytest.raises(Fs3Error, match="0x7777 is not served"):
        three.request(1, 0x7777, b"")
    assert three.write(1, b"still alive")[0]["code"] == Code.OK


def test_a_failed_target_keeps_no_memory_of_what_neighbours_sent_it(
    three: StorageCluster,
) -> None:
    """Its node has other targets, which need the buffers."""
    failed, pool = three.nodes[1].target, three.nodes[1].pool
    came = threading.Semaphore(0)
    deliver = failed.deliver

    def delivered(messages: Sequence[m.Message]) -> None:
        deliver(messages)
        came.release()

    failed.deliver = delivered  # type: ignore[method-assign]
    three.call(lambda: setattr(failed, "core", None))  # as it is before routing tells of the chain
    writers = [
        threading.Thread(target=three.write, args=(slot, bytes(1_000_000))) for slot in range(2)
    ]
    writers[0].start()
    assert came.acquire(timeout=30)
    assert pool.used_bytes  # it is kept for a core that is about to be built
    three.call(lambda: failed.fail("the test says so"))
    writers[1].start()
    assert came.acquire(timeout=30)
    three.set_chain((1, S), (3, S), (2, OFF))
    for writer in writers:
        writer.join()
    pause = threading.Event()
    for _ in range(1000):
        if not pool.used_bytes:
            return
        pause.wait(0.01)
    pytest.fail(f"{pool.used_bytes} bytes are in use for ever")
