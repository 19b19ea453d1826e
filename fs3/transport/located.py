"""Reading what a storageserver has located: the client's own ``preadv``, verified by checksum.

A place is a range of a data file with the CRC of that range. It covers whole checksum blocks, so it
may begin before, and end behind, what was asked for: such a block goes through a scratch buffer, or
its edges do. Places with one buffer each, the common case, are read by one call of the compiled
loop (fs3/compiled), two threads at work if they are much.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import CHECKSUM_BLOCK_BYTES, crc32c
from fs3.compiled import IN_MEMORY, PIECE, Failure, read_pieces
from fs3.dataplane import FILE_NONE
from fs3.errors import Code, Fs3Error

Location: TypeAlias = "tuple[int, int, int, int, int, int, int, int]"
"""The fields of a LOCATE_RESULT: code, length, version, crc, file, position, before, after."""
Places: TypeAlias = NDArray[Any]
"""LOCATE_RESULTs."""

Parts: TypeAlias = Sequence[memoryview]
_BUFFERS_PER_CALL = 1024  # Linux's IOV_MAX
_BLOCK = CHECKSUM_BLOCK_BYTES
PIECES = np.dtype(
    [
        ("descriptor", "<i4"),
        ("crc", "<u4"),
        ("position", "<u8"),
        ("before", "<u4"),
        ("length", "<u4"),
        ("after", "<u4"),
        ("reserved", "<u4"),
    ]
)
assert PIECES.itemsize == PIECE.size
"""The pieces of :func:`read_pieces`, as an array."""
_TAKEN_OVER = ("crc", "position", "before", "length", "after")


class LocatedReader:
    """Used by one thread."""

    def __init__(self, files: Mapping[int, int]) -> None:
        """``files``: the descriptor of each file by its number; it may change."""
        self._files = files
        self._scratch = memoryview(bytearray(2 * _BLOCK))
        self._failures: dict[int, tuple[Code, str]] = {}

    def read(self, places: Places, parts: Parts) -> dict[int, tuple[Code, str]]:
        """Fill ``parts``, a scatter list for all places that have a length.

        Pieces in the body are there already and are only verified. Returned is what failed, by
        item: CORRUPT or DISK, and why. Raises Fs3Error PROTOCOL for a file that nobody has passed,
        and for places that make no sense.
        """
        self._failures = {}
        items = np.flatnonzero(places["length"])
        if len(items) < len(places):
            places = places[items]
        if len(parts) == len(places):
            self._read_singly(items, places, parts)
        else:
            groups = grouped(parts, places["length"].tolist())
            for item, place, group in zip(items.tolist(), places.tolist(), groups, strict=True):
                self._read_scattered(item, place, group)
        return self._failures

    def _read_singly(self, items: NDArray[np.int64], places: Places, buffers: Parts) -> None:
        """Each place has one buffer."""
        files = self._files
        pieces = np.zeros(len(places), PIECES)
        try:
            pieces["descriptor"] = [
                files[file] if file != FILE_NONE else IN_MEMORY for file in places["file"].tolist()
            ]
            for name in _TAKEN_OVER:
                pieces[name] = places[name]
            failures = read_pieces(pieces.tobytes(), buffers, True)
        except KeyError as error:
            raise _never_passed(error.args[0]) from None
        except ValueError as error:
            raise Fs3Error(Code.PROTOCOL, f"places that make no sense: {error}") from error
        for failure in failures:
            self._note(int(items[failure[0]]), places[failure[0]].item(), failure)

    def _note(self, item: int, place: Location, failure: Failure) -> None:
        _, length, _, crc, _, position, before, after = place
        _, number, missing, found = failure
        if number:
            error = OSError(number, os.strerror(number))
            self._fail(item, Code.DISK, f"reading its data file: {error}")
        elif missing:
            end = position + before + length + after
            self._fail(item, Code.CORRUPT, f"its data file ends before {end}")
        else:
            self._note_corrupt(item, found, crc)

    def _read_scattered(self, item: int, place: Location, parts: Parts) -> None:
        """A place of any kind, with any number of buffers."""
        _, _, _, crc, number, position, before, after = place
        scratch = self._scratch
        parts = [scratch[:before], *parts, scratch[before : before + after]]
        if number != FILE_NONE:
            self._fill(number, position, parts, item)
        found = 0
        for part in parts:
            found = crc32c(part, found)
        if found != crc:
            self._note_corrupt(item, found, crc)

    def _fill(self, number: int, position: int, buffers: Parts, item: int) -> None:
        """Read into ``buffers``, one behind the other, what is of one ``item``."""
        descriptor = self._files.get(number)
        if descriptor is None:
            raise _never_passed(number)
        try:
            for start in range(0, len(buffers), _BUFFERS_PER_CALL):
                parts = buffers[start : start + _BUFFERS_PER_CALL]
                wanted = sum(map(len, parts))
                got = os.preadv(descriptor, parts, position)
                if got < wanted and not _read_rest(descriptor, parts, position, got):
                    self._fail(item, Code.CORRUPT, f"its data file ends before {position + wanted}")
                position += wanted
        except OSError as error:
            self._fail(item, Code.DISK, f"reading its data file: {error}")

    def _fail(self, item: int, code: Code, reason: str) -> None:
        self._failures.setdefault(item, (code, reason))

    def _note_corrupt(self, item: int, found: int, announced: int) -> None:
        self._fail(
            item,
            Code.CORRUPT,
            f"a data file's bytes have checksum {found:#010x}, {announced:#010x} is announced",
        )


def _never_passed(number: int) -> Fs3Error:
    return Fs3Error(Code.PROTOCOL, f"file {number} is located in, and was never passed")


def grouped(parts: Parts, lengths: Sequence[int]) -> list[Parts]:
    """The parts of a scatter list that hold each of these lengths; borders of both coincide.

    Fs3Error PROTOCOL if they do not: the answer is not what was asked for.
    """
    groups: list[Parts] = []
    at = 0
    for length in lengths:
        start = at
        while length > 0 and at < len(parts):
            length -= len(parts[at])
            at += 1
        if length:
            raise Fs3Error(Code.PROTOCOL, "located pieces that are not those asked for")
        groups.append(parts[start:at])
    return groups


def _read_rest(descriptor: int, parts: Parts, position: int, got: int) -> bool:
    """What a call that was cut short has left of ``parts``; False if the file ends before."""
    before = 0
    for part in parts:
        rest = part[max(0, got - before) :]
        while rest:
            count = os.preadv(descriptor, (rest,), position + before + len(part) - len(rest))
            if not count:
                return False
            rest = rest[count:]
        before += len(part)
    return True
