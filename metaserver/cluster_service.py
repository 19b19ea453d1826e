"""The ClusterManager service: decode, ask the manager, encode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fs3 import wire
from fs3.core.types import ChainId, ChainVersion, LocalState, NodeId, TargetId
from fs3.errors import Code, Fs3Error
from fs3.jobs import JobKind
from fs3.proto import cluster_pb2 as pb
from fs3.proto import common_pb2
from fs3.rpc import StreamContext
from fs3.transport.address import parse
from fs3.wire_kv import encode_namespace

from .clients import Clients
from .manager import Manager
from .manager_members import Report
from .manager_namespaces import Namespaces
from .manager_orders import Orders
from .settings import ManagerSettings

TABLE_DEFAULT = 1
_WATCH_TURN_S = 1.0  # how long a stream sleeps before it looks whether its caller is still there


class ClusterService:
    """Handlers for :class:`fs3.rpc.Handlers`. Any thread may call."""

    def __init__(
        self,
        manager: Manager,
        orders: Orders,
        clients: Clients,
        settings: ManagerSettings,
        cluster_id: str,
    ) -> None:
        self._manager = manager
        self._orders = orders
        self._clients = clients
        self._settings = settings
        self._cluster_id = cluster_id
        self._namespaces = Namespaces(manager)

    def register_node(self, request: pb.RegisterNodeRequest) -> pb.RegisterNodeReply:
        """See proto/cluster.proto; so for all."""
        node = wire.decode_node(request.node)
        parse(node.data_address)  # everybody will be told to go there
        self._manager.register(node, _reports(request.targets))
        return pb.RegisterNodeReply(
            heartbeat_ms=self._settings.heartbeat_ms, lease_ms=self._settings.lease_ms
        )

    def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatReply:
        granted = self._manager.heartbeat(
            NodeId(request.node),
            request.incarnation,
            request.sequence,
            _reports(request.targets),
            [NodeId(node) for node in request.unreachable],
        )
        return pb.HeartbeatReply(
            lease_ms=self._settings.lease_ms,
            routing_version=granted.routing_version,
            leases=[
                pb.TargetLease(target=target, chain_version=version)
                for target, version in granted.leases
            ],
            sequence=request.sequence,
        )

    def get_routing(self, request: pb.GetRoutingRequest) -> pb.RoutingUpdate:
        return self._manager.feed.update_since(request.known_version)

    def watch_routing(
        self, request: pb.GetRoutingRequest, context: StreamContext
    ) -> Iterator[pb.RoutingUpdate]:
        """The first update comes at once, also when it is empty; then one per change."""
        feed = self._manager.feed
        update = feed.update_since(request.known_version)
        yield update
        while context.is_active() and not feed.closed:
            if feed.wait(update.version, _WATCH_TURN_S):
                update = feed.update_since(update.version)
                yield update

    def create_chains(self, request: pb.CreateChainsRequest) -> pb.RoutingUpdate:
        """Replies with the whole routing table."""
        only = frozenset(map(TargetId, request.targets))
        self._manager.create_chains(request.replicas, request.table or TABLE_DEFAULT, only)
        return self._manager.feed.update_since(0)

    def offline_targets(self, request: pb.OfflineTargetsRequest) -> pb.RoutingUpdate:
        """Replies with the whole routing table as it is now; the targets leave within a lease."""
        targets = [TargetId(target) for target in request.targets]
        self._manager.offline_targets(targets, request.reason, request.force)
        return self._manager.feed.update_since(0)

    def start_job(self, request: pb.StartJobRequest) -> pb.JobProgress:
        kind = wire.decode_enum(JobKind, request.kind, "kind of job")
        old, new = TargetId(request.old_target), TargetId(request.new_target)
        orders = self._orders
        match kind:
            case JobKind.ADD:
                progress = orders.add(ChainId(request.chain), new)
            case JobKind.REMOVE:
                progress = orders.remove(old)
            case JobKind.REPLACE:
                progress = orders.replace(old, new)
            case JobKind.DRAIN:
                progress = orders.drain(NodeId(request.node))
            case JobKind.ROTATE:
                progress = orders.rotate(ChainId(request.chain))
        return wire.encode_progress(progress)

    def cancel_job(self, request: pb.CancelJobRequest) -> pb.JobProgress:
        return wire.encode_progress(self._orders.cancel(request.job))

    def list_jobs(self, request: pb.ListJobsRequest) -> pb.ListJobsReply:
        del request
        return pb.ListJobsReply(jobs=map(wire.encode_progress, self._orders.all()))

    def set_preferred_order(self, request: pb.SetPreferredOrderRequest) -> pb.ChainRecord:
        order = [TargetId(target) for target in request.targets]
        return wire.encode_chain(self._orders.set_preferred(ChainId(request.chain), order))

    def give_up_last(self, request: pb.GiveUpLastRequest) -> pb.ChainRecord:
        return wire.encode_chain(self._orders.give_up_last(ChainId(request.chain), request.force))

    def create_namespace(self, request: pb.CreateNamespaceRequest) -> pb.KvNamespace:
        return encode_namespace(self._namespaces.create(request.namespace))

    def set_namespace(self, request: pb.SetNamespaceRequest) -> pb.KvNamespace:
        fields = ("capacity_bytes", "ttl_s", "value_bytes_max", "uid", "gid")
        said = {name: getattr(request, name) for name in fields if request.HasField(name)}
        return encode_namespace(self._namespaces.set(request.name, said))

    def drop_namespace(self, request: pb.DropNamespaceRequest) -> common_pb2.Empty:
        self._namespaces.drop(request.name)
        return common_pb2.Empty()

    def get_status(self, request: pb.GetStatusRequest) -> pb.StatusReply:
        return pb.StatusReply(
            cluster_id=self._cluster_id,
            routing_version=self._manager.feed.current.version,
            nodes=[
                pb.NodeStatus(
                    node=wire.encode_node(status.node),
                    heartbeat_age_ms=min(status.heartbeat_age_ms, (1 << 32) - 1),
                    targets=map(_encode_report, status.reports),
                    unreachable=status.unreachable,
                )
                for status in self._manager.status()
            ],
            clients=len(self._clients),
        )


def _reports(messages: Iterable[pb.TargetReport]) -> list[Report]:
    return [_decode_report(message) for message in messages]


def _decode_report(message: pb.TargetReport) -> Report:
    if not message.target:
        raise Fs3Error(Code.INVALID, "a report of target 0: targets are numbered from 1")
    of_target = f"local state of target {message.target}"
    return Report(
        target=TargetId(message.target),
        local_state=wire.decode_enum(LocalState, message.local_state, of_target),
        chain_version=ChainVersion(message.chain_version),
        capacity_bytes=message.capacity_bytes,
        used_bytes=message.used_bytes,
        free_bytes=message.free_bytes,
        chunks=message.chunks,
        problem=message.problem,
        sync_done_chunks=message.sync_done_chunks,
        sync_total_chunks=message.sync_total_chunks,
        resync_bytes_per_s=message.resync_bytes_per_s,
    )


def _encode_report(report: Report) -> pb.TargetReport:
    return pb.TargetReport(
        target=report.target,
        local_state=report.local_state,
        chain_version=report.chain_version,
        capacity_bytes=report.capacity_bytes,
        used_bytes=report.used_bytes,
        free_bytes=report.free_bytes,
        chunks=report.chunks,
        problem=report.problem,
        sync_done_chunks=report.sync_done_chunks,
        sync_total_chunks=report.sync_total_chunks,
        resync_bytes_per_s=report.resync_bytes_per_s,
    )
