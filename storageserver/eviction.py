"""What has to go of the KV values of a target (values.py), and how it goes.

The head evicts: values above its share of the namespace's capacity, values older than the TTL,
values of namespaces that were dropped, and, when the disk gets full, the longest unused ones of
the largest namespace.

A chain of one replica has nobody to agree with: its values are discarded in one batch of the store,
those that an update is under way for excepted. In a longer chain a removal is an update like any
other, and every replica makes it. Either way it is done in the reactor's turns, so many values a
turn, and a crash leaves a value there or not there.

Reactor thread only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fs3.core import messages as m
from fs3.core.chunks import UpdateKind
from fs3.core.kv import KvNamespace, NamespaceId
from fs3.core.recency import Recency
from fs3.core.replica import Replica
from fs3.core.types import Chain, ChunkId, ChunkVersion, TargetId
from fs3.errors import Code
from fs3.reactor import Reactor

from .chunkstore.interface import ChunkStore, Usage
from .settings import EvictionSettings

_BELOW = 0.02  # when a namespace is full, so much of its share is made free


class Ward(Protocol):
    """The target whose values these are."""

    target: TargetId
    store: ChunkStore
    core: Replica | None
    chain: Chain | None

    def feed(self, events: Sequence[m.Event]) -> None:
        """Step the core with each event."""

    def tell(self, message: m.Message) -> None:
        """Send it to a neighbour; it may be lost."""

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
    heard: int = 0


class Held(Protocol):
    """The values that there are."""

    namespaces: Mapping[NamespaceId, KvNamespace]
    recency: dict[int, Recency]
    counts: dict[int, Counts]

    @property
    def now_ms(self) -> int:
        """The clock of all ages."""

    @property
    def loaded(self) -> bool:
        """All that the store holds is known."""

    def excess(self, owner: int) -> int:
        """Bytes that a namespace has above its share."""

    def forget(self, chunks: Sequence[ChunkId]) -> None:
        """These are gone."""


class Eviction:
    """See the module."""

    def __init__(
        self, ward: Ward, values: Held, settings: EvictionSettings, *, reactor: Reactor
    ) -> None:
        self._ward = ward
        self._values = values
        self._settings = settings
        self._reactor = reactor
        self._due = False  # a turn is scheduled
        self._removing = 0  # removals on their way down the chain
        self._wanted_bytes = 0  # that the disk lacks

    def background(self) -> None:
        """Every second: what follows from time, and from the disk."""
        usage, known = self._ward.usage(), self._values.recency
        spare = int(usage.capacity_bytes * self._settings.free_percent / 100)
        self._wanted_bytes = max(0, spare - usage.free_bytes) if known else 0
        if known:
            self._turn_soon()

    def evict_soon(self, owners: Iterable[int]) -> None:
        """A turn of eviction follows if any of these has too much."""
        if not self._due and any(self._values.excess(owner) > 0 for owner in owners):
            self._turn_soon()

    def _turn_soon(self) -> None:
        if not self._due and self._values.loaded:
            self._due = True
            self._reactor.call_soon(self._turn)

    def _evicts(self) -> Replica | None:
        """The core, if it is the head of its chain and may act."""
        core = self._ward.core
        if core is None or not core.place.is_head or not core.serves(self._values.now_ms):
            return None
        return core

    def _turn(self) -> None:
        self._due = False
        core = self._evicts()
        if core is None or self._removing:
            return
        now_ms = self._values.now_ms
        limit = self._settings.values_per_turn
        chosen, more = self._choose(limit, now_ms)
        if not chosen:
            return
        if len(core.chain.replicas) == 1:
            self._discard(core, chosen)
            if more:
                self._turn_soon()
        else:
            self._remove(core, chosen)

    def _choose(self, limit: int, now_ms: int) -> tuple[list[ChunkId], bool]:
        """Values to go in this turn, and whether the turn was too short for all."""
        values = self._values
        chosen: list[ChunkId] = []
        for owner in list(values.recency):
            recency, left = values.recency[owner], limit - len(chosen)
            namespace = values.namespaces.get(NamespaceId(owner))
            excess = values.excess(owner)
            if namespace is None:
                chosen += recency.some(left) if excess else []
                continue
            counts = values.counts[owner]
            if namespace.ttl_s:
                old = recency.expired(now_ms - 1000 * namespace.ttl_s, left)
                counts.expired += len(old)
                chosen += old
                left -= len(old)
            if excess > 0:
                chosen += self._oldest(owner, left, excess + _margin(namespace), now_ms)
        if self._wanted_bytes and len(chosen) < limit and values.recency:
            largest = max(values.recency, key=lambda owner: values.recency[owner].used_bytes)
            chosen += self._oldest(largest, limit - len(chosen), self._wanted_bytes, now_ms)
            self._wanted_bytes = 0
        return chosen, len(chosen) >= limit

    def _oldest(self, owner: int, limit: int, bytes_wanted: int, now_ms: int) -> list[ChunkId]:
        recency, counts = self._values.recency[owner], self._values.counts[owner]
        found = recency.oldest(limit, bytes_wanted, now_ms)
        if found:
            counts.evicted += len(found)
            counts.evicted_bytes += recency.length(found)
            counts.evicted_age_ms = now_ms - recency.used_ms(found[-1])
        return found

    def _discard(self, core: Replica, chosen: Sequence[ChunkId]) -> None:
        """No other replica: one batch of the store, without the core."""
        lanes = core.lanes
        idle = [chunk for chunk in chosen if chunk not in lanes] if lanes else chosen
        self._ward.store.discard(idle)
        self._values.forget(idle)

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


def share_of(namespace: KvNamespace) -> int:
    """A chain's part of a namespace's capacity, in bytes; 0: no limit."""
    return -(-namespace.capacity_bytes // len(namespace.chains))


def _margin(namespace: KvNamespace) -> int:
    return int(share_of(namespace) * _BELOW)
