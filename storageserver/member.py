"""This node's membership: registration, heartbeats, leases, routing. Threads of its own.

The heartbeat thread takes the targets' reports from the reactor's thread, so a node whose event
loop hangs stops reporting, loses its leases and is taken out, as it should be. A lease counts from
the moment just before the heartbeat that earned it was sent. If one of the threads dies of a bug
the process ends, for its supervisor to start anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from fs3.clock import Clock
from fs3.core.types import ChainVersion, NodeId, TargetId
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.proto import cluster_pb2 as pb
from fs3.reactor import Reactor
from fs3.routing import Routing
from fs3.rpc import Stub
from fs3.rpc_grpc import GrpcChannel
from fs3.wire import decode_update

from .handover import in_reactor

_log = get_logger(__name__)
_RETRY_S = 0.2
_CALL_S = 2.0
_REACTOR_S = 1.0
_REFRESH_PAUSE_S = 0.02

Reports = Callable[[], Sequence[pb.TargetReport]]
OnLease = Callable[[TargetId, ChainVersion, int], None]


class Member:
    """Keeps a storageserver in the cluster. The callbacks run in the reactor's thread."""

    def __init__(
        self,
        node: pb.Node,
        metaservers: Sequence[str],
        cluster_id: str,
        *,
        reactor: Reactor,
        clock: Clock,
        reports: Reports,
        on_routing: Callable[[Routing], None],
        on_lease: OnLease,
        unreachable: Callable[[], Sequence[NodeId]] = tuple,
    ) -> None:
        self._node = node
        self._reactor = reactor
        self._clock = clock
        self._reports = reports
        self._on_routing = on_routing
        self._on_lease = on_lease
        self._unreachable = unreachable
        self._channel = GrpcChannel(metaservers, cluster_id)
        service = pb.DESCRIPTOR.services_by_name["ClusterManager"]
        self._stub = Stub(self._channel, service, cluster_id, node.incarnation, _CALL_S)
        self._stopping = threading.Event()
        self._soon = threading.Event()  # a heartbeat is wanted at once
        self._stale = threading.Event()  # somebody knows newer routing than we do
        self._routing = Routing()
        self._routing_lock = threading.Lock()  # guards _routing: stream and refresh both apply
        self._sequence = 0
        self._complaints: dict[str, str] = {}  # event -> the reason last logged
        self._heartbeat_s = 0.5
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (
                ("heartbeat", self._beat),
                ("routing", self._watch),
                ("refresh", self._refresh),
            )
        ]

    def start(self) -> None:
        """Join the cluster, and keep trying for as long as it takes."""
        for thread in self._threads:
            thread.start()

    def beat_soon(self) -> None:
        """Something changed that the manager should hear of. Any thread."""
        self._soon.set()

    def refresh(self) -> None:
        """Ask for newer routing. Any thread; does not wait."""
        self._stale.set()

    def accuse(self, target: TargetId, reason: str) -> None:
        """Tell the manager that another target lies. Any thread; does not wait."""
        threading.Thread(target=self._accuse, args=(target, reason), daemon=True).start()

    def stop(self) -> None:
        """Leave: the last heartbeat says what the targets' reports say now."""
        self._stopping.set()
        self._soon.set()
        self._stale.set()
        self._threads[0].join(_CALL_S + _REACTOR_S)
        self._channel.close()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            if self._stopping.is_set():
                raise
            self._reactor.call_soon(_raise, error)  # which ends the reactor, and so the process

    def _complain(self, event: str, reason: str) -> None:
        """Once, until it works again or fails otherwise: this is tried several times a second."""
        if self._complaints.get(event) != reason:
            self._complaints[event] = reason
            _log.warning(event, reason=reason)

    # --- heartbeats ------------------------------------------------------------------------------

    def _beat(self) -> None:
        registered = False
        while True:
            last = self._stopping.is_set()
            self._soon.clear()
            try:
                if not registered:
                    self._register()
                    registered = True
                self._heartbeat()
                self._complaints.pop("heartbeat_failed", None)
            except Fs3Error as error:
                registered = registered and error.code is not Code.UNKNOWN_NODE
                if last:
                    return
                self._complain("heartbeat_failed", str(error))
                self._stopping.wait(_RETRY_S)
                continue
            if last:
                return
            self._soon.wait(self._heartbeat_s)

    def _register(self) -> None:
        reports = in_reactor(self._reactor, self._reports, _REACTOR_S)
        request = pb.RegisterNodeRequest(node=self._node, targets=reports)
        reply: pb.RegisterNodeReply = self._stub.register_node(request)
        self._heartbeat_s = reply.heartbeat_ms / 1000
        _log.info("registered", node=self._node.node, lease_ms=reply.lease_ms)

    def _heartbeat(self) -> None:
        reports, unreachable = in_reactor(
            self._reactor, lambda: (self._reports(), self._unreachable()), _REACTOR_S
        )
        self._sequence += 1
        request = pb.HeartbeatRequest(
            node=self._node.node,
            incarnation=self._node.incarnation,
            sequence=self._sequence,
            targets=reports,
            routing_version=self._routing.version,
            unreachable=unreachable,
        )
        sent_ms = self._clock.monotonic_ms()
        reply: pb.HeartbeatReply = self._stub.heartbeat(request)
        if reply.routing_version > self._routing.version:
            self.refresh()  # the stream brings it, too, unless it hangs on a metaserver that died
        until_ms = sent_ms + reply.lease_ms
        for lease in reply.leases:
            self._reactor.call_soon(
                self._on_lease, TargetId(lease.target), ChainVersion(lease.chain_version), until_ms
            )

    def _accuse(self, target: TargetId, reason: str) -> None:
        try:
            self._stub.offline_targets(pb.OfflineTargetsRequest(targets=[target], reason=reason))
        except Fs3Error as error:
            _log.error("accusation_failed", target=target, reason=str(error))

    # --- routing ---------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                request = pb.GetRoutingRequest(known_version=self._routing.version)
                for update in self._stub.watch_routing(request):
                    self._apply(update)
                    self._complaints.pop("routing_stream_lost", None)
            except Fs3Error as error:
                if not self._stopping.is_set():
                    self._complain("routing_stream_lost", str(error))
            self._stopping.wait(_RETRY_S)

    def _refresh(self) -> None:
        """The stream brings routing as it changes; this is for when somebody was faster."""
        while self._stale.wait() and not self._stopping.is_set():
            self._stale.clear()
            try:
                request = pb.GetRoutingRequest(known_version=self._routing.version)
                self._apply(self._stub.get_routing(request))
            except Fs3Error as error:
                _log.info("routing_refresh_failed", reason=str(error))
            self._stopping.wait(_REFRESH_PAUSE_S)

    def _apply(self, update: pb.RoutingUpdate) -> None:
        with self._routing_lock:
            try:
                routing = self._routing.apply(decode_update(update))
            except Fs3Error as error:
                if error.code is not Code.STALE_CHAIN:
                    raise
                full = self._stub.get_routing(pb.GetRoutingRequest(known_version=0))
                routing = self._routing.apply(decode_update(full))
            if routing is not self._routing:
                self._routing = routing
                self._reactor.call_soon(self._on_routing, routing)


def _raise(error: Exception) -> None:
    raise error
