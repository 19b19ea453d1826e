"""Commits and creations per second on the embedded metadata engine: ``python metadata.py``.

Prints one JSON object. The limit they are compared with is measured in the same run, on the same
file system: one row written and synced at a time, which is what one sync per commit would give.
A creation is what a client's create costs the namespace: an exclusive create with a session, inside
``once``. Directories: one a thread, or one for all ("hot").
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread

from rocksdict import Options, Rdict

from fs3.core.layout import Layout
from fs3.core.types import ChainId, InodeId
from fs3.metaserver import namespace
from fs3.metaserver.kv.interface import Engine, Transaction
from fs3.metaserver.kv.rocksdb import RocksEngine
from fs3.types import ROOT_INODE, Credentials

ROOT = Credentials(uid=0, gid=0)
TABLES = {1: [ChainId(n) for n in range(1, 65)]}
THREADS = (1, 32)


def rate(threads: int, seconds: float, work: Callable[[int, int], None]) -> float:
    """How often per second ``work(thread, i)`` is done by ``threads`` threads together."""
    done = [0] * threads
    start = Barrier(threads + 1)

    def run(thread: int) -> None:
        start.wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            work(thread, done[thread])
            done[thread] += 1

    workers = [Thread(target=run, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    begin = time.perf_counter()
    for worker in workers:
        worker.join()
    return round(sum(done) / (time.perf_counter() - begin))


def sync_limit(folder: Path, seconds: float) -> float:
    """Rows per second when each is written and synced by itself."""
    store = Rdict(str(folder), options=Options(raw_mode=True))

    def work(_: int, i: int) -> None:
        store.put(b"%d" % i, b"v" * 200)
        store.flush_wal(True)

    found = rate(1, seconds, work)
    store.close()
    return found


def commits(engine: Engine, threads: int, seconds: float) -> float:
    """Transactions per second: two reads, two rows written."""

    def transaction(txn: Transaction, thread: int, i: int) -> None:
        name = b"%d-%d-%d" % (threads, thread, i)
        txn.get(b"parent")
        txn.get(b"d" + name)
        txn.set(b"d" + name, b"v" * 64)
        txn.set(b"i" + name, b"v" * 128)

    return rate(threads, seconds, lambda thread, i: engine.run(transaction, thread, i))


def creations(engine: Engine, threads: int, seconds: float, hot: bool) -> float:
    """Files made per second."""
    engine.run(namespace.make_root, Layout(1 << 20, 4), time.time_ns())
    ids = namespace.InodeAllocator(engine)
    made = 1 if hot else threads
    parents = [make_directory(engine, ids, f"{threads}-{hot}-{i}") for i in range(made)]

    def create(txn: Transaction, thread: int, i: int, new: namespace.NewInode) -> bytes:
        def work() -> bytes:
            handle = namespace.Handle(thread + 1, new.inode)
            opened = namespace.create(
                txn,
                parents[thread % made],
                f"file-{thread}-{i}",
                new,
                TABLES,
                mode=namespace.OpenMode(write=True, handle=handle),
                exclusive=True,
            )
            return b"%d" % opened.inode.inode

        return namespace.once(txn, thread + 1, new.inode, new.now_ns, work)

    def work(thread: int, i: int) -> None:
        new = namespace.NewInode(inode=ids.take(), who=ROOT, now_ns=time.time_ns())
        engine.run(create, thread, i, new)

    return rate(threads, seconds, work)


def make_directory(engine: Engine, ids: namespace.InodeAllocator, name: str) -> InodeId:
    new = namespace.NewInode(inode=ids.take(), who=ROOT, now_ns=time.time_ns())
    return engine.run(namespace.mkdir, ROOT_INODE, name, new).inode


def measure(folder: Path, seconds: float) -> dict[str, float]:
    """One round of all figures."""
    limit = sync_limit(folder / "limit", seconds)
    figures: dict[str, float] = {"syncs_per_s": limit}
    with RocksEngine(folder / "engine") as engine:
        for threads in THREADS:
            found = commits(engine, threads, seconds)
            figures[f"commits_per_s_{threads}_threads"] = found
            figures[f"commits_per_sync_{threads}_threads"] = round(found / limit, 2)
        for threads in THREADS:
            for name in ("creates", "creates_hot"):
                found = creations(engine, threads, seconds, hot=name == "creates_hot")
                figures[f"{name}_per_s_{threads}_threads"] = found
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--seconds", type=float, default=1.0, help="per figure and round")
    parser.add_argument("--rounds", type=int, default=5, help="the median of which is told")
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rounds.append(measure(Path(folder), options.seconds))
    medians = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    print(json.dumps(medians, indent=2))


if __name__ == "__main__":
    main()
