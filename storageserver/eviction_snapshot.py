"""The order of use on disk, so that a restart does not forget it: ``recency.bin`` of a target.

Written now and then and at the end, whole, under another name first. It may be missing, old or
removed: then the values that it does not know count as stored and used when it was written.

    header  "fs3r", format u32 = 1, written at (ms since 1970) i64
    rows    chunk id (24), stored at i64, used at i64, both ms since 1970; little-endian
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3.core.recency import Recency
from fs3.core.types import ChunkId
from fs3.log import get_logger

FILE = "recency.bin"
_HEADER = struct.Struct("<4sIq")
_MAGIC, _FORMAT = b"fs3r", 1
_ROW = np.dtype([("chunk", "V24"), ("born_ms", "<i8"), ("used_ms", "<i8")])
_log = get_logger(__name__)


class Past(NamedTuple):
    """What a snapshot knows, by the clock of whoever reads it."""

    written_ms: int  # without a snapshot: now
    values: dict[ChunkId, tuple[int, int]]  # when stored, when used

    def of(self, chunk: ChunkId) -> tuple[int, int]:
        """When a value was stored and used, as far as that is known."""
        return self.values.get(chunk, (self.written_ms, self.written_ms))


def rows_of(recencies: Iterable[Recency], offset_ms: int) -> NDArray[Any]:
    """The rows of a snapshot; ``offset_ms``: from the clock of the recencies to ms since 1970."""
    parts = []
    for recency in recencies:
        chunks, born, used = recency.columns()
        part = np.empty(len(born), _ROW)
        part["chunk"] = np.frombuffer(chunks, "V24")
        part["born_ms"], part["used_ms"] = born + offset_ms, used + offset_ms
        parts.append(part)
    return np.concatenate(parts) if parts else np.empty(0, _ROW)


def write_snapshot(path: Path, rows: NDArray[Any], wall_ms: int) -> None:
    """Put it in the place of the one before. A disk that refuses is logged, nothing more."""
    scratch = path.with_suffix(".new")
    try:
        with scratch.open("wb") as file:
            file.write(_HEADER.pack(_MAGIC, _FORMAT, wall_ms))
            file.write(rows.data)
        scratch.replace(path)
    except OSError as error:
        _log.warning("recency_not_written", path=str(path), reason=error.strerror)


def read_snapshot(path: Path | None, now_ms: int, wall_ms: int) -> Past:
    """What was written last; a file that makes no sense is as good as none."""
    nothing = Past(now_ms, {})
    try:
        data = path.read_bytes() if path is not None else b""
        magic, form, written_ms = _HEADER.unpack_from(data)
        rows = np.frombuffer(data, _ROW, offset=_HEADER.size)
    except (OSError, ValueError, struct.error) as error:
        if path is not None and path.exists():
            _log.warning("recency_not_read", path=str(path), reason=str(error))
        return nothing
    if magic != _MAGIC or form != _FORMAT:
        _log.warning("recency_not_read", path=str(path), reason=f"{magic!r}, format {form}")
        return nothing
    offset_ms = now_ms - wall_ms
    raw = rows["chunk"].tobytes()
    chunks = [ChunkId(raw[at : at + 24]) for at in range(0, len(raw), 24)]
    # A clock that was set back must not make values of the future.
    born = np.minimum(rows["born_ms"] + offset_ms, now_ms).tolist()
    used = np.minimum(rows["used_ms"] + offset_ms, now_ms).tolist()
    times = zip(born, used, strict=True)
    return Past(min(written_ms + offset_ms, now_ms), dict(zip(chunks, times, strict=True)))
