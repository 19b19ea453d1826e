"""Which blocks are free: reference counts, free lists, and blocks that wait for their readers.

A block is held by each version that lies in it (committed, pending, undo) and by each pin. When the
last holder lets go it is free, at once if no read is under way, or else when the reads that were
under way have ended. Nothing here is stored: the counts are rebuilt from the records at start.

Changed under the store's lock only, but for :meth:`Readers.enter` and :meth:`Readers.leave`.
"""

from __future__ import annotations

import errno
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .records import NO_CLASS, SIZE_CLASSES, class_bytes

Free: TypeAlias = Callable[[int, Sequence[int]], None]


class Readers:
    """Reads under way, and what must wait for them.

    A read notes the generation in which it began; what is retired carries the generation in which
    that happened and is free once no older or equally old read is left.
    """

    def __init__(self) -> None:
        self._generation = 0
        self._active: dict[int, int] = {}
        self._tokens = count()
        self._waiting: deque[tuple[int, Free, int, Sequence[int]]] = deque()

    def enter(self) -> int:
        """Begin a read, before looking anything up; returns what :meth:`leave` takes."""
        token = next(self._tokens)
        self._active[token] = self._generation
        return token

    def leave(self, token: int) -> bool:
        """End a read. True if something waits and :meth:`drain` is worth a call."""
        del self._active[token]
        return bool(self._waiting)

    def retire(self, free: Free, size_class: int, numbers: Sequence[int]) -> None:
        """Call ``free(size_class, numbers)`` when every read that may still use them has ended."""
        if not self._active and not self._waiting:
            free(size_class, numbers)
            return
        self._waiting.append((self._generation, free, size_class, numbers))
        self._generation += 1
        self.drain()

    def drain(self) -> None:
        """Free what no read can use any more."""
        oldest = min(list(self._active.values()), default=self._generation)
        while self._waiting and self._waiting[0][0] < oldest:
            _, free, size_class, numbers = self._waiting.popleft()
            free(size_class, numbers)


