"""A client's batch under way: items finish in any order, the reply leaves with the last.

Where payload lies: a write's data stays in the buffer it was received into; of a read's pieces,
those that must be looked at are read into pooled buffers, the others stay in their files until they
are sent (filesource.py). :class:`Payload` keeps a buffer for as long as anybody (the store, a
neighbour's queue, the core) still refers to it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fs3 import dataplane
from fs3.buffers import BufferPool
from fs3.checksum import CHECKSUM_BLOCK_BYTES
from fs3.core.types import ChunkVersion
from fs3.errors import Code
from fs3.transport.located import Location

from .chunkstore.interface import ChunkPlace, ReadResult
from .filesource import FileSource, Promised


class Payload:
    """Bytes in a pooled buffer; the buffer goes back to its pool with the last payload of it.

    ``place``: of a reply's, how far into the memory for all that was asked for it belongs.
    """

    __slots__ = ("_owner", "place", "view")

    def __init__(self, view: memoryview, owner: BufferOwner | None, place: int = 0) -> None:
        self.view = view
        self.place = place
        self._owner = owner


class Memory(Protocol):
    """Where the body of a request lies: a pooled buffer, as a rule."""

    view: memoryview

    def release(self) -> None:
        """Nobody looks at it any more."""


class Unread(NamedTuple):
    """Bytes that are read while they are sent."""

    view: FileSource
    place: int = 0  # only memory can be sent to a place


Payloads: TypeAlias = "Sequence[Payload | Unread]"


class BufferOwner:
    """Releases a pooled buffer when nobody refers to it any more."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: Memory) -> None:
        self.buffer = buffer

    def __del__(self) -> None:
        self.buffer.release()


class Job(Protocol):
    """What the shell of a target owes an answer to, item by item."""

    def finish(
        self,
        index: int,
        code: Code,
        version: ChunkVersion,
        length: int,
        checksum: int,
        detail: str,
    ) -> None:
        """One item is done."""


PROMISED_BYTES_MIN = 32 << 10  # below, it is less work to read a piece at once


def may_promise(item: dataplane.ReadItem) -> bool:
    """Whether its bytes could be checksum blocks as they stand, and enough of them."""
    return item[4] >= PROMISED_BYTES_MIN and not item[3] % CHECKSUM_BLOCK_BYTES


_pack_result = dataplane.RESULT.pack_into
_RESULT_BYTES = dataplane.RESULT.size


class _Batch:
    """What reads and writes share: results, details, and the reply when all are there."""

    def __init__(self, count: int, reply: Callable[[bytes, Payloads], None]) -> None:
        self._results = bytearray(count * _RESULT_BYTES)
        self._details: list[tuple[int, str]] = []
        self._reply = reply
        self._left = count

    def refuse(self, indexes: Sequence[int], code: Code, detail: str) -> None:
        """Several items fail for one reason; the first of them says it."""
        if indexes:
            for index in indexes:
                _pack_result(self._results, index * _RESULT_BYTES, code, 0, 0, 0, 0)
            self._details.append((indexes[0], detail))
            self.done(len(indexes))

    def finish(
        self,
        index: int,
        code: Code,
        version: ChunkVersion,
        length: int,
        checksum: int,
        detail: str,
    ) -> None:
        """See :class:`Job`; both kinds of result begin alike: code, length, version, checksum."""
        if code is Code.OK:
            at = index * _RESULT_BYTES
            _pack_result(self._results, at, 0, length, version, checksum, 0)
        else:
            _pack_result(self._results, index * _RESULT_BYTES, code, 0, 0, 0, 0)
            if detail:
                self._details.append((index, detail))
        self._left -= 1
        if not self._left:
            self._send()

    def finish_all(self, indexes: Sequence[int], results: Sequence[ReadResult]) -> None:
        """Many items are done."""
        for index, (code, length, version, crc, detail) in zip(indexes, results, strict=True):
            self.finish(index, code, version, length, crc, detail)

    def done(self, count: int) -> None:
        """So many more items have their result."""
        self._left -= count
        if not self._left:
            self._send()

    def _send(self) -> None:
        head = dataplane.encode_results(bytes(self._results), self._details)
        self._reply(head, self._payload())

    def _payload(self) -> Payloads:
        return ()


class WriteJob(_Batch):
    """A WRITE_BATCH."""


class _Read(NamedTuple):
    """Bytes in one of a job's rooms, and how far into all that was asked for they belong."""

    room: int
    start: int
    end: int
    place: int

    def goes_on(self, room: int, start: int, place: int) -> bool:
        """Whether what is there follows it."""
        follows = place - self.place == start - self.start
        return room == self.room and start == self.end and follows


