"""Probes between nodes on real connections: who answers, who does not, and what is no probe."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from fs3 import dataplane, frames
from fs3.buffers import BufferPool
from fs3.clock import SystemClock
from fs3.core.types import NodeId, TargetId
from fs3.errors import Code, Fs3Error
from fs3.reactor import Reactor
from fs3.storageserver.neighbours import Neighbours
from fs3.storageserver.reaching import PROBE, Reaching
from fs3.transport.tcp import FrameServer

CLUSTER = "unit"
BOUND_MS = 500
WAIT_S = 60


class Node:
    """A data port that knows nothing but probes."""

    def __init__(self, number: int, reactor: Reactor) -> None:
        self.number = NodeId(number)
        self.changed = threading.Event()
        self.server = FrameServer(reactor, CLUSTER, pool=BufferPool(1 << 20))
        self.neighbours = Neighbours(reactor, CLUSTER, lambda _: None)
        self.reaching = Reaching(
            self.number, BOUND_MS, self.neighbours, SystemClock(), self.changed.set
        )
        self.server.take([dataplane.PROBE], self.reaching.on_frame)

    def meet(self, addresses: dict[int, str]) -> None:
        self.neighbours.route(
            {TargetId(n): where for n, where in addresses.items()},
            {TargetId(n) for n in addresses if n != self.number},
        )
        self.reaching.route({NodeId(n): where for n, where in addresses.items()})


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two nodes; their reactor ticks."""
    reactor = Reactor()
    made = [Node(1, reactor), Node(2, reactor)]

    def tick() -> None:
        for node in made:
            node.reaching.tick()
        reactor.call_later(0.02, tick)

    tick()
    thread = threading.Thread(target=reactor.run)
    thread.start()
    yield made
    reactor.stop()
    thread.join()
    for node in made:
        node.neighbours.close()
        node.server.close()
    reactor.close()


def test_a_node_that_accepts_and_does_not_answer_is_unreachable_until_it_answers(
    nodes: list[Node],
) -> None:
    one, two = nodes
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "{}:{}".format(*silent.getsockname())
        reactor = one.neighbours._reactor
        reactor.call_soon(one.meet, {1: one.server.address, 2: address})
        first, _ = silent.accept()
        assert one.changed.wait(WAIT_S)
        assert one.reaching.unreachable == [2]
        with first:
            silent.settimeout(WAIT_S)
            silent.accept()[0].close()  # the link was made anew
        one.changed.clear()
        addresses = {1: one.server.address, 2: two.server.address}
        reactor.call_soon(two.meet, addresses)
        reactor.call_soon(one.meet, addresses)
        assert one.changed.wait(WAIT_S)
        assert one.reaching.unreachable == []


@pytest.mark.parametrize("head", [b"", PROBE.pack(3, 1, 1), PROBE.pack(1, 1, 1) + b"x"])
def test_what_is_no_probe_is_refused_in_words(nodes: list[Node], head: bytes) -> None:
    host, port = nodes[0].server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), WAIT_S) as peer:
        tag = frames.cluster_tag(CLUSTER)
        kind = frames.FrameKind.REQUEST
        peer.sendall(frames.encode(kind, dataplane.PROBE, tag, 1, head, 0) + head)
        with peer.makefile("rb") as stream:
            header = frames.decode(stream.read(frames.HEADER_BYTES))
            assert header.kind == frames.FrameKind.ERROR
            error = frames.decode_error(stream.read(header.head_bytes))
    assert isinstance(error, Fs3Error)
    assert error.code is Code.PROTOCOL
    assert "allowed" in error.detail


def test_a_probe_of_a_stranger_is_not_answered(nodes: list[Node]) -> None:
    """Nobody knows where to send the answer; the connection lives."""
    host, port = nodes[0].server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), WAIT_S) as peer:
        tag, kind = frames.cluster_tag(CLUSTER), frames.FrameKind.REQUEST
        good, bad = PROBE.pack(1, 99, 5), b"bad"
        for number, head in enumerate((good, bad), 1):
            peer.sendall(frames.encode(kind, dataplane.PROBE, tag, number, head, 0) + head)
        with peer.makefile("rb") as stream:
            header = frames.decode(stream.read(frames.HEADER_BYTES))
            assert header.request_id == 2
