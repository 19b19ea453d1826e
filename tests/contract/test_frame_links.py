"""One-way links between chain neighbours, over real loopback sockets."""

import socket
import threading

import pytest
from frame_peers import CLUSTER, COUNT, PATTERN, WAIT_S, Server, unused_address

from fs3.reactor import Reactor
from fs3.transport import peer
from fs3.transport.tcp import open_frame_peer


@pytest.fixture
def server():
    with Server() as made:
        yield made


class Link:
    """A peer link on a reactor of its own, with its states in order."""

    def __init__(self, address, cluster=CLUSTER, unsent_bytes_max=64 << 20):
        self.cluster = cluster
        self.unsent_bytes_max = unsent_bytes_max
        self.reactor = Reactor()
        self.states = []
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.reactor.run)
        self.reactor.call_soon(self.open, address)
        self.thread.start()

    def open(self, address):
        self.peer = open_frame_peer(
            self.reactor, address, self.cluster, self.on_state, self.unsent_bytes_max
        )

    def on_state(self, up):
        with self.changed:
            self.states.append(up)
            self.changed.notify_all()

    def wait_for(self, states):
        with self.changed:
            assert self.changed.wait_for(lambda: self.states == states, WAIT_S), self.states

    def send(self, *arguments):
        self.reactor.call_soon(lambda: self.peer.send(*arguments))

    def close(self):
        self.reactor.call_soon(self.peer.close)
        self.reactor.stop()
        self.thread.join(WAIT_S)
        self.reactor.close()


def test_a_link_delivers_one_way_frames_in_order(server):
    link = Link(server.frames.address)
    link.wait_for([True])
    released = threading.Event()
    for i in range(100):
        link.send(COUNT, b"%d" % i, [PATTERN[: i * 100]])
    link.send(COUNT, b"last", [PATTERN[:10]], released.set)
    server.wait_for(lambda: server.counted[b"last"] == 1)
    assert released.wait(WAIT_S)
    assert list(server.counted) == [b"%d" % i for i in range(100)] + [b"last"]
    assert server.counted_bytes == sum(i * 100 for i in range(100)) + 10
    link.close()


def test_a_link_comes_back_after_its_neighbour_was_away(server):
    link = Link(server.frames.address)
    link.wait_for([True])
    server.on_loop(lambda: [c.close() for c in server.frames.connections])
    link.wait_for([True, False, True])
    link.send(COUNT, b"again")
    server.wait_for(lambda: server.counted[b"again"] == 1)
    link.close()


def test_what_is_sent_on_a_link_that_is_down_is_dropped_and_released():
    with socket.socket() as probe:
        link = Link(unused_address(probe))
        released = threading.Event()
        link.send(COUNT, b"lost", [PATTERN[:10]], released.set)
        assert released.wait(WAIT_S)
        link.close()
        assert link.states == []


def test_a_link_that_waits_to_be_tried_again_is_tried_at_once_when_there_is_news(monkeypatch):
    """Else updates for a target that has just come back would wait for the back-off to end."""
    monkeypatch.setattr(peer, "_BACKOFF_S_MIN", 3600.0)
    monkeypatch.setattr(peer, "_BACKOFF_S_MAX", 3600.0)
    waits, retry_later = threading.Event(), peer.FramePeer._retry_later

    def note(self, reason):
        retry_later(self, reason)
        waits.set()

    monkeypatch.setattr(peer.FramePeer, "_retry_later", note)
    with socket.socket() as neighbour:
        link = Link(unused_address(neighbour))
        assert waits.wait(WAIT_S)
        neighbour.listen()
        link.reactor.call_soon(lambda: link.peer.hurry())
        link.wait_for([True])
        link.reactor.call_soon(lambda: link.peer.hurry())  # nothing waits: nothing happens
        link.close()
    assert link.states == [True]


def test_a_link_to_the_wrong_cluster_is_told_and_backs_off(server):
    link = Link(server.frames.address, "another-cluster")
    link.wait_for([True])
    link.send(COUNT, b"misled")
    link.wait_for([True, False, True])
    assert server.counted == {}
    link.close()


def test_a_link_whose_queue_is_full_refuses_frames_until_it_has_room(server):
    link = Link(server.frames.address, unsent_bytes_max=1 << 20)
    link.wait_for([True])
    taken, released = [], []
    filled = threading.Event()
    server.reactor.call_soon(filled.wait, WAIT_S)  # it reads nothing meanwhile

    def fill():
        for i in range(200):
            sent = link.peer.send(
                COUNT, b"%d" % i, [PATTERN[: 1 << 20]], lambda i=i: released.append(i)
            )
            taken.append(sent)
        filled.set()

    link.reactor.call_soon(fill)
    server.wait_for(lambda: taken[-1:] == [False] and len(server.counted) == sum(taken))
    assert len(taken) == 200
    assert taken[0]
    link.close()
    assert sorted(released) == list(range(200))
