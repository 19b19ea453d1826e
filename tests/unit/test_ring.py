"""Rings on files of a native client, against servers that die, stall and refuse."""

from __future__ import annotations

import errno
import os
import random
import threading
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
from fake_cluster import CHUNK_BYTES, FakeCluster, fake_cluster, wait_until

from fs3 import dataplane
from fs3.client.ring import Iov, Ring, deregister_fd, register_fd
from fs3.client.ring import ring as ring_module
from fs3.errors import Code, Fs3Error

KIB = 1 << 10


@pytest.fixture
def cluster():
    with fake_cluster() as made:
        yield made


class Opened:
    """A file of ``content``, registered."""

    def __init__(self, cluster: FakeCluster, content: bytes = b"", mode="r+b", **limits) -> None:
        self.client = cluster.client(**limits)
        self.client.write("/f", content)
        self.file = self.client.open_file("/f", mode)
        self.handle = register_fd(self.file)


def ring_of(mode: str, entries: int = 4096) -> Ring:
    return Ring(entries, mode)


def write_all(handle: int, content: bytes, step: int) -> np.ndarray:
    iov = Iov(bytearray(content))
    offsets = np.arange(0, len(content), step)
    lengths = np.minimum(step, len(content) - offsets)
    with ring_of("write") as ring:
        ring.prep_many(handle, offsets, lengths, iov, offsets)
        ring.submit()
        return ring.wait()


# Reading and writing.


def test_columns_of_random_reads_arrive_where_they_belong(cluster):
    content = random.Random(1).randbytes(5 * CHUNK_BYTES + 77)
    opened = Opened(cluster, content)
    rng = np.random.default_rng(2)
    count = 1000
    offsets = rng.integers(0, len(content) + 2 * KIB, count)
    lengths = rng.integers(0, 3 * KIB, count)
    places = np.cumsum(lengths) - lengths
    iov = Iov(int(lengths.sum()))
    with ring_of("read") as ring:
        ring.prep_many(opened.handle, offsets, lengths, iov, places, np.arange(count) * 7)
        assert ring.submit() == count == ring.in_flight
        done = ring.wait()
        assert ring.in_flight == 0
    assert done["index"].tolist() == list(range(count))
    assert done["userdata"].tolist() == [7 * i for i in range(count)]
    for offset, length, place, result in zip(
        offsets.tolist(), lengths.tolist(), places.tolist(), done["result"].tolist(), strict=True
    ):
        expected = content[offset : offset + length]
        assert result == len(expected)
        assert bytes(iov[place : place + result]) == expected


def test_an_io_over_many_chunks_beside_one_without_bytes(cluster):
    content = os.urandom(2 * CHUNK_BYTES)
    opened = Opened(cluster, content)
    iov = Iov(3 * CHUNK_BYTES)
    with ring_of("read") as ring:
        ring.prep_io(opened.handle, 2 * CHUNK_BYTES, iov[2 * CHUNK_BYTES :], 5)
        ring.prep_io(opened.handle, 0, iov[: 2 * CHUNK_BYTES], 6)
        ring.submit()
        assert ring.wait().tolist() == [(0, 5, 0), (1, 6, 2 * CHUNK_BYTES)]
    assert bytes(iov[: 2 * CHUNK_BYTES]) == content


def test_a_batch_reads_nothing_of_one_file_and_two_chunks_of_another(cluster):
    client, content = cluster.client(), os.urandom(2 * CHUNK_BYTES)
    client.write("/full", content)
    client.write("/empty", b"")
    parts = client.read_batch([("/empty", 0, 10), ("/full", 0, len(content))])
    assert [bytes(part) for part in parts] == [b"", content]


def test_columns_of_writes_are_visible_after_flush_and_safe_after_fsync(cluster):
    opened = Opened(cluster)
    content = os.urandom(3 * CHUNK_BYTES + 5)
    results = write_all(opened.handle, content, 1000)["result"]
    assert results.sum() == len(content)
    assert opened.file.pread(len(content), 0) == content  # this client sees it at once
    opened.file.flush()
    assert cluster.client().read("/f") == content
    assert not any(cluster.synced.values())
    opened.file.fsync()
    assert all(len(chunks) == 4 for chunks in cluster.synced.values())


