"""Chunks of closed files that were written and not synced yet.

An fsync covers what any handle of the client wrote to the file, also one that is closed by now. So
what is left at the last close is kept here until the file is opened again, or until it is synced in
the background because it has become much.
"""

from __future__ import annotations

from typing import NamedTuple

from fs3.core.layout import Layout
from fs3.core.types import InodeId

from .data import Items, chunk_items


class Left(NamedTuple):
    """Of one inode."""

    layout: Layout
    chunks: set[int]

    def items(self, inode: InodeId) -> Items:
        """For ``DataClient.sync_chunks``."""
        chunks = sorted(self.chunks)  # whoever opens the file meanwhile writes, and adds to them
        zeros = [0] * len(chunks)
        return chunk_items(self.layout, inode, chunks, zeros, zeros)


class Unsynced:
    """By inode, the longest closed first. Not thread-safe: the caller has a lock."""

    def __init__(self) -> None:
        self.count = 0  # chunks
        self._left: dict[InodeId, Left] = {}

    def put(self, inode: InodeId, layout: Layout, chunks: set[int]) -> None:
        """The file was closed."""
        if chunks:
            self._left[inode] = Left(layout, chunks)
            self.count += len(chunks)

    def pop(self, inode: InodeId) -> set[int]:
        """The file is opened: its handles look after them."""
        left = self._left.pop(inode, None)
        if left is None:
            return set()
        self.count -= len(left.chunks)
        return left.chunks

    def oldest(self, chunks: int) -> list[tuple[InodeId, Left]]:
        """Of the longest closed files, in all at least so many chunks if there are."""
        found = []
        for inode, left in self._left.items():
            found.append((inode, left))
            chunks -= len(left.chunks)
            if chunks <= 0:
                break
        return found

    def drop(self, synced: list[tuple[InodeId, Left]]) -> None:
        """These are synced; what was opened meanwhile, or closed anew, stays as it is."""
        for inode, left in synced:
            if self._left.get(inode) is left:
                self.pop(inode)
