"""Which values of a namespace were used when, and which are to go next: the policy of eviction.

One object is for one namespace on one target. Values stand in columns, so that a batch of reads is
one pass. Time is handed in, in ms of any clock that does not go back.

The order is that of least recent use, exactly, as this target sees it. A *stamp* is a moment and a
place in it: of the keys of one batch the first counts as used last, because keys come in chains of
prefixes, and what is behind a gap in a prefix is worth nothing. (An LRU that is fed key by key does
the opposite.) What makes it approximate is around it: capacity is divided evenly among chains, a
head hears of the reads of its other replicas a little later, and a restart goes back to the last
snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.core.types import ChunkId

_STAMP_SHIFT = 12  # stamps in a millisecond: 4096, as many as there are items in a request
_CANDIDATES_MIN = 256
_CANDIDATES_SHARE = 64  # one in so many values is looked out for eviction at once
_NEVER = np.iinfo(np.int64).max

Slots = NDArray[np.int64]


class Recency:
    """The values of one namespace on one target."""

    def __init__(self) -> None:
        self.used_bytes = 0
        self._slots: dict[ChunkId, int] = {}
        self._chunks: list[ChunkId] = []  # by slot; what a free slot holds means nothing
        self._free: list[int] = []
        self._lengths = np.zeros(0, np.int64)
        self._born_ms = np.zeros(0, np.int64)  # a free slot: never
        self._stamps = np.zeros(0, np.int64)  # of the last use; a free slot: never
        self._pinned_ms = np.zeros(0, np.int64)  # until then
        self._newest = 0
        self._candidates = np.zeros(0, np.int64)  # slots, the longest unused first
        self._candidate_stamps = np.zeros(0, np.int64)  # what theirs were when they were chosen

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, chunk: ChunkId) -> bool:
        return chunk in self._slots

    # -- what happens ------------------------------------------------------------------------------

    def stored(self, chunk: ChunkId, length: int, now_ms: int) -> bool:
        """A value is there; True if it was not before."""
        if chunk in self._slots:
            return False
        self.restore(chunk, length, now_ms, self._stamp(now_ms, 1))
        return True

    def restore(self, chunk: ChunkId, length: int, born_ms: int, stamp: int) -> None:
        """A value with a past; one that is known keeps the past that it has."""
        if chunk in self._slots:
            return
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._slots[chunk] = slot
        self._chunks[slot] = chunk
        self._lengths[slot] = length
        self._born_ms[slot] = born_ms
        self._stamps[slot] = stamp
        self._pinned_ms[slot] = 0
        self.used_bytes += length

    def removed(self, chunks: Iterable[ChunkId]) -> None:
        """Values are gone; what was not known does not matter."""
        forget = self._slots.pop
        free = [slot for chunk in chunks if (slot := forget(chunk, -1)) >= 0]
        slots = np.array(free, np.int64)
        self._born_ms[slots] = self._stamps[slots] = _NEVER
        self._free += free
        self.used_bytes -= int(self._lengths[slots].sum())

    def used(self, chunks: Sequence[ChunkId], now_ms: int) -> None:
        """These were read, in one batch; those that are not there do not matter."""
        slots = self._slots_of(chunks)
        last = self._stamp(now_ms, len(chunks))
        stamps = np.arange(last, last - len(chunks), -1)
        there = slots >= 0
        # Backwards: of a key that comes twice, the earlier place counts.
        self._stamps[slots[there][::-1]] = stamps[there][::-1]

    def pin(self, chunk: ChunkId, until_ms: int) -> bool:
        """Keep a value until then (0: no longer); False if it is not there."""
        slot = self._slots.get(chunk)
        if slot is not None:
            self._pinned_ms[slot] = until_ms
        return slot is not None

    def _slots_of(self, chunks: Sequence[ChunkId]) -> Slots:
        """-1 for what is not there."""
        get = self._slots.get
        return np.fromiter((get(chunk, -1) for chunk in chunks), np.int64, len(chunks))

    def _stamp(self, now_ms: int, count: int) -> int:
        """The newest of ``count`` stamps, all newer than those given before."""
        first = max(now_ms << _STAMP_SHIFT, self._newest + 1)
        self._newest = first + count - 1
        return self._newest

    # -- what is to go -----------------------------------------------------------------------------

    def oldest(self, limit: int, bytes_wanted: int, now_ms: int) -> list[ChunkId]:
        """The longest unused values that make room for so much, at most ``limit``; none pinned.

        They stay known until they are :meth:`removed`. Asked again before that, it goes on behind
        them.
        """
        found = np.zeros(0, np.int64)
        looked_out = False
        while len(found) < limit and bytes_wanted > 0:
            if not len(self._candidates):
                if looked_out:
                    break
                looked_out = True
                self._look_out(now_ms, limit)
                if not len(self._candidates):
                    break
            slots = self._take(limit - len(found), bytes_wanted, now_ms, found)
            bytes_wanted -= int(self._lengths[slots].sum())
            found = np.concatenate((found, slots))
        return [self._chunks[slot] for slot in found.tolist()]

    def _take(self, limit: int, bytes_wanted: int, now_ms: int, taken: Slots) -> Slots:
        """Of the next candidates those that are unused still, and no more than are needed."""
        slots = self._candidates[:limit]
        unused = self._stamps[slots] == self._candidate_stamps[:limit]
        unused &= self._pinned_ms[slots] <= now_ms
        if len(taken):
            unused &= ~np.isin(slots, taken, kind="table")
        room = np.cumsum(np.where(unused, self._lengths[slots], 0))
        looked_at = min(int(np.searchsorted(room, bytes_wanted)) + 1, len(slots))
        self._candidates = self._candidates[looked_at:]
        self._candidate_stamps = self._candidate_stamps[looked_at:]
        chosen: Slots = slots[:looked_at][unused[:looked_at]]
        return chosen

    def _look_out(self, now_ms: int, least: int) -> None:
        """New candidates, in order: nothing that is not among them was used longer ago.

        ``least``: so many are wanted, if there are.
        """
        there = np.flatnonzero((self._stamps != _NEVER) & (self._pinned_ms <= now_ms))
        count = min(len(there), max(_CANDIDATES_MIN, len(self) // _CANDIDATES_SHARE, least))
        stamps = self._stamps[there]
        if count < len(there):
            chosen = np.argpartition(stamps, count - 1)[:count]
            there, stamps = there[chosen], stamps[chosen]
        order = np.argsort(stamps)
        self._candidates, self._candidate_stamps = there[order], stamps[order]

    def expired(self, before_ms: int, limit: int) -> list[ChunkId]:
        """Values that were stored before then, pinned or not."""
        slots = np.flatnonzero(self._born_ms < before_ms)[:limit]
        return [self._chunks[slot] for slot in slots.tolist()]

    def some(self, limit: int) -> list[ChunkId]:
        """Any values."""
        return [chunk for chunk, _ in zip(self._slots, range(limit), strict=False)]

    # -- how it is ---------------------------------------------------------------------------------

    def oldest_ms(self) -> int:
        """When the longest unused value was used; 0 if there is none."""
        return int(self._stamps.min()) >> _STAMP_SHIFT if self._slots else 0

    def used_ms(self, chunk: ChunkId) -> int:
        """When a value that is known was used last."""
        return int(self._stamps[self._slots[chunk]]) >> _STAMP_SHIFT

    def length(self, chunks: Sequence[ChunkId]) -> int:
        """Bytes of values that are known, together."""
        return int(self._lengths[self._slots_of(chunks)].sum())

    def pinned(self, now_ms: int) -> int:
        """How many values are pinned."""
        there = self._stamps != _NEVER
        return int(np.count_nonzero(there & (self._pinned_ms > now_ms)))

    def columns(self) -> tuple[bytes, Slots, Slots]:
        """Every value: the chunk ids, when each was stored, and when it was used, in ms."""
        slots = np.fromiter(self._slots.values(), np.int64, len(self._slots))
        return b"".join(self._slots), self._born_ms[slots], self._stamps[slots] >> _STAMP_SHIFT

    def _grow(self) -> None:
        old = len(self._chunks)
        new = max(256, 2 * old)
        self._chunks.extend([ChunkId(b"")] * (new - old))
        self._free.extend(range(new - 1, old - 1, -1))
        self._lengths = _longer(self._lengths, new, 0)
        self._born_ms = _longer(self._born_ms, new, _NEVER)
        self._stamps = _longer(self._stamps, new, _NEVER)
        self._pinned_ms = _longer(self._pinned_ms, new, 0)


def stamp_of(used_ms: int) -> int:
    """The first stamp of a moment, for :meth:`Recency.restore`."""
    return used_ms << _STAMP_SHIFT


def _longer(column: NDArray[Any], size: int, fill: int) -> NDArray[np.int64]:
    new = np.full(size, fill, np.int64)
    new[: len(column)] = column
    return new
