"""The embedded engine: RocksDB under optimistic concurrency in this process.

One process owns the directory. RocksDB gives ordered bytes, snapshots and a write-ahead log; what
it lacks here is transactions, so commits are checked against the window of recent ones, and the log
is synced by group: threads that commit at the same time share one batch and one sync.

    commit:  lock [check conflicts, take a version, join the queue] unlock
             one thread leads: it writes the whole queue as one batch, syncs the log, publishes a
             new snapshot, wakes the others, and hands the lead to the first that came meanwhile

Invariants
- What is visible is durable. Transactions read the published snapshot, and one is published only
  after the log was synced up to it. Nobody can act on data that a power cut would take back. The
  exception are commits that asked for less: the log has them, in order, and the next sync
  covers them.
- A log that a power cut has torn is read up to the tear: what follows was never acknowledged. That
  nothing acknowledged is missing, be it behind a tear, behind a flipped bit or in a file that is
  gone, is checked at the start: each batch has a number, and a watermark beside the log (see
  fs3/watermark.py) says which one was on stable storage.
- Batches are written in the order of versions, by one thread at a time, so a published snapshot
  is a prefix of the commits.
- A refused transaction is told so only once the commit that beat it is published, so that its
  retry sees that commit.
- When a write or a sync fails, nothing more is promised: the engine stops (DISK) until the process
  is started again, as the log's state is unknown.

The directory holds RocksDB's files, ``OWNER`` (locked by the process that has it open), ``SYNCED``
(the watermark), a marker row that names the format and one with the number of the last batch. Why
it is done this way: docs/decisions/0001-embedded-metadata-engine.md.
"""

from __future__ import annotations

import fcntl
import heapq
import os
from collections.abc import Callable, Iterator
from itertools import chain
from operator import itemgetter
from pathlib import Path
from threading import Condition, Lock
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

from fs3 import durable
from fs3.errors import Code, Fs3Error
from fs3.watermark import Watermark

from .interface import Engine, Row, Transaction
from .optimistic import (
    Committer,
    ConflictWindow,
    Footprint,
    OptimisticTransaction,
    Reads,
    View,
    Writes,
    merged,
)

FORMAT = 1  # of the data directory; a release refuses what is newer than it knows
FORMAT_KEY = b"\xff\xfffs3/format"  # above KEYS_END: no transaction can touch it
BATCH_KEY = b"\xff\xfffs3/batch"  # the number of the last batch, 8 bytes
WATERMARK_FILE = "SYNCED"
CACHE_BYTES = 256 << 20
WRITE_BUFFER_BYTES = 64 << 20
INFO_LOG_BYTES_MAX = 16 << 20
INFO_LOGS_MAX = 4
_CLOSED = "the metadata store is closed"
_MISSING = "key not found"  # all that rocksdict says of a key that a snapshot does not have


