"""Data files, one per size class, cut into blocks; and the CRCs of the blocks' checksum blocks.

File ``blocks.NN`` holds blocks of ``BLOCK_BYTES[NN]``; block b begins at b times that. Files grow
by fallocate, a quarter of their size at a time, so that a small target stays small and a big one is
laid out in long extents. The CRCs stand in one array per class: row = block, column = 16 KiB.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fs3.checksum import CHECKSUM_BLOCK_BYTES, Crcs
from fs3.errors import Code, Fs3Error

from .files import FileLayer, Operation
from .records import (
    BLOCK_BYTES,
    SEGMENT_SLOTS,
    SIZE_CLASSES,
    class_bytes,
    class_slots,
    segment_key,
)

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkStoreSettings:
    """Limits of one target."""

    capacity_bytes: int = 0  # what chunks may occupy; 0: all that the file system has
    reserve_bytes: int = 256 << 20  # free disk space below which no data file grows
    growth_bytes_min: int = 1 << 20  # a data file grows by at least this (or one block)
    growth_bytes_max: int = 256 << 20  # and by no more than this
    idle_bytes_max: int = 64 << 20  # free blocks of a class that keep their disk space
    idle_ticks: int = 10  # and others keep it until they have not been needed for so many
    punch_bytes: int = 64 << 20  # disk space given back in one tick, at most
    channels_max: int = 1 << 18  # exactly-once records kept; the longest unused go first


class DataFiles:
    """The data files of one store. Writes come from the owner thread, reads from anywhere."""

    def __init__(self, files: FileLayer, root: Path, settings: ChunkStoreSettings) -> None:
        self._files = files
        self.read_pieces = files.read_pieces
        self._root = root
        self._settings = settings
        self.fds = [-1] * SIZE_CLASSES
        self.blocks = [0] * SIZE_CLASSES
        self.crcs: list[Crcs] = [
            np.zeros((0, class_slots(k)), dtype=np.uint32) for k in range(SIZE_CLASSES)
        ]
        self._dirty: set[int] = set()
        self._scratch = memoryview(b"")
        present = set(files.listdir(root))
        for size_class in range(SIZE_CLASSES):
            if _name(size_class) in present:
                self._open(size_class)

    def _open(self, size_class: int) -> None:
        fd = self._files.open(self._root / _name(size_class))
        self.fds[size_class] = fd
        self.blocks[size_class] = self._files.size(fd) // class_bytes(size_class)
        self._fit_crcs(size_class)

    def _fit_crcs(self, size_class: int) -> None:
        """Make the CRC array as long as the file; readers may go on with the old one."""
        old = self.crcs[size_class]
        if len(old) < self.blocks[size_class]:
            rows = max(self.blocks[size_class], len(old) * 5 // 4)
            new = np.zeros((rows, old.shape[1]), dtype=np.uint32)
            new[: len(old)] = old
            self.crcs[size_class] = new

    def grow(self, size_class: int) -> tuple[int, bool]:
        """Make a class's file longer: the number of new blocks, and whether they have disk space.

        OSError if the disk is full.
        """
        size = class_bytes(size_class)
        if self.fds[size_class] < 0:
            self._open(size_class)
            self._files.sync_directory(self._root)
        settings = self._settings
        length = self.blocks[size_class] * size
        step = max(length // 4, settings.growth_bytes_min, size)
        step = max(min(step, settings.growth_bytes_max) // size, 1) * size
        free = self._spare_bytes()
        if free < step:
            step = size
        self._check_spare(step, free)
        # Dirty before the call: a failure half-way may have made the file longer.
        self._dirty.add(size_class)
        has_space = self._files.fallocate(self.fds[size_class], length, step)
        self.blocks[size_class] += step // size
        self._fit_crcs(size_class)
        return step // size, has_space

    def spend(self, size_bytes: int) -> None:
        """A block without disk space will be written; OSError if that would take of the reserve."""
        self._check_spare(size_bytes, self._spare_bytes())

    def _spare_bytes(self) -> int:
        return self._files.space(self._root).free_bytes - self._settings.reserve_bytes

    def _check_spare(self, wanted_bytes: int, spare_bytes: int) -> None:
        if spare_bytes < wanted_bytes:
            reserve = self._settings.reserve_bytes
            raise OSError(errno.ENOSPC, f"{spare_bytes + reserve} bytes are free on disk")

    def allocated_bytes(self, size_class: int) -> int:
        """The disk space of a class's file."""
        fd = self.fds[size_class]
        return self._files.allocated(fd) if fd >= 0 else 0

    def write(self, size_class: int, block: int, offset: int, parts: Sequence[memoryview]) -> None:
        """Put ``parts``, one behind the other, at ``offset`` of a block."""
        self._dirty.add(size_class)
        position = block * BLOCK_BYTES[size_class] + offset
        fd = self.fds[size_class]
        total = sum(map(len, parts))
        written = self._files.pwritev(fd, parts, position)
        while written < total:
            rest = _behind(parts, written)
            more = self._files.pwritev(fd, rest, position + written)
            if more == 0:
                raise OSError(errno.EIO, f"{_name(size_class)}: a write wrote nothing")
            written += more

    def read(self, size_class: int, block: int, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill ``buffers`` from ``offset`` of a block; CORRUPT if the file ends before."""
        self.read_at(size_class, block * BLOCK_BYTES[size_class] + offset, buffers)

    def read_at(self, size_class: int, position: int, buffers: Sequence[memoryview]) -> None:
        """The same from a position in the class's file."""
        fd = self.fds[size_class]
        total = sum(map(len, buffers))
        if fd < 0:
            raise Fs3Error(Code.CORRUPT, f"data file {_name(size_class)} is missing")
        got = self._files.preadv(fd, buffers, position)
        while got < total:
            more = self._files.preadv(fd, _behind(buffers, got), position + got)
            if more == 0:
                block = position // BLOCK_BYTES[size_class]
                raise Fs3Error(
                    Code.CORRUPT,
                    f"data file {_name(size_class)} ends at byte {position + got}:"
                    f" block {block} needs {position + total}",
                )
            got += more

    def copy(self, source: tuple[int, int], target: tuple[int, int], start: int, end: int) -> None:
        """Copy a range from one (class, block) to the same place in another."""
        if not self._scratch:
            self._scratch = memoryview(bytearray(_COPY_BYTES))
        for offset in range(start, end, _COPY_BYTES):
            part = [self._scratch[: min(_COPY_BYTES, end - offset)]]
            self.read(*source, offset, part)
            self.write(*target, offset, part)

    def set_crcs(
        self, size_class: int, block: int, first: int, values: Sequence[int]
    ) -> list[Operation]:
        """Note the CRCs of checksum blocks from ``first`` on; the records that keep them."""
        if not values:
            return []
        row = self.crcs[size_class][block]
        row[first : first + len(values)] = values
        last = first + len(values) - 1
        operations: list[Operation] = []
        for segment in range(first // SEGMENT_SLOTS, last // SEGMENT_SLOTS + 1):
            part = row[segment * SEGMENT_SLOTS : (segment + 1) * SEGMENT_SLOTS]
            operations.append((segment_key(size_class, block, segment), part.tobytes()))
        return operations

    def load_segment(self, size_class: int, block: int, segment: int, value: bytes) -> None:
        """Take over a record made by :meth:`set_crcs`; of a block beyond the file it is stale."""
        if block < self.blocks[size_class]:
            row = self.crcs[size_class][block]
            values = np.frombuffer(value, dtype="<u4")
            row[segment * SEGMENT_SLOTS : segment * SEGMENT_SLOTS + len(values)] = values

    def crc(self, size_class: int, block: int, slot: int) -> int:
        """The CRC of one whole checksum block."""
        return self.crcs[size_class].item(block, slot)

    def punch(self, size_class: int, run: range) -> int:
        """Give the disk space of free blocks back; how many bytes."""
        size = class_bytes(size_class)
        self._files.punch(self.fds[size_class], run.start * size, len(run) * size)
        return len(run) * size

    def take_dirty(self) -> set[int]:
        """The classes written to since the last call."""
        dirty, self._dirty = self._dirty, set()
        return dirty

    def all_classes(self) -> set[int]:
        """The classes that have a file."""
        return {k for k, fd in enumerate(self.fds) if fd >= 0}

    def sync(self, classes: set[int]) -> None:
        """Put the data of these classes on stable storage."""
        for size_class in sorted(classes):
            self._files.fdatasync(self.fds[size_class])

    def close(self) -> None:
        """Close the files."""
        for size_class, fd in enumerate(self.fds):
            if fd >= 0:
                self._files.close(fd)
                self.fds[size_class] = -1


def _name(size_class: int) -> str:
    return f"blocks.{size_class:02}"


def _behind(parts: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is left of ``parts`` after ``done`` bytes."""
    rest = []
    for part in parts:
        if done < len(part):
            rest.append(part[done:])
        done = max(0, done - len(part))
    return rest


assert class_bytes(1) // class_slots(1) == CHECKSUM_BLOCK_BYTES
