"""Every test of the frame transport once more, through queue pairs of the twin in fake_verbs."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
import rdma_peers
import rdma_suite
import test_transport
from fake_verbs import Fabric
from frame_peers import BIG, ECHO, PATTERN
from rdma_peers import Client, Server

from fs3.transport.rdma.flow import Permits
from fs3.transport.rdma.verbs import Opcode

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


def test_memory_that_cannot_be_registered_travels_over_tcp(server, fabric):
    client = Client(server)
    fabric.memory_max = 0
    before = dict(fabric.moved_bytes)
    request_id = client.send(ECHO, b"", [PATTERN[: 1 << 20]], [1 << 20])
    assert client.finish()[request_id].error is None
    assert client.body(request_id) == PATTERN[: 1 << 20]
    assert fabric.moved_bytes == before
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
