"""A whole metaserver in this process, and a storageserver of dicts that it asks to trim.

The storageserver stands for every node: one frame port, any number of chains. It speaks the real
StorageControl over real frames; tests look at its chunks, and can make a chain fail.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fs3.clock import SystemClock
from fs3.core.types import ChainVersion, LocalState, NodeId, TargetId
from fs3.errors import Code, Fs3Error
from fs3.metaserver.app import Metaserver
from fs3.metaserver.manager_members import Report
from fs3.metaserver.settings import GcSettings, ManagerSettings, SessionSettings, Settings
from fs3.proto import cluster_pb2, metadata_pb2, storage_pb2
from fs3.reactor import Reactor
from fs3.routing import NodeInfo
from fs3.rpc import Channel, FrameChannel, Handlers, Stub
from fs3.rpc_grpc import GrpcChannel
from fs3.transport.tcp import FrameServer, serve_handlers

CLUSTER = "contract"
CLIENT = 0xC11E
CHUNK_BYTES = 64 << 10
CHAINS = 3
WAIT_S = 60.0  # for what comes at once, however loaded the machine is
METADATA = metadata_pb2.DESCRIPTOR.services_by_name["Metadata"]
MANAGER = cluster_pb2.DESCRIPTOR.services_by_name["ClusterManager"]
STORAGE = storage_pb2.DESCRIPTOR.services_by_name["StorageControl"]


class FakeStorage:
    """Chunks as ``{(chain, owner, slot): length}``. Chains in ``failing`` raise what is there."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[int, int, int], int] = {}
        self.failing: dict[int, Code] = {}
        self.calls: list[storage_pb2.TrimChunksRequest] = []
        self._changed = threading.Condition()

    def put(self, inode: metadata_pb2.common__pb2.Inode, slot: int, length: int) -> None:
        """A chunk of ``inode``, on the chain where its layout has it."""
        chains = inode.layout.chains
        self.chunks[chains[slot % len(chains)], inode.inode, slot] = length

    def of(self, owner: int) -> dict[int, int]:
        """What is there of ``owner``: slot to length."""
        return {slot: n for (_, o, slot), n in sorted(self.chunks.items()) if o == owner}

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until a call made ``condition`` true."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S)

    def trim_chunks(self, request: storage_pb2.TrimChunksRequest) -> storage_pb2.TrimChunksReply:
        with self._changed:
            self.calls.append(request)
            self._changed.notify_all()
            self._check(request.chain)
            limit = request.limit
            removed = 0
            for item in request.items:
                gone = [
                    (chain, owner, slot)
                    for chain, owner, slot in self.chunks
                    if (chain, owner) == (request.chain, item.owner) and slot >= item.keep_slots
                ]
                for key in gone[: limit - removed]:
                    del self.chunks[key]
                    removed += 1
                cut = request.chain, item.owner, item.cut_slot
                if item.cut and cut in self.chunks:
                    self.chunks[cut] = min(self.chunks[cut], item.cut_length_bytes)
            return storage_pb2.TrimChunksReply(removed=removed, more=removed == limit)

    def last_chunk(self, request: storage_pb2.LastChunkRequest) -> storage_pb2.LastChunkReply:
        self._check(request.chain)
        mine = {
            slot: length
            for (chain, owner, slot), length in self.chunks.items()
            if (chain, owner) == (request.chain, request.owner)
        }
        if not mine:
            return storage_pb2.LastChunkReply()
        slot = max(mine)
        return storage_pb2.LastChunkReply(found=True, slot=slot, length_bytes=mine[slot])

    def scan_chunks(self, request: storage_pb2.ScanChunksRequest) -> storage_pb2.ScanChunksReply:
        raise Fs3Error(Code.UNSUPPORTED, "the metaserver never asks for it")

    def get_kv_stats(self, request: storage_pb2.GetKvStatsRequest) -> storage_pb2.KvStatsReply:
        return storage_pb2.KvStatsReply()

    def connect_queue_pair(
        self, request: storage_pb2.ConnectQueuePairRequest
    ) -> storage_pb2.ConnectQueuePairReply:
        raise Fs3Error(Code.UNSUPPORTED, "the metaserver never asks for it")

    def get_scrub(self, request: storage_pb2.GetScrubRequest) -> storage_pb2.ScrubReply:
        raise Fs3Error(Code.UNSUPPORTED, "the metaserver never asks for it")

    def set_resync(self, request: storage_pb2.SetResyncRequest) -> storage_pb2.ResyncReply:
        del request
        return storage_pb2.ResyncReply()

    def set_scrub(self, request: storage_pb2.SetScrubRequest) -> storage_pb2.ScrubReply:
        raise Fs3Error(Code.UNSUPPORTED, "the metaserver never asks for it")

    def get_targets(self, request: storage_pb2.GetTargetsRequest) -> storage_pb2.GetTargetsReply:
        raise Fs3Error(Code.UNSUPPORTED, "the metaserver never asks for it")

    def _check(self, chain: int) -> None:
        if chain in self.failing:
            raise Fs3Error(self.failing[chain], f"chain {chain} fails")


