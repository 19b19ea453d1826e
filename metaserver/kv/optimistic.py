"""Optimistic concurrency, for engines that keep their commits in this process.

A transaction reads a :class:`View` (one snapshot of the store, numbered), lays its own writes over
it, and remembers what it read. At commit the engine asks its :class:`ConflictWindow` whether
anything read was written by a commit later than the view. The window holds the recent commits' keys
only, never values; a transaction older than the window is refused, as it cannot be checked.

Invariants: a view never changes; ``Writes.cleared`` are applied before ``Writes.points``; a commit
enters the window in the order of its version, under the engine's lock.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from operator import itemgetter

from fs3.errors import Code, Fs3Error

from .interface import (
    KEYS_END,
    TRANSACTION_BYTES_MAX,
    Row,
    Transaction,
    check_key,
    check_range,
    check_value,
    counter_bytes,
    counter_value,
)

WINDOW_KEYS_MAX = 200_000  # about 30 MB, and some ten seconds of a busy metaserver
_ROW_BYTES = 16  # what a write counts for beside its key and value

Range = tuple[bytes, bytes]
Point = bytes | int | None  # set, add to the counter, clear


class View(ABC):
    """A snapshot of the store as of ``version``."""

    __slots__ = ()
    version: int

    @abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """The value of ``key`` in this snapshot."""

    @abstractmethod
    def scan(self, begin: bytes, end: bytes, reverse: bool) -> Iterator[Row]:
        """The rows of ``[begin, end)`` in this snapshot, lazily."""


class Writes:
    """What a transaction does: first ``cleared``, then ``points``."""

    __slots__ = ("cleared", "durable", "points")

    def __init__(self) -> None:
        self.points: dict[bytes, Point] = {}
        self.cleared: list[Range] = []
        self.durable = True  # on stable storage before the commit returns

    def covers(self, key: bytes) -> bool:
        """Whether ``key`` lies in a range cleared here."""
        return any(begin <= key < end for begin, end in self.cleared)


def merged(stored: bytes | None, point: Point) -> bytes | None:
    """What a key holds after ``point`` when it held ``stored`` before."""
    return counter_bytes(counter_value(stored) + point) if isinstance(point, int) else point


class Reads:
    """What a transaction read, so far as it matters for its commit."""

    __slots__ = ("keys", "ranges")

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.ranges: list[Range] = []


class Footprint:
    """Which keys a commit changed: what the window keeps of it, values not among them."""

    __slots__ = ("cleared", "keys", "version")

    def __init__(self, version: int, writes: Writes) -> None:
        self.version = version
        self.keys = list(writes.points)
        self.cleared = writes.cleared

    @property
    def size(self) -> int:
        """What it counts for in a window."""
        return len(self.keys) + len(self.cleared)


class Committer(ABC):
    """The engine's half of a commit."""

    @abstractmethod
    def commit(self, read_version: int, reads: Reads, writes: Writes) -> int:
        """Check ``reads``, store ``writes``; the version given to them."""


class OptimisticTransaction(Transaction):
    """A transaction over a view. The engine is asked again only at commit."""

    __slots__ = ("_bytes", "_committer", "_done", "_reads", "_view", "_writes")

    def __init__(self, view: View, committer: Committer) -> None:
        self._view = view
        self._committer = committer
        self._reads = Reads()
        self._writes = Writes()
        self._bytes = 0
        self._done = False

    @property
    def read_version(self) -> int:
        return self._view.version

    def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        self._check_usable()
        if key >= KEYS_END:
            check_key(key)
        points = self._writes.points
        own = key in points
        if own:
            written = points[key]
            if not isinstance(written, int):
                return written
        elif self._writes.cleared and self._writes.covers(key):
            return None
        if not snapshot:
            self._reads.keys.add(key)
        stored = self._view.get(key)
        return merged(stored, points[key]) if own else stored

    def range(
        self,
        begin: bytes,
        end: bytes,
        limit: int = 0,
        *,
        reverse: bool = False,
        snapshot: bool = False,
    ) -> list[Row]:
        self._check_usable()
        check_range(begin, end)
        found = self._view.scan(begin, end, reverse)
        if self._writes.points or self._writes.cleared:
            found = self._with_own_writes(found, begin, end, reverse)
        rows = list(islice(found, limit)) if limit else list(found)
        if not snapshot:
            if limit and len(rows) == limit:
                last = rows[-1][0]
                begin, end = (last, end) if reverse else (begin, last + b"\0")
            self._reads.ranges.append((begin, end))
        return rows

    def _with_own_writes(
        self, stored: Iterator[Row], begin: bytes, end: bytes, reverse: bool
    ) -> Iterator[Row]:
        """``stored`` with this transaction's writes laid over it."""
        points = self._writes.points
        own: list[Row] = []
        for key in sorted((k for k in points if begin <= k < end), reverse=reverse):
            value = self.get(key, snapshot=True)
            if value is not None:
                own.append((key, value))
        kept = (r for r in stored if r[0] not in points and not self._writes.covers(r[0]))
        return heapq.merge(kept, own, key=itemgetter(0), reverse=reverse)

    def set(self, key: bytes, value: bytes) -> None:
        check_value(value)
        self._count(key, len(value))
        self._writes.points[key] = value

    def clear(self, key: bytes) -> None:
        self._count(key, 0)
        self._writes.points[key] = None

    def clear_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)
        self._check_usable()
        self._grow(len(begin) + len(end) + _ROW_BYTES)
        points = self._writes.points
        for key in [k for k in points if begin <= k < end]:
            del points[key]
        self._writes.cleared.append((begin, end))

    def add(self, key: bytes, delta: int) -> None:
        self._count(key, 8)
        points = self._writes.points
        if key not in points:
            # A counter in a range that this transaction cleared starts again from nothing.
            points[key] = counter_bytes(delta) if self._writes.covers(key) else delta
            return
        written = points[key]
        points[key] = written + delta if isinstance(written, int) else merged(written, delta)

    def add_read_conflict(self, key: bytes) -> None:
        self._check_usable()
        check_key(key)
        self._reads.keys.add(key)

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        self._check_usable()
        check_range(begin, end)
        self._reads.ranges.append((begin, end))

    def commit(self, *, durable: bool = True) -> int:
        self._check_usable()
        self._done = True
        self._writes.durable = durable
        if not self._writes.points and not self._writes.cleared:
            return self._view.version
        return self._committer.commit(self._view.version, self._reads, self._writes)

    def _check_usable(self) -> None:
        if self._done:
            raise Fs3Error(Code.INVALID, "the transaction was already committed; begin another")

    def _count(self, key: bytes, value_bytes: int) -> None:
        self._check_usable()
        check_key(key)
        self._grow(len(key) + value_bytes + _ROW_BYTES)

    def _grow(self, more_bytes: int) -> None:
        self._bytes += more_bytes
        if self._bytes > TRANSACTION_BYTES_MAX:
            raise Fs3Error(
                Code.TOO_LARGE,
                f"the transaction writes {self._bytes} bytes: at most"
                f" {TRANSACTION_BYTES_MAX} are allowed; do the work in pieces",
            )


