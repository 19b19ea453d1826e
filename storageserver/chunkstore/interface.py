"""The chunk store of one target: what it promises. Real: store.py; twin for simulation: memory.py.

An update is staged (it becomes the chunk's pending version) and then committed or dropped. Every
call is a batch, results are per item. A call without results raises ``Fs3Error(Code.DISK)``; all
others raise for misuse only.

- Staged is crash safe: what a returned call did survives the death of the process.
- :meth:`ChunkStore.sync` makes it power safe. A power cut before that leaves, for each chunk, the
  old or the new version, never a mix, and everything an earlier sync covered.
- Mutations (stage, commit, drop, restore, put_channels) come from one thread at a time. Everything
  else may be called from any thread at any time.
- After an I/O error of the disk the store is ``failed`` for good: calls answer ``Code.DISK``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from fs3.core.chunks import ChannelRecord, ChunkMeta, ChunkTable, Tag, UpdateKind
from fs3.core.stamps import Stamps
from fs3.core.types import ChainVersion, ChunkId, ChunkVersion
from fs3.errors import Code
from fs3.transport.located import Location

Rows: TypeAlias = npt.NDArray[np.int64]

COLUMNS = np.dtype(
    [
        ("version", "<u8"),  # committed; 0: never committed
        ("chain_version", "<u8"),
        ("length", "<u4"),
        ("pending_version", "<u8"),  # 0: nothing pending
    ]
)


class StageRequest(NamedTuple):
    """One update. ``version`` must be above the committed one, except for REPLACE.

    ``data`` belongs to the caller and is not kept after the call. ``length`` is that of ``data``
    for WRITE and REPLACE, and the wanted length of the chunk for TRUNCATE and EXTEND.
    """

    chunk: ChunkId
    kind: UpdateKind
    version: ChunkVersion
    offset: int = 0  # of WRITE, in the chunk
    length: int = 0
    data: memoryview | None = None
    checksum: int = 0  # CRC32C of ``data``
    chain_version: ChainVersion = ChainVersion(0)
    tag: Tag | None = None


class StageResult(NamedTuple):
    """OK: length and checksum of the whole pending content. Otherwise nothing changed.

    INVALID (the request makes no sense), STALE_UPDATE (version not above the committed one),
    CORRUPT (data does not match its checksum, or the stored bytes it builds on are bad), NO_SPACE,
    DISK.
    """

    code: Code
    length: int = 0
    checksum: int = 0
    detail: str = ""


class Commit(NamedTuple):
    """Make pending ``version`` of ``chunk`` the committed one."""

    chunk: ChunkId
    version: ChunkVersion
    chain_version: ChainVersion


class Piece(NamedTuple):
    """A range of one chunk."""

    chunk: ChunkId
    offset: int
    length: int


class ReadResult(NamedTuple):
    """OK: ``length`` bytes (short at the chunk's end) of ``version`` are in the caller's buffer.

    ``crc`` is the CRC32C that those bytes should have, from the checksums stored with the chunk: a
    reader that computes another one has met a bad disk, memory or wire. NO_CHUNK, CORRUPT, DISK.
    """

    code: Code
    length: int = 0
    version: ChunkVersion = ChunkVersion(0)
    crc: int = 0
    detail: str = ""


class BlockId(NamedTuple):
    """A block of a data file."""

    size_class: int
    block: int


class Channel(NamedTuple):
    """A channel and its newest committed update."""

    client: int
    channel: int
    record: ChannelRecord


class Usage(NamedTuple):
    """Space, in bytes. ``used_bytes`` counts the blocks that chunks occupy."""

    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    chunks: int


class ChunkPlace(NamedTuple):
    """Where all bytes of a committed version lie, as long as the row's stamp is this one."""

    row: int
    stamp: int
    version: int
    position: int
    file: int
    length: int
    checksum: int  # CRC32C of all of it
    crcs: bytes  # those of its checksum blocks, 4 bytes each


class BadChunk(NamedTuple):
    """A chunk whose stored bytes do not match its checksums, or whose record is wrong."""

    chunk: ChunkId
    version: ChunkVersion
    detail: str


class Verified(NamedTuple):
    """One step of a scrub: go on after ``last``; None when the end was reached."""

    last: ChunkId | None
    chunks: int
    length_bytes: int
    bad: list[BadChunk]


class ChunkStore(ChunkTable, Protocol):
    """One target's chunks."""

    @property
    def failed(self) -> str | None:
        """Why the store has failed, or None while it works."""

    @property
    def columns(self) -> npt.NDArray[np.void]:
        """Rows of ``COLUMNS``; index them with :meth:`rows`. A new array replaces a full one."""

    def rows(self, chunks: Sequence[ChunkId]) -> Rows:
        """The row of each chunk in ``columns``, -1 for an unknown one.

        Good until the next mutation.
        """

    def dirty(self, chunks: Sequence[ChunkId]) -> list[int]:
        """Positions of those chunks that have a pending version, ascending."""

    def stage(self, updates: Sequence[StageRequest]) -> list[StageResult]:
        """Make each update its chunk's pending version, in place of an older pending one."""

    def create(self, updates: Sequence[StageRequest]) -> list[StageResult]:
        """Store chunks that are not there yet, committed, all in one batch.

        For a chain without another replica. EXISTS for one that is there, or has a pending version.
        """

    def commit(self, commits: Sequence[Commit]) -> list[Code]:
        """Make pending versions committed. OK also for what is committed already.

        NO_CHUNK for a version that is neither pending nor committed.
        """

    def drop(self, chunks: Sequence[ChunkId]) -> None:
        """Forget pending versions; chunks without one are left alone."""

    def discard(self, chunks: Sequence[ChunkId]) -> list[ChunkId]:
        """Remove committed chunks at once, in one batch; returns those that were there.

        For what may be lost, on a chain without another replica. One with a pending version stays.
        After a power cut a chunk may be back, whole.
        """

    def read(
        self,
        pieces: Sequence[Piece],
        buffers: Sequence[memoryview],
        *,
        pending: bool = False,
        verify: bool = False,
    ) -> list[ReadResult]:
        """Read each piece into its buffer (writable bytes, at least the piece's length).

        ``pending``: of a chunk with a pending version, read that one. ``verify``: check whole
        blocks here, too; by default only partly read ones are, and the caller compares ``crc``.
        """

    def scan(
        self, after: ChunkId | None, limit: int, *, owner: int | None = None
    ) -> list[tuple[ChunkId, ChunkMeta]]:
        """Up to ``limit`` chunks behind ``after`` in chunk order, of one owner if given."""

    def last_chunk(self, owner: int) -> tuple[ChunkId, ChunkMeta] | None:
        """The owner's committed chunk with the greatest slot."""

    def scan_channels(self, after: tuple[int, int] | None, limit: int) -> list[Channel]:
        """Up to ``limit`` channels behind ``after`` (client, channel), in that order."""

    def restore(self, chunk: ChunkId, version: ChunkVersion, content: memoryview) -> Code:
        """Store the bytes of the committed version anew: those that are there are bad.

        Nothing else about the chunk changes. STALE_UPDATE if another version is committed by now,
        CORRUPT if ``content`` is not what the record says, NO_SPACE, DISK.
        """

    def put_channels(self, channels: Sequence[Channel]) -> None:
        """Take over channel records of a predecessor, unless a newer sequence is known."""

    def sync(self) -> None:
        """Return when everything staged, committed or dropped so far is on stable storage.

        Raises ``Fs3Error(Code.DISK)`` if that failed. Concurrent callers share one flush.
        """

    def tick(self) -> None:
        """Background work, bounded; to be called about every second, from any one thread."""

    def usage(self) -> Usage:
        """Space taken and left."""

    def verify(self, after: ChunkId | None, limit: int) -> Verified:
        """Read and check up to ``limit`` committed chunks behind ``after``."""

    def check(self) -> list[str]:
        """Every inconsistency found in the whole store; for a store that is not being changed."""

    def close(self) -> None:
        """Sync, and close cleanly."""


@runtime_checkable
class LocatingStore(ChunkStore, Protocol):
    """A store whose bytes lie in files that another process of the machine can read by itself."""

    @property
    def stamps(self) -> Stamps:
        """Of its rows; what the target serves is said there, too."""

    def hold(self) -> int:
        """From now on no block is reused, until :meth:`let_go` of what this returns."""

    def let_go(self, token: int) -> None:
        """End a :meth:`hold`."""

    def locate(self, pieces: Sequence[Piece], first_file: int) -> list[Location]:
        """Where pieces of committed versions lie, as of now. ``first_file``: number of class 0."""

    def place(self, chunk: ChunkId, first_file: int) -> ChunkPlace | None:
        """Where a whole chunk lies, for whoever sees its row's stamp. The store must be held.

        None if it is not there, has a pending version, no bytes, or no stamp, or is too large.
        """

    def fetch(self, size_class: int, position: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from a class's file, of a place located under a hold.

        Fs3Error CORRUPT if the file ends before, DISK if it cannot be read.
        """

    def data_file(self, size_class: int) -> int:
        """The descriptor of the file that holds blocks of this class."""
