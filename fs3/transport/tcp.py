"""The frame port, of TCP or unix sockets: listen, accept, hand frames to who takes their method.

One port serves both planes. Data frames (batches, chain links) go to the callbacks registered with
:meth:`FrameServer.take`, control requests to the handler table (:func:`serve_handlers`). Payload
follows its frame on the same socket; fs3/transport/connection.py reads and answers.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from fs3.buffers import BufferPool
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.reactor import READABLE, Reactor
from fs3.transport.address import UNIX, render, resolve, tune
from fs3.transport.connection import Caller, Connection, Limits, OnFrame, Request
from fs3.transport.peer import FramePeer, open_frame_peer
from fs3.transport.serving import HandlerThreads, serve_handlers
from fs3.transport.sources import Window

__all__ = [
    "Caller",
    "Connection",
    "FramePeer",
    "FrameServer",
    "HandlerThreads",
    "Limits",
    "OnFrame",
    "Request",
    "open_frame_peer",
    "serve_handlers",
]

_BACKLOG = 1024
_ACCEPTS_PER_TURN = 16
_REFUSALS_MAX = 64  # connections over the limit that are being told so
_ACCEPT_PAUSE_S = 0.5
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_log = get_logger(__name__)


class _Seen(NamedTuple):
    """How far a connection was."""

    received_bytes: int
    queued_bytes: int  # to be sent, whether it was or not


class FrameServer:
    """Listens from construction on. Used in the reactor's thread, or before it runs."""

    def __init__(
        self,
        reactor: Reactor,
        cluster_id: str,
        on_frame: OnFrame | None = None,
        address: str = "127.0.0.1:0",
        limits: Limits | None = None,
        pool: BufferPool | None = None,
        admit: Callable[[socket.socket], Fs3Error | None] | None = None,
    ) -> None:
        """``on_frame`` takes the methods that nobody else took; None refuses them.

        ``admit`` says why a peer is refused, or None.
        """
        self.reactor = reactor
        self.cluster_id = cluster_id
        self.limits = limits or Limits()
        self.pool = pool or BufferPool(4 * self.limits.body_bytes)
        self._on_frame = on_frame or _refuse_method
        self._takers: dict[int, OnFrame] = {}
        self._connections: dict[Connection, _Seen] = {}  # as they were at the last sweep
        self._window = Window()
        self._socket = _listen(address)
        self._admit = admit
        self.address = address
        if not address.startswith(UNIX):
            host, port = self._socket.getsockname()[:2]
            self.address = render(host, port)  # with the port that was bound
        reactor.register(self._socket.fileno(), READABLE, self._on_connection)
        self._sweeper = reactor.call_later(self.limits.stall_s, self._sweep)

    def take(self, methods: Iterable[int], on_frame: OnFrame) -> None:
        """Frames of these methods go to ``on_frame(connection, request)``."""
        self._takers.update(dict.fromkeys(methods, on_frame))

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Those that are open now."""
        return tuple(self._connections)

    def close(self) -> None:
        """Stop listening and drop every connection. Idempotent."""
        if self._socket.fileno() < 0:
            return
        self._sweeper.cancel()
        self.reactor.unregister(self._socket.fileno())
        self._socket.close()
        if self.address.startswith(f"{UNIX}/"):
            Path(self.address[len(UNIX) :]).unlink(missing_ok=True)
        for connection in self.connections:
            connection.close()

    def _on_connection(self, _events: int) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                accepted, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR:
                    self._pause_accepting(error)
                    return
                continue  # that one went away before it was accepted
            self._add(accepted)

    def _add(self, accepted: socket.socket) -> None:
        over = len(self._connections) - self.limits.connections
        if over >= _REFUSALS_MAX:
            accepted.close()
            return
        accepted.setblocking(False)
        tune(accepted)
        connection = Connection(
            self.reactor,
            accepted,
            self.cluster_id,
            self.pool,
            self.limits,
            self.dispatch,
            self._forget,
            window=self._window,
        )
        self._connections[connection] = _Seen(0, 0)
        if over >= 0:
            limit = self.limits.connections
            connection.refuse(
                Fs3Error(Code.BUSY, f"{limit} connections are open; no more are allowed here")
            )
        elif self._admit is not None and (refusal := self._admit(accepted)) is not None:
            connection.refuse(refusal)

    def dispatch(self, caller: Caller, request: Request) -> None:
        """Hand a request, of whichever transport, to who takes its method."""
        self._takers.get(request.method, self._on_frame)(caller, request)

    def _forget(self, connection: Connection) -> None:
        del self._connections[connection]

    def _pause_accepting(self, error: OSError) -> None:
        # A level-triggered listener with nothing to accept into would spin.
        _log.error("accept_failed", address=self.address, reason=str(error))
        self.reactor.modify(self._socket.fileno(), 0)
        self.reactor.call_later(_ACCEPT_PAUSE_S, self._resume_accepting)

    def _resume_accepting(self) -> None:
        if self._socket.fileno() >= 0:
            self.reactor.modify(self._socket.fileno(), READABLE)

    def _sweep(self) -> None:
        """Close who stands still: it holds a buffer, or blocks of files that are being sent."""
        stall_s = self.limits.stall_s
        for connection, seen in list(self._connections.items()):
            if connection.closed:
                continue
            if connection.in_frame and connection.received_bytes == seen.received_bytes:
                connection.look()
            if connection.in_frame and connection.received_bytes == seen.received_bytes:
                connection.refuse(
                    Fs3Error(Code.PROTOCOL, f"a frame made no progress for {stall_s} s")
                )
            elif connection.queued_bytes - connection.unsent_bytes < seen.queued_bytes:
                _log.info("answers_not_taken", peer=connection.peer, unsent=connection.unsent_bytes)
                connection.close()
            if not connection.closed:
                self._connections[connection] = _Seen(
                    connection.received_bytes, connection.queued_bytes
                )
        self._sweeper = self.reactor.call_later(stall_s, self._sweep)


def _refuse_method(connection: Caller, request: Request) -> None:
    if request.body is not None:
        request.body.release()
    connection.fail(
        request, Fs3Error(Code.UNSUPPORTED, f"method {request.method:#06x} is not served here")
    )


def _listen(text: str) -> socket.socket:
    """A listening socket. ``[::]:port`` listens on IPv4 too."""
    family, address = resolve(text, listen=True)[0]
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_UNIX:
            _remove_dead_socket(str(address))
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise Fs3Error(Code.INVALID, f"cannot listen on {text}: {error.strerror}") from error
    return made


def _remove_dead_socket(path: str) -> None:
    """The file of a process that was killed; one that somebody listens on is left alone."""
    if not path.startswith("/") or not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(path) == errno.ECONNREFUSED:
            Path(path).unlink(missing_ok=True)
