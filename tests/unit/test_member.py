"""A storageserver's membership against a manager that behaves as the test says."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fs3.clock import SystemClock
from fs3.proto import cluster_pb2 as pb
from fs3.reactor import Reactor
from fs3.routing import Routing
from fs3.rpc import Handlers
from fs3.rpc_grpc import serve_grpc
from fs3.storageserver.member import Member

NODE = pb.Node(
    node=1, host="h", data_address="127.0.0.1:1", control_address="127.0.0.1:2", incarnation=7
)


class HungStream:
    """A manager whose routing stream says nothing; heartbeats tell which version there is."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.reports: list[int] = []

    def register_node(self, request):
        return pb.RegisterNodeReply(heartbeat_ms=20, lease_ms=3000)

    def heartbeat(self, request):
        self.reports.append(len(request.targets))
        leases = [pb.TargetLease(target=9, chain_version=4)]
        return pb.HeartbeatReply(lease_ms=3000, routing_version=5, leases=leases)

    def get_routing(self, request):
        return pb.RoutingUpdate(version=5, nodes=[NODE])

    def watch_routing(self, request, context):
        self.ended.wait(60)
        return iter(())

    def __getattr__(self, name: str):
        return lambda request: pytest.fail(f"{name} was not expected")


@pytest.fixture
def manager() -> Iterator[tuple[HungStream, str]]:
    service = HungStream()
    handlers = Handlers("unit")
    handlers.add(pb.DESCRIPTOR.services_by_name["ClusterManager"], service)
    server, port = serve_grpc(handlers, "127.0.0.1:0", reflection=False)
    yield service, f"127.0.0.1:{port}"
    service.ended.set()
    server.stop(None).wait()


def test_routing_is_fetched_when_a_heartbeat_tells_of_a_newer_one_than_the_stream(manager) -> None:
    service, address = manager
    reactor = Reactor()
    heard: list[Routing] = []
    leases: list[tuple[int, int]] = []
    both = threading.Barrier(2, timeout=30)

    def on_routing(routing: Routing) -> None:
        heard.append(routing)
        both.wait()

    member = Member(
        NODE,
        [address],
        "unit",
        reactor=reactor,
        clock=SystemClock(),
        reports=lambda: [pb.TargetReport(target=9, local_state=2)],
        on_routing=on_routing,
        on_lease=lambda target, version, _until_ms: leases.append((target, version)),
    )
    loop = threading.Thread(target=reactor.run)
    loop.start()
    member.start()
    both.wait()
    member.stop()
    reactor.stop()
    loop.join()
    reactor.close()
    assert [routing.version for routing in heard] == [5]
    assert leases[:1] == [(9, 4)]
    assert set(service.reports) == {1}


def test_a_thread_that_dies_of_a_bug_ends_the_process(manager) -> None:
    """Without heartbeats the node would be out of its chains for good, and look alive."""
    _, address = manager
    reactor = Reactor()

    def report() -> list[pb.TargetReport]:
        raise ZeroDivisionError("a bug")

    member = Member(
        NODE,
        [address],
        "unit",
        reactor=reactor,
        clock=SystemClock(),
        reports=report,
        on_routing=lambda _: None,
        on_lease=lambda *_: None,
    )
    late = reactor.call_later(30, reactor.stop)
    member.start()
    with pytest.raises(ZeroDivisionError):
        reactor.run()
    late.cancel()
    member.stop()
    reactor.close()
