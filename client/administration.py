"""What an operator asks of a cluster: its state, its chains, and what each replica holds."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import ServiceDescriptor

from fs3.core.types import (
    Chain,
    ChunkId,
    LocalState,
    NodeId,
    PublicState,
    TargetId,
    chunk_id,
    chunk_owner,
)
from fs3.jobs import JobKind, JobProgress
from fs3.proto import cluster_pb2, storage_pb2
from fs3.routing import NodeInfo, Routing
from fs3.rpc import FrameChannel, Stub
from fs3.wire import decode_chain, decode_progress, decode_update

_SCAN_PAGE = 4096
_MANAGER = cluster_pb2.DESCRIPTOR.services_by_name["ClusterManager"]
_STORAGE = storage_pb2.DESCRIPTOR.services_by_name["StorageControl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStatus:
    """A target, as routing knows it and as its node reported it last."""

    target: TargetId
    node: NodeId
    chain: int  # 0: in none
    public_state: PublicState | None  # None: in no chain
    local_state: LocalState
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    chunks: int
    sync_done_chunks: int
    sync_total_chunks: int
    resync_bytes_per_s: int  # at most so much it sends to a target that syncs; 0: unlimited
    problem: str  # why it is offline; empty if it is not


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A storageserver and how long the manager has not heard of it."""

    info: NodeInfo
    heartbeat_age_ms: int
    unreachable: tuple[NodeId, ...] = ()  # who shares a chain and does not answer it


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """The whole cluster at one moment."""

    cluster_id: str
    routing_version: int
    clients: int
    nodes: tuple[NodeStatus, ...]
    targets: tuple[TargetStatus, ...]
    chains: tuple[Chain, ...]

    @property
    def problems(self) -> list[str]:
        """What keeps the cluster from being whole; empty if it is healthy."""
        found = [
            f"node {n.info.node} ({n.info.host}) is not heard of" for n in self.nodes if not _up(n)
        ]
        for node in self.nodes:
            others = ", ".join(map(str, node.unreachable))
            found += [f"node {node.info.node} does not reach node {others}"] if others else []
        for target in self.targets:
            if target.problem:
                found.append(f"target {target.target}: {target.problem}")
            elif target.public_state not in (PublicState.SERVING, None):
                state = target.public_state.name if target.public_state else ""
                found.append(f"target {target.target} of chain {target.chain} is {state}")
            elif target.public_state and target.local_state is not LocalState.UPTODATE:
                state = target.local_state.name
                found.append(f"target {target.target} shall serve, but says it is {state}")
        if not self.chains:
            found.append("there are no chains")
        return found

    @property
    def unavailable_chains(self) -> list[int]:
        """Chains none of whose replicas serves."""
        return [int(chain.chain) for chain in self.chains if not chain.serving]


def _up(node: NodeStatus) -> bool:
    return node.info.alive


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkState:
    """One chunk on one replica."""

    chunk: ChunkId
    version: int
    length_bytes: int
    checksum: int  # crc32c of the whole chunk
    pending_version: int  # 0: nothing pending


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubStatus:
    """How far the scrubber of a target is, and what repair has done. Times are ns since 1970."""

    target: TargetId
    running: bool
    bytes_per_s: int  # 0: it rests
    chunks: int  # checked in this pass, or in the last one
    chunks_total: int
    length_bytes: int
    bad_in_pass: int
    started_ns: int  # 0: never
    finished_ns: int  # the last whole pass
    bad_found: int  # by anybody, since the storageserver started
    repaired: int
    bad_waiting: int  # not repaired yet, or suspected and not looked at yet


