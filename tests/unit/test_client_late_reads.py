"""Reads that a server answers late, and small reads beside large ones, over real connections."""

from __future__ import annotations

import dataclasses
import math

import pytest
from fake_cluster import CHUNK_BYTES, fake_cluster
from test_client_data import INODE, LAYOUT, random_bytes, write

from fs3 import dataplane
from fs3.client.data import chunk_items, cut, items_of
from fs3.client.transfers import advance
from fs3.core.pace import Pace
from fs3.core.types import ChainId, chunk_id


@pytest.fixture
def cluster():
    with fake_cluster() as made:
        yield made


def patient(cluster):
    """A client that gives a request up only long after the test has failed."""
    data = cluster.client(request_ms=600_000, deadline_ms=600_000).context.data
    # On a loaded machine many answers are late: they do not use up how many may be asked for twice.
    data._loads.pace = Pace(hedge_share=1.0)
    content = random_bytes(3 * CHUNK_BYTES)
    write(data, 0, content)
    return data, content


def read_piece(data, index: int, buffer: bytearray) -> int:
    return data.read_piece(chunk_id(INODE, index), ChainId(index + 1), 0, memoryview(buffer))


def read_pieces(data, index: int, buffer: bytearray) -> int:
    """The same as a batch of one."""
    items = chunk_items(LAYOUT, INODE, [index], [0], [len(buffer)])
    return int(data.read_pieces(items, [memoryview(buffer)])[0])


def read_range(data, length: int) -> bytes:
    buffer = bytearray(length)
    items = items_of(LAYOUT, INODE, 0, length)
    data.read_pieces(items, cut(memoryview(buffer), items))
    return bytes(buffer)


def learn(data, content: bytes, length: int) -> None:
    """Read often enough that the client knows what is late."""
    for _ in range(40):
        assert read_range(data, length) == content[:length]
        assert read_piece(data, 0, bytearray(4096)) == 4096


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_server_that_does_not_answer_is_read_around_without_waiting_for_it(cluster, pieces):
    data, content = patient(cluster)
    learn(data, content, pieces * CHUNK_BYTES)
    cluster.nodes[2].stalled = True
    before = cluster.nodes[2].requests[dataplane.READ_BATCH]
    while cluster.nodes[2].requests[dataplane.READ_BATCH] == before:
        assert read_range(data, pieces * CHUNK_BYTES) == content[: pieces * CHUNK_BYTES]


def test_one_piece_is_read_around_a_silent_server_too(cluster):
    data, content = patient(cluster)
    learn(data, content, CHUNK_BYTES)
    cluster.nodes[3].stalled = True
    before = cluster.nodes[3].requests[dataplane.READ_BATCH]
    while cluster.nodes[3].requests[dataplane.READ_BATCH] == before:
        buffer = bytearray(4096)
        assert read_piece(data, 0, buffer) == 4096
        assert buffer == content[:4096]


def test_the_loser_never_writes_into_the_memory_of_a_finished_read(cluster):
    """The memory is used for something else by then: it would show."""
    data, content = patient(cluster)
    learn(data, content, CHUNK_BYTES)
    slow = cluster.nodes[2]
    slow.held = []
    buffers = []
    while not slow.held:
        for read in (read_piece, read_pieces):
            buffer = bytearray(CHUNK_BYTES)
            assert read(data, 0, buffer) == CHUNK_BYTES
            assert buffer == content[:CHUNK_BYTES]
            buffer[:] = b"\x55" * CHUNK_BYTES
            buffers.append(buffer)
    cluster.release(2)
    # Enough reads that what the slow server has sent is received by now, behind the late answers.
    asked = slow.requests[dataplane.READ_BATCH]
    while slow.requests[dataplane.READ_BATCH] < asked + 3:
        read_piece(data, 0, bytearray(4096))
        read_range(data, CHUNK_BYTES)
    assert all(buffer == b"\x55" * CHUNK_BYTES for buffer in buffers)
    assert not any(data._loads.outstanding.values())  # nothing is counted as outstanding any more


def test_a_small_read_does_not_wait_behind_a_large_one_of_the_same_server():
    """Seen by the order of completion: on one stream the large answer would come first."""
    with fake_cluster(nodes=1, chains=1, replicas=1) as cluster:
        limits = {"bytes_per_request": 64 << 20, "request_ms": 600_000, "deadline_ms": 600_000}
        data = cluster.client(**limits).context.data
        write(data, 0, random_bytes(CHUNK_BYTES))
        count = (32 << 20) // CHUNK_BYTES
        layout = dataclasses.replace(LAYOUT, stripe=1, chains=(ChainId(1),))
        large = chunk_items(layout, INODE, [0] * count, [0] * count, [CHUNK_BYTES] * count)
        small = chunk_items(layout, INODE, [0], [0], [512])
        links = data.new_links()
        room, little = memoryview(bytearray(32 << 20)), memoryview(bytearray(512))
        for items, view in ((large[:2], room[: 2 * CHUNK_BYTES]), (small, little)):  # connect
            transfer, _ = data.begin_reads(items, cut(view, items), links)
            while not transfer.finished:
                advance([transfer], links, math.inf)
            transfer.close()
        first, _ = data.begin_reads(large, cut(room, large), links)
        first.begin()
        second, _ = data.begin_reads(small, [little], links)
        while not second.finished:
            advance([first, second], links, math.inf)
        assert not first.finished
        while not first.finished:
            advance([first], links, math.inf)
        first.close()
        second.close()
        links.close()


def test_a_piece_whose_answer_is_late_is_waited_for(cluster, monkeypatch):
    data, content = patient(cluster)
    links = data.own_links()
    wait = links.wait

    def late(_timeout_s):
        monkeypatch.setattr(links, "wait", wait)
        return []

    monkeypatch.setattr(links, "wait", late)
    buffer = bytearray(4096)
    assert read_piece(data, 0, buffer) == 4096
    assert buffer == content[:4096]
    assert data.own_links() is links


def test_a_call_in_the_middle_of_another_takes_none_of_its_answers(cluster, monkeypatch):
    """As when the collector, which runs anywhere, closes a file that was written to."""
    data, content = patient(cluster)
    links = data.own_links()
    wait = links.wait

    def interrupted(timeout_s):
        monkeypatch.setattr(links, "wait", wait)
        assert data.own_links() is not links
        write(data, 3 * CHUNK_BYTES, content[:100])
        return wait(timeout_s)

    monkeypatch.setattr(links, "wait", interrupted)
    assert read_range(data, len(content)) == content
    assert data.own_links() is links
