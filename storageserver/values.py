"""The KV values of a target: which there are, what is used, what is counted.

Every replica keeps the order of use (fs3/core/recency.py) and counts, and tells the head what it
has seen being used (fs3/core/sightings.py). What has to go is decided in eviction.py.

Reactor thread only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fs3.clock import Clock
from fs3.core.kv import NAMESPACE_FIRST, KvNamespace, NamespaceId, is_value
from fs3.core.recency import Recency, stamp_of
from fs3.core.sightings import Sightings
from fs3.core.types import ChunkId, chunk_id, chunk_owner
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger
from fs3.reactor import Reactor

from .chunkstore.interface import Piece, ReadResult
from .eviction import Counts, Eviction, Ward, share_of
from .eviction_snapshot import Past, read_snapshot, rows_of, write_snapshot
from .settings import EvictionSettings

_log = get_logger(__name__)
_SCAN_PAGE = 2048
_OWNER_BYTES = 8  # of a chunk id, at its beginning
_FULL = (
    1.25  # above so many shares nothing more is taken: eviction cannot keep up, or all is pinned
)


class Values:
    """See the module."""

    def __init__(
        self, ward: Ward, settings: EvictionSettings, *, reactor: Reactor, clock: Clock
    ) -> None:
        self._ward = ward
        self._settings = settings
        self._reactor = reactor
        self._clock = clock
        self.namespaces: Mapping[NamespaceId, KvNamespace] = {}
        self._end = 0  # ids below it that are not among them were dropped
        self.recency: dict[int, Recency] = defaultdict(Recency)
        self.counts: dict[int, Counts] = defaultdict(Counts)
        self._sightings = Sightings()
        self._scanned_to: ChunkId | None = chunk_id(NAMESPACE_FIRST - 1, (1 << 128) - 1)
        self._snapshot: Path | None = None
        self._past = Past(0, {})
        self._write_at_ms = self.now_ms + self._write_pause_ms
        self._eviction = Eviction(ward, self, settings, reactor=reactor)

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
        self.namespaces, self._end = namespaces, end

    def load(self, snapshot: Path) -> None:
        """Take in what the store holds, page after page; before its end nothing is evicted."""
        self._snapshot = snapshot
        self._past = read_snapshot(snapshot, self.now_ms, self._clock.wall_ns() // 1_000_000)
        self._load_page()

    @property
    def loaded(self) -> bool:
        """All that the store holds is known."""
        return self._scanned_to is None

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
        found: list[ChunkId] = []
        for (chunk, _, length), result in zip(pieces, results, strict=True):
            if not is_value(chunk):
                continue
            counts = self.counts[chunk_owner(chunk)]
            if result.code is Code.OK:
                if length:  # else it was asked whether it is there, which is no use of it
                    found.append(chunk)
                counts.hits += 1 if length else 0
                counts.found += 0 if length else 1
                counts.read_bytes += result.length
            elif result.code is Code.NO_CHUNK:
                counts.misses += 1 if length else 0
                counts.not_found += 0 if length else 1
        if found:
            self._note(found)
            self._say_what_was_used(found)

    def looked_up(self, chunks: Sequence[ChunkId], found: int) -> None:
        """It was asked whether these are there. That is no use of them."""
        if is_value(chunks[0]):
            counts = self.counts[chunk_owner(chunks[0])]
            counts.found += found
            counts.not_found += len(chunks) - found

    def used(self, chunks: Sequence[ChunkId]) -> None:
        """A client has read these by itself, in this order."""
        found = self._known(chunks)
        for owner, mine in _by_owner(found).items():
            counts = self.counts[owner]
            counts.hits += len(mine)
            counts.read_bytes += self.recency[owner].length(mine)
        if found:
            self._note(found)
            self._say_what_was_used(found)

    def heard(self, chunks: Sequence[ChunkId]) -> None:
        """Another replica says that these were used there; it has counted them."""
        found = self._known(chunks)
        self._note(found)
        for owner, mine in _by_owner(found).items():
            self.counts[owner].heard += len(mine)

    def _known(self, chunks: Sequence[ChunkId]) -> list[ChunkId]:
        recency = self.recency
        return [c for c in chunks if (owner := chunk_owner(c)) in recency and c in recency[owner]]

    def _note(self, chunks: Sequence[ChunkId]) -> None:
        now_ms = self.now_ms
        for owner, mine in _by_owner(chunks).items():
            self.recency[owner].used(mine, now_ms)

    def _say_what_was_used(self, chunks: Sequence[ChunkId] = ()) -> None:
        core, now_ms = self._ward.core, self.now_ms
        place = core.place if core is not None else None
        if place is not None and not place.is_head:
            self._sightings.see(chunks, now_ms)
        message = self._sightings.tell(place, now_ms)
        if message is not None:
            self._ward.tell(message)

    def tick(self) -> None:
        """Every few tens of milliseconds."""
        if self._sightings:
            self._say_what_was_used()

    def committed(self, chunks: Iterable[ChunkId]) -> None:
        """The committed versions of these may be others, or gone."""
        stored: list[tuple[ChunkId, int]] = []
        gone: list[ChunkId] = []
        for chunk in chunks:
            if is_value(chunk):
                meta = self._ward.store.meta(chunk)
                if meta is None or not meta.version:
                    gone.append(chunk)
                else:
                    stored.append((chunk, meta.length))
        self.forget(gone)
        if stored:
            self.created(stored)

    def created(self, values: Sequence[tuple[ChunkId, int]]) -> None:
        """These are new, each with its length, and nothing else has changed."""
        now_ms = self._clock.monotonic_ms()
        for chunk, length in values:
            owner = chunk_owner(chunk)
            if self.recency[owner].stored(chunk, length, now_ms):
                counts = self.counts[owner]
                counts.stored += 1
                counts.stored_bytes += length
        self._eviction.evict_soon({chunk_owner(chunk) for chunk, _ in values})

    def forget(self, chunks: Sequence[ChunkId]) -> None:
        """These are gone."""
        for owner, mine in _by_owner(chunks).items():
            self.recency[owner].removed(mine)

    def refusal(self, chunk: ChunkId) -> tuple[Code, str] | None:
        """Why a new value cannot be taken; None if it can."""
        owner = NamespaceId(chunk_owner(chunk))
        namespace = self.namespaces.get(owner)
        if namespace is None:
            gone = owner < self._end
            return (Code.NOT_FOUND, f"KV namespace {owner:#x} was dropped") if gone else None
        share = share_of(namespace)
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

    def background(self) -> None:
        """Every second: what follows from time, and from the disk."""
        self._eviction.background()
        if self._settings.snapshot_s and self.now_ms >= self._write_at_ms:
            self._write_at_ms = self.now_ms + self._write_pause_ms
            self.write_down()

    def excess(self, owner: int) -> int:
        """Bytes that a namespace has above its share."""
        namespace = self.namespaces.get(NamespaceId(owner))
        used = self.recency[owner].used_bytes
        if namespace is None:
            return used if owner < self._end else 0
        share = share_of(namespace)
        return max(0, used - share) if share else 0


def _by_owner(chunks: Sequence[ChunkId]) -> dict[int, list[ChunkId]]:
    """The same, in their order, by the namespace that they are of."""
    found: dict[bytes, list[ChunkId]] = defaultdict(list)
    for chunk in chunks:
        found[chunk[:_OWNER_BYTES]].append(chunk)
    return {int.from_bytes(owner, "big"): mine for owner, mine in found.items()}