class Administration:
    """Calls to the cluster's manager and its storageservers. Close it after use."""

    def __init__(self, addresses: Sequence[str], cluster_id: str, timeout_s: float = 10.0) -> None:
        self.cluster_id = cluster_id
        self._client_id = secrets.randbits(63) | 1
        self._timeout_s = timeout_s
        self._channels: dict[str, FrameChannel] = {}
        self._manager = self._stub(tuple(addresses), _MANAGER)

    def _stub(self, addresses: Sequence[str], service: ServiceDescriptor) -> Stub:
        key = ",".join(addresses)
        if key not in self._channels:
            self._channels[key] = FrameChannel(addresses, self.cluster_id)
        channel = self._channels[key]
        return Stub(channel, service, self.cluster_id, self._client_id, self._timeout_s)

    @property
    def manager(self) -> Stub:
        """Calls of the ClusterManager service that have no method here."""
        return self._manager

    def close(self) -> None:
        """Close every connection."""
        for channel in self._channels.values():
            channel.close()

    def __enter__(self) -> Administration:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def routing(self) -> Routing:
        """A full snapshot of the routing table."""
        update = self._manager.get_routing(cluster_pb2.GetRoutingRequest(known_version=0))
        return Routing().apply(decode_update(update))

    def create_chains(self, replicas: int, table: int = 1, targets: Sequence[int] = ()) -> None:
        """Make chains of the targets (these) that are in none; no change if there are none."""
        request = cluster_pb2.CreateChainsRequest(replicas=replicas, table=table, targets=targets)
        self._manager.create_chains(request)

    # -- orders (fs3/jobs.py says which there are) ---------------------------------------------

    def start_job(
        self, kind: JobKind, *, node: int = 0, chain: int = 0, old: int = 0, new: int = 0
    ) -> JobProgress:
        """Order something that takes a while; returns once the order is durable."""
        request = cluster_pb2.StartJobRequest(
            kind=kind, node=node, chain=chain, old_target=old, new_target=new
        )
        return decode_progress(self._manager.start_job(request))

    def cancel_job(self, number: int) -> JobProgress:
        """Undo what the job has begun, or let it end if it was about to."""
        return decode_progress(self._manager.cancel_job(cluster_pb2.CancelJobRequest(job=number)))

    def jobs(self) -> list[JobProgress]:
        """Every job that is kept, the oldest first."""
        reply = self._manager.list_jobs(cluster_pb2.ListJobsRequest())
        return [decode_progress(job) for job in reply.jobs]

    def set_preferred(self, chain: int, targets: Sequence[int]) -> Chain:
        """The order that a rotation works towards; no targets: none."""
        request = cluster_pb2.SetPreferredOrderRequest(chain=chain, targets=targets)
        return decode_chain(self._manager.set_preferred_order(request))

    def give_up_last(self, chain: int, *, force: bool) -> Chain:
        """No longer wait for the target that served the chain last. Loses data."""
        request = cluster_pb2.GiveUpLastRequest(chain=chain, force=force)
        return decode_chain(self._manager.give_up_last(request))

    # -- how it is ---------------------------------------------------------------------------------

    def status(self) -> ClusterStatus:
        """What routing and the last heartbeats say."""
        reply = self._manager.get_status(cluster_pb2.GetStatusRequest())
        routing = self.routing()
        reports = {TargetId(t.target): t for node in reply.nodes for t in node.targets}
        said = {NodeId(node.node.node): node for node in reply.nodes}
        silent = cluster_pb2.NodeStatus()
        return ClusterStatus(
            cluster_id=reply.cluster_id,
            routing_version=routing.version,
            clients=reply.clients,
            nodes=tuple(
                NodeStatus(
                    info=info,
                    heartbeat_age_ms=said.get(node, silent).heartbeat_age_ms,
                    unreachable=tuple(map(NodeId, said.get(node, silent).unreachable)),
                )
                for node, info in sorted(routing.nodes.items())
            ),
            targets=tuple(
                _target_status(target, routing, reports) for target in sorted(routing.targets)
            ),
            chains=tuple(chain for _, chain in sorted(routing.chains.items())),
        )

    def scan(
        self, routing: Routing, target: TargetId, owner: int | None = None
    ) -> Iterator[ChunkState]:
        """The chunks that ``target`` holds, in order; only those of ``owner`` if given.

        Fs3Error NOT_SERVING or UNREACHABLE if its node cannot be asked.
        """
        after = b"" if owner is None else _just_before(chunk_id(owner, 0))
        while True:
            page, more = self._scan_page(routing, target, after, _SCAN_PAGE)
            for state in page:
                if owner is not None and chunk_owner(state.chunk) != owner:
                    return
                yield state
            if not more or not page:
                return
            after = page[-1].chunk

    def chunk(self, routing: Routing, target: TargetId, chunk: ChunkId) -> ChunkState | None:
        """One chunk as ``target`` holds it; None if it does not."""
        page, _ = self._scan_page(routing, target, _just_before(chunk), 1)
        return page[0] if page and page[0].chunk == chunk else None

    def scrub_status(self, routing: Routing, target: TargetId) -> ScrubStatus:
        """How far a target's scrubber is; Fs3Error if its node cannot be asked."""
        stub = self._stub((routing.address_of(target),), _STORAGE)
        reply = stub.get_scrub(storage_pb2.GetScrubRequest(targets=[target]))
        return _scrub_status(reply.states[0])

    def set_scrub(
        self,
        routing: Routing,
        target: TargetId,
        *,
        start: bool = False,
        bytes_per_s: int | None = None,
    ) -> ScrubStatus:
        """Begin a pass, or change the rate until the storageserver's next start."""
        stub = self._stub((routing.address_of(target),), _STORAGE)
        request = storage_pb2.SetScrubRequest(
            targets=[target],
            start=start,
            set_rate=bytes_per_s is not None,
            bytes_per_s=bytes_per_s or 0,
        )
        return _scrub_status(stub.set_scrub(request).states[0])

    def set_resync(self, routing: Routing, target: TargetId, bytes_per_s: int) -> int:
        """How fast ``target`` brings others up to date, until its storageserver's next start."""
        stub = self._stub((routing.address_of(target),), _STORAGE)
        request = storage_pb2.SetResyncRequest(targets=[target], bytes_per_s=bytes_per_s)
        return int(stub.set_resync(request).states[0].bytes_per_s)

    def _scan_page(
        self, routing: Routing, target: TargetId, after: bytes, limit: int
    ) -> tuple[list[ChunkState], bool]:
        stub = self._stub((routing.address_of(target),), _STORAGE)
        request = storage_pb2.ScanChunksRequest(target=target, after=after, limit=limit)
        reply = stub.scan_chunks(request)
        page = [
            ChunkState(
                chunk=ChunkId(record.chunk),
                version=record.version,
                length_bytes=record.length_bytes,
                checksum=record.checksum,
                pending_version=record.pending_version,
            )
            for record in reply.chunks
        ]
        return page, reply.more


