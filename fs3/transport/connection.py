"""A frame connection on the reactor: the serving end, and the sending end of a chain link.

Reading. Header and head go through a small buffer of the connection; a body goes straight from the
kernel into a pooled buffer. The length of a body is believed only once the checksum over header
and head is right. Per turn a connection reads and handles a bounded amount, see fs3/reactor.py.

Writing. Replies made while requests are being handled leave in one sendmsg at the end of the turn.
While more than ``unsent_bytes`` wait, nothing more is read: who does not take answers gets none.
Parts of a body may be sources, which are read as the socket takes them (fs3/transport/sources.py).

Errors. If the frame border is still known (wrong cluster, body too large, no buffer free), it is
answered with an ERROR frame, its body is skipped, and the connection lives. If not (bad magic,
bad checksum), one ERROR frame says so and the connection closes, in order, so that it arrives. A
peer that is simply gone is none of our business: a line at debug.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from fs3 import frames
from fs3.buffers import BufferPool, PooledBuffer
from fs3.dataplane import BATCH_BYTES_MAX
from fs3.errors import Code, Fs3Error
from fs3.frames import Buffer, FrameKind
from fs3.log import get_logger
from fs3.reactor import FAILED, READABLE, WRITABLE, Reactor
from fs3.transport.address import peer_credentials
from fs3.transport.lowwater import LowWater
from fs3.transport.output import Output, Part, frame_buffers
from fs3.transport.sources import Window

_INPUT_BYTES = 16 << 10
_FRAMES_PER_TURN = 32
_BODY_BYTES_PER_TURN = 1 << 20
_LINGER_S = 1.0  # to read what the peer still says, lest a reset overtakes our last words

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a frame port puts up with."""

    connections: int = 4096
    body_bytes: int = BATCH_BYTES_MAX  # of one frame
    unsent_bytes: int = 8 << 20  # answers waiting in one connection before it is no longer read
    stall_s: float = 30.0  # a frame that makes no progress for so long ends its connection, and an
    # answer that is not taken whole within twice that


class Request(NamedTuple):
    """A frame that came in. Whoever gets it releases ``body``, also when refusing by Fs3Error."""

    method: int
    request_id: int
    head: bytes
    body: PooledBuffer | None
    kind: int = FrameKind.REQUEST


class Caller(Protocol):
    """Who sent a request, and where its answer goes, whatever it came by."""

    @property
    def peer(self) -> str:
        """For logs."""

    @property
    def closed(self) -> bool:
        """It has gone: answers are dropped."""

    @property
    def takes_sources(self) -> bool:
        """Parts of an answer may be read while it is sent (fs3/transport/sources.py)."""

    def reply(
        self,
        request_id: int,
        method: int,
        head: Buffer,
        body_parts: Sequence[Part] = (),
        on_sent: Callable[[], None] | None = None,
        places: Sequence[int] | None = None,
    ) -> None:
        """Answer a request. ``on_sent`` is called exactly once, also when the peer is gone.

        Sources may be among the parts if :attr:`takes_sources`.

        ``places``: how far into the memory that the caller has for the body each part belongs;
        None: one behind the other. Only a transport that writes there itself needs to know.
        """

    def fail(self, request: Request, error: Fs3Error) -> None:
        """Answer a request with an error."""

    def close(self) -> None:
        """At once. Idempotent."""


OnFrame = Callable[[Caller, Request], None]


class _State(Enum):
    OPEN = "open"
    LINGERING = "lingering"  # the last words are being sent; what comes in is dropped
    CLOSED = "closed"


