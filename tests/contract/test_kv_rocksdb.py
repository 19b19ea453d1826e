"""What is particular to the embedded engine: groups, durability, its directory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Semaphore, Thread

import pytest
from rocksdict import Options, Rdict

from fs3.errors import Code, Fs3Error
from fs3.metaserver.kv.interface import counter_bytes, counter_value
from fs3.metaserver.kv.optimistic import Reads, Writes
from fs3.metaserver.kv.rocksdb import (
    FORMAT,
    FORMAT_KEY,
    WATERMARK_FILE,
    RocksEngine,
    _Commit,
)


class SlowDisk(RocksEngine):
    """Syncs only when told to, and counts."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.syncing = Event()
        self.may_sync = Event()
        self.broken = False
        self.syncs = 0
        self.taken = Semaphore(0)

    def _take_in(self, read_version: int, reads: Reads, writes: Writes) -> _Commit:
        taken = super()._take_in(read_version, reads, writes)
        self.taken.release()
        return taken

    def _sync(self) -> None:
        self.syncing.set()
        assert self.may_sync.wait(30)
        self.syncs += 1
        if self.broken:
            raise OSError(5, "the disk is gone")
        super()._sync()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SlowDisk]:
    with SlowDisk(tmp_path / "kv") as engine:
        yield engine
        engine.may_sync.set()


def commit(engine: RocksEngine, key: bytes, value: bytes = b"") -> int:
    txn = engine.transaction()
    txn.set(key, value)
    return txn.commit()


def in_thread(errors: list[Fs3Error], engine: RocksEngine, key: bytes) -> Thread:
    def work() -> None:
        try:
            commit(engine, key)
        except Fs3Error as error:
            errors.append(error)

    thread = Thread(target=work)
    thread.start()
    return thread


def wait_for_commits(engine: SlowDisk, count: int) -> None:
    """Return when ``count`` more commits were taken in."""
    for _ in range(count):
        assert engine.taken.acquire(timeout=30)


def test_commit_is_neither_visible_nor_acknowledged_before_its_sync(disk):
    thread = in_thread([], disk, b"a")
    assert disk.syncing.wait(30)
    assert disk.transaction().get(b"a") is None
    assert disk.transaction().range(b"", b"\xff") == []
    assert thread.is_alive()
    disk.may_sync.set()
    thread.join()
    assert disk.transaction().get(b"a") == b""


def test_commits_that_come_during_a_sync_share_the_next_one(disk):
    threads = [in_thread([], disk, b"first")]
    assert disk.syncing.wait(30)
    threads += [in_thread([], disk, b"%d" % i) for i in range(10)]
    wait_for_commits(disk, 11)
    disk.may_sync.set()
    for thread in threads:
        thread.join()
    assert disk.syncs == 2
    assert len(disk.transaction().range(b"", b"\xff")) == 11


def test_a_commit_that_need_not_be_durable_waits_for_no_sync(disk):
    txn = disk.transaction()
    txn.set(b"reader", b"1")
    txn.commit(durable=False)
    assert disk.syncs == 0
    assert disk.transaction().get(b"reader") == b"1"
    disk.may_sync.set()
    commit(disk, b"writer")
    assert disk.syncs == 1


def test_scan_and_get_agree_while_other_writes_are_on_their_way(disk):
    """rocksdict's iterators show what is written, published or not; a view must not."""
    disk.may_sync.set()
    for key in (b"a", b"b", b"c", b"d"):
        commit(disk, key, b"old")
    txn = disk.transaction()
    disk.may_sync.clear()
    disk.syncing.clear()

    def work() -> None:
        other = disk.transaction()
        other.set(b"a", b"new")
        other.clear(b"b")
        other.clear_range(b"c", b"d")
        other.set(b"e", b"new")
        other.commit()

    thread = Thread(target=work)
    thread.start()
    assert disk.syncing.wait(30)
    old = [(key, b"old") for key in (b"a", b"b", b"c", b"d")]
    assert txn.range(b"", b"\xff") == old
    assert txn.range(b"", b"\xff", reverse=True) == old[::-1]
    assert disk.transaction().range(b"a", b"d", 2) == old[:2]
    disk.may_sync.set()
    thread.join()
    assert txn.range(b"", b"\xff") == old
    assert [key for key, _ in disk.transaction().range(b"", b"\xff")] == [b"a", b"d", b"e"]


