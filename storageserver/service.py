"""StorageControl: what metaservers and operators ask of a storageserver. Decode, call, encode.

Handlers run in threads of the binding; what touches a target is handed over to the reactor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

from fs3.core import messages as m
from fs3.core.chunks import ChunkMeta, UpdateKind
from fs3.core.types import (
    CHUNK_ID_BYTES,
    ChainId,
    ChainVersion,
    ChunkId,
    ChunkVersion,
    LocalState,
    TargetId,
    chunk_id,
    chunk_slot,
)
from fs3.errors import Code, Fs3Error
from fs3.proto import storage_pb2 as pb
from fs3.reactor import Reactor
from fs3.transport.rdma.serving import RdmaServer

from .eviction_stats import stats_of
from .handover import in_reactor
from .scrub import Scrubber
from .target import Target

T = TypeVar("T")
_CALL_S = 10.0
_TRIM_CHUNKS_MAX = 4096
_SCAN_MAX = 10_000


class _Trim:
    """A job (see jobs.Job) of updates that a control call waits for."""

    def __init__(self, count: int) -> None:
        self.done: Future[None] = Future()
        self._left = count
        self._error: Fs3Error | None = None
        if not count:
            self.done.set_result(None)

    def finish(
        self,
        index: int,
        code: Code,
        version: ChunkVersion,
        length: int,
        checksum: int,
        detail: str,
    ) -> None:
        """One update is done."""
        if code is not Code.OK:
            self._error = Fs3Error(code, detail)
        self._left -= 1
        if self._left == 0:
            if self._error is not None:
                self.done.set_exception(self._error)
            else:
                self.done.set_result(None)


class StorageControl:
    """The service of proto/storage.proto."""

    def __init__(
        self,
        reactor: Reactor,
        targets: Mapping[TargetId, Target],
        paths: Mapping[TargetId, str],
        scrubbers: Mapping[TargetId, Scrubber],
        rdma: RdmaServer | None = None,
    ) -> None:
        self._reactor = reactor
        self._targets = targets
        self._paths = paths
        self._scrubbers = scrubbers
        self._rdma = rdma
        self._by_chain: Mapping[ChainId, Target] = {}

    def set_chains(self, by_chain: Mapping[ChainId, Target]) -> None:
        """Which target of this node stands for a chain. Reactor thread."""
        self._by_chain = by_chain

    def _call(self, function: Callable[[], T]) -> T:
        return in_reactor(self._reactor, function, _CALL_S)

    def _serving(self, chain: int, chain_version: int) -> Target:
        """The target that serves ``chain`` here. Reactor thread."""
        target = self._by_chain.get(ChainId(chain))
        if target is None or target.core is None:
            raise Fs3Error(Code.NOT_SERVING, f"no target of chain {chain} serves here")
        known = target.core.chain.version
        if known != chain_version:
            raise Fs3Error(
                Code.STALE_CHAIN, f"chain {chain} is at version {known}, not {chain_version}"
            )
        return target

    def connect_queue_pair(self, request: pb.ConnectQueuePairRequest) -> pb.ConnectQueuePairReply:
        """The other end of a client's queue pair; Fs3Error UNSUPPORTED without RDMA."""
        rdma = self._rdma
        if rdma is None:
            raise Fs3Error(Code.UNSUPPORTED, "this node offers no RDMA")
        return self._call(lambda: rdma.connect(request))

    def trim_chunks(self, request: pb.TrimChunksRequest) -> pb.TrimChunksReply:
        """Remove and cut chunks through the chain, synced: what is trimmed stays trimmed."""
        limit = min(request.limit or _TRIM_CHUNKS_MAX, _TRIM_CHUNKS_MAX)

        def begin() -> tuple[_Trim, int, bool]:
            target = self._serving(request.chain, request.chain_version)
            updates: list[tuple[ChunkId, UpdateKind, int]] = []
            for item in request.items:
                updates += _trims(target, item, limit + 1 - len(updates))
            more, updates = len(updates) > limit, updates[:limit]
            trim = _Trim(len(updates))
            version = ChainVersion(request.chain_version)
            target.feed(
                [
                    m.Write((trim, i), version, chunk, kind, 0, length, 0, None, True, None)
                    for i, (chunk, kind, length) in enumerate(updates)
                ]
            )
            return trim, sum(kind is UpdateKind.REMOVE for _, kind, _ in updates), more

        trim, removed, more = self._call(begin)
        try:
            trim.done.result(_CALL_S)
        except TimeoutError:
            detail = f"chain {request.chain} did not take the trim within {_CALL_S} s"
            raise Fs3Error(Code.MAYBE_APPLIED, detail) from None
        return pb.TrimChunksReply(removed=removed, more=more)

    def last_chunk(self, request: pb.LastChunkRequest) -> pb.LastChunkReply:
        """The owner's last chunk, committed or about to be."""

        def look() -> tuple[ChunkId, ChunkMeta] | None:
            target = self._serving(request.chain, request.chain_version)
            return target.store.last_chunk(request.owner)

        found = self._call(look)
        if found is None:
            return pb.LastChunkReply()
        chunk, meta = found
        return pb.LastChunkReply(found=True, slot=chunk_slot(chunk), length_bytes=meta.length)

    def scan_chunks(self, request: pb.ScanChunksRequest) -> pb.ScanChunksReply:
        """A page of what a target holds."""
        after = request.after
        if after and len(after) != CHUNK_ID_BYTES:
            raise Fs3Error(
                Code.INVALID, f"after has {len(after)} bytes; 0 or {CHUNK_ID_BYTES} are allowed"
            )
        limit = min(request.limit or _SCAN_MAX, _SCAN_MAX)
        store = self._target(request.target).store
        page = self._call(lambda: store.scan(ChunkId(after) if after else None, limit))
        return pb.ScanChunksReply(
            more=len(page) == limit,
            chunks=[
                pb.ChunkRecord(
                    chunk=chunk,
                    version=meta.version,
                    chain_version=meta.chain_version,
                    length_bytes=meta.length,
                    checksum=meta.checksum,
                    pending_version=meta.pending_version,
                )
                for chunk, meta in page
            ],
        )

    def get_targets(self, request: pb.GetTargetsRequest) -> pb.GetTargetsReply:
        """Every target of this storageserver."""
        del request
        return self._call(
            lambda: pb.GetTargetsReply(targets=[self._info(t) for t in self._targets.values()])
        )

    def _info(self, target: Target) -> pb.TargetInfo:
        report, usage = target.report, target.usage()
        place = target.chain.replica(target.target) if target.chain is not None else None
        return pb.TargetInfo(
            target=target.target,
            chain=target.chain.chain if target.chain is not None else 0,
            chain_version=report.chain_version,
            local_state=report.state,
            public_state=place.state if place is not None else 0,
            chunks=usage.chunks,
            used_bytes=usage.used_bytes,
            problem=report.problem,
            serving=report.state is LocalState.UPTODATE,
            path=self._paths[target.target],
        )

    def get_kv_stats(self, request: pb.GetKvStatsRequest) -> pb.KvStatsReply:
        """What the KV cache does on each target, since the process started."""
        targets = list(self._targets.values())
        return self._call(
            lambda: pb.KvStatsReply(
                stats=[row for t in targets for row in stats_of(t, request.namespace)]
            )
        )

    def get_scrub(self, request: pb.GetScrubRequest) -> pb.ScrubReply:
        """How far the scrubbers are."""
        return self._scrub_reply(self._chosen(request.targets))

    def set_scrub(self, request: pb.SetScrubRequest) -> pb.ScrubReply:
        """Begin a pass, or change the rate; all targets are checked before any is touched."""
        chosen = self._chosen(request.targets)
        for target in chosen:
            scrubber = self._scrubbers[target.target]
            if target.store.failed:
                detail = f"target {target.target} is offline: {target.store.failed}"
                raise Fs3Error(Code.DISK, detail)
            rate = request.bytes_per_s if request.set_rate else scrubber.bytes_per_s
            if request.start and not rate:
                detail = f"the scrub rate of target {target.target} is 0: it would never end"
                raise Fs3Error(Code.INVALID, detail)
        for target in chosen:
            scrubber = self._scrubbers[target.target]
            if request.set_rate:
                scrubber.set_rate(request.bytes_per_s)
            if request.start:
                scrubber.begin()
        return self._scrub_reply(chosen)

    def set_resync(self, request: pb.SetResyncRequest) -> pb.ResyncReply:
        """Change how fast targets bring others up to date."""
        chosen = self._chosen(request.targets)

        def change() -> pb.ResyncReply:
            for target in chosen:
                target.set_resync_rate(request.bytes_per_s)
            states = [
                pb.ResyncState(target=t.target, bytes_per_s=t.report.resync_bytes_per_s)
                for t in chosen
            ]
            return pb.ResyncReply(states=states)

        return self._call(change)

    def _chosen(self, numbers: Sequence[int]) -> list[Target]:
        if not numbers:
            return [t for t in self._targets.values() if not t.store.failed]
        return [self._target(number) for number in numbers]

    def _scrub_reply(self, targets: Sequence[Target]) -> pb.ScrubReply:
        return self._call(lambda: pb.ScrubReply(states=[self._scrub_state(t) for t in targets]))

    def _scrub_state(self, target: Target) -> pb.ScrubState:
        scrubber = self._scrubbers[target.target]
        progress, repairs = scrubber.progress, target.repairs
        return pb.ScrubState(
            target=target.target,
            running=progress.running,
            bytes_per_s=scrubber.bytes_per_s,
            position=bytes.fromhex(progress.position),
            chunks=progress.chunks,
            chunks_total=target.usage().chunks,
            length_bytes=progress.length_bytes,
            bad_in_pass=progress.bad,
            started_ns=progress.started_ns,
            finished_ns=progress.finished_ns,
            bad_found=repairs.found,
            repaired=repairs.repaired,
            bad_waiting=repairs.waiting,
        )

    def _target(self, number: int) -> Target:
        target = self._targets.get(TargetId(number))
        if target is None:
            known = ", ".join(str(t) for t in self._targets)
            raise Fs3Error(Code.INVALID, f"target {number} is not here; {known} are")
        return target


def _trims(target: Target, item: pb.TrimItem, limit: int) -> list[tuple[ChunkId, UpdateKind, int]]:
    """What one item asks for: removals behind ``keep_slots``, and the cut."""
    if limit <= 0:
        return []
    updates: list[tuple[ChunkId, UpdateKind, int]] = []
    if item.cut:
        chunk = chunk_id(item.owner, item.cut_slot)
        meta = target.store.meta(chunk)
        if meta is not None and max(meta.length, meta.pending_length) > item.cut_length_bytes:
            updates.append((chunk, UpdateKind.TRUNCATE, item.cut_length_bytes))
    keep = item.keep_slots
    # The id just before slot 0 is the owner before's last: scan() takes the owner from us.
    after = chunk_id(item.owner, keep - 1) if keep else None
    page = target.store.scan(after, limit, owner=item.owner)
    return updates + [(chunk, UpdateKind.REMOVE, 0) for chunk, _ in page]
