"""Which version a client's own writes gave to chunks: by this it notices that they were taken back.

A write without sync is safe from the death of processes, not from all replicas of a chain losing
power at once. Afterwards the chain has an older version of the chunk, and an fsync would find that
one on stable storage, and say that all is well. So the version that the last write made is kept
until the chunk is synced: every later update must make a greater one. If it does not, what was
written before is gone, and the next fsync of the file says so.

A chunk that is removed begins with version 1 again, so when a file is cut its versions are
forgotten. What another client has cut looks like a loss: an fsync that would fail looks at the
inode first.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.core.codes import Code
from fs3.core.types import InodeId

Versions = NDArray[np.uint64]
CHUNKS_MAX = 1 << 17  # beyond, what was written longest ago is believed to be safe
_OWNER_BYTES = 8


class WrittenVersions:
    """Of all chunks that were written and not synced since. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # see ChunkBuffers
        self._versions: dict[bytes, int] = {}  # by chunk, the longest written first
        self._lost: set[bytes] = set()  # owners

    def known(self, chunks: Sequence[bytes]) -> Versions:
        """To be asked before updates of these chunks are sent for the first time; 0: none."""
        if not self._versions:
            return np.zeros(len(chunks), np.uint64)
        get = self._versions.get
        return np.array([get(chunk, 0) for chunk in chunks], np.uint64)

    def note(
        self, chunks: Sequence[bytes], known: Versions, results: NDArray[Any], *, sync: bool
    ) -> None:
        """What came of the updates: ``results`` are WRITE_RESULTs, ``known`` what was known before.

        With ``sync`` they, and all that was written before, are on stable storage.
        """
        good = results["code"] == Code.OK
        lost = good & (known > 0) & (results["version"] <= known)
        versions = results["version"].tolist()
        with self._lock:
            for position in np.flatnonzero(lost).tolist():
                self._lost.add(chunks[position][:_OWNER_BYTES])
                self._versions.pop(chunks[position], None)
            for position in np.flatnonzero(good).tolist():
                chunk, version = chunks[position], versions[position]
                newest = self._versions.pop(chunk, 0)
                if not sync or newest > version:
                    self._versions[chunk] = max(newest, version)
            while len(self._versions) > CHUNKS_MAX:
                del self._versions[next(iter(self._versions))]

    def forget(self, inode: InodeId) -> None:
        """The file was cut: its chunks begin anew."""
        owner = inode.to_bytes(_OWNER_BYTES, "big")
        with self._lock:
            self._lost.discard(owner)
            for chunk in [chunk for chunk in self._versions if chunk.startswith(owner)]:
                del self._versions[chunk]

    def take_lost(self, inode: InodeId) -> bool:
        """Whether writes to the file were taken back since this was asked last."""
        owner = inode.to_bytes(_OWNER_BYTES, "big")
        if owner not in self._lost:
            return False
        with self._lock:
            self._lost.discard(owner)
        return True
