"""A target's disk: the memory twin of the chunk store, with a queue and with latency.

Requests are performed in the order they were put, each some time after the one before. The death of
the process loses what was not performed; a loss of power also what was not synced, but for a
prefix. Then ``epoch`` has changed, and what was put before it never completes.
"""

from __future__ import annotations

from collections.abc import Callable

from fs3.core import messages as m
from fs3.storageserver.chunkstore.interface import Channel, Commit, Piece, StageRequest
from fs3.storageserver.chunkstore.memory import MemoryChunkStore

from .swarm import Settings
from .world import Violation, World

CAPACITY_BYTES = 1 << 40
Stored = m.Stage | m.Commit | m.Drop | m.PutChannels | m.Flush


class Disk:
    """One store behind a queue."""

    def __init__(self, world: World, settings: Settings) -> None:
        self.store = MemoryChunkStore(CAPACITY_BYTES)
        self.outstanding = 0
        self._world = world
        self._latency_ms = settings.disk_ms_max
        self._epoch = 0
        self._free_at_ms = 0

    def put(self, effect: Stored, done: Callable[[m.Event | None], None]) -> None:
        """Perform it in its turn, then call ``done`` with the completion, if it has one."""
        world, epoch = self._world, self._epoch
        self.outstanding += 1
        self._free_at_ms = max(self._free_at_ms, world.now_ms) + self._delay_ms()

        def perform() -> None:
            if epoch != self._epoch:
                return
            event = self._perform(effect)
            if isinstance(effect, m.Flush) or (isinstance(effect, m.Stage) and effect.sync):
                world.after(self._delay_ms(), lambda: sync(event))
            else:
                finish(event)

        def sync(event: m.Event | None) -> None:
            if epoch == self._epoch:
                self.store.sync()
                finish(event)

        def finish(event: m.Event | None) -> None:
            self.outstanding -= 1
            done(event)

        world.after(self._free_at_ms - world.now_ms, perform)

    def _delay_ms(self) -> int:
        return self._world.random.randint(0, self._latency_ms)

    def _perform(self, effect: Stored) -> m.Event | None:
        match effect:
            case m.Stage():
                request = StageRequest(
                    effect.chunk,
                    effect.kind,
                    effect.version,
                    effect.offset,
                    effect.length,
                    memoryview(effect.data) if effect.data is not None else None,
                    effect.checksum,
                    effect.chain_version,
                    effect.tag,
                )
                (result,) = self.store.stage([request])
                return m.Staged(effect.chunk, effect.version, *result)
            case m.Commit():
                (code,) = self.store.commit([Commit(*effect)])
                return m.Committed(effect.chunk, effect.version, code)
            case m.Drop():
                self.store.drop([effect.chunk])
                return None
            case m.PutChannels():
                self.store.put_channels([Channel(*row) for row in effect.channels])
                return None
            case m.Flush():
                return m.Flushed(effect.number)

    def lose(self, *, power: bool) -> None:
        """The process dies, perhaps the machine."""
        self._epoch += 1
        self.outstanding = 0
        self._free_at_ms = 0
        if power:
            self.store.power_loss(self._world.random)
        else:
            self.store.crash()

    def content(self, forward: m.Forward) -> bytes:
        """What a forward without data brings."""
        meta = self.store.meta(forward.chunk)
        pending = meta is not None and meta.pending_version == forward.version
        buffer = bytearray(forward.length)
        piece = Piece(forward.chunk, 0, forward.length)
        (found,) = self.store.read([piece], [memoryview(buffer)], pending=pending)
        if found.length != forward.length or found.crc != forward.checksum:
            raise Violation(f"the store has no content for {forward}")
        return bytes(buffer)

    def read(self, chunk: bytes, *, pending: bool = False) -> bytes | None:
        """The chunk's content; None: there is none."""
        buffer = bytearray(64)
        (found,) = self.store.read([Piece(chunk, 0, 64)], [memoryview(buffer)], pending=pending)
        return bytes(buffer[: found.length]) if found.version else None
