"""Stamps: how whoever shares a replica's memory sees that what it knows of a chunk still holds.

The replica's end (:class:`Stamps`) writes 64-bit words, the other (:class:`StampView`) reads them.
Each word is written and read by one 8-byte move, so it is whole; no two are written at once.

    word 0      which chain the replica serves, and in which version; 0: it serves nothing
    word 1      until when, in ms of the machine's boot clock
    2 to 7      0
    8 + row     the *stamp* of a row of the chunk index: it grows at every change of the row

The replica writes before anybody can notice what it writes about: a stamp before an update is
forwarded, acknowledged or answered, and before a block is reused; word 0 before the effects of a
step that ends its serving or moves its chain on. So what the words say at some moment is how the
replica would have answered a read at that moment, and that is the whole argument:

* A reader notes a row's stamp, then what the row says. As long as the stamp is the same, so is the
  row: the chunk is there, nothing of it is pending, and its bytes lie where they lay.
* A read looks at words 0 and 1, reads the bytes, and then looks at the stamps. If all is well the
  replica would have given these bytes when it was asked at the moment of the first look: it served
  that version of that chain, with a lease; and since the stamps have not changed until later, the
  chunk was clean and at this version then. It does not matter what happened after it.

Word 1 is good only with the word 0 it was written for. So the writer changes word 0 by way of 0,
and the reader takes word 1 between two equal looks at word 0. The clock is looked at last: a lease
that is good then was good at the look before.

A row's order matters, too: it is written first, its stamp second. Read the other way round, a row
is never older than the stamp that is noted with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.core.types import ChainId, ChainVersion

ROWS_MAX = 1 << 22  # rows that have a stamp: 32 MiB of memory, touched where there are chunks
STAMPS_BYTES = (8 + ROWS_MAX) * 8
_SERVED, _LEASE = 0, 1
_FIRST = 8  # a cache line for what all readers look at
_NOTHING = memoryview(bytearray(_FIRST * 8))


def served_word(chain: int, version: int) -> int:
    """Word 0 of who serves ``version`` of ``chain``; neither has more than 32 bits."""
    return chain << 32 | version


class Stamps:
    """The replica's end. Without memory it has no stamps, and nobody sees what it serves."""

    descriptor = -1  # under which the memory can be passed on

    def __init__(self, memory: memoryview | None = None) -> None:
        """``memory``: zeros, 64 bytes and 8 for each row; what does not fit has no stamp."""
        self._shared = memory is not None
        self._words = (memory if memory is not None else _NOTHING).cast("B").cast("Q")
        self._rows = len(self._words) - _FIRST
        self._column: NDArray[np.uint64] = np.frombuffer(self._words, np.uint64)[_FIRST:]
        self._served, self._until_ms = 0, 0

    def changed(self, row: int) -> None:
        """The row has been written."""
        if row < self._rows:
            self._words[_FIRST + row] += 1

    def changed_all(self, rows: NDArray[np.int64]) -> None:
        """These have, each of them once."""
        self._column[rows[rows < self._rows]] += np.uint64(1)

    def stamp(self, row: int) -> int:
        """To be noted before the row is read; 0: it has none, and nothing may be remembered."""
        return self._words[_FIRST + row] if row < self._rows else 0

    def serve(self, chain: ChainId, version: ChainVersion, until_ms: int) -> None:
        """From now on, until then."""
        if not self._shared:
            return
        served, words = served_word(chain, version), self._words
        if served != self._served:
            words[_SERVED] = 0
            words[_LEASE] = self._until_ms = max(until_ms, 0)
            words[_SERVED] = self._served = served
        elif until_ms != self._until_ms:
            words[_LEASE] = self._until_ms = max(until_ms, 0)

    def withdraw(self) -> None:
        """Nothing is served from now on."""
        if self._served:
            self._words[_SERVED] = self._served = 0


class StampView:
    """The other end, of memory that is mapped here."""

    def __init__(self, memory: memoryview) -> None:
        self._words = memory.cast("B").cast("Q")
        self._column: NDArray[np.uint64] = np.frombuffer(memory, np.uint64)[_FIRST:]
        self.rows = len(self._words) - _FIRST

    def serves(self, served: int, now_ms: Callable[[], int]) -> bool:
        """Does the replica serve this chain and version (:func:`served_word`), with a lease?"""
        words = self._words
        if words[_SERVED] != served:
            return False
        until_ms = words[_LEASE]
        return words[_SERVED] == served and now_ms() < until_ms

    def stands(self, row: int, stamp: int) -> bool:
        """Is this its stamp still?"""
        return self._words[_FIRST + row] == stamp

    def standing(self, rows: NDArray[Any], stamps: NDArray[Any]) -> NDArray[np.bool_]:
        """The same of many."""
        standing: NDArray[np.bool_] = self._column[rows] == stamps
        return standing
