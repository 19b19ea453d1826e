"""Checking what a read brings while it arrives: the bytes are in the processor's cache then."""

from __future__ import annotations

from fs3 import dataplane
from fs3.checksum import crc32c
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger

_log = get_logger(__name__)


class ArrivingPieces:
    """The body of one READ_BATCH's reply."""

    def __init__(self, head: bytes, items: int, body_bytes: int, source: str) -> None:
        """``items``: how many were asked for. ``source``: who sends it, for logs.

        Fs3Error PROTOCOL if the body is not as long as the head says.
        """
        self._head = head
        self._items = items
        self._source = source
        pieces: list[tuple[int, int, int]] = []
        found = 0
        size = items * dataplane.RESULT.size
        whole = len(head) >= size  # else nothing is found
        results = dataplane.RESULT.iter_unpack(head[:size] if whole else b"")
        for item, (_, length, _, crc, _) in enumerate(results):
            if length:
                pieces.append((item, length, crc))
                found += length
        if found != body_bytes:
            detail = f"{source}: a body of {body_bytes} bytes; the pieces have {found}"
            raise Fs3Error(Code.PROTOCOL, detail)
        self._pieces = iter(pieces)
        self._wrong: list[tuple[int, str]] = []
        self._item = self._length = self._left = self._expected = self._crc = 0

    def take(self, part: memoryview) -> None:
        """The next bytes of the body, in place."""
        while len(part):
            if not self._left:
                self._item, self._length, self._expected = next(self._pieces)
                self._left, self._crc = self._length, 0
            now, part = part[: self._left], part[self._left :]
            self._crc = crc32c(now, self._crc)
            self._left -= len(now)
            if not self._left and self._crc != self._expected:
                self._note_wrong()

    def _note_wrong(self) -> None:
        detail = (
            f"{self._length} bytes from {self._source} with CRC"
            f" {self._crc:#010x}, {self._expected:#010x} announced"
        )
        self._wrong.append((self._item, detail))
        _log.warning("read_corrupt", detail=detail)

    def checked_head(self) -> bytes:
        """The head of the reply, in which pieces with a wrong checksum are CORRUPT."""
        if not self._wrong:
            return self._head
        results, details = dataplane.decode_results(self._head, dataplane.READ_RESULT, self._items)
        results = results.copy()
        results["code"][[item for item, _ in self._wrong]] = Code.CORRUPT
        return dataplane.encode_results(results, list((details | dict(self._wrong)).items()))
