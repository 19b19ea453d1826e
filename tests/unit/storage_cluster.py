"""Storageservers without processes and without a manager: the real shells on one reactor.

Every node has its own ports and targets; routing is what the test says it is. Leases are granted
for as long as the test lets them.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c

from fs3 import dataplane, frames
from fs3.buffers import BufferPool
from fs3.clock import SystemClock
from fs3.core import messages as m
from fs3.core.chunks import UpdateKind
from fs3.core.replica import Limits
from fs3.core.types import (
    Chain,
    ChainId,
    ChainVersion,
    NodeId,
    PublicState,
    Replica,
    TargetId,
    chunk_id,
)
from fs3.reactor import Reactor
from fs3.storageserver.chunkstore.datafiles import ChunkStoreSettings
from fs3.storageserver.chunkstore.files import FileLayer, Files
from fs3.storageserver.chunkstore.store import DiskChunkStore
from fs3.storageserver.dataserver import DataServer
from fs3.storageserver.identity import Identity
from fs3.storageserver.neighbours import Neighbours
from fs3.storageserver.settings import EvictionSettings, RepairSettings
from fs3.storageserver.target import Target
from fs3.transport.tcp import FrameServer

CLUSTER = "unit"
CHAIN = ChainId(1)
WAIT_S = 60  # for what comes at once, however loaded the machine is


class Node:
    """One storageserver with one target, as far as the data plane goes."""

    def __init__(
        self,
        number: int,
        directory: Path,
        reactor: Reactor,
        repair: RepairSettings,
        files: FileLayer,
    ) -> None:
        self.target_id = TargetId(number)
        self.pool = BufferPool(256 << 20)
        self.neighbours = Neighbours(reactor, CLUSTER, self._on_up)
        self.accused: list[tuple[TargetId, str]] = []
        self.uptodate = threading.Event()  # a resync of this target has ended
        root = directory / f"target-{number}"
        root.mkdir(exist_ok=True)
        identity = Identity(root, CLUSTER, self.target_id)
        store = DiskChunkStore(files, root, ChunkStoreSettings())
        self.target = Target(
            self.target_id,
            store,
            Limits(resend_ms=100),
            reactor=reactor,
            pool=self.pool,
            clock=SystemClock(),
            surroundings=self,
            cluster_id=CLUSTER,
            repair=repair,
            eviction=EvictionSettings(),
            identity=identity,
        )
        self.server = FrameServer(reactor, CLUSTER, pool=self.pool)
        self.data = DataServer(self.server, {self.target_id: self.target}, self.pool)
        self.data.set_chains({CHAIN: self.target})

    def _on_up(self, there: frozenset[TargetId]) -> None:
        self.target.feed([m.PeerUp(target) for target in sorted(there)])

    def send(self, message: m.Message, payload: Any) -> None:
        self.neighbours.send(message, payload)

    def flush(self) -> None:
        self.neighbours.flush()

    def state_changed(self) -> None:
        if self.target.core is not None and self.target.core.uptodate:
            self.uptodate.set()

    def refresh_routing(self) -> None:
        pass

    def address_of(self, target: TargetId) -> str | None:
        return self.neighbours.address_of(target)

    def accuse(self, target: TargetId, reason: str) -> None:
        self.accused.append((target, reason))

    def close(self) -> None:
        self.neighbours.close()
        self.server.close()
        self.target.close()


class StorageCluster:
    """``count`` nodes, each with one replica of chain 1. A context manager."""

    def __init__(
        self,
        directory: Path,
        count: int,
        repair: RepairSettings | None = None,
        files: Mapping[int, FileLayer] | None = None,
    ) -> None:
        """``files``: the file layer of a target, if it is to be another one than the machine's."""
        self.reactor = Reactor()
        chosen = files or {}
        self.nodes = [
            Node(n, directory, self.reactor, repair or RepairSettings(), chosen.get(n, Files()))
            for n in range(1, count + 1)
        ]
        self.version = 0
        self._ids = itertools.count(1)
        self._tick()
        self._thread = threading.Thread(target=self.reactor.run)
        self._thread.start()
        self.call(lambda: [node.target.on_chain(None) for node in self.nodes])

    def __enter__(self) -> StorageCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.call(lambda: [node.close() for node in self.nodes])
        self.reactor.stop()
        self._thread.join()
        self.reactor.close()

    def _tick(self) -> None:
        for node in self.nodes:
            node.target.tick()
        self.reactor.call_later(0.02, self._tick)

    def call(self, function: Any) -> Any:
        """Run in the reactor's thread and wait."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - belongs to the test
                future.set_exception(error)

        self.reactor.call_soon(run)
        return future.result(WAIT_S)

    def wait_until(self, true: Callable[[], bool], otherwise: str = "it never came true") -> None:
        """Return when it holds in the reactor's thread; AssertionError if it does not."""
        pause, deadline_s = threading.Event(), time.monotonic() + WAIT_S
        while not self.call(true):
            assert time.monotonic() < deadline_s, otherwise
            pause.wait(0.01)

    def set_chain(
        self, *states: tuple[int, PublicState], lease_ms: int = 60_000, number: ChainId = CHAIN
    ) -> Chain:
        """A new version of the chain: (target, state) from head to tail; everybody hears of it."""
        self.version += 1
        replicas = tuple(Replica(TargetId(t), NodeId(t), state) for t, state in states)
        chain = Chain(number, ChainVersion(self.version), replicas)

        def tell() -> None:
            address_of = {node.target_id: node.server.address for node in self.nodes}
            now_ms = SystemClock().monotonic_ms()
            for node in self.nodes:
                node.neighbours.route(address_of, set(address_of) - {node.target_id})
                node.target.on_chain(chain)
                node.target.grant(chain.version, now_ms + lease_ms)

        self.call(tell)
        return chain

    def request(self, target: int, method: int, head: bytes, body: bytes = b"") -> tuple[Any, Any]:
        """One round trip with the node of ``target``: the reply's head and body."""
        host, port = self.nodes[target - 1].server.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), WAIT_S) as peer:
            tag = frames.cluster_tag(CLUSTER)
            number = next(self._ids)
            kind = frames.FrameKind.REQUEST
            peer.sendall(frames.encode(kind, method, tag, number, head, len(body)) + head + body)
            with peer.makefile("rb") as stream:
                header = frames.decode(stream.read(frames.HEADER_BYTES))
                reply = stream.read(header.head_bytes)
                frames.check_head(header, reply)
                if header.kind == frames.FrameKind.ERROR:
                    raise frames.decode_error(reply)
                return reply, stream.read(header.body_bytes)

    def write(
        self,
        slot: int,
        data: bytes,
        *,
        offset: int = 0,
        kind: UpdateKind = UpdateKind.WRITE,
        length: int | None = None,
        target: int = 1,
        version: int | None = None,
        tag: tuple[int, int, int] = (0, 0, 0),
        sync: bool = False,
        crc: int | None = None,
        owner: int = 7,
    ) -> Any:
        """One update; the result record."""
        client, channel, sequence = tag
        prefix = np.zeros(1, dataplane.WRITE_PREFIX)
        prefix[0] = (client, dataplane.WRITE_FLAG_SYNC if sync else 0, 0)
        item = np.zeros(1, dataplane.WRITE_ITEM)
        item["chunk"] = np.frombuffer(chunk_id(owner, slot), "V24")
        item["chain"], item["chain_version"] = CHAIN, version or self.version
        item["offset"], item["length"] = offset, len(data) if length is None else length
        item["crc"], item["kind"] = crc32c(data) if crc is None else crc, kind
        item["channel"], item["sequence"] = channel, sequence
        head = prefix.tobytes() + item.tobytes()
        reply, _ = self.request(target, dataplane.WRITE_BATCH, head, data)
        results, details = dataplane.decode_results(reply, dataplane.WRITE_RESULT, 1)
        return results[0], details.get(0, "")

    def read(
        self,
        pieces: Sequence[tuple[int, int, int]],
        target: int,
        version: int | None = None,
        owner: int = 7,
    ) -> tuple[Any, list[bytes]]:
        """(slot, offset, length) each; the results and the bytes of each."""
        items = np.zeros(len(pieces), dataplane.READ_ITEM)
        for item, (slot, offset, length) in zip(items, pieces, strict=True):
            item["chunk"] = np.frombuffer(chunk_id(owner, slot), "V24")[0]
            item["chain"], item["chain_version"] = CHAIN, version or self.version
            item["offset"], item["length"] = offset, length
        reply, body = self.request(target, dataplane.READ_BATCH, items.tobytes())
        results, _ = dataplane.decode_results(reply, dataplane.READ_RESULT, len(pieces))
        ends = np.cumsum(results["length"]).tolist()
        starts = [0, *ends[:-1]]
        return results, [body[a:b] for a, b in zip(starts, ends, strict=True)]
