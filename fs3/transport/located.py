"""Reading what a storageserver has located: the client's own ``preadv``, verified by checksum.

A place is a range of a data file with the CRC of that range. It covers whole checksum blocks, so it
may begin before, and end behind, what was asked for: such a block goes through a scratch buffer, or
its edges do. All places of an answer are read by one call of the compiled loop (fs3/compiled), two
threads at work if they are much.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fs3.compiled import IN_MEMORY, PIECE_OF_PARTS, Buffer, Failure, read_pieces
from fs3.dataplane import FILE_NONE
from fs3.errors import Code, Fs3Error

Location: TypeAlias = "tuple[int, int, int, int, int, int, int, int]"
"""The fields of a LOCATE_RESULT: code, length, version, crc, file, position, before, after."""
Places: TypeAlias = NDArray[Any]
"""LOCATE_RESULTs."""

Parts: TypeAlias = Sequence[memoryview]
PIECES = np.dtype(
    [
        ("descriptor", "<i4"),
        ("crc", "<u4"),
        ("position", "<u8"),
        ("before", "<u4"),
        ("length", "<u4"),
        ("after", "<u4"),
        ("more_parts", "<u4"),
    ]
)
assert PIECES.itemsize == PIECE_OF_PARTS.size
"""The pieces of :func:`read_pieces`, as an array."""
Pieces: TypeAlias = NDArray[Any]
_TAKEN_OVER = ("crc", "position", "before", "length", "after")


class LocatedReader:
    """Used by one thread."""

    def __init__(self, files: Mapping[int, int]) -> None:
        """``files``: the descriptor of each file by its number; it may change."""
        self._files = files
        self._failures: dict[int, tuple[Code, str]] = {}

    def read(self, places: Places, parts: Parts) -> dict[int, tuple[Code, str]]:
        """Fill ``parts``, a scatter list for all places that have a length.

        Pieces in the body are there already and are only verified. Returned is what failed, by
        item: CORRUPT or DISK, and why. Raises Fs3Error PROTOCOL for a file that nobody has passed,
        and for places that make no sense.
        """
        self._failures = {}
        files, items = self._files, np.flatnonzero(places["length"])
        if len(items) < len(places):
            places = places[items]
        pieces = np.zeros(len(places), PIECES)
        try:
            pieces["descriptor"] = [
                files[file] if file != FILE_NONE else IN_MEMORY for file in places["file"].tolist()
            ]
        except KeyError as error:
            detail = f"file {error.args[0]} is located in, and was never passed"
            raise Fs3Error(Code.PROTOCOL, detail) from None
        for name in _TAKEN_OVER:
            pieces[name] = places[name]
        if len(parts) != len(places):
            pieces["more_parts"] = parts_per_piece(parts, places["length"]) - 1
        failures = read_into(parts, pieces.view(np.uint8).data)
        for failure in failures:
            self._note(int(items[failure[0]]), places[failure[0]].item(), failure)
        return self._failures

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
            self._fail(
                item,
                Code.CORRUPT,
                f"a data file's bytes have checksum {found:#010x}, {crc:#010x} is announced",
            )

    def _fail(self, item: int, code: Code, reason: str) -> None:
        self._failures[item] = (code, reason)


def read_into(parts: Parts, pieces: Buffer) -> list[Failure]:
    """:func:`read_pieces` of what a server has told; Fs3Error PROTOCOL if that makes no sense."""
    try:
        return read_pieces(pieces, parts, True)
    except ValueError as error:
        raise Fs3Error(Code.PROTOCOL, f"places that make no sense: {error}") from error


def parts_per_piece(parts: Parts, lengths: NDArray[Any]) -> NDArray[np.int64]:
    """How many parts of a scatter list hold each of these lengths; borders of both coincide.

    Fs3Error PROTOCOL if they do not: the answer is not what was asked for.
    """
    if len(parts) == len(lengths):
        return np.ones(len(parts), np.int64)  # of what length each is, whoever reads them sees
    ends, borders = np.cumsum(lengths, dtype=np.int64), np.cumsum(list(map(len, parts)))
    last = np.searchsorted(borders, ends)
    if not len(ends) or last[-1] != len(parts) - 1 or not np.array_equal(borders[last], ends):
        raise Fs3Error(Code.PROTOCOL, "located pieces that are not those asked for")
    return np.diff(last, prepend=-1)
