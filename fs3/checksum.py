"""CRC32C end to end: over bytes, over 16 KiB blocks, and of a concatenation from its parts' CRCs.

The client that writes sends one CRC per piece; a replica computes the CRC of each 16 KiB block,
proves them equal to the piece's by combining, and keeps them with the chunk. A read is answered
from kept CRCs without touching the bytes again. All of it rests on one fact: appending n zero bytes
to a message is a linear map of its CRC over GF(2), so that

    crc(a || b) = shift(crc(a), len(b)) ^ crc(b)        and        shift(0, n) = 0

A shift by n bytes is the product of shifts by powers of two; each is a table of 4 x 256 words, one
row per byte of the CRC. For runs of equal blocks, tables for every multiple of the block stand
ready, so that 64 CRCs are combined by one gather and one XOR.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fs3.compiled import Buffer, block_crcs, crc32c

__all__ = [
    "CHECKSUM_BLOCK_BYTES",
    "LENGTH_MAX",
    "Buffer",
    "Crcs",
    "block_checksums",
    "combine",
    "combine_blocks",
    "crc32c",
    "crc32c_of",
    "shift",
    "zeros_checksum",
]

Crcs: TypeAlias = npt.NDArray[np.uint32]

CHECKSUM_BLOCK_BYTES = 16 << 10
LENGTH_MAX = (1 << 40) - 1  # bytes that a shift can cross: far above any chunk

_POLYNOMIAL_REVERSED = 0x82F63B78  # Castagnoli
_GROUP = 64  # blocks combined by one gather; a power of two
_FEW = 6  # below this many blocks a plain loop beats numpy's fixed cost


def crc32c_of(parts: Iterable[Buffer]) -> int:
    """CRC32C of all these bytes, one part behind the other."""
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    return crc


def block_checksums(buffer: Buffer) -> Crcs:
    """One CRC32C per 16 KiB of ``buffer``; the last block may be short, none if it is empty."""
    return np.frombuffer(block_crcs(buffer, CHECKSUM_BLOCK_BYTES), np.uint32)


def combine(crc_a: int, crc_b: int, length_b: int) -> int:
    """The CRC of a || b, from the CRCs of both and the length of b in bytes."""
    return shift(crc_a, length_b) ^ crc_b


def combine_blocks(crcs: Crcs | Sequence[int], total_length: int) -> int:
    """The CRC of ``total_length`` bytes from those of its 16 KiB blocks, the last maybe short."""
    full, tail = divmod(total_length, CHECKSUM_BLOCK_BYTES)
    if len(crcs) != full + (tail > 0):
        raise ValueError(f"{len(crcs)} block checksums for {total_length} bytes")
    crc = _combine_full(crcs[:full]) if full else 0
    return shift(crc, tail) ^ int(crcs[full]) if tail else crc


def zeros_checksum(length: int) -> int:
    """The CRC of ``length`` zero bytes, without them."""
    return shift(0xFFFFFFFF, length) ^ 0xFFFFFFFF


def shift(crc: int, length: int) -> int:
    """What ``crc`` contributes to the CRC of a message that goes on for ``length`` more bytes."""
    if not 0 <= length <= LENGTH_MAX:
        raise ValueError(f"length {length} is not allowed: 0 to {LENGTH_MAX} is")
    bit = 0
    while length and crc:
        if length & 1:
            crc = _apply(_power(bit), crc)
        length >>= 1
        bit += 1
    return crc


_Table: TypeAlias = tuple[list[int], list[int], list[int], list[int]]


def _apply(table: _Table, crc: int) -> int:
    low, second, third, high = table
    return low[crc & 255] ^ second[crc >> 8 & 255] ^ third[crc >> 16 & 255] ^ high[crc >> 24]


def _combine_full(crcs: Crcs | Sequence[int]) -> int:
    """The CRC of whole 16 KiB blocks, from theirs."""
    if len(crcs) <= _FEW:
        table = _power(CHECKSUM_BLOCK_BYTES.bit_length() - 1)
        crc = 0
        for block in crcs if isinstance(crcs, list) else list(map(int, crcs)):
            crc = _apply(table, crc) ^ block
        return crc
    values = np.asarray(crcs, dtype="<u4")
    unit_bytes = CHECKSUM_BLOCK_BYTES
    while len(values) > _GROUP:
        # Zeros in front contribute nothing, so the groups may be aligned to the end.
        groups = -(-len(values) // _GROUP)
        padded = np.zeros(groups * _GROUP, dtype="<u4")
        padded[-len(values) :] = values
        values = _fold(padded.reshape(groups, _GROUP), unit_bytes)
        unit_bytes *= _GROUP
    return int(_fold(values.reshape(1, -1), unit_bytes)[0])


def _fold(rows: Crcs, unit_bytes: int) -> Crcs:
    """Per row, the CRC of up to 64 messages of ``unit_bytes`` each."""
    table, starts = _multiples(unit_bytes)
    count, width = rows.shape
    octets = np.ascontiguousarray(rows).view(np.uint8).reshape(count, width * 4)
    picked = table.take(octets + starts[-width * 4 :])
    folded: Crcs = np.bitwise_xor.reduce(picked, axis=1)
    return folded


@cache
def _multiples(unit_bytes: int) -> tuple[Crcs, npt.NDArray[np.int32]]:
    """The shifts by 63, 62, ... 0 units, flat, and where the row of each (shift, byte) starts."""
    unit = np.array(_power(unit_bytes.bit_length() - 1), dtype="<u4")
    octet = np.arange(256, dtype="<u4")
    current = np.stack([octet << np.uint32(8 * i) for i in range(4)])  # the shift by nothing
    tables = [current]
    for _ in range(_GROUP - 1):
        octets = current.reshape(-1, 1).view(np.uint8)
        current = np.bitwise_xor.reduce(
            np.stack([unit[i][octets[:, i]] for i in range(4)]), axis=0
        ).reshape(4, 256)
        tables.append(current)
    flat = np.concatenate([table.reshape(-1) for table in reversed(tables)])
    return flat, np.arange(0, _GROUP * 4 * 256, 256, dtype=np.int32)


@cache
def _power(bit: int) -> _Table:
    """The shift by 2**bit bytes."""
    columns = _byte_columns()
    for _ in range(bit):
        columns = [_times(columns, column) for column in columns]
    table = [_spread(columns[8 * i : 8 * i + 8]) for i in range(4)]
    return table[0], table[1], table[2], table[3]


def _byte_columns() -> list[int]:
    """The shift by one byte, as the images of the 32 single-bit CRCs."""
    columns = []
    for bit in range(32):
        crc = 1 << bit
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL_REVERSED if crc & 1 else 0)
        columns.append(crc)
    return columns


def _times(columns: list[int], vector: int) -> int:
    """A 32 x 32 bit matrix, given by its columns, times a vector."""
    result = 0
    for column in columns:
        if vector & 1:
            result ^= column
        vector >>= 1
    return result


def _spread(columns: list[int]) -> list[int]:
    """The images of all 256 values of a byte, from those of its 8 bits."""
    images = [0]
    for column in columns:
        images += [image ^ column for image in images]
    return images
