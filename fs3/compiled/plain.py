"""The loops in Python: what the extension does, where there is none. The same tests pin both."""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable, Sequence
from errno import EIO
from typing import Protocol, TypeAlias

from crc32c import crc32c as _crc32c

Buffer: TypeAlias = bytes | bytearray | memoryview

PIECE = struct.Struct("=iIQIII4x")
"""descriptor, crc, position, before, length, after: ``before + length + after`` bytes at
``position`` of a file have this CRC32C; the ``length`` in their middle are wanted."""
EDGE_BYTES_MAX = 64 << 10  # of before and of after
IN_MEMORY = -2  # as a descriptor: the bytes are in the buffer already, and are only verified

Failure: TypeAlias = tuple[int, int, int, int]
"""Of a piece: its index, errno or 0, bytes missing because the file ends, the CRC found."""

_WITHIN_BYTES = 32 << 10  # so little is read with its edges, and copied from between them
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

    Returns what is not good: reading failed, the file ended, or the CRC is not that announced; such
    a piece's buffer holds anything. ``crcs``, 4 bytes per piece, takes the CRC32C of each good
    piece's wanted bytes alone. ``split`` lets the extension work with a second thread if there is
    much to do and a CPU for it. ValueError for a piece that makes no sense: then nothing is read.
    """
    if len(pieces) != PIECE.size * len(buffers):
        raise ValueError(
            f"{len(pieces)} bytes of pieces, {PIECE.size} each, for {len(buffers)} buffers"
        )
    if crcs is not None and crcs.nbytes < 4 * len(buffers):
        raise ValueError(f"{crcs.nbytes} bytes for the checksums of {len(buffers)} pieces")
    records = list(PIECE.iter_unpack(pieces))
    for at, (record, buffer) in enumerate(zip(records, buffers, strict=True)):
        _check(at, record, buffer)
    failures: list[Failure] = []
    found_crcs = array("I", bytes(4 * len(buffers)))
    scratch = memoryview(bytearray(_WITHIN_BYTES))
    for at, (record, buffer) in enumerate(zip(records, buffers, strict=True)):
        descriptor, expected, position, before, length, after = record
        total = before + length + after
        inside = length < total <= _WITHIN_BYTES
        if inside:  # one checksum block, most likely
            parts = [scratch[:total]]
        elif length < total:
            edges = memoryview(bytearray(before + after))
            parts = [edges[:before], buffer, edges[before:]]
        else:
            parts = [buffer]
        try:
            missing, found = _read(preadv, descriptor, parts, position, total)
        except OSError as error:
            failures.append((at, error.errno or EIO, 0, 0))
            continue
        if missing or found != expected:
            failures.append((at, 0, missing, found))
            continue
        if inside:
            buffer[:] = scratch[before : before + length]
        if crcs is not None:
            found_crcs[at] = crc32c(buffer) if length < total else found
    if crcs is not None:
        crcs.cast("B")[: 4 * len(buffers)] = found_crcs.tobytes()
    return failures


def _check(at: int, record: tuple[int, ...], buffer: memoryview) -> None:
    descriptor, _, position, before, length, after = record
    if len(buffer) != length:
        raise ValueError(f"piece {at} has {length} bytes, its buffer {len(buffer)}")
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
        while rest and got >= len(rest[0]):
            got -= len(rest[0])
            rest = rest[1:]
        if got:
            rest = [rest[0][got:], *rest[1:]]
        got = preadv(descriptor, rest, position)
        if not got:
            return left, 0
        position += got
        left -= got
    found = 0
    for part in parts:
        found = crc32c(part, found)
    return 0, found
