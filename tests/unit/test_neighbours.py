"""What leaves for a neighbour, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from replica_rig import forward, route

from fs3.core import messages as m
from fs3.core.chunks import UpdateKind
from fs3.core.types import NodeId, TargetId
from fs3.reactor import Reactor
from fs3.routing import NodeInfo
from fs3.storageserver import neighbours, peerwire
from fs3.storageserver.jobs import Payload

MIB = 1 << 20


class Link:
    """A link that keeps the frames."""

    def __init__(self) -> None:
        self.frames: list[tuple[list[m.Message], int]] = []
        self.hurried = 0

    def send(self, method, head, body_parts, on_sent):
        self.frames.append((list(peerwire.decode(memoryview(head))), sum(map(len, body_parts))))
        on_sent()

    def hurry(self) -> None:
        self.hurried += 1

    def close(self) -> None:
        pass


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    made = Link()
    monkeypatch.setattr(neighbours, "open_frame_peer", lambda *_: made)
    return made


@pytest.fixture
def links(link: Link) -> Iterator[neighbours.Neighbours]:
    reactor = Reactor()
    made = neighbours.Neighbours(reactor, "unit", lambda _: None)
    made.route({TargetId(2): "host:1"}, {TargetId(2)})
    yield made
    made.close()
    reactor.close()


def send(links: neighbours.Neighbours, number: int, length: int, *, copy: bool) -> None:
    message = forward(route(1, 2), number, 1, b"", kind=UpdateKind.REPLACE)
    message = message._replace(length=length, copy=copy)
    links.send(message, Payload(memoryview(bytes(length)), None))


def test_what_clients_wait_for_leaves_before_copies_of_a_resync_and_not_in_one_frame(link, links):
    send(links, 1, MIB, copy=True)
    send(links, 2, MIB, copy=True)
    send(links, 3, MIB, copy=False)
    send(links, 4, MIB, copy=False)
    links.flush()
    sent = [([message.link_sequence for message in frame], size) for frame, size in link.frames]
    assert sent == [([3, 4], 2 * MIB), ([1], MIB), ([2], MIB)]
    links.flush()
    assert len(link.frames) == 3


def test_small_copies_share_a_frame(link, links):
    for number in range(1, 5):
        send(links, number, 1000, copy=True)
    links.flush()
    assert [size for _, size in link.frames] == [4000]


def node(*, alive: bool, incarnation: int) -> NodeInfo:
    return NodeInfo(
        node=NodeId(2),
        host="host",
        data_address="host:1",
        control_address="host:2",
        incarnation=incarnation,
        alive=alive,
    )


def test_a_link_to_a_node_that_has_come_back_is_tried_at_once_and_no_other(link, links):
    hurried = []
    for alive, incarnation in [(True, 1), (True, 1), (False, 1), (False, 1), (True, 1), (True, 2)]:
        now = node(alive=alive, incarnation=incarnation)
        links.route({TargetId(2): "host:1"}, {TargetId(2)}, [now])
        hurried.append(link.hurried)
    assert hurried == [1, 1, 1, 1, 2, 3]
