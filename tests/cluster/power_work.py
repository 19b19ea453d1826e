"""Work on a cluster that may lose power at any time, and the ledger of what must be there then.

Files consist of whole chunks that say which version they are of. Of each chunk is known the newest
version that was sent, and the newest that an fsync which returned has covered: what is read later
is one between them, and whole.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Protocol

from powered_cluster import CHUNK_BYTES, content

from fs3.client.api import Client

_CHUNKS_MAX = 4
_FILES_MAX = 12


class OpenFile(Protocol):
    """An open file, natively or on a mount."""

    def pwrite(self, data: bytes, offset: int) -> int: ...
    def flush(self) -> None: ...
    def fsync(self) -> None: ...
    def close(self) -> None: ...


class Descriptor:
    """An open file on a mount."""

    def __init__(self, path: Path, flags: int) -> None:
        self._fd = os.open(path, flags | os.O_RDWR, 0o644)

    def pwrite(self, data: bytes, offset: int) -> int:
        return os.pwrite(self._fd, data, offset)

    def fsync(self) -> None:
        os.fsync(self._fd)

    def flush(self) -> None:
        """What was written has left this machine."""
        os.close(os.dup(self._fd))

    def close(self) -> None:
        os.close(self._fd)


class Ledger:
    """What one worker's files may hold."""

    def __init__(self) -> None:
        self.sent: dict[str, list[int]] = {}  # newest version of each chunk that left
        self.safe: dict[str, list[int]] = {}  # newest that an fsync covered; 0: none
        self.unsure: set[str] = set()  # making or removing it failed
        self.gone: set[str] = set()

    def problems(self, read: Callable[[str], bytes], present: set[str]) -> list[str]:
        """What is not as it must be."""
        found = [f"{name} is back" for name in sorted(self.gone & present)]
        for name, sent in self.sent.items():
            if name not in present:
                if name not in self.unsure:
                    found.append(f"{name} is missing")
                continue
            data = read(name)
            if len(data) < len(sent) * CHUNK_BYTES and all(self.safe[name]):
                found.append(f"{name} has {len(data)} bytes, not {len(sent) * CHUNK_BYTES}")
            for chunk, (low, high) in enumerate(zip(self.safe[name], sent, strict=True)):
                piece = data[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
                problem = _problem(name, chunk, piece, low, high)
                if problem:
                    found.append(problem)
        return found


def _problem(name: str, chunk: int, piece: bytes, low: int, high: int) -> str:
    if not piece.strip(b"\0"):
        return f"chunk {chunk} of {name} is empty, not of version {low}" if low else ""
    said = piece.split(b"\n", 1)[0].split()
    if len(said) != 3 or not said[2].isdigit() or len(said[2]) > 9:
        return f"chunk {chunk} of {name} holds {piece[:40]!r}"
    version = int(said[2])
    if not low <= version <= high:
        return f"chunk {chunk} of {name} is of version {version}, not {low} to {high}"
    if piece != content(name, chunk, version):
        return f"chunk {chunk} of {name} is a mix: it begins as version {version}"
    return ""


class Worker(ABC):
    """Makes, overwrites, syncs and removes files of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ledger = Ledger()
        self.done = 0  # operations that went well
        self.failures: list[str] = []
        self._random = Random(name)
        self._made = 0

    @abstractmethod
    def open(self, name: str, *, new: bool) -> OpenFile:
        """A file for writing."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Unlink it."""

    def run(self, stop: threading.Event) -> None:
        """Until ``stop``."""
        while not stop.is_set():
            try:
                self._one()
                self.done += 1
            except OSError as error:
                self.failures.append(str(error))
                stop.wait(0.05)

    def _one(self) -> None:
        ledger, random = self.ledger, self._random
        usable = [name for name in ledger.sent if name not in ledger.unsure]
        if not usable or (len(usable) < _FILES_MAX and random.random() < 0.3):
            self.make()
        elif len(usable) >= _FILES_MAX and random.random() < 0.1:
            self._remove(random.choice(usable))
        else:
            self._overwrite(random.choice(usable))

    def make(self) -> None:
        """One more file, fsynced."""
        ledger = self.ledger
        self._made += 1
        name = f"{self.name}-{self._made}"
        chunks = self._random.randint(1, _CHUNKS_MAX)
        ledger.unsure.add(name)
        ledger.sent[name], ledger.safe[name] = [1] * chunks, [0] * chunks
        with self._opened(name, new=True) as file:
            for chunk in range(chunks):
                file.pwrite(content(name, chunk, 1), chunk * CHUNK_BYTES)
            file.fsync()
            ledger.safe[name] = [1] * chunks
            ledger.unsure.discard(name)

    def _remove(self, name: str) -> None:
        ledger = self.ledger
        ledger.unsure.add(name)
        self.remove(name)
        del ledger.sent[name], ledger.safe[name]
        ledger.unsure.discard(name)
        ledger.gone.add(name)

    def _overwrite(self, name: str) -> None:
        sent, random = self.ledger.sent[name], self._random
        with self._opened(name, new=False) as file:
            for _ in range(random.randint(1, 3)):
                chunk = random.randrange(len(sent))
                sent[chunk] += 1
                file.pwrite(content(name, chunk, sent[chunk]), chunk * CHUNK_BYTES)
            if random.random() < 0.5:
                before = list(sent)
                file.fsync()
                self.ledger.safe[name] = before

    @contextmanager
    def _opened(self, name: str, *, new: bool):
        file = self.open(name, new=new)
        try:
            yield file
        finally:
            file.close()


class NativeWorker(Worker):
    """Through the native client."""

    def __init__(self, name: str, client: Client, folder: str) -> None:
        super().__init__(name)
        self._client = client
        self._folder = folder

    def open(self, name: str, *, new: bool) -> OpenFile:
        return self._client.open_file(f"{self._folder}/{name}", "x+b" if new else "r+b")

    def remove(self, name: str) -> None:
        self._client.unlink(f"{self._folder}/{name}")


class MountWorker(Worker):
    """Through a mount."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self._folder = folder

    def open(self, name: str, *, new: bool) -> OpenFile:
        return Descriptor(self._folder / name, os.O_CREAT | os.O_EXCL if new else 0)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink()
