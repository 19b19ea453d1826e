"""Every test of the frame transport once more, through queue pairs of a real driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import rdma_peers
import rdma_suite
import test_transport
from counters import nic_packets
from frame_peers import ECHO, NO_BODY, PATTERN
from rdma_peers import Client, Server

pytestmark = [pytest.mark.rdma, pytest.mark.long]

globals().update(rdma_peers.tests_of(test_transport, rdma_suite))


@pytest.fixture(autouse=True)
def queue_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients and servers of the suite are those with queue pairs."""
    rdma_peers.put_in_place(monkeypatch, test_transport)


@pytest.fixture
def serve() -> type[Server]:
    """Makes servers with queue pairs."""
    return Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


def test_payload_is_moved_by_the_nic(server):
    client = Client(server)
    before = nic_packets()
    request_id = client.send(ECHO, b"", [PATTERN[: 1 << 20]], [1 << 20])
    assert client.finish()[request_id].error is None
    assert client.body(request_id) == PATTERN[: 1 << 20]
    # There and back, in packets of at most 4 KiB.
    assert nic_packets() - before >= 2 * 256
    client.connection.close()


def test_a_small_request_and_answer_take_one_message_each_way(server):
    client = Client(server)
    packets = []
    for _ in range(5):  # a NIC repeats what a loaded machine acknowledges late
        before = nic_packets()
        request_id = client.send(NO_BODY, b"ping")
        assert client.finish()[request_id].head == b"ping"
        packets.append(nic_packets() - before)
    assert min(packets) <= 6, packets  # with acknowledgements and credits
    client.connection.close()
