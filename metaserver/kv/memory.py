"""The engine in memory: the twin of the others, for tests and for simulation.

Every key keeps its versions as far back as the conflict window reaches, so a view is no more than
a version number. Nothing here waits, sleeps or starts a thread: what a commit meets is decided by
``faults``, so that a simulator can lose, hold back and refuse commits by its seed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from enum import Enum
from threading import Lock

from fs3.errors import Code, Fs3Error

from .interface import Engine, Row, Transaction
from .optimistic import (
    WINDOW_KEYS_MAX,
    Committer,
    ConflictWindow,
    Footprint,
    OptimisticTransaction,
    Reads,
    View,
    Writes,
    merged,
)

_PAGE_ROWS = 64  # of a scan under one hold of the lock


class Fault(Enum):
    """What befalls one commit."""

    NONE = "it is applied and acknowledged"
    REFUSE = "not applied, CONFLICT"
    LOSE = "not applied, MAYBE_APPLIED"
    LOSE_ANSWER = "applied, MAYBE_APPLIED"
    HOLD = "MAYBE_APPLIED now, and checked and applied by release_held()"


def no_faults() -> Fault:
    """Every commit goes well."""
    return Fault.NONE


class MemoryEngine(Engine, Committer):
    """``faults()`` is asked once per commit that writes something."""

    def __init__(
        self,
        *,
        faults: Callable[[], Fault] = no_faults,
        pause: Callable[[int], None] | None = None,
        window_keys_max: int = WINDOW_KEYS_MAX,
    ) -> None:
        super().__init__(pause)
        self._faults = faults
        self._lock = Lock()  # guards all below
        self._keys: list[bytes] = []  # sorted; also those whose last version says "removed"
        self._history: dict[bytes, list[tuple[int, bytes | None]]] = {}  # oldest first
        self._version = 1
        self._window = ConflictWindow(self._version, window_keys_max)
        self._held: list[tuple[int, Reads, Writes]] = []
        self._closed = False

    def transaction(self) -> Transaction:
        with self._lock:
            self._check_open()
            return OptimisticTransaction(_MemoryView(self, self._version), self)

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def commit(self, read_version: int, reads: Reads, writes: Writes) -> int:
        """See :class:`Committer`."""
        fault = self._faults()
        with self._lock:
            self._check_open()
            match fault:
                case Fault.REFUSE:
                    raise Fs3Error(Code.CONFLICT, "refused on demand")
                case Fault.LOSE:
                    pass
                case Fault.HOLD:
                    self._held.append((read_version, reads, writes))
                case Fault.NONE | Fault.LOSE_ANSWER:
                    self._check_and_apply(read_version, reads, writes)
            if fault is not Fault.NONE:
                raise Fs3Error(Code.MAYBE_APPLIED, "the answer was lost on demand")
            return self._version

    def release_held(self) -> int:
        """Let the commits that were held back arrive, in order; how many were applied."""
        with self._lock:
            held, self._held = self._held, []
            applied = 0
            for read_version, reads, writes in held:
                try:
                    self._check_and_apply(read_version, reads, writes)
                except Fs3Error as error:
                    if error.code is not Code.CONFLICT:
                        raise
                else:
                    applied += 1
            return applied

    def _check_open(self) -> None:
        if self._closed:
            raise Fs3Error(Code.DISK, "the metadata store is closed")

    def _check_and_apply(self, read_version: int, reads: Reads, writes: Writes) -> None:
        beaten_by = self._window.beaten_by(read_version, reads)
        if beaten_by:
            raise Fs3Error(
                Code.CONFLICT, f"version {beaten_by} wrote what was read at {read_version}"
            )
        self._version += 1
        for begin, end in writes.cleared:
            for key in self._keys[bisect_left(self._keys, begin) : bisect_left(self._keys, end)]:
                self._put(key, None)
        for key, value in writes.points.items():
            self._put(key, merged(self._value_at(self._version, key), value))
        for left in self._window.add(Footprint(self._version, writes)):
            self._trim(left)

    def _put(self, key: bytes, value: bytes | None) -> None:
        versions = self._history.get(key)
        if versions is None:
            versions = self._history[key] = []
            insort(self._keys, key)
        if versions and versions[-1][0] == self._version:
            versions[-1] = (self._version, value)
        else:
            versions.append((self._version, value))

    def _trim(self, left: Footprint) -> None:
        """Drop the versions that no transaction young enough to commit can read."""
        keys = list(left.keys)
        for begin, end in left.cleared:
            keys += self._keys[bisect_left(self._keys, begin) : bisect_left(self._keys, end)]
        for key in keys:
            versions = self._history.get(key)
            if versions is None:
                continue
            while len(versions) > 1 and versions[1][0] <= self._window.floor:
                del versions[0]
            if versions[-1][1] is None and versions[-1][0] <= self._window.floor:
                del self._history[key]
                del self._keys[bisect_left(self._keys, key)]

    def get_at(self, version: int, key: bytes) -> bytes | None:
        """The value of ``key`` as of ``version``."""
        with self._lock:
            self._check_readable(version)
            return self._value_at(version, key)

    def page_at(
        self, version: int, begin: bytes, end: bytes, reverse: bool
    ) -> tuple[list[Row], bytes]:
        """Some rows of ``[begin, end)`` as of ``version``, and the key where the rest begins.

        With ``reverse`` that is where the rest ends. The page is the last one if it is b"".
        """
        with self._lock:
            self._check_readable(version)
            low, high = bisect_left(self._keys, begin), bisect_left(self._keys, end)
            if reverse:
                keys = self._keys[max(low, high - _PAGE_ROWS) : high][::-1]
            else:
                keys = self._keys[low : min(high, low + _PAGE_ROWS)]
            rest = b"" if len(keys) == high - low else keys[-1] + (b"" if reverse else b"\0")
            values = [(key, self._value_at(version, key)) for key in keys]
            return [(key, value) for key, value in values if value is not None], rest

    def _check_readable(self, version: int) -> None:
        self._check_open()
        self._window.check_age(version)

    def _value_at(self, version: int, key: bytes) -> bytes | None:
        for written_at, value in reversed(self._history.get(key, ())):
            if written_at <= version:
                return value
        return None


class _MemoryView(View):
    __slots__ = ("_engine", "version")

    def __init__(self, engine: MemoryEngine, version: int) -> None:
        self._engine = engine
        self.version = version

    def get(self, key: bytes) -> bytes | None:
        return self._engine.get_at(self.version, key)

    def scan(self, begin: bytes, end: bytes, reverse: bool) -> Iterator[Row]:
        while True:
            rows, rest = self._engine.page_at(self.version, begin, end, reverse)
            yield from rows
            if not rest:
                return
            begin, end = (begin, rest) if reverse else (rest, end)