@contextlib.contextmanager
def fake_storage() -> Iterator[tuple[FakeStorage, str]]:
    """A storage and the address of its frame port."""
    storage, reactor = FakeStorage(), Reactor()
    server = FrameServer(reactor, CLUSTER)
    handlers = Handlers(CLUSTER)
    handlers.add(STORAGE, storage)
    workers = serve_handlers(server, handlers, 4)
    thread = threading.Thread(target=reactor.run)
    thread.start()
    try:
        yield storage, server.address
    finally:
        reactor.call_soon(server.close)
        reactor.stop()
        thread.join()
        workers.close()
        reactor.close()


def settings_for(engine: str, data_dir: Path) -> Settings:
    """Leases that outlast any test, so that nobody has to heartbeat."""
    return Settings(
        cluster_id=CLUSTER,
        data_dir=data_dir,
        engine=engine,
        chunk_bytes=CHUNK_BYTES,
        listen="127.0.0.1:0",
        grpc_listen="127.0.0.1:0",
        trim_deadline_s=0.3,
        manager=ManagerSettings(lease_ms=3_600_000),
        sessions=SessionSettings(lease_ms=3_600_000),
        gc=GcSettings(interval_ms=20, retry_ms_max=100, chunks=4),
    )


class UnderTest:
    """A running metaserver with three chains of three, all on one fake storage."""

    def __init__(self, settings: Settings, storage: FakeStorage, storage_address: str) -> None:
        self.settings = settings
        self.storage = storage
        self.dead: list[str] = []
        self.app = Metaserver(settings, SystemClock(), self.dead.append)
        self.app.start()
        self._channels: list[Channel] = []
        for node in (1, 2, 3):
            self._register(node, storage_address)
        self.app.manager.create_chains(3, 1)

    def _register(self, node: int, address: str) -> None:
        info = NodeInfo(
            node=NodeId(node),
            host=f"h{node}",
            data_address=address,
            control_address=address,
            incarnation=7,
            alive=True,
        )
        reports = [
            Report(
                target=TargetId(10 * node + i),
                local_state=LocalState.ONLINE,
                chain_version=ChainVersion(0),
                capacity_bytes=1000,
                free_bytes=700,
            )
            for i in range(CHAINS)
        ]
        self.app.manager.register(info, reports)

    def channel(self, binding: str) -> Channel:
        made: Channel = (
            GrpcChannel([self.app.grpc_address], CLUSTER)
            if binding == "grpc"
            else FrameChannel([self.app.frame_address], CLUSTER)
        )
        self._channels.append(made)
        return made

    def metadata(self, binding: str, client: int = CLIENT) -> Stub:
        return Stub(self.channel(binding), METADATA, CLUSTER, client, WAIT_S)

    def manager(self, binding: str) -> Stub:
        return Stub(self.channel(binding), MANAGER, CLUSTER, CLIENT, WAIT_S)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self.app.stop()
        assert not self.dead


@contextlib.contextmanager
def running(
    engine: str, data_dir: Path, chunks: Mapping[tuple[int, int, int], int] | None = None
) -> Iterator[UnderTest]:
    """A metaserver that is closed at the end, with a storage of its own that has ``chunks``."""
    with fake_storage() as (storage, address):
        storage.chunks.update(chunks or {})
        under_test = UnderTest(settings_for(engine, data_dir), storage, address)
        try:
            yield under_test
        finally:
            under_test.close()
