"""Every test of the frame transport through iWARP: the connection manager makes its queue pairs."""

from __future__ import annotations

import os

import pytest
import rdma_peers
import rdma_suite
import test_transport
from frame_peers import ECHO, PATTERN
from rdma_peers import Client
from test_rdma_transport import queue_pairs, serve, server  # noqa: F401 - fixtures

from fs3.transport.rdma.inventory import GidType
from fs3.transport.rdma.ports import open_ports

pytestmark = [pytest.mark.rdma, pytest.mark.long]
DRIVERS = "siw"  # of the guest

globals().update(rdma_peers.tests_of(test_transport, rdma_suite))


@pytest.fixture(autouse=True)
def iwarp() -> None:
    ports, why = open_ports()
    if not any(one.port.gid_type is GidType.IWARP for one in ports):
        pytest.skip(f"no iWARP device: {why or [one.port.name for one in ports]}")


def test_a_stranger_gets_no_queue_pair(server, monkeypatch):  # noqa: F811 - the fixture
    from fs3.transport.rdma import client as rdma_client

    monkeypatch.setattr(rdma_client, "token_of", lambda link: bytes(8))
    client = Client(server)
    assert (client.connection.up, len(client.refused)) == (False, 1)
    request_id = client.send(ECHO, b"", [PATTERN[:100_000]], [100_000])
    assert client.finish()[request_id].error is None
    client.connection.close()


def test_no_connection_stays_when_its_queue_pair_is_gone(server):  # noqa: F811 - the fixture
    open_descriptors = []
    for _ in range(60):
        client = Client(server)
        assert client.connection.up
        client.connection.close()
        while server.on_loop(lambda: len(server.rdma.callers)):
            pass
        open_descriptors.append(len(os.listdir("/proc/self/fd")))
    # A few come and go with other threads.
    assert min(open_descriptors[-10:]) <= min(open_descriptors[:10]) + 2, open_descriptors


def test_the_doctor_finds_a_port_that_works(capsys):
    from fs3.client.cli.main import run

    assert run(["doctor", "rdma"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "iWARP" in said
    assert os.environ.get("RDMA_VM_ADDRESS", "") in said


def test_files_travel_by_iwarp_and_so_do_those_between_neighbours(cluster):
    nodes = [node.info for node in cluster.status().nodes]
    assert [any(one.iwarp for one in node.rdma) for node in nodes] == [True] * 3
    client = cluster.client()
    content = os.urandom(3 << 20)
    for _ in "abc":
        client.write("/file", content)
        assert client.read("/file") == content
        assert client.read_batch([("/file", n * 5000, 4096) for n in range(64)]) == [
            content[n * 5000 : n * 5000 + 4096] for n in range(64)
        ]
    logs = "".join(path.read_text() for path in cluster.dir.glob("node-*/log"))
    assert "peer_by_rdma" in logs
    mount = cluster.mount()
    assert (mount / "file").read_bytes() == content
