"""The KV cache while things go wrong: servers die or stop, values come and go under readers.

Every byte that is handed out is verified: a value says which key it is of and which putting of it.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from kv_cluster import eventually, kv_cluster, new_cache
from numpy.typing import NDArray
from running_cluster import RunningCluster

from fs3.client import processes
from fs3.client.kvcache import KVCache

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300)]

_PATTERN = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
KEYS = [b"key %d" % i for i in range(300)]


@pytest.fixture
def cluster(tmp_path):
    with kv_cluster(tmp_path / "data") as running:
        yield running


@pytest.fixture
def patient(tmp_path):
    """Servers may serve for long without a word from the metaserver."""
    with kv_cluster(tmp_path / "data", None, {"manager": {"lease_ms": 600_000}}) as running:
        yield running


def value_of(key: bytes, length: int, salt: bytes = b"") -> bytes:
    """A value that only this key, length and salt can have."""
    seed = blake2b(key + b"/" + salt, digest_size=16).digest()
    offset = int.from_bytes(seed[:2], "big")
    return seed + salt.ljust(8) + _PATTERN[offset : offset + length - 24].tobytes()


def is_value_of(key: bytes, value: bytes) -> bool:
    """Whether it is whole and that of the key, whoever put it."""
    return value == value_of(key, len(value), value[16:24].rstrip())


class Workers:
    """Threads that work until told to stop; what they find wrong."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.wrong: list[str] = []
        self.hits = self.misses = self.puts = 0
        self._threads: list[threading.Thread] = []

    def start(self, work: Callable[[random.Random], None], count: int) -> None:
        def run(number: int) -> None:
            rng = random.Random(number)
            while not self.stop.is_set() and not self.wrong:
                try:
                    work(rng)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is wrong
                    self.wrong.append(repr(error))

        made = [threading.Thread(target=run, args=(n,)) for n in range(count)]
        self._threads += made
        for thread in made:
            thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def check(self, keys: list[bytes], sizes: list[int], buffers: list[bytearray]) -> None:
        for key, size, buffer in zip(keys, sizes, buffers, strict=True):
            if size < 0:
                self.misses += 1
            elif is_value_of(key, bytes(buffer[:size])):
                self.hits += 1
            else:
                self.wrong.append(f"{key!r}: {size} bytes that are not its value")


def pid_in(directory: Path) -> int:
    """The daemon that runs there."""
    process = processes.living(directory / "pid")
    assert process is not None
    return process.pid


def reader(workers: Workers, cache: KVCache) -> Callable[[random.Random], None]:
    def read(rng: random.Random) -> None:
        keys = rng.sample(KEYS, 20)
        buffers = [bytearray(210_000) for _ in keys]
        workers.check(keys, cache.get_into(keys, buffers).tolist(), buffers)

    return read


def writer(workers: Workers, cache: KVCache) -> Callable[[random.Random], None]:
    def put(rng: random.Random) -> None:
        keys = rng.sample(KEYS, 8)
        salt = b"%d" % rng.randrange(10**7)
        made = [value_of(key, rng.randint(100, 200_000), salt) for key in keys]
        workers.puts += int(cache.put(keys, made).sum())
        if rng.random() < 0.3:
            cache.remove(rng.sample(KEYS, 8))

    return put


@pytest.mark.parametrize("replicas", [1, 3])
def test_readers_never_see_a_torn_recycled_or_foreign_value(cluster: RunningCluster, replicas):
    """Small capacity: eviction, removal and new values chase the readers over the blocks."""
    cache = new_cache(cluster, replicas=replicas, capacity_bytes=6_000_000)
    workers = Workers()
    workers.start(writer(workers, cache), 2)
    workers.start(reader(workers, cache), 3)
    try:
        eventually(
            lambda: (
                workers.wrong
                or (workers.hits > 3000 and workers.puts > 600 and cache.stat()["evicted"] > 100)
            ),
            200,
        )
    finally:
        workers.end()
    assert workers.wrong == []
    assert cache.stat()["used_bytes"] < 12_000_000
    cluster.run("verify", check=True)