def _scrub_status(state: storage_pb2.ScrubState) -> ScrubStatus:
    return ScrubStatus(
        target=TargetId(state.target),
        running=state.running,
        bytes_per_s=state.bytes_per_s,
        chunks=state.chunks,
        chunks_total=state.chunks_total,
        length_bytes=state.length_bytes,
        bad_in_pass=state.bad_in_pass,
        started_ns=state.started_ns,
        finished_ns=state.finished_ns,
        bad_found=state.bad_found,
        repaired=state.repaired,
        bad_waiting=state.bad_waiting,
    )


def _just_before(chunk: ChunkId) -> bytes:
    """The greatest id below ``chunk``; empty, which is before everything, if there is none."""
    number = int.from_bytes(chunk, "big")
    return b"" if number == 0 else (number - 1).to_bytes(len(chunk), "big")


def _target_status(
    target: TargetId, routing: Routing, reports: Mapping[TargetId, cluster_pb2.TargetReport]
) -> TargetStatus:
    info = routing.targets[target]
    report = reports.get(target, cluster_pb2.TargetReport())
    chain = routing.chains.get(info.chain)
    replica = chain.replica(target) if chain else None
    node = routing.nodes.get(info.node)
    heard = node is not None and node.alive and report.local_state
    return TargetStatus(
        target=target,
        node=info.node,
        chain=int(info.chain),
        public_state=replica.state if replica else None,
        local_state=LocalState(report.local_state) if heard else LocalState.OFFLINE,
        capacity_bytes=report.capacity_bytes,
        used_bytes=report.used_bytes,
        free_bytes=report.free_bytes,
        chunks=report.chunks,
        sync_done_chunks=report.sync_done_chunks,
        sync_total_chunks=report.sync_total_chunks,
        resync_bytes_per_s=report.resync_bytes_per_s,
        problem=report.problem,
    )