class _Commit:
    """A commit on its way, with the lock that its thread sleeps on."""

    __slots__ = ("done", "failure", "footprint", "version", "wake", "writes")

    def __init__(self, version: int, writes: Writes) -> None:
        self.version = version
        self.writes = writes
        self.footprint = Footprint(version, writes)
        self.wake = Lock()
        self.wake.acquire()
        self.done = False
        self.failure = ""  # why it is not known to be stored


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
        durable.make_directory(path)
        self._owner = _own(path)
        try:
            self._db = _open(path, cache_bytes)
        except BaseException:
            os.close(self._owner)
            raise
        try:
            self._batch, self._watermark = _check_complete(self._db, path)
        except BaseException:
            self._db.close()
            os.close(self._owner)
            raise
        self._published = Condition()  # guards all below; notified when a group is done
        self._views: WeakSet[_RocksView] = WeakSet()
        self._version = 1  # of the last commit taken in; versions start again with the process
        self._window = ConflictWindow(self._version)
        self._view = self._take_view(self._version)  # what transactions read
        self._queue: list[_Commit] = []  # taken in, not yet in a group
        self._leading = False  # a thread writes a group, or was woken to do so
        self._failure = ""  # why nothing goes any more

    def transaction(self) -> Transaction:
        if self._failure:
            raise Fs3Error(Code.DISK, self._failure)
        return OptimisticTransaction(self._view, self)

    def close(self) -> None:
        with self._published:
            while self._leading:
                self._published.wait()
            if self._failure == _CLOSED:
                return
            self._failure = _CLOSED
            for view in self._views:
                view.snapshot = None  # a transaction left behind must not keep the store open
            self._db.close()
            self._watermark.close()
            os.close(self._owner)

    def commit(self, read_version: int, reads: Reads, writes: Writes) -> int:
        """See :class:`Committer`."""
        with self._published:
            mine = self._take_in(read_version, reads, writes)
            leads, self._leading = not self._leading, True
        if not leads:
            mine.wake.acquire()  # released when it is done, or when it is its turn to lead
        if not mine.done:
            self._lead()
        if mine.failure:
            raise Fs3Error(Code.MAYBE_APPLIED, mine.failure)
        return mine.version

    def _take_in(self, read_version: int, reads: Reads, writes: Writes) -> _Commit:
        """Check a commit and put it into the queue."""
        if self._failure:
            raise Fs3Error(Code.DISK, self._failure)
        beaten_by = self._window.beaten_by(read_version, reads)
        if beaten_by:
            while self._view.version < beaten_by and not self._failure:
                self._published.wait()
            raise Fs3Error(
                Code.CONFLICT, f"version {beaten_by} wrote what was read at {read_version}"
            )
        self._version += 1
        mine = _Commit(self._version, writes)
        self._window.add(mine.footprint)
        self._queue.append(mine)
        return mine

    def _lead(self) -> None:
        """Write all that is queued as one group."""
        with self._published:
            group, self._queue = self._queue, []
        failure = "the metadata store was interrupted in a write, start the process again"
        try:
            self._write(group)
            failure = ""
        except Exception as error:
            failure = f"the metadata store failed, start the process again: {error}"
            raise Fs3Error(Code.MAYBE_APPLIED, failure) from error
        finally:
            self._finish(group, failure)

    def _finish(self, group: list[_Commit], failure: str) -> None:
        """Publish a group, or fail everything; wake its threads and the next to lead."""
        with self._published:
            if failure:
                self._failure = failure
                group, self._queue = group + self._queue, []
            else:
                self._view = self._take_view(group[-1].version)
            successor = self._queue[0] if self._queue else None
            self._leading = successor is not None
            self._published.notify_all()
        for commit in group:
            commit.done, commit.failure = True, failure
            commit.wake.release()
        if successor is not None:
            successor.wake.release()

    def _take_view(self, version: int) -> _RocksView:
        view = _RocksView(self, version, self._db.snapshot())
        self._views.add(view)
        return view

    def rows_now(self, begin: bytes, end: bytes, reverse: bool = False) -> Iterator[Row]:
        """The rows of ``[begin, end)`` as they are written, published or not."""
        if begin >= end:
            return
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(end)
        try:
            rows = self._db.iter(bounds)
        except Exception as error:
            raise _as_ours(error) from error
        if reverse:
            rows.seek_to_last()
        else:
            rows.seek(begin)
        step = rows.prev if reverse else rows.next
        while rows.valid() and (key := rows.key()) >= begin:
            yield key, rows.value()
            step()
        try:
            rows.status()
        except Exception as error:
            raise _as_ours(error) from error

    def changed_since(self, version: int, begin: bytes, end: bytes) -> set[bytes]:
        """The keys of a range that were written after ``version``, published or not."""
        with self._published:
            self._window.check_age(version)
            return self._window.changed_since(version, begin, end)

    def _write(self, group: list[_Commit]) -> None:
        """One batch, and one sync if any asks for it, for the commits of a group in their order."""
        batch = WriteBatch(raw_mode=True)
        points = [commit.writes.points for commit in group]
        added = {key for rows in points for key, value in rows.items() if isinstance(value, int)}
        # Batches are written one at a time, so what is read here is the latest, published or not.
        counters: dict[bytes, bytes | None] = {key: self._db.get(key) for key in added}
        for commit in group:
            for begin, end in commit.writes.cleared:
                removed = [key for key, _ in self.rows_now(begin, end)]
                with self._published:
                    self._window.widen(commit.footprint, removed)
                batch.delete_range(begin, end)
                counters |= dict.fromkeys(key for key in counters if begin <= key < end)
            for key, point in commit.writes.points.items():
                if key in counters:
                    counters[key] = merged(counters[key], point)
                else:
                    _put(batch, key, merged(None, point))
        for key, value in counters.items():
            _put(batch, key, value)
        self._batch += 1
        batch.put(BATCH_KEY, self._batch.to_bytes(8, "little"))
        self._db.write(batch)
        if any(commit.writes.durable for commit in group):
            self._sync()
            self._watermark.rise(self._batch)

    def _sync(self) -> None:
        """Bring what was written to stable storage. Other threads run meanwhile."""
        self._db.flush_wal(True)


