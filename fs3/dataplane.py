"""The data plane's methods and records: what a batch looks like on the wire (docs/formats.md).

A request's head is an array of items, a reply's head an array of results of the same length and
order; the body is the payload, item after item, without padding. Results are per item: a batch
succeeds as a call even when items fail. After the results may follow, as JSON, a list of
``[index, detail]`` that says in words why items failed.

    READ_BATCH    head READ_ITEM*                    body -
       reply      head READ_RESULT* [+ details]      body the bytes read: results' ``length`` each
    WRITE_BATCH   head WRITE_PREFIX + WRITE_ITEM*    body the bytes of WRITE items, in order
       reply      head WRITE_RESULT* [+ details]     body -
    PIN           head READ_ITEM*                    body -
       reply      head READ_RESULT*                  body -
    SUSPECT       head READ_ITEM*                    body -
       reply      head -                             body -
    LOCATE        head LOCATE_PREFIX + wanted + READ_ITEM*    body -           (unix sockets only)
       reply      head LOCATE_REPLY + new files + CHUNK_PLACE* + their CRCs + LOCATE_RESULT*
                       [+ details]                   body as of a read
    USED          head READ_ITEM*                    body -
       reply      head -                             body -
    WINDOW        head -                             body -                    (unix sockets only)
       reply      head slot bytes 4, slots 4; a descriptor comes along (fs3/transport/window.py)
    WRITE_WINDOW  head slot 4, bytes 4 + that of a WRITE_BATCH       body -, it lies in the slot
       reply      as of a WRITE_BATCH
    PEER          head messages between chain neighbours, one way (storageserver/peerwire.py)
    PROBE         head does a node reach another, one way (storageserver/reaching.py)
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fs3.core.types import CHUNK_CONTENT_BYTES_MAX
from fs3.errors import Code, Fs3Error
from fs3.frames import Buffer

READ_BATCH = 0x1001
WRITE_BATCH = 0x1002
PEER = 0x1003
PROBE = 0x1008
SUSPECT = 0x1004  # what was read of these items does not have its CRC: look at your disk
LOCATE = 0x1005  # a READ_BATCH that is answered with where the bytes lie
USED = 0x1023  # KV values that a client has read by itself
WINDOW = 0x1021  # memory for what is written, please (unix sockets only)
WRITE_WINDOW = 0x1022  # a WRITE_BATCH whose body lies there
PIN = 0x1020  # keep KV values from eviction, for `length` seconds; 0: no longer

BATCH_ITEMS_MAX = 4096  # items in one request
BATCH_BYTES_MAX = CHUNK_CONTENT_BYTES_MAX  # payload bytes in one request or reply

READ_ITEM = np.dtype(
    [
        ("chunk", "V24"),
        ("chain", "<u4"),
        ("chain_version", "<u4"),
        ("offset", "<u4"),
        ("length", "<u4"),
    ]
)
READ_RESULT = np.dtype(
    [
        ("code", "<u4"),  # fs3.errors.Code; OK also for a short read at the chunk's end
        ("length", "<u4"),  # bytes in the body
        ("version", "<u8"),  # of the chunk
        ("crc", "<u4"),  # crc32c of the bytes
        ("reserved", "<u4"),
    ]
)
# The same two records for code that looks at one at a time; both kinds of result begin alike.
ITEM = struct.Struct("<24sIIII")
RESULT = struct.Struct("<IIQII")
ReadItem: TypeAlias = tuple[bytes, int, int, int, int]
LOCATE_PREFIX = np.dtype(
    [
        ("released", "<u8"),  # what was granted here up to this number is not used any more
        ("wanted", "<u4"),  # so many items' places, 4 bytes each, follow: their chunks' places are
        ("reserved", "<u4"),  # wanted, to be remembered
    ]
)
LOCATE_REPLY = np.dtype(
    [
        ("grant", "<u8"),  # grows on each connection
        ("lease_ms", "<u4"),  # from when the request was sent: then it must have been read
        ("new_files", "<u4"),  # their numbers follow, 4 bytes each; their descriptors came along
        ("clock", "<u8"),  # whose boot clock its leases are counted on: fs3.clock.boot_clock_id
        ("places", "<u4"),  # of whole chunks, behind the file numbers
        ("crcs", "<u4"),  # of all these, 4 bytes each, behind them
    ]
)
# Read ``before + length + after`` bytes at ``position`` of the file: they have this CRC, and what
# was asked for lies ``before`` bytes behind their start.
LOCATE_RESULT = np.dtype(
    [
        ("code", "<u4"),  # as of a READ_RESULT
        ("length", "<u4"),
        ("version", "<u8"),
        ("crc", "<u4"),
        ("file", "<u4"),  # FILE_NONE: the bytes are in the body
        ("position", "<u8"),
        ("before", "<u4"),
        ("after", "<u4"),
    ]
)
# Where a whole chunk lies for as long as its row's stamp stands (fs3/core/stamps.py).
CHUNK_PLACE = np.dtype(
    [
        ("item", "<u4"),  # whose chunk it is
        ("stamps", "<u4"),  # number of the file that holds the stamps
        ("row", "<u8"),
        ("stamp", "<u8"),
        ("version", "<u8"),
        ("position", "<u8"),
        ("file", "<u4"),
        ("length", "<u4"),
        ("checksum", "<u4"),  # CRC32C of all of it
        ("crcs", "<u4"),  # how many are its own; those of its checksum blocks
    ]
)
CHUNK_PLACE_CRCS_MAX = 512  # chunks of more checksum blocks are not worth to be remembered
FILE_NONE = 0xFFFFFFFF
PLACE = struct.Struct("<IIQIIQII")  # the same, for code that looks at one at a time
WRITE_PREFIX = np.dtype([("client", "<u8"), ("flags", "<u4"), ("reserved", "<u4")])
WRITE_FLAG_SYNC = 1  # on stable storage on every replica before the reply
WRITE_ITEM = np.dtype(
    [
        ("chunk", "V24"),
        ("chain", "<u4"),
        ("chain_version", "<u4"),
        ("offset", "<u4"),
        ("length", "<u4"),  # of the data; of a TRUNCATE or EXTEND: the chunk's new length
        ("crc", "<u4"),  # crc32c of the data
        ("kind", "u1"),  # fs3.core.chunks.UpdateKind
        ("reserved", "u1"),
        ("channel", "<u2"),  # with client and sequence: applied exactly once
        ("sequence", "<u8"),
    ]
)
WRITE_RESULT = np.dtype(
    [
        ("code", "<u4"),
        ("length", "<u4"),  # of the chunk after the update
        ("version", "<u8"),
        ("checksum", "<u4"),  # of the whole chunk after the update
        ("reserved", "<u4"),
    ]
)


def wants_bytes(head: Buffer) -> bool:
    """Whether any item of a READ_BATCH asks for bytes, not only whether its chunk is there."""
    return bool(np.frombuffer(head, READ_ITEM)["length"].any())


def decode_items(head: Buffer, dtype: np.dtype[Any], offset: int = 0) -> NDArray[Any]:
    """The items of a request's head, without a copy.

    Raises Fs3Error PROTOCOL if the head is not a whole number of items, TOO_LARGE if there are
    more than BATCH_ITEMS_MAX.
    """
    count, rest = divmod(len(head) - offset, dtype.itemsize)
    if rest or count < 0:
        raise Fs3Error(
            Code.PROTOCOL,
            f"a head of {len(head)} bytes is not {offset} bytes and"
            f" whole items of {dtype.itemsize}",
        )
    if count > BATCH_ITEMS_MAX:
        raise Fs3Error(
            Code.TOO_LARGE, f"a batch of {count} items; at most {BATCH_ITEMS_MAX} are allowed"
        )
    return np.frombuffer(head, dtype, count, offset)


def decode_read_items(head: bytes) -> list[ReadItem]:
    """The items of a READ_BATCH, one by one; raises as :func:`decode_items`."""
    if len(head) % ITEM.size or len(head) > BATCH_ITEMS_MAX * ITEM.size:
        decode_items(head, READ_ITEM)
    return list(ITEM.iter_unpack(head))


def encode_results(results: NDArray[Any] | bytes, details: Sequence[tuple[int, str]]) -> bytes:
    """A reply's head."""
    head = results if isinstance(results, bytes) else results.tobytes()
    return head + json.dumps(list(details)).encode() if details else head


def decode_results(
    head: Buffer, dtype: np.dtype[Any], count: int
) -> tuple[NDArray[Any], dict[int, str]]:
    """A reply's results and the details of those that failed."""
    if len(head) < count * dtype.itemsize:
        raise Fs3Error(
            Code.PROTOCOL, f"a reply's head of {len(head)} bytes; {count * dtype.itemsize} expected"
        )
    results = np.frombuffer(head, dtype, count)
    rest = bytes(memoryview(head)[count * dtype.itemsize :])
    return results, {index: text for index, text in json.loads(rest)} if rest else {}
