"""Reads: from the index's rows to bytes in the caller's buffers, and the CRC they should have.

A read enters ``Readers`` first, so that no block it finds is reused under it. Whole checksum blocks
are answered from stored CRCs without touching the bytes; a partly read checksum block is read
whole and verified, and the CRC of the asked part is that of the bytes handed out. So a wrong byte
either fails here or differs from the CRC the caller gets.

A pending version may be staged anew while it is read (an append in place is written again): a
mismatch on a pending version that has changed meanwhile is read again, not an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from fs3.checksum import CHECKSUM_BLOCK_BYTES, block_checksums, combine, combine_blocks, crc32c
from fs3.compiled import PIECE
from fs3.core.types import ChunkVersion
from fs3.errors import Code, Fs3Error

from .allocator import Readers
from .datafiles import DataFiles
from .index import Index
from .interface import Piece, ReadResult
from .records import BLOCK_BYTES, ROW, VERSION, Version

_BLOCK = CHECKSUM_BLOCK_BYTES
_SHIFT = CHECKSUM_BLOCK_BYTES.bit_length() - 1
_MASK = CHECKSUM_BLOCK_BYTES - 1
_ATTEMPTS = 4  # at a pending version that changes under the read
_NO_CHUNK = ReadResult(Code.NO_CHUNK)


class Reader:
    """The reading half of a store. Safe from any thread."""

    def __init__(
        self,
        index: Index,
        data: DataFiles,
        readers: Readers,
        drain: Callable[[], None],
        fail: Callable[[OSError], None],
    ) -> None:
        self._index = index
        self._data = data
        self._readers = readers
        self._drain = drain
        self._fail = fail

    def read(
        self,
        pieces: Sequence[Piece],
        buffers: Sequence[memoryview],
        *,
        pending: bool,
        verify: bool,
    ) -> list[ReadResult]:
        """See ``ChunkStore.read``."""
        token = self._readers.enter()
        try:
            if not pending:
                return self._read_committed(pieces, buffers, verify)
            return [
                self._read_pending(piece, buffer, verify)
                for piece, buffer in zip(pieces, buffers, strict=True)
            ]
        finally:
            if self._readers.leave(token):
                self._drain()

    def _read_committed(
        self, pieces: Sequence[Piece], buffers: Sequence[memoryview], verify: bool
    ) -> list[ReadResult]:
        """Pieces of committed versions; those within one checksum block, as most are, at once."""
        index, crcs, fds = self._index, self._data.crcs, self._data.fds
        unpack, pack, row_bytes = VERSION.unpack_from, PIECE.pack, ROW.size
        results: list[ReadResult] = []
        records: list[bytes] = []  # of the pieces within one checksum block
        targets: list[memoryview] = []
        waiting: list[tuple[int, int]] = []  # their places in the results, and versions
        for (chunk, offset, length), buffer in zip(pieces, buffers, strict=True):
            row = index.row_of.get(chunk)
            if row is None:
                results.append(_NO_CHUNK)
                continue
            version = unpack(index.view, row * row_bytes)
            number, _, _, block, size, _, _, crc, size_class = version
            begin = offset & _MASK
            start = offset - begin
            after = size - start - begin - length
            if offset < 0 or length <= 0 or after < 0 or begin + length > _BLOCK:
                results.append(self._any(Version._make(version), offset, length, buffer, verify))
                continue
            if size - start >= _BLOCK:
                after = _BLOCK - begin - length
                crc = crcs[size_class].item(block, start >> _SHIFT)
            position = block * BLOCK_BYTES[size_class] + start
            records.append(pack(fds[size_class], crc, position, begin, length, after))
            targets.append(buffer if len(buffer) == length else buffer[:length])
            waiting.append((len(results), number))
            results.append(_NO_CHUNK)
        if not records:
            return results
        crcs_found = memoryview(bytearray(4 * len(records)))
        failures = self._data.read_pieces(b"".join(records), targets, False, crcs_found)
        ok = Code.OK
        for (at, number), target, crc in zip(
            waiting, targets, crcs_found.cast("I").tolist(), strict=True
        ):
            results[at] = ReadResult(ok, len(target), ChunkVersion(number), crc)
        for i, error, _, _ in failures:
            at = waiting[i][0]
            results[at] = (
                self._failure(OSError(error, os.strerror(error)))
                if error
                else self._read_again(pieces[at], buffers[at], verify)
            )
        return results

    def _read_again(self, piece: Piece, buffer: memoryview, verify: bool) -> ReadResult:
        """A piece that was not as it should be: step by step, to say what was wrong."""
        chunk, offset, length = piece
        row = self._index.row_of.get(chunk)
        if row is None:
            return _NO_CHUNK
        version = VERSION.unpack_from(self._index.view, row * ROW.size)
        return self._any(Version._make(version), offset, length, buffer, verify)

    def _read_pending(self, piece: Piece, buffer: memoryview, verify: bool) -> ReadResult:
        """A piece of the pending version, or of the committed one if there is none."""
        chunk, offset, length = piece
        for _ in range(_ATTEMPTS):
            pending = self._index.pendings.get(chunk)
            if pending is None:
                return self._read_committed([piece], [buffer], verify)[0]
            if pending.removed:
                return _NO_CHUNK
            result = self._any(pending.version, offset, length, buffer, verify)
            if result.code is not Code.CORRUPT or self._index.pendings.get(chunk) is pending:
                return result
        return ReadResult(Code.BUSY, detail=f"chunk {chunk.hex()} changes faster than it is read")

    def _any(
        self, version: Version, offset: int, length: int, buffer: memoryview, verify: bool
    ) -> ReadResult:
        """A piece of any size and place of one version."""
        if version.version == 0:
            return _NO_CHUNK
        if offset < 0:
            return ReadResult(Code.INVALID, detail=f"offset {offset}: 0 or more is allowed")
        number = ChunkVersion(version.version)
        length = min(length, version.length - offset)
        if length <= 0:
            return ReadResult(Code.OK, 0, number, 0)
        try:
            crc = self.read_version(version, offset, buffer[:length], verify=verify)
        except OSError as error:
            return self._failure(error)
        return ReadResult(Code.OK, length, number, crc)

    def _failure(self, error: OSError) -> ReadResult:
        if isinstance(error, Fs3Error):
            return ReadResult(error.code, detail=error.detail)
        self._fail(error)
        return ReadResult(Code.DISK, detail=str(error))

    def fetch(self, size_class: int, position: int, buffer: memoryview) -> None:
        """See ``LocatingStore.fetch``."""
        try:
            self._data.read_at(size_class, position, (buffer,))
        except OSError as error:
            found = self._failure(error)
            raise Fs3Error(found.code, found.detail) from error

    def read_version(
        self, version: Version, offset: int, target: memoryview, *, verify: bool
    ) -> int:
        """Fill ``target`` from ``offset`` of a version that covers it; the CRC it should have."""
        size_class, block = version.size_class, version.block
        end = offset + len(target)
        before = offset & _MASK
        last_end = min((end + _MASK) & ~_MASK, version.length)
        around = memoryview(bytearray(before + last_end - end))
        self._data.read(
            size_class, block, offset - before, [around[:before], target, around[before:]]
        )
        first_slot, end_slot = offset >> _SHIFT, (last_end + _MASK) >> _SHIFT
        stored = self.stored_crcs(version, first_slot, end_slot)
        if offset == 0 and end == version.length:
            if verify:
                _verify_whole(target, 0, stored)
            return version.checksum
        return _piece_crc(target, offset, around[:before], around[before:], stored, verify)

    def stored_crcs(self, version: Version, first: int, end: int) -> list[int]:
        """The CRCs of checksum blocks ``first`` to ``end`` of a version, a partial one included."""
        whole = version.length >> _SHIFT
        crcs: list[int] = self._data.crcs[version.size_class][
            version.block, first : min(end, whole)
        ].tolist()
        if end > whole:
            crcs.append(version.tail)
        return crcs

    def verify_version(self, version: Version, scratch: memoryview) -> str | None:
        """What is wrong with the stored bytes and CRCs of a version; None if they are good."""
        if version.length == 0:
            return None
        try:
            for offset in range(0, version.length, len(scratch)):
                part = scratch[: version.length - offset]
                self.read_version(version, offset, part, verify=True)
        except Fs3Error as error:
            return error.detail
        slots = (version.length + _MASK) >> _SHIFT
        whole = combine_blocks(self.stored_crcs(version, 0, slots), version.length)
        if whole != version.checksum:
            return f"stored block CRCs make {whole:08x}, the record says {version.checksum:08x}"
        return None


def _piece_crc(
    target: memoryview,
    offset: int,
    before: memoryview,
    after: memoryview,
    stored: list[int],
    verify: bool,
) -> int:
    """The CRC of ``target``, which begins behind ``before`` in its first checksum block."""
    head = min(len(target), _BLOCK - len(before)) if before else 0
    crc = 0
    if before:
        both = crc32c(target[:head], crc32c(before))
        if head == len(target):  # all within one checksum block
            both = crc32c(after, both)
        _compare(offset - len(before), both, stored[0])
        crc = crc32c(target[:head])
        if head == len(target):
            return crc
        stored = stored[1:]
    tail = (offset + len(target)) & _MASK if after else 0
    middle = target[head : len(target) - tail]
    middle_crcs = stored[:-1] if after else stored
    if middle:
        if verify:
            _verify_whole(middle, offset + head, middle_crcs)
        crc = combine(crc, combine_blocks(middle_crcs, len(middle)), len(middle))
    if after:
        part = crc32c(target[len(target) - tail :])
        _compare(offset + len(target) - tail, crc32c(after, part), stored[-1])
        crc = combine(crc, part, tail)
    return crc


def _verify_whole(content: memoryview, offset: int, stored: list[int]) -> None:
    for slot, (crc, expected) in enumerate(
        zip(block_checksums(content).tolist(), stored, strict=True)
    ):
        _compare(offset + slot * _BLOCK, crc, expected)


def _compare(offset: int, crc: int, stored: int) -> None:
    if crc != stored:
        raise Fs3Error(
            Code.CORRUPT,
            f"checksum block at byte {offset} has CRC {crc:08x}, stored is {stored:08x}",
        )
