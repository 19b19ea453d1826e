"""Every test of the frame transport once more, through queue pairs of the twin in fake_verbs."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Iterator

import frame_peers
import numpy as np
import pytest
import rdma_peers
import rdma_suite
import test_transport
from fake_verbs import Fabric
from frame_peers import BIG, COUNT, ECHO, PATTERN
from rdma_peers import Client, Server

from fs3.transport.rdma import client as rdma_client
from fs3.transport.rdma import regions
from fs3.transport.rdma.flow import Permits
from fs3.transport.rdma.link import Link, Shape
from fs3.transport.rdma.messages import MessageKind, Prefix
from fs3.transport.rdma.verbs import Opcode, Path, WorkRequest

globals().update(rdma_peers.tests_of(test_transport, rdma_suite))


@pytest.fixture
def fabric() -> Fabric:
    return Fabric()


@pytest.fixture(autouse=True)
def queue_pairs(monkeypatch: pytest.MonkeyPatch, fabric: Fabric) -> None:
    """Clients and servers of the suite are those with queue pairs."""
    rdma_peers.put_in_place(monkeypatch, test_transport)
    monkeypatch.setattr(rdma_peers, "chosen_ports", [fabric.port()])
    monkeypatch.setattr(rdma_peers, "force_error", lambda link: link.queue_pair.fail())


@pytest.fixture
def serve() -> type[Server]:
    """Makes servers with queue pairs."""
    return Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


def test_payload_is_written_and_read_by_the_server(server, fabric):
    client = Client(server)
    before = dict(fabric.moved_bytes)
    request_id = client.send(ECHO, b"", [PATTERN[: 1 << 20]], [1 << 20])
    assert client.finish()[request_id].error is None
    moved = {opcode: fabric.moved_bytes[opcode] - before[opcode] for opcode in Opcode}
    assert moved[Opcode.READ] == moved[Opcode.WRITE] == 1 << 20
    assert moved[Opcode.SEND] < 1000
    client.connection.close()


def test_requests_are_whole_where_reads_end_after_what_was_posted_behind_them(server, fabric):
    fabric.reads_late = True
    test_transport.test_many_requests_in_flight_on_one_connection_each_get_their_own_answer(server)


def test_memory_that_cannot_be_registered_travels_over_tcp(server, fabric):
    client = Client(server)
    fabric.memory_max = 0
    before = dict(fabric.moved_bytes)
    request_id = client.send(ECHO, b"", [PATTERN[: 1 << 20]], [1 << 20])
    assert client.finish()[request_id].error is None
    assert client.body(request_id) == PATTERN[: 1 << 20]
    assert fabric.moved_bytes == before
    client.connection.close()


def test_of_a_reply_that_cannot_be_registered_whole_nothing_stays_registered(server, fabric):
    parts = [PATTERN[:200_000], PATTERN[200_000:500_000]]  # of bytes: registered for each use

    def answer(caller, request):
        fabric.memory_max = 250_000 + sum(region.length for region in fabric.regions.values())
        caller.reply(request.request_id, request.method, b"", parts)

    server.on_loop(lambda: server.frames.take([BIG], answer))
    client = Client(server)
    request_id = client.send(BIG, b"500000", [], [500_000])
    assert client.finish()[request_id].error is None
    assert client.body(request_id) == PATTERN[:500_000]
    assert 200_000 not in [region.length for region in fabric.regions.values()]
    client.connection.close()


def test_nothing_stays_registered_for_memory_that_is_gone(server, fabric):
    client = Client(server)
    kept = len(fabric.regions)
    for kind in (bytearray, lambda n: np.empty(n, np.uint8)):
        for _ in range(10):
            memory = memoryview(kind(100_000))
            request_id = next(client.ids)
            client.room[request_id] = [memory]
            client.connection.send(ECHO, request_id, b"", [PATTERN[:100_000]])
            assert client.finish()[request_id].error is None
            assert memory == PATTERN[:100_000]
            del client.room[request_id], client.bodies[request_id], memory
            gc.collect()
            # The last array's is closed with the next transfer; the server's pool has a few.
            assert len(fabric.regions) <= kept + 5
    client.connection.close()


def test_a_queue_pair_that_fails_before_it_is_used_leaves_the_connection_to_tcp(server, fabric):
    client = Client.__new__(Client)
    client.bodies, client.room, client.refused, client.ids = {}, {}, [], iter(range(1, 1 << 30))
    client.connection = rdma_client.RdmaConnection(
        server.frames.address,
        frame_peers.CLUSTER,
        client.place,
        rdma_peers.chosen_ports[0],
        server.rdma.endpoints[0],
        on_refused=client.refused.append,
    )
    client.connection._link.fail("flushed")
    for _ in "abc":
        request_id = client.send(ECHO, b"", [PATTERN[:100_000]], [100_000])
        assert client.finish()[request_id].error is None
        assert client.body(request_id) == PATTERN[:100_000]
    assert (client.connection.up, len(client.refused)) == (False, 1)
    client.connection.close()


def test_many_short_lived_pieces_travel_by_rdma_and_none_is_registered(server, fabric):
    client = Client(server)
    sizes = [3000 + 7 * i for i in range(100)]
    total = sum(sizes)
    ends = np.cumsum(sizes).tolist()
    for _ in "ab":  # the second time the memory that stands in for them is known
        parts = [bytearray(PATTERN[end - n : end]) for n, end in zip(sizes, ends, strict=True)]
        before, registered = dict(fabric.moved_bytes), fabric.registrations
        request_id = next(client.ids)
        room = client.room[request_id] = [memoryview(bytearray(n)) for n in reversed(sizes)]
        client.connection.send(ECHO, request_id, b"", [memoryview(part) for part in parts])
        assert client.finish()[request_id].error is None
        assert b"".join(room) == PATTERN[:total]
        moved = {opcode: fabric.moved_bytes[opcode] - before[opcode] for opcode in Opcode}
        assert moved[Opcode.READ] == moved[Opcode.WRITE] == total
        assert fabric.registrations - registered <= 4
    assert fabric.registrations == registered
    client.connection.close()


def test_small_pieces_between_large_ones_are_copied_and_the_large_ones_are_not(server, fabric):
    client = Client(server)
    large = [np.frombuffer(PATTERN[: 300 << 10], np.uint8).copy() for _ in range(3)]
    small = [b"%d" % n * 50 for n in range(20)]
    parts = [large[0], *small[:10], large[1], *small[10:], large[2]]
    sent = b"".join(parts)
    request_id = next(client.ids)
    room = [np.empty(400 << 10, np.uint8), *(bytearray(9) for _ in range(30))]
    room.append(np.empty(len(sent) - (400 << 10) - 270, np.uint8))
    client.room[request_id] = [memoryview(one) for one in room]
    client.connection.send(ECHO, request_id, b"", [memoryview(part) for part in parts])
    assert client.finish()[request_id].error is None
    assert b"".join(room) == sent
    lender = client.connection._opened.lender
    assert lender._pool.used_bytes == 0
    assert sum(len(memory.mapping) for m in lender._pool._idle.values() for memory in m) <= 8 << 10
    client.connection.close()


def test_one_large_object_in_many_pieces_is_registered_once(server, fabric):
    client = Client(server)
    content = bytes(PATTERN[: 1 << 20])  # nothing can be told of its end of life
    view = memoryview(content)
    parts = [view[at : at + (16 << 10)] for at in range(0, len(content), 16 << 10)]
    counted = server.counted_bytes
    client.send(COUNT, b"warm", [PATTERN[: 1 << 20]])
    server.wait_for(lambda: server.counted_bytes - counted == 1 << 20)
    before = fabric.registrations
    client.send(COUNT, b"once", parts)
    server.wait_for(lambda: server.counted_bytes - counted == 2 << 20)
    assert fabric.registrations - before == 1
    client.connection.close()


def test_the_same_memory_may_be_sent_twice_in_one_request(server):
    client = Client(server)
    twice = memoryview(b"same" * 2500)
    request_id = client.send(ECHO, b"", [twice, memoryview(b"-" * 100), twice], [20_100])
    assert client.finish()[request_id].error is None
    assert client.body(request_id) == bytes(twice) + b"-" * 100 + bytes(twice)
    client.connection.close()


def test_when_no_memory_is_left_to_stand_in_requests_go_over_tcp(server, fabric):
    client = Client(server)
    client.connection._opened.lender._pool.bytes_max = 16 << 10
    before = dict(fabric.moved_bytes)
    request_id = client.send(ECHO, b"", [memoryview(bytes(PATTERN[:100_000]))], [100_000])
    assert client.finish()[request_id].error is None
    assert client.body(request_id) == PATTERN[:100_000]
    assert fabric.moved_bytes == before
    client.connection.close()


def test_a_server_does_not_write_what_was_not_permitted(server, fabric):
    client = Client(server, Permits(1 << 20))
    before = fabric.moved_bytes[Opcode.WRITE]
    for _ in range(3):
        client.send(BIG, b"700000", (), [700_000])
    while fabric.moved_bytes[Opcode.WRITE] == before:
        pass
    for _ in range(20):  # whatever it may do without hearing from the client, it has done
        server.on_loop(lambda: None)
    assert fabric.moved_bytes[Opcode.WRITE] - before == 700_000
    assert {done.error for done in client.finish().values()} == {None}
    assert fabric.moved_bytes[Opcode.WRITE] - before == 3 * 700_000
    client.connection.close()


def linked(fabric, shape):
    """Two links that lead to each other, and what each was told of being broken."""
    device, ends, broken = fabric.port().device, [], []
    for _ in "ab":
        queue = device.completion_queue(1000)
        ends.append(
            (Link(device, queue, shape, lambda _prefix, _content: None, broken.append), queue)
        )
    for (mine, _), (theirs, _) in (ends, ends[::-1]):
        number = theirs.queue_pair.number
        mine.queue_pair.connect(
            Path(
                queue_pair=number,
                gid=b"",
                lid=0,
                sequence_number=0,
                mtu_bytes=4096,
                reads_in=1,
                reads_out=1,
            )
        )
        mine.opened(shape)
    return ends, broken


def test_a_link_with_as_much_under_way_as_it_can_have_returns_credits_later(fabric):
    ((here, queue), (there, other)), broken = linked(fabric, Shape(depth=16))
    memory = mmap.mmap(-1, 4096)
    region = fabric.port().device.register(memoryview(memory), remote=True)
    write = WorkRequest(
        Opcode.WRITE, region.address, 64, region.local_key, region.address, region.remote_key
    )
    for number in range(20):
        there.send(Prefix(MessageKind.GO_ON, request_id=number))
        there.flush()
    done = []
    here.send(Prefix(MessageKind.PULLED), (), [write] * 40, lambda: done.append("all"))
    here.flush()
    for end, its_queue in [(here, queue), (there, other)] * 100:
        for completion in its_queue.poll(1):
            end.on_completion(completion)
            end.flush()
    assert (broken, done) == ([], ["all"])
    here.close()
    there.close()


def test_memory_in_use_stays_registered_however_much_of_it_there_is(server, fabric, monkeypatch):
    monkeypatch.setattr(regions, "KEPT_BYTES_MAX", 1 << 20)
    client = Client(server)
    size = 300_000
    for _ in range(3):
        parts = [np.frombuffer(PATTERN[n : n + size], np.uint8).copy() for n in range(10)]
        room = [np.empty(size, np.uint8) for _ in range(10)]
        request_id = next(client.ids)
        client.room[request_id] = [memoryview(one) for one in room]
        before = fabric.moved_bytes[Opcode.WRITE]
        client.connection.send(ECHO, request_id, b"", [memoryview(part) for part in parts])
        assert client.finish()[request_id].error is None
        assert b"".join(room) == b"".join(parts)
        assert fabric.moved_bytes[Opcode.WRITE] - before == 10 * size
    kept = client.connection._opened.regions
    assert kept.kept_bytes <= 4 << 20  # the server's one buffer of so much
    client.connection.close()
