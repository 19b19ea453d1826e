"""The different files that the I/Os of one submission are of. One that fails fails its own I/Os."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fs3.types import Inode

from .files import Column, Registered, RingFile

Mask = NDArray[np.bool_]
_ENDLESS = np.iinfo(np.int64).max


class FileSet:
    """``of_io`` says of which file each I/O is. :meth:`release` it when nothing is under way."""

    def __init__(self, registered: Sequence[Registered], of_io: Column) -> None:
        self.of_io = of_io
        self._registered = [each.take() for each in registered]
        self._files: list[RingFile] = [each.file for each in registered]
        self._errnos = np.zeros(len(registered), np.int64)  # of those that failed as a whole
        self._versions = [0] * len(registered)  # for RingFile.wrote

    @property
    def inodes(self) -> list[Inode]:
        """Of each."""
        return [file.inode for file in self._files]

    def errnos(self) -> Column:
        """Per I/O: that of its file, or 0."""
        return self._errnos[self.of_io]

    def release(self) -> None:
        """Idempotent."""
        registered, self._registered = self._registered, []
        for each in registered:
            each.release()

    def _failed(self, place: int, error: OSError) -> None:
        self._errnos[place] = error.errno or errno.EIO

    def _each(self) -> Iterator[tuple[int, RingFile, Mask]]:
        for place, file in enumerate(self._files):
            yield place, file, self.of_io == place

    # -- reads -------------------------------------------------------------------------------------

    def readable(self, offsets: Column, lengths: Column) -> Column:
        """How much of each I/O there is; files that seem too short are asked again."""
        for place, file, mine in self._each():
            try:
                file.before_reads(offsets[mine], lengths[mine])
            except OSError as error:
                self._failed(place, error)
        ends = np.array([file.length for file in self._files], np.int64)
        if (offsets + lengths <= ends[self.of_io]).all():
            return lengths
        short = np.unique(self.of_io[offsets + lengths > ends[self.of_io]])
        ends = self._refresh(short, ends)
        readable: Column = np.clip(ends[self.of_io] - offsets, 0, lengths)
        return readable

    def readable_now(self, suspects: Mask, offsets: Column, lengths: Column) -> Column:
        """The same, after the fact; for other I/Os than ``suspects`` ``lengths`` stand."""
        ends = self._refresh(
            np.unique(self.of_io[suspects]), np.full(len(self._files), _ENDLESS, np.int64)
        )
        readable: Column = np.clip(ends[self.of_io] - offsets, 0, lengths)
        return readable

    def _refresh(self, places: Column, ends: Column) -> Column:
        for place in places.tolist():
            try:
                ends[place] = self._files[place].refresh()
            except OSError as error:
                self._failed(place, error)
        return ends

    # -- writes ------------------------------------------------------------------------------------

    def before_writes(self) -> None:
        """Nobody must hold back what is older."""
        for place, file in enumerate(self._files):
            try:
                self._versions[place] = file.before_writes()
            except OSError as error:
                self._failed(place, error)

    def wrote(self, of_piece: Column, chunks: Column, ends: Column) -> None:
        """Pieces were written: of which I/O each, which chunk, and up to where in the file."""
        of_file = self.of_io[of_piece]
        for place in np.unique(of_file).tolist() if len(self._files) > 1 else [0]:
            mine = of_file == place
            try:
                self._files[place].wrote(int(ends[mine].max()), chunks[mine], self._versions[place])
            except OSError as error:
                self._failed(place, error)
