"""A client's queue pair as the server sees it: requests come in, replies go out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, cast

from fs3 import frames
from fs3.buffers import PooledBuffer
from fs3.errors import Code, Fs3Error
from fs3.frames import Buffer, FrameKind
from fs3.log import get_logger
from fs3.transport.connection import Connection, Request
from fs3.transport.output import Part
from fs3.transport.rdma.link import Link, Shape
from fs3.transport.rdma.messages import (
    GO,
    INLINE_BYTES,
    ONE_WAY,
    PLACED,
    MessageKind,
    Prefix,
    Segment,
    decode_segments,
    map_parts,
    split_frame,
)
from fs3.transport.rdma.regions import Lent
from fs3.transport.rdma.verbs import Call, Opcode, WorkRequest

if TYPE_CHECKING:
    from fs3.transport.rdma.serving import RdmaServer, _Served

_log = get_logger(__name__)


class _Ready(NamedTuple):
    """A reply that waits to be permitted."""

    content: list[Buffer]
    writes: list[WorkRequest]
    on_done: Callable[[], None]


class _Asked:
    """A request that has no answer yet."""

    __slots__ = ("cancelled", "go", "one_way", "pulling", "ready", "room", "unfilled")

    def __init__(self, room: list[Segment], go: bool) -> None:
        self.room = room
        self.go = go
        self.one_way = False
        self.pulling = False  # its body is being read
        self.unfilled: PooledBuffer | None = None  # for a body that waits to be read
        self.cancelled = False
        self.ready: _Ready | None = None


class RdmaCaller:
    """A :class:`Caller`. Reactor thread only."""

    def __init__(self, server: RdmaServer, served: _Served, shape: Shape) -> None:
        """Fs3Error NO_SPACE if there is no memory or queue pair for it."""
        self.peer = "unknown"
        self._server = server
        self._served = served
        self._frames = server.frames
        self._tag = frames.cluster_tag(server.frames.cluster_id)
        self._connection: Connection | None = None
        self._asked: dict[int, _Asked] = {}
        self._pulls = 0
        self._call: Call | None = None  # what a connection manager keeps it up by
        # One-way requests in the order in which they came; None: its body is not here yet.
        self._line: deque[tuple[int, Request | None]] = deque()
        self.link = Link(
            served.opened.device, served.queue, shape, self._on_message, self._on_broken
        )

    @property
    def closed(self) -> bool:
        """See :class:`Caller`."""
        return self.link.broken

    @property
    def takes_sources(self) -> bool:
        """See :class:`Caller`: the NIC reads memory that is registered."""
        return False

    @property
    def impatient(self) -> bool:
        """It waits for a completion that nothing from the peer announces."""
        return self._pulls > 0 or self.link.waits

    def called(self, call: Call) -> bool:
        """A connection manager asks for this queue pair; False: it is not to be had."""
        if self._call is not None or self.closed:
            return False
        self._call = call
        try:
            call.accept(self.link.queue_pair)
        except Fs3Error as error:
            self.link.fail(error.detail)
        return True

    def belongs_to(self, connection: Connection) -> None:
        """They live and end together."""
        self._connection = connection
        self.peer = f"{connection.peer} (rdma)"
        connection.closers.append(self.close)
        _log.debug("rdma_link", peer=self.peer, port=self._served.opened.port.name)

    def close(self) -> None:
        """See :class:`Caller`."""
        if self.link.broken:
            return
        self.link.close()
        self._end()

    def _on_broken(self, reason: str) -> None:
        _log.info("rdma_link_lost", peer=self.peer, reason=reason)
        self._end()

    def _end(self) -> None:
        for request_id, asked in list(self._asked.items()):
            self._server.pulls.release((self, request_id))
            if asked.unfilled is not None:
                asked.unfilled.release()
            if asked.ready is not None:
                asked.ready.on_done()
        self._asked.clear()
        if self._call is not None:
            self._call.close()
        for _, request in self._line:
            if request is not None and request.body is not None:
                request.body.release()
        self._line.clear()
        self._server.gone(self._served, self)
        if self._connection is not None:
            self._connection.close()

    def _send(
        self,
        prefix: Prefix,
        content: Sequence[Buffer] = (),
        before: Sequence[WorkRequest] = (),
        on_done: Callable[[], None] | None = None,
    ) -> None:
        self.link.send(prefix, content, before, on_done)
        self._server.to_flush(self._served, self)

    # -- requests --------------------------------------------------------------------------------

    def _on_message(self, prefix: Prefix, content: memoryview) -> None:
        if prefix.kind == MessageKind.FRAME:
            self._on_frame(prefix, content)
        elif prefix.kind == MessageKind.GO_ON:
            asked = self._asked.get(prefix.request_id)
            if asked is not None and asked.ready is not None:
                ready, asked.ready = asked.ready, None
                del self._asked[prefix.request_id]
                self._place(prefix.request_id, ready)
        elif prefix.kind == MessageKind.CANCEL:
            self._on_cancel(prefix.request_id)
        else:
            raise Fs3Error(Code.PROTOCOL, f"a client sent a message of kind {prefix.kind}")

    def _on_frame(self, prefix: Prefix, content: memoryview) -> None:
        body, room, start = decode_segments(prefix, content)
        header, head, inline = split_frame(content[start:])
        request = Request(header.method, header.request_id, head, None, header.kind)
        self._asked[header.request_id] = asked = _Asked(room, bool(prefix.flags & GO))
        if prefix.flags & ONE_WAY:
            asked.one_way = True
            self._line.append((request.request_id, None))
        try:
            buffer = self._check(header, body, inline)
        except Fs3Error as error:
            self._refuse(request, error)
            return
        if buffer is None:
            self._dispatch(request)
            return
        request = request._replace(body=buffer)
        if body:
            self._ask_to_pull(request, asked, buffer, body)
        else:
            buffer.view[:] = inline
            self._dispatch(request)

    def _check(
        self, header: frames.Header, body: Sequence[Segment], inline: memoryview
    ) -> PooledBuffer | None:
        """The buffer for the body; Fs3Error if the frame must be refused."""
        if header.cluster_tag != self._tag or header.protocol != frames.PROTOCOL_VERSION:
            frames.check_peer(header, self._frames.cluster_id)
        if header.kind != FrameKind.REQUEST:
            raise Fs3Error(
                Code.PROTOCOL,
                f"frame of kind {header.kind}; this end takes {FrameKind.REQUEST.name}",
            )
        limit = self._frames.limits.body_bytes
        if header.body_bytes > limit:
            raise Fs3Error(
                Code.TOO_LARGE,
                f"a body of {header.body_bytes} bytes; {limit} are allowed here",
            )
        have = sum(segment.length for segment in body) if body else len(inline)
        if have != header.body_bytes:
            raise Fs3Error(
                Code.PROTOCOL, f"a body of {header.body_bytes} bytes announced, of {have} given"
            )
        return self._frames.pool.take(have) if have else None

    def _refuse(self, request: Request, error: Fs3Error) -> None:
        """An error is all the answer; after one to a one-way request nothing may follow."""
        one_way = self._asked[request.request_id].one_way
        self.fail(request, error)
        if one_way:
            self.close()

    def _ask_to_pull(
        self, request: Request, asked: _Asked, buffer: PooledBuffer, body: Sequence[Segment]
    ) -> None:
        """Read the body when so much may be on its way here."""
        asked.pulling = True
        asked.unfilled = buffer
        self._pulls += 1
        key = self, request.request_id

        def pull() -> None:
            asked.unfilled = None
            try:
                lent = self._served.opened.regions.lend([buffer.view], remote=False)
            except Fs3Error as error:
                self._server.pulls.release(key)
                self._pulls -= 1
                buffer.release()
                self._refuse(request, error)
                return
            (local,) = lent.local
            reads = [
                WorkRequest(
                    Opcode.READ,
                    local.address + piece.offset,
                    piece.length,
                    local.key,
                    piece.address,
                    piece.key,
                )
                for piece in map_parts([len(buffer)], [0], body)
            ]

            def pulled() -> None:
                lent.close()
                self._pulls -= 1
                self._server.pulls.release(key)
                self._on_pulled(request, asked)

            self.link.work(reads, pulled)
            self._server.to_flush(self._served, self)

        self._server.pulls.ask(key, len(buffer), pull)

    def _on_pulled(self, request: Request, asked: _Asked) -> None:
        asked.pulling = False
        if self.closed or asked.cancelled:
            assert request.body is not None
            request.body.release()
            self._finish_cancel(request.request_id)
            return
        if asked.one_way:
            self._send(Prefix(MessageKind.PULLED, request_id=request.request_id))
        self._dispatch(request)

    def _dispatch(self, request: Request) -> None:
        asked = self._asked.get(request.request_id)
        if asked is None or not asked.one_way:
            self._hand_over(request)
            return
        index = self._line.index((request.request_id, None))
        self._line[index] = request.request_id, request
        while self._line and self._line[0][1] is not None:
            _, first = self._line.popleft()
            assert first is not None
            self._asked.pop(first.request_id, None)
            self._hand_over(first)

    def _hand_over(self, request: Request) -> None:
        try:
            self._frames.dispatch(self, request)
        except Fs3Error as error:
            self.fail(request, error)
        except Exception:  # noqa: BLE001 - logged, as the reactor does
            # A bug ends this connection, not the others, which share the completion queue.
            _log.exception("callback_failed", peer=self.peer)
            self.close()

    # -- cancelling ------------------------------------------------------------------------------

    def _on_cancel(self, request_id: int) -> None:
        """Let go of the caller's memory, then say so."""
        asked = self._asked.get(request_id)
        if asked is not None:
            asked.cancelled = True
            if asked.ready is not None:
                asked.ready.on_done()
            if asked.pulling:
                return
        self._finish_cancel(request_id)

    def _finish_cancel(self, request_id: int) -> None:
        self._asked.pop(request_id, None)
        # Behind whatever was written before: nothing is written after it.
        self._send(Prefix(MessageKind.CANCELLED, request_id=request_id))

    # -- replies ---------------------------------------------------------------------------------

    def fail(self, request: Request, error: Fs3Error) -> None:
        """See :class:`Caller`."""
        self._asked.pop(request.request_id, None)
        head = frames.encode_error(error)
        header = frames.encode(
            FrameKind.ERROR, request.method, self._tag, request.request_id, head, 0
        )
        self._send(Prefix(MessageKind.FRAME, request_id=request.request_id), [header, head])

    def reply(
        self,
        request_id: int,
        method: int,
        head: Buffer,
        body_parts: Sequence[Part] = (),
        on_sent: Callable[[], None] | None = None,
        places: Sequence[int] | None = None,
    ) -> None:
        """See :class:`Caller`."""
        body_parts = cast("Sequence[memoryview]", body_parts)  # it takes no sources
        on_sent = on_sent or _nothing
        asked = self._asked.get(request_id)
        if asked is None or self.closed:
            on_sent()  # cancelled, or gone
            return
        lengths = [len(part) for part in body_parts]
        body_bytes = sum(lengths)
        header = frames.encode(FrameKind.REPLY, method, self._tag, request_id, head, body_bytes)
        if body_bytes <= INLINE_BYTES:
            del self._asked[request_id]
            prefix = Prefix(MessageKind.FRAME, request_id=request_id)
            self._send(prefix, [header, head, *body_parts])
            on_sent()
            return
        if places is None:
            places = [sum(lengths[:i]) for i in range(len(lengths))]
        try:
            ready = self._prepare([header, head], body_parts, places, asked.room, on_sent)
        except Fs3Error:
            # It does not fit, or cannot be registered.
            del self._asked[request_id]
            self._reply_by_tcp(request_id, method, head, body_parts, on_sent)
            return
        if asked.go:
            del self._asked[request_id]
            self._place(request_id, ready)
        else:
            asked.ready = ready
            prefix = Prefix(MessageKind.READY, request_id=request_id, length_bytes=body_bytes)
            self._send(prefix)

    def _prepare(
        self,
        content: list[Buffer],
        parts: Sequence[memoryview],
        places: Sequence[int],
        room: Sequence[Segment],
        on_sent: Callable[[], None],
    ) -> _Ready:
        pieces = map_parts([len(part) for part in parts], places, room)
        regions = self._served.opened.regions
        lent: list[Lent] = []
        with ExitStack() as undo:
            for part in parts:
                lent.append(regions.lend([part], remote=False))
                undo.callback(lent[-1].close)
            undo.pop_all()  # all is there, and closed when it has been sent
        writes = []
        for piece in pieces:
            (local,) = lent[piece.part].local
            writes.append(
                WorkRequest(
                    Opcode.WRITE,
                    local.address + piece.offset,
                    piece.length,
                    local.key,
                    piece.address,
                    piece.key,
                )
            )

        def done() -> None:
            for one in lent:
                one.close()
            on_sent()

        return _Ready(content, writes, done)

    def _place(self, request_id: int, ready: _Ready) -> None:
        prefix = Prefix(MessageKind.FRAME, PLACED, request_id=request_id)
        self._send(prefix, ready.content, ready.writes, ready.on_done)

    def _reply_by_tcp(
        self,
        request_id: int,
        method: int,
        head: Buffer,
        body_parts: Sequence[memoryview],
        on_sent: Callable[[], None],
    ) -> None:
        if self._connection is None:
            on_sent()
            self.close()
        else:
            self._connection.reply(request_id, method, head, body_parts, on_sent)


def _nothing() -> None:
    pass
