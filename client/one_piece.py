"""A read of one piece of one chunk, without arrays: the common case, if nothing goes wrong."""

from __future__ import annotations

import time

from fs3 import dataplane
from fs3.checksum import crc32c
from fs3.errors import Code, Fs3Error

_RESULT_BYTES = dataplane.RESULT.size
_unpack_result = dataplane.RESULT.unpack_from


class OnePiece:
    """One request and its reply; what is no plain good answer is for a :class:`Transfer`."""

    __slots__ = ("_buffer", "sent_s")

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self.sent_s = time.monotonic()

    def place(self, head: bytes) -> list[memoryview]:
        """Where the body of the reply goes."""
        buffer = self._buffer
        if len(head) < _RESULT_BYTES:
            raise Fs3Error(Code.PROTOCOL, f"a reply's head of {len(head)} bytes")
        length = _unpack_result(head)[1]
        if length > len(buffer):
            raise Fs3Error(Code.PROTOCOL, "a reply carries more bytes than were asked for")
        return [buffer if length == len(buffer) else buffer[:length]]

    def result(self, head: bytes, *, verified: bool) -> int:
        """How many bytes the chunk had, the rest made zeros; -1 if it is no plain good answer."""
        code, length, _, crc, _ = _unpack_result(head)
        buffer = self._buffer
        if code == Code.NO_CHUNK:
            buffer[:] = bytes(len(buffer))
            return 0
        if code != Code.OK or length > len(buffer):
            return -1
        if length < len(buffer):
            buffer[length:] = bytes(len(buffer) - length)
            buffer = buffer[:length]
        return length if verified or crc32c(buffer) == crc else -1
