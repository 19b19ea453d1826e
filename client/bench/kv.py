"""``fs3 bench kv``: put, get, exists and match of values, beside Redis and the machine's limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.client.kvcache import KVCache
from fs3.errors import Code, Fs3Error
from fs3.log import get_logger

from .limits import bare_tcp
from .measure import Line, measure
from .redis_server import redis_server

MLA_LAYER = 64 * 576 * 2  # a page of 64 tokens, one layer, bf16
SIZES = {"mla": MLA_LAYER * 61, "layer": MLA_LAYER}
_BYTES_A_ROUND = 128 << 20
_CALLS_MAX = 400
_BATCH_BYTES_MAX = 160 << 20
_SPOIL_BYTES = 4096  # one byte of so many is wrong before a get
_LOOKUPS = 100  # calls of exists and match in a round
Progress = Callable[[Line], None]
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured."""

    sizes: Sequence[int]
    batches: Sequence[int]
    rounds: int = 5
    transports: Sequence[str] = ("tcp", "local")
    beside_redis: bool = False
    deadline_s: float = 30.0
    seed: int = field(default=1)


class _Cell:
    """Memory and keys of one size and batch, made and touched before anything is timed."""

    def __init__(self, value_bytes: int, batch: int, rng: np.random.Generator) -> None:
        self.value_bytes, self.batch = value_bytes, batch
        self.values: list[NDArray[np.uint8]] = [
            rng.integers(0, 256, value_bytes, np.uint8) for _ in range(batch)
        ]
        self.rooms = [np.ones(value_bytes, np.uint8) for _ in range(batch)]
        self.calls = max(1, min(_CALLS_MAX, _BYTES_A_ROUND // (value_bytes * batch)))
        self._generation = 0

    def start_over(self) -> None:
        """From now on all keys are new ones."""
        self._generation += 1

    def keys(self, number: int) -> list[bytes]:
        """The keys of one call."""
        what = b"%d/%d/%d/%d" % (self._generation, self.value_bytes, self.batch, number)
        return [b"%s/%d" % (what, i) for i in range(self.batch)]

    def spoil(self) -> None:
        """Nothing in the rooms is as it should be, page by page."""
        for room, value in zip(self.rooms, self.values, strict=True):
            np.invert(value[::_SPOIL_BYTES], out=room[::_SPOIL_BYTES])

    def check(self, sizes: NDArray[np.int64]) -> None:
        """Every byte of what was found is right; Fs3Error BUG if not."""
        for i in np.flatnonzero(sizes >= 0).tolist():
            if sizes[i] != self.value_bytes or not np.array_equal(self.rooms[i], self.values[i]):
                raise Fs3Error(Code.BUG, f"a get brought other bytes than were put, of value {i}")


def run(cache: KVCache, plan: Plan, progress: Progress) -> list[Line]:
    """Every line, told to ``progress`` as it comes. The namespace is emptied again and again."""
    lines: list[Line] = []

    def add(line: Line) -> None:
        lines.append(line)
        progress(line)

    rng = np.random.default_rng(plan.seed)
    largest = max(size * batch for size, batch in _cells(plan))
    with ExitStack() as stack:
        tcp = stack.enter_context(bare_tcp(largest))
        redis = stack.enter_context(redis_server()) if plan.beside_redis else None
        for size, batch in _cells(plan):
            cell = _Cell(size, batch, rng)
            for line in _limits(cell, tcp, plan.rounds):
                add(line)
            for transport in plan.transports:
                cache.use_transports([transport])
                for line in _fs3(cell, cache, plan.rounds, f"fs3 {transport}"):
                    add(line)
            if redis is not None:
                for line in _redis(cell, redis, plan.rounds):
                    add(line)
    return lines


def _cells(plan: Plan) -> list[tuple[int, int]]:
    """Sizes and batches; a batch that would be too many bytes is left out."""
    found = [(s, b) for s in plan.sizes for b in plan.batches if s * b <= _BATCH_BYTES_MAX]
    if not found:
        detail = f"no batch of these sizes is at most {_BATCH_BYTES_MAX} bytes"
        raise Fs3Error(Code.INVALID, detail)
    return found


def _limits(cell: _Cell, tcp: Any, rounds: int) -> Iterator[Line]:  # noqa: ANN401
    rooms, values = [r.data for r in cell.rooms], [v.data for v in cell.values]

    def copy(_: int) -> int:
        for room, value in zip(cell.rooms, cell.values, strict=True):
            np.copyto(room, value)
        return 0

    # As many bytes as a round of gets: no cache holds them all, as none holds what gets copy.
    cold = np.ones((cell.calls, cell.batch, cell.value_bytes), np.uint8)

    def copy_cold(number: int) -> int:
        for room, value in zip(cell.rooms, cold[number % cell.calls], strict=True):
            np.copyto(room, value)
        return 0

    def fetch(_: int) -> int:
        tcp.fetch(rooms)
        return 0

    def push(_: int) -> int:
        tcp.push(values)
        return 0

    for who, operation, call in (
        ("memcpy", "get", copy),
        ("memcpy cold", "get", copy_cold),
        ("tcp", "get", fetch),
        ("tcp", "put", push),
    ):
        yield _line(cell, who, operation, call, rounds)


def _fs3(cell: _Cell, cache: KVCache, rounds: int, who: str) -> Iterator[Line]:
    """A storageserver may die meanwhile: what it had is missed, and that is counted."""
    fresh = count()
    found = np.zeros(0, np.int64)
    clears = True

    def start_over() -> None:
        nonlocal clears
        cell.start_over()
        try:
            if clears:
                cache.clear()
        except Fs3Error as error:  # somebody is away; old values are in nobody's way
            _log.warning("bench_not_cleared", reason=str(error))
            clears = False

    def put(_: int) -> int:
        return _missed(cache.put_from(cell.keys(next(fresh)), cell.values))

    def get(number: int) -> int:
        nonlocal found
        found = cache.get_into(cell.keys(number % cell.calls), cell.rooms)
        return _missed(found >= 0)

    def match(number: int) -> int:
        return cell.batch - cache.match(cell.keys(number % cell.calls))

    def exists(number: int) -> int:
        return _missed(cache.exists(cell.keys(number % cell.calls)))

    start_over()
    for _ in range(cell.calls):  # connections, pools; memory that was never touched is slow
        put(0)
    yield _line(cell, who, "put", put, rounds, prepare=start_over)
    start_over()
    for number in range(cell.calls):
        cache.put_from(cell.keys(number), cell.values)
    get(0)
    check = partial(_check, cell, lambda: found)
    yield _line(cell, who, "get", get, rounds, spoil=cell.spoil, check=check)
    for operation, call in (("exists", exists), ("match", match)):
        yield _line(cell, who, operation, call, rounds, payload=False)
    start_over()


def _check(cell: _Cell, found: Callable[[], NDArray[np.int64]], _: int) -> None:
    cell.check(found())


def _missed(there: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(~there))


def _redis(cell: _Cell, redis: Any, rounds: int) -> Iterator[Line]:  # noqa: ANN401
    fresh = count()
    values = [value.tobytes() for value in cell.values]
    found: list[bytes] = []

    def put(_: int) -> int:
        redis.mset(dict(zip(cell.keys(next(fresh)), values, strict=True)))
        return 0

    def get(number: int) -> int:
        nonlocal found
        found = redis.mget(cell.keys(number % cell.calls))
        return 0

    def check(_: int) -> None:
        nonlocal found
        if found != values:
            raise Fs3Error(Code.BUG, "Redis brought other bytes than were put")
        found = []

    def exists(number: int) -> int:
        pipeline = redis.pipeline(transaction=False)
        for key in cell.keys(number % cell.calls):
            pipeline.exists(key)
        return cell.batch - int(sum(pipeline.execute()))

    for _ in range(cell.calls):
        put(0)
    yield _line(cell, "redis", "put", put, rounds, prepare=redis.flushall)
    redis.flushall()
    for number in range(cell.calls):
        redis.mset(dict(zip(cell.keys(number), values, strict=True)))
    yield _line(cell, "redis", "get", get, rounds, check=check)
    yield _line(cell, "redis", "exists", exists, rounds, payload=False)
    redis.flushall()


def _line(
    cell: _Cell,
    who: str,
    operation: str,
    call: Callable[[int], int],
    rounds: int,
    *,
    payload: bool = True,
    prepare: Callable[[], object] | None = None,
    spoil: Callable[[], object] | None = None,
    check: Callable[[int], object] | None = None,
) -> Line:
    return measure(
        who,
        operation,
        cell.value_bytes,
        cell.batch,
        call,
        rounds=rounds,
        calls=cell.calls if payload else _LOOKUPS,
        payload=payload,
        prepare=prepare,
        spoil=spoil,
        check=check,
    )