class ReadJob(_Batch):
    """A READ_BATCH: its items, and room for what of them is read before it is answered.

    Items are tuples of dataplane.READ_ITEM's fields: chunk, chain, chain version, offset, length.
    ``promises``: pieces may be read while they are sent.
    """

    def __init__(
        self,
        items: Sequence[dataplane.ReadItem],
        pool: BufferPool,
        reply: Callable[[bytes, Payloads], None],
        *,
        promises: bool,
    ) -> None:
        super().__init__(len(items), reply)
        self.items = items
        self.promises = promises
        self._pool = pool
        self._rooms: list[BufferOwner] = []
        self._places: dict[int, tuple[int, int]] = {}  # of an item: which room, and where in it
        self._room_bytes = 0
        self._found = 0  # bytes, in the rooms
        self._promised: dict[int, Promised] = {}

    def look(self, indexes: list[int], versions: NDArray[Any]) -> int:
        """Items that want no bytes: is there a version, and which (0: none)? How many there are."""
        results = np.frombuffer(self._results, dataplane.READ_RESULT)
        results["version"][indexes] = versions
        results["code"][indexes] = np.where(versions, Code.OK, Code.NO_CHUNK)
        found = int(np.count_nonzero(versions))
        self.done(len(indexes))
        return found

    def reserve(self, indexes: Sequence[int]) -> None:
        """Have room for these items, which are read here. Fs3Error BUSY if no buffer is free."""
        if not self._rooms:  # for all that are sure to need it, so that they stand together
            every = enumerate(self.items)
            self._add_room([i for i, item in every if not (self.promises and may_promise(item))])
        self._add_room([index for index in indexes if index not in self._places])

    def _add_room(self, indexes: Sequence[int]) -> None:
        if indexes:
            items, places, room, end = self.items, self._places, len(self._rooms), 0
            for index in indexes:
                places[index] = room, end
                end += items[index][4]
            self._rooms.append(BufferOwner(self._pool.take(max(end, 1))))
            self._room_bytes += end

    def place(self, index: int) -> memoryview:
        """Where an item's bytes go."""
        room, start = self._places[index]
        return self._rooms[room].buffer.view[start : start + self.items[index][4]]

    def promise(self, indexes: Sequence[int], promised: Sequence[Promised]) -> None:
        """These items are answered with what lies there."""
        for index, each in zip(indexes, promised, strict=True):
            _, length, version, crc, *_ = each.place
            _pack_result(self._results, index * _RESULT_BYTES, 0, length, version, crc, 0)
            self._promised[index] = each
        self.done(len(indexes))

    def finish_all(self, indexes: Sequence[int], results: Sequence[ReadResult]) -> None:
        """The same, with less ado."""
        packed, found = self._results, 0
        for index, (code, length, version, crc, detail) in zip(indexes, results, strict=True):
            if code is Code.OK:
                found += length
                _pack_result(packed, index * _RESULT_BYTES, 0, length, version, crc, 0)
            else:
                _pack_result(packed, index * _RESULT_BYTES, code, 0, 0, 0, 0)
                if detail:
                    self._details.append((index, detail))
        self._found += found
        self.done(len(indexes))

    def finish(
        self,
        index: int,
        code: Code,
        version: ChunkVersion,
        length: int,
        checksum: int,
        detail: str,
    ) -> None:
        """See :class:`Job`."""
        if code is Code.OK:
            self._found += length
        super().finish(index, code, version, length, checksum, detail)

    def _payload(self) -> Payloads:
        """The bytes; what stands together is one part."""
        if not self._promised:
            if not self._found:
                return ()
            if len(self._rooms) == 1 and self._found == self._room_bytes:
                return [Payload(self._rooms[0].buffer.view[: self._found], self._rooms[0])]
        return [self._part(stretch) for stretch in self._stretches()]

    def _stretches(self) -> list[_Read | list[Promised]]:
        """What of the bytes stands together, in their order."""
        found: list[_Read | list[Promised]] = []
        place = 0
        for index, result in enumerate(dataplane.RESULT.iter_unpack(self._results)):
            last = found[-1] if found else None
            if index in self._promised:
                if not isinstance(last, list):
                    last = []
                    found.append(last)
                last.append(self._promised[index])
            elif length := result[1]:
                room, start = self._places[index]
                if isinstance(last, _Read) and last.goes_on(room, start, place):
                    found[-1] = last._replace(end=start + length)
                else:
                    found.append(_Read(room, start, start + length, place))
            place += self.items[index][4]
        return found

    def _part(self, stretch: _Read | list[Promised]) -> Payload | Unread:
        if isinstance(stretch, list):
            return Unread(FileSource(stretch))
        owner = self._rooms[stretch.room]
        return Payload(owner.buffer.view[stretch.start : stretch.end], owner, stretch.place)


