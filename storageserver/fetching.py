"""A whole chunk from another replica, read as a client reads it. Blocks; for the repair thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fs3 import dataplane
from fs3.checksum import crc32c
from fs3.core.types import CHUNK_CONTENT_BYTES_MAX, Chain, ChunkId, ChunkVersion
from fs3.errors import Code, Fs3Error, code_of
from fs3.transport.client import DataConnection, drive

_DEADLINE_S = 5.0
_NUMBER = 1  # the only request on its connection


class Copy(NamedTuple):
    """What the other replica has. ``content`` has been compared with the CRC it came with."""

    version: ChunkVersion
    content: memoryview
    checksum: int


def fetch_chunk(
    address: str, cluster_id: str, chain: Chain, chunk: ChunkId, length_bytes: int
) -> Copy:
    """The committed chunk at ``address``, whole if it is ``length_bytes`` long.

    A longer one comes cut off one byte behind that. Fs3Error as the data plane has it: NO_CHUNK,
    CORRUPT (there, or on the way), STALE_CHAIN, NOT_SERVING, UNREACHABLE, ...
    """
    wanted = min(length_bytes + 1, CHUNK_CONTENT_BYTES_MAX)
    buffer = memoryview(bytearray(wanted))

    def place(_number: int, head: bytes) -> Sequence[memoryview]:
        results, _ = dataplane.decode_results(head, dataplane.READ_RESULT, 1)
        return [buffer[: int(results[0]["length"])]]

    connection = DataConnection(address, cluster_id, place)
    try:
        item = (chunk, chain.chain, chain.version, 0, wanted)
        connection.send(
            dataplane.READ_BATCH, _NUMBER, np.array([item], dataplane.READ_ITEM).tobytes()
        )
        completed = drive([connection], time.monotonic() + _DEADLINE_S)
    finally:
        connection.close()
    if not completed:
        raise Fs3Error(Code.UNREACHABLE, f"{address}: no answer within {_DEADLINE_S} s")
    if completed[0].error is not None:
        raise completed[0].error
    return _copy(address, completed[0].head, buffer)


def _copy(address: str, head: bytes, buffer: memoryview) -> Copy:
    results, details = dataplane.decode_results(head, dataplane.READ_RESULT, 1)
    code, length, version, crc, _ = results[0].tolist()
    if code != Code.OK:
        raise Fs3Error(code_of(code), f"{address}: {details.get(0, 'no reason given')}")
    content = buffer[:length]
    found = crc32c(content)
    if found != crc:
        raise Fs3Error(
            Code.CORRUPT, f"{address}: {length} bytes with CRC {found:08x}, {crc:08x} announced"
        )
    return Copy(ChunkVersion(version), content, crc)
