"""Puts on a chain of one replica: stored in one batch, without the core.

With one replica there is nobody to agree with, so that a put needs none of the core's steps: it is
there, committed, when the store has written it. Only what is plain goes this way: the target heads
its chain and serves, the value is not there, nothing is under way for its chunk, and its tag is the
newest of its channel. All else is the core's.

Reactor thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fs3.clock import Clock
from fs3.core import messages as m
from fs3.core.chunks import UpdateKind
from fs3.core.replica import Replica
from fs3.core.types import ChunkVersion
from fs3.errors import Code
from fs3.reactor import Reactor

from .chunkstore.interface import StageRequest

if TYPE_CHECKING:
    from .target import Target

_FIRST = ChunkVersion(1)


class Creations:
    """Of one target."""

    def __init__(self, target: Target, reactor: Reactor, clock: Clock) -> None:
        self._target = target
        self._reactor = reactor
        self._clock = clock

    def take(self, writes: list[m.Write]) -> list[m.Write]:
        """Store what can be stored at once, and answer it; what is left is returned."""
        core = self._alone()
        if core is None:
            return writes
        plain = [self._is_plain(core, write) for write in writes]
        taken = [write for write, is_plain in zip(writes, plain, strict=True) if is_plain]
        if taken:
            self._store(core, taken)
        return [write for write, is_plain in zip(writes, plain, strict=True) if not is_plain]

    def _alone(self) -> Replica | None:
        """The core, if it may answer updates and no other replica has to hear of them."""
        target, core = self._target, self._target.core
        if core is None or len(core.chain.replicas) != 1 or not core.place.is_head:
            return None
        if target.repairs.running is not None or not core.serves(self._clock.monotonic_ms()):
            return None
        return core

    def _is_plain(self, core: Replica, write: m.Write) -> bool:
        tag, store = write.tag, self._target.store
        if write.kind is not UpdateKind.CREATE or write.sync or tag is None:
            return False
        if write.chain_version != core.chain.version or write.chunk in core.lanes:
            return False
        known = store.channel(tag.client, tag.channel)
        if known is not None and (known.pending or known.sequence >= tag.sequence):
            return False
        return store.meta(write.chunk) is None

    def _store(self, core: Replica, writes: Sequence[m.Write]) -> None:
        store, version = self._target.store, core.chain.version
        results = store.create(
            [
                StageRequest(
                    write.chunk,
                    UpdateKind.WRITE,
                    _FIRST,
                    0,
                    write.length,
                    write.data.view,
                    write.checksum,
                    version,
                    write.tag,
                )
                for write in writes
            ]
        )
        stored = [
            (write.chunk, result.length)
            for write, result in zip(writes, results, strict=True)
            if result.code is Code.OK
        ]
        self._target.values.created(stored)
        if store.failed is not None:
            self._reactor.call_soon(self._target.fail, store.failed)
        again: list[m.Event] = []
        for write, result in zip(writes, results, strict=True):
            if result.code is Code.EXISTS:  # its key came twice in this batch
                again.append(write)
                continue
            job, index = write.request
            number = _FIRST if result.code is Code.OK else ChunkVersion(0)
            job.finish(index, result.code, number, result.length, result.checksum, result.detail)
        if again:
            self._target.feed(again)
