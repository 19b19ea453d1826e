"""What ``fs3 bench io`` measures: cells, and those who contend in them.

A cell is an operation (read or write), a size, and how many I/Os are under way at once (depth). In
each, every contender gets the same offsets, drawn at random, and the same memory, touched before.
Fronts are ways into fs3; limits are what this machine does without it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3.client.api import Client
from fs3.client.file import File
from fs3.client.ring import Iov, Ring, deregister_fd, register_fd

from .limits import BareTcp

READ_FILE, WRITE_FILE = "read", "written"
_TURNS = 64  # different draws of offsets; then they come again


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One square of the table."""

    operation: Literal["read", "write"]
    size: int  # bytes of an I/O
    depth: int  # I/Os under way at once

    @property
    def reads(self) -> bool:
        """Else it writes."""
        return self.operation == "read"

    @property
    def file(self) -> str:
        """The name of the file that it is about."""
        return READ_FILE if self.reads else WRITE_FILE


class Room:
    """Memory and offsets of a cell."""

    def __init__(self, cell: Cell, memory: mmap.mmap, file_bytes: int) -> None:
        rng = np.random.default_rng(cell.size + cell.depth)
        self.cell = cell
        self.memory = memoryview(memory)[: cell.size * cell.depth]
        self.buffers = [
            self.memory[at : at + cell.size] for at in range(0, len(self.memory), cell.size)
        ]
        slots = max(file_bytes // cell.size, 1)
        self.offsets: NDArray[np.int64] = (
            rng.integers(0, slots, (_TURNS, cell.depth), np.int64) * cell.size
        )

    def draw(self, turn: int) -> list[int]:
        """The offsets of one turn."""
        drawn: list[int] = self.offsets[turn % _TURNS].tolist()
        return drawn


class Entrant(NamedTuple):
    """A contender in a cell: ``step(turn)`` does some of it and returns how many I/Os ended."""

    step: Callable[[int], int]
    settle: Callable[[], int] = lambda: 0  # the end of a round, in its time: the same of the rest


class Contender(NamedTuple):
    """``limits`` names what a front's reads and writes are compared with; a limit has none."""

    name: str
    enter: Callable[[Room], AbstractContextManager[Entrant]]
    limits: tuple[str, str] = ("", "")
    transport: str = ""
    depth_max: int = 1 << 16

    @property
    def label(self) -> str:
        """As tables show it."""
        return f"{self.name} {self.transport}".strip()

    def limit_in(self, cell: Cell) -> str:
        """What it is compared with there."""
        return self.limits[0 if cell.reads else 1]


# -- limits ----------------------------------------------------------------------------------------


def memcpy(memory: mmap.mmap) -> Contender:
    """Copying memory of the same size."""

    @contextmanager
    def enter(room: Room) -> Iterator[Entrant]:
        size = len(room.memory)
        target = memoryview(memory)[:size]

        def step(_: int) -> int:
            target[:] = room.memory
            return room.cell.depth

        yield Entrant(step)

    return Contender("memcpy", enter)


def bare_tcp(peer: BareTcp) -> Contender:
    """A bare loopback connection, asked for all of a turn at once."""

    @contextmanager
    def enter(room: Room) -> Iterator[Entrant]:
        move = peer.fetch if room.cell.reads else peer.push

        def step(_: int) -> int:
            move(room.buffers)
            return room.cell.depth

        yield Entrant(step)

    return Contender("bare tcp", enter)


def bare_file(
    name: str, path_of: Callable[[Cell], str], flags: int = 0, limit: str = ""
) -> Contender:
    """preadv and pwritev, by as many threads as the depth; also on a mount, with O_DIRECT."""

    @contextmanager
    def enter(room: Room) -> Iterator[Entrant]:
        call = os.preadv if room.cell.reads else os.pwritev
        fd = os.open(path_of(room.cell), flags | (os.O_RDONLY if room.cell.reads else os.O_RDWR))

        def each(buffer: memoryview, offset: int) -> None:
            done = call(fd, [buffer], offset)
            while done < len(buffer):  # a mount's kernel cuts at 1 MiB and may return early
                done += call(fd, [buffer[done:]], offset + done)

        def alone(turn: int) -> int:
            for buffer, offset in zip(room.buffers, room.draw(turn), strict=True):
                each(buffer, offset)
            return room.cell.depth

        def settle() -> int:
            os.close(os.dup(fd))  # which flushes
            return 0

        try:
            if room.cell.depth == 1 or (not limit and not flags):
                yield Entrant(alone, settle)
                return
            with ThreadPoolExecutor(room.cell.depth) as threads:

                def together(turn: int) -> int:
                    list(threads.map(each, room.buffers, room.draw(turn)))
                    return room.cell.depth

                yield Entrant(together, settle)
        finally:
            os.close(fd)

    return Contender(name, enter, (limit, limit))


# -- fronts ----------------------------------------------------------------------------------------


def one_at_a_time(
    client: Client, folder: str, transport: str, limits: tuple[str, str]
) -> Contender:
    """``readinto_at`` and ``pwrite`` of an open file."""

    @contextmanager
    def enter(room: Room) -> Iterator[Entrant]:
        with client.open_file(f"{folder}/{room.cell.file}", "r+b") as file:
            call = file.readinto_at if room.cell.reads else file.pwrite

            def step(turn: int) -> int:
                call(room.buffers[0], room.draw(turn)[0])
                return 1

            yield Entrant(step, _flushing(file))

    return Contender("native", enter, limits, transport, depth_max=1)


def batch(client: Client, folder: str, transport: str, limits: tuple[str, str]) -> Contender:
    """``read_batch`` and ``write_batch`` of as many as the depth."""

    @contextmanager
    def enter(room: Room) -> Iterator[Entrant]:
        with client.open_file(f"{folder}/{room.cell.file}", "r+b") as file:
            call = client.read_batch if room.cell.reads else client.write_batch

            def step(turn: int) -> int:
                call([(file, at, b) for at, b in zip(room.draw(turn), room.buffers, strict=True)])
                return room.cell.depth

            yield Entrant(step, _flushing(file))

    return Contender("batch", enter, limits, transport)


def ring(client: Client, folder: str, transport: str, limits: tuple[str, str]) -> Contender:
    """A ring that is kept full: half of it is waited for, and started anew."""

    @contextmanager
    def enter(room: Room) -> Iterator[Entrant]:
        cell = room.cell
        with (
            client.open_file(f"{folder}/{cell.file}", "r+b") as file,
            Ring(cell.depth, cell.operation) as made,
        ):
            handle = register_fd(file)
            iov = Iov(room.memory)
            half = max(cell.depth // 2, 1)
            free = np.arange(cell.depth, dtype=np.uint64)

            def start(turn: int, slots: NDArray[np.uint64]) -> None:
                offsets = room.offsets[turn % _TURNS][: len(slots)]
                places = slots.astype(np.int64) * cell.size
                made.prep_many(handle, offsets, cell.size, iov, places, slots)
                made.submit()

            def step(turn: int) -> int:
                nonlocal free
                start(turn, free)
                done = made.wait(half, max_results=half)
                _check(done["result"], cell.size)
                free = done["userdata"]
                return len(done)

            def settle() -> int:
                nonlocal free
                done = made.wait()
                _check(done["result"], cell.size)
                free = np.arange(cell.depth, dtype=np.uint64)
                file.flush()
                return len(done)

            try:
                yield Entrant(step, settle)
            finally:
                deregister_fd(handle)

    return Contender("ring", enter, limits, transport)


def _flushing(file: File) -> Callable[[], int]:
    def settle() -> int:
        file.flush()
        return 0

    return settle


def _check(results: NDArray[np.int64], size: int) -> None:
    if (results != size).any():
        raise OSError(f"an I/O of {size} bytes gave {int(results.min())}")


def fronts_of(
    client: Client, folder: str, transport: str, limits: tuple[str, str]
) -> Sequence[Contender]:
    """The ways into a native client."""
    return [make(client, folder, transport, limits) for make in (one_at_a_time, batch, ring)]
