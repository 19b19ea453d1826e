"""What a disk keeps when the power fails: bytes and names that were synced, and perhaps more.

POSIX promises no more: a write is on stable storage when fsync of its file has returned, a name
when fsync of its directory has. Of what came later any part may be there:

- of a file's bytes any sectors, old or new, and any length between the synced one and the last;
- of a directory's changes a prefix; a rename is one change. Directories do not wait for each other.

Truncating is a change of the inode: a file that was cut shorter is as it was synced, or as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from memory_nodes import PAGE_BYTES, Pages

from fs3.core.types import InodeId

SECTOR_BYTES = (512, 4096)
_HOLE = b""


class VolatilePages(Pages):
    """A file's bytes, and what they were when they were last synced."""

    def __init__(self) -> None:
        super().__init__()
        self._synced_length = 0
        self._before: dict[int, bytes] = {}  # of the pages touched since then
        self._cut_short = False  # the synced length was, since then

    def write(self, offset: int, data: memoryview) -> None:
        self._remember(offset, len(data))
        super().write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._remember(offset, length)
        super().zero(offset, length)

    def truncate(self, length: int) -> None:
        if length < self.length:
            self._remember(length, self.length - length)
            self._cut_short |= length < self._synced_length
        super().truncate(length)

    def _remember(self, offset: int, length: int) -> None:
        for index in range(offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES + 1):
            if index not in self._before:
                page = self.pages.get(index)
                self._before[index] = _HOLE if page is None else bytes(page)

    def sync(self) -> None:
        """All of it is on stable storage."""
        self._synced_length = self.length
        self._before.clear()
        self._cut_short = False

    def lose_power(self, random: Random, *, keep_some: bool) -> None:
        """What was not synced is gone, or with ``keep_some`` some of it is."""
        style = random.choice(("all", "none", "some")) if keep_some else "none"
        if self._cut_short and style == "some":
            style = random.choice(("all", "none"))
        length = self.length
        if style == "none":
            length = self._synced_length
        elif not self._cut_short and length > self._synced_length:
            between = random.randint(self._synced_length, length)
            length = random.choice((self._synced_length, between, length))
        sector_bytes = random.choice(SECTOR_BYTES)
        for index, before in self._before.items():
            if style == "none":
                self._put(index, before)
            elif style == "some":
                self._put(index, self._mixed(index, before, sector_bytes, random))
        super().truncate(length)
        self.sync()

    def _mixed(self, index: int, before: bytes, sector_bytes: int, random: Random) -> bytes:
        """Each sector as it was, or as it is."""
        page = bytearray(self.pages.get(index, bytes(PAGE_BYTES)))
        before = before or bytes(PAGE_BYTES)
        for start in range(0, PAGE_BYTES, sector_bytes):
            if random.random() < 0.5:
                page[start : start + sector_bytes] = before[start : start + sector_bytes]
        return bytes(page)

    def _put(self, index: int, content: bytes) -> None:
        if content:
            self.pages[index] = memoryview(bytearray(content))
        else:
            self.pages.pop(index, None)


class _Change(NamedTuple):
    number: int
    name: str
    inode: InodeId | None  # None: the name is gone


class VolatileEntries(dict[str, InodeId]):
    """A directory's names, and what they were when they were last synced.

    ``number`` gives each change its number; changes of one number happen together.
    """

    def __init__(self, number: Callable[[], int]) -> None:
        super().__init__()
        self._number = number
        self._synced: dict[str, InodeId] = {}
        self._changes: list[_Change] = []

    def __setitem__(self, name: str, inode: InodeId) -> None:
        self._changes.append(_Change(self._number(), name, inode))
        super().__setitem__(name, inode)

    def __delitem__(self, name: str) -> None:
        self._changes.append(_Change(self._number(), name, None))
        super().__delitem__(name)

    def pop(self, name: str) -> InodeId:  # type: ignore[override]
        inode = self[name]
        del self[name]
        return inode

    def sync(self) -> None:
        """All names are on stable storage."""
        self._synced = dict(self)
        self._changes.clear()

    def lose_power(self, random: Random, *, keep_some: bool) -> None:
        """What was not synced is gone, or with ``keep_some`` the later part of it is."""
        numbers = sorted({change.number for change in self._changes})
        last = random.choice([0, *numbers]) if keep_some else 0
        names = dict(self._synced)
        for change in self._changes:
            if change.number > last:
                break
            if change.inode is None:
                names.pop(change.name, None)
            else:
                names[change.name] = change.inode
        self.clear()
        self.update(names)
        self.sync()

    def may_return(self) -> set[InodeId]:
        """The inodes that a loss of power may find under a name here."""
        named = {change.inode for change in self._changes if change.inode is not None}
        return {*self.values(), *self._synced.values(), *named}