class Located(NamedTuple):
    """What a LOCATE's reply says."""

    files: set[int]  # the numbers of those that are needed for it
    places: bytes  # of dataplane.CHUNK_PLACE
    crcs: bytes  # theirs
    results: bytes  # and details


_CHUNK_PLACE = struct.Struct("<IIQQQQIIII")
assert _CHUNK_PLACE.size == dataplane.CHUNK_PLACE.itemsize
_CRCS_MAX_BYTES = 1 << 20  # in one reply
_pack_place = dataplane.PLACE.pack_into
_PLACE_BYTES = dataplane.PLACE.size
_NOWHERE = bytes(dataplane.PLACE.pack(0, 0, 0, 0, dataplane.FILE_NONE, 0, 0, 0))


class LocateJob(_Batch):
    """A LOCATE: places of what is clean, and room for what is read here after all.

    ``items`` as of a :class:`ReadJob`.
    """

    def __init__(
        self,
        items: Sequence[dataplane.ReadItem],
        wanted: Sequence[int],
        pool: BufferPool,
        reply: Callable[[Located, Sequence[Payload]], None],
    ) -> None:
        """``wanted``: items whose whole chunk is located, too, if that can be remembered.

        ``reply`` must not refer to the job.
        """
        super().__init__(0, lambda head, payloads: None)
        self._reply_located = reply
        self._results = bytearray(_NOWHERE * len(items))
        self._left = len(items)
        self._files: set[int] = set()
        self.wanted = frozenset(wanted)
        self._places = bytearray()
        self._crcs = bytearray()
        self.items = items
        self._pool = pool
        self._rooms: dict[int, tuple[BufferOwner, int]] = {}  # and how much was read

    def refuse(self, indexes: Sequence[int], code: Code, detail: str) -> None:
        """Several items fail for one reason; the first of them says it."""
        if indexes:
            for index in indexes:
                self._note(index, code, 0, 0, 0)
            self._details.append((indexes[0], detail))
            self.done(len(indexes))

    def look(self, indexes: list[int], versions: NDArray[Any]) -> int:
        """As of a :class:`ReadJob`."""
        for index, version in zip(indexes, versions.tolist(), strict=True):
            self._note(index, Code.OK if version else Code.NO_CHUNK, 0, version, 0)
        self.done(len(indexes))
        return int(np.count_nonzero(versions))

    def locate(self, indexes: Sequence[int], places: Sequence[Location]) -> None:
        """These items lie there."""
        results = self._results
        for index, place in zip(indexes, places, strict=True):
            _pack_place(results, index * _PLACE_BYTES, *place)
        self._files.update([place[4] for place in places])
        self.done(len(indexes))

    def remember(self, index: int, stamps: int, place: ChunkPlace) -> None:
        """All of the item's chunk lies there; ``stamps``: the file that says how long."""
        if len(self._crcs) + len(place.crcs) > _CRCS_MAX_BYTES:
            return
        *fields, crcs = place
        self._places += _CHUNK_PLACE.pack(index, stamps, *fields, len(crcs) // 4)
        self._crcs += crcs
        self._files.update((stamps, place.file))

    def reserve(self, indexes: Sequence[int]) -> None:
        """Have room for these items, which are read here. Fs3Error BUSY if no buffer is free."""
        for index in indexes:
            room = self._pool.take(max(self.items[index][4], 1))
            self._rooms[index] = BufferOwner(room), 0

    def place(self, index: int) -> memoryview:
        """Where an item's bytes go."""
        return self._rooms[index][0].buffer.view[: self.items[index][4]]

    def finish(
        self,
        index: int,
        code: Code,
        version: ChunkVersion,
        length: int,
        checksum: int,
        detail: str,
    ) -> None:
        """See :class:`Job`: of an item that was read here."""
        if code is Code.OK:
            self._note(index, code, length, version, checksum)
            if length:
                self._rooms[index] = self._rooms[index][0], length
        else:
            self._note(index, code, 0, 0, 0)
            if detail:
                self._details.append((index, detail))
        self.done(1)

    def _note(self, index: int, code: int, length: int, version: int, crc: int) -> None:
        at = index * _PLACE_BYTES
        _pack_place(self._results, at, code, length, version, crc, dataplane.FILE_NONE, 0, 0, 0)

    def _send(self) -> None:
        results = dataplane.encode_results(bytes(self._results), self._details)
        files = self._files - {dataplane.FILE_NONE}
        located = Located(files, bytes(self._places), bytes(self._crcs), results)
        self._reply_located(located, self._payload())

    def _payload(self) -> Sequence[Payload]:
        rooms = sorted(self._rooms.items())
        return [Payload(owner.buffer.view[:n], owner) for _, (owner, n) in rooms if n]