class ConflictWindow:
    """What recent commits changed. Guarded by its engine's lock."""

    def __init__(self, version: int, keys_max: int = WINDOW_KEYS_MAX) -> None:
        self.floor = version  # what is older cannot be checked any more
        self._keys_max = keys_max
        self._keys = 0  # in all of _commits; a cleared range counts as one
        self._latest: dict[bytes, int] = {}  # key -> version of the last commit that wrote it
        self._commits: deque[Footprint] = deque()  # oldest first
        self._clears: deque[Footprint] = deque()  # those of them that clear ranges

    def beaten_by(self, read_version: int, reads: Reads) -> int:
        """The version of a commit after ``read_version`` that wrote what was read; 0: none."""
        self.check_age(read_version)
        latest = self._latest
        for key in reads.keys:
            version = latest.get(key, 0)
            if version > read_version:
                return version
        for footprint in _after(self._clears, read_version):
            if _touches(reads, footprint.cleared):
                return footprint.version
        if reads.ranges:
            for footprint in _after(self._commits, read_version):
                for key in footprint.keys:
                    if any(begin <= key < end for begin, end in reads.ranges):
                        return footprint.version
        return 0

    def check_age(self, version: int) -> None:
        """Refuse a transaction that reads a ``version`` from before the window."""
        if version < self.floor:
            raise Fs3Error(
                Code.CONFLICT,
                f"the transaction is too old: it reads version {version},"
                f" changes are known from {self.floor} on",
            )

    def changed_since(self, version: int, begin: bytes, end: bytes) -> set[bytes]:
        """The keys of ``[begin, end)`` that commits after ``version`` changed."""
        return {
            key
            for footprint in _after(self._commits, version)
            for key in footprint.keys
            if begin <= key < end
        }

    def add(self, footprint: Footprint) -> list[Footprint]:
        """Remember a commit; what left the window for it, oldest first."""
        self._commits.append(footprint)
        for key in footprint.keys:
            self._latest[key] = footprint.version
        if footprint.cleared:
            self._clears.append(footprint)
        self._keys += footprint.size
        left = []
        while self._keys > self._keys_max and len(self._commits) > 1:
            left.append(self._forget_oldest())
        return left

    def widen(self, footprint: Footprint, keys: Iterable[bytes]) -> None:
        """Add keys that were found in the ranges which a commit in the window cleared."""
        before = footprint.size
        footprint.keys += keys
        self._keys += footprint.size - before

    def _forget_oldest(self) -> Footprint:
        footprint = self._commits.popleft()
        for key in footprint.keys:
            if self._latest.get(key) == footprint.version:
                del self._latest[key]
        if footprint.cleared:
            self._clears.popleft()
        self._keys -= footprint.size
        self.floor = footprint.version
        return footprint


def _after(footprints: deque[Footprint], version: int) -> Iterator[Footprint]:
    """The commits after ``version``, latest first."""
    return takewhile(lambda footprint: footprint.version > version, reversed(footprints))


def _touches(reads: Reads, cleared: list[Range]) -> bool:
    """Whether any key or range read lies in, or crosses, a cleared range."""
    return any(
        any(begin <= key < end for key in reads.keys)
        or any(low < end and begin < high for low, high in reads.ranges)
        for begin, end in cleared
    )
