"""One-way frames to a neighbour in a chain, by RDMA where it goes.

The TCP link (fs3/transport/peer.py) is always there: it says whether the neighbour is up, and
carries everything until a queue pair has come up beside it, and when that has failed. A neighbour
answers nothing, but says when it has read a body. Of a queue pair that fails, nobody knows what
arrived; as after any other loss the sender is told that the link went down and up. Frames of one
way arrive in order. When the way changes, the first frames of the new one may overtake the last of
the old one: replication takes its messages in any order (fs3/core/messages.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from fs3 import frames
from fs3.errors import Fs3Error
from fs3.frames import Buffer, FrameKind
from fs3.log import get_logger
from fs3.reactor import READABLE, Reactor, Timer
from fs3.routing import NodeInfo, RdmaEndpoint
from fs3.transport.address import resolve
from fs3.transport.peer import FramePeer
from fs3.transport.rdma.choosing import Rdma
from fs3.transport.rdma.client import RdmaConnection
from fs3.transport.rdma.loans import Loan
from fs3.transport.rdma.messages import (
    INLINE_BYTES,
    ONE_WAY,
    SEGMENTS_MAX,
    MessageKind,
    Prefix,
    encode_segments,
)
from fs3.transport.rdma.ports import OpenPort

_RETRY_S = 10.0  # after a queue pair has failed
_log = get_logger(__name__)


class OneWayConnection(RdmaConnection):
    """An RDMA connection for frames that are not answered."""

    def __init__(
        self, address: str, cluster_id: str, opened: OpenPort, endpoint: RdmaEndpoint
    ) -> None:
        super().__init__(address, cluster_id, lambda _number, _head: None, opened, endpoint)
        self.unread_bytes = 0  # of bodies that the neighbour has not read yet
        self._numbers = itertools.count(1)
        self._unread: dict[int, tuple[Loan, int, Callable[[], None]]] = {}

    def send_one_way(
        self,
        method: int,
        head: Buffer,
        body_parts: Sequence[memoryview],
        on_sent: Callable[[], None],
    ) -> bool:
        """False if this frame cannot go this way; else ``on_sent`` is called exactly once."""
        body_bytes = sum(map(len, body_parts))
        number = next(self._numbers)
        header = frames.encode(FrameKind.REQUEST, method, self._tag, number, head, body_bytes)
        if body_bytes <= INLINE_BYTES:
            prefix = Prefix(MessageKind.FRAME, ONE_WAY, request_id=number)
            self._link.send(prefix, [header, head, *body_parts])
            on_sent()  # it was copied
        else:
            try:
                loan = self._opened.lender.body(body_parts)
            except Fs3Error:
                return False
            if len(loan.segments) > SEGMENTS_MAX:
                loan.close()
                return False
            prefix = Prefix(
                MessageKind.FRAME, ONE_WAY, body_segments=len(loan.segments), request_id=number
            )
            self._unread[number] = loan, body_bytes, on_sent
            self.unread_bytes += body_bytes
            self._link.send(prefix, [encode_segments(loan.segments), header, head])
        self._link.flush()
        return True

    def _on_message(self, prefix: Prefix, content: memoryview) -> None:
        if prefix.kind == MessageKind.PULLED:
            self._let_off(prefix.request_id)
        else:
            super()._on_message(prefix, content)

    def _let_off(self, number: int) -> None:
        loan, body_bytes, on_sent = self._unread.pop(number)
        self.unread_bytes -= body_bytes
        loan.close()
        on_sent()

    def _die(self, error: Fs3Error) -> None:
        super()._die(error)
        for number in list(self._unread):
            self._let_off(number)


class RdmaPeer:
    """What :class:`FramePeer` is, for a node that may be reached by RDMA. Reactor thread only."""

    def __init__(
        self,
        reactor: Reactor,
        node: NodeInfo,
        cluster_id: str,
        on_state: Callable[[bool], None],
        transport: Rdma,
        unsent_bytes_max: int = 64 << 20,
    ) -> None:
        self.address = node.data_address
        self._reactor = reactor
        self._node = node
        self._cluster_id = cluster_id
        self._on_state = on_state
        self._transport = transport
        self._unsent_bytes_max = unsent_bytes_max
        self._fast: OneWayConnection | None = None
        self._fd = -1
        self._timer: Timer | None = None
        self._closed = False
        self._tcp = FramePeer(
            reactor, self.address, cluster_id, self._on_tcp_state, unsent_bytes_max
        )

    @property
    def connected(self) -> bool:
        """The link is up, as far as is known."""
        return self._tcp.connected

    @property
    def by_rdma(self) -> bool:
        """Frames go through a queue pair."""
        return self._fast is not None and self._fast.up

    def send(
        self,
        method: int,
        head: Buffer,
        body_parts: Sequence[memoryview] = (),
        on_sent: Callable[[], None] | None = None,
    ) -> bool:
        """See :meth:`FramePeer.send`."""
        fast = self._fast
        if fast is None or not fast.up:
            return self._tcp.send(method, head, body_parts, on_sent)
        sent = on_sent or _nothing
        if fast.unread_bytes > self._unsent_bytes_max:
            sent()
            return False
        if fast.send_one_way(method, head, body_parts, sent):
            if fast.dead:
                self._reactor.call_soon(self._on_event, 0)
            return True
        return self._tcp.send(method, head, body_parts, on_sent)

    def renew(self, older_than_s: float) -> None:
        """See :meth:`FramePeer.renew`: the queue pair ends with the connection."""
        self._tcp.renew(older_than_s)

    def hurry(self) -> None:
        """See :meth:`FramePeer.hurry`."""
        self._tcp.hurry()

    def close(self) -> None:
        """For good; ``on_state`` is not called. Idempotent."""
        self._closed = True
        self._detach()
        self._tcp.close()

    def _on_tcp_state(self, up: bool) -> None:
        if up:
            self._attach()
        else:
            self._detach()
        self._on_state(up)

    def _attach(self) -> None:
        """Begin a queue pair; until it is up, TCP carries everything."""
        self._timer = None
        if self._closed or self._fast is not None or not self._tcp.connected:
            return
        try:
            resolve(self.address, numeric=True)  # a resolver might block
            way = self._transport.way(self._node)
            if way is None:
                return
            self._fast = OneWayConnection(self.address, self._cluster_id, *way)
        except Fs3Error as error:
            _log.info("peer_without_rdma", peer=self.address, reason=error.detail)
            return
        self._fd = self._fast.fileno()
        self._reactor.register(self._fd, READABLE, self._on_event)

    def _detach(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        fast, self._fast = self._fast, None
        if fast is not None:
            self._reactor.unregister(self._fd)
            fast.close()

    def _on_event(self, _events: int) -> None:
        fast = self._fast
        if fast is None:
            return
        was_up = fast.up
        if not fast.dead:
            fast.on_readable()
        fast.take_completed()
        if not fast.dead:
            fast.fileno()  # which also says what to wait for next
            if fast.up and not was_up:
                _log.info("peer_by_rdma", peer=self.address)
            return
        reason = fast.error.detail if fast.error is not None else ""
        _log.info("peer_rdma_lost", peer=self.address, reason=reason)
        self._detach()
        self._timer = self._reactor.call_later(_RETRY_S, self._attach)
        if self._tcp.connected:
            # What was under way is lost: whoever sends again at a new link must hear of one.
            self._on_state(False)
            self._on_state(True)


def _nothing() -> None:
    pass
