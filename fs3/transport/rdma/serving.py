"""The serving end: queue pairs on the reactor, whose requests go where those of TCP go."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.proto import storage_pb2 as pb
from fs3.reactor import READABLE, Timer
from fs3.routing import RdmaEndpoint
from fs3.transport.connection import Caller, Connection, Request
from fs3.transport.rdma.caller import RdmaCaller
from fs3.transport.rdma.flow import Permits
from fs3.transport.rdma.handshake import RDMA_LINK, describe, open_link
from fs3.transport.rdma.inventory import kind_of
from fs3.transport.rdma.link import Shape
from fs3.transport.rdma.ports import OpenPort, find
from fs3.transport.rdma.verbs import CompletionQueue, Listener
from fs3.transport.tcp import FrameServer
from fs3.wire import decode_rdma_endpoint

_QUEUE_ENTRIES = 64 << 10
_COMPLETIONS_PER_POLL = 256
_UNNAMED_S = 10.0  # a queue pair that no connection has named its own
_REAP_S = 0.02  # completions that nobody waits for give their buffers back within that
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaLimits:
    """What a server puts up with."""

    links: int = 1024
    pulled_bytes: int = 64 << 20  # bodies of requests on their way here, from all together
    shape: Shape = field(default_factory=Shape)


class _Served:
    """A port and its queue pairs."""

    def __init__(self, opened: OpenPort, queue: CompletionQueue) -> None:
        self.opened = opened
        self.queue = queue
        self.listener: Listener | None = None  # where queue pairs come up by a connection manager
        self.callers: dict[int, RdmaCaller] = {}  # by queue pair
        self.dirty: dict[RdmaCaller, None] = {}  # to be flushed at the turn's end
        self.impatient: set[RdmaCaller] = set()  # as of their last flush
        self.owed: set[RdmaCaller] = set()  # those with completions outstanding
        self.corked = False
        self.timer: Timer | None = None


class RdmaServer:
    """Beside a :class:`FrameServer`. Reactor thread only, or before that runs."""

    def __init__(
        self,
        frames: FrameServer,
        ports: Sequence[OpenPort],
        limits: RdmaLimits | None = None,
    ) -> None:
        self.frames = frames
        self.limits = limits or RdmaLimits()
        self.pulls = Permits(self.limits.pulled_bytes)
        self._served: list[_Served] = []
        self._by_link: dict[int, RdmaCaller] = {}
        for opened in ports:
            try:
                self._serve(opened)
            except Fs3Error as error:
                _log.warning("rdma_port_unusable", port=opened.port.name, reason=error.detail)
        frames.take([RDMA_LINK], self._on_link)

    def _serve(self, opened: OpenPort) -> None:
        queue = opened.device.completion_queue(_QUEUE_ENTRIES)
        served = _Served(opened, queue)
        reactor = self.frames.reactor
        if opened.device.by_manager:
            try:
                served.listener = opened.device.listen()
            except Fs3Error:
                queue.close()
                raise
            reactor.register(served.listener.fileno(), READABLE, partial(self._on_calls, served))
        self._served.append(served)
        queue.arm(solicited_only=True)
        reactor.register(queue.fileno(), READABLE, partial(self._on_event, served))

    @property
    def endpoints(self) -> tuple[RdmaEndpoint, ...]:
        """What is announced."""
        return tuple(served.opened.port.endpoint() for served in self._served)

    @property
    def callers(self) -> tuple[RdmaCaller, ...]:
        """Those that are connected now."""
        return tuple(caller for served in self._served for caller in served.callers.values())

    def connect(self, request: pb.ConnectQueuePairRequest) -> pb.ConnectQueuePairReply:
        """The other end of the caller's queue pair.

        Fs3Error says why there can be none: UNSUPPORTED without a device, BUSY at the limit,
        NO_SPACE without memory, UNREACHABLE if the two cannot meet.
        """
        if not self._served:
            raise Fs3Error(Code.UNSUPPORTED, "this node has no RDMA device")
        if len(self.callers) >= self.limits.links:
            raise Fs3Error(
                Code.BUSY, f"{self.limits.links} RDMA links are open; no more are allowed here"
            )
        kind = kind_of(decode_rdma_endpoint(request.caller.endpoint))
        opened = find([served.opened for served in self._served], request.gid, kind)
        served = next(one for one in self._served if one.opened is opened)
        caller = RdmaCaller(self, served, self.limits.shape)
        try:
            open_link(caller.link, opened.device, opened.port, request.caller)
        except Fs3Error:
            caller.close()
            raise
        link = secrets.randbits(64)
        served.callers[caller.link.queue_pair.number] = caller
        self._by_link[link] = caller
        self.frames.reactor.call_later(_UNNAMED_S, lambda: self._drop_unnamed(link))
        port = served.listener.port if served.listener is not None else 0
        return pb.ConnectQueuePairReply(
            server=describe(caller.link, opened.device, opened.port, port), link=link
        )

    def close(self) -> None:
        """Every queue pair, then the queues. Before the reactor is closed."""
        for caller in self.callers:
            caller.close()
        for served in self._served:
            if served.timer is not None:
                served.timer.cancel()
            if served.listener is not None:
                self.frames.reactor.unregister(served.listener.fileno())
                served.listener.close()
            self.frames.reactor.unregister(served.queue.fileno())
            served.queue.close()
        self._served.clear()

    def _drop_unnamed(self, link: int) -> None:
        caller = self._by_link.pop(link, None)
        if caller is not None:
            caller.close()

    def _on_calls(self, served: _Served, _events: int) -> None:
        assert served.listener is not None
        for call in served.listener.take():
            caller = self._by_link.get(int.from_bytes(call.token, "little"))
            if caller is None or not caller.called(call):
                call.close()

    def _on_link(self, connection: Caller, request: Request) -> None:
        """The connection that a queue pair belongs to names it."""
        caller = self._by_link.pop(int.from_bytes(request.head, "little"), None)
        if caller is None or not isinstance(connection, Connection) or request.body is not None:
            if request.body is not None:
                request.body.release()
            raise Fs3Error(Code.INVALID, "an RDMA_LINK frame without the link of a queue pair")
        caller.belongs_to(connection)
        connection.reply(request.request_id, request.method, b"")

    # -- completions -----------------------------------------------------------------------------

    def _on_event(self, served: _Served, _events: int) -> None:
        served.queue.take_events()
        served.queue.arm(solicited_only=not served.impatient)
        self._reap(served)

    def _reap(self, served: _Served) -> None:
        """Handle all that has completed, and post what that has led to, in chains."""
        served.corked = True
        try:
            self._handle_completed(served)
            while self._post_all(served):
                self._handle_completed(served)
        finally:
            served.corked = False

    def _handle_completed(self, served: _Served) -> None:
        while found := served.queue.poll(_COMPLETIONS_PER_POLL):
            for completion in found:
                caller = served.callers.get(completion.queue_pair)
                if caller is not None:
                    caller.link.on_completion(completion)
                    served.dirty[caller] = None
            if len(found) < _COMPLETIONS_PER_POLL:
                break

    def _post_all(self, served: _Served) -> bool:
        """What was queued; True if the queue must be looked at once more.

        A completion that somebody waits for may have come about before the queue was armed.
        """
        dirty, served.dirty = served.dirty, {}
        for caller in dirty:
            caller.link.flush()
            _put(served.impatient, caller, caller.impatient)
            _put(served.owed, caller, caller.link.outstanding)
        if served.owed:
            self._reap_soon(served)
        if served.impatient.isdisjoint(dirty):
            return False
        served.queue.arm(solicited_only=False)
        return True

    def _reap_soon(self, served: _Served) -> None:
        def reap() -> None:
            served.timer = None
            if served in self._served:
                self._reap(served)
                if served.owed:
                    self._reap_soon(served)

        if served.timer is None:
            served.timer = self.frames.reactor.call_later(_REAP_S, reap)

    def to_flush(self, served: _Served, caller: RdmaCaller) -> None:
        """For callers: something was queued."""
        served.dirty[caller] = None
        if not served.corked and self._post_all(served):
            self.frames.reactor.repeat(served.queue.fileno())

    def gone(self, served: _Served, caller: RdmaCaller) -> None:
        """For callers: it has closed."""
        served.callers.pop(caller.link.queue_pair.number, None)
        served.dirty.pop(caller, None)
        served.impatient.discard(caller)
        served.owed.discard(caller)


def _put(among: set[RdmaCaller], caller: RdmaCaller, belongs: bool) -> None:
    if belongs and not caller.closed:
        among.add(caller)
    else:
        among.discard(caller)