def test_what_was_gathered_before_is_read_and_does_not_come_later(cluster):
    opened = Opened(cluster)
    opened.file.pwrite(b"gathered", 0)
    iov = Iov(8)
    with ring_of("read") as reader, ring_of("write") as writer:
        reader.prep_io(opened.handle, 0, iov)
        reader.submit()
        assert reader.wait()["result"].tolist() == [8]
        assert bytes(iov) == b"gathered"
        opened.file.pwrite(b"old", 0)
        iov[0:3] = b"new"
        writer.prep_io(opened.handle, 0, iov[0:3])
        writer.submit()
        writer.wait()
    opened.file.flush()
    assert cluster.client().read("/f") == b"newhered"


def test_holes_read_as_zeros_to_the_end_of_the_file(cluster):
    opened = Opened(cluster)
    opened.file.truncate(2 * CHUNK_BYTES)
    iov = Iov(bytearray(b"\xff" * 3 * CHUNK_BYTES))
    with ring_of("read") as ring:
        ring.prep_io(opened.handle, 10, iov)
        ring.submit()
        assert ring.wait()["result"].tolist() == [2 * CHUNK_BYTES - 10]
    assert bytes(iov[: 2 * CHUNK_BYTES - 10]) == bytes(2 * CHUNK_BYTES - 10)


def test_more_pieces_than_one_request_may_have(cluster):
    opened = Opened(cluster)
    count = dataplane.BATCH_ITEMS_MAX + 100
    content = os.urandom(count * 8)
    iov = Iov(bytearray(content))
    places = np.arange(count) * 8
    with ring_of("write", 2 * count) as ring:
        ring.prep_many(opened.handle, places, 8, iov, places)
        ring.submit()
        assert (ring.wait()["result"] == 8).all()
    with ring_of("read", count) as ring:
        back = Iov(len(content))
        ring.prep_many(opened.handle, places, 8, back, places)
        ring.submit()
        assert (ring.wait()["result"] == 8).all()
    assert bytes(back) == content


# Who waits how.


def test_requests_leave_at_submit(cluster):
    opened = Opened(cluster, b"x" * 100)
    ring = ring_of("read")
    ring.prep_io(opened.handle, 0, Iov(100))
    assert not cluster.requests(dataplane.READ_BATCH)
    ring.submit()
    wait_until(lambda: cluster.requests(dataplane.READ_BATCH) == 1)
    ring.close()


def test_results_come_as_they_are_there_and_each_once(cluster):
    opened = Opened(cluster, b"x" * 100)
    iov = Iov(1000)
    with ring_of("read") as ring:
        for number in range(10):
            ring.prep_io(opened.handle, number, iov[number * 100 : number * 100 + 1], number)
        ring.submit()
        seen = ring.wait(3, max_results=4)["userdata"].tolist()
        assert 3 <= len(seen) <= 4
        while ring.in_flight:
            seen += ring.wait(1)["userdata"].tolist()
        assert sorted(seen) == list(range(10))
        assert not len(ring.wait())


def test_looking_in_does_not_wait_and_loses_nothing(cluster):
    opened = Opened(cluster, b"x")
    for node in cluster.nodes.values():
        node.stalled = True
    with ring_of("read") as ring:
        ring.prep_io(opened.handle, 0, Iov(1))
        ring.submit()
        assert not len(ring.wait(0, 0))
        assert not len(ring.wait(timeout_s=0.01))
        assert ring.in_flight == 1


def test_what_was_cancelled_does_not_touch_its_memory(cluster):
    opened = Opened(cluster, b"x" * CHUNK_BYTES)
    gate = threading.Event()
    for node in cluster.nodes.values():
        node.before_request = lambda: gate.wait(30)
    iov = Iov(CHUNK_BYTES)
    with ring_of("read") as ring:
        ring.prep_io(opened.handle, 0, iov, 1)
        ring.submit()
        assert not len(ring.wait(timeout_s=0.01))
        assert ring.cancel().tolist() == [(0, 1, -errno.ECANCELED)]
        iov[:] = b"y" * CHUNK_BYTES
        gate.set()
        ring.prep_io(opened.handle, 0, Iov(CHUNK_BYTES), 2)
        ring.submit()
        assert ring.wait().tolist() == [(1, 2, CHUNK_BYTES)]
    assert bytes(iov) == b"y" * CHUNK_BYTES


