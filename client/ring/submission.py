"""What one ``submit`` started: columns of I/Os, cut into pieces of chunks, until the last result.

Pieces travel in transfers (fs3.client.transfers), moved on by whoever waits for the ring. An I/O
has ended when all its pieces have; its result is its bytes, or minus the errno of its first piece
that failed. Writes are told to their file before their I/O counts as ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3.client.batch import Ranges, chunk_numbers, pieces_of, views_of
from fs3.client.data import DataClient
from fs3.client.links import Links
from fs3.client.transfers import Transfer
from fs3.dataplane import BATCH_ITEMS_MAX
from fs3.errors import TABLE, Code, code_of

from .file_set import FileSet, Mask
from .files import Column, Registered

RESULT = np.dtype([("index", "<u8"), ("userdata", "<u8"), ("result", "<i8")])
Results = NDArray[Any]  # of RESULT
_OK, _NO_CHUNK = int(Code.OK), int(Code.NO_CHUNK)  # numpy compares with these much faster


class Prepared(NamedTuple):
    """I/Os that are ready to start; all columns have one entry each."""

    files: Sequence[Registered]  # the different ones
    of_file: Column  # which of them
    offsets: Column
    views: list[memoryview]  # the memory, as long as the I/O
    numbers: NDArray[np.uint64]  # for RESULT's index
    userdata: NDArray[np.uint64]


class _Part(NamedTuple):
    """A transfer and the pieces that it carries."""

    pieces: slice
    transfer: Transfer
    found: NDArray[np.uint32]  # bytes that there were, of reads


class Submission:
    """Of one ring; used by its thread."""

    def __init__(self, prepared: Prepared, data: DataClient, links: Links, *, reads: bool) -> None:
        self._data, self._links, self._reads = data, links, reads
        self._files = FileSet(prepared.files, prepared.of_file)
        self._offsets = prepared.offsets
        self._results = np.zeros(len(prepared.views), RESULT)
        self._results["index"] = prepared.numbers
        self._results["userdata"] = prepared.userdata
        self._open = np.ones(len(prepared.views), np.bool_)  # I/Os that were not collected yet
        views = prepared.views
        self._lengths = np.array([len(view) for view in views], np.int64)
        if reads:
            views = self._cut_to_files(views)
        else:
            self._files.before_writes()
        lengths = np.where(self._files.errnos() != 0, 0, self._lengths)
        ranges = Ranges(self._files.inodes, prepared.of_file, prepared.offsets, lengths)
        self._items, self._of_io, self._begins = pieces_of(ranges)
        self._views: Sequence[memoryview] = ()
        if len(self._items):
            self._views = views_of(views, self._items, self._of_io, self._begins)
        self._codes = np.zeros(len(self._items), np.uint32)
        self._done = np.zeros(len(self._items), np.bool_)
        self._found = np.zeros(len(self._items), np.uint32)
        self._parts: list[_Part] = []
        # Reads go as one transfer, writes as many as the wire wants; the first one last here.
        step = max(len(self._items), 1) if reads else BATCH_ITEMS_MAX
        self._waiting = [slice(at, at + step) for at in range(0, len(self._items), step)][::-1]

    def _cut_to_files(self, views: list[memoryview]) -> list[memoryview]:
        """Nothing behind the end of a file is asked for."""
        readable = self._files.readable(self._offsets, self._lengths)
        shorter = np.flatnonzero(readable != self._lengths).tolist()
        self._lengths = readable
        if shorter:
            views = list(views)
            for place in shorter:
                views[place] = views[place][: int(readable[place])]
        return views

    # -- on its way --------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """There are pieces that have not started."""
        return bool(self._waiting)

    @property
    def transfers(self) -> list[Transfer]:
        """Those under way."""
        return [part.transfer for part in self._parts]

    @property
    def open(self) -> int:
        """I/Os that were not collected yet."""
        return int(np.count_nonzero(self._open))

    def start(self) -> None:
        """Start what waits. Fs3Error BUSY: not all of it can be yet; call again."""
        while self._waiting:
            pieces = self._waiting[-1]
            items, views = self._items[pieces], self._views[pieces]
            found = self._found[pieces]
            if self._reads:
                if self._data.read_here(items, views, self._links):  # as if the page cache had it
                    self._waiting.pop()
                    self._done[pieces], self._found[pieces] = True, items["length"]
                    continue
                transfer, found = self._data.begin_reads(items, views, self._links)
            else:
                transfer = self._data.begin_writes(items, views, self._links)
            self._waiting.pop()
            self._parts.append(_Part(pieces, transfer, found))
            transfer.begin()

    def collect(self) -> Results:
        """The results of I/Os that have ended and were not collected before."""
        left = []
        for part in self._parts:
            self._done[part.pieces] = part.transfer.batch.done
            self._codes[part.pieces] = part.transfer.batch.codes
            self._found[part.pieces] = part.found
            if part.transfer.finished:
                part.transfer.close()
            else:
                left.append(part)
        self._parts = left
        if left or self._waiting:
            pieces_left = np.bincount(self._of_io[~self._done], minlength=len(self._open))
            ended = self._open & (pieces_left == 0)
        else:
            ended = self._open.copy()
        if ended.any():
            self._settle(ended)
        collected: Results = self._results[ended]
        return collected

    def abandon(self, errno: int) -> Results:
        """Give up what is under way, with this result, and collect the rest.

        No memory is touched from here on.
        Writes that are given up may have happened, or happen yet: their files are told of them.
        """
        collected = self.collect()
        for part in self._parts:
            part.transfer.close()
        self._parts.clear()
        self._waiting.clear()
        left = self._open.copy()
        if not self._reads and left.any():
            self._tell(left[self._of_io], extend=False)
        self._results["result"][left] = -errno
        self._close(left)
        return np.concatenate([collected, self._results[left]])

    # -- results -----------------------------------------------------------------------------------

    def _close(self, ended: Mask) -> None:
        self._open &= ~ended
        if not self._open.any():
            self._files.release()

    def _settle(self, ended: Mask) -> None:
        """Find the results of these."""
        results, lengths = self._results["result"], self._lengths
        pieces = ended[self._of_io]
        good = (self._codes == _OK) | (self._codes == _NO_CHUNK)
        if self._reads:
            # A piece that is not all there is a hole, unless the file has become shorter.
            short = pieces & (self._found < self._items["length"])
            if short.any():
                suspects = np.zeros(len(lengths), np.bool_)
                suspects[self._of_io[short]] = True
                lengths = self._files.readable_now(suspects, self._offsets, lengths)
        else:
            self._tell(pieces & good, extend=True)
        results[ended] = lengths[ended]
        for piece in np.flatnonzero(pieces & ~good)[::-1].tolist():
            results[self._of_io[piece]] = -TABLE[code_of(int(self._codes[piece]))].errno
        errnos = self._files.errnos()
        failed = ended & (errnos != 0)
        results[failed] = -errnos[failed]
        self._close(ended)

    def _tell(self, pieces: Mask, *, extend: bool) -> None:
        """These pieces were written, or may have been."""
        if not pieces.any():
            return
        of_io, items = self._of_io[pieces], self._items[pieces]
        ends = self._offsets[of_io] + self._begins[pieces] + items["length"]
        self._files.wrote(of_io, chunk_numbers(items), ends if extend else 0 * ends)
