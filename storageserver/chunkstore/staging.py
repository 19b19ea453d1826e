"""From a committed version and an update to the pending version: bytes written, CRCs known.

Three ways, the first that fits:

- *share*: the bytes are there already (a cut, or no change): the new version lies in the old block.
- *in place*: the update only adds behind the end, the block has room, and neither a committed
  version ever used the bytes there nor does the pending one that is being replaced: they are
  written behind the committed ones.
- *copy on write*: a fresh block gets the changed region, widened to whole checksum blocks, and a
  copy of the rest. Bytes from the old block that share a checksum block with new ones are verified
  before they get a new CRC; all others keep their CRC, so that damage stays visible.

Nothing here is visible to anyone until the store publishes the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fs3.checksum import (
    CHECKSUM_BLOCK_BYTES,
    combine,
    combine_blocks,
    crc32c,
    zeros_checksum,
)
from fs3.compiled import block_crcs
from fs3.core.chunks import UpdateKind
from fs3.core.kv import is_value
from fs3.core.types import CHUNK_BYTES_MAX, CHUNK_CONTENT_BYTES_MAX
from fs3.errors import Code, Fs3Error

from .allocator import Allocator
from .datafiles import DataFiles
from .files import Operation
from .interface import StageRequest
from .records import NO_CLASS, NO_VERSION, Version, class_of

_BLOCK = CHECKSUM_BLOCK_BYTES
_ZEROS = memoryview(bytes(1 << 20))
_ZERO_BLOCK_CRC = zeros_checksum(_BLOCK)
_EMPTY = memoryview(b"")
_TWICE_BYTES_MAX = 128 << 10


class Change(NamedTuple):
    """The bytes that an update writes: ``gap`` zeros from ``start`` on, then ``data``."""

    start: int
    gap: int
    data: memoryview
    length: int  # of the chunk afterwards

    @property
    def end(self) -> int:
        """Behind the last byte written."""
        return self.start + self.gap + len(self.data)


def plan(base: Version, update: StageRequest) -> Change:
    """What ``update`` does to ``base``; INVALID if it makes no sense."""
    offset, length = update.offset, update.length
    data = update.data if update.data is not None else _EMPTY
    longest = CHUNK_CONTENT_BYTES_MAX if is_value(update.chunk) else CHUNK_BYTES_MAX
    if offset < 0 or length < 0 or offset + length > longest:
        raise Fs3Error(
            Code.INVALID,
            f"bytes {offset} to {offset + length} of a chunk: 0 to {longest} are allowed",
        )
    if update.kind in (UpdateKind.WRITE, UpdateKind.REPLACE) and len(data) != length:
        raise Fs3Error(Code.INVALID, f"{len(data)} bytes of data came for a length of {length}")
    match update.kind:
        case UpdateKind.WRITE if length:
            start = min(offset, base.length)
            return Change(start, offset - start, data, max(base.length, offset + length))
        case UpdateKind.REPLACE:
            return Change(0, 0, data, length)
        case UpdateKind.TRUNCATE if length < base.length:
            return Change(length, 0, _EMPTY, length)
        case UpdateKind.TRUNCATE | UpdateKind.EXTEND if length > base.length:
            return Change(base.length, length - base.length, _EMPTY, length)
    return Change(base.length, 0, _EMPTY, base.length)


class Stager:
    """Writes the bytes of pending versions."""

    def __init__(self, data: DataFiles, allocator: Allocator) -> None:
        self._data = data
        self._allocator = allocator

    def stage(
        self, base: Version, replaced: Version, update: StageRequest
    ) -> tuple[Version, list[Operation]]:
        """The pending version, holding its block, and the records of its CRCs.

        ``base`` is the committed version, or NO_VERSION where it does not matter; ``replaced`` the
        pending one, which stays readable. Raises Fs3Error for a refusal and OSError for the
        disk's; then nothing is held.
        """
        change = plan(base, update)
        size_class = class_of(change.length, roomy=is_value(update.chunk))
        if change.length == 0:
            _check_data(change, update)
            return NO_VERSION, []
        fits = size_class == base.size_class
        writes = change.start != change.end
        if not writes and (change.length == base.length or (fits and change.length < base.length)):
            return self._share(base, change), []
        behind_is_free = (replaced.size_class, replaced.block) != (base.size_class, base.block)
        if fits and change.start == base.length == base.high and behind_is_free:
            return self._in_place(base, change, update)
        return self._copy_on_write(base, change, update)

    def _share(self, base: Version, change: Change) -> Version:
        """A cut, or no change at all."""
        if change.length == base.length:
            version = base
        else:
            slot, within = divmod(change.length, _BLOCK)
            tail = crc32c(self._edge(base, slot)[:within]) if within else 0
            crcs = self._known(base, 0, slot)
            checksum = combine_blocks([*crcs, tail] if within else crcs, change.length)
            version = base._replace(length=change.length, checksum=checksum, tail=tail)
        self._allocator.hold(base.size_class, base.block)
        return version

    def _in_place(
        self, base: Version, change: Change, update: StageRequest
    ) -> tuple[Version, list[Operation]]:
        grid = Grid(base.length, base.tail)
        grid.add_zeros(change.gap)
        data_crc = grid.add_data(change.data)
        _check_data(change, update, data_crc)
        added = combine(zeros_checksum(change.gap), data_crc, len(change.data))
        self._data.write(base.size_class, base.block, base.length, _parts(change))
        self._allocator.hold(base.size_class, base.block)
        operations = self._data.set_crcs(
            base.size_class, base.block, base.length // _BLOCK, grid.done
        )
        version = base._replace(
            length=change.length,
            high=change.length,
            checksum=combine(base.checksum, added, change.length - base.length),
            tail=grid.crc,
        )
        return version, operations

    def _copy_on_write(
        self, base: Version, change: Change, update: StageRequest
    ) -> tuple[Version, list[Operation]]:
        first, within = divmod(change.start, _BLOCK)
        head = self._edge(base, first)[:within] if within else _EMPTY
        rest, tail = self._rest(base, change)
        grid = Grid(first * _BLOCK, 0)
        grid.add(head)
        grid.add_zeros(change.gap)
        _check_data(change, update, grid.add_data(change.data))
        grid.add(tail)
        crcs = [*self._known(base, 0, first), *grid.done]
        last_crc = grid.crc
        if rest < change.length:  # the old end comes along
            crcs += self._known(base, rest // _BLOCK, base.length // _BLOCK)
            last_crc = base.tail
        size_class = class_of(change.length, roomy=is_value(update.chunk))
        target = (size_class, self._allocator.take(size_class))
        try:
            source = (base.size_class, base.block)
            self._data.write(*target, first * _BLOCK, [head, *_parts(change), tail])
            if first:
                self._data.copy(source, target, 0, first * _BLOCK)
            if rest < change.length:
                self._data.copy(source, target, rest, change.length)
        except OSError:
            self._allocator.release(*target)
            raise
        blocks = [*crcs, last_crc] if change.length % _BLOCK else crcs
        checksum = (
            update.checksum
            if len(change.data) == change.length
            else combine_blocks(blocks, change.length)
        )
        version = Version(
            block=target[1],
            length=change.length,
            high=change.length,
            checksum=checksum,
            tail=last_crc,
            size_class=size_class,
        )
        return version, self._data.set_crcs(*target, 0, crcs)

    def _rest(self, base: Version, change: Change) -> tuple[int, memoryview]:
        """Where the untouched end begins, and the old bytes between the change and it."""
        if change.end >= change.length:
            return change.length, _EMPTY
        slot, within = divmod(change.end, _BLOCK)
        if not within:
            return change.end, _EMPTY
        edge = self._edge(base, slot)
        return slot * _BLOCK + len(edge), edge[within:]

    def _edge(self, base: Version, slot: int) -> memoryview:
        """The bytes of one checksum block of ``base``, verified."""
        start = slot * _BLOCK
        size = min(_BLOCK, base.length - start)
        buffer = memoryview(bytearray(size))
        self._data.read(base.size_class, base.block, start, [buffer])
        crc = crc32c(buffer)
        stored = base.tail if size < _BLOCK else self._data.crc(base.size_class, base.block, slot)
        if crc != stored:
            raise Fs3Error(
                Code.CORRUPT,
                f"bytes {start} to {start + size} have CRC {crc:08x}, stored is {stored:08x}",
            )
        return buffer

    def _known(self, base: Version, first: int, end: int) -> list[int]:
        """The stored CRCs of whole checksum blocks of ``base``."""
        if first >= end:
            return []
        crcs: list[int] = self._data.crcs[base.size_class][base.block, first:end].tolist()
        return crcs


class Grid:
    """CRCs of checksum blocks, of bytes that come in order from ``position`` on."""

    __slots__ = ("crc", "done", "position")

    def __init__(self, position: int, crc: int) -> None:
        self.position = position
        self.crc = crc  # of the bytes of the unfinished block so far
        self.done: list[int] = []

    def add(self, part: memoryview) -> None:
        """More bytes, at most up to the end of this checksum block."""
        self.crc = crc32c(part, self.crc)
        self._advance(len(part))

    def add_zeros(self, length: int) -> None:
        """More zeros, any number."""
        while length:
            room = _BLOCK - self.position % _BLOCK
            if room == _BLOCK and length >= _BLOCK:
                whole = length // _BLOCK
                self.done += [_ZERO_BLOCK_CRC] * whole
                self.position += whole * _BLOCK
                length -= whole * _BLOCK
            else:
                take = min(room, length)
                self.add(_ZEROS[:take])
                length -= take

    def add_data(self, data: memoryview) -> int:
        """More bytes, any number; their CRC alone, proved from the same pass over whole blocks."""
        room = _BLOCK - self.position % _BLOCK
        head = data[: room % _BLOCK]
        if room == _BLOCK and len(data) <= _TWICE_BYTES_MAX:
            return self._add_small(data)
        whole = (len(data) - len(head)) // _BLOCK
        end = len(head) + whole * _BLOCK
        crc = crc32c(head)
        if head:
            self.add(head)
        if whole:
            crcs = memoryview(block_crcs(data[len(head) : end], _BLOCK)).cast("I").tolist()
            self.done += crcs
            self.position += whole * _BLOCK
            crc = combine(crc, combine_blocks(crcs, whole * _BLOCK), whole * _BLOCK)
        if end < len(data):
            self.crc = crc32c(data[end:])
            self.position += len(data) - end
            crc = combine(crc, self.crc, len(data) - end)
        return crc

    def _add_small(self, data: memoryview) -> int:
        """A second pass over few bytes, still in the cache, costs less than combining."""
        whole = len(data) // _BLOCK * _BLOCK
        self.done += [crc32c(data[at : at + _BLOCK]) for at in range(0, whole, _BLOCK)]
        if whole < len(data):
            self.crc = crc32c(data[whole:])
        self.position += len(data)
        return crc32c(data)

    def _advance(self, length: int) -> None:
        self.position += length
        if length and self.position % _BLOCK == 0:
            self.done.append(self.crc)
            self.crc = 0


def _check_data(change: Change, update: StageRequest, crc: int = 0) -> None:
    if len(change.data) and crc != update.checksum:
        raise Fs3Error(
            Code.CORRUPT, f"data has CRC {crc:08x}, the request says {update.checksum:08x}"
        )


def _parts(change: Change) -> Sequence[memoryview]:
    """The bytes of a change, as buffers to write one behind the other."""
    if not change.gap:
        return [change.data]
    zeros = [
        _ZEROS[: min(len(_ZEROS), change.gap - at)] for at in range(0, change.gap, len(_ZEROS))
    ]
    return [*zeros, change.data]


assert NO_VERSION.size_class == NO_CLASS
