"""Places of whole chunks that a connection has been told, for reads without asking.

A bounded table, the oldest entries give way. What an entry says is good for a read if the target
that it is of serves the chain and version that is asked for, with a lease, before the bytes are
read, and if the stamp of its row still stands afterwards (fs3/core/stamps.py says why). Nothing
here is ever told that a chunk has changed: who finds it out forgets the entry and asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3 import dataplane
from fs3.checksum import CHECKSUM_BLOCK_BYTES, Crcs, combine_blocks
from fs3.compiled import PIECE_OF_PARTS
from fs3.core.stamps import StampView, served_word
from fs3.dataplane import ReadItem
from fs3.errors import Code, Fs3Error
from fs3.transport.located import PIECES, Pieces, parts_per_piece, read_into

CHUNKS_MAX = 1 << 14
CRCS_MAX = 1 << 20  # of all these chunks: 4 MiB
_BLOCK = CHECKSUM_BLOCK_BYTES
_SHIFT = CHECKSUM_BLOCK_BYTES.bit_length() - 1
_MASK = CHECKSUM_BLOCK_BYTES - 1
_FEW = 16
_pack = PIECE_OF_PARTS.pack
_ENTRY = np.dtype(
    [
        ("row", np.int64),
        ("stamp", np.uint64),
        ("version", np.uint64),
        ("position", np.int64),
        ("length", np.int64),
        ("first_crc", np.int64),  # its number: see Remembered
        ("stamps", np.uint32),
        ("descriptor", np.int32),
        ("checksum", np.uint32),
    ]
)
Column = NDArray[np.int64]
NowMs = Callable[[], int]


class Found(NamedTuple):
    """A batch whose chunks are all remembered."""

    items: NDArray[Any]  # dataplane.READ_ITEM
    slots: Column  # of their entries
    entries: NDArray[Any]  # what those say
    numbers: list[int]  # whose stamps they stand by


class _Facts(NamedTuple):
    """An entry, for a read of a single piece."""

    view: StampView
    row: int
    stamp: int
    descriptor: int
    position: int
    length: int
    first_crc: int
    checksum: int


class Remembered:
    """Used by one thread."""

    def __init__(
        self,
        view_of: Callable[[int], StampView],
        files: Mapping[int, int],
        chunks_max: int = CHUNKS_MAX,
        crcs_max: int = CRCS_MAX,
    ) -> None:
        """``view_of``: the stamps in the file of this number; OSError if they cannot be had.

        ``files``: the descriptor of each file by its number; what is in it stays.
        """
        self._view_of = view_of
        self._files = files
        self._chunks_max, self._crcs_max = chunks_max, crcs_max
        self._views: dict[int, StampView] = {}
        self._slots: dict[bytes, int] = {}
        # A ring of entries, and one of their CRCs in the same order: numbers grow, places wrap.
        self._chunks: list[bytes] = []
        self._facts: list[_Facts] = []
        self._entries = np.zeros(0, _ENTRY)
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
        if not len(self._entries):
            self._entries = np.zeros(self._chunks_max, _ENTRY)
            self._crcs = np.empty(self._crcs_max, np.uint32)
        self._check(len(items), places, len(crcs))
        chunks = items["chunk"][places["item"]].tolist()
        start = 0
        for chunk, place in zip(chunks, places.tolist(), strict=True):
            _, stamps, row, stamp, version, position, file, length, checksum, count = place
            slot, number = self._take(count)
            at, descriptor = number % self._crcs_max, self._files[file]
            self._crcs[at : at + count] = crcs[start : start + count]
            start += count
            self._entries[slot] = (
                *(row, stamp, version, position, length, number),
                *(stamps, descriptor, checksum),
            )
            view = self._views[stamps]
            facts = _Facts(view, row, stamp, descriptor, position, length, at, checksum)
            if slot == len(self._chunks):
                self._chunks.append(chunk)
                self._facts.append(facts)
            else:
                self._chunks[slot], self._facts[slot] = chunk, facts
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
            or not self._files.keys() >= set(places["file"].tolist())
        ):
            raise Fs3Error(Code.PROTOCOL, f"{len(places)} places with {crcs} CRCs make no sense")

    def _take(self, count: int) -> tuple[int, int]:
        """Slot of a new entry and number of its first CRC; what is in their way is forgotten."""
        start = self._next_crc
        if start % self._crcs_max + count > self._crcs_max:  # its CRCs stand in one piece
            start += self._crcs_max - start % self._crcs_max
        while self._oldest < self._next:
            oldest = self._oldest % self._chunks_max
            full = self._next - self._oldest == self._chunks_max
            first = int(self._entries["first_crc"][oldest])
            if not full and start + count - first <= self._crcs_max:
                break
            self.forget([oldest])
            self._oldest += 1
        slot = self._next % self._chunks_max
        self._next_crc = start + count
        self._next += 1
        return slot, start

    def clear(self) -> None:
        """Forget everything, the stamps' memory, too."""
        self._slots.clear()
        self._facts.clear()
        self._chunks.clear()
        self._views.clear()
        self._oldest = self._next = self._next_crc = 0

    def forget(self, slots: Sequence[int]) -> None:
        """They are wrong, or in the way."""
        for slot in slots:
            chunk = self._chunks[slot]
            if self._slots.get(chunk) == slot:
                del self._slots[chunk]

    # -- a batch ---------------------------------------------------------------------------------

    def find(self, items: NDArray[Any]) -> Found | None:
        """What is remembered of the chunks of a batch; None if it is not all."""
        if not len(items) or not self._slots:
            return None
        try:
            slots = list(map(self._slots.__getitem__, items["chunk"].tolist()))
        except KeyError:
            return None
        chosen = np.array(slots, np.int64)
        entries = self._entries.take(chosen)
        return Found(items, chosen, entries, list(set(entries["stamps"].tolist())))

    def serving(self, found: Found, now_ms: NowMs) -> bool:
        """Do the targets serve what is asked for? To be asked before anything is read."""
        items = found.items
        served = items["chain"].astype(np.int64) << 32 | items["chain_version"]
        asked = set(zip(found.entries["stamps"].tolist(), served.tolist(), strict=True))
        return all(self._views[number].serves(word, now_ms) for number, word in asked)

    def standing(self, found: Found) -> bool:
        """Is all of it still so? What is not is forgotten. To be asked when all has been read."""
        slots, entries = found.slots, found.entries
        stamps, rows, noted = entries["stamps"], entries["row"], entries["stamp"]
        gone: list[int] = []
        for number in found.numbers:
            mine = stamps == number if len(found.numbers) > 1 else slice(None)
            stands = self._views[number].standing(rows[mine], noted[mine])
            if not stands.all():
                gone += slots[mine][~stands].tolist()
        self.forget(gone)
        return not gone

    def pieces(self, found: Found) -> Pieces:
        """What is there of what is asked for; of length 0 if nothing is."""
        items, _, entries, _ = found
        sizes = entries["length"]
        offsets = items["offset"].astype(np.int64)
        ends = np.minimum(offsets + items["length"], sizes)
        lengths = ends - offsets
        starts, covered = offsets & ~_MASK, np.minimum((ends + _MASK) & ~_MASK, sizes)
        whole = lengths.min() > 0
        if not whole:
            lengths = np.maximum(lengths, 0)
            starts = np.where(lengths > 0, starts, 0)
        made = np.zeros(len(items), PIECES)
        made["descriptor"] = entries["descriptor"]
        made["crc"] = self._crcs_of(entries, starts, covered)
        made["position"] = entries["position"] + starts
        made["before"] = offsets - starts
        made["length"] = lengths
        made["after"] = covered - ends
        if not whole:
            made[lengths == 0] = 0
        return made

    def read_found(self, found: Found, pieces: Pieces, parts: Sequence[memoryview]) -> bool:
        """Read what is there into ``parts``; True if all of it is good, and still stands.

        What is not good is forgotten. Fs3Error PROTOCOL for what makes no sense.
        """
        slots = found.slots
        if not pieces["length"].all():
            there = np.flatnonzero(pieces["length"])
            pieces, slots = pieces[there], slots[there]
        if len(parts) != len(pieces):
            pieces["more_parts"] = parts_per_piece(parts, pieces["length"]) - 1
        failures = read_into(parts, pieces.view(np.uint8).data)
        self.forget([int(slots[failure[0]]) for failure in failures])
        return self.standing(found) and not failures

    def _crcs_of(self, entries: NDArray[Any], starts: Column, ends: Column) -> Crcs:
        """Of these ranges of chunks, which are whole checksum blocks or go to the end."""
        crcs: Crcs = self._crcs[entries["first_crc"] % self._crcs_max + (starts >> _SHIFT)]
        blocks = ends - starts
        if blocks.max() <= _BLOCK:
            return crcs
        whole = (starts == 0) & (ends == entries["length"])
        crcs[whole] = entries["checksum"][whole]
        for at in np.flatnonzero((blocks > _BLOCK) & ~whole).tolist():
            _, _, _, _, length, number, _, _, checksum = entries[at].item()
            first = number % self._crcs_max
            crcs[at] = self._crc_of(first, int(starts[at]), int(ends[at]), length, checksum)
        return crcs

    def _crc_of(self, first: int, start: int, end: int, length: int, checksum: int) -> int:
        if not start and end == length:
            return checksum
        last = first + (end + _MASK >> _SHIFT)
        return combine_blocks(self._crcs[first + (start >> _SHIFT) : last].tolist(), end - start)

    def read(
        self,
        items: NDArray[Any],
        parts: Sequence[memoryview],
        versions: Callable[[int], int],
        now_ms: NowMs,
    ) -> bool:
        """Read pieces that are there whole into ``parts``; False if that cannot be done.

        ``versions``: at which version each chain is asked. What is in the parts counts if this
        is True, and the server proves to be alive after that.
        """
        if len(items) <= _FEW and len(parts) == len(items):
            return self._read_few(items.tolist(), parts, versions, now_ms)
        found = self.find(items)
        if found is None:
            return False
        asked = found.entries["stamps"].astype(np.int64) << 32 | items["chain"]
        for number, chain in [divmod(both, 1 << 32) for both in set(asked.tolist())]:
            if not self._views[number].serves(served_word(chain, versions(chain)), now_ms):
                return False
        pieces = self.pieces(found)
        lengths = pieces["length"]
        if not (lengths == items["length"]).all() or not lengths.all():
            return False
        return self.read_found(found, pieces, parts)

    # -- a few pieces, without arrays, whose fixed costs are more than they take -------------------

    def read_piece(
        self, chunk: bytes, served: int, offset: int, parts: Sequence[memoryview], now_ms: NowMs
    ) -> bool:
        """The same for one piece; ``served``: of the chain at the version that is asked for."""
        slot = self._slots.get(chunk)
        if slot is None:
            return False
        facts = self._facts[slot]
        length = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        piece = self._piece(facts, offset, length, len(parts) - 1)
        if piece is None or not facts.view.serves(served, now_ms):
            return False
        if read_into(parts, piece) or not facts.view.stands(facts.row, facts.stamp):
            self.forget([slot])
            return False
        return True

    def _read_few(
        self,
        items: Sequence[ReadItem],
        buffers: Sequence[memoryview],
        versions: Callable[[int], int],
        now_ms: NowMs,
    ) -> bool:
        """The same for pieces of one buffer each."""
        slots, known = [], []
        records: list[bytes] = []
        for chunk, chain, _, offset, length in items:
            slot = self._slots.get(chunk)
            if slot is None:
                return False
            facts = self._facts[slot]
            piece = self._piece(facts, offset, length, 0)
            served = served_word(chain, versions(chain))
            if piece is None or not facts.view.serves(served, now_ms):
                return False
            slots.append(slot)
            known.append(facts)
            records.append(piece)
        wrong = [slots[failure[0]] for failure in read_into(buffers, b"".join(records))]
        wrong += [
            slot
            for slot, facts in zip(slots, known, strict=True)
            if not facts.view.stands(facts.row, facts.stamp)
        ]
        self.forget(wrong)
        return not wrong

    def _piece(self, facts: _Facts, offset: int, length: int, more_parts: int) -> bytes | None:
        """The piece of these bytes of a chunk; None if they are not all there, or none."""
        _, _, _, descriptor, position, size, first, checksum = facts
        end = offset + length
        if end > size or not length:
            return None
        start, covered = offset & ~_MASK, (end + _MASK) & ~_MASK
        if covered > size:
            covered = size
        if covered - start <= _BLOCK:
            crc = self._crcs.item(first + (start >> _SHIFT))
        else:
            crc = self._crc_of(first, start, covered, size, checksum)
        before, after = offset - start, covered - end
        return _pack(descriptor, crc, position + start, before, length, after, more_parts)
