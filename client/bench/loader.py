"""Random samples through PyTorch's DataLoader: of fs3, and of the same file in a local directory.

Both are read by the same data set and loader, turn by turn in the same rounds, with warm page
caches. Samples begin at a random one of a million records and are as many of them as make the size
that is asked for. What workers fetched before a round began is not counted.

A record begins and ends with its number, which is compared in every sample, by whoever reads it. A
batch that cannot be read because servers are away is counted as missed, and the loader goes on.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.client.records.format import Header
from fs3.client.records.storage import Storage
from fs3.client.records.writer import RecordWriter
from fs3.client.training import RecordDataset, ResumableLoader, stack
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger

from .limits import BareTcp, bare_tcp

_PACK_BYTES = 8 << 20
_READ_BYTES = 32 << 20
_NUMBER = np.dtype("<i8")
_WIDTH = _NUMBER.itemsize
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured. Sizes are bytes."""

    sample_bytes: Sequence[int] = (4 << 10, 16 << 10, 64 << 10, 256 << 10)
    workers: Sequence[int] = (0, 4)
    records: int = 1_000_000
    record_bytes: int = 1024
    batch: int = 64
    rounds: int = 5
    seconds: float = 1.0  # of each loader in each round

    def check(self) -> None:
        """Fs3Error INVALID if a sample is not made of whole records, or of too many."""
        if self.record_bytes < 2 * _NUMBER.itemsize:
            least = 2 * _NUMBER.itemsize
            raise Fs3Error(Code.INVALID, f"records of {self.record_bytes} bytes; {least} at least")
        for size in self.sample_bytes:
            if size % self.record_bytes or not 0 < size <= self.records * self.record_bytes:
                raise Fs3Error(
                    Code.INVALID,
                    f"samples of {size} bytes of {self.records} records of {self.record_bytes}:"
                    " multiples of a record that fit are allowed",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the result; medians of the rounds."""

    who: str  # fs3, local; memcpy, tcp
    sample_bytes: int
    workers: int
    samples_per_s: float
    gb_per_s: float
    of_local: float  # median over rounds of the ratio to the local directory; 0 if there is none
    missed: int = 0  # samples that could not be read, in all rounds


def make_records(plan: Plan, places: Sequence[tuple[Storage, str]]) -> None:
    """The same record file in every place, read once so that caches are warm."""
    rng = np.random.default_rng(1)
    with ExitStack() as stack_of:
        writers = [
            stack_of.enter_context(
                RecordWriter(storage.create(path), Header(record_bytes=plan.record_bytes))
            )
            for storage, path in places
        ]
        for first in range(0, plan.records, _PACK_BYTES // plan.record_bytes):
            count = min(_PACK_BYTES // plan.record_bytes, plan.records - first)
            packed = np.frombuffer(rng.bytes(count * plan.record_bytes), np.uint8).copy()
            for mark in _marks(packed, plan.record_bytes):
                mark[:, 0] = np.arange(first, first + count)
            data = packed.data
            for start in range(0, len(data), plan.record_bytes):
                for writer in writers:
                    writer.append(data[start : start + plan.record_bytes])
    memory = memoryview(bytearray(_READ_BYTES))
    for storage, path in places:
        size = storage.size(path)
        for start in range(0, size, _READ_BYTES):
            storage.read([(path, start, memory[: min(_READ_BYTES, size - start)])])


def _marks(memory: NDArray[np.uint8], record_bytes: int) -> list[NDArray[Any]]:
    """The numbers at both ends of each record, (records, 1)."""
    records = memory.reshape(-1, record_bytes)
    return [end.view(_NUMBER) for end in (records[:, :_WIDTH], records[:, -_WIDTH:])]


class _Missed(list[Any]):
    """A batch that could not be read: so many nothings."""


class _Watched:
    """A data set whose samples are compared, and whose batches may be missing."""

    def __init__(self, dataset: RecordDataset, plan: Plan, window: int) -> None:
        dataset.records.verifies = False  # neither does what the other does not
        self._dataset = dataset
        self._record_bytes = plan.record_bytes
        self._window = np.arange(window)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, numbers: Sequence[int]) -> Any:  # noqa: ANN401 - a RecordBatch
        try:
            batch = self._dataset.__getitems__(numbers)
        except OSError as error:  # Fs3Error is one
            _log.warning("bench_batch_missed", reason=str(error))
            return _Missed([None] * len(numbers))
        wanted = (np.asarray(numbers)[:, np.newaxis] + self._window).reshape(-1, 1)
        for mark in _marks(batch.memory.numpy(), self._record_bytes):
            if (mark != wanted).any():
                raise Fs3Error(Code.BUG, "a batch has other records than were asked for")
        return batch


class _Collate:
    """One tensor, or how many samples are missing."""

    def __init__(self) -> None:
        self._stack = stack()

    def __call__(self, batch: Any) -> Any:  # noqa: ANN401
        return len(batch) if isinstance(batch, _Missed) else self._stack(batch)


def run(
    plan: Plan,
    fs3_place: str,
    local_place: str,
    address: str,
    cluster_id: str,
    progress: Callable[[Line], None],
) -> list[Line]:
    """Measure; the record file is in both places already."""
    lines: list[Line] = []

    def found(some: list[Line]) -> None:
        for line in some:
            progress(line)
        lines.extend(some)

    with bare_tcp(max(plan.sample_bytes) * plan.batch) as tcp:
        for size in plan.sample_bytes:
            found(_limits(plan, size, tcp))
            for workers in plan.workers:
                found(_pair(plan, size, workers, fs3_place, local_place, address, cluster_id))
    return lines


def _pair(
    plan: Plan,
    size: int,
    workers: int,
    fs3_place: str,
    local_place: str,
    address: str,
    cluster_id: str,
) -> list[Line]:
    """Both loaders, turn by turn."""
    rates: dict[str, list[float]] = {"local": [], "fs3": []}
    streams = {
        "local": _Stream(plan, RecordDataset(local_place, window=_window(plan, size)), workers),
        "fs3": _Stream(
            plan,
            RecordDataset(
                fs3_place, address=address, cluster_id=cluster_id, window=_window(plan, size)
            ),
            workers,
        ),
    }
    for _ in range(plan.rounds):
        for who, stream in streams.items():
            rates[who].append(stream.samples_per_s())
    for stream in streams.values():
        stream.close()
    pairs = zip(rates["fs3"], rates["local"], strict=True)
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    lines = [
        _line(who, size, workers, statistics.median(found), ratio if who == "fs3" else 1.0)
        for who, found in rates.items()
    ]
    return [replace(line, missed=streams[line.who].missed) for line in lines]


def _window(plan: Plan, size: int) -> int:
    return size // plan.record_bytes


class _Stream:
    """A loader that goes on from round to round."""

    def __init__(self, plan: Plan, dataset: RecordDataset, workers: int) -> None:
        self.missed = 0
        self._plan = plan
        watched = _Watched(dataset, plan, dataset.records.window)
        self._loader = ResumableLoader(
            watched, plan.batch, num_workers=workers, collate_fn=_Collate(), drop_last=True
        )
        self._ahead = 2 * workers + 1  # fetched while nobody looked
        self._batches = self._forever()

    def _forever(self) -> Iterator[Any]:
        while True:
            yield from self._loader

    def samples_per_s(self) -> float:
        """Of one round."""
        for _ in range(self._ahead):
            next(self._batches)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < self._plan.seconds:
            batch = next(self._batches)
            if isinstance(batch, int):
                self.missed += batch
            else:
                count += len(batch)
        return count / (time.perf_counter() - began)

    def close(self) -> None:
        """End the workers."""
        self._batches = iter(())
        del self._loader


def _limits(plan: Plan, size: int, tcp: BareTcp) -> list[Line]:
    """A batch copied within memory, and fetched over a bare connection."""
    source = np.ones((plan.batch, size), np.uint8)
    target = np.ones((plan.batch, size), np.uint8)
    rows = [row.data for row in target]

    def copy() -> None:
        np.copyto(target, source)

    lines = []
    for who, call in (("memcpy", copy), ("tcp", lambda: tcp.fetch(rows))):
        rates = [plan.batch / _seconds_of(call) for _ in range(plan.rounds)]
        lines.append(_line(who, size, 0, statistics.median(rates), 0.0))
    return lines


def _seconds_of(call: Callable[[], None], seconds: float = 0.1) -> float:
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        call()
        count += 1
    return (time.perf_counter() - began) / count


def _line(who: str, size: int, workers: int, samples_per_s: float, of_local: float) -> Line:
    return Line(
        who=who,
        sample_bytes=size,
        workers=workers,
        samples_per_s=samples_per_s,
        gb_per_s=samples_per_s * size / 1e9,
        of_local=of_local,
    )


def as_json(lines: Sequence[Line], plan: Plan) -> dict[str, Any]:
    """What ``--json`` writes."""
    return {
        "bench": "loader",
        "cpus": os.cpu_count(),
        "plan": asdict(plan),
        "lines": [asdict(line) for line in lines],
    }


def as_svg(lines: Sequence[Line], title: str) -> str:
    """Bars of GB/s, a group per size; needs no library."""
    height, left, width = 18, 250, 420
    top = max(line.gb_per_s for line in lines if line.who in ("fs3", "local"))
    rows: list[str] = []
    for line in lines:
        y = 30 + height * len(rows)
        workers = f", {line.workers} workers" if line.who in ("fs3", "local") else ""
        color = "#2a6f97" if line.who == "fs3" else "#b0b8bf"
        length = max(1.0, width * min(line.gb_per_s / top, 1.0))
        name = f"{line.sample_bytes >> 10} KiB  {line.who}{workers}"
        rows.append(
            f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{name}</text>'
            f'<rect x="{left}" y="{y}" width="{length:.0f}" height="{height - 4}" fill="{color}"/>'
            f'<text x="{left + length + 6:.0f}" y="{y + 12}">{line.gb_per_s:.2f} GB/s</text>'
        )
    size = f'width="{left + width + 120}" height="{40 + height * len(rows)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif"'
    return f'{head} font-size="11"><text x="8" y="18">{title}</text>{"".join(rows)}</svg>\n'
