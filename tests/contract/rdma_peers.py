"""The two ends that transport tests play with, connected by a queue pair."""

from __future__ import annotations

from types import ModuleType

import frame_peers
import pytest

from fs3.proto import storage_pb2 as pb
from fs3.transport.rdma import client as rdma_client
from fs3.transport.rdma.flow import Permits
from fs3.transport.rdma.handshake import CONNECT_QUEUE_PAIR
from fs3.transport.rdma.link import Link, Shape
from fs3.transport.rdma.ports import OpenPort, open_ports
from fs3.transport.rdma.serving import RdmaLimits, RdmaServer
from fs3.transport.tcp import Limits

# Where replies of the tests' methods go is known before: their room is made with the request.
EXPECTED = dict.fromkeys((frame_peers.ECHO, frame_peers.BIG), lambda _head: b"")

# The tests' ports instead of this machine's, if there are any.
chosen_ports: list[OpenPort] = []


def find_ports() -> tuple[list[OpenPort], str]:
    return (chosen_ports, "") if chosen_ports else open_ports()


class Server(frame_peers.Server):
    """A frame server with RDMA ports beside it."""

    def __init__(
        self,
        limits: Limits | None = None,
        pool_bytes: int = frame_peers.POOL_BYTES,
        rdma_limits: RdmaLimits | None = None,
    ) -> None:
        super().__init__(limits, pool_bytes)
        ports, why = find_ports()
        assert ports, why
        self.rdma = RdmaServer(self.frames, ports, rdma_limits)
        self.frames.take([CONNECT_QUEUE_PAIR], self.connect)

    def connect(self, caller, request):
        reply = self.rdma.connect(pb.ConnectQueuePairRequest.FromString(request.head))
        caller.reply(request.request_id, request.method, reply.SerializeToString())

    def __exit__(self, *_):
        self.on_loop(self.rdma.close)
        super().__exit__()


class Client(frame_peers.Client):
    """A connection whose queue pair is up, if the server lets it."""

    def __init__(self, server, permits: Permits | None = None, shape: Shape | None = None) -> None:
        self.bodies = {}
        self.room = {}
        self.refused = []
        self.ids = iter(range(1, 1 << 30))
        ports, _ = find_ports()
        self.connection = rdma_client.RdmaConnection(
            server.frames.address,
            frame_peers.CLUSTER,
            self.place,
            ports[0],
            server.rdma.endpoints[0],
            permits=permits,
            shape=shape,
            on_refused=self.refused.append,
        )
        while not (self.connection.up or self.refused or self.connection.dead):
            self.send(frame_peers.NO_BODY)
            self.finish()


def tests_of(*modules: ModuleType) -> dict[str, object]:
    """Their test functions, to be tests of another module, too."""
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if name.startswith("test_")
    }


def put_in_place(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Clients and servers of these modules are ours."""
    monkeypatch.setattr(rdma_client, "EXPECTED", rdma_client.EXPECTED | EXPECTED)
    monkeypatch.setattr(rdma_client, "CANCEL_S", 30.0)  # however slow this machine is
    for module in (frame_peers, *modules):
        monkeypatch.setattr(module, "Client", Client)
        monkeypatch.setattr(module, "Server", Server)


def force_error(link: Link) -> None:
    """What a NIC does when it gives a queue pair up."""
    from pyverbs.qp import QPAttr

    queue_pair = link.queue_pair
    constants = queue_pair._device.constants
    queue_pair._made.modify(QPAttr(qp_state=constants.IBV_QPS_ERR), constants.IBV_QP_STATE)
