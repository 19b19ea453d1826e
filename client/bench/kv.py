"""``fs3 bench kv``: put, get, exists and match of values, beside Redis and the machine's limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.client.kvcache import KVCache
from fs3.errors import Code, Fs3Error

from .limits import bare_tcp
from .measure import Line, measure
from .redis_server import redis_server

MLA_LAYER = 64 * 576 * 2  # a page of 64 tokens, one layer, bf16
SIZES = {"mla": MLA_LAYER * 61, "layer": MLA_LAYER}
_BYTES_A_ROUND = 128 << 20
_CALLS_MAX = 400
_BATCH_BYTES_MAX = 160 << 20
_LOOKUPS = 100  # calls of exists and match in a round
Progress = Callable[[Line], None]


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

    def keys(self, number: int) -> list[bytes]:
        """The keys of one call."""
        return [
            b"%d/%d/%d/%d" % (self.value_bytes, self.batch, number, i) for i in range(self.batch)
        ]


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
    def copy(_: int) -> None:
        for room, value in zip(cell.rooms, cell.values, strict=True):
            np.copyto(room, value)

    rooms, values = [r.data for r in cell.rooms], [v.data for v in cell.values]
    for who, operation, call in (
        ("memcpy", "get", copy),
        ("tcp", "get", lambda _: tcp.fetch(rooms)),
        ("tcp", "put", lambda _: tcp.push(values)),
    ):
        yield _line(cell, who, operation, call, rounds)


def _fs3(cell: _Cell, cache: KVCache, rounds: int, who: str) -> Iterator[Line]:
    fresh = count()

    def put(_: int) -> None:
        _check(cache.put_from(cell.keys(next(fresh)), cell.values).all(), "a put")

    def get(number: int) -> None:
        sizes = cache.get_into(cell.keys(number % cell.calls), cell.rooms)
        _check((sizes == cell.value_bytes).all(), "a get")

    def match(number: int) -> None:
        _check(cache.match(cell.keys(number % cell.calls)) == cell.batch, "a match")

    def exists(number: int) -> None:
        _check(cache.exists(cell.keys(number % cell.calls)).all(), "an exists")

    cache.clear()
    put(0)  # connections, pools, data files
    yield _line(cell, who, "put", put, rounds, prepare=cache.clear)
    cache.clear()
    for number in range(cell.calls):
        _check(cache.put_from(cell.keys(number), cell.values).all(), "a put")
    get(0)
    yield _line(cell, who, "get", get, rounds)
    if not all((room == value).all() for room, value in zip(cell.rooms, cell.values, strict=True)):
        raise Fs3Error(Code.BUG, "a get brought other bytes than were put")
    for operation, call in (("exists", exists), ("match", match)):
        yield _line(cell, who, operation, call, rounds, payload=False)
    cache.clear()


def _redis(cell: _Cell, redis: Any, rounds: int) -> Iterator[Line]:  # noqa: ANN401
    fresh = count()
    values = [value.tobytes() for value in cell.values]

    def put(_: int) -> None:
        redis.mset(dict(zip(cell.keys(next(fresh)), values, strict=True)))

    def get(number: int) -> None:
        found = redis.mget(cell.keys(number % cell.calls))
        _check(len(found[-1]) == cell.value_bytes, "Redis")

    def exists(number: int) -> None:
        pipeline = redis.pipeline(transaction=False)
        for key in cell.keys(number % cell.calls):
            pipeline.exists(key)
        _check(all(pipeline.execute()), "Redis")

    yield _line(cell, "redis", "put", put, rounds, prepare=redis.flushall)
    redis.flushall()
    for number in range(cell.calls):
        redis.mset(dict(zip(cell.keys(number), values, strict=True)))
    yield _line(cell, "redis", "get", get, rounds)
    yield _line(cell, "redis", "exists", exists, rounds, payload=False)
    redis.flushall()


def _line(
    cell: _Cell,
    who: str,
    operation: str,
    call: Callable[[int], object],
    rounds: int,
    *,
    payload: bool = True,
    prepare: Callable[[], object] | None = None,
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
    )


def _check(good: object, what: str) -> None:
    if not good:
        raise Fs3Error(Code.BUG, f"{what} missed a key that is there; look at `fs3 status`")
