"""One-way links between chain neighbours through queue pairs: the suite of TCP's, and more."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import rdma_peers
import test_frame_links
from fake_verbs import Fabric
from frame_peers import COUNT, PATTERN, WAIT_S
from rdma_peers import Server

from fs3.core.types import NodeId
from fs3.routing import NodeInfo
from fs3.transport.rdma.peer import RdmaPeer
from fs3.transport.rdma.verbs import Opcode

globals().update(rdma_peers.tests_of(test_frame_links))
# Here two connections are lost, and each loss is told: see the test of the same name below.
del globals()["test_a_link_comes_back_after_its_neighbour_was_away"]
# And frames of one way keep their order, which those of two ways do not: see the tests below.
del globals()["test_a_link_delivers_one_way_frames_in_order"]


class Way:
    """A transport that leads to the only node there is."""

    def way(self, node):
        return rdma_peers.chosen_ports[0], node.rdma[0]


class Link(test_frame_links.Link):
    """A link that is up when its queue pair is, unless nobody is there."""

    def open(self, address):
        node = NodeInfo(
            node=NodeId(1),
            host="",
            data_address=address,
            control_address="",
            incarnation=1,
            alive=True,
            rdma=(rdma_peers.chosen_ports[0].port.endpoint(),),
        )
        self.peer = RdmaPeer(
            self.reactor, node, self.cluster, self.on_state, Way(), self.unsent_bytes_max
        )

    def wait_up(self):
        done = threading.Event()

        def look():
            if self.peer.by_rdma:
                done.set()
            else:
                self.reactor.call_later(0.001, look)

        self.reactor.call_soon(look)
        assert done.wait(WAIT_S)


@pytest.fixture
def fabric() -> Fabric:
    return Fabric()


@pytest.fixture(autouse=True)
def queue_pairs(monkeypatch: pytest.MonkeyPatch, fabric: Fabric) -> None:
    """Links and servers of the suite are those with queue pairs."""
    rdma_peers.put_in_place(monkeypatch)
    monkeypatch.setattr(rdma_peers, "chosen_ports", [fabric.port()])
    monkeypatch.setattr(test_frame_links, "Link", Link)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


def test_bodies_are_read_by_the_neighbour_and_frames_stay_in_order(server, fabric):
    link = Link(server.frames.address)
    link.wait_up()
    released = threading.Event()
    sizes = [(i * 7919) % 60_000 for i in range(100)]
    for i, size in enumerate(sizes):
        link.send(COUNT, b"%d" % i, [PATTERN[:size]])
    link.send(COUNT, b"last", [PATTERN[:100_000]], released.set)
    server.wait_for(lambda: server.counted[b"last"] == 1)
    assert released.wait(WAIT_S)
    assert list(server.counted) == [b"%d" % i for i in range(100)] + [b"last"]
    assert server.counted_bytes == sum(sizes) + 100_000
    assert fabric.moved_bytes[Opcode.READ] == sum(n for n in sizes if n > 8192) + 100_000
    link.close()


def test_everything_arrives_once_while_the_way_changes(server):
    link = Link(server.frames.address)
    link.wait_for([True])
    sent = 0
    while not link.peer.by_rdma or sent < 100:
        link.send(COUNT, b"%d" % sent, [PATTERN[: sent * 100 % 60_000]])
        sent += 1
        server.wait_for(lambda expected=sent - 50: server.counted.total() >= expected)
    server.wait_for(lambda: len(server.counted) == sent)
    assert set(server.counted.values()) == {1}
    link.close()


class SendsAgain(Link):
    """A link whose owner sends what matters whenever it hears that the link is up, again or not."""

    def on_state(self, up):
        super().on_state(up)
        if up:
            self.send(COUNT, b"%d" % self.states.count(True), [PATTERN[:100_000]])


def test_what_is_sent_whenever_a_link_comes_up_arrives_after_its_neighbour_was_away(server):
    link = SendsAgain(server.frames.address)
    link.wait_for([True])
    link.wait_up()
    server.on_loop(lambda: [c.close() for c in server.frames.connections])
    with link.changed:
        assert link.changed.wait_for(lambda: len(link.states) >= 3 and link.states[-1], WAIT_S)
    server.wait_for(lambda: server.counted[b"2"] + server.counted[b"3"] > 0)
    link.close()


def test_a_queue_pair_that_fails_is_a_link_that_went_down_and_up(server):
    link = Link(server.frames.address)
    link.wait_for([True])
    link.wait_up()
    link.reactor.call_soon(lambda: link.peer._fast._link.queue_pair.fail())
    link.wait_for([True, False, True])
    link.send(COUNT, b"by tcp", [PATTERN[:100_000]])
    server.wait_for(lambda: server.counted[b"by tcp"] == 1)
    link.close()


def test_what_a_dead_queue_pair_had_under_way_is_released(server):
    link = Link(server.frames.address)
    link.wait_up()
    released, stopped = threading.Event(), threading.Event()
    server.reactor.call_soon(stopped.wait, WAIT_S)  # it reads nothing meanwhile
    link.send(COUNT, b"lost", [PATTERN[:100_000]], released.set)
    link.reactor.call_soon(lambda: link.peer._fast._link.queue_pair.fail())
    assert released.wait(WAIT_S)
    stopped.set()
    link.close()