def test_a_request_that_is_never_answered_ends_with_an_error(cluster):
    opened = Opened(cluster, b"x")
    data = opened.client.context.data
    data._limits = replace(data._limits, deadline_ms=300, request_ms=100)
    for node in cluster.nodes.values():
        node.stalled = True
    with ring_of("read") as ring:
        ring.prep_io(opened.handle, 0, Iov(1))
        ring.submit()
        assert ring.wait()["result"].tolist() == [-errno.EHOSTUNREACH]


def test_errors_are_those_of_their_ios(cluster):
    opened = Opened(cluster, bytes(6 * CHUNK_BYTES))
    bad = opened.file.inode()
    chunk = bad.inode.to_bytes(8, "big") + (2).to_bytes(16, "big")
    for node in cluster.nodes.values():
        node.corrupt_code.add(chunk)
    iov = Iov(6 * CHUNK_BYTES)
    places = np.arange(6) * CHUNK_BYTES
    with ring_of("read") as ring:
        ring.prep_many(opened.handle, places, CHUNK_BYTES, iov, places)
        ring.submit()
        results = ring.wait()["result"].tolist()
    assert results == [CHUNK_BYTES] * 2 + [-errno.EIO] + [CHUNK_BYTES] * 3


def test_a_full_disk_fails_its_writes(cluster):
    opened = Opened(cluster)
    for node in cluster.nodes.values():
        node.refuse = [Code.NO_SPACE]
    results = write_all(opened.handle, b"x" * 10, 10)["result"].tolist()
    assert results == [-errno.ENOSPC]
    for node in cluster.nodes.values():
        node.refuse = []
    assert len(opened.file) == 0


def test_reads_go_on_when_a_node_dies(cluster):
    content = os.urandom(8 * CHUNK_BYTES)
    opened = Opened(cluster, content)
    iov = Iov(len(content))
    places = np.arange(0, len(content), KIB)
    with ring_of("read") as ring:
        for _ in range(2):
            iov[:] = bytes(len(content))
            ring.prep_many(opened.handle, places, KIB, iov, places)
            ring.submit()
            assert (ring.wait()["result"] == KIB).all()
            assert bytes(iov) == content
            cluster.kill(1)


def test_without_room_for_updates_writes_wait_for_others(cluster):
    opened = Opened(cluster)
    data = opened.client.context.data
    taken, _ = data._channels.take(1 << 16, 1.0)
    iov = Iov(bytearray(b"later"))
    with ring_of("write") as ring:
        ring.prep_io(opened.handle, 0, iov)
        ring.submit()
        assert not len(ring.wait(timeout_s=0.02))
        data._channels.give(taken)
        assert ring.wait()["result"].tolist() == [5]


def test_without_room_for_updates_for_long_they_fail(cluster, monkeypatch):
    monkeypatch.setattr(ring_module, "_BUSY_MAX_S", 0.01)
    opened = Opened(cluster)
    data = opened.client.context.data
    taken, _ = data._channels.take(1 << 16, 1.0)
    with ring_of("write") as ring:
        ring.prep_io(opened.handle, 0, Iov(1))
        ring.submit()
        assert ring.wait()["result"].tolist() == [-errno.EAGAIN]
    data._channels.give(taken)


def test_nothing_is_asked_of_the_metaserver_once_a_file_is_registered(cluster):
    opened = Opened(cluster, bytes(CHUNK_BYTES))
    cluster.stop_metaserver()
    try:
        iov = Iov(CHUNK_BYTES)
        with ring_of("read") as ring:
            ring.prep_io(opened.handle, 0, iov)
            ring.submit()
            assert ring.wait()["result"].tolist() == [CHUNK_BYTES]
        assert write_all(opened.handle, b"x" * 100, 10)["result"].sum() == 100
    finally:
        cluster.start_metaserver()


# What is refused.


def test_a_full_ring_says_so(cluster):
    opened = Opened(cluster, b"x")
    with Ring(2, "read") as ring:
        ring.prep_io(opened.handle, 0, Iov(1))
        with pytest.raises(Fs3Error, match="2 I/Os, and room for 1 of 2"):
            ring.prep_many(opened.handle, [0, 0], 1, Iov(1), [0, 0])
        ring.prep_io(opened.handle, 0, Iov(1))
        ring.submit()
        with pytest.raises(BlockingIOError):
            ring.prep_io(opened.handle, 0, Iov(1))
        ring.wait()
        ring.prep_io(opened.handle, 0, Iov(1))


