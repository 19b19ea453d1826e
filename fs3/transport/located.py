"""Reading what a storageserver has located: the client's own ``preadv``, verified by checksum.

A located piece is a range of a data file with the CRC of that range. It covers whole checksum
blocks, so it may begin before, and end behind, what was asked for: such edges go to a scratch
buffer. Pieces that follow each other in their file are read by one call.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3 import dataplane
from fs3.checksum import CHECKSUM_BLOCK_BYTES, crc32c
from fs3.errors import Code, Fs3Error

_BUFFERS_PER_CALL = 1024  # Linux's IOV_MAX


class LocatedReader:
    """Used by one thread."""

    def __init__(self, files: Mapping[int, int]) -> None:
        """``files``: the descriptor of each file by its number; it may change."""
        self._files = files
        self._scratch = memoryview(bytearray(2 * CHECKSUM_BLOCK_BYTES))
        self._failures: dict[int, tuple[Code, str]] = {}

    def read(self, located: NDArray[Any], parts: Sequence[memoryview]) -> dict[int, str]:
        """Fill ``parts``, a scatter list for all LOCATE_RESULTs that have a length.

        Pieces in the body are there already and are only verified. What fails gets its code,
        CORRUPT or DISK, in ``located``; returned is why, by item. Raises Fs3Error PROTOCOL for a
        file that nobody has passed.
        """
        self._failures = {}
        items = np.flatnonzero(located["length"])
        if not len(items):
            return {}
        pieces = located if len(items) == len(located) else located[items]
        if len(parts) != len(items):
            self._read_scattered(pieces, items.tolist(), grouped(parts, pieces["length"].tolist()))
        else:
            self._read_whole(pieces, items, parts)
        for item, (code, _) in self._failures.items():
            located["code"][item] = code
        return {item: text for item, (_, text) in self._failures.items()}

    def _read_whole(
        self, pieces: NDArray[Any], items: NDArray[np.int64], buffers: Sequence[memoryview]
    ) -> None:
        """Pieces that each have one buffer."""
        edged = (pieces["before"] | pieces["after"]) != 0
        if not edged.any():
            self._read_plain(pieces, items.tolist(), buffers)
        elif edged.all():
            self._read_edged(pieces, items.tolist(), buffers)
        else:
            for chosen, read in ((~edged, self._read_plain), (edged, self._read_edged)):
                where = np.flatnonzero(chosen)
                mine = [buffers[i] for i in where.tolist()]
                read(pieces[where], items[where].tolist(), mine)

    def _descriptor(self, number: int) -> int:
        descriptor = self._files.get(number)
        if descriptor is None:
            raise Fs3Error(Code.PROTOCOL, f"file {number} is located in, and was never passed")
        return descriptor

    # -- pieces of whole checksum blocks ---------------------------------------------------------

    def _read_plain(
        self, pieces: NDArray[Any], items: list[int], buffers: Sequence[memoryview]
    ) -> None:
        numbers, positions, lengths = pieces["file"], pieces["position"], pieces["length"]
        follows = (numbers[1:] == numbers[:-1]) & (positions[1:] == positions[:-1] + lengths[:-1])
        starts = [0, *(np.flatnonzero(~follows) + 1).tolist()]
        ends = [*starts[1:], len(pieces)]
        for start, end, number, position in zip(
            starts, ends, numbers[starts].tolist(), positions[starts].tolist(), strict=True
        ):
            if number != dataplane.FILE_NONE:
                self._fill(number, position, buffers[start:end], items[start:end])
        crcs = pieces["crc"].tolist()
        for item, crc, buffer in zip(items, crcs, buffers, strict=True):
            if crc32c(buffer) != crc:
                self._note_corrupt(item, crc32c(buffer), crc)

    def _fill(
        self, number: int, position: int, buffers: Sequence[memoryview], items: Sequence[int]
    ) -> None:
        """Read into ``buffers``, one behind the other; a failure is that of all ``items``."""
        descriptor = self._descriptor(number)
        try:
            for start in range(0, len(buffers), _BUFFERS_PER_CALL):
                parts = buffers[start : start + _BUFFERS_PER_CALL]
                wanted = sum(map(len, parts))
                got = os.preadv(descriptor, parts, position)
                if got < wanted and not _read_rest(descriptor, parts, position, got):
                    self._fail(
                        items, Code.CORRUPT, f"its data file ends before {position + wanted}"
                    )
                position += wanted
        except OSError as error:
            self._fail(items, Code.DISK, f"reading its data file: {error}")

    # -- pieces with edges -----------------------------------------------------------------------

    def _read_edged(
        self, pieces: NDArray[Any], items: list[int], buffers: Sequence[memoryview]
    ) -> None:
        columns = [pieces[name].tolist() for name in ("file", "position", "before", "after", "crc")]
        scratch = self._scratch
        held = None  # which range the scratch buffer has, verified
        for item, buffer, number, position, before, after, crc in zip(
            items, buffers, *columns, strict=True
        ):
            end = before + len(buffer)
            if end + after > CHECKSUM_BLOCK_BYTES:
                held = None
                parts = [scratch[:before], buffer, scratch[before : before + after]]
                self._fill(number, position, parts, [item])
                found = crc32c(parts[2], crc32c(buffer, crc32c(parts[0])))
            elif held != (number, position, end + after):
                part = scratch[: end + after]
                self._fill(number, position, [part], [item])
                found = crc32c(part)
                held = (number, position, end + after)
            if found != crc:
                held = None
                self._note_corrupt(item, found, crc)
            elif end + after <= CHECKSUM_BLOCK_BYTES:
                buffer[:] = scratch[before:end]

    # -- pieces with several buffers -------------------------------------------------------------

    def _read_scattered(
        self, pieces: NDArray[Any], items: list[int], groups: Sequence[Sequence[memoryview]]
    ) -> None:
        columns = [pieces[name].tolist() for name in ("file", "position", "before", "after", "crc")]
        for item, group, number, position, before, after, crc in zip(
            items, groups, *columns, strict=True
        ):
            ends = self._scratch[:before], self._scratch[before : before + after]
            parts = [ends[0], *group, ends[1]]
            if number != dataplane.FILE_NONE:
                self._fill(number, position, parts, [item])
            found = 0
            for part in parts:
                found = crc32c(part, found)
            if found != crc:
                self._note_corrupt(item, found, crc)

    # -- failures --------------------------------------------------------------------------------

    def _fail(self, items: Sequence[int], code: Code, reason: str) -> None:
        for item in items:
            self._failures.setdefault(item, (code, reason))

    def _note_corrupt(self, item: int, found: int, announced: int) -> None:
        self._fail(
            [item],
            Code.CORRUPT,
            f"a data file's bytes have checksum {found:#010x}, {announced:#010x} is announced",
        )


def grouped(parts: Sequence[memoryview], lengths: Sequence[int]) -> list[Sequence[memoryview]]:
    """The parts of a scatter list that hold each of these lengths; borders of both coincide.

    Fs3Error PROTOCOL if they do not: the answer is not what was asked for.
    """
    groups: list[Sequence[memoryview]] = []
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


def _read_rest(descriptor: int, parts: Sequence[memoryview], position: int, got: int) -> bool:
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
