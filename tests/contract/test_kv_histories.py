"""Concurrent histories on every metadata engine: are they serializable?

Interleavings are made by one thread that steps several open transactions by a seed, so that a
failure can be repeated; only what is about threads starts threads.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Thread

import pytest
from kv_engines import KV_ENGINES, open_kv_engine
from serializability import Access, find_cycle

from fs3.errors import Code, Fs3Error
from fs3.metaserver.kv.interface import Engine, Transaction, counter_bytes, counter_value


@pytest.fixture(params=KV_ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with open_kv_engine(request.param, tmp_path) as engine:
        yield engine


def value_of(engine: Engine, key: bytes) -> bytes | None:
    return engine.transaction().get(key)


def expect_conflict(error: Fs3Error) -> None:
    assert error.code is Code.CONFLICT


@pytest.mark.parametrize("seed", range(15))
def test_interleaved_histories_have_no_cycle(engine, seed):
    """Transactions append their number to lists, so every read tells which writes it saw."""
    rng = random.Random(seed)
    names = [b"k%d" % i for i in range(4)]
    history: list[list[Access]] = []
    aborted = 0
    running: list[tuple[Transaction, list[Access], int]] = []
    started = 0
    while started < 60 or running:
        if started < 60 and len(running) < 5 and rng.random() < 0.4:
            running.append((engine.transaction(), [], rng.randint(1, 4)))
            history.append(running[-1][1])
            started += 1
            continue
        if not running:
            continue
        txn, done, steps = running.pop(rng.randrange(len(running)))
        if len(done) < steps:
            number = next(i for i, accesses in enumerate(history) if accesses is done)
            done += step(txn, number, rng, names)
            running.append((txn, done, steps))
            continue
        try:
            txn.commit()
        except Fs3Error as error:
            expect_conflict(error)
            done.clear()
            aborted += 1
    assert find_cycle(history) is None
    assert 0 < aborted < 60, "too little or too much in conflict to show anything"


def step(txn: Transaction, number: int, rng: random.Random, names: list[bytes]) -> list[Access]:
    """One read, append or range read, and what it saw."""
    key = rng.choice(names)
    match rng.choice(["get", "append", "range"]):
        case "get":
            return [Access(key, writers(txn.get(key)), None)]
        case "append":
            seen = writers(txn.get(key))
            if number in seen:
                return []
            txn.set(key, b",".join(b"%d" % n for n in (*seen, number)))
            return [Access(key, seen, number)]
        case _:
            rows = dict(txn.range(names[1], names[3]))
            return [Access(k, writers(rows.get(k)), None) for k in names[1:3]]


def writers(value: bytes | None) -> tuple[int, ...]:
    return tuple(int(n) for n in value.split(b",")) if value else ()


def test_the_checker_finds_a_write_skew():
    history = [
        [Access(b"a", (), None), Access(b"b", (), 0)],
        [Access(b"b", (), None), Access(b"a", (), 1)],
        [Access(b"a", (1,), None), Access(b"b", (0,), None)],
    ]
    assert find_cycle(history) == [0, 1]


def test_the_checker_finds_a_lost_update_and_passes_a_serial_history():
    assert find_cycle([[Access(b"a", (), 0)], [Access(b"a", (), 1)]]) is not None
    assert find_cycle([[Access(b"a", (), 0)], [Access(b"a", (0,), 1)]]) is None


@pytest.mark.parametrize("seed", range(15))
def test_every_commit_did_what_it_would_have_done_alone_in_version_order(engine, seed):
    """Replays a random interleaved history in the order of versions against a plain dict.

    Unlike the list histories this covers removals, cleared ranges, counters and phantoms.
    """
    rng = random.Random(1000 + seed)
    keys = [b"%d" % i for i in range(8)]
    running: list[tuple[Transaction, list[tuple[object, ...]]]] = []
    committed: list[tuple[int, list[tuple[object, ...]]]] = []
    for _ in range(400):
        if len(running) < 4:
            running.append((engine.transaction(), []))
        txn, log = running[rng.randrange(len(running))]
        if len(log) < 5:
            log.append(act(txn, rng, keys))
            continue
        running.remove((txn, log))
        try:
            committed.append((txn.commit(), log))
        except Fs3Error as error:
            expect_conflict(error)
    model: dict[bytes, bytes] = {}
    for _, log in sorted(committed, key=lambda entry: entry[0]):
        for entry in log:
            replay(model, entry)
    assert engine.transaction().range(b"", b"\xff") == sorted(model.items())
    assert len(committed) > 20


def act(txn: Transaction, rng: random.Random, keys: list[bytes]) -> tuple[object, ...]:
    key = rng.choice(keys)
    begin, end = sorted((key, rng.choice(keys)))
    match rng.choice(["get", "range", "set", "clear", "clear_range", "add", "add"]):
        case "get":
            return "get", key, txn.get(key)
        case "range":
            limit, reverse = rng.choice([0, 1, 2]), rng.random() < 0.5
            rows = txn.range(begin, end, limit, reverse=reverse)
            return "range", begin, end, limit, reverse, rows
        case "set":
            value = rng.randbytes(8)
            txn.set(key, value)
            return "set", key, value
        case "clear":
            txn.clear(key)
            return "clear", key
        case "clear_range":
            txn.clear_range(begin, end)
            return "clear_range", begin, end
        case _:
            txn.add(key, 3)
            return "add", key


def replay(model: dict[bytes, bytes], entry: tuple[object, ...]) -> None:
    match entry:
        case ("get", bytes(key), seen):
            assert model.get(key) == seen
        case ("range", bytes(begin), bytes(end), int(limit), reverse, seen):
            rows = sorted((k, v) for k, v in model.items() if begin <= k < end)
            rows = rows[::-1] if reverse else rows
            assert (rows[:limit] if limit else rows) == seen
        case ("set", bytes(key), bytes(value)):
            model[key] = value
        case ("clear", bytes(key)):
            model.pop(key, None)
        case ("clear_range", bytes(begin), bytes(end)):
            for key in [k for k in model if begin <= k < end]:
                del model[key]
        case ("add", bytes(key)):
            model[key] = counter_bytes(counter_value(model.get(key)) + 3)


# --- threads ---


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(0)`` ... at the same time; the first failure of any is raised."""
    failures: list[BaseException] = []
    start = Barrier(count)

    def guarded(number: int) -> None:
        try:
            start.wait()
            work(number)
        except BaseException as error:  # noqa: BLE001 - it is raised in the test's own thread
            failures.append(error)

    threads = [Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_concurrent_transfers_neither_make_nor_lose_money(engine):
    accounts = [b"account-%d" % i for i in range(5)]
    opening = engine.transaction()
    for name in accounts:
        opening.set(name, counter_bytes(100))
    opening.commit()

    def transfer(txn: Transaction, source: bytes, target: bytes) -> None:
        left = counter_value(txn.get(source)) - 10
        if left >= 0:
            txn.set(source, counter_bytes(left))
            txn.set(target, counter_bytes(counter_value(txn.get(target)) + 10))
            txn.add(b"transfers", 1)

    def total(txn: Transaction) -> int:
        return sum(counter_value(v) for _, v in txn.range(b"account-", b"account."))

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(25):
            source, target = rng.sample(accounts, 2)
            engine.run(transfer, source, target, attempts=10_000)
            assert engine.run(total) == 500

    in_threads(8, work)
    assert engine.run(total) == 500
    assert all(counter_value(value_of(engine, name)) >= 0 for name in accounts)
    assert counter_value(value_of(engine, b"transfers")) > 0


def test_threads_adding_to_one_counter_lose_nothing_and_never_conflict(engine):
    def work(number: int) -> None:
        for _ in range(25):
            txn = engine.transaction()
            txn.add(b"n", 1)
            txn.commit()

    in_threads(8, work)
    assert counter_value(value_of(engine, b"n")) == 200


def test_acknowledged_commit_is_seen_by_transactions_begun_later_in_any_thread(engine):
    """Strict serializability between threads: each takes the next number, and none twice."""
    taken: list[int] = []

    def take(txn: Transaction) -> int:
        number = counter_value(txn.get(b"next"))
        txn.set(b"next", counter_bytes(number + 1))
        return number

    def work(_: int) -> None:
        mine = [engine.run(take, attempts=10_000) for _ in range(20)]
        assert mine == sorted(mine)
        taken.extend(mine)

    in_threads(6, work)
    assert sorted(taken) == list(range(120))
