"""What every metadata engine promises (metaserver/kv/interface.py): each must pass all of it.

What they promise under concurrency is in test_kv_histories.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kv_engines import KV_ENGINES, open_kv_engine

from fs3.errors import Code, Fs3Error
from fs3.metaserver.kv.interface import (
    KEY_BYTES_MAX,
    TRANSACTION_BYTES_MAX,
    VALUE_BYTES_MAX,
    Engine,
    Transaction,
    counter_bytes,
    counter_value,
)


@pytest.fixture(params=KV_ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with open_kv_engine(request.param, tmp_path) as engine:
        yield engine


def put(engine: Engine, **rows: bytes) -> None:
    transaction = engine.transaction()
    for name, value in rows.items():
        transaction.set(name.encode(), value)
    transaction.commit()


def value_of(engine: Engine, key: bytes) -> bytes | None:
    return engine.transaction().get(key)


def rows_of(engine: Engine) -> list[tuple[bytes, bytes]]:
    return engine.transaction().range(b"", b"\xff")


def refused(code: Code, action: Callable[..., object], *args: object, **kwargs: object) -> str:
    with pytest.raises(Fs3Error) as caught:
        action(*args, **kwargs)
    assert caught.value.code is code
    return caught.value.detail


# --- one transaction ---


def test_missing_key_reads_as_none(engine):
    assert value_of(engine, b"a") is None


def test_empty_value_is_a_value(engine):
    put(engine, a=b"")
    assert value_of(engine, b"a") == b""


def test_commit_makes_all_writes_visible_to_the_next_transaction(engine):
    put(engine, a=b"1", b=b"2")
    assert rows_of(engine) == [(b"a", b"1"), (b"b", b"2")]


def test_transaction_reads_its_own_writes(engine):
    put(engine, a=b"1", b=b"2", c=b"3")
    txn = engine.transaction()
    txn.set(b"a", b"new")
    txn.clear(b"b")
    txn.set(b"d", b"4")
    assert (txn.get(b"a"), txn.get(b"b"), txn.get(b"d")) == (b"new", None, b"4")
    assert txn.range(b"", b"\xff") == [(b"a", b"new"), (b"c", b"3"), (b"d", b"4")]


def test_range_with_own_writes_keeps_order_and_limit_both_ways(engine):
    put(engine, b=b"", d=b"", f=b"")
    txn = engine.transaction()
    for key in (b"a", b"c", b"e", b"g"):
        txn.set(key, b"own")
    txn.clear(b"d")
    keys = [key for key, _ in txn.range(b"a", b"g", 4)]
    backwards = [key for key, _ in txn.range(b"b", b"\xff", 3, reverse=True)]
    assert keys == [b"a", b"b", b"c", b"e"]
    assert backwards == [b"g", b"f", b"e"]


def test_writes_not_committed_are_not_seen(engine):
    txn = engine.transaction()
    txn.set(b"a", b"1")
    assert value_of(engine, b"a") is None


def test_range_includes_begin_and_excludes_end(engine):
    put(engine, a=b"", b=b"", c=b"")
    assert [key for key, _ in engine.transaction().range(b"a", b"c")] == [b"a", b"b"]
    assert engine.transaction().range(b"b", b"b") == []


def test_long_range_comes_whole_and_in_order_both_ways(engine):
    keys = [b"%05d" % i for i in range(500)]
    txn = engine.transaction()
    for key in keys:
        txn.set(key, key)
    txn.commit()
    assert [k for k, _ in engine.transaction().range(b"0", b"1")] == keys
    assert [k for k, _ in engine.transaction().range(b"0", b"1", reverse=True)] == keys[::-1]
    assert [k for k, _ in engine.transaction().range(b"00100", b"1", 150)] == keys[100:250]


def test_range_orders_keys_as_bytes(engine):
    keys = [b"\x00", b"\x00\x00", b"\x01", b"a", b"a\x00", b"a\xff", b"b", b"\xfe\xff"]
    txn = engine.transaction()
    for key in reversed(keys):
        txn.set(key, b"")
    txn.commit()
    assert [key for key, _ in rows_of(engine)] == keys


def test_clear_range_removes_what_is_in_it_only(engine):
    put(engine, a=b"", b=b"", c=b"", d=b"")
    txn = engine.transaction()
    txn.set(b"bb", b"set before")
    txn.clear_range(b"b", b"d")
    txn.set(b"c", b"set after")
    assert txn.get(b"b") is None
    assert txn.get(b"bb") is None
    txn.commit()
    assert rows_of(engine) == [(b"a", b""), (b"c", b"set after"), (b"d", b"")]


def test_clear_of_a_missing_key_is_fine(engine):
    txn = engine.transaction()
    txn.clear(b"a")
    txn.commit()
    assert rows_of(engine) == []


def test_read_version_grows_with_commits(engine):
    before = engine.transaction().read_version
    txn = engine.transaction()
    txn.set(b"a", b"")
    version = txn.commit()
    assert before < version <= engine.transaction().read_version


def test_committed_transaction_cannot_be_used_again(engine):
    txn = engine.transaction()
    txn.set(b"a", b"")
    txn.commit()
    refused(Code.INVALID, txn.get, b"a")
    refused(Code.INVALID, txn.set, b"a", b"")
    refused(Code.INVALID, txn.commit)


# --- limits ---


@pytest.mark.parametrize("key", [b"", b"\xff", b"\xff\xff"])
def test_keys_outside_the_key_space_are_refused(engine, key):
    refused(Code.INVALID, engine.transaction().set, key, b"")
    refused(Code.INVALID, engine.transaction().clear, key)


def test_engine_own_keys_are_neither_read_nor_listed(engine):
    refused(Code.INVALID, engine.transaction().get, b"\xff\xfffs3/format")
    refused(Code.INVALID, engine.transaction().range, b"a", b"\xff\xff")
    refused(Code.INVALID, engine.transaction().clear_range, b"a", b"\xff\x00")
    assert rows_of(engine) == []


def test_range_that_ends_before_it_begins_is_refused(engine):
    refused(Code.INVALID, engine.transaction().range, b"b", b"a")


def test_largest_key_and_value_are_kept_and_one_byte_more_is_refused(engine):
    key, value = b"k" * KEY_BYTES_MAX, b"v" * VALUE_BYTES_MAX
    txn = engine.transaction()
    assert str(KEY_BYTES_MAX) in refused(Code.TOO_LARGE, txn.set, key + b"k", b"")
    assert str(VALUE_BYTES_MAX) in refused(Code.TOO_LARGE, txn.set, key, value + b"v")
    txn.set(key, value)
    txn.commit()
    assert value_of(engine, key) == value


def test_transaction_that_writes_too_much_is_refused(engine):
    txn = engine.transaction()

    def write_all() -> None:
        for i in range(TRANSACTION_BYTES_MAX // VALUE_BYTES_MAX + 1):
            txn.set(b"%d" % i, b"v" * VALUE_BYTES_MAX)

    assert str(TRANSACTION_BYTES_MAX) in refused(Code.TOO_LARGE, write_all)


# --- counters ---


def test_add_starts_at_nothing_and_goes_below_it(engine):
    for delta, total in ((5, 5), (-7, -2), (1 << 40, (1 << 40) - 2)):
        txn = engine.transaction()
        txn.add(b"n", delta)
        txn.commit()
        assert counter_value(value_of(engine, b"n")) == total


def test_add_is_seen_and_merged_in_its_transaction(engine):
    put(engine, n=counter_bytes(10))
    txn = engine.transaction()
    txn.add(b"n", 1)
    txn.add(b"n", 2)
    assert counter_value(txn.get(b"n")) == 13
    assert txn.range(b"n", b"o") == [(b"n", counter_bytes(13))]
    txn.commit()
    assert counter_value(value_of(engine, b"n")) == 13


def test_add_after_set_clear_and_clear_range_counts_from_there(engine):
    put(engine, a=counter_bytes(10), b=counter_bytes(10), c=counter_bytes(10))
    txn = engine.transaction()
    txn.set(b"a", counter_bytes(100))
    txn.clear(b"b")
    txn.clear_range(b"c", b"d")
    for key in (b"a", b"b", b"c"):
        txn.add(key, 1)
    txn.commit()
    assert [counter_value(v) for _, v in rows_of(engine)] == [101, 1, 1]


def test_two_adds_to_one_counter_do_not_conflict(engine):
    one, two = engine.transaction(), engine.transaction()
    one.add(b"n", 1)
    two.add(b"n", 2)
    one.commit()
    two.commit()
    assert counter_value(value_of(engine, b"n")) == 3


def test_add_conflicts_with_one_who_read_the_counter(engine):
    reader = engine.transaction()
    reader.get(b"n")
    reader.set(b"a", b"")
    adder = engine.transaction()
    adder.add(b"n", 1)
    adder.commit()
    refused(Code.CONFLICT, reader.commit)


def test_counter_wraps_like_a_register(engine):
    put(engine, n=counter_bytes((1 << 63) - 1))
    txn = engine.transaction()
    txn.add(b"n", 1)
    txn.commit()
    assert counter_value(value_of(engine, b"n")) == -(1 << 63)


def test_add_to_what_is_no_counter_takes_its_first_bytes(engine):
    put(engine, n=b"\x05")
    txn = engine.transaction()
    txn.add(b"n", 1)
    txn.commit()
    assert counter_value(value_of(engine, b"n")) == 6


# --- isolation ---


def test_open_transaction_reads_its_snapshot_whatever_is_committed(engine):
    put(engine, a=b"1", b=b"1", c=b"1")
    txn = engine.transaction()
    put(engine, a=b"2", d=b"2")
    other = engine.transaction()
    other.clear(b"b")
    other.clear_range(b"c", b"d")
    other.commit()
    assert txn.get(b"a") == b"1"
    assert txn.range(b"", b"\xff") == [(b"a", b"1"), (b"b", b"1"), (b"c", b"1")]


def test_lost_update_is_refused(engine):
    one, two = engine.transaction(), engine.transaction()
    for txn in (one, two):
        txn.set(b"a", (txn.get(b"a") or b"") + b"x")
    one.commit()
    refused(Code.CONFLICT, two.commit)
    assert value_of(engine, b"a") == b"x"


def test_write_skew_is_refused(engine):
    one, two = engine.transaction(), engine.transaction()
    one.get(b"a")
    one.set(b"b", b"")
    two.get(b"b")
    two.set(b"a", b"")
    one.commit()
    refused(Code.CONFLICT, two.commit)


def test_writes_alone_do_not_conflict(engine):
    one, two = engine.transaction(), engine.transaction()
    one.set(b"a", b"1")
    two.set(b"a", b"2")
    one.commit()
    two.commit()
    assert value_of(engine, b"a") == b"2"


def test_reads_alone_always_commit(engine):
    txn = engine.transaction()
    txn.get(b"a")
    txn.range(b"", b"\xff")
    put(engine, a=b"1")
    assert txn.commit() == txn.read_version


def test_snapshot_read_does_not_conflict(engine):
    txn = engine.transaction()
    txn.get(b"a", snapshot=True)
    txn.range(b"a", b"z", snapshot=True)
    txn.set(b"out", b"")
    put(engine, a=b"1", b=b"1")
    txn.commit()
    assert value_of(engine, b"out") == b""


def test_reading_an_own_write_does_not_conflict(engine):
    txn = engine.transaction()
    txn.set(b"a", b"mine")
    txn.get(b"a")
    put(engine, a=b"theirs")
    txn.commit()
    assert value_of(engine, b"a") == b"mine"


def changes() -> dict[str, Callable[[Transaction], None]]:
    return {
        "set": lambda txn: txn.set(b"m", b"new"),
        "clear": lambda txn: txn.clear(b"m"),
        "clear_range": lambda txn: txn.clear_range(b"l", b"n"),
        "clear_range around": lambda txn: txn.clear_range(b"a", b"z"),
        "add": lambda txn: txn.add(b"m", 1),
    }


@pytest.mark.parametrize("change", changes())
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("read", ["get", "range", "key", "key range"])
def test_commit_is_refused_when_what_it_read_was_changed(engine, change, stored, read):
    if stored:
        put(engine, m=counter_bytes(1))
    txn = engine.transaction()
    match read:
        case "get":
            txn.get(b"m")
        case "range":
            txn.range(b"k", b"p")
        case "key":
            txn.add_read_conflict(b"m")
        case "key range":
            txn.add_read_conflict_range(b"k", b"p")
    txn.set(b"z-out", b"")
    other = engine.transaction()
    changes()[change](other)
    other.commit()
    refused(Code.CONFLICT, txn.commit)
    assert value_of(engine, b"z-out") is None


@pytest.mark.parametrize("change", [c for c in changes() if "around" not in c])
def test_commit_stands_when_only_its_neighbours_were_changed(engine, change):
    txn = engine.transaction()
    txn.get(b"k")
    txn.range(b"a", b"l")
    txn.range(b"n", b"p")
    txn.add_read_conflict(b"n")
    txn.set(b"out", b"")
    other = engine.transaction()
    changes()[change](other)
    other.commit()
    txn.commit()
    assert value_of(engine, b"out") == b""


def test_range_cut_by_its_limit_conflicts_only_as_far_as_it_looked(engine):
    put(engine, a=b"", c=b"", e=b"", g=b"")
    for reverse, beyond, within in ((False, b"d", b"b"), (True, b"d", b"f")):
        for key, ends in ((beyond, "well"), (within, "in conflict")):
            txn = engine.transaction()
            assert len(txn.range(b"a", b"h", 2, reverse=reverse)) == 2
            txn.set(b"out", b"")
            other = engine.transaction()
            other.set(key, b"")
            other.commit()
            if ends == "well":
                txn.commit()
            else:
                refused(Code.CONFLICT, txn.commit)
            cleaner = engine.transaction()
            cleaner.clear(key)
            cleaner.commit()


def test_refused_commit_changes_nothing(engine):
    txn = engine.transaction()
    txn.get(b"a")
    txn.set(b"b", b"")
    txn.clear_range(b"c", b"d")
    txn.add(b"n", 1)
    put(engine, a=b"1", c=b"1")
    refused(Code.CONFLICT, txn.commit)
    assert rows_of(engine) == [(b"a", b"1"), (b"c", b"1")]


# --- run ---


def test_run_returns_the_result_and_commits(engine):
    def work(txn: Transaction, value: bytes, *, key: bytes) -> int:
        txn.set(key, value)
        return 7

    assert engine.run(work, b"1", key=b"a") == 7
    assert value_of(engine, b"a") == b"1"


def test_run_repeats_after_a_conflict_with_a_new_snapshot(engine):
    seen = []

    def work(txn: Transaction) -> None:
        seen.append(txn.get(b"a"))
        txn.set(b"b", b"")
        if len(seen) < 3:
            put(engine, a=b"%d" % len(seen))

    engine.run(work)
    assert seen == [None, b"1", b"2"]


def test_run_gives_up_after_the_attempts_it_was_given(engine):
    calls = []

    def work(txn: Transaction) -> None:
        calls.append(txn.get(b"a"))
        txn.set(b"a", b"mine")
        put(engine, a=b"theirs")

    assert "3 attempts" in refused(Code.CONFLICT, engine.run, work, attempts=3)
    assert len(calls) == 3
    assert value_of(engine, b"a") == b"theirs"


def test_run_without_an_attempt_is_refused(engine):
    refused(Code.INVALID, engine.run, lambda txn: None, attempts=0)


def test_error_in_the_work_changes_nothing_and_is_not_repeated(engine):
    calls = []

    def work(txn: Transaction) -> None:
        calls.append(1)
        txn.set(b"a", b"1")
        raise Fs3Error(Code.EXISTS, "a exists")

    refused(Code.EXISTS, engine.run, work)
    assert (len(calls), value_of(engine, b"a")) == (1, None)


def test_closed_engine_says_so(engine):
    reader, writer = engine.transaction(), engine.transaction()
    writer.set(b"a", b"")
    engine.close()
    engine.close()
    assert "closed" in refused(Code.DISK, reader.get, b"a")
    assert "closed" in refused(Code.DISK, reader.range, b"a", b"b")
    assert "closed" in refused(Code.DISK, writer.commit)
    assert "closed" in refused(Code.DISK, engine.transaction)