class Allocator:
    """Blocks of all size classes. ``grow(size_class)`` makes a file longer: it says by how
    many blocks, and whether they have disk space. ``spend(bytes)`` is told of a block that has none
    and will be written; OSError if the disk has none to give.

    Held blocks never exceed ``capacity_bytes`` (0: no limit), however many free ones there are.
    """

    def __init__(
        self,
        readers: Readers,
        grow: Callable[[int], tuple[int, bool]],
        spend: Callable[[int], None],
        capacity_bytes: int = 0,
    ) -> None:
        self._readers = readers
        self._grow = grow
        self._spend = spend
        self._capacity_bytes = capacity_bytes
        self._holders = [array("I") for _ in range(SIZE_CLASSES)]
        self._free: list[list[int]] = [[] for _ in range(SIZE_CLASSES)]  # taken from the end
        self._punched: list[list[int]] = [[] for _ in range(SIZE_CLASSES)]  # without disk space
        self._least = [0] * SIZE_CLASSES  # free with disk space since :meth:`look_again`, at least
        self.used_bytes = 0

    def rebuild(self, size_class: int, blocks: int) -> None:
        """Begin with ``blocks`` unheld blocks; :meth:`restore` and :meth:`settle` follow."""
        self._holders[size_class] = array("I", bytes(4 * blocks))

    def restore(self, size_class: int, block: int) -> None:
        """Count a holder found in the records."""
        holders = self._holders[size_class]
        if not holders[block]:
            self.used_bytes += class_bytes(size_class)
        holders[block] += 1

    def settle(self, allocated_bytes: Callable[[int], int]) -> None:
        """All records are counted: what nobody holds is free, the lowest to be taken first.

        ``allocated_bytes(size_class)``: the disk space of its file. What held blocks do not need of
        it is the free ones'; which of them have it nobody knows: the lowest ones as a rule.
        """
        for size_class, holders in enumerate(self._holders):
            free = [block for block in range(len(holders) - 1, -1, -1) if not holders[block]]
            size, held = class_bytes(size_class), len(holders) - len(free)
            with_space = (allocated_bytes(size_class) // size - held) if free else 0
            punched = len(free) - max(0, min(with_space, len(free)))
            self._punched[size_class], self._free[size_class] = free[:punched], free[punched:]

    def take(self, size_class: int) -> int:
        """A block with one holder; OSError if there is no space for another one."""
        size, capacity = class_bytes(size_class), self._capacity_bytes
        if capacity and self.used_bytes + size > capacity:
            used = f"{self.used_bytes} of {capacity} bytes of capacity are used"
            raise OSError(errno.ENOSPC, f"{used}: no room for {size} more")
        holders = self._holders[size_class]
        if not self._free[size_class] and not self._punched[size_class]:
            grown, has_space = self._grow(size_class)
            first = len(holders)
            holders.frombytes(bytes(4 * grown))
            made = (self._free if has_space else self._punched)[size_class]
            made.extend(range(first + grown - 1, first - 1, -1))
        free = self._free[size_class]
        if not free:
            self._spend(size)
            free = self._punched[size_class]
        block = free.pop()
        if len(free) < self._least[size_class]:
            self._least[size_class] = len(self._free[size_class])
        holders[block] = 1
        self.used_bytes += size
        return block

    def hold(self, size_class: int, block: int) -> None:
        """One more holder of a held block (of nothing, if the version has no bytes)."""
        if size_class != NO_CLASS:
            holders = self._holders[size_class]
            assert holders[block], f"block {block} of class {size_class} is free"
            holders[block] += 1

    def release(self, size_class: int, block: int) -> None:
        """One holder less; free after the last one and its readers."""
        if size_class == NO_CLASS:
            return
        holders = self._holders[size_class]
        assert holders[block], f"block {block} of class {size_class} is free already"
        holders[block] -= 1
        if not holders[block]:
            self.used_bytes -= class_bytes(size_class)
            self._readers.retire(self._put_back, size_class, (block,))

    def release_all(self, size_class: int, blocks: npt.NDArray[np.integer]) -> None:
        """One holder less of each; no block comes twice."""
        if size_class == NO_CLASS or not len(blocks):
            return
        holders = np.frombuffer(self._holders[size_class], np.uintc)
        left = holders[blocks]
        assert left.all(), f"a block of class {size_class} is free already"
        left -= 1
        holders[blocks] = left
        freed: list[int] = blocks[left == 0].tolist()
        self.used_bytes -= len(freed) * class_bytes(size_class)
        self._readers.retire(self._put_back, size_class, freed)

    def holders(self, size_class: int, block: int) -> int:
        """How many hold a block."""
        return self._holders[size_class][block]

    def free_blocks(self, size_class: int) -> list[int]:
        """Every free block, with and without disk space."""
        return self._free[size_class] + self._punched[size_class]

    def idle_bytes(self) -> int:
        """Disk space that free blocks hold."""
        return sum(len(free) * class_bytes(k) for k, free in enumerate(self._free))

    def look_again(self) -> None:
        """From now on it counts how many free blocks are never needed."""
        self._least = [len(free) for free in self._free]

    def take_run(self, size_class: int, keep_bytes: int, run_bytes: int) -> range | None:
        """The highest run of free blocks to punch, of at most ``run_bytes`` (at least one block).

        None while free blocks that nobody has needed since :meth:`look_again` hold no more than
        ``keep_bytes``. The blocks come back by :meth:`punched`.
        """
        free = self._free[size_class]
        size = class_bytes(size_class)
        surplus = (self._least[size_class] * size - keep_bytes) // size
        if surplus <= 0:
            return None
        free.sort(reverse=True)
        longest = min(surplus, max(1, run_bytes // size))
        length = 1
        while length < longest and free[length] == free[0] - length:
            length += 1
        run = range(free[length - 1], free[0] + 1)
        del free[:length]
        self._least[size_class] -= length
        return run

    def punched(self, size_class: int, run: range) -> None:
        """The blocks of ``run`` are free and have no disk space any more."""
        self._punched[size_class].extend(reversed(run))

    def _put_back(self, size_class: int, blocks: Sequence[int]) -> None:
        self._free[size_class].extend(blocks)