class _RocksView(View):
    """A snapshot. rocksdict's snapshots answer ``get`` but their iterators show the present.

    So a scan takes the present rows, leaves out the keys that changed since this view, and puts in
    what the snapshot has for those. A key is noted as changed before it is written, so asking after
    the iterator was made misses none.
    """

    __slots__ = ("__weakref__", "_engine", "snapshot", "version")

    def __init__(self, engine: RocksEngine, version: int, snapshot: Snapshot) -> None:
        self._engine = engine
        self.version = version
        self.snapshot: Snapshot | None = snapshot  # None: the engine was closed

    def get(self, key: bytes) -> bytes | None:
        if self.snapshot is None:
            raise Fs3Error(Code.DISK, _CLOSED)
        try:
            value: bytes = self.snapshot[key]
        except Exception as error:
            if type(error) is Exception and str(error) == _MISSING:
                return None
            raise _as_ours(error) from error
        return value

    def scan(self, begin: bytes, end: bytes, reverse: bool) -> Iterator[Row]:
        if self.snapshot is None:
            raise Fs3Error(Code.DISK, _CLOSED)
        present = self._engine.rows_now(begin, end, reverse)
        first = next(present, None)  # from here on the iterator stands still
        changed = self._engine.changed_since(self.version, begin, end)
        rows = present if first is None else chain((first,), present)
        if not changed:
            return rows
        kept = (row for row in rows if row[0] not in changed)
        then = ((key, self.get(key)) for key in sorted(changed, reverse=reverse))
        restored = ((key, value) for key, value in then if value is not None)
        return heapq.merge(kept, restored, key=itemgetter(0), reverse=reverse)


def _put(batch: WriteBatch, key: bytes, value: bytes | None) -> None:
    if value is None:
        batch.delete(key)
    else:
        batch.put(key, value)


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
    # Up to the first damage: a power cut may leave any sectors of what was not synced. Whether
    # anything acknowledged was lost behind it, the watermark tells.
    options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX)
    options.set_keep_log_file_num(INFO_LOGS_MAX)
    table = BlockBasedOptions()
    table.set_block_cache(Cache(cache_bytes))
    table.set_bloom_filter(10, False)  # every create asks for a name that is not there
    options.set_block_based_table_factory(table)
    return options


def _check_complete(db: Rdict, path: Path) -> tuple[int, Watermark]:
    """The number of the last batch, and the watermark; DISK if acknowledged batches are missing."""
    found = int.from_bytes(db.get(BATCH_KEY) or b"", "little")
    file = path / WATERMARK_FILE
    try:
        watermark = Watermark(file)
    except OSError as error:
        raise Fs3Error(Code.DISK, f"{file}: {error.strerror}") from error
    if watermark.value > found:
        watermark.close()
        raise Fs3Error(
            Code.DISK,
            f"{path} has lost commits that were acknowledged: its log ends at batch {found}, and"
            f" {watermark.value} was on stable storage. Bring its files back; to go on without"
            f" what is lost, remove {file}",
        )
    return found, watermark


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
