"""Reading records: any number of them, of any number of files, in one batch.

Opening reads 128 bytes and no index: a million records open at once. The index (4 or 8 bytes per
record) is read whole when it is needed first, and is not pickled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import crc32c
from fs3.client.shared_clients import Address
from fs3.errors import Code, Fs3Error

from .format import (
    FOOTER_BYTES,
    HEADER_BYTES,
    Crcs,
    Header,
    decode_footer,
    decode_header,
    decode_index,
)
from .storage import Range, Storage, locate

Numbers: TypeAlias = "Sequence[int] | NDArray[np.int64]"
Allocate: TypeAlias = Callable[[int], memoryview]  # memory for so many bytes
Place: TypeAlias = "str | os.PathLike[str]"


def fresh(size: int) -> memoryview:
    """New memory, not set to zero."""
    return np.empty(size, np.uint8).data if size else memoryview(bytearray())


class RecordFile:
    """One record file. Any thread may read; failures are OSError, Fs3Error CORRUPT among them."""

    def __init__(self, storage: Storage, path: str) -> None:
        self.path = path
        self._storage = storage
        storage.hold(path)
        self.size = storage.size(path)
        if self.size < HEADER_BYTES + FOOTER_BYTES:
            raise Fs3Error(Code.INVALID, f"{path}: {self.size} bytes are too few for records")
        memory = fresh(HEADER_BYTES + FOOTER_BYTES)
        head, foot = memory[:HEADER_BYTES], memory[HEADER_BYTES:]
        storage.read([(path, 0, head), (path, self.size - FOOTER_BYTES, foot)])
        self.header: Header = decode_header(head, path)
        self._footer = decode_footer(foot, self.size, path)
        self._index: tuple[NDArray[np.int64], Crcs] | None = None

    def __len__(self) -> int:
        return self._footer.records

    def index(self) -> tuple[NDArray[np.int64], Crcs]:
        """Where each record begins and the last ends (records + 1, bytes); their checksums."""
        if self._index is None:
            data = fresh(self._footer.index_bytes)
            self._storage.read([(self.path, self._footer.index_offset, data)])
            self._index = decode_index(self.header, self._footer, data, self.path)
        return self._index

    def bounds(self, numbers: NDArray[np.int64], window: int) -> tuple[NDArray[np.int64], ...]:
        """Of ``window`` records from each number on: where they begin and how long they are."""
        if self.header.record_bytes:  # the index is not needed for this
            starts = numbers * self.header.record_bytes + HEADER_BYTES
            return starts, np.full(len(numbers), window * self.header.record_bytes, np.int64)
        offsets, _ = self.index()
        return offsets[numbers], offsets[numbers + window] - offsets[numbers]

    def check(self, number: int, record: memoryview) -> None:
        """Fs3Error CORRUPT if these are not the record's bytes."""
        wanted = int(self.index()[1][number])
        found = crc32c(record)
        if found != wanted:
            raise Fs3Error(
                Code.CORRUPT,
                f"{self.path}: record {number} has checksum {found:#010x}; {wanted:#010x} was"
                " written",
            )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_index": None}


class Records:
    """The records of one or many files, numbered through.

    With ``window`` above 1, number i stands for that many consecutive records of one file, of which
    record i is the first: any stretch of a long sequence that was cut into records.
    """

    def __init__(
        self,
        places: Place | Sequence[Place],
        *,
        address: Address = None,
        cluster_id: str | None = None,
        window: int = 1,
        verify: bool | None = None,
    ) -> None:
        """``places``: URLs or local paths, of record files or directories of them.

        ``verify``: compare every record with its checksum; by default where the storage does not do
        so itself, which fs3 does. ``address`` and ``cluster_id``: see :func:`fs3.connect`; for URLs
        that name no address.
        """
        if window < 1:
            raise Fs3Error(Code.INVALID, f"window {window} is not allowed: 1 or more is")
        several = [places] if isinstance(places, str | os.PathLike) else places
        storages = {
            where.key: where for where, _ in (locate(p, address, cluster_id) for p in several)
        }
        if len(storages) != 1:
            raise Fs3Error(
                Code.INVALID, f"{places!r} lie in {len(storages)} storages; 1 is allowed"
            )
        self._storage = next(iter(storages.values()))
        self.files: list[RecordFile] = []
        for _, path in (locate(place, address, cluster_id) for place in several):
            inside = self._storage.isdir(path)
            paths = [one for one, _ in self._storage.files(path)] if inside else [path]
            self.files += [RecordFile(self._storage, one) for one in paths]
        if not self.files:
            raise Fs3Error(Code.NOT_FOUND, f"no record file in {places!r}")
        kinds = {file.header.kind for file in self.files}
        if len(kinds) > 1:
            raise Fs3Error(Code.INVALID, "files of opaque records and of samples, in one set")
        self.kind = kinds.pop()
        self.window = window
        self.verifies = not self._storage.checks_bytes if verify is None else verify
        counts = [max(len(file) - window + 1, 0) for file in self.files]
        self._firsts = np.cumsum([0, *counts])  # number of each file's first, and of all

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def read(self, numbers: Numbers, allocate: Allocate = fresh) -> list[memoryview]:
        """The records of these numbers, in this order, in one batch.

        Their memory is one piece from ``allocate(bytes)``; what is returned are its parts, back to
        back. Negative numbers count from the end; others outside are an IndexError.
        """
        wanted = self._inside(np.asarray(numbers, np.int64))
        if not len(wanted):
            return []
        files = np.searchsorted(self._firsts, wanted, "right") - 1
        within = wanted - self._firsts[files]
        offsets, lengths = np.empty_like(wanted), np.empty_like(wanted)
        for file in np.unique(files).tolist():
            mine = files == file
            offsets[mine], lengths[mine] = self.files[file].bounds(within[mine], self.window)
        ends = np.cumsum(lengths).tolist()
        memory = allocate(ends[-1])
        views = [memory[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        of_file = [self.files[file] for file in files.tolist()]
        ranges: list[Range] = [
            (file.path, offset, view)
            for file, offset, view in zip(of_file, offsets.tolist(), views, strict=True)
        ]
        self._storage.read(ranges)
        if self.verifies:
            for file, number, view in zip(of_file, within.tolist(), views, strict=True):
                self._check(file, number, view)
        return views

    def _inside(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        total = len(self)
        numbers = np.where(numbers < 0, numbers + total, numbers)
        outside = (numbers < 0) | (numbers >= total)
        if outside.any():
            raise IndexError(f"record {numbers[outside][0]} of {total}")
        return numbers

    def _check(self, file: RecordFile, number: int, view: memoryview) -> None:
        if self.window == 1:
            file.check(number, view)
            return
        starts = file.index()[0][number : number + self.window + 1]
        cuts = (starts - starts[0]).tolist()
        for step in range(self.window):
            file.check(number + step, view[cuts[step] : cuts[step + 1]])