def test_loser_of_a_conflict_is_told_when_it_can_see_the_winner(disk):
    loser = disk.transaction()
    loser.get(b"a")
    loser.set(b"out", b"")
    winner = in_thread([], disk, b"a")
    assert disk.syncing.wait(30)
    seen: list[bytes | None] = []

    def lose() -> None:
        with pytest.raises(Fs3Error) as caught:
            loser.commit()
        assert caught.value.code is Code.CONFLICT
        seen.append(disk.transaction().get(b"a"))

    thread = Thread(target=lose)
    thread.start()
    disk.may_sync.set()
    for each in (thread, winner):
        each.join()
    assert seen == [b""]


def test_failed_sync_stops_the_engine_and_says_that_commits_may_be_stored(disk):
    errors: list[Fs3Error] = []
    threads = [in_thread(errors, disk, b"a")]
    assert disk.syncing.wait(30)
    threads.append(in_thread(errors, disk, b"b"))
    wait_for_commits(disk, 2)
    disk.broken = True
    disk.may_sync.set()
    for thread in threads:
        thread.join()
    assert [error.code for error in errors] == [Code.MAYBE_APPLIED] * 2
    with pytest.raises(Fs3Error, match="the disk is gone") as caught:
        disk.transaction()
    assert caught.value.code is Code.DISK


def test_counters_add_up_over_one_group_and_the_next(disk):
    def add(engine: RocksEngine, delta: int) -> None:
        txn = engine.transaction()
        txn.add(b"n", delta)
        txn.commit()

    disk.may_sync.set()
    add(disk, 1)
    disk.may_sync.clear()
    disk.syncing.clear()
    threads = [Thread(target=add, args=(disk, 10))]
    threads[0].start()
    assert disk.syncing.wait(30)
    for delta in (100, 1000):
        threads.append(Thread(target=add, args=(disk, delta)))
        threads[-1].start()
    wait_for_commits(disk, 4)
    disk.may_sync.set()
    for thread in threads:
        thread.join()
    assert counter_value(disk.transaction().get(b"n")) == 1111


# --- the directory ---


def test_everything_is_there_after_close_and_open(tmp_path):
    with RocksEngine(tmp_path / "kv") as engine:
        commit(engine, b"a", b"1")
        txn = engine.transaction()
        txn.set(b"n", counter_bytes(5))
        txn.commit()
    with RocksEngine(tmp_path / "kv") as engine:
        assert engine.transaction().range(b"", b"\xff") == [(b"a", b"1"), (b"n", counter_bytes(5))]
        commit(engine, b"b")


def test_second_opener_is_told_who_has_the_directory(tmp_path):
    with RocksEngine(tmp_path / "kv") as engine:
        with pytest.raises(Fs3Error, match=rf"process {os.getpid()}\b") as caught:
            RocksEngine(tmp_path / "kv")
        assert caught.value.code is Code.BUSY
        commit(engine, b"a")


def test_directory_opens_again_although_a_transaction_was_left_behind(tmp_path):
    engine = RocksEngine(tmp_path / "kv")
    commit(engine, b"a")
    left = engine.transaction()
    left.get(b"a")
    engine.close()
    with RocksEngine(tmp_path / "kv") as engine:
        assert engine.transaction().get(b"a") == b""


def test_directory_of_a_newer_release_is_refused_and_left_alone(tmp_path):
    RocksEngine(tmp_path / "kv").close()
    store = Rdict(str(tmp_path / "kv"), options=Options(raw_mode=True))
    store[FORMAT_KEY] = b"%d" % (FORMAT + 1)
    store.close()
    for _ in range(2):  # the refusal gives the directory back
        with pytest.raises(Fs3Error, match=f"format {FORMAT + 1}") as caught:
            RocksEngine(tmp_path / "kv")
        assert caught.value.code is Code.UNSUPPORTED


