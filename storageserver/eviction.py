"""The KV values of a target: what is used, what is counted, and what has to go.

Every replica keeps the order of use (fs3/core/recency.py) and counts; the head evicts: values above
its share of the namespace's capacity, values older than the TTL, values of namespaces that were
dropped, and, when the disk gets full, the longest unused ones of the largest namespace.

A chain of one replica has nobody to agree with: its values are discarded in one batch of the store,
those that an update is under way for excepted. In a longer chain a removal is an update like any
other, and every replica makes it. Either way it is done in the reactor's turns, so many values a
turn, and a crash leaves a value there or not there.

Reactor thread only.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fs3.clock import Clock
from fs3.core import messages as m
from fs3.core.chunks import UpdateKind
from fs3.core.kv import NAMESPACE_FIRST, KvNamespace, NamespaceId, is_value
from fs3.core.recency import Recency, stamp_of
from fs3.core.replica import Replica
from fs3.core.types import Chain, ChunkId, ChunkVersion, TargetId, chunk_id, chunk_owner
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.reactor import Reactor

from .chunkstore.interface import ChunkStore, Piece, ReadResult, Usage
from .eviction_snapshot import Past, read_snapshot, rows_of, write_snapshot
from .settings import EvictionSettings

_log = get_logger(__name__)
_SCAN_PAGE = 2048
_BELOW = 0.02  # when a namespace is full, so much of its share is made free
_FULL = (
    1.25  # above so many shares nothing more is taken: eviction cannot keep up, or all is pinned
)


class Ward(Protocol):
    """The target whose values these are."""

    target: TargetId
    store: ChunkStore
    core: Replica | None
    chain: Chain | None

    def feed(self, events: Sequence[m.Event]) -> None:
        """Step the core with each event."""

    def usage(self) -> Usage:
        """Space taken and left."""


@dataclass(slots=True)
class Counts:
    """Of one namespace, since the process started."""

    hits: int = 0
    misses: int = 0
    read_bytes: int = 0
    found: int = 0
    not_found: int = 0
    stored: int = 0
    stored_bytes: int = 0
    evicted: int = 0
    evicted_bytes: int = 0
    expired: int = 0
    evicted_age_ms: int = 0


class Values:
    """See the module."""

    def __init__(
        self, ward: Ward, settings: EvictionSettings, *, reactor: Reactor, clock: Clock
    ) -> None:
        self._ward = ward
        self._settings = settings
        self._reactor = reactor
        self._clock = clock
        self._namespaces: Mapping[NamespaceId, KvNamespace] = {}
        self._end = 0  # ids below it that are not among them were dropped
        self.recency: dict[int, Recency] = defaultdict(Recency)
        self.counts: dict[int, Counts] = defaultdict(Counts)
        self._scanned_to: ChunkId | None = chunk_id(NAMESPACE_FIRST - 1, (1 << 128) - 1)
        self._due = False  # a turn of eviction is scheduled
        self._removing = 0  # removals on their way down the chain
        self._wanted_bytes = 0  # that the disk lacks
        self._snapshot: Path | None = None
        self._past = Past(0, {})
        self._write_at_ms = self.now_ms + self._write_pause_ms

    @property
    def now_ms(self) -> int:
        """The clock of all ages here."""
        return self._clock.monotonic_ms()

    @property
    def _write_pause_ms(self) -> int:
        return int(self._settings.snapshot_s * 1000)

    # --- what happens ----------------------------------------------------------------------------

    def know(self, namespaces: Mapping[NamespaceId, KvNamespace], end: int) -> None:
        """What routing says."""
        self._namespaces, self._end = namespaces, end

    def load(self, snapshot: Path) -> None:
        """Take in what the store holds, page after page; before its end nothing is evicted."""
        self._snapshot = snapshot
        self._past = read_snapshot(snapshot, self.now_ms, self._clock.wall_ns() // 1_000_000)
        self._load_page()

    def _load_page(self) -> None:
        if self._scanned_to is None or self._ward.store.failed:
            return
        try:
            page = self._ward.store.scan(self._scanned_to, _SCAN_PAGE)
        except Fs3Error as error:
            _log.warning("values_not_read", target=self._ward.target, reason=error.detail)
            return
        for chunk, meta in page:
            if meta.version:
                born_ms, used_ms = self._past.of(chunk)
                recency = self.recency[chunk_owner(chunk)]
                recency.restore(chunk, meta.length, born_ms, stamp_of(used_ms))
        self._scanned_to = page[-1][0] if len(page) == _SCAN_PAGE else None
        if self._scanned_to is not None:
            self._reactor.call_soon(self._load_page)
        else:
            self._past = Past(0, {})

    def write_down(self) -> None:
        """The order of use, onto the disk."""
        if self._snapshot is None or self._scanned_to is not None or not self.recency:
            return
        wall_ms = self._clock.wall_ns() // 1_000_000
        rows = rows_of(self.recency.values(), wall_ms - self.now_ms)
        write_snapshot(self._snapshot, rows, wall_ms)

    def read(self, pieces: Sequence[Piece], results: Sequence[ReadResult]) -> None:
        """A batch of reads was answered."""
        by_owner: dict[int, list[ChunkId]] = defaultdict(list)
        for (chunk, _, length), result in zip(pieces, results, strict=True):
            if not is_value(chunk):
                continue
            owner = chunk_owner(chunk)
            counts = self.counts[owner]
            if result.code is Code.OK:
                by_owner[owner].append(chunk)
                counts.hits += 1 if length else 0
                counts.found += 0 if length else 1
                counts.read_bytes += result.length
            elif result.code is Code.NO_CHUNK:
                counts.misses += 1 if length else 0
                counts.not_found += 0 if length else 1
        now_ms = self._clock.monotonic_ms()
        for owner, found in by_owner.items():
            self.recency[owner].used(found, now_ms)

    def looked_up(self, chunks: Sequence[ChunkId], found: int) -> None:
        """It was asked whether these are there. That is no use of them."""
        if is_value(chunks[0]):
            counts = self.counts[chunk_owner(chunks[0])]
            counts.found += found
            counts.not_found += len(chunks) - found

    def used(self, chunks: Sequence[ChunkId]) -> None:
        """A client has read these by itself, in this order."""
        by_owner: dict[int, list[ChunkId]] = defaultdict(list)
        for chunk in chunks:
            owner = chunk_owner(chunk)
            if owner in self.recency and chunk in self.recency[owner]:
                by_owner[owner].append(chunk)
        now_ms = self._clock.monotonic_ms()
        for owner, found in by_owner.items():
            recency, counts = self.recency[owner], self.counts[owner]
            counts.hits += len(found)
            counts.read_bytes += sum(recency.length(chunk) for chunk in found)
            recency.used(found, now_ms)

    def committed(self, chunks: Iterable[ChunkId]) -> None:
        """The committed versions of these may be others, or gone."""
        values = [chunk for chunk in chunks if is_value(chunk)]
        if not values:
            return
        store, now_ms = self._ward.store, self._clock.monotonic_ms()
        for chunk in values:
            meta = store.meta(chunk)
            owner = chunk_owner(chunk)
            recency = self.recency[owner]
            if meta is None or not meta.version:
                recency.removed(chunk)
            elif recency.stored(chunk, meta.length, now_ms):
                counts = self.counts[owner]
                counts.stored += 1
                counts.stored_bytes += meta.length
        self._evict_soon({chunk_owner(chunk) for chunk in values})

    def created(self, values: Sequence[tuple[ChunkId, int]]) -> None:
        """These are new, each with its length, and nothing else has changed."""
        now_ms = self._clock.monotonic_ms()
        for chunk, length in values:
            owner = chunk_owner(chunk)
            if self.recency[owner].stored(chunk, length, now_ms):
                counts = self.counts[owner]
                counts.stored += 1
                counts.stored_bytes += length
        self._evict_soon({chunk_owner(chunk) for chunk, _ in values})

    def refusal(self, chunk: ChunkId) -> tuple[Code, str] | None:
        """Why a new value cannot be taken; None if it can."""
        owner = NamespaceId(chunk_owner(chunk))
        namespace = self._namespaces.get(owner)
        if namespace is None:
            gone = owner < self._end
            return (Code.NOT_FOUND, f"KV namespace {owner:#x} was dropped") if gone else None
        share = self._share(namespace)
        if share and self.recency[owner].used_bytes > share * _FULL:
            detail = f"KV namespace {namespace.name!r} is full here, and nothing of it can go yet"
            return Code.NO_SPACE, detail
        return None

    def pin(self, chunk: ChunkId, seconds: int) -> Code:
        """Keep a value for so long; 0: no longer."""
        until_ms = self._clock.monotonic_ms() + 1000 * seconds if seconds else 0
        owner = chunk_owner(chunk)
        known = owner in self.recency and self.recency[owner].pin(chunk, until_ms)
        return Code.OK if known else Code.NO_CHUNK

    # --- eviction --------------------------------------------------------------------------------

    def background(self) -> None:
        """Every second: what follows from time, and from the disk."""
        usage = self._ward.usage()
        spare = int(usage.capacity_bytes * self._settings.free_percent / 100)
        self._wanted_bytes = max(0, spare - usage.free_bytes) if self.recency else 0
        if self.recency:
            self._turn_soon()
        if self._settings.snapshot_s and self.now_ms >= self._write_at_ms:
            self._write_at_ms = self.now_ms + self._write_pause_ms
            self.write_down()

    def _evict_soon(self, owners: Iterable[int]) -> None:
        """A turn of eviction follows if any of these has too much."""
        if not self._due and any(self._excess(owner) > 0 for owner in owners):
            self._turn_soon()

    def _turn_soon(self) -> None:
        if not self._due and self._scanned_to is None:
            self._due = True
            self._reactor.call_soon(self._turn)

    def _evicts(self) -> Replica | None:
        """The core, if it is the head of its chain and may act."""
        core = self._ward.core
        if core is None or not core.place.is_head or not core.serves(self._clock.monotonic_ms()):
            return None
        return core

    def _share(self, namespace: KvNamespace) -> int:
        """This chain's part of a namespace's capacity, in bytes; 0: no limit."""
        return -(-namespace.capacity_bytes // len(namespace.chains))

    def _excess(self, owner: int) -> int:
        """Bytes that a namespace has above its share."""
        namespace = self._namespaces.get(NamespaceId(owner))
        used = self.recency[owner].used_bytes
        if namespace is None:
            return used if owner < self._end else 0
        share = self._share(namespace)
        return max(0, used - share) if share else 0

    def _turn(self) -> None:
        self._due = False
        core = self._evicts()
        if core is None or self._removing:
            return
        now_ms = self._clock.monotonic_ms()
        limit = self._settings.values_per_turn
        chosen, more = self._choose(limit, now_ms)
        if not chosen:
            return
        if len(core.chain.replicas) == 1:
            self._discard(core, chosen, now_ms)
            if more:
                self._turn_soon()
        else:
            self._remove(core, chosen)

    def _choose(self, limit: int, now_ms: int) -> tuple[list[ChunkId], bool]:
        """Values to go in this turn, and whether the turn was too short for all."""
        chosen: list[ChunkId] = []
        for owner in list(self.recency):
            recency, left = self.recency[owner], limit - len(chosen)
            namespace = self._namespaces.get(NamespaceId(owner))
            excess = self._excess(owner)
            if namespace is None:
                chosen += recency.some(left) if excess else []
                continue
            counts = self.counts[owner]
            if namespace.ttl_s:
                old = recency.expired(now_ms - 1000 * namespace.ttl_s, left)
                counts.expired += len(old)
                chosen += old
                left -= len(old)
            if excess > 0:
                chosen += self._oldest(owner, left, excess + self._margin(namespace), now_ms)
        if self._wanted_bytes and len(chosen) < limit and self.recency:
            largest = max(self.recency, key=lambda owner: self.recency[owner].used_bytes)
            chosen += self._oldest(largest, limit - len(chosen), self._wanted_bytes, now_ms)
            self._wanted_bytes = 0
        return chosen, len(chosen) >= limit

    def _margin(self, namespace: KvNamespace) -> int:
        return int(self._share(namespace) * _BELOW)

    def _oldest(self, owner: int, limit: int, bytes_wanted: int, now_ms: int) -> list[ChunkId]:
        recency, counts = self.recency[owner], self.counts[owner]
        found = recency.oldest(limit, bytes_wanted, now_ms)
        if found:
            counts.evicted += len(found)
            counts.evicted_bytes += sum(recency.length(chunk) for chunk in found)
            counts.evicted_age_ms = now_ms - recency.used_ms(found[-1])
        return found

    def _discard(self, core: Replica, chosen: Sequence[ChunkId], now_ms: int) -> None:
        """No other replica: one batch of the store, without the core."""
        del now_ms
        idle = [chunk for chunk in chosen if chunk not in core.lanes]
        self._ward.store.discard(idle)
        for chunk in idle:
            self.recency[chunk_owner(chunk)].removed(chunk)

    def _remove(self, core: Replica, chosen: Sequence[ChunkId]) -> None:
        """Through the chain; the next turn begins when all are done."""
        chosen = chosen[: self._settings.removals_at_once]
        self._removing = len(chosen)
        version = core.chain.version
        numbers = itertools.count()
        self._ward.feed(
            [
                m.Write(
                    (self, next(numbers)),
                    version,
                    chunk,
                    UpdateKind.REMOVE,
                    0,
                    0,
                    0,
                    None,
                    False,
                    None,
                )
                for chunk in chosen
            ]
        )

    def finish(
        self,
        index: int,
        code: Code,
        version: ChunkVersion,
        length: int,
        checksum: int,
        detail: str,
    ) -> None:
        """See ``jobs.Job``: a removal has ended. One that failed is chosen again."""
        del index, code, version, length, checksum, detail
        self._removing -= 1
        if not self._removing:
            self._turn_soon()
