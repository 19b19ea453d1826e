"""``fs3 bench io``: ways into fs3, each beside the limit that was measured in the same run.

In a cell everybody takes turns, round by round, so that what else the machine does meets all alike.
Lines are medians over rounds.
"""

from __future__ import annotations

import mmap
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fs3.client import mounts
from fs3.client.api import Client
from fs3.client.links import TRANSPORTS
from fs3.errors import Code, Fs3Error

from . import io_cells, limits
from .bare_rdma import bare_rdma
from .empty_mount import empty_mount
from .io_cells import READ_FILE, WRITE_FILE, Cell, Contender, Entrant, Room

OPERATIONS = ("read", "write")
FRONTS = ("native", "batch", "ring", "fuse")
# What reads and writes are compared with. What is written goes down the chain by TCP even locally.
_LIMITS = {
    "tcp": ("bare tcp", "bare tcp"),
    "local": ("bare file", "bare tcp"),
    "rdma": ("bare rdma", "bare rdma"),
}
_GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured."""

    sizes: Sequence[int] = (4 << 10, 64 << 10, 1 << 20, 4 << 20)
    depths: Sequence[int] = (1, 8, 64)
    operations: Sequence[str] = OPERATIONS
    fronts: Sequence[str] = FRONTS
    transports: Sequence[str] = ("tcp", "local", "rdma")
    rounds: int = 5
    seconds: float = 0.1  # for one contender in one round
    file_bytes: int = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One contender in one cell."""

    operation: str
    size: int
    depth: int
    front: str  # or the name of a limit
    transport: str
    gb_per_s: float
    ios_per_s: float
    p50_us: float  # of a step: of one I/O at depth 1
    limit: str = ""  # what it is compared with; "" for a limit itself
    ratio: float = 0.0

    @property
    def who(self) -> str:
        """As tables show it."""
        return f"{self.front} {self.transport}".strip()


