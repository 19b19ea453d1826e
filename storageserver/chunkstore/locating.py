"""Where ranges of committed versions lie, for who reads the data files by itself.

A range is widened to whole checksum blocks, so that the CRC of what is to be read is known without
reading it. Like reads (reading.py) this looks at the index's rows one by one: below a few hundred
pieces numpy's fixed costs are more than they save.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fs3.checksum import CHECKSUM_BLOCK_BYTES, combine_blocks
from fs3.core.types import ChunkId
from fs3.dataplane import CHUNK_PLACE_CRCS_MAX, FILE_NONE
from fs3.errors import Code
from fs3.transport.located import Location

from .allocator import Readers
from .datafiles import DataFiles
from .index import Index
from .interface import ChunkPlace, Piece
from .reading import Reader
from .records import BLOCK_BYTES, ROW, VERSION

_BLOCK = CHECKSUM_BLOCK_BYTES
_SHIFT = CHECKSUM_BLOCK_BYTES.bit_length() - 1
_MASK = CHECKSUM_BLOCK_BYTES - 1
_NO_CHUNK: Location = (Code.NO_CHUNK, 0, 0, 0, FILE_NONE, 0, 0, 0)


class Locating:
    """The half of a disk store that is for who reads the data files by itself."""

    _index: Index
    _data: DataFiles
    _readers: Readers
    _reader: Reader
    _try_drain: Callable[[], None]

    def hold(self) -> int:
        """From now on no block is reused."""
        return self._readers.enter()

    def let_go(self, token: int) -> None:
        """End a hold."""
        if self._readers.leave(token):
            self._try_drain()

    def locate(self, pieces: Sequence[Piece], first_file: int) -> list[Location]:
        """Where pieces of committed versions lie."""
        return _locate(self._index, self._data, pieces, first_file)

    def place(self, chunk: ChunkId, first_file: int) -> ChunkPlace | None:
        """Where a whole chunk lies."""
        return _place_of(self._index, self._data, chunk, first_file)

    def fetch(self, size_class: int, position: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from a place."""
        self._reader.fetch(size_class, position, buffer)

    def data_file(self, size_class: int) -> int:
        """The descriptor of a class's file."""
        return self._data.fds[size_class]


def _locate(
    index: Index, data: DataFiles, pieces: Sequence[Piece], first_file: int
) -> list[Location]:
    """See ``LocatingStore.locate``."""
    row_of, view, crcs = index.row_of, index.view, data.crcs
    unpack, row_bytes = VERSION.unpack_from, ROW.size
    places: list[Location] = []
    for chunk, offset, length in pieces:
        row = row_of.get(chunk)
        if row is None:
            places.append(_NO_CHUNK)
            continue
        number, _, _, block, size, _, checksum, crc, size_class = unpack(view, row * row_bytes)
        end = offset + length
        if end > size:
            end = size
        if end <= offset:
            places.append((0, 0, number, 0, FILE_NONE, 0, 0, 0) if number else _NO_CHUNK)
            continue
        start = offset & ~_MASK
        covered = (end + _MASK) & ~_MASK
        if covered > size:
            covered = size
        if covered - start == _BLOCK:
            crc = crcs[size_class].item(block, start >> _SHIFT)
        elif start == 0 and covered == size:
            crc = checksum
        elif covered - start > _BLOCK:
            stored = crcs[size_class][block, start >> _SHIFT : covered >> _SHIFT].tolist()
            if covered & _MASK:
                stored.append(crc)  # of the partial last one
            crc = combine_blocks(stored, covered - start)
        position = block * BLOCK_BYTES[size_class] + start
        file = first_file + size_class
        places.append((0, end - offset, number, crc, file, position, offset - start, covered - end))
    return places


def _place_of(index: Index, data: DataFiles, chunk: ChunkId, first_file: int) -> ChunkPlace | None:
    """See ``LocatingStore.place``."""
    row = index.row_of.get(chunk)
    if row is None:
        return None
    stamp = index.stamps.stamp(row)  # before the row is looked at
    *version, pending = ROW.unpack_from(index.view, row * ROW.size)
    number, _, _, block, length, _, checksum, tail, size_class = version
    whole, rest = divmod(length, _BLOCK)
    if pending or not stamp or not number or not 0 < length <= CHUNK_PLACE_CRCS_MAX * _BLOCK:
        return None
    crcs = data.crcs[size_class][block, :whole].tobytes()
    if rest:
        crcs += tail.to_bytes(4, "little")
    position, file = block * BLOCK_BYTES[size_class], first_file + size_class
    return ChunkPlace(row, stamp, number, position, file, length, checksum, crcs)