class Connection:
    """One socket. Everything here is called in the reactor's thread only."""

    def __init__(
        self,
        reactor: Reactor,
        connected: socket.socket,
        cluster_id: str,
        pool: BufferPool,
        limits: Limits,
        on_frame: OnFrame,
        on_closed: Callable[[Connection], None],
        accepts: FrameKind = FrameKind.REQUEST,
        window: Window | None = None,
    ) -> None:
        """``window``: what sources among the bodies' parts go through."""
        self.peer = _peer_name(connected)
        self.received_bytes = 0
        self.closers: list[Callable[[], None]] = []  # called when it has closed
        self._reactor = reactor
        self._socket = connected
        self._fd = connected.fileno()
        self._cluster_id = cluster_id
        self._tag = frames.cluster_tag(cluster_id)
        self._pool = pool
        self._limits = limits
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._accepts = accepts
        self._state = _State.OPEN
        self._output = Output(window)
        self._low_water = LowWater()
        self._corked = False  # a turn is on: it sends at its end
        self._events = READABLE
        # Input: _view[_start:_end] is unread. While a body is being received it is empty.
        self._view = memoryview(bytearray(_INPUT_BYTES))
        self._start = self._end = 0
        self._header: frames.Header | None = None  # decoded; its head is not all there
        self._waiting: Request | None = None  # whole but for its body
        self._body_have = 0
        self._skip_bytes = 0  # of a refused frame's body
        reactor.register(self._fd, READABLE, self._on_event, self._on_bug)

    @property
    def closed(self) -> bool:
        """Nothing can be sent any more; replies are dropped."""
        return self._state is not _State.OPEN

    @property
    def takes_sources(self) -> bool:
        """See :class:`Caller`."""
        return self._output.has_window

    @property
    def unsent_bytes(self) -> int:
        """What the kernel did not take yet."""
        return self._output.unsent_bytes

    @property
    def queued_bytes(self) -> int:
        """What was ever to be sent."""
        return self._output.queued_bytes

    @property
    def in_frame(self) -> bool:
        """The peer owes the rest of a frame."""
        return self._waiting is not None or self._skip_bytes > 0 or self._start < self._end

    def look(self) -> None:
        """Take what has come, also if it is too little to be told of."""
        if self._events & READABLE:
            self._reactor.look(self._fd)

    def reply(
        self,
        request_id: int,
        method: int,
        head: Buffer,
        body_parts: Sequence[Part] = (),
        on_sent: Callable[[], None] | None = None,
        places: Sequence[int] | None = None,
        rights: Sequence[int] = (),
    ) -> None:
        """See :class:`Caller`. ``rights``: descriptors for the peer, on a unix socket."""
        self.send(FrameKind.REPLY, method, request_id, head, body_parts, on_sent, rights)

    def fail(self, request: Request, error: Fs3Error) -> None:
        """Answer a request with an error."""
        head = frames.encode_error(error)
        self.send(FrameKind.ERROR, request.method, request.request_id, head)

    def send(
        self,
        kind: FrameKind,
        method: int,
        request_id: int,
        head: Buffer,
        body_parts: Sequence[Part] = (),
        on_sent: Callable[[], None] | None = None,
        rights: Sequence[int] = (),
    ) -> None:
        """Any frame; see :meth:`reply`."""
        if self._state is not _State.OPEN:
            if on_sent is not None:
                on_sent()
            return
        buffers = frame_buffers(kind, method, self._tag, request_id, head, body_parts)
        self._output.put(buffers, on_sent, rights)
        if not self._corked:
            self._flush()

    def refuse(self, error: Fs3Error) -> None:
        """Say why, and close when it is said."""
        if self._state is not _State.OPEN:
            return
        header = self._header
        method, request_id = (header.method, header.request_id) if header else (0, 0)
        _log.info("connection_refused", peer=self.peer, reason=str(error))
        self.send(FrameKind.ERROR, method, request_id, frames.encode_error(error))
        if self._state is _State.OPEN:
            self._state = _State.LINGERING
            self._drop_input()
            self._low_water.expect(self._socket, 0)
            self._reactor.call_later(_LINGER_S, self.close)
            self._flush()

    def close(self) -> None:
        """At once, dropping what is unsent. Idempotent."""
        if self._state is _State.CLOSED:
            return
        self._state = _State.CLOSED
        self._reactor.unregister(self._fd)
        self._socket.close()
        self._drop_input()
        self._output.abandon()
        self._on_closed(self)
        closers, self.closers = self.closers, []
        for closer in closers:
            closer()

    def _on_bug(self, _error: Exception) -> None:
        self.close()

    def _on_event(self, events: int) -> None:
        if events & WRITABLE:
            self._flush()
        if self._state is _State.CLOSED:
            return
        if self._events & READABLE:
            if events & (READABLE | FAILED):
                self._turn()
        elif events & FAILED:
            self._gone("connection failed while it was not read")

    def _turn(self) -> None:
        """One fair share: what is left of the last one, one receive, what that brought."""
        self._corked = True
        try:
            budget = self._handle(_FRAMES_PER_TURN)
            if budget and not self._choked() and self._receive():
                budget = self._handle(budget)
        except Fs3Error as error:
            budget = 1
            self.refuse(error)
        finally:
            self._corked = False
        work_left = not budget or self._choked()
        if self._state is _State.OPEN:
            body = self._waiting.body if self._waiting is not None else None
            self._low_water.expect(self._socket, len(body) - self._body_have if body else 0)
        self._flush()
        if work_left and not self.closed and not self._choked():
            self._reactor.repeat(self._fd)

    def _choked(self) -> bool:
        return self._output.unsent_bytes > self._limits.unsent_bytes

    def _flush(self) -> None:
        if self._corked or self._state is _State.CLOSED:
            return
        was_choked = not self._events & READABLE
        try:
            self._output.send(self._socket)
            if self._state is _State.LINGERING and not self._output.unsent_bytes:
                self._socket.shutdown(socket.SHUT_WR)
        except Fs3Error as error:  # a source's; the frame cannot be ended, so the connection is
            _log.warning("answer_broken_off", peer=self.peer, reason=error.detail)
            self.close()
            return
        except OSError as error:
            self._gone(str(error))
            return
        if self._socket.fileno() < 0:
            return  # an on_sent callback closed it
        wanted = 0 if self._choked() else READABLE
        if self._output.unsent_bytes:
            wanted |= WRITABLE
        if wanted != self._events:
            self._events = wanted
            self._reactor.modify(self._fd, wanted)
            if was_choked:
                self._reactor.repeat(self._fd)  # frames may wait in the buffer, unknown to epoll

    def _receive(self) -> bool:
        """One receive into where the next bytes belong; False if there is nothing to handle."""
        try:
            count = self._receive_into()
        except BlockingIOError:
            return False
        except OSError as error:
            self._gone(str(error))
            return False
        if not count:
            self._gone("peer closed the connection")
            return False
        self.received_bytes += count
        if self._state is _State.LINGERING:
            self._start = self._end = 0
            return False
        return True

    def _receive_into(self) -> int:
        if self._waiting is None or self._waiting.body is None:
            self._make_room()
            count = self._socket.recv_into(self._view[self._end :])
            self._end += count
            return count
        rest = self._waiting.body.view[self._body_have :]
        if len(rest) > _BODY_BYTES_PER_TURN:
            count = self._socket.recv_into(rest[:_BODY_BYTES_PER_TURN])
            self._body_have += count
            return count
        # The end of the body, and what follows it, in one call.
        self._start = self._end = 0
        count = self._socket.recvmsg_into([rest, self._view])[0]
        taken = min(count, len(rest))
        self._body_have += taken
        self._end = count - taken
        return count

    def _make_room(self) -> None:
        """Room for the frame that has begun, at the front of the buffer."""
        need = frames.HEADER_BYTES + (self._header.head_bytes if self._header else 0)
        unread = self._end - self._start
        if len(self._view) - self._start >= need and self._end < len(self._view):
            if not unread:
                self._start = self._end = 0
            return
        moved = self._view
        if need > len(moved):
            moved = memoryview(bytearray(need))
        moved[:unread] = bytes(self._view[self._start : self._end])
        self._view, self._start, self._end = moved, 0, unread

    def _handle(self, budget: int) -> int:
        """Handle up to ``budget`` frames that are here; returns what is left of it.

        Raises Fs3Error if the stream cannot be followed any more.
        """
        while budget and self._state is _State.OPEN and not self._choked():
            if self._skip_bytes:
                skipped = min(self._skip_bytes, self._end - self._start)
                self._start += skipped
                self._skip_bytes -= skipped
                if self._skip_bytes:
                    break
            if self._waiting is None and not self._begin_frame():
                break
            request = self._waiting
            if request is None:
                continue  # refused; its body is skipped
            if request.body is not None and not self._fill(request.body):
                break
            self._waiting = None
            budget -= 1
            try:
                self._on_frame(self, request)
            except Fs3Error as error:
                self.fail(request, error)
        return budget

    def _begin_frame(self) -> bool:
        """Take header and head from the buffer into ``_waiting``; False if not all is there."""
        if self._header is None:
            if self._end - self._start < frames.HEADER_BYTES:
                return False
            self._header = frames.decode(self._view[self._start : self._end])
        header = self._header
        start = self._start + frames.HEADER_BYTES
        if self._end - start < header.head_bytes:
            return False
        head = bytes(self._view[start : start + header.head_bytes])
        frames.check_head(header, head)
        if header.kind == FrameKind.ERROR != self._accepts:
            # Never answered in kind and lived on with: two ends could keep that up for ever.
            raise Fs3Error(Code.PROTOCOL, "an error frame; this end takes requests")
        self._header = None
        self._start = start + header.head_bytes
        if self._start == self._end and len(self._view) > _INPUT_BYTES:
            self._view = memoryview(bytearray(_INPUT_BYTES))  # an exceptional head's memory
            self._start = self._end = 0
        try:
            body = self._check(header)
        except Fs3Error as error:
            refused = Request(header.method, header.request_id, head, None, header.kind)
            self.fail(refused, error)
            self._skip_bytes = header.body_bytes
            return True
        self._waiting = Request(header.method, header.request_id, head, body, header.kind)
        self._body_have = 0
        return True

    def _check(self, header: frames.Header) -> PooledBuffer | None:
        """The buffer for the body, or Fs3Error if this frame must be refused."""
        if header.kind != FrameKind.ERROR and (
            header.cluster_tag != self._tag or header.protocol != frames.PROTOCOL_VERSION
        ):
            frames.check_peer(header, self._cluster_id)
        if header.kind != self._accepts:
            raise Fs3Error(
                Code.PROTOCOL, f"frame of kind {header.kind}; this end takes {self._accepts.name}"
            )
        if not header.body_bytes:
            return None
        if header.body_bytes > self._limits.body_bytes:
            raise Fs3Error(
                Code.TOO_LARGE,
                f"a body of {header.body_bytes} bytes; {self._limits.body_bytes} are allowed here",
            )
        return self._pool.take(header.body_bytes)

    def _fill(self, body: PooledBuffer) -> bool:
        """Move what the buffer has of the body; True when the body is whole."""
        taken = min(len(body) - self._body_have, self._end - self._start)
        if taken:
            body.view[self._body_have : self._body_have + taken] = self._view[
                self._start : self._start + taken
            ]
            self._body_have += taken
            self._start += taken
        return self._body_have == len(body)

    def _drop_input(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.body is not None:
            waiting.body.release()
        self._header = None
        self._start = self._end = self._skip_bytes = 0

    def _gone(self, reason: str) -> None:
        _log.debug("connection_closed", peer=self.peer, reason=reason)
        self.close()


def _peer_name(connected: socket.socket) -> str:
    try:
        name = connected.getpeername()
        if connected.family == socket.AF_UNIX:
            return f"pid {peer_credentials(connected).pid}"
    except OSError:
        return "unknown"  # gone before it was looked at
    return f"{name[0]}:{name[1]}"
