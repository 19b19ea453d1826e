"""Which transport leads to a node: the best one, and the next best when it breaks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fs3.client import links
from fs3.client.links import Links
from fs3.core.request import Send
from fs3.core.types import NodeId
from fs3.errors import Code, Fs3Error
from fs3.routing import NodeInfo
from fs3.transport.interface import Completion

NODE = NodeInfo(
    node=NodeId(7),
    host="here",
    data_address="127.0.0.1:1",
    control_address="127.0.0.1:2",
    incarnation=1,
    alive=True,
)


SEND = Send(0, NODE.node, np.zeros(0, np.int64), np.zeros(0, np.uint32), 0)


class Wire:
    """A connection that answers nothing until it is told to."""

    def __init__(self):
        self.error = None
        self.sent = []
        self.completed = []
        self.wants_write = False

    @property
    def dead(self):
        return self.error is not None

    @property
    def pending(self):
        return len(self.sent)

    def send(self, method, request_id, head, body_parts=()):
        self.sent.append(request_id)

    def forget(self, request_id):
        self.sent.remove(request_id)

    def take_completed(self):
        completed, self.completed = self.completed, []
        return completed

    def close(self):
        self.die("closed")

    def die(self, reason):
        if self.error is None:
            self.error = Fs3Error(Code.MAYBE_APPLIED, reason)
            self.completed += [Completion(self, n, b"", self.error) for n in self.sent]
            self.sent.clear()


class Way:
    """A transport whose connections are Wires."""

    def __init__(self, name):
        self.name = name
        self.here = True
        self.unreachable = False
        self.wires = []

    def reaches(self, node):
        return self.here

    def connect(self, node, cluster_id, place):
        if self.unreachable:
            raise Fs3Error(Code.UNREACHABLE, "no way")
        self.wires.append(Wire())
        return self.wires[-1]


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(links.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def ways():
    return Way("best"), Way("good"), Way("last")


@pytest.fixture
def used(clock, ways):
    """Sends one request to a node and says which way it took."""
    links = Links("cluster", ways)

    def use(node=NODE):
        before = [len(way.wires) for way in ways]
        request = links.send(node, 1, b"", [], SEND, lambda head: [])
        if request is None:
            return None
        made = [w.name for w, n in zip(ways, before, strict=True) if len(w.wires) > n]
        assert len(made) <= 1
        (name,) = [way.name for way in ways if request.connection in way.wires]
        return name + (" anew" if made else "")

    use.links = links
    return use


def test_the_best_way_that_reaches_is_kept(used, ways):
    assert [used(), used()] == ["best anew", "best"]
    ways[0].here = False
    assert used() == "best"


def test_a_way_that_does_not_reach_is_not_tried(used, ways):
    ways[0].here = False
    assert [used(), used()] == ["good anew", "good"]


def test_the_last_way_is_not_asked_whether_it_reaches(used, ways):
    for way in ways:
        way.here = False
    assert used() == "last anew"


def test_a_way_that_breaks_is_replaced_by_the_next_and_tried_again_later(used, ways, clock):
    assert used() == "best anew"
    ways[0].wires[0].die("broken")
    assert [used(), used()] == ["good anew", "good"]
    ways[1].wires[0].die("broken too")
    assert used() == "last anew"
    ways[2].wires[0].die("the server is away")
    assert used() == "last anew"
    clock[0] += 60
    assert used() == "last"
    ways[2].wires[1].die("the server is away")
    assert used() == "best anew"


def test_a_way_that_is_known_not_to_exist_is_passed_over_at_once(used, ways):
    ways[0].unreachable = ways[1].unreachable = True
    assert used() == "last anew"
    ways[2].wires[0].die("gone")
    ways[0].unreachable = False
    assert used() == "last anew"


def test_without_any_way_there_is_no_request(used, ways):
    for way in ways:
        way.unreachable = True
    assert used() is None


def test_a_node_that_starts_anew_is_reached_the_best_way_again(used, ways):
    assert used() == "best anew"
    ways[0].wires[0].die("the server was killed")
    assert used() == "good anew"
    restarted = dataclasses.replace(NODE, incarnation=2, data_address="127.0.0.1:3")
    assert used(restarted) == "best anew"
    assert ways[1].wires[0].dead


def test_requests_on_a_connection_that_was_replaced_end_as_lost(used, ways):
    asked = used.links.send(NODE, 1, b"", [], SEND, lambda head: [])
    ways[0].wires[0].die("broken")
    used()
    (ended,) = used.links.wait(0.0)
    assert (ended, ended.reply, ended.error) == (asked, None, None)
