"""A replica core on the memory store, stepped by hand: effects out, the store's part done on call.

``rig.step(event)`` gives the effects and performs nothing. ``rig.store(effects)`` performs the
store's part and gives the completions as events. ``rig.settle(event)`` steps, performs, feeds the
completions back until nothing is left to store, and returns all other effects in order.
"""

from __future__ import annotations

from collections.abc import Sequence

from fs3.checksum import crc32c
from fs3.core import messages as m
from fs3.core.chunks import Tag, UpdateKind
from fs3.core.limits import Limits
from fs3.core.replica import Replica
from fs3.core.types import (
    Chain,
    ChainId,
    ChainVersion,
    ChunkId,
    ChunkVersion,
    NodeId,
    PublicState,
    TargetId,
    chunk_id,
)
from fs3.core.types import Replica as Place
from fs3.errors import Code
from fs3.storageserver.chunkstore.interface import Channel, Commit, Piece, StageRequest
from fs3.storageserver.chunkstore.memory import MemoryChunkStore

S, L, Y = PublicState.SERVING, PublicState.LASTSRV, PublicState.SYNCING
W, OFF = PublicState.WAITING, PublicState.OFFLINE
K = chunk_id(7, 0)  # the chunk that most tests are about
FOREVER = 1 << 40


def chain(version: int, *states: tuple[int, PublicState]) -> Chain:
    """Chain 1: (target, state), head first; every target is on a node of its number."""
    replicas = tuple(Place(TargetId(t), NodeId(t), state) for t, state in states)
    return Chain(ChainId(1), ChainVersion(version), replicas)


def route(source: int, destination: int, version: int = 1) -> m.Route:
    """A message's address line."""
    return m.Route(TargetId(source), TargetId(destination), ChainId(1), ChainVersion(version))


def write(
    request: object,
    data: bytes = b"",
    *,
    version: int = 1,
    chunk: ChunkId = K,
    kind: UpdateKind = UpdateKind.WRITE,
    tag: Tag | None = None,
    sync: bool = False,
) -> m.Write:
    """A client's update at offset 0."""
    ver = ChainVersion(version)
    return m.Write(request, ver, chunk, kind, 0, len(data), crc32c(data), tag, sync, data)


def forward(
    link: m.Route,
    sequence: int,
    version: int,
    data: bytes,
    *,
    kind: UpdateKind = UpdateKind.WRITE,
    settled: int = 0,
    chunk: ChunkId = K,
    tag: Tag | None = None,
) -> m.Forward:
    """A predecessor's update at offset 0."""
    ver = ChunkVersion(version)
    crc = crc32c(data)
    content = data if kind in (UpdateKind.WRITE, UpdateKind.REPLACE) else None
    return m.Forward(
        link, sequence, settled, chunk, kind, ver, 0, len(data), crc, tag, False, content
    )


def ack(
    link: m.Route,
    sequence: int,
    version: int,
    content: bytes,
    code: Code = Code.OK,
    chunk: ChunkId = K,
) -> m.Ack:
    """The answer to a forward; ``content`` is the whole chunk there."""
    ver = ChunkVersion(version)
    return m.Ack(link, sequence, chunk, ver, code, len(content), crc32c(content), "")


class Rig:
    """One replica."""

    def __init__(
        self,
        target: int,
        chain: Chain,
        *,
        limits: Limits | None = None,
        table: MemoryChunkStore | None = None,
        lease_ms: int = FOREVER,
    ) -> None:
        self.table = table if table is not None else MemoryChunkStore()
        self.now_ms = 0
        self.core = Replica(TargetId(target), chain, self.table, limits or Limits())
        self.started = self.core.start(0)
        self.step(m.LeaseRenewed(chain.version, lease_ms))

    def step(self, event: m.Event) -> list[m.Effect]:
        """What the core answers; nothing is performed."""
        return self.core.step(event, self.now_ms)

    def store(self, effects: Sequence[m.Effect]) -> list[m.Event]:
        """Perform what concerns the store; the completions."""
        events: list[m.Event] = []
        for e in effects:
            if isinstance(e, m.Stage):
                data = memoryview(e.data) if e.data is not None else None
                request = StageRequest(
                    e.chunk,
                    e.kind,
                    e.version,
                    e.offset,
                    e.length,
                    data,
                    e.checksum,
                    e.chain_version,
                    e.tag,
                )
                (result,) = self.table.stage([request])
                events.append(m.Staged(e.chunk, e.version, *result))
            elif isinstance(e, m.Commit):
                (code,) = self.table.commit([Commit(e.chunk, e.version, e.chain_version)])
                events.append(m.Committed(e.chunk, e.version, code))
            elif isinstance(e, m.Drop):
                self.table.drop([e.chunk])
            elif isinstance(e, m.PutChannels):
                self.table.put_channels([Channel(*row) for row in e.channels])
            elif isinstance(e, m.Flush):
                self.table.sync()
                events.append(m.Flushed(e.number))
        return events

    def settle(self, *events: m.Event) -> list[m.Effect]:
        """Step and store until quiet; everything that is not the store's."""
        queue, seen = list(events), []
        while queue:
            effects = self.step(queue.pop(0))
            queue += self.store(effects)
            seen += [e for e in effects if not isinstance(e, _STORED)]
        return seen

    def put(self, version: int, content: bytes, chunk: ChunkId = K, tag: Tag | None = None) -> None:
        """A committed chunk, as if from before."""
        data = memoryview(content)
        request = StageRequest(
            chunk,
            UpdateKind.REPLACE,
            ChunkVersion(version),
            0,
            len(content),
            data,
            crc32c(content),
            ChainVersion(1),
            tag,
        )
        (result,) = self.table.stage([request])
        assert result.code is Code.OK
        self.table.commit([Commit(chunk, ChunkVersion(version), ChainVersion(1))])

    def content(self, chunk: ChunkId = K) -> bytes | None:
        """What is committed; None without a chunk."""
        meta = self.table.meta(chunk)
        if meta is None or not meta.version:
            return None
        buffer = bytearray(meta.length)
        self.table.read([Piece(chunk, 0, meta.length)], [memoryview(buffer)])
        return bytes(buffer)


_STORED = (m.Stage, m.Commit, m.Drop, m.PutChannels, m.Flush)
