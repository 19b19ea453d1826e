"""The in-memory engine's own: commits lost, held back, refused on demand; how far back it goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fs3.errors import Code, Fs3Error
from fs3.metaserver.kv.interface import Transaction
from fs3.metaserver.kv.memory import Fault, MemoryEngine


def engine_with(*faults: Fault) -> MemoryEngine:
    """An engine whose first commits meet ``faults``; those after them go well."""
    left = list(faults)
    return MemoryEngine(
        faults=lambda: left.pop(0) if left else Fault.NONE, pause=lambda attempt: None
    )


def write(key: bytes) -> Callable[[Transaction], None]:
    return lambda txn: txn.set(key, b"1")


def keys_in(engine: MemoryEngine) -> list[bytes]:
    return [key for key, _ in engine.transaction().range(b"", b"\xff")]


def test_refused_commit_is_repeated_by_run():
    engine = engine_with(Fault.REFUSE, Fault.REFUSE)
    engine.run(write(b"a"))
    assert keys_in(engine) == [b"a"]


@pytest.mark.parametrize(
    ("fault", "stored"), [(Fault.LOSE, []), (Fault.LOSE_ANSWER, [b"a"]), (Fault.HOLD, [])]
)
def test_lost_answer_is_maybe_applied_and_run_does_not_repeat_it(fault, stored):
    engine = engine_with(fault)
    with pytest.raises(Fs3Error) as caught:
        engine.run(write(b"a"))
    assert caught.value.code is Code.MAYBE_APPLIED
    assert keys_in(engine) == stored


def test_held_commit_arrives_later():
    engine = engine_with(Fault.HOLD)
    with pytest.raises(Fs3Error):
        engine.run(write(b"a"))
    engine.run(write(b"b"))
    assert engine.release_held() == 1
    assert keys_in(engine) == [b"a", b"b"]


def test_held_commit_is_dropped_if_what_it_read_changed_meanwhile():
    engine = engine_with(Fault.HOLD)
    txn = engine.transaction()
    txn.get(b"b")
    txn.set(b"a", b"1")
    with pytest.raises(Fs3Error):
        txn.commit()
    engine.run(write(b"b"))
    assert engine.release_held() == 0
    assert keys_in(engine) == [b"b"]


def test_transaction_older_than_the_window_is_refused_in_reads_and_commit():
    engine = MemoryEngine(window_keys_max=5)
    reader, writer = engine.transaction(), engine.transaction()
    writer.set(b"w", b"")
    for i in range(10):
        engine.run(write(b"%d" % i))
    for action in (lambda: reader.get(b"a"), lambda: reader.range(b"", b"b"), writer.commit):
        with pytest.raises(Fs3Error, match="too old") as caught:
            action()
        assert caught.value.code is Code.CONFLICT


def test_removed_keys_leave_memory_with_the_window():
    engine = MemoryEngine(window_keys_max=10)
    for i in range(50):
        engine.run(write(b"%d" % i))
    engine.run(lambda txn: txn.clear_range(b"0", b"4"))
    for _ in range(20):
        engine.run(write(b"z"))
    assert len(engine._keys) == len(keys_in(engine)) < 50
    assert len(engine._history[b"z"]) <= 11
