"""One thread's connections to storageservers: two per node, for small and large payloads, made when
needed.

Which transport carries a connection is chosen here: the best of those that the node announces and
this process can use. When it breaks the next best takes its place, in the end the last one, TCP,
which is never given up; it is tried again after a while, or when the node has started anew.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from fs3.core.request import Send
from fs3.core.types import NodeId
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.routing import NodeInfo
from fs3.transport.client import Tcp, drive
from fs3.transport.interface import ClientConnection, Completion, Transport
from fs3.transport.local import Local
from fs3.transport.rdma.choosing import Rdma

TRANSPORTS: tuple[Transport, ...] = (Local(), Rdma(), Tcp())  # the best first
_AVOID_S = 10.0  # a transport that broke
_FOR_GOOD = (Code.ACCESS, Code.WRONG_CLUSTER)  # what the node says of us does not change
SMALL_BYTES = 64 << 10  # of payload; requests for more go on a connection of their own
_log = get_logger(__name__)

Place = Callable[[bytes], Sequence[memoryview]]


class Request:
    """A request in flight. When it has ended: ``reply``, or ``error``, or neither: it was lost."""

    __slots__ = ("connection", "error", "number", "place", "reply", "send", "sent_s", "verified")

    def __init__(self, number: int, connection: ClientConnection, send: Send, place: Place) -> None:
        self.number = number
        self.connection = connection
        self.send = send
        self.place = place  # where the body of the reply goes, once its head is known
        self.sent_s = time.monotonic()
        self.reply: bytes | None = None
        self.verified = False  # the connection has compared what a read brought with its checksums
        self.error: Fs3Error | None = None  # what the server said of the request as a whole


class _Link(NamedTuple):
    """The way that is used to a node, as it was when it was made."""

    node: NodeInfo
    transport: Transport
    connection: ClientConnection


class Links:
    """Used by one thread."""

    def __init__(self, cluster_id: str, transports: Sequence[Transport] = TRANSPORTS) -> None:
        """``transports``: the best first; the last one reaches every node."""
        self._cluster_id = cluster_id
        self._transports = transports
        self._links: dict[tuple[NodeId, bool], _Link] = {}  # by node, and whether for large ones
        # Which transport broke, of which incarnation of a node; and until when it is avoided.
        self._avoided: dict[tuple[str, NodeId, int], float] = {}
        self._requests: dict[int, Request] = {}
        self._place = _placer(self._requests)
        self._numbers = itertools.count(1)
        self._late: list[Completion] = []  # of connections that have been replaced
        self._read_here = NodeId(0)  # whose connection could read without asking last

    def send(
        self,
        node: NodeInfo,
        method: int,
        head: bytes,
        body: Sequence[memoryview],
        send: Send,
        place: Place,
    ) -> Request | None:
        """Begin a request; None if there is no way to ``node``."""
        connection = self._connection(node, send.bytes > SMALL_BYTES)
        if connection is None:
            return None
        request = Request(next(self._numbers), connection, send, place)
        self._requests[request.number] = request
        connection.send(method, request.number, head, body)
        return request

    def read_here(
        self,
        near: Iterable[NodeId],
        known: Mapping[NodeId, NodeInfo],
        read: Callable[[ClientConnection], bool],
    ) -> bool:
        """Have one of the connections that stand to nodes on this machine ``read`` by itself.

        False if none can: then somebody must be asked.
        """
        last = self._read_here
        for number in (last, *(node for node in near if node != last)):
            node = known.get(number)
            link = self._standing(node, False) or self._standing(node, True) if node else None
            if link is not None and read(link.connection):
                self._read_here = number
                return True
        return False

    def tell(self, request: Request, method: int, head: bytes) -> None:
        """Say something to whom ``request`` was sent; what it answers does not matter."""
        if not request.connection.dead:
            request.connection.send(method, next(self._numbers), head)

    @property
    def busy(self) -> bool:
        """Somebody waits for answers."""
        return bool(self._requests)

    @property
    def wants_write(self) -> bool:
        """Something has not left whole: a wait would move it on."""
        return any(link.connection.wants_write for link in self._links.values())

    def wait(self, timeout_s: float) -> list[Request]:
        """Requests that have ended; empty after ``timeout_s``."""
        if self._late:
            completions, self._late = self._late, []
        elif self._requests:
            deadline_s = time.monotonic() + timeout_s
            completions = drive([link.connection for link in self._links.values()], deadline_s)
        else:
            time.sleep(max(timeout_s, 0.0))
            return []
        ended = []
        for completion in completions:
            request = self._requests.pop(completion.request_id, None)
            if request is None:
                continue  # forgotten
            if completion.error is None:
                request.reply = completion.head
                request.verified = completion.verified
            elif not completion.connection.dead:
                request.error = completion.error
            ended.append(request)
        return ended

    def cut(self, request: Request) -> None:
        """It takes too long: break its connection; all requests on that are lost."""
        request.connection.close()

    def forget(self, request: Request) -> None:
        """Nobody wants the answer, and its buffers must not be touched any more."""
        if self._requests.pop(request.number, None) is not None:
            request.connection.forget(request.number)

    def close(self) -> None:
        """Close everything; what is pending is lost."""
        for link in self._links.values():
            link.connection.close()
        self._links.clear()
        self._requests.clear()

    def _connection(self, node: NodeInfo, large: bool) -> ClientConnection | None:
        """Large and small payloads do not share a TCP stream: none waits behind the other."""
        tcp = self._transports[-1]
        link = self._standing(node, False)
        if link is not None and not (large and link.transport is tcp):
            return link.connection
        if large:
            bulk = self._standing(node, True)
            if bulk is not None:
                return bulk.connection
        for transport in self._transports if link is None else (tcp,):
            if not self._may_use(transport, node):
                continue
            try:
                connection = transport.connect(node, self._cluster_id, self._place)
            except Fs3Error as error:
                if error.code is not Code.UNREACHABLE:
                    raise
                self._avoid(transport, node, error)
                continue
            lane = large and transport is tcp
            self._links[node.node, lane] = _Link(node, transport, connection)
            return connection
        return None

    def _standing(self, node: NodeInfo, large: bool) -> _Link | None:
        """The link there is, unless it is dead or leads to where the node was."""
        link = self._links.get((node.node, large))
        if link is None:
            return None
        moved = link.node is not node and link.node.data_address != node.data_address
        if not link.connection.dead and not moved:
            return link
        del self._links[node.node, large]
        self._drop(link)
        return None

    def _drop(self, link: _Link) -> None:
        """It is dead, or leads to where the node was."""
        error = link.connection.error
        if error is not None:
            self._avoid(link.transport, link.node, error)
        link.connection.close()
        self._late += link.connection.take_completed()

    def _may_use(self, transport: Transport, node: NodeInfo) -> bool:
        if transport is self._transports[-1]:
            return True
        until_s = self._avoided.get((transport.name, node.node, node.incarnation), 0.0)
        return until_s <= time.monotonic() and transport.reaches(node)

    def _avoid(self, transport: Transport, node: NodeInfo, error: Fs3Error) -> None:
        if transport is not self._transports[-1]:
            until_s = math.inf if error.code in _FOR_GOOD else time.monotonic() + _AVOID_S
            self._avoided[transport.name, node.node, node.incarnation] = until_s
            what = {"transport": transport.name, "node": node.node}
            _log.info("transport_lost", **what, reason=error.detail)


def _placer(requests: dict[int, Request]) -> Callable[[int, bytes], Sequence[memoryview] | None]:
    """Not a method of Links: in a cycle, connections would outlive their thread until collected."""

    def place(number: int, head: bytes) -> Sequence[memoryview] | None:
        request = requests.get(number)
        return None if request is None else request.place(head)

    return place
