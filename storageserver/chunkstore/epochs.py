"""Durability epochs: which version a power cut could bring back, and the blocks that needs.

``durable`` is the newest epoch whose data and records are on stable storage, ``current`` the one
that versions are staged and records are written in; while a sync runs there is one between them. A
version is *at risk* while the epoch in which it was staged is above ``durable``. See store.py for
the whole story.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fs3.core.types import ChunkId

from .allocator import Allocator
from .interface import BlockId
from .records import NO_CLASS, VERSION, Version


class Epochs:
    """Changed under the store's lock only."""

    def __init__(self, allocator: Allocator, durable: int) -> None:
        self._allocator = allocator
        self.durable = durable
        self.current = durable + 1
        self._undo: dict[int, dict[ChunkId, tuple[Version, ...]]] = {}  # by the version's epoch
        self._held: dict[int, list[BlockId]] = {}  # let go when that epoch is durable
        # The same of blocks that go together: those of one class, each of them once.
        self._held_together: dict[int, list[tuple[int, npt.NDArray[np.uint32]]]] = {}

    def undo_of(self, chunk: ChunkId, committed: Version) -> tuple[Version, ...]:
        """What the committed record may still have to fall back to, newest first."""
        if committed.epoch <= self.durable:
            return ()
        return self._undo.get(committed.epoch, {}).get(chunk, ())

    def new_undo(self, chunk: ChunkId, old: Version) -> tuple[Version, ...]:
        """What a record that replaces ``old`` in this epoch may have to fall back to.

        Not to a version staged in this epoch: it is no safer than its successor. Down to the newest
        durable one, which is safe.
        """
        undo = []
        for version in (old, *self.undo_of(chunk, old)):
            if version.version and version.epoch < self.current:
                undo.append(version)
            if version.epoch <= self.durable:
                break
        return tuple(undo)

    def replaced(
        self, chunk: ChunkId, old: Version, new: Version | None, undo: tuple[Version, ...]
    ) -> None:
        """``new`` (None: nothing) stands for ``old``: hold what ``undo`` needs, let ``old`` go.

        Until the record that says so is durable, whenever ``new`` itself was or will be.
        """
        self._hold(undo)
        if new is None:
            self._forget(chunk)
        elif undo and new.epoch > self.durable:
            self._undo.setdefault(new.epoch, {})[chunk] = undo
        self._allocator.release(old.size_class, old.block)

    def _hold(self, undo: Sequence[Version]) -> None:
        for version in undo:
            self._allocator.hold(version.size_class, version.block)
            self._held.setdefault(self.current, []).append(
                BlockId(version.size_class, version.block)
            )

    def _forget(self, chunk: ChunkId) -> None:
        """A later chunk of the same name does not fall back to it."""
        for undos in self._undo.values():
            undos.pop(chunk, None)

    def discarded(self, chunks: Sequence[ChunkId], versions: npt.NDArray[np.void]) -> None:
        """The chunks are removed; ``versions``: what the index's rows said of them, one each.

        As :meth:`replaced` by nothing, for many. A block that a power cut could bring back stays
        held by whom it was held: the epoch takes the place of the chunk.
        """
        if any(self._undo.values()):
            for at in np.flatnonzero(versions["epoch"] > self.durable).tolist():
                old = Version._make(VERSION.unpack_from(versions[at].tobytes()))
                self._hold([v for v in self.new_undo(chunks[at], old) if v is not old])
            for chunk in chunks:
                self._forget(chunk)
        safe = versions["epoch"] >= self.current
        classes, blocks = versions["size_class"], versions["block"]
        for size_class in np.flatnonzero(np.bincount(classes)).tolist():
            mine = classes == size_class
            kept = blocks[mine & ~safe]
            if len(kept) and size_class != NO_CLASS:
                self._held_together.setdefault(self.current, []).append((size_class, kept))
            self._allocator.release_all(size_class, blocks[mine & safe])

    def end(self) -> int:
        """Begin the next epoch; the one that ended, for :meth:`made_durable`."""
        self.current += 1
        return self.current - 1

    def made_durable(self, epoch: int) -> None:
        """All records and data of ``epoch`` and before are on stable storage."""
        self.durable = epoch
        self._undo.pop(epoch, None)
        for block in self._held.pop(epoch, ()):
            self._allocator.release(*block)
        for size_class, blocks in self._held_together.pop(epoch, ()):
            self._allocator.release_all(size_class, blocks)

    def held_blocks(self) -> list[BlockId]:
        """Blocks held for undo, once per holder."""
        single = [block for blocks in self._held.values() for block in blocks]
        runs = [run for runs in self._held_together.values() for run in runs]
        return single + [BlockId(kind, block) for kind, run in runs for block in run.tolist()]
