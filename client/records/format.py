"""What is in a record file: pure functions between values and bytes. The page is docs/formats.md.

    header (64 bytes) | records, back to back | index | footer (64 bytes)

The writer needs to know nothing ahead; the reader reads header and footer, then the index, which
is columns: lengths (variable records only), checksums. A record is bytes; what they mean is up to
the ``kind``: opaque, or a *sample*, which is a few named parts.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import crc32c
from fs3.errors import Code, Fs3Error

Crcs: TypeAlias = NDArray[np.uint32]
Lengths: TypeAlias = NDArray[np.uint32]

VERSION = 1
HEADER_BYTES = FOOTER_BYTES = 64
RECORD_BYTES_MAX = (1 << 32) - 1
PARTS_MAX = (1 << 16) - 1

_MAGIC = b"fs3 rec\n"
_END_MAGIC = b"fs3 end\n"
_HEADER = struct.Struct("<8sHHI40xII")  # magic, version, kind, record bytes, zero, reserved, crc
_FOOTER = struct.Struct(
    "<QQQQI16xI8s"
)  # records, data, index offset and bytes, its crc, crc, magic
_COUNT, _PART = struct.Struct("<H"), struct.Struct("<HI")  # of a sample's table of parts


class Kind(IntEnum):
    """What a record's bytes are."""

    OPAQUE = 0
    SAMPLE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """``record_bytes``: the length of every record, or 0 if each has its own."""

    kind: Kind = Kind.OPAQUE
    record_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """Where the index is, and what it and the records come to."""

    records: int
    data_bytes: int
    index_offset: int
    index_bytes: int
    index_crc: int


def encode_header(header: Header) -> bytes:
    """The first 64 bytes."""
    head = _HEADER.pack(_MAGIC, VERSION, header.kind, header.record_bytes, 0, 0)[:-4]
    return head + crc32c(head).to_bytes(4, "little")


def decode_header(data: bytes | memoryview, where: str) -> Header:
    """Fs3Error INVALID if it is no record file, or of a newer release; CORRUPT if damaged."""
    if len(data) < HEADER_BYTES or bytes(data[:8]) != _MAGIC:
        raise Fs3Error(Code.INVALID, f"{where}: not a record file: it begins {bytes(data[:8])!r}")
    _, version, kind, record_bytes, _, crc = _HEADER.unpack(data[:HEADER_BYTES])
    if crc != crc32c(data[: HEADER_BYTES - 4]):
        raise Fs3Error(Code.CORRUPT, f"{where}: the header's checksum is wrong")
    if version != VERSION or kind not in set(Kind):
        raise Fs3Error(
            Code.INVALID,
            f"{where}: format {version}, kind {kind}; this release reads format {VERSION}, kinds"
            f" {min(Kind)} to {max(Kind)}",
        )
    return Header(kind=Kind(kind), record_bytes=record_bytes)


def encode_footer(footer: Footer) -> bytes:
    """The last 64 bytes."""
    head = _FOOTER.pack(
        footer.records,
        footer.data_bytes,
        footer.index_offset,
        footer.index_bytes,
        footer.index_crc,
        0,
        b"",
    )[:-12]
    return head + crc32c(head).to_bytes(4, "little") + _END_MAGIC


def decode_footer(data: bytes | memoryview, file_bytes: int, where: str) -> Footer:
    """Fs3Error CORRUPT if the file was cut off or the footer is damaged."""
    if len(data) < FOOTER_BYTES or bytes(data[-8:]) != _END_MAGIC:
        raise Fs3Error(
            Code.CORRUPT, f"{where}: no footer at its end: {file_bytes} bytes are not all of it"
        )
    records, data_bytes, offset, size, index_crc, crc, _ = _FOOTER.unpack(data[-FOOTER_BYTES:])
    if crc != crc32c(data[-FOOTER_BYTES:-12]):
        raise Fs3Error(Code.CORRUPT, f"{where}: the footer's checksum is wrong")
    if offset != HEADER_BYTES + data_bytes or offset + size + FOOTER_BYTES != file_bytes:
        raise Fs3Error(
            Code.CORRUPT,
            f"{where}: {data_bytes} bytes of records and {size} of index do not make {file_bytes}",
        )
    return Footer(
        records=records,
        data_bytes=data_bytes,
        index_offset=offset,
        index_bytes=size,
        index_crc=index_crc,
    )


def encode_index(header: Header, lengths: Lengths, crcs: Crcs) -> bytes:
    """Lengths if the records have their own, then checksums: 4 bytes each, little-endian."""
    columns = [] if header.record_bytes else [lengths]
    return b"".join(column.astype("<u4").tobytes() for column in (*columns, crcs))


def decode_index(
    header: Header, footer: Footer, data: bytes | memoryview, where: str
) -> tuple[NDArray[np.int64], Crcs]:
    """Where each record begins in the file, and where the last ends: shape (records + 1,), bytes;
    and the checksum of each. Fs3Error CORRUPT."""
    columns = 1 if header.record_bytes else 2
    if crc32c(data) != footer.index_crc or len(data) != 4 * columns * footer.records:
        raise Fs3Error(Code.CORRUPT, f"{where}: the index's length or checksum is wrong")
    table = np.frombuffer(data, "<u4").reshape(columns, footer.records)
    if header.record_bytes:
        starts = np.arange(footer.records + 1, dtype=np.int64) * header.record_bytes
    else:
        starts = np.zeros(footer.records + 1, np.int64)
        np.cumsum(table[0], out=starts[1:])
    if starts[-1] != footer.data_bytes:
        raise Fs3Error(
            Code.CORRUPT, f"{where}: records of {starts[-1]} bytes; {footer.data_bytes} are there"
        )
    return starts + HEADER_BYTES, table[-1]


# -- samples ---------------------------------------------------------------------------------------


def encode_sample(parts: Mapping[str, bytes | memoryview]) -> bytes:
    """A record of named parts: their number, a table of names and lengths, the bytes of each."""
    if len(parts) > PARTS_MAX:
        raise Fs3Error(
            Code.INVALID, f"a sample of {len(parts)} parts; at most {PARTS_MAX} are allowed"
        )
    table = [_COUNT.pack(len(parts))]
    for name, content in parts.items():
        encoded = name.encode()
        table += [_PART.pack(len(encoded), len(content)), encoded]
    return b"".join([*table, *parts.values()])


def decode_sample(record: memoryview) -> dict[str, memoryview]:
    """The parts, in order, as views of ``record``. Fs3Error CORRUPT if they do not fill it."""
    try:
        (count,) = _COUNT.unpack_from(record)
        position = _COUNT.size
        names, lengths = [], []
        for _ in range(count):
            name_bytes, length = _PART.unpack_from(record, position)
            position += _PART.size
            names.append(str(record[position : position + name_bytes], "utf-8"))
            lengths.append(length)
            position += name_bytes
    except (struct.error, UnicodeDecodeError) as error:
        raise Fs3Error(Code.CORRUPT, f"no sample in {len(record)} bytes: {error}") from error
    if position + sum(lengths) != len(record):
        raise Fs3Error(
            Code.CORRUPT,
            f"parts of {sum(lengths)} bytes in a sample; {len(record) - position} are there",
        )
    parts = {}
    for name, length in zip(names, lengths, strict=True):
        parts[name] = record[position : position + length]
        position += length
    return parts