def test_the_wrong_direction_is_refused_when_prepared(cluster):
    reader = Opened(cluster, b"x", "rb")
    with Ring(1, "write") as ring, pytest.raises(PermissionError):
        ring.prep_io(reader.handle, 0, Iov(1))
    writer = register_fd(reader.client.open_file("/g", "wb"))
    with Ring(1, "read") as ring, pytest.raises(PermissionError):
        ring.prep_io(writer, 0, Iov(1))


def test_nonsense_is_refused_with_what_is_allowed(cluster):
    opened = Opened(cluster, b"x")
    iov = Iov(10)
    with ring_of("read") as ring:
        for refused in (
            lambda: ring.prep_io(opened.handle, -1, iov),
            lambda: ring.prep_io(opened.handle, (1 << 50) - 9, iov),
            lambda: ring.prep_many(opened.handle, [0, 1 << 60], 1, iov, 0),
            lambda: ring.prep_many(opened.handle, [0], 11, iov, 0),
            lambda: ring.prep_many(opened.handle, [0], 1, iov, -1),
            lambda: ring.prep_many(opened.handle, [[0]], 1, iov, 0),
            lambda: ring.prep_many(opened.handle, [0, 1], 1, iov, [0]),
            lambda: ring.prep_many(opened.handle, 0, 1, iov, 0),
            lambda: ring.prep_io(10**9, 0, iov),
            lambda: Ring(0, "read"),
            lambda: Ring(1, "append"),
            lambda: Iov(0),
            lambda: Iov(b"read-only"),
            lambda: deregister_fd(10**9),
            lambda: register_fd(opened.client.open_file("/f", "ab")),
        ):
            with pytest.raises(Fs3Error) as caught:
                refused()
            assert caught.value.code is Code.INVALID
        assert ring.submit() == 0


def test_a_file_of_another_client_is_refused(cluster):
    one, other = Opened(cluster, b"x"), Opened(cluster, b"x")
    with ring_of("read") as ring:
        ring.prep_io(one.handle, 0, Iov(1))
        with pytest.raises(Fs3Error, match="another client"):
            ring.prep_io(other.handle, 0, Iov(1))


def test_a_ring_stays_with_its_process(cluster):
    opened = Opened(cluster, b"x" * 10)
    with ring_of("read") as ring:
        ring.prep_io(opened.handle, 0, Iov(5))
        ring.submit()
        child = os.fork()
        if child == 0:
            try:
                ring.prep_io(opened.handle, 0, Iov(5))
            except Fs3Error as error:
                ring.close()  # leaves the parent's connections alone
                os._exit(7 if error.code is Code.INVALID else 1)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert ring.wait()["result"].tolist() == [5]


def test_deregistering_does_not_stop_what_is_under_way(cluster):
    opened = Opened(cluster, b"x")
    with ring_of("read") as ring:
        ring.prep_io(opened.handle, 0, Iov(1))
        deregister_fd(opened.handle)
        ring.submit()
        assert ring.wait()["result"].tolist() == [1]
        with pytest.raises(Fs3Error, match="not registered"):
            ring.prep_io(opened.handle, 0, Iov(1))


# Memory.


def test_a_part_of_a_region_is_the_same_memory():
    iov = Iov(100)
    iov[10:20][5:10][:] = b"abcde"
    assert bytes(iov[15:20]) == b"abcde"
    assert len(iov[90:]) == 10
    for bad in (slice(0, 10, 2), 5):
        with pytest.raises(IndexError):
            iov[bad]
    with pytest.raises(ValueError, match="assign"):
        iov[0:5] = b"four"


def test_shared_memory_may_be_closed_and_unlinked_at_once():
    shared = SharedMemory(create=True, size=8192)
    shared.buf[:5] = b"hello"
    iov = Iov(shared)
    shared.close()
    shared.unlink()
    assert bytes(iov[:5]) == b"hello"


def test_any_writable_buffer_is_memory():
    array = np.zeros(10, np.float32)
    Iov(array)[0:4] = np.float32(1).tobytes()
    assert array[0] == 1
