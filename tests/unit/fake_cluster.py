"""A cluster in one process, for tests of clients: real frames over loopback, chunks in dicts.

The metaserver's own services run on the memory engine; the storageservers are fakes that apply a
write to every writable replica at once, remember update channels, and can be told to misbehave:
die, lose answers, corrupt bytes, stall. Chains change by the real rules (fs3.core.chain).
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np

from fs3 import dataplane
from fs3.checksum import crc32c
from fs3.client.api import Client
from fs3.client.context import ClientContext
from fs3.client.pipeline import Pipeline
from fs3.client.ports import PortReservation
from fs3.clock import SystemClock
from fs3.core.chain import next_chain
from fs3.core.chunks import UpdateKind
from fs3.core.layout import Layout
from fs3.core.request import Limits
from fs3.core.types import (
    Chain,
    ChainId,
    ChainVersion,
    LocalState,
    NodeId,
    PublicState,
    Replica,
    TargetId,
    chunk_id,
)
from fs3.errors import Code, Fs3Error
from fs3.metaserver import namespace
from fs3.metaserver.chunk_control import ChunkControl
from fs3.metaserver.clients import Clients
from fs3.metaserver.kv.memory import MemoryEngine
from fs3.metaserver.lengths import Lengths
from fs3.metaserver.manager_feed import RoutingFeed
from fs3.metaserver.service import MetadataService
from fs3.metaserver.truncations import Truncations
from fs3.proto import cluster_pb2, metadata_pb2, storage_pb2
from fs3.reactor import Reactor
from fs3.routing import ChainTable, NodeInfo, Routing, TargetInfo
from fs3.rpc import FrameChannel, Handlers
from fs3.transport.serving import serve_handlers
from fs3.transport.tcp import FrameServer
from fs3.types import Credentials

CLUSTER = "fake"
ROOT = Credentials(uid=0, gid=0)
CHUNK_BYTES = 64 << 10
WAIT_S = 60.0  # for what comes at once, however loaded the machine is


class FakeNode:
    """One storageserver with one target per chain it is in. Its methods run in the reactor."""

    def __init__(self, cluster: FakeCluster, node: NodeId, address: str) -> None:
        self.cluster = cluster
        self.node = node
        self.chunks: dict[bytes, bytearray] = {}
        self.crcs_wrong: set[bytes] = set()  # chunks whose bytes rotted: answers carry the old crc
        self.suspected: list[bytes] = []  # chunks that readers said are bad
        self.corrupt_code: set[bytes] = set()  # chunks that this node knows to be bad
        self.channels: dict[tuple[int, int], tuple[int, tuple[int, int]]] = {}
        self.requests: Counter[int] = Counter()
        self.lose_replies = 0  # so many requests are carried out and never answered
        self.stalled = False  # nothing is answered
        self.held: list[Callable[[], None]] | None = None  # answers kept back, if it is a list
        self.refuse: list[Code] = []  # so many items are refused with these codes
        self.before_request: Callable[[], None] | None = None
        self.address = address
        self.start()

    def start(self) -> None:
        self.server = FrameServer(self.cluster.reactor, CLUSTER, None, self.address)
        self.server.take([dataplane.READ_BATCH], self._on_read)
        self.server.take([dataplane.WRITE_BATCH], self._on_write)
        self.server.take([dataplane.SUSPECT], self._on_suspect)
        handlers = Handlers(CLUSTER)
        handlers.add(storage_pb2.DESCRIPTOR.services_by_name["StorageControl"], self)
        self.threads = serve_handlers(self.server, handlers, workers=1)

    # Data plane.

    def _on_read(self, connection, request) -> None:
        self._enter(request)
        items = dataplane.decode_items(request.head, dataplane.READ_ITEM)
        results = np.zeros(len(items), dataplane.READ_RESULT)
        parts, details = [], []
        for index, item in enumerate(items):
            code, detail, data, whole = self._read(item)
            crc = crc32c(data)
            if data and bytes(item["chunk"]) in self.crcs_wrong:
                data = bytes([data[0] ^ 1]) + data[1:]
            results[index] = (code, len(data), 1, crc, whole)
            parts.append(memoryview(data))
            if detail:
                details.append((index, detail))
        head = dataplane.encode_results(results, details)
        self._answer(connection, request, head, [part for part in parts if len(part)])

    def _on_suspect(self, connection, request) -> None:
        items = dataplane.decode_items(request.head, dataplane.READ_ITEM)
        self.suspected += [bytes(item["chunk"]) for item in items]
        connection.reply(request.request_id, request.method, b"")

    def _read(self, item) -> tuple[Code, str, bytes, int]:
        refused = self._refuse(item)
        if refused:
            return refused, f"{refused.name} by order", b"", 0
        chunk = bytes(item["chunk"])
        if chunk in self.corrupt_code:
            return Code.CORRUPT, "bad block", b"", 0
        data = self.chunks.get(chunk)
        if data is None:
            return Code.NO_CHUNK, "", b"", 0
        start = int(item["offset"])
        return Code.OK, "", bytes(data[start : start + int(item["length"])]), len(data)

    def _refuse(self, item) -> Code | None:
        if self.refuse:
            return self.refuse.pop(0)
        chain = self.cluster.routing.chains[ChainId(int(item["chain"]))]
        if int(item["chain_version"]) != chain.version:
            return Code.STALE_CHAIN
        if all(r.node != self.node for r in chain.serving):
            return Code.NOT_SERVING
        return None

    def _on_write(self, connection, request) -> None:
        self._enter(request)
        size = dataplane.WRITE_PREFIX.itemsize
        prefix = np.frombuffer(request.head, dataplane.WRITE_PREFIX, 1)[0]
        items = dataplane.decode_items(request.head, dataplane.WRITE_ITEM, size)
        body = bytes(request.body.view) if request.body else b""
        if request.body:
            request.body.release()
        results = np.zeros(len(items), dataplane.WRITE_RESULT)
        position = 0
        for index, item in enumerate(items):
            length = int(item["length"]) if item["kind"] == UpdateKind.WRITE else 0
            data = body[position : position + length]
            position += length
            code = self._write(item, data, int(prefix["client"]), bool(prefix["flags"]))
            results[index]["code"] = code
        self._answer(connection, request, dataplane.encode_results(results, []), [])

    def _write(self, item, data: bytes, client: int, sync: bool) -> Code:
        refused = self._refuse(item)
        if refused:
            return refused
        chain = self.cluster.routing.chains[ChainId(int(item["chain"]))]
        if chain.serving[0].node != self.node:
            return Code.NOT_SERVING
        if crc32c(data) != int(item["crc"]):
            return Code.CORRUPT
        key = (client, int(item["channel"]))
        sequence = int(item["sequence"])
        done = self.channels.get(key, (0, (0, 0)))[0]
        if sequence == done:
            return Code.OK
        if sequence < done:
            return Code.STALE_UPDATE
        chunk = bytes(item["chunk"])
        self.cluster.applied[(chunk, int(item["offset"]), int(item["length"]))] += 1
        for replica in chain.writable:
            node = self.cluster.nodes[replica.node]
            node.channels[key] = (sequence, (0, 0))
            node._apply(chunk, item["kind"], int(item["offset"]), data)
            if sync:
                node.cluster.synced[node.node].add(chunk)
        return Code.OK

    def _apply(self, chunk: bytes, kind: int, offset: int, data: bytes) -> None:
        if kind == UpdateKind.WRITE:
            content = self.chunks.setdefault(chunk, bytearray())
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data)] = data

    def _enter(self, request) -> None:
        if self.before_request is not None:
            self.before_request()
        self.requests[request.method] += 1

    def _answer(self, connection, request, head, parts) -> None:
        if self.stalled:
            return
        if self.held is not None:
            self.held.append(
                lambda: connection.reply(request.request_id, request.method, head, parts)
            )
        elif self.lose_replies:
            self.lose_replies -= 1
            connection.close()
        else:
            connection.reply(request.request_id, request.method, head, parts)

    # Control.

    def trim_chunks(self, request):
        for item in request.items:
            for chunk in list(self.chunks):
                if int.from_bytes(chunk[:8], "big") != item.owner:
                    continue
                slot = int.from_bytes(chunk[8:], "big")
                for node in self.cluster.nodes.values():
                    if slot >= item.keep_slots:
                        node.chunks.pop(chunk, None)
                    elif item.cut and slot == item.cut_slot and chunk in node.chunks:
                        del node.chunks[chunk][item.cut_length_bytes :]
        return storage_pb2.TrimChunksReply()

    def last_chunk(self, request):
        chain = self.cluster.routing.chains[ChainId(request.chain)]
        del chain
        mine = [c for c in self.chunks if int.from_bytes(c[:8], "big") == request.owner]
        if not mine:
            return storage_pb2.LastChunkReply()
        last = max(mine)
        slot = int.from_bytes(last[8:], "big")
        length = len(self.chunks[last])
        return storage_pb2.LastChunkReply(found=True, slot=slot, length_bytes=length)

    def scan_chunks(self, request):
        raise Fs3Error(Code.UNSUPPORTED, "not in the fake")

    def connect_queue_pair(self, request):
        raise Fs3Error(Code.UNSUPPORTED, "not in the fake")

    def get_scrub(self, request):
        return storage_pb2.ScrubReply()

    def set_scrub(self, request):
        return storage_pb2.ScrubReply()

    def set_resync(self, request):
        return storage_pb2.ResyncReply()

    def get_kv_stats(self, request):
        return storage_pb2.KvStatsReply()

    def get_targets(self, request):
        return storage_pb2.GetTargetsReply()


class FakeCluster:
    """Nodes 1..n, chains of ``replicas`` over them, and a metaserver. Use :func:`fake_cluster`."""

    def __init__(self, nodes: int = 3, chains: int = 3, replicas: int = 3) -> None:
        self.applied: Counter[tuple[bytes, int, int]] = Counter()  # writes carried out
        self.synced: dict[NodeId, set[bytes]] = {NodeId(n): set() for n in range(1, nodes + 1)}
        self.reactor = Reactor()
        # Held to the end: while a server is away nobody else listens, or talks, on its port.
        self._ports = PortReservation(nodes + 1)
        meta_address, *addresses = [f"127.0.0.1:{port}" for port in self._ports.ports]
        self.nodes = {
            NodeId(n): FakeNode(self, NodeId(n), address)
            for n, address in enumerate(addresses, start=1)
        }
        self.dead: set[NodeId] = set()
        self.routing = self._first_routing(chains, replicas)
        self.feed = RoutingFeed(self.routing, 100)
        self.metadata_calls: Counter[str] = Counter()
        self._start_metaserver(meta_address)
        self._thread = threading.Thread(target=self.reactor.run, name="fake-cluster", daemon=True)
        self._thread.start()
        self._clients: list[Client] = []

    def _first_routing(self, chains: int, replicas: int) -> Routing:
        node_ids = sorted(self.nodes)
        targets = itertools.count(1)
        made, infos = {}, {}
        for number in range(1, chains + 1):
            order = [node_ids[(number + i) % len(node_ids)] for i in range(replicas)]
            members = [
                Replica(TargetId(next(targets)), node, PublicState.SERVING) for node in order
            ]
            made[ChainId(number)] = Chain(ChainId(number), ChainVersion(1), tuple(members))
            for r in members:
                infos[r.target] = TargetInfo(target=r.target, node=r.node, chain=ChainId(number))
        return Routing(
            version=1,
            nodes={n: self._info(n) for n in node_ids},
            targets=infos,
            chains=made,
            tables={1: ChainTable(table=1, version=1, chains=tuple(made))},
        )

    def _info(self, node: NodeId) -> NodeInfo:
        return NodeInfo(
            node=node,
            host=f"host-{node}",
            data_address=self.nodes[node].address,
            control_address=self.nodes[node].address,
            incarnation=1,
            alive=True,
        )

    def _start_metaserver(self, address: str) -> None:
        clock = SystemClock()
        self.engine = MemoryEngine()
        self.engine.run(namespace.make_root, Layout(CHUNK_BYTES, 3), clock.wall_ns())
        self.control = ChunkControl(self.feed, CLUSTER)
        truncations = Truncations(self.engine, self.control, 1000, 5.0, 8)
        manager = SimpleNamespace(feed=self.feed, reports={})
        self.service = MetadataService(
            self.engine,
            manager,
            Clients(clock, 60_000),
            truncations,
            Lengths(self.engine, self.control, truncations, clock, 5.0),
            clock,
        )
        self.handlers = Handlers(CLUSTER)
        metadata = metadata_pb2.DESCRIPTOR.services_by_name["Metadata"]
        self.handlers.add(metadata, _Counted(self.service, self.metadata_calls))
        manager_service = cluster_pb2.DESCRIPTOR.services_by_name["ClusterManager"]
        self.handlers.add(manager_service, _FakeManager(self))
        self.meta_address = address
        self._serve_metadata()

    def _serve_metadata(self) -> None:
        self.meta_server = FrameServer(self.reactor, CLUSTER, None, self.meta_address)
        self.meta_threads = serve_handlers(self.meta_server, self.handlers, workers=4)

    # What a test does to it.

    def client(self, who: Credentials = ROOT, **limits) -> Client:
        context = ClientContext(
            FrameChannel([self.meta_address], CLUSTER),
            CLUSTER,
            who,
            limits=Limits(**{"deadline_ms": 100_000, "request_ms": 60_000, **limits}),
            retry_s=WAIT_S,
            pipeline=Pipeline([self.meta_address], CLUSTER),
            addresses=[self.meta_address],
        )
        client = Client(context)
        self._clients.append(client)
        return client

    def in_reactor(self, function: Callable[[], object]) -> None:
        """Run ``function`` in the servers' thread and wait for it."""
        done = threading.Event()

        def run() -> None:
            function()
            done.set()

        self.reactor.call_soon(run)
        assert done.wait(WAIT_S)

    def release(self, node: int) -> None:
        """Give the answers that a node has kept back, and keep no more."""

        def answer() -> None:
            of = self.nodes[NodeId(node)]
            held, of.held = of.held or [], None
            for one in held:
                one()

        self.in_reactor(answer)

    def kill(self, node: int) -> None:
        """The process is gone; routing does not know yet."""
        self.dead.add(NodeId(node))
        self.in_reactor(self.nodes[NodeId(node)].server.close)

    def reform(self) -> None:
        """The manager notices who is dead, and publishes chains without them."""
        chains = {}
        for chain in self.routing.chains.values():
            states = {
                r.target: LocalState.OFFLINE if r.node in self.dead else LocalState.UPTODATE
                for r in chain.replicas
            }
            chains[chain.chain] = next_chain(chain, states)
        self.publish(chains)

    def publish(self, chains: dict[ChainId, Chain]) -> None:
        old = self.routing
        self.routing = Routing(
            version=old.version + 1,
            nodes=old.nodes,
            targets=old.targets,
            chains={**old.chains, **chains},
            tables=old.tables,
        )
        self.feed.publish(self.routing)

    def bump(self) -> None:
        """Every chain gets a new version, for no reason that a client could see."""
        self.publish(
            {
                c.chain: Chain(c.chain, ChainVersion(c.version + 1), c.replicas)
                for c in self.routing.chains.values()
            }
        )

    def requests(self, method: int) -> int:
        return sum(node.requests[method] for node in self.nodes.values())

    def stop_metaserver(self) -> None:
        self.in_reactor(self.meta_server.close)
        self.meta_threads.close()

    def start_metaserver(self) -> None:
        self.in_reactor(self._serve_metadata)

    def close(self) -> None:
        for client in self._clients:
            with contextlib.suppress(Fs3Error):
                client.close()
        self.control.close()
        self.feed.close()
        self.in_reactor(self._close_servers)
        self.reactor.stop()
        self._thread.join()
        for node in self.nodes.values():
            node.threads.close()
        self.meta_threads.close()
        self.reactor.close()
        self.engine.close()
        self._ports.release()

    def _close_servers(self) -> None:
        self.meta_server.close()
        for node in self.nodes.values():
            node.server.close()


class _Counted:
    """A service whose calls are counted by name."""

    def __init__(self, service: object, calls: Counter[str]) -> None:
        self._service = service
        self._calls = calls

    def __getattr__(self, name: str):
        function = getattr(self._service, name)

        def call(request):
            self._calls[name] += 1
            return function(request)

        return call


class _FakeManager:
    """Only what clients ask."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    def get_routing(self, request):
        self._cluster.metadata_calls["get_routing"] += 1
        return self._cluster.feed.update_since(request.known_version)

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(request):
            raise Fs3Error(Code.UNSUPPORTED, f"{name} is not in the fake")

        return refuse


@contextlib.contextmanager
def fake_cluster(**shape: int) -> Iterator[FakeCluster]:
    """A cluster that is gone afterwards, with its clients."""
    cluster = FakeCluster(**shape)
    try:
        yield cluster
    finally:
        cluster.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """For what another thread does; fails if it does not happen."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.005)


__all__ = ["CHUNK_BYTES", "FakeCluster", "chunk_id", "fake_cluster", "wait_until"]
