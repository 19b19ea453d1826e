"""The chunk store's file layer on a machine made of memory, which fails, stops and loses power.

``Machine`` is what outlives a process: files with their durable bytes and the unsynced writes on
top, records with the batches since the last sync. ``FaultyFiles`` is one process's view of it. Each
call counts; at the n-th the process may stop (that call done in part, or not at all) or get an
errno.

:meth:`Machine.lose_power` keeps, of every unsynced write, any subset of its 512-byte sectors, and
of the records a prefix of the batches: no more than that is promised by disks and by a log.
"""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from fs3.compiled import plain
from fs3.storageserver.chunkstore.files import Space

SECTOR = 512
PAGE = 4096


class Stopped(BaseException):
    """The process has died. Not an Exception: nothing may handle it."""


class File:
    def __init__(self):
        self.durable = bytearray()
        self.cached = bytearray()
        self.unsynced: list[tuple[int, bytes]] = []
        self.pages: set[int] = set()  # that have disk space

    def take(self, offset: int, length: int) -> None:
        self.pages.update(range(offset // PAGE, -(-(offset + length) // PAGE)))

    def write(self, offset: int, data: bytes) -> None:
        self.cached[len(self.cached) :] = bytes(max(0, offset + len(data) - len(self.cached)))
        self.cached[offset : offset + len(data)] = data
        self.take(offset, len(data))
        self.unsynced.append((offset, data))

    def sync(self) -> None:
        self.durable = bytearray(self.cached)
        self.unsynced.clear()

    def lose_power(self, random: Random) -> None:
        kept = self.durable
        # The length is metadata: it may have been written, or not.
        if random.random() < 0.5:
            kept.extend(bytes(max(0, len(self.cached) - len(kept))))
        style = random.choice(["all", "none", "some"])
        for offset, data in self.unsynced:
            position = 0
            while position < len(data):
                end = min(len(data), (offset + position) // SECTOR * SECTOR + SECTOR - offset)
                survives = style == "all" or (style == "some" and random.random() < 0.5)
                if survives and offset + end <= len(kept):
                    kept[offset + position : offset + end] = data[position:end]
                position = end
        self.cached = bytearray(kept)
        self.unsynced.clear()


class MemoryRecords:
    """Records of one store: what is synced, and the batches since."""

    def __init__(self):
        self.synced: dict[bytes, bytes] = {}
        self.current: dict[bytes, bytes] = {}
        self.batches: list[list[tuple[bytes, bytes | None]]] = []

    def apply(self, batch):
        self.batches.append(batch)
        _apply(self.current, batch)

    def sync(self) -> None:
        self.synced = dict(self.current)
        self.batches.clear()

    def lose_power(self, random: Random) -> None:
        for batch in self.batches[: random.randint(0, len(self.batches))]:
            _apply(self.synced, batch)
        self.current = dict(self.synced)
        self.batches.clear()


def _apply(target, batch):
    for key, value in batch:
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value


class Machine:
    """Disks and the power switch."""

    def __init__(self, total_bytes: int = 1 << 34):
        self.files: dict[Path, File] = {}
        self.records: dict[Path, MemoryRecords] = {}
        self.boots = 1
        self.total_bytes = total_bytes
        self.sparse = False  # a tmpfs: a file that is made longer gets its space as it is written

    @property
    def used_bytes(self) -> int:
        return sum(len(file.pages) * PAGE for file in self.files.values())

    def lose_power(self, random: Random) -> None:
        self.boots += 1
        for file in self.files.values():
            file.lose_power(random)
        for records in self.records.values():
            records.lose_power(random)


class FaultyFiles:
    """One process. ``stop_at``: die in that call, counted from 1. ``errors``: call -> errno.

    ``on_call`` gets each call's name, before it acts.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        stop_at: int | None = None,
        errors: dict[int, int] | None = None,
        random: Random | None = None,
        on_call: Callable[[str], None] | None = None,
    ):
        self.machine = machine
        self.stop_at = stop_at
        self.errors = errors or {}
        self.random = random or Random(0)
        self.on_call = on_call
        self.calls = 0
        self._open: list[File | None] = []

    def call(self, name: str, partly: Callable[[], None] | None = None) -> None:
        """Count a call; stop in it (having done it ``partly``) or fail it if that is due."""
        if self.stop_at is not None and self.calls >= self.stop_at:
            raise Stopped(name)
        if self.on_call:
            self.on_call(name)  # may make calls itself, as another thread would
        self.calls += 1
        if self.calls == self.stop_at:
            if partly and self.random.random() < 0.5:
                partly()
            raise Stopped(name)
        number = self.errors.get(self.calls)
        if number:
            if partly and self.random.random() < 0.5:
                partly()
            raise OSError(number, os.strerror(number))

    def open(self, path):
        self.call("open")
        self._open.append(self.machine.files.setdefault(path, File()))
        return len(self._open) - 1

    def close(self, fd):
        self._open[fd] = None

    def size(self, fd):
        return len(self._file(fd).cached)

    def allocated(self, fd):
        return len(self._file(fd).pages) * PAGE

    def _file(self, fd) -> File:
        file = self._open[fd]
        assert file is not None, "closed"
        return file

    def preadv(self, fd, buffers, offset):
        self.call("preadv")
        data = self._file(fd).cached
        done = 0
        for buffer in buffers:
            part = data[offset + done : offset + done + len(buffer)]
            buffer[: len(part)] = part
            done += len(part)
        return done

    def read_pieces(self, pieces, buffers, split=False, crcs=None):
        return plain.read_pieces(pieces, buffers, split, crcs, preadv=self.preadv)

    def pwritev(self, fd, buffers, offset):
        data = b"".join(bytes(buffer) for buffer in buffers)
        file = self._file(fd)
        half = data[: self.random.randint(0, len(data))]
        self.call("pwritev", lambda: file.write(offset, half))
        file.write(offset, data)
        return len(data)

    def fallocate(self, fd, offset, length):
        file = self._file(fd)

        def grow():
            file.cached.extend(bytes(max(0, offset + length - len(file.cached))))
            if not self.machine.sparse:
                file.take(offset, length)

        self.call("fallocate", grow)
        if self.machine.used_bytes > self.machine.total_bytes:
            raise OSError(28, "No space left on device")
        grow()
        return not self.machine.sparse

    def punch(self, fd, offset, length):
        self.call("punch")
        self._file(fd).write(offset, bytes(length))
        self._file(fd).pages -= {*range(offset // PAGE, (offset + length) // PAGE)}

    def fdatasync(self, fd):
        file = self._file(fd)
        self.call("fdatasync", file.sync)
        file.sync()

    def make_directory(self, path):
        self.call("make_directory")

    def sync_directory(self, path):
        self.call("sync_directory")

    def listdir(self, path):
        return sorted(p.name for p in [*self.machine.files, *self.machine.records])

    def space(self, path):
        return Space(self.machine.total_bytes, self.machine.total_bytes - self.machine.used_bytes)

    def boot_id(self):
        return f"boot {self.machine.boots}"

    def open_records(self, path, *, create):
        self.call("open_records")
        if path not in self.machine.records:
            if not create:
                raise OSError(5, f"{path} does not exist")
            self.machine.records[path] = MemoryRecords()
        return FaultyRecords(self, self.machine.records[path])


class FaultyRecords:
    def __init__(self, files: FaultyFiles, records: MemoryRecords):
        self._files = files
        self._records = records

    def write(self, operations):
        batch = list(operations)
        self._files.call("records.write", lambda: self._records.apply(batch))
        self._records.apply(batch)

    def get(self, key):
        return self._records.current.get(key)

    def items(self, start):
        current = dict(self._records.current)
        return iter(sorted(item for item in current.items() if item[0] >= start))

    def items_down(self, start):
        current = dict(self._records.current)
        return iter(sorted((i for i in current.items() if i[0] <= start), reverse=True))

    def sync(self):
        self._files.call("records.sync", self._records.sync)
        self._records.sync()

    def close(self):
        pass
