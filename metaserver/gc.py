"""Removing the chunks of removed files, in bounded rounds.

A round takes the oldest files of the queue, asks each of their chains once to drop all their
chunks, many files in one call, and forgets the files that every chain has dropped. A chain that is
down keeps its files in the queue and is left alone for a while, longer each time; files of other
chains go on. Everything may be repeated: inode ids are never used again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fs3.clock import Clock
from fs3.core.types import ChainId, InodeId
from fs3.errors import Fs3Error
from fs3.log import get_logger

from .chunk_control import ChunkControl, TrimItem
from .garbage import Garbage, gc_done, gc_next
from .kv.interface import Engine, Transaction
from .settings import GcSettings

_POSTPONED_MAX = 10_000  # files of chains that are down which a round looks past
_NS_PER_MS = 1_000_000
_log = get_logger(__name__)


class _Down(NamedTuple):
    """A chain that did not answer."""

    until_ms: int
    pause_ms: int


class GarbageCollector:
    """One thread calls :meth:`round`."""

    def __init__(
        self, engine: Engine, control: ChunkControl, clock: Clock, settings: GcSettings
    ) -> None:
        self._engine = engine
        self._control = control
        self._clock = clock
        self._settings = settings
        self._down: dict[ChainId, _Down] = {}
        self._postponed: set[InodeId] = set()

    def round(self) -> int:
        """Take up files as long as some can be freed; how many were."""
        freed = 0
        while (batch := self._next_batch()) and (count := self._free(batch)):
            freed += count
        return freed

    def _next_batch(self) -> list[Garbage]:
        now_ms = self._clock.monotonic_ms()
        down = {chain for chain, state in self._down.items() if now_ms < state.until_ms}
        limit = self._settings.files + min(len(self._postponed), _POSTPONED_MAX)
        queue = self._engine.run(
            gc_next, limit, self._clock.wall_ns(), self._settings.delay_ms * _NS_PER_MS
        )
        batch = [g for g in queue if down.isdisjoint(g.inode.layout.chains)]
        self._postponed = {g.inode.inode for g in queue} - {g.inode.inode for g in batch}
        return batch[: self._settings.files]

    def _free(self, batch: list[Garbage]) -> int:
        by_chain: dict[ChainId, list[InodeId]] = {}
        for garbage in batch:
            for chain in dict.fromkeys(garbage.inode.layout.chains):
                by_chain.setdefault(chain, []).append(garbage.inode.inode)
        failed = {chain for chain, inodes in by_chain.items() if not self._drop(chain, inodes)}
        done = [g for g in batch if failed.isdisjoint(g.inode.layout.chains)]
        self._engine.run(_forget, done)
        return len(done)

    def _drop(self, chain: ChainId, inodes: Iterable[InodeId]) -> bool:
        """Drop all chunks of ``inodes`` on ``chain``; False if it does not work now."""
        items = [TrimItem(inode) for inode in inodes]
        try:
            removed = self._control.trim(chain, items, self._settings.chunks, wait_s=0)
        except Fs3Error as error:
            before = self._down.get(chain)
            pause_ms = min(
                2 * before.pause_ms if before else self._settings.interval_ms,
                self._settings.retry_ms_max,
            )
            self._down[chain] = _Down(self._clock.monotonic_ms() + pause_ms, pause_ms)
            _log.warning("gc_postponed", chain=chain, error=str(error), again_in_ms=pause_ms)
            return False
        self._down.pop(chain, None)
        _log.debug("gc_freed", chain=chain, files=len(items), chunks=removed)
        return True


def _forget(txn: Transaction, done: Iterable[Garbage]) -> None:
    for garbage in done:
        gc_done(txn, garbage)
