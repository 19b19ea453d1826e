"""Places of whole chunks that a connection has been told, for reads without asking.

A bounded table, the oldest entries give way. What an entry says is good for a read if the target
that it is of serves the chain and version that is asked for, with a lease, before the bytes are
read, and if the stamp of its row still stands afterwards (fs3/core/stamps.py says why). Nothing
here is ever told that a chunk has changed: who finds it out forgets the entry and asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3 import dataplane
from fs3.checksum import CHECKSUM_BLOCK_BYTES, Crcs, combine_blocks
from fs3.core.stamps import StampView
from fs3.dataplane import FILE_NONE
from fs3.errors import Code, Fs3Error
from fs3.transport.located import Places

CHUNKS_MAX = 1 << 14
CRCS_MAX = 1 << 20  # of all these chunks: 4 MiB
_BLOCK = CHECKSUM_BLOCK_BYTES
_SHIFT = CHECKSUM_BLOCK_BYTES.bit_length() - 1
_MASK = CHECKSUM_BLOCK_BYTES - 1

Column = NDArray[np.int64]


class Found(NamedTuple):
    """A batch whose chunks are all remembered."""

    items: NDArray[Any]  # dataplane.READ_ITEM
    slots: Column  # of their entries
    places: NDArray[Any]  # what those say: dataplane.CHUNK_PLACE


class Remembered:
    """Used by one thread."""

    def __init__(
        self,
        view_of: Callable[[int], StampView],
        chunks_max: int = CHUNKS_MAX,
        crcs_max: int = CRCS_MAX,
    ) -> None:
        """``view_of``: the stamps in the file of this number; OSError if they cannot be had."""
        self._view_of = view_of
        self._chunks_max, self._crcs_max = chunks_max, crcs_max
        self._views: dict[int, StampView] = {}
        self._slots: dict[bytes, int] = {}
        # A ring of entries, and one of their CRCs in the same order: numbers grow, places wrap.
        self._chunks: list[bytes] = []
        self._places = np.zeros(0, dataplane.CHUNK_PLACE)
        self._first_crc = np.zeros(0, np.int64)  # number of an entry's
        self._crcs: Crcs = np.zeros(0, np.uint32)
        self._oldest = self._next = 0
        self._next_crc = 0

    def __len__(self) -> int:
        return len(self._slots)

    # -- the table -------------------------------------------------------------------------------

    def unknown(self, items: NDArray[Any]) -> list[int]:
        """One item for each chunk that is not remembered and could be."""
        first: dict[bytes, int] = {}
        for index, chunk in enumerate(items["chunk"].tolist()):
            if chunk not in self._slots:
                first.setdefault(chunk, index)
        return list(first.values())

    def learn(self, items: NDArray[Any], places: NDArray[Any], crcs: Crcs) -> None:
        """What the reply to ``items`` says. Fs3Error PROTOCOL if it makes no sense."""
        if not len(self._places):
            self._places = np.zeros(self._chunks_max, dataplane.CHUNK_PLACE)
            self._first_crc = np.zeros(self._chunks_max, np.int64)
            self._crcs = np.empty(self._crcs_max, np.uint32)
        self._check(len(items), places, len(crcs))
        chunks = items["chunk"][places["item"]].tolist()
        start = 0
        for chunk, place, count in zip(chunks, places, places["crcs"].tolist(), strict=True):
            slot, at = self._take(count)
            self._crcs[at : at + count] = crcs[start : start + count]
            self._places[slot] = place
            start += count
            if slot == len(self._chunks):
                self._chunks.append(chunk)
            else:
                self._chunks[slot] = chunk
            self._slots[chunk] = slot

    def _check(self, items: int, places: NDArray[Any], crcs: int) -> None:
        for number in np.unique(places["stamps"]).tolist():
            if number not in self._views:
                self._views[number] = self._view_of(number)
            last = int(places["row"][places["stamps"] == number].max())
            if last >= self._views[number].rows:
                raise Fs3Error(Code.PROTOCOL, f"row {last} has no stamp")
        counts = places["crcs"].astype(np.int64)
        lengths = places["length"].astype(np.int64)
        if (
            (places["item"] >= items).any()
            or (counts != (lengths + _MASK) >> _SHIFT).any()
            or (counts > dataplane.CHUNK_PLACE_CRCS_MAX).any()
            or int(counts.sum()) != crcs
        ):
            raise Fs3Error(Code.PROTOCOL, f"{len(places)} places with {crcs} CRCs make no sense")

    def _take(self, count: int) -> tuple[int, int]:
        """Where a new entry goes, and so many CRCs; what is in their way is forgotten."""
        start = self._next_crc
        if start % self._crcs_max + count > self._crcs_max:  # its CRCs stand in one piece
            start += self._crcs_max - start % self._crcs_max
        while self._oldest < self._next:
            oldest = self._oldest % self._chunks_max
            full = self._next - self._oldest == self._chunks_max
            if not full and start + count - int(self._first_crc[oldest]) <= self._crcs_max:
                break
            self.forget([oldest])
            self._oldest += 1
        slot = self._next % self._chunks_max
        self._first_crc[slot] = start
        self._next_crc = start + count
        self._next += 1
        return slot, start % self._crcs_max

    def clear(self) -> None:
        """Forget everything, the stamps' memory, too."""
        self._slots.clear()
        self._views.clear()

    def forget(self, slots: Sequence[int]) -> None:
        """They are wrong, or in the way."""
        for slot in slots:
            chunk = self._chunks[slot]
            if self._slots.get(chunk) == slot:
                del self._slots[chunk]

    # -- a read ----------------------------------------------------------------------------------

    def find(self, items: NDArray[Any]) -> Found | None:
        """What is remembered of the chunks of a batch; None if it is not all."""
        get = self._slots.get
        slots = [get(chunk, -1) for chunk in items["chunk"].tolist()]
        if not slots or min(slots) < 0:
            return None
        chosen = np.array(slots, np.int64)
        return Found(items, chosen, self._places[chosen])

    def serving(self, found: Found, now_ms: Callable[[], int]) -> bool:
        """Do the targets serve what is asked for? To be asked before anything is read."""
        items = found.items
        served = items["chain"].astype(np.int64) << 32 | items["chain_version"]
        asked = set(zip(found.places["stamps"].tolist(), served.tolist(), strict=True))
        return all(self._views[number].serves(word, now_ms) for number, word in asked)

    def standing(self, found: Found) -> bool:
        """Is all of it still so? What is not is forgotten. To be asked when all has been read."""
        places = found.places
        numbers = places["stamps"]
        gone: list[int] = []
        for number in set(numbers.tolist()):
            mine = numbers == number
            of = places[mine]
            stands = self._views[number].standing(of["row"], of["stamp"])
            if not stands.all():
                gone += found.slots[mine][~stands].tolist()
        self.forget(gone)
        return not gone

    def locations(self, found: Found) -> Places:
        """Where the pieces lie."""
        items, slots, places = found
        sizes = places["length"].astype(np.int64)
        offsets = items["offset"].astype(np.int64)
        ends = np.minimum(offsets + items["length"], sizes)
        lengths = np.maximum(ends - offsets, 0)
        starts = offsets & ~_MASK
        covered = np.minimum((ends + _MASK) & ~_MASK, sizes)
        blocks = np.where(lengths > 0, starts >> _SHIFT, 0)
        located = np.zeros(len(items), dataplane.LOCATE_RESULT)
        located["length"] = lengths
        located["version"] = places["version"]
        located["crc"] = self._crcs[self._first_crc[slots] % self._crcs_max + blocks]
        located["file"] = places["file"]
        located["position"] = places["position"].astype(np.int64) + starts
        located["before"] = offsets - starts
        located["after"] = np.maximum(covered - ends, 0)
        for at in np.flatnonzero(covered - starts > _BLOCK).tolist():
            located["crc"][at] = self._crc_of(int(slots[at]), int(starts[at]), int(covered[at]))
        nothing = np.flatnonzero(lengths == 0)
        if len(nothing):
            located[nothing] = 0
            located["version"][nothing] = places["version"][nothing]
            located["file"][nothing] = FILE_NONE
        return located

    def _crc_of(self, slot: int, start: int, end: int) -> int:
        """Of whole checksum blocks, or up to the chunk's end."""
        if not start and end == self._places["length"][slot]:
            return int(self._places["checksum"][slot])
        first = int(self._first_crc[slot]) % self._crcs_max
        last = first + (end + _MASK >> _SHIFT)
        crcs = self._crcs[first + (start >> _SHIFT) : last].tolist()
        return combine_blocks(crcs, end - start)