@dataclass(slots=True)
class Report:
    """What comes out."""

    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what could not be measured, and why


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where it happens: clients of a cluster, and a local directory for what is beside it."""

    connect: Callable[[], Client]
    mount_arguments: Sequence[str]  # of a mount process for the same cluster
    scratch: Path


def run(place: Place, plan: Plan, progress: Callable[[Line], None]) -> Report:
    """Every cell; lines are told to ``progress`` as they come."""
    report = Report()
    memory_bytes = max(plan.sizes) * max(plan.depths)
    with ExitStack() as stack:
        rooms, copies = (_touched(memory_bytes) for _ in range(2))
        # Forks, so before there is any other thread.
        peer = stack.enter_context(limits.bare_tcp(memory_bytes))
        contenders = [
            io_cells.memcpy(copies),
            io_cells.bare_tcp(peer),
            io_cells.bare_file("bare file", lambda cell: str(place.scratch / cell.file)),
        ]
        client = stack.enter_context(place.connect())
        folder = stack.enter_context(_files(client, place.scratch, plan))
        if "rdma" in plan.transports:
            try:
                contenders.append(stack.enter_context(bare_rdma(rooms, copies, max(plan.depths))))
            except Fs3Error as error:
                report.notes.append(f"bare rdma: {error.detail}")
        contenders += _native(place, plan, folder, report, stack)
        if "fuse" in plan.fronts:
            contenders += _mounted(place, folder, report, stack)
        for cell in _cells(plan):
            room = Room(cell, rooms, plan.file_bytes)
            report.lines += _measure(room, contenders, plan, progress)
    return report


def _touched(length_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, length_bytes)
    for at in range(0, length_bytes, 1 << 20):
        memory[at : at + (1 << 20)] = os.urandom(min(1 << 20, length_bytes - at))
    return memory


def _cells(plan: Plan) -> list[Cell]:
    return [
        Cell(operation="read" if operation == "read" else "write", size=size, depth=depth)
        for operation in plan.operations
        for depth in plan.depths
        for size in plan.sizes
    ]


@contextmanager
def _files(client: Client, scratch: Path, plan: Plan) -> Iterator[str]:
    """A directory with the file to read and the one to write, on fs3 and beside it."""
    folder = f"/bench-io-{os.getpid()}"
    client.mkdir(folder)
    try:
        for name in (READ_FILE, WRITE_FILE):
            with (
                client.open_file(f"{folder}/{name}", "wb") as there,
                (scratch / name).open("wb") as here,
            ):
                for _ in range(-(-plan.file_bytes // (1 << 20))):
                    block = os.urandom(1 << 20)
                    there.write(block)
                    here.write(block)
        yield folder
    finally:
        client.rmtree(folder)


def _native(
    place: Place, plan: Plan, folder: str, report: Report, stack: ExitStack
) -> list[Contender]:
    found: list[Contender] = []
    known = {transport.name: transport for transport in TRANSPORTS}
    for name in plan.transports:
        transport = known.get(name)
        if transport is None:
            report.notes.append(f"{name}: this fs3 has no such transport")
            continue
        client = stack.enter_context(place.connect())
        nodes = client.context.routing.get().nodes.values()
        far = [node.node for node in nodes if not transport.reaches(node)]
        if far:
            report.notes.append(f"{name}: does not lead to node {far[0]} from here")
            continue
        client.context.data.transports = (transport,)  # alone: nothing takes its place unseen
        made = io_cells.fronts_of(client, folder, name, _LIMITS[name])
        found += [contender for contender in made if contender.name in plan.fronts]
    return found


def _mounted(place: Place, folder: str, report: Report, stack: ExitStack) -> list[Contender]:
    mountpoint, empty = place.scratch / "mount", place.scratch / "empty"
    mountpoint.mkdir()
    try:
        zeros = stack.enter_context(empty_mount(empty))
        registry = place.scratch / "mounts"
        mounts.start(registry, mounts.absolute(mountpoint), place.mount_arguments)
    except Fs3Error as error:
        report.notes.append(f"fuse: {error}")
        return []
    stack.callback(mounts.force_unmount, mounts.MountFiles(registry, mounts.absolute(mountpoint)))

    def path_of(cell: Cell) -> str:
        return f"{mountpoint}{folder}/{cell.file}"

    return [
        io_cells.bare_file("empty fuse", lambda _: str(zeros), os.O_DIRECT),
        io_cells.bare_file("fuse", path_of, os.O_DIRECT, "empty fuse"),
    ]


class Tally:
    """What one contender did in a cell."""

    def __init__(self, entrant: Entrant) -> None:
        self.entrant = entrant
        self.rates: list[float] = []  # I/Os per second, by round
        self.latencies: list[float] = []  # of steps
        self._turn = 0

    def round(self, seconds: float) -> None:
        """Steps for so long."""
        step, clock, count = self.entrant.step, time.perf_counter, 0
        began = before = clock()
        while before - began < seconds:
            count += step(self._turn)
            self._turn += 1
            now = clock()
            self.latencies.append(now - before)
            before = now
        count += self.entrant.settle()
        self.rates.append(count / (clock() - began))


def _measure(
    room: Room, contenders: Sequence[Contender], plan: Plan, progress: Callable[[Line], None]
) -> list[Line]:
    cell = room.cell
    taking_part = [c for c in contenders if cell.depth <= c.depth_max]
    with ExitStack() as stack:
        tallies = [Tally(stack.enter_context(c.enter(room))) for c in taking_part]
        for tally in tallies:
            tally.round(0.0)  # connections are made, memory is touched
            tally.rates.clear()
            tally.latencies.clear()
        for _ in range(plan.rounds):
            for tally in tallies:
                tally.round(plan.seconds)
    rates = {c.label: statistics.median(t.rates) for c, t in zip(taking_part, tallies, strict=True)}
    lines = []
    for contender, tally in zip(taking_part, tallies, strict=True):
        rate, limit = rates[contender.label], contender.limit_in(cell)
        line = Line(
            operation=cell.operation,
            size=cell.size,
            depth=cell.depth,
            front=contender.name,
            transport=contender.transport,
            gb_per_s=rate * cell.size / _GB,
            ios_per_s=rate,
            p50_us=statistics.median(tally.latencies) * 1e6,
            limit=limit,
            ratio=rate / rates[limit] if limit else 0.0,
        )
        lines.append(line)
        progress(line)
    return lines


def as_json(report: Report, about: dict[str, Any]) -> dict[str, Any]:
    """What ``--json`` writes."""
    return {**about, "notes": report.notes, "lines": [asdict(line) for line in report.lines]}


def scratch_check(path: Path, plan: Plan) -> None:
    """Fs3Error NO_SPACE if the local files would not fit."""
    free = shutil.disk_usage(path).free
    if free < 4 * plan.file_bytes:
        raise Fs3Error(
            Code.NO_SPACE, f"{path}: {free} bytes are free, {4 * plan.file_bytes} are needed"
        )
