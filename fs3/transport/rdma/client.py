"""The calling end of an RDMA connection.

It is a TCP connection from the beginning, and requests go that way until the queue pair is up, and
whenever their memory cannot be registered. When it dies, from whatever cause, the queue pair is
closed first, so that nothing is written into memory whose request has ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Sequence

from fs3 import frames
from fs3.errors import Code, Fs3Error
from fs3.frames import Buffer, FrameKind
from fs3.log import get_logger
from fs3.proto import common_pb2
from fs3.proto import storage_pb2 as pb
from fs3.routing import RdmaEndpoint
from fs3.transport.client import DataConnection
from fs3.transport.interface import Completion, Place
from fs3.transport.rdma.flights import EXPECTED, Flight
from fs3.transport.rdma.flow import Permits
from fs3.transport.rdma.handshake import (
    CONNECT_QUEUE_PAIR,
    RDMA_LINK,
    describe,
    open_link,
    token_of,
)
from fs3.transport.rdma.link import Link, Shape
from fs3.transport.rdma.messages import (
    GO,
    INLINE_BYTES,
    PLACED,
    SEGMENTS_MAX,
    MessageKind,
    Prefix,
    encode_segments,
    split_frame,
)
from fs3.transport.rdma.ports import OpenPort
from fs3.transport.rdma.verbs import Dialed

_OWN = 1 << 62  # request ids of the connection itself
_HANDSHAKE, _LINK = _OWN + 1, _OWN + 2
_COMPLETIONS_PER_POLL = 64
CANCEL_S = 0.05  # how long forgetting a request waits for the server before it cuts the link
PERMITTED_BYTES = 32 << 20  # of replies, on their way to one thread
_log = get_logger(__name__)


class RdmaConnection(DataConnection):
    """A :class:`ClientConnection`."""

    def __init__(
        self,
        address: str,
        cluster_id: str,
        place: Place,
        opened: OpenPort,
        endpoint: RdmaEndpoint,
        *,
        permits: Permits | None = None,
        shape: Shape | None = None,
        on_refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Towards ``endpoint`` of who listens at ``address``; what it refuses is told once.

        Fs3Error UNREACHABLE if ``address`` names nothing, NO_SPACE if no queue pair can be made.
        """
        super().__init__(address, cluster_id, place)
        self._opened = opened
        self._on_refused = on_refused
        self._permits = permits or Permits(PERMITTED_BYTES)
        self._flights: dict[int, Flight] = {}
        self._dialed: Dialed | None = None  # where a connection manager brings queue pairs up
        self._link_number = 0
        self._own_due = 0  # answers to what the connection itself asked
        self._up = False
        self._watched = (-1, 0)
        shape = shape or Shape()
        self._queue = opened.device.completion_queue(shape.slots + shape.depth)
        try:
            self._link = Link(
                opened.device, self._queue, shape, self._on_message, self._on_link_broken
            )
        except Fs3Error:
            self._queue.close()
            raise
        self._pid = os.getpid()
        self._queue_open = True
        self._epoll = select.epoll()
        self._epoll.register(self._queue.fileno(), select.EPOLLIN)
        self._queue.arm(solicited_only=True)
        self._begin_handshake(endpoint)

    def __del__(self) -> None:
        if hasattr(self, "_epoll"):
            self._close_link()
        super().__del__()

    @property
    def up(self) -> bool:
        """Requests go through the queue pair."""
        return self._up

    @property
    def pending(self) -> int:
        """See :class:`ClientConnection`."""
        return len(self._sent) - (_HANDSHAKE in self._sent) - (_LINK in self._sent)

    @property
    def wants_write(self) -> bool:
        """What is watched for is behind :meth:`fileno`."""
        return False

    def fileno(self) -> int:
        """Readable when the socket is ready for what it is waited for, or something completed."""
        if self._epoll.closed:
            return -1
        fd = super().fileno()
        writes = self._connecting or self._output.unsent_bytes > 0
        wanted = fd, select.EPOLLIN | (select.EPOLLOUT if writes else 0)
        if fd >= 0 and wanted != self._watched:
            try:
                self._epoll.modify(*wanted)
            except FileNotFoundError:  # another socket than before
                self._epoll.register(*wanted)
            self._watched = wanted
        return self._epoll.fileno()

    def close(self) -> None:
        """See :class:`ClientConnection`."""
        super().close()
        self._epoll.close()

    def send(
        self, method: int, request_id: int, head: Buffer, body_parts: Sequence[memoryview] = ()
    ) -> None:
        """See :class:`ClientConnection`."""
        if not self._up or self.dead or not self._send(method, request_id, head, body_parts):
            super().send(method, request_id, head, body_parts)

    def forget(self, request_id: int) -> None:
        """See :class:`ClientConnection`; waits a moment for the server to let go of the memory."""
        if request_id not in self._flights:
            super().forget(request_id)
            return
        super().forget(request_id)  # its reply may be half here, by TCP
        self._link.send(Prefix(MessageKind.CANCEL, request_id=request_id))
        self._link.flush()
        end_s = time.monotonic() + CANCEL_S
        waiting = select.poll()
        waiting.register(self._queue.fileno(), select.POLLIN)
        while request_id in self._flights and not self.dead:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                self._die(
                    Fs3Error(Code.UNREACHABLE, f"{self.address}: does not let go of memory in use")
                )
                break
            waiting.poll(left_s * 1000)
            self._on_queue_event()
        self._end_flight(request_id)

    def take_completed(self) -> list[Completion]:
        """See :class:`ClientConnection`."""
        completed = super().take_completed()
        for completion in completed:
            self._end_flight(completion.request_id)
        if self._own_due or self.dead:
            completed = [c for c in completed if c.request_id < _OWN]
        return completed

    def on_readable(self) -> None:
        """See :class:`ClientConnection`."""
        queue = self._queue.fileno() if self._queue_open else -1
        for fd, events in self._epoll.poll(0):
            if fd == queue:
                self._on_queue_event()
                continue
            if self._dialed is not None and fd == self._dialed.fileno():
                self._on_dialed(self._dialed)
                continue
            if events & select.EPOLLOUT:
                super().on_writable()
            if events & ~select.EPOLLOUT and not self.dead:
                super().on_readable()
                self._take_own()
            if self.dead:
                return

    # -- bringing it up --------------------------------------------------------------------------

    def _begin_handshake(self, endpoint: RdmaEndpoint) -> None:
        request = pb.ConnectQueuePairRequest(
            header=common_pb2.RequestHeader(
                cluster_id=self._cluster_id, protocol_version=frames.PROTOCOL_VERSION
            ),
            caller=describe(self._link, self._opened.device, self._opened.port),
            gid=endpoint.gid,
        )
        self._own_due += 1
        super().send(CONNECT_QUEUE_PAIR, _HANDSHAKE, request.SerializeToString())

    def _take_own(self) -> None:
        """The answers to what the connection itself asked."""
        if not self._own_due or self.dead:
            return
        own = [c for c in self._completed if c.request_id >= _OWN]
        if not own:
            return
        self._completed = [c for c in self._completed if c.request_id < _OWN]
        for completion in own:
            self._own_due -= 1
            try:
                if completion.error is not None:
                    raise completion.error
                self._go_on(completion.request_id, completion.head)
            except Fs3Error as error:
                self._refuse(error)

    def _go_on(self, request_id: int, head: bytes) -> None:
        if self._link.broken:
            return  # refused meanwhile
        if request_id == _LINK:
            self._up = True
            return
        reply = pb.ConnectQueuePairReply.FromString(head)
        device = self._opened.device
        open_link(self._link, device, self._opened.port, reply.server)
        self._link_number = reply.link
        if device.by_manager:
            pair, server = self._link.queue_pair, reply.server
            token = token_of(reply.link)
            self._dialed = device.dial(pair, server.endpoint.gid, server.manager_port, token)
            self._epoll.register(self._dialed.fileno(), select.EPOLLIN)
        else:
            self._name_link()

    def _on_dialed(self, dialed: Dialed) -> None:
        """The connection manager has something to say."""
        try:
            if dialed.go_on():
                self._name_link()
        except Fs3Error as error:
            if self._up:
                self._link.fail(error.detail)
            else:
                self._refuse(error)

    def _name_link(self) -> None:
        self._own_due += 1
        super().send(RDMA_LINK, _LINK, token_of(self._link_number))

    def _refuse(self, error: Fs3Error) -> None:
        """There will be no queue pair; TCP carries on."""
        _log.info("rdma_refused", node=self.address, reason=error.detail)
        self._close_link()
        self._on_refused(error.detail)

    # -- requests --------------------------------------------------------------------------------

    def _send(
        self, method: int, request_id: int, head: Buffer, body_parts: Sequence[memoryview]
    ) -> bool:
        """Through the queue pair; False if that cannot be."""
        body_bytes = sum(map(len, body_parts))
        room = self._room(method, request_id, head)
        lender = self._opened.lender
        flight = Flight(None, None)
        try:
            if body_bytes > INLINE_BYTES:
                flight = flight._replace(body=lender.body(body_parts))
            if room:
                flight = flight._replace(room=lender.room(room))
        except Fs3Error as error:
            flight.close()
            _log.debug("rdma_memory", reason=error.detail)
            return False
        body = flight.body.segments if flight.body is not None else []
        space = flight.room.segments if flight.room is not None else []
        if len(body) + len(space) > SEGMENTS_MAX:
            flight.close()
            return False
        length = sum(segment.length for segment in space)
        may_go = not space or self._permits.try_take((id(self), request_id), length)
        self._sent[request_id] = True
        self._flights[request_id] = flight
        header = frames.encode(FrameKind.REQUEST, method, self._tag, request_id, head, body_bytes)
        prefix = Prefix(
            MessageKind.FRAME,
            GO if may_go else 0,
            body_segments=len(body),
            room_segments=len(space),
            request_id=request_id,
        )
        content = [encode_segments(body + space), header, head]
        self._link.send(prefix, content if body else [*content, *body_parts])
        self._link.flush()
        return True

    def _room(self, method: int, request_id: int, head: Buffer) -> Sequence[memoryview]:
        """Where the reply's body shall be written; nothing if it is small, or cannot be told."""
        expected = EXPECTED.get(method)
        if expected is None:
            return ()
        places = self._place(request_id, expected(head)) or ()
        return places if sum(map(len, places)) > INLINE_BYTES else ()

    def _end_flight(self, request_id: int) -> None:
        flight = self._flights.pop(request_id, None)
        if flight is not None:
            flight.close()
            self._permits.release((id(self), request_id))

    # -- what comes in ---------------------------------------------------------------------------

    def _on_queue_event(self) -> None:
        queue, link = self._queue, self._link
        if link.broken:
            return
        queue.take_events()
        queue.arm(solicited_only=not link.waits)
        found = queue.poll(_COMPLETIONS_PER_POLL)
        while found and not link.broken:
            for completion in found:
                link.on_completion(completion)
            if len(found) < _COMPLETIONS_PER_POLL or link.broken:
                break
            found = queue.poll(_COMPLETIONS_PER_POLL)
        link.flush()

    def _on_message(self, prefix: Prefix, content: memoryview) -> None:
        request_id = prefix.request_id
        if prefix.kind == MessageKind.FRAME:
            self._on_frame(prefix, content)
        elif prefix.kind == MessageKind.READY:
            if request_id in self._flights:
                key = id(self), request_id
                self._permits.ask(key, prefix.length_bytes, lambda: self._let_go(request_id))
        elif prefix.kind == MessageKind.CANCELLED:
            self._end_flight(request_id)
        elif prefix.kind != MessageKind.PULLED:
            raise Fs3Error(Code.PROTOCOL, f"a server sent a message of kind {prefix.kind}")

    def _let_go(self, request_id: int) -> None:
        self._link.send(Prefix(MessageKind.GO_ON, request_id=request_id))
        self._link.flush()

    def _on_frame(self, prefix: Prefix, content: memoryview) -> None:
        header, head, body = split_frame(content)
        request_id = header.request_id
        if header.kind == FrameKind.ERROR:
            if request_id in self._sent:
                del self._sent[request_id]
                error = frames.decode_error(head)
                self._completed.append(Completion(self, request_id, b"", error))
            else:
                self._end_flight(request_id)
            return
        if header.kind != FrameKind.REPLY:
            raise Fs3Error(Code.PROTOCOL, f"a frame of kind {header.kind}")
        if header.cluster_tag != self._tag or header.protocol != frames.PROTOCOL_VERSION:
            frames.check_peer(header, self._cluster_id)
        if request_id not in self._sent:
            self._end_flight(request_id)  # forgotten
            return
        if header.body_bytes:
            places = self._place(request_id, head)
            self._settle(header, places, None if prefix.flags & PLACED else body)
        del self._sent[request_id]
        self._completed.append(Completion(self, request_id, head, None))

    def _settle(
        self, header: frames.Header, places: Sequence[memoryview] | None, body: memoryview | None
    ) -> None:
        """The reply's body is where it belongs; Fs3Error PROTOCOL if it does not fit there."""
        if places is None:
            return
        room = sum(map(len, places))
        have = header.body_bytes if body is None else len(body)
        if not room == header.body_bytes == have:
            error = Fs3Error(
                Code.PROTOCOL,
                f"{self.address}: a body of {header.body_bytes} bytes, {have} came;"
                f" {room} expected",
            )
            self._die(error)
            raise error
        if body is None:
            loan = self._flights[header.request_id].room
            if loan is not None:
                loan.bring(places)
        else:
            at = 0
            for part in places:
                part[:] = body[at : at + len(part)]
                at += len(part)

    # -- its end ---------------------------------------------------------------------------------

    def _on_link_broken(self, reason: str) -> None:
        if not self._up:  # nothing went that way yet
            self._refuse(Fs3Error(Code.UNREACHABLE, f"{self.address}: RDMA: {reason}"))
            return
        self._die(Fs3Error(Code.MAYBE_APPLIED, f"{self.address}: RDMA: {reason}"))

    def _die(self, error: Fs3Error) -> None:
        """See :class:`DataConnection`: first of all nothing may write to memory any more."""
        self._close_link()
        super()._die(error)
        for request_id in list(self._flights):
            self._end_flight(request_id)

    def _close_link(self) -> None:
        self._up = False
        self._link.close()
        mine = os.getpid() == self._pid  # a child shares the parent's epoll
        dialed, self._dialed = self._dialed, None
        if dialed is not None:
            self._unwatch(dialed.fileno(), mine)
            dialed.close()
        if self._queue_open:
            self._queue_open = False
            self._unwatch(self._queue.fileno(), mine)
            self._queue.close()

    def _unwatch(self, fd: int, mine: bool) -> None:
        # At the end of the process its descriptor may have been closed already.
        if mine:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)
