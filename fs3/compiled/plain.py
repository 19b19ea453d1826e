"""The loops in Python: what the extension does, where there is none. The same tests pin both."""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from errno import EIO
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Protocol, TypeAlias

from crc32c import crc32c as _crc32c

Buffer: TypeAlias = bytes | bytearray | memoryview

PIECE = struct.Struct("=iIQIII4x")
"""descriptor, crc, position, before, length, after: ``before + length + after`` bytes at
``position`` of a file have this CRC32C; the ``length`` in their middle are wanted."""
PIECE_OF_PARTS = struct.Struct("=iIQIIII")
"""The same, and how many buffers more than one the wanted bytes go to, one behind the other."""
assert PIECE_OF_PARTS.size == PIECE.size
EDGE_BYTES_MAX = 64 << 10  # of before and of after
IN_MEMORY = -2  # as a descriptor: the bytes are in the buffer already, and are only verified

Failure: TypeAlias = tuple[int, int, int, int]
"""Of a piece: its index, errno or 0, bytes missing because the file ends, the CRC found."""

_PLAIN = attrgetter("format", "ndim", "readonly", "c_contiguous")
_WITHIN_BYTES = 32 << 10  # so little is read with its edges, and copied from between them
_BUFFERS_PER_CALL = 1024  # Linux's IOV_MAX
_FILE_BYTES_MAX = (1 << 63) - 1


class _Crc32c(Protocol):
    def __call__(self, buffer: Buffer, crc: int = 0, /) -> int: ...


class ReadPieces(Protocol):
    """See :func:`read_pieces`."""

    def __call__(
        self,
        pieces: Buffer,
        buffers: Sequence[memoryview],
        split: bool = False,
        crcs: memoryview | None = None,
        /,
    ) -> list[Failure]: ...


# CRC32C of ``buffer``, or of ``x || buffer`` when ``crc`` is that of x.
crc32c: _Crc32c = _crc32c


def block_crcs(buffer: Buffer, block_bytes: int, /) -> bytes:
    """One CRC32C per ``block_bytes`` of ``buffer``, as native uint32; the last block may be short.

    ValueError if ``block_bytes`` is not positive.
    """
    if block_bytes < 1:
        raise ValueError(f"blocks of {block_bytes} bytes: 1 or more are allowed")
    view = memoryview(buffer).cast("B")
    starts = range(0, len(view), block_bytes)
    return array("I", [crc32c(view[at : at + block_bytes]) for at in starts]).tobytes()


def read_pieces(
    pieces: Buffer,
    buffers: Sequence[memoryview],
    split: bool = False,
    crcs: memoryview | None = None,
    /,
    *,
    preadv: Callable[[int, Sequence[memoryview], int], int] = os.preadv,
) -> list[Failure]:
    """Read ``pieces`` (PIECE records) into ``buffers``, one each, and verify them.

    PIECE_OF_PARTS records have any number of buffers each; all of them stand in one list.
    Returns what is not good: reading failed, the file ended, or the CRC is not that announced; such
    a piece's buffer holds anything. ``crcs``, 4 bytes per piece, takes the CRC32C of each good
    piece's wanted bytes alone. ``split`` lets the extension work with a second thread if there is
    much to do and a CPU for it. ValueError for a piece that makes no sense: then nothing is read.
    """
    records, groups = _arguments(pieces, buffers)
    if crcs is not None and crcs.nbytes < 4 * len(records):
        raise ValueError(f"{crcs.nbytes} bytes for the checksums of {len(records)} pieces")
    failures: list[Failure] = []
    found_crcs = array("I", bytes(4 * len(records)))
    scratch = memoryview(bytearray(_WITHIN_BYTES))
    for at, (record, group) in enumerate(zip(records, groups, strict=True)):
        descriptor, expected, position, before, length, after, _ = record
        total = before + length + after
        inside = length < total <= _WITHIN_BYTES
        if inside:  # one checksum block, most likely
            parts: Sequence[memoryview] = [scratch[:total]]
        elif length < total:
            edges = memoryview(bytearray(before + after))
            parts = [edges[:before], *group, edges[before:]]
        else:
            parts = group
        try:
            missing, found = _read(preadv, descriptor, parts, position, total)
        except OSError as error:
            failures.append((at, error.errno or EIO, 0, 0))
            continue
        if missing or found != expected:
            failures.append((at, 0, missing, found))
            continue
        if inside:
            _copy(scratch[before:], group)
        if crcs is not None:
            found_crcs[at] = _crc32c_of(group) if length < total else found
    if crcs is not None:
        crcs.cast("B")[: 4 * len(records)] = found_crcs.tobytes()
    return failures


