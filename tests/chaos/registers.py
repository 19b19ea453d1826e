"""Registers: the beginning of each chunk of one file, written and read by many, with a history.

Every operation is recorded with the times of its call and its return on the machine's one
monotonic clock; one that failed or got no answer may have happened, or may yet. The histories are
checked with the simulator's checker (tests/sim/linearizability.py).

Through a mount an operation is what its contract makes atomic: open, read, close, and open, write,
fsync, close; with O_DIRECT, since pages in the kernel are only as new as the last open. A mount
shows its own writes before they are flushed, so it has one worker.
"""

from __future__ import annotations

import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sim.linearizability import NEVER, Operation, Update, linearizable

from fs3.client.api import Client
from fs3.core.chunks import UpdateKind

from .networked_cluster import PATIENCE_S, NetworkedCluster

REGISTER_BYTES = 64
_PART_BYTES = 16
_INIT = Update(UpdateKind.WRITE, 0, bytes(REGISTER_BYTES))


class Registers:
    """What is known of one file's registers. Any thread may record."""

    def __init__(self, name: str, count: int, chunk_bytes: int) -> None:
        self.name = name
        self.count = count
        self.chunk_bytes = chunk_bytes
        self._lock = threading.Lock()
        init = [Operation(0, -2, _INIT, -1) for _ in range(count)]
        self._histories = [[operation] for operation in init]
        self._failures = 0

    def make(self, client: Client) -> None:
        """The file, all zeros."""
        with client.open_file(f"/{self.name}", "wb") as file:
            file.truncate(self.count * self.chunk_bytes)

    def record(self, register: int, operation: Operation) -> None:
        """It has ended, or nobody waits for its end any more."""
        with self._lock:
            self._histories[register].append(operation)
            self._failures += operation.returned_at == NEVER

    @property
    def counts(self) -> tuple[int, int]:
        """Operations that returned well, and others."""
        with self._lock:
            total = sum(len(history) - 1 for history in self._histories)
            return total - self._failures, self._failures

    def check(self) -> None:
        """AssertionError if a history is not linearizable."""
        for register, history in enumerate(self._histories):
            verdict = linearizable(history)
            assert verdict is not None, f"register {register}: the search was given up"
            assert verdict, f"{self.name}, register {register}:\n" + "\n".join(
                str(operation) for operation in sorted(history, key=lambda o: o.called_at)
            )


class Worker(ABC):
    """One client of registers: an operation after the other until it is told to stop."""

    writes = 0.4  # of all operations

    def __init__(self, number: int, registers: Registers) -> None:
        self._number = number
        self._registers = registers
        self._random = random.Random(number)
        self._written = 0

    @abstractmethod
    def open(self) -> object:
        """A context for the thread that works."""

    @abstractmethod
    def read(self, offset: int) -> bytes:
        """A register's content."""

    @abstractmethod
    def write(self, offset: int, data: bytes) -> None:
        """Returns when every later reader anywhere sees it."""

    def run(self, stop: threading.Event) -> None:
        """Until ``stop``."""
        with self.open():
            while not stop.wait(self._random.expovariate(100)):
                self._step()

    def _step(self) -> None:
        register = self._random.randrange(self._registers.count)
        update = self._draw() if self._random.random() < self.writes else None
        operation = Operation(self._number, time.monotonic_ns(), update)
        base = register * self._registers.chunk_bytes
        try:
            if update is None:
                operation.value = self.read(base)
            else:
                self.write(base + update.offset, update.data)
            operation.returned_at = time.monotonic_ns()
        except OSError:  # Fs3Error is one; what came of an update is not known
            pass
        self._registers.record(register, operation)

    def _draw(self) -> Update:
        self._written += 1
        text = b"%d.%d " % (self._number, self._written)
        if self._random.random() < 0.5:
            return Update(UpdateKind.WRITE, 0, text.ljust(REGISTER_BYTES, b"."))
        offset = self._random.randrange(0, REGISTER_BYTES, _PART_BYTES)
        return Update(UpdateKind.WRITE, offset, text.ljust(_PART_BYTES, b","))


class NativeWorker(Worker):
    """Through the native client."""

    def __init__(
        self, number: int, registers: Registers, cluster: NetworkedCluster, place: str
    ) -> None:
        super().__init__(number, registers)
        self._cluster = cluster
        self._place = place

    @contextmanager
    def open(self) -> Iterator[None]:
        """A client of its own, and the file open in it."""
        with self._cluster.client(self._place, PATIENCE_S) as client:
            self._client = client
            with client.open_file(f"/{self._registers.name}", "r+b") as self._file:
                yield

    def read(self, offset: int) -> bytes:
        """One request to one replica."""
        (view,) = self._client.read_batch([(self._file, offset, REGISTER_BYTES)])
        return bytes(view)

    def write(self, offset: int, data: bytes) -> None:
        """One request to the head."""
        self._client.write_batch([(self._file, offset, data)])


class LocalReader(NativeWorker):
    """On a storageserver's machine, and it only reads: what it remembers, or asks for anew."""

    writes = 0.0


class MountWorker(Worker):
    """Through a mount that nobody else works on."""

    def __init__(self, number: int, registers: Registers, mountpoint: Path) -> None:
        super().__init__(number, registers)
        self._path = mountpoint / registers.name

    @contextmanager
    def open(self) -> Iterator[None]:
        """Nothing stays open between operations."""
        yield

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        file = os.open(self._path, flags | os.O_DIRECT)
        try:
            yield file
        finally:
            os.close(file)

    def read(self, offset: int) -> bytes:
        """Open, read, close."""
        with self._opened(os.O_RDONLY) as file:
            return os.pread(file, REGISTER_BYTES, offset)

    def write(self, offset: int, data: bytes) -> None:
        """Open, write, fsync, close."""
        with self._opened(os.O_WRONLY) as file:
            os.pwrite(file, data, offset)
            os.fsync(file)
