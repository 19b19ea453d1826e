"""The embedded engine: RocksDB under optimistic concurrency in this process.

One process owns the directory. RocksDB gives ordered bytes, snapshots and a write-ahead log; what
it lacks here is transactions, so commits are checked against the window of recent ones, and the log
is synced by group: threads that commit at the same time share one batch and one sync.

    commit:  lock [check conflicts, take a version, join the queue] unlock
             the first in the queue leads: write the whole queue as one batch, sync the log,
             publish a new snapshot, wake the others; whoever came meanwhile forms the next group

Invariants
- What is visible is durable. Transactions read the published snapshot, and one is published only
  after the log was synced up to it. Nobody can act on data that a power cut would take back.
- Batches are written in the order of versions, by one thread at a time, so a published snapshot
  is a prefix of the commits.
- A refused transaction is told so only once the commit that beat it is published, so that its
  retry sees that commit.
- When a write or a sync fails, nothing more is promised: the engine stops (DISK) until the process
  is started again, as the log's state is unknown.

The directory holds RocksDB's files, ``OWNER`` (locked by the process that has it open) and a marker
row that names the format. Why it is done this way: docs/decisions/0001-embedded-metadata-engine.md.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Condition
from weakref import WeakSet

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBRecoveryMode,
    Options,
    Rdict,
    ReadOptions,
    Snapshot,
    WriteBatch,
)

from fs3.errors import Code, Fs3Error

from .interface import Engine, Row, Transaction, counter_bytes, counter_value
from .optimistic import (
    Committer,
    ConflictWindow,
    OptimisticTransaction,
    Reads,
    View,
    Writes,
)

FORMAT = 1  # of the data directory; a release refuses what is newer than it knows
FORMAT_KEY = b"\xff\xfffs3/format"  # above KEYS_END: no transaction can touch it
CACHE_BYTES = 256 << 20
WRITE_BUFFER_BYTES = 64 << 20
INFO_LOG_BYTES_MAX = 16 << 20
INFO_LOGS_MAX = 4
_CLOSED = "the metadata store is closed"
_MISSING = "key not found"  # all that rocksdict says of a key that a snapshot does not have


class RocksEngine(Engine, Committer):
    """A store in the directory ``path``, made if it is not there."""

    def __init__(
        self,
        path: Path,
        *,
        cache_bytes: int = CACHE_BYTES,
        pause: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(pause)
        path.mkdir(parents=True, exist_ok=True)
        self._owner = _own(path)
        try:
            self._db = _open(path, cache_bytes)
        except BaseException:
            os.close(self._owner)
            raise
        self._turn = Condition()  # guards all below; notified when a group is done
        self._views: WeakSet[_RocksView] = WeakSet()
        self._version = 1  # of the last commit taken in; versions start again with the process
        self._window = ConflictWindow(self._version)
        self._view = self._take_view(self._version)  # what transactions read
        self._queue: list[tuple[int, Writes]] = []  # taken in, not yet in a group
        self._leading = False  # some thread writes a group
        self._failure = ""  # why nothing goes any more

    def transaction(self) -> Transaction:
        if self._failure:
            raise Fs3Error(Code.DISK, self._failure)
        return OptimisticTransaction(self._view, self)

    def close(self) -> None:
        with self._turn:
            if self._failure == _CLOSED:
                return
            while self._leading:
                self._turn.wait()
            if self._queue and not self._failure:
                group, self._queue = self._queue, []
                self._write(group)
                self._view = self._take_view(group[-1][0])
            self._failure = _CLOSED
            self._turn.notify_all()
            for view in self._views:
                view.snapshot = None  # a transaction left behind must not keep the store open
            self._db.close()
            os.close(self._owner)

    def commit(self, read_version: int, reads: Reads, writes: Writes) -> int:
        """See :class:`Committer`."""
        with self._turn:
            version = self._take_in(read_version, reads, writes)
            while self._leading and self._view.version < version and not self._failure:
                self._turn.wait()
            if self._view.version >= version:
                return version
            if self._failure:
                raise Fs3Error(Code.MAYBE_APPLIED, self._failure)
            self._leading = True
            group, self._queue = self._queue, []
        try:
            self._write(group)
        except BaseException as error:
            self._finish(version, f"the metadata store failed, start the process again: {error}")
            if isinstance(error, Exception):
                raise Fs3Error(Code.MAYBE_APPLIED, self._failure) from error
            raise
        self._finish(group[-1][0], "")
        return version

    def _take_in(self, read_version: int, reads: Reads, writes: Writes) -> int:
        """Check a commit and put it into the queue; its version."""
        if self._failure:
            raise Fs3Error(Code.DISK, self._failure)
        beaten_by = self._window.beaten_by(read_version, reads)
        if beaten_by:
            while self._view.version < beaten_by and not self._failure:
                self._turn.wait()
            raise Fs3Error(
                Code.CONFLICT, f"version {beaten_by} wrote what was read at {read_version}"
            )
        self._version += 1
        self._window.add(self._version, writes)
        self._queue.append((self._version, writes))
        return self._version

    def _finish(self, version: int, failure: str) -> None:
        """Publish what the group wrote, or why it could not be."""
        with self._turn:
            if failure:
                self._failure = failure
            else:
                self._view = self._take_view(version)
            self._leading = False
            self._turn.notify_all()

    def _take_view(self, version: int) -> _RocksView:
        view = _RocksView(version, self._db.snapshot())
        self._views.add(view)
        return view

    def _write(self, group: list[tuple[int, Writes]]) -> None:
        """One batch and one sync for the commits of a group, in their order."""
        batch = WriteBatch(raw_mode=True)
        points = [writes.points for _, writes in group]
        added = {key for rows in points for key, value in rows.items() if isinstance(value, int)}
        counters = {key: counter_value(self._db.get(key)) for key in added}
        for _, writes in group:
            for begin, end in writes.cleared:
                batch.delete_range(begin, end)
                counters |= dict.fromkeys((k for k in counters if begin <= k < end), 0)
            for key, value in writes.points.items():
                if isinstance(value, int):
                    counters[key] += value
                    batch.put(key, counter_bytes(counters[key]))
                    continue
                if key in counters:
                    counters[key] = counter_value(value)
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
        self._db.write(batch)
        self._db.flush_wal(True)


class _RocksView(View):
    __slots__ = ("__weakref__", "snapshot", "version")

    def __init__(self, version: int, snapshot: Snapshot) -> None:
        self.version = version
        self.snapshot: Snapshot | None = snapshot  # None: the engine was closed

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes = self._open_snapshot()[key]
        except Exception as error:
            if type(error) is Exception and str(error) == _MISSING:
                return None
            raise _as_ours(error) from error
        return value

    def scan(self, begin: bytes, end: bytes, reverse: bool) -> Iterator[Row]:
        if begin >= end:
            return
        bounds = ReadOptions()
        bounds.set_iterate_lower_bound(begin)
        bounds.set_iterate_upper_bound(end)
        rows = self._open_snapshot().iter(bounds)
        if reverse:
            rows.seek_to_last()
        else:
            rows.seek_to_first()
        step = rows.prev if reverse else rows.next
        while rows.valid():
            yield rows.key(), rows.value()
            step()
        try:
            rows.status()
        except Exception as error:  # rocksdict has no class of its own for it
            raise _as_ours(error) from error

    def _open_snapshot(self) -> Snapshot:
        snapshot = self.snapshot
        if snapshot is None:
            raise Fs3Error(Code.DISK, _CLOSED)
        return snapshot


def _as_ours(error: Exception) -> Fs3Error:
    """``error`` as an Fs3Error; what is one already stays as it is."""
    if isinstance(error, Fs3Error):
        return error
    return Fs3Error(Code.DISK, f"the metadata store cannot be read: {error}")


def _own(path: Path) -> int:
    """Lock the directory for this process; the descriptor that holds the lock."""
    owner = os.open(path / "OWNER", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(owner, 32).decode("ascii", "replace").strip()
        os.close(owner)
        raise Fs3Error(
            Code.BUSY,
            f"{path} is open in process {holder or '?'}: one metaserver at a time may use it",
        ) from None
    os.ftruncate(owner, 0)
    os.pwrite(owner, b"%d\n" % os.getpid(), 0)
    return owner


def _open(path: Path, cache_bytes: int) -> Rdict:
    try:
        db = Rdict(str(path), options=_options(cache_bytes))
    except Exception as error:
        raise Fs3Error(Code.DISK, f"{path} cannot be opened: {error}") from error
    try:
        _check_format(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _options(cache_bytes: int) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    # A record torn by a crash was never acknowledged and is dropped. Damage anywhere else in the
    # log is an error: RocksDB's default would silently drop acknowledged commits behind it.
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX)
    options.set_keep_log_file_num(INFO_LOGS_MAX)
    table = BlockBasedOptions()
    table.set_block_cache(Cache(cache_bytes))
    table.set_bloom_filter(10, False)  # every create asks for a name that is not there
    options.set_block_based_table_factory(table)
    return options


def _check_format(db: Rdict, path: Path) -> None:
    """Mark a new directory; refuse one that is newer than this release, or not ours."""
    marker = db.get(FORMAT_KEY)
    if marker is None:
        first = db.iter()
        first.seek_to_first()
        if first.valid():
            raise Fs3Error(Code.INVALID, f"{path} holds a RocksDB that is not a metadata store")
        db.put(FORMAT_KEY, b"%d" % FORMAT)
        db.flush_wal(True)
        return
    if not marker.isdigit() or int(marker) > FORMAT:
        raise Fs3Error(
            Code.UNSUPPORTED,
            f"{path} has format {marker.decode('ascii', 'replace')}, written by a newer release:"
            f" this one reads formats up to {FORMAT}",
        )