def plain_lengths(buffers: tuple[object, ...], /) -> bytes | None:
    """The lengths of ``buffers`` as native int64 if all are writable memoryviews of bytes in a row.

    None if one is not. It spares a batch of hundreds of buffers a question to each.
    """
    views = [buffer for buffer in buffers if type(buffer) is memoryview]
    if len(views) < len(buffers):
        return None
    try:
        if not all(_PLAIN(view) == ("B", 1, False, True) for view in views):
            return None
        return array("q", map(len, views)).tobytes()
    except ValueError:  # released
        return None


def _arguments(
    pieces: Buffer, buffers: Sequence[memoryview]
) -> tuple[list[tuple[int, ...]], list[Sequence[memoryview]]]:
    """The records of the pieces, and the buffers of each; ValueError if they make no sense."""
    whole = not len(pieces) % PIECE.size
    records = list(PIECE_OF_PARTS.iter_unpack(pieces)) if whole else []
    ends = list(accumulate([1 + record[6] for record in records], initial=0))
    if not whole or ends[-1] != len(buffers):
        raise ValueError(
            f"{len(pieces)} bytes of pieces, {PIECE.size} each, for {len(buffers)} buffers"
        )
    groups = [buffers[start:end] for start, end in pairwise(ends)]
    for at, (record, group) in enumerate(zip(records, groups, strict=True)):
        _check(at, record, group)
    return records, groups


def _copy(content: memoryview, parts: Sequence[memoryview]) -> None:
    """Its first bytes."""
    at = 0
    for part in parts:
        part[:] = content[at : at + len(part)]
        at += len(part)


def _check(at: int, record: tuple[int, ...], buffers: Sequence[memoryview]) -> None:
    descriptor, _, position, before, length, after, _ = record
    room = sum(map(len, buffers))
    if room != length:
        raise ValueError(f"piece {at} has {length} bytes, its buffer {room}")
    if before > EDGE_BYTES_MAX or after > EDGE_BYTES_MAX:
        raise ValueError(
            f"piece {at} has edges of {before} and {after} bytes: {EDGE_BYTES_MAX} are allowed"
        )
    if position > _FILE_BYTES_MAX - before - length - after:
        raise ValueError(f"piece {at} ends behind what a file can hold")
    if descriptor == IN_MEMORY and (before or after):
        raise ValueError(f"piece {at} is in memory and has edges")


def _read(
    preadv: Callable[[int, Sequence[memoryview], int], int],
    descriptor: int,
    parts: Sequence[memoryview],
    position: int,
    total: int,
) -> tuple[int, int]:
    """Fill ``parts``: how many bytes the file lacks, and the CRC32C if it lacks none."""
    rest, left, got = parts, total if descriptor != IN_MEMORY else 0, 0
    while left:
        full = 0
        while full < len(rest) and got >= len(rest[full]):
            got -= len(rest[full])
            full += 1
        rest = rest[full:]
        if got:
            rest = [rest[0][got:], *rest[1:]]
        got = preadv(descriptor, rest[:_BUFFERS_PER_CALL], position)
        if not got:
            return left, 0
        position += got
        left -= got
    return 0, _crc32c_of(parts)


def _crc32c_of(parts: Iterable[Buffer]) -> int:
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    return crc
