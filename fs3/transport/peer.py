"""One-way frames to a neighbour in a chain: connect, send, connect again.

What is sent while the link is down, or was not delivered when it broke, is lost: ``on_state(True)``
tells the sender that the link is (again) up, and it sends again what matters. A neighbour answers
nothing but errors; each of them ends the connection, so that the back-off limits their rate too.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Sequence

from fs3.buffers import BufferPool
from fs3.errors import Fs3Error
from fs3.frames import Buffer, FrameKind, decode_error
from fs3.log import get_logger
from fs3.reactor import FAILED, WRITABLE, Reactor, Timer
from fs3.transport.address import SocketAddress, open_socket, resolve
from fs3.transport.connection import Caller, Connection, Limits, Request

_CONNECT_S = 3.0
_BACKOFF_S_MIN = 0.05
_BACKOFF_S_MAX = 2.0
_log = get_logger(__name__)


class FramePeer:
    """A link to one address. Used in the reactor's thread only."""

    def __init__(
        self,
        reactor: Reactor,
        address: str,
        cluster_id: str,
        on_state: Callable[[bool], None],
        unsent_bytes_max: int,
    ) -> None:
        self.address = address
        self._reactor = reactor
        self._cluster_id = cluster_id
        self._on_state = on_state
        self._unsent_bytes_max = unsent_bytes_max
        self._pool = BufferPool(0)  # errors have no body
        self._connection: Connection | None = None
        self._connecting: socket.socket | None = None
        self._candidates: list[SocketAddress] = []
        self._timer: Timer | None = None
        self._backoff_s = _BACKOFF_S_MIN
        self._up_at_s = 0.0
        self._closed = False
        self._look_up()

    @property
    def connected(self) -> bool:
        """The link is up, as far as is known."""
        return self._connection is not None

    def send(
        self,
        method: int,
        head: Buffer,
        body_parts: Sequence[memoryview] = (),
        on_sent: Callable[[], None] | None = None,
    ) -> bool:
        """Queue a frame; False if it was dropped because the link is down or its queue is full.

        ``on_sent`` is called exactly once: when the parts are not needed any more.
        """
        connection = self._connection
        if (
            connection is None
            or connection.closed
            or connection.unsent_bytes > self._unsent_bytes_max
        ):
            if on_sent is not None:
                on_sent()
            return False
        connection.send(FrameKind.REQUEST, method, 0, head, body_parts, on_sent)
        return True

    def renew(self, older_than_s: float) -> None:
        """Give up the connection, if it is older than this, and make another."""
        if self._connection is not None and time.monotonic() - self._up_at_s > older_than_s:
            self._connection.close()

    def hurry(self) -> None:
        """There is news: if the link waits to be tried again, try now."""
        if self._timer is not None and self._connecting is None:
            self._stop_timer()
            self._look_up()

    def close(self) -> None:
        """For good; ``on_state`` is not called. Idempotent."""
        self._closed = True
        self._stop_timer()
        self._drop_attempt()
        if self._connection is not None:
            self._connection.close()

    def _look_up(self) -> None:
        """Find the socket addresses, in a thread if a resolver must be asked: that may block."""
        self._timer = None
        try:
            self._candidates = resolve(self.address, numeric=True)
        except Fs3Error:
            threading.Thread(target=self._ask_resolver, name="resolver", daemon=True).start()
        else:
            self._connect_next("no address")

    def _ask_resolver(self) -> None:
        found, reason = [], "no address"
        try:
            found = resolve(self.address)
        except Fs3Error as error:
            reason = error.detail
        self._reactor.call_soon(self._on_resolved, found, reason)

    def _on_resolved(self, found: list[SocketAddress], reason: str) -> None:
        self._candidates = found
        self._connect_next(reason)

    def _connect_next(self, reason: str) -> None:
        """Begin with the next candidate, or give up for a while because of ``reason``."""
        if self._closed:
            return
        if not self._candidates:
            self._retry_later(reason)
            return
        family, address = self._candidates.pop(0)
        try:
            attempt = open_socket(family)
        except Fs3Error as error:
            self._retry_later(error.detail)
            return
        self._connecting = attempt
        attempt.connect_ex(address)  # how it went is asked when the socket becomes writable
        self._reactor.register(attempt.fileno(), WRITABLE, self._on_attempt, self._on_bug)
        self._timer = self._reactor.call_later(_CONNECT_S, self._on_attempt_late)

    def _on_attempt(self, events: int) -> None:
        attempt = self._connecting
        if attempt is None:
            return
        failure = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure or events & FAILED:
            self._drop_attempt()
            self._connect_next(f"errno {failure}")
            return
        self._stop_timer()
        self._reactor.unregister(attempt.fileno())
        self._connecting = None
        self._connection = Connection(
            self._reactor,
            attempt,
            self._cluster_id,
            self._pool,
            Limits(),
            self._on_frame,
            self._on_closed,
            accepts=FrameKind.ERROR,
        )
        self._up_at_s = time.monotonic()
        _log.info("peer_connected", peer=self.address)
        self._on_state(True)

    def _on_attempt_late(self) -> None:
        self._timer = None
        self._drop_attempt()
        self._connect_next(f"no connection within {_CONNECT_S} s")

    def _drop_attempt(self) -> None:
        self._stop_timer()
        if self._connecting is not None:
            self._reactor.unregister(self._connecting.fileno())
            self._connecting.close()
            self._connecting = None

    def _retry_later(self, reason: str) -> None:
        _log.debug("peer_unreachable", peer=self.address, reason=reason)
        # Spread, so that those who lost the same neighbour do not all come back at once.
        delay_s = self._backoff_s * random.uniform(0.5, 1.0)
        self._backoff_s = min(self._backoff_s * 2, _BACKOFF_S_MAX)
        self._timer = self._reactor.call_later(delay_s, self._look_up)

    def _on_frame(self, connection: Caller, request: Request) -> None:
        error = decode_error(request.head)
        _log.warning("peer_refused", peer=self.address, reason=str(error))
        connection.close()

    def _on_closed(self, _connection: Connection) -> None:
        self._connection = None
        if self._closed:
            return
        if time.monotonic() - self._up_at_s > _BACKOFF_S_MAX:
            self._backoff_s = _BACKOFF_S_MIN  # it had been a good one
        _log.info("peer_lost", peer=self.address)
        self._retry_later("lost")
        self._on_state(False)

    def _on_bug(self, error: Exception) -> None:
        self._drop_attempt()
        self._connect_next(str(error))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def open_frame_peer(
    reactor: Reactor,
    address: str,
    cluster_id: str,
    on_state: Callable[[bool], None],
    unsent_bytes_max: int = 64 << 20,
) -> FramePeer:
    """A link to ``address`` that keeps itself up; ``on_state`` hears of every change."""
    return FramePeer(reactor, address, cluster_id, on_state, unsent_bytes_max)