def test_a_dead_server_makes_misses_and_nothing_else(cluster: RunningCluster):
    cache = new_cache(cluster, deadline_s=5)
    stored = [value_of(key, 50_000) for key in KEYS]
    assert cache.put(KEYS, stored).all()
    workers = Workers()
    workers.start(reader(workers, cache), 2)
    workers.start(writer(workers, cache), 1)
    try:
        eventually(lambda: workers.hits > 200)
        cluster.hold(2)
        cluster.kill(2)
        misses = workers.misses
        eventually(lambda: workers.wrong or workers.misses > misses + 50)
        hits = workers.hits
        eventually(lambda: workers.wrong or workers.hits > hits + 200)
        began_s = time.monotonic()
        there = cache.exists(KEYS)
        assert time.monotonic() - began_s < 15  # its deadline is 5
        assert 0 < there.sum() < len(KEYS)
        cluster.release(2)
        cluster.wait_healthy()
        eventually(
            lambda: workers.wrong or cache.put([b"%d" % i for i in range(50)], KEYS[:50]).all()
        )
    finally:
        workers.end()
    assert workers.wrong == []


def test_with_three_replicas_nothing_is_missed_when_one_dies(cluster: RunningCluster):
    cache = new_cache(cluster, replicas=3, deadline_s=60)
    stored = [value_of(key, 50_000) for key in KEYS]
    assert cache.put(KEYS, stored).all()
    workers = Workers()
    workers.start(reader(workers, cache), 2)
    try:
        for node in (1, 2, 3):
            hits = workers.hits
            cluster.kill(node)
            eventually(lambda hits=hits: workers.wrong or workers.hits > hits + 300)
            cluster.wait_healthy()
    finally:
        workers.end()
    assert workers.wrong == []
    assert workers.misses == 0
    assert cache.get(KEYS) == stored


def test_a_server_that_stopped_lets_a_call_wait_no_longer_than_its_deadline(
    cluster: RunningCluster,
):
    cache = new_cache(cluster, deadline_s=2)
    stored = [value_of(key, 1000) for key in KEYS]
    eventually(lambda: cache.put(KEYS, stored).all())
    gone = on_node(cluster, cache, 2)
    assert 0 < gone.sum() < len(KEYS)
    pid = pid_in(cluster.local.node_directory(2))
    os.kill(pid, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        there = cache.exists(KEYS)
        assert time.monotonic() - began_s < 30  # a loaded machine; it does not hang
        assert not there[gone].any()
        # It is not waited for again: the next calls answer for the others at once.
        eventually(lambda: (cache.exists(KEYS) == ~gone).all())
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: cache.exists(KEYS).all())


def on_node(cluster: RunningCluster, cache: KVCache, node: int) -> NDArray[np.bool_]:
    """Which of KEYS are in a chain of one replica that is on this node."""
    chains = [c.chain for c in cluster.status().chains if [r.node for r in c.replicas] == [node]]
    return np.isin(cache._items(KEYS)["chain"], chains)


def test_without_a_metaserver_calls_go_on(patient: RunningCluster):
    cache = new_cache(patient)
    assert cache.put(KEYS, [b"v"] * len(KEYS)).all()
    pid = pid_in(patient.local.files.metaserver)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert cache.match(KEYS) == len(KEYS)
        assert cache.put([b"another"], [b"v"]).all()
    finally:
        os.kill(pid, signal.SIGCONT)


def test_the_order_of_use_outlives_a_restart(cluster: RunningCluster):
    cache = new_cache(cluster)
    keys = [b"%d" % i for i in range(120)]
    assert cache.put(keys, [bytes(20_000)] * 120).all()
    assert all(cache.get(keys[:30]))
    for node in (1, 2, 3):
        cluster.local.stop_node(node)
        cluster.release(node)
    cluster.wait_healthy()
    eventually(lambda: cache.exists(keys).all())
    name = cache.namespace.name
    cluster.run("kv", "set", name, "--capacity", "1500KB", check=True)
    eventually(lambda: cache.stat()["used_bytes"] <= 1_500_000)
    there = cache.exists(keys)
    assert there[:30].all()
    assert not there[30:50].all()
