"""What stands in for a store that could not be opened: no chunks, and the reason to everybody.

Its target is offline from the start and never gets a core, so only operators and the daemon's own
rounds ever call it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fs3.core.chunks import ChannelRecord, ChunkMeta
from fs3.core.types import ChunkId, ChunkVersion
from fs3.errors import Code, Fs3Error

from .interface import (
    COLUMNS,
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


class LostStore:
    """A failed store. ``reason`` is what every call answers."""

    def __init__(self, reason: str) -> None:
        self.failed: str | None = reason
        self._reason = reason
        self.columns: npt.NDArray[np.void] = np.zeros(0, COLUMNS)

    def _refusal(self) -> Fs3Error:
        return Fs3Error(Code.DISK, self._reason)

    def rows(self, chunks: Sequence[ChunkId]) -> Rows:
        """Nothing is known."""
        return np.full(len(chunks), -1, np.int64)

    def dirty(self, chunks: Sequence[ChunkId]) -> list[int]:
        """Nothing is known."""
        del chunks
        return []

    def meta(self, chunk: ChunkId) -> ChunkMeta | None:
        """Nothing is known."""
        del chunk
        return None

    def channel(self, client: int, channel: int) -> ChannelRecord | None:
        """Nothing is known."""
        del client, channel
        return None

    def stage(self, updates: Sequence[StageRequest]) -> list[StageResult]:
        """Refused."""
        return [StageResult(Code.DISK, detail=self._reason)] * len(updates)

    def create(self, updates: Sequence[StageRequest]) -> list[StageResult]:
        """Refused."""
        return self.stage(updates)

    def commit(self, commits: Sequence[Commit]) -> list[Code]:
        """Refused."""
        return [Code.DISK] * len(commits)

    def drop(self, chunks: Sequence[ChunkId]) -> None:
        """Nothing is pending."""

    def discard(self, chunks: Sequence[ChunkId]) -> list[ChunkId]:
        """Nothing is there."""
        return []

    def restore(self, chunk: ChunkId, version: ChunkVersion, content: memoryview) -> Code:
        """Refused."""
        del chunk, version, content
        return Code.DISK

    def put_channels(self, channels: Sequence[Channel]) -> None:
        """Refused."""
        raise self._refusal()

    def read(
        self,
        pieces: Sequence[Piece],
        buffers: Sequence[memoryview],
        *,
        pending: bool = False,
        verify: bool = False,
    ) -> list[ReadResult]:
        """Refused."""
        del buffers, pending, verify
        return [ReadResult(Code.DISK, detail=self._reason)] * len(pieces)

    def count(self) -> int:
        """Nothing."""
        return 0

    def scan(
        self, after: ChunkId | None, limit: int, *, owner: int | None = None
    ) -> list[tuple[ChunkId, ChunkMeta]]:
        """Refused: an empty page would look like an empty target."""
        raise self._refusal()

    def last_chunk(self, owner: int) -> tuple[ChunkId, ChunkMeta] | None:
        """Refused."""
        raise self._refusal()

    def scan_channels(self, after: tuple[int, int] | None, limit: int) -> list[Channel]:
        """Refused."""
        raise self._refusal()

    def sync(self) -> None:
        """Refused."""
        raise self._refusal()

    def tick(self) -> None:
        """Nothing to do."""

    def usage(self) -> Usage:
        """Nothing."""
        return Usage(0, 0, 0, 0)

    def verify(self, after: ChunkId | None, limit: int) -> Verified:
        """Refused."""
        raise self._refusal()

    def check(self) -> list[str]:
        """The reason."""
        return [self._reason]

    def close(self) -> None:
        """Nothing is open."""
