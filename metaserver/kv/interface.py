"""The transactional key-value store that metadata lives in: what every engine offers.

Keys are ordered bytes, values are bytes. A transaction reads one consistent snapshot, gathers its
writes, and commits all of them or none. Commits are strictly serializable: a commit is refused
(``Code.CONFLICT``) when something that the transaction read was written after its snapshot was
taken, and a transaction that begins after a commit was acknowledged sees that commit. Ranges count
as read from end to end: a key that appeared in one, or vanished from it, is a conflict too.

- ``snapshot=True`` reads the same snapshot but does not count as read: the caller says that its
  writes stay right whatever happens to that key.
- ``add`` merges into a little-endian 64-bit counter at commit time: it reads nothing, so two
  transactions that add to one counter do not conflict. So is a plain ``set`` of an unread key.
- A commit is on stable storage before ``commit`` returns. When the answer is lost (the store
  failed, the network went away) the code is ``MAYBE_APPLIED``: whoever repeats the work must find
  out first, by a key that the transaction itself wrote (see ``once`` in once.py).
- A transaction is for one thread and for a short time; an engine is for any number of threads.

Limits are those of the tightest store that clusters are run on, so that what works on one engine
works on all.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from fs3.errors import Code, Fs3Error

KEY_BYTES_MAX = 10_000
VALUE_BYTES_MAX = 100_000
TRANSACTION_BYTES_MAX = 10_000_000  # keys and values written; work larger than this goes in pieces
COUNTER_BYTES = 8  # signed, little-endian, wraps at 2**63
KEYS_END = b"\xff"  # keys lie below it; what is above belongs to the engine
ATTEMPTS = 64  # of run(): a thread that loses every race this often is told so
PAUSE_S_MIN = 0.0005  # before the second attempt; doubles with each, half of it by chance
PAUSE_S_MAX = 0.05

T = TypeVar("T")
Row = tuple[bytes, bytes]


class Transaction(ABC):
    """One attempt at reading and writing. Use it from one thread; commit it at most once."""

    __slots__ = ()

    @property
    @abstractmethod
    def read_version(self) -> int:
        """The number of the snapshot that this transaction reads. Grows with every commit."""

    @abstractmethod
    def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        """The value of ``key``, this transaction's own writes included; None if there is none."""

    @abstractmethod
    def range(
        self,
        begin: bytes,
        end: bytes,
        limit: int = 0,
        *,
        reverse: bool = False,
        snapshot: bool = False,
    ) -> list[Row]:
        """The rows in ``[begin, end)``, in order or from the end; at most ``limit`` unless 0.

        Only what was looked at counts as read: up to the last row returned when ``limit`` cut it.
        """

    @abstractmethod
    def set(self, key: bytes, value: bytes) -> None:
        """Write ``key``."""

    @abstractmethod
    def clear(self, key: bytes) -> None:
        """Remove ``key`` if it is there."""

    @abstractmethod
    def clear_range(self, begin: bytes, end: bytes) -> None:
        """Remove every key in ``[begin, end)``, those that other transactions add included."""

    @abstractmethod
    def add(self, key: bytes, delta: int) -> None:
        """Add to the counter at ``key`` (absent: 0) when this commits. Reads nothing."""

    @abstractmethod
    def add_read_conflict(self, key: bytes) -> None:
        """Count ``key`` as read."""

    @abstractmethod
    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        """Count ``[begin, end)`` as read."""

    @abstractmethod
    def commit(self, *, durable: bool = True) -> int:
        """Make the writes durable and visible, or raise and do nothing; the commit's version.

        ``durable`` False: visible at once, and safe from the death of the process, but a power cut
        may take it back, unless a durable commit came after it.

        CONFLICT: nothing happened, try again. MAYBE_APPLIED: it may have happened. A transaction
        that wrote nothing always succeeds: what it read was true at its read version.
        """


class Engine(ABC):
    """A store. ``with engine:`` closes it."""

    def __init__(self, pause: Callable[[int], None] | None = None) -> None:
        """``pause(attempt)`` waits before the repeats 1, 2, ... of :meth:`run`."""
        self._pause = pause or pause_with_jitter

    @abstractmethod
    def transaction(self) -> Transaction:
        """Begin: everything acknowledged so far is visible to it."""

    @abstractmethod
    def close(self) -> None:
        """Finish the commits that are under way, refuse everything later. Idempotent."""

    def run(
        self,
        fn: Callable[..., T],
        *args: object,
        attempts: int = ATTEMPTS,
        durable: bool = True,
        **kwargs: object,
    ) -> T:
        """``fn(transaction, *args, **kwargs)``, committed; repeated while it meets conflicts.

        ``fn`` may run many times, so it must act through the transaction alone. Every error but
        CONFLICT goes to the caller at once, MAYBE_APPLIED included: to repeat that blindly
        could do the work twice.
        """
        if attempts < 1:
            raise Fs3Error(Code.INVALID, f"attempts = {attempts}: at least 1 is allowed")
        last = ""
        for attempt in range(attempts):
            if attempt:
                self._pause(attempt)
            transaction = self.transaction()
            try:
                result = fn(transaction, *args, **kwargs)
                transaction.commit(durable=durable)
            except Fs3Error as error:
                if error.code is not Code.CONFLICT:
                    raise
                last = error.detail
            else:
                return result
        raise Fs3Error(Code.CONFLICT, f"still in conflict after {attempts} attempts: {last}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def pause_with_jitter(attempt: int) -> None:
    """Sleep before attempt ``attempt``: longer each time, and not in step with others."""
    longest_s = min(PAUSE_S_MAX, PAUSE_S_MIN * 2 ** min(attempt - 1, 16))
    time.sleep(longest_s * (0.5 + random.random() / 2))


def check_key(key: bytes) -> None:
    """Refuse a key that may not be written."""
    if not key or key >= KEYS_END:
        raise Fs3Error(Code.INVALID, f"key {key[:16]!r}: keys are above b'' and below b'\\xff'")
    if len(key) > KEY_BYTES_MAX:
        raise Fs3Error(
            Code.TOO_LARGE, f"a key of {len(key)} bytes: at most {KEY_BYTES_MAX} are allowed"
        )


def check_value(value: bytes) -> None:
    """Refuse a value that is too large."""
    if len(value) > VALUE_BYTES_MAX:
        raise Fs3Error(
            Code.TOO_LARGE, f"a value of {len(value)} bytes: at most {VALUE_BYTES_MAX} are allowed"
        )


def check_range(begin: bytes, end: bytes) -> None:
    """Refuse a range that ends before it begins or reaches into the engine's own keys."""
    if begin > end or end > KEYS_END:
        raise Fs3Error(
            Code.INVALID,
            f"range {begin[:16]!r} to {end[:16]!r}: begin <= end <= b'\\xff' is allowed",
        )


def counter_value(value: bytes | None) -> int:
    """What a counter's stored bytes say; absent is 0.

    Defined for any bytes (the first eight, missing ones are zero), because it runs where a commit
    can no longer be refused.
    """
    if value is None:
        return 0
    return int.from_bytes(value[:COUNTER_BYTES].ljust(COUNTER_BYTES, b"\0"), "little", signed=True)


def counter_bytes(value: int) -> bytes:
    """A counter's stored form; wraps like a 64-bit register."""
    return (value & (1 << 64) - 1).to_bytes(COUNTER_BYTES, "little")
