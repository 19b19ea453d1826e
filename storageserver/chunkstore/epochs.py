"""Durability epochs: which version a power cut could bring back, and the blocks that needs.

``durable`` is the newest epoch whose data and records are on stable storage, ``current`` the one
that versions are staged and records are written in; while a sync runs there is one between them. A
version is *at risk* while the epoch in which it was staged is above ``durable``. See store.py for
the whole story.
"""

from __future__ import annotations

from fs3.core.types import ChunkId

from .allocator import Allocator
from .interface import BlockId
from .records import Version


class Epochs:
    """Changed under the store's lock only."""

    def __init__(self, allocator: Allocator, durable: int) -> None:
        self._allocator = allocator
        self.durable = durable
        self.current = durable + 1
        self._undo: dict[int, dict[ChunkId, tuple[Version, ...]]] = {}  # by the version's epoch
        self._held: dict[int, list[BlockId]] = {}  # let go when that epoch is durable

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
        for version in undo:
            self._allocator.hold(version.size_class, version.block)
            self._held.setdefault(self.current, []).append(
                BlockId(version.size_class, version.block)
            )
        if new is None:  # a later chunk of the same name does not fall back to it
            for undos in self._undo.values():
                undos.pop(chunk, None)
        elif undo and new.epoch > self.durable:
            self._undo.setdefault(new.epoch, {})[chunk] = undo
        self._allocator.release(old.size_class, old.block)

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

    def held_blocks(self) -> list[BlockId]:
        """Blocks held for undo, once per holder."""
        return [block for blocks in self._held.values() for block in blocks]
