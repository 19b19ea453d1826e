"""The chunk store of one target on a disk: see interface.py for what it promises.

Order of every mutation: data into the page cache, then one atomic batch of records, then memory. A
process that dies anywhere leaves records that refer to complete data; blocks without a record are
free at the next start.

A power cut is harsher: a record may reach the disk before its data. Hence **durability epochs**.
Every version carries the epoch in which it was staged. A sync ends the epoch, puts the data files
on stable storage, then the mark "durable: that epoch" with the log. At a start after a power cut
(another boot id, not closed cleanly) each version newer than the mark is verified by reading.

One that fails falls back: a committed record carries as **undo** the versions it replaced, back to
the newest whose epoch is durable. Their blocks stay held until the epoch in which that record was
written is durable: before that the log may end with them. So what was staged and synced stands even
if its commit is lost: it is found pending. At most two are needed, the durable one and one of an
epoch whose sync is under way. A chunk without a good version left was never durable and is removed.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import RLock

import numpy as np
import numpy.typing as npt

from fs3.core.chunks import ChannelRecord, ChunkMeta, UpdateKind
from fs3.core.types import ChunkId, ChunkVersion
from fs3.errors import Code, Fs3Error
from fs3.watermark import Watermark

from .allocator import Allocator, Readers
from .consistency import check_store
from .creating import create_chunks
from .datafiles import ChunkStoreSettings, DataFiles
from .discarding import discard_chunks
from .epochs import Epochs
from .files import FileLayer, Operation
from .flushing import Flusher
from .health import Health
from .index import Index
from .interface import (
    Channel,
    Commit,
    Piece,
    ReadResult,
    Rows,
    StageRequest,
    StageResult,
    Usage,
    Verified,
)
from .locating import Locating
from .publishing import Publisher
from .punching import Punching
from .reading import Reader
from .records import (
    CONTENT_FIELDS,
    NO_VERSION,
    OPEN_KEY,
    Pending,
    Version,
    chunk_key,
    encode_chunk,
)
from .recovery import WATERMARK_FILE, check_watermark, open_records, recover
from .scanning import last_chunk, scan_channels, scan_chunks, verify_chunks
from .shared import SharedStamps
from .staging import Stager

_NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


class DiskChunkStore(Locating):
    """One target's chunks in one directory. ``_lock`` guards every change of memory state."""

    def __init__(
        self, files: FileLayer, root: Path, settings: ChunkStoreSettings | None = None
    ) -> None:
        """Open the store in ``root``; make it if the directory is empty or missing."""
        self._files = files
        self._root = root
        self._settings = settings or ChunkStoreSettings()
        self._lock = RLock()
        self._health = Health(root)
        self.stamps = SharedStamps()
        self._index = Index(stamps=self.stamps)
        self._readers = Readers()
        self._allocator = Allocator(
            self._readers, self._grow, self._spend, self._settings.capacity_bytes
        )
        with ExitStack() as opened, self._health.guard():
            self._records = open_records(files, root)
            opened.callback(self._records.close)
            self._data = DataFiles(files, root, self._settings)
            opened.callback(self._data.close)
            self._stager = Stager(self._data, self._allocator)
            self._reader = Reader(
                self._index, self._data, self._readers, self._try_drain, self._health.fail
            )
            watermark = Watermark(root / WATERMARK_FILE, files)
            opened.callback(watermark.close)
            check_watermark(self._records, watermark, root / WATERMARK_FILE)
            boot_id = files.boot_id()
            durable = recover(
                boot_id, self._records, self._data, self._index, self._allocator, self._reader
            )
            watermark.rise(durable)
            opened.pop_all()
        self._epochs = Epochs(self._allocator, durable)
        self._watermark = watermark
        self._punching = Punching(self._allocator, self._data, self._settings, self._health)
        self._flusher = Flusher(
            self._lock, self._epochs, self._data, self._records, self._health, watermark
        )
        self._publisher = Publisher(
            self._index,
            self._allocator,
            self._readers,
            self._epochs,
            self._records,
            self._flusher,
            self._health,
            self._settings.channels_max,
        )

    # -- what the core asks ------------------------------------------------------------------------

    @property
    def failed(self) -> str | None:
        """Why the store has failed, or None while it works."""
        return self._health.failed

    @property
    def columns(self) -> npt.NDArray[np.void]:
        """The index's table; its fields include those of ``COLUMNS``."""
        return self._index.table

    def rows(self, chunks: Sequence[ChunkId]) -> Rows:
        """Each chunk's row in ``columns``, -1 for an unknown one."""
        return self._index.rows(chunks)

    def dirty(self, chunks: Sequence[ChunkId]) -> list[int]:
        """Positions of those chunks that have a pending version."""
        return self._index.dirty(chunks)

    def meta(self, chunk: ChunkId) -> ChunkMeta | None:
        """The chunk's versions, or None."""
        return self._index.meta(chunk)

    def channel(self, client: int, channel: int) -> ChannelRecord | None:
        """The newest update on the channel, or None."""
        return self._index.channel(client, channel)

    # -- stage -------------------------------------------------------------------------------------

    def stage(self, updates: Sequence[StageRequest]) -> list[StageResult]:
        """Make each update its chunk's pending version."""
        with self._lock:
            results: list[StageResult] = []
            staged: dict[ChunkId, Pending] = {}
            operations: list[Operation] = []
            for update in updates:
                if update.chunk in staged:  # a batch has one record per chunk: end it here
                    self._publisher.publish_staged(staged, operations)
                    staged, operations = {}, []
                result, pending, records = self._stage_one(update)
                results.append(result)
                if pending is not None:
                    staged[update.chunk] = pending
                    operations += records
            self._publisher.publish_staged(staged, operations)
            return results if self._health.failed is None else [self._refusal()] * len(updates)

    def _stage_one(
        self, update: StageRequest
    ) -> tuple[StageResult, Pending | None, list[Operation]]:
        if self._health.failed is not None:
            return self._refusal(), None, []
        try:
            version, operations = self._write_data(update)
        except Fs3Error as error:
            return StageResult(error.code, detail=error.detail), None, []
        except OSError as error:
            if error.errno in _NO_SPACE_ERRNOS:
                return StageResult(Code.NO_SPACE, detail=str(error)), None, []
            self._health.fail(error)
            return self._refusal(), None, []
        version = Version(
            update.version, update.chain_version, self._epochs.current, *version[CONTENT_FIELDS:]
        )
        pending = Pending(version, update.kind is UpdateKind.REMOVE, update.tag)
        return StageResult(Code.OK, version.length, version.checksum), pending, operations

    def _write_data(self, update: StageRequest) -> tuple[Version, list[Operation]]:
        base = self._publisher.committed(update.chunk)
        if update.kind is UpdateKind.REPLACE:
            base = NO_VERSION
        if update.version <= base.version:
            detail = f"version {update.version}: {base.version} is committed already"
            raise Fs3Error(Code.STALE_UPDATE, detail)
        if update.kind is UpdateKind.REMOVE:
            return NO_VERSION, []
        pending = self._index.pendings.get(update.chunk)
        return self._stager.stage(base, pending.version if pending else NO_VERSION, update)

    def create(self, updates: Sequence[StageRequest]) -> list[StageResult]:
        """Store chunks that are not there yet, committed, in one batch."""
        with self._lock:
            results = create_chunks(
                updates,
                self._index,
                self._allocator,
                stage=self._stage_one,
                keep_channel=self._publisher.keep_channel,
                write=self._publisher.write,
            )
            return results if self._health.failed is None else [self._refusal()] * len(updates)

    # -- commit and drop ---------------------------------------------------------------------------

    def commit(self, commits: Sequence[Commit]) -> list[Code]:
        """Make pending versions committed."""
        with self._lock:
            codes: list[Code] = []
            ready: dict[ChunkId, tuple[Version, Pending]] = {}
            for chunk, number, chain_version in commits:
                pending = self._index.pendings.get(chunk)
                if pending is not None and pending.version.version == number:
                    ready[chunk] = pending.version._replace(chain_version=chain_version), pending
                    codes.append(Code.OK)
                else:
                    known = number <= self._publisher.committed(chunk).version
                    codes.append(Code.OK if known else Code.NO_CHUNK)
            self._publisher.publish_commits(ready)
            return codes if self._health.failed is None else [Code.DISK] * len(commits)

    def drop(self, chunks: Sequence[ChunkId]) -> None:
        """Forget pending versions."""
        with self._lock:
            self._publisher.drop(chunks)

    def discard(self, chunks: Sequence[ChunkId]) -> list[ChunkId]:
        """Remove committed chunks that have no pending version, in one batch."""
        with self._lock:
            return discard_chunks(
                chunks, self._index, self._epochs, self._readers, self._publisher.write
            )

    def restore(self, chunk: ChunkId, version: ChunkVersion, content: memoryview) -> Code:
        """Store the bytes of the committed version anew, in a fresh block."""
        with self._lock:
            old = self._publisher.committed(chunk)
            if version != old.version or not version:
                return Code.STALE_UPDATE
            if len(content) != old.length:
                return Code.CORRUPT
            update = StageRequest(
                chunk, UpdateKind.REPLACE, version, 0, old.length, content, old.checksum
            )
            result, staged, operations = self._stage_one(update)
            if staged is None:
                return result.code
            made = staged.version._replace(chain_version=old.chain_version)
            pending = self._index.pendings.get(chunk)
            undo = self._epochs.new_undo(chunk, old)
            operations.append((chunk_key(chunk), encode_chunk(made, pending, undo)))
            if not self._publisher.write(operations):
                return Code.DISK
            self._publisher.replace(chunk, made, pending, undo)
            return Code.OK

    def put_channels(self, channels: Sequence[Channel]) -> None:
        """Take over channel records, unless a newer sequence is known."""
        with self._lock:
            self._publisher.put_channels(channels)

    # -- reads -------------------------------------------------------------------------------------

    def read(
        self,
        pieces: Sequence[Piece],
        buffers: Sequence[memoryview],
        *,
        pending: bool = False,
        verify: bool = False,
    ) -> list[ReadResult]:
        """Read each piece into its buffer."""
        if self._health.failed is not None:
            return [ReadResult(Code.DISK, detail=self._health.failed)] * len(pieces)
        return self._reader.read(pieces, buffers, pending=pending, verify=verify)

    def count(self) -> int:
        """How many chunks there are."""
        return len(self._index)

    def scan(
        self, after: ChunkId | None, limit: int, *, owner: int | None = None
    ) -> list[tuple[ChunkId, ChunkMeta]]:
        """Up to ``limit`` chunks behind ``after`` in chunk order."""
        with self._health.guard():
            return scan_chunks(self._records, self._index, after, limit, owner)

    def last_chunk(self, owner: int) -> tuple[ChunkId, ChunkMeta] | None:
        """The owner's committed chunk with the greatest slot."""
        with self._health.guard():
            return last_chunk(self._records, self._index, owner)

    def scan_channels(self, after: tuple[int, int] | None, limit: int) -> list[Channel]:
        """Up to ``limit`` channels behind ``after``."""
        with self._health.guard():
            return scan_channels(self._records, after, limit)

    def verify(self, after: ChunkId | None, limit: int) -> Verified:
        """Read and check up to ``limit`` committed chunks behind ``after``."""
        token = self._readers.enter()
        try:
            with self._health.guard():
                return verify_chunks(self._records, self._index, self._reader, after, limit)
        finally:
            if self._readers.leave(token):
                self._try_drain()

    def check(self) -> list[str]:
        """Every inconsistency of the whole store."""
        with self._lock, self._health.guard():
            return check_store(
                self._records,
                self._data,
                self._index,
                self._allocator,
                self._reader,
                self._epochs.held_blocks(),
            )

    # -- durability and space ----------------------------------------------------------------------

    def sync(self) -> None:
        """Return when everything so far is on stable storage."""
        self._flusher.sync()

    def tick(self) -> None:
        """Sync what has changed, and give disk space of idle blocks back."""
        if self._health.failed is not None:
            return
        self.sync()
        with self._lock:
            self._readers.drain()
            self._punching.tick()

    def usage(self) -> Usage:
        """Space taken and left."""
        space = self._files.space(self._root)
        with self._lock:
            used = self._allocator.used_bytes
            free = max(0, space.free_bytes - self._settings.reserve_bytes)
            free += self._allocator.idle_bytes()
            capacity = self._settings.capacity_bytes or space.total_bytes
            return Usage(capacity, used, max(0, min(free, capacity - used)), len(self._index))

    def close(self) -> None:
        """Sync, and close cleanly; a failed store is just closed."""
        try:
            if self._health.failed is None:
                self.sync()
                with self._health.guard():
                    self._records.write([(OPEN_KEY, b"")])
                    self._records.sync()
        finally:
            self.stamps.close()
            self._data.close()
            self._watermark.close()
            self._records.close()

    # -- helpers -----------------------------------------------------------------------------------

    def _grow(self, size_class: int) -> tuple[int, bool]:
        return self._data.grow(size_class)

    def _spend(self, size_bytes: int) -> None:
        self._data.spend(size_bytes)

    def _refusal(self) -> StageResult:
        return StageResult(Code.DISK, detail=self._health.failed or "")

    def _try_drain(self) -> None:
        """Free what waited for readers, unless the owner is at work: it or a tick will."""
        if self._lock.acquire(blocking=False):
            try:
                self._readers.drain()
            finally:
                self._lock.release()