def test_foreign_rocksdb_is_refused(tmp_path):
    store = Rdict(str(tmp_path / "kv"), options=Options(raw_mode=True))
    store[b"something"] = b"else"
    store.close()
    with pytest.raises(Fs3Error, match="not a metadata store") as caught:
        RocksEngine(tmp_path / "kv")
    assert caught.value.code is Code.INVALID


def crash_image(tmp_path: Path) -> tuple[Path, Path]:
    """Five commits of 1,000 bytes, the last not synced, as a crash leaves them; and the log."""
    with RocksEngine(tmp_path / "kv") as engine:
        for i in range(4):
            commit(engine, b"%d" % i, b"%d" % i * 1000)
        txn = engine.transaction()
        txn.set(b"4", b"4" * 1000)
        txn.commit(durable=False)
        shutil.copytree(tmp_path / "kv", tmp_path / "image")
    (log,) = [path for path in (tmp_path / "image").glob("*.log") if path.stat().st_size > 1000]
    return tmp_path / "image", log


def test_commit_torn_by_a_crash_is_dropped_and_the_ones_before_it_stay(tmp_path):
    image, log = crash_image(tmp_path)
    os.truncate(log, log.stat().st_size - 100)
    with RocksEngine(image) as engine:
        assert [key for key, _ in engine.transaction().range(b"", b"\xff")] == [
            b"0",
            b"1",
            b"2",
            b"3",
        ]


def test_a_tear_that_is_not_the_end_of_what_was_not_synced_is_dropped_too(tmp_path):
    image, log = crash_image(tmp_path)
    data = bytearray(log.read_bytes())
    start = data.index(b"4" * 1000)
    data[start - 24 : start + 100] = bytes(124)  # a sector that did not get there; later ones did
    log.write_bytes(data + b"\x07" * 3000)
    with RocksEngine(image) as engine:
        assert [key for key, _ in engine.transaction().range(b"", b"\xff")] == [
            b"0",
            b"1",
            b"2",
            b"3",
        ]


def damage(log: Path) -> None:
    data = bytearray(log.read_bytes())
    data[data.index(b"1" * 1000) + 500] ^= 0xFF
    log.write_bytes(data)


def cut(log: Path) -> None:
    os.truncate(log, log.read_bytes().index(b"3" * 1000) + 10)


@pytest.mark.parametrize("harm", [damage, cut, Path.unlink])
def test_a_log_that_lost_what_was_acknowledged_is_refused(tmp_path, harm):
    image, log = crash_image(tmp_path)
    harm(log)
    for _ in range(2):  # the refusal changes nothing, and gives the directory back
        with pytest.raises(Fs3Error, match="has lost commits") as caught:
            RocksEngine(image)
        assert caught.value.code is Code.DISK
    (image / WATERMARK_FILE).unlink()  # the operator wants what is left
    with RocksEngine(image) as engine:
        commit(engine, b"more")


COMMITTER = """
import os, sys, threading
from pathlib import Path
from fs3.metaserver.kv.rocksdb import RocksEngine

engine = RocksEngine(Path(sys.argv[1]))

def work(number):
    for i in range(1_000_000):
        txn = engine.transaction()
        name = b"%d-%d" % (number, i)
        txn.set(b"left-" + name, name * 50)
        txn.set(b"right-" + name, name * 50)
        txn.add(b"count", 1)
        txn.commit()
        os.write(1, name + b"\\n")

for number in range(4):
    threading.Thread(target=work, args=(number,)).start()
"""


def test_everything_acknowledged_is_there_after_kill_9(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", COMMITTER, str(tmp_path / "kv")], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child.stdout as output:
        acknowledged = [output.readline() for _ in range(300)]
        child.send_signal(signal.SIGKILL)
        acknowledged += output.readlines()
    assert child.wait() == -signal.SIGKILL
    names = {line.strip() for line in acknowledged if line.endswith(b"\n")}
    with RocksEngine(tmp_path / "kv") as engine:
        rows = dict(engine.transaction().range(b"", b"\xff"))
    left = {key[5:] for key in rows if key.startswith(b"left-")}
    right = {key[6:] for key in rows if key.startswith(b"right-")}
    assert len(names) >= 300
    assert names <= left
    assert left == right
    assert counter_value(rows[b"count"]) == len(left)
    assert all(rows[b"left-" + name] == name * 50 for name in left)
