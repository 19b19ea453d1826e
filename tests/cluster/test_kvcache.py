"""The KV cache on real daemons: what it stores, finds, keeps and lets go of."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat

import numpy as np
import pytest
from kv_cluster import eventually, kv_cluster, new_cache, new_namespace
from running_cluster import RunningCluster

import fs3
from fs3 import dataplane
from fs3.client import kvcache
from fs3.client.kv_administration import node_stats
from fs3.client.kvdata import Links
from fs3.client.routing import RoutingCache
from fs3.errors import Code, Fs3Error
from fs3.transport.client import DataConnection

pytestmark = pytest.mark.cluster

KEYS = [b"key %d" % i for i in range(200)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with kv_cluster(tmp_path_factory.mktemp("kv") / "data") as running:
        yield running


@pytest.fixture(params=[1, 3], ids=["one-replica", "three-replicas"])
def cache(cluster: RunningCluster, request: pytest.FixtureRequest):
    made = new_cache(cluster, replicas=request.param)
    yield made
    made.close()


def values(seed: int, keys: list[bytes] = KEYS, length_max: int = 100_000) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(rng.randint(1, length_max)) for _ in keys]


def test_what_is_put_is_found_whole(cache):
    stored = values(1)
    assert not cache.exists(KEYS).any()
    assert cache.put(KEYS, stored).all()
    assert cache.exists(KEYS).all()
    assert cache.get(KEYS) == stored
    buffers = [np.zeros(100_000, np.uint8) for _ in KEYS]
    assert cache.get_into(KEYS, buffers).tolist() == [len(value) for value in stored]
    for buffer, value in zip(buffers, stored, strict=True):
        assert buffer[: len(value)].tobytes() == value
        assert not buffer[len(value) :].any()


def test_match_is_the_longest_prefix_that_is_there(cache):
    assert cache.match(KEYS) == 0
    cache.put(KEYS[:50], [b"v"] * 50)
    cache.put(KEYS[60:70], [b"v"] * 10)
    assert cache.match(KEYS) == 50
    assert cache.match(KEYS[60:70]) == 10
    assert cache.match([]) == 0


def test_the_first_to_put_wins(cache):
    assert cache.put(KEYS[:2], [b"first", b"first"]).all()
    assert cache.put(KEYS[:3], [b"second"] * 3).all()
    assert cache.get(KEYS[:3]) == [b"first", b"first", b"second"]
    assert cache.put([KEYS[5], KEYS[5]], [b"a", b"b"]).all()
    assert cache.get([KEYS[5]]) in ([b"a"], [b"b"])


def test_many_who_put_the_same_keys_agree_on_one_value(cluster, cache):
    with ThreadPoolExecutor(4) as pool:
        mine = [values(seed) for seed in range(4)]
        done = list(pool.map(lambda v: cache.put(KEYS, v).all(), mine))
    assert all(done)
    for index, value in enumerate(cache.get(KEYS)):
        assert value in [v[index] for v in mine]
    again = cache.get(KEYS)
    assert again == cache.get(KEYS)


def test_removed_keys_can_be_put_anew(cache):
    cache.put(KEYS, values(1))
    assert cache.remove(KEYS[:100]).all()
    assert cache.remove(KEYS[:100]).all()
    assert cache.exists(KEYS).tolist() == [False] * 100 + [True] * 100
    assert cache.get(KEYS[:2]) == [None, None]
    assert cache.put(KEYS[:1], [b"new"]).all()
    assert cache.get(KEYS[:1]) == [b"new"]


def test_clearing_removes_everything_of_one_namespace_alone(cluster, cache):
    other = new_cache(cluster)
    other.put(KEYS, values(3))
    cache.put(KEYS, values(2))
    assert cache.clear() == len(KEYS)
    assert cache.clear() == 0
    assert not cache.exists(KEYS).any()
    assert other.exists(KEYS).all()
    assert cache.stat()["values"] == 0


def test_a_value_is_scattered_over_parts_and_gathered_from_parts(cache):
    k = np.arange(6000, dtype=np.float32)
    v = np.arange(3000, dtype=np.int16).reshape(10, 300)
    assert cache.put_from([b"page"], [[k, v, b"tail"]]).all()
    k2, v2, tail = np.zeros_like(k), np.zeros_like(v), bytearray(4)
    assert cache.get_into([b"page"], [[k2, v2, tail]]).tolist() == [24000 + 6000 + 4]
    assert (k2 == k).all()
    assert (v2 == v).all()
    assert tail == b"tail"


class Tensor:
    """What is used of a torch tensor, over numpy memory: nothing here needs torch itself."""

    class Device:
        type = "cpu"

    device = Device()

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def is_contiguous(self) -> bool:
        return self._array.flags.c_contiguous

    def stride(self) -> tuple[int, ...]:
        return self._array.strides

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def numel(self) -> int:
        return self._array.size

    def element_size(self) -> int:
        return self._array.itemsize


def test_tensors_are_read_and_filled_in_place(cache):
    source, target = np.random.default_rng(1).random(5000), np.zeros(5000)
    assert cache.put_from([b"t"], [Tensor(source)]).all()
    assert cache.get_into([b"t"], [Tensor(target)]).tolist() == [40_000]
    assert (source == target).all()
    with pytest.raises(Fs3Error, match="contiguous"):
        cache.get_into([b"t"], [Tensor(np.zeros((10, 10))[:, ::2])])


def test_a_buffer_that_is_too_small_is_a_miss(cache):
    cache.put([b"long", b"short"], [bytes(1000), b"s"])
    assert cache.get_into([b"long", b"short"], [bytearray(999), bytearray(9)]).tolist() == [-1, 1]


@pytest.mark.parametrize("length", [1, 16_368, 16_384, 65_536, (4 << 20) + 1, 64 << 20])
def test_values_of_any_size(cluster, length):
    cache = new_cache(cluster, deadline_s=60)
    value = np.random.default_rng(length).integers(0, 256, length, np.uint8)
    assert cache.put_from([b"", b"k"], [value, value]).all()
    got = np.zeros(length, np.uint8)
    assert cache.get_into([b""], [got]).tolist() == [length]
    assert (got == value).all()
    cache.clear()


def test_misuse_is_said_in_words(cluster, cache):
    with pytest.raises(Fs3Error, match="fs3 kv create nowhere"):
        fs3.KVCache(cluster.client(), "nowhere")
    for wrong in (
        lambda: cache.get_into([b"k"], [b"read-only"]),
        lambda: cache.get_into([b"k"], []),
        lambda: cache.put_from([b"k"], [3]),
        lambda: cache.exists([bytes(5000)]),
        lambda: cache.get_into([b"k"], [np.zeros((4, 4))[:, :2]]),
    ):
        with pytest.raises(Fs3Error) as failure:
            wrong()
        assert failure.value.code is Code.INVALID


def test_a_value_longer_than_the_namespace_allows_is_not_stored(cluster):
    cache = new_cache(cluster, value_bytes_max=1000)
    assert cache.put([b"a", b"b"], [bytes(1001), bytes(1000)]).tolist() == [False, True]
    assert cache.exists([b"a", b"b"]).tolist() == [False, True]


def test_a_key_whose_digest_is_that_of_another_is_a_miss(cluster, monkeypatch):
    cache = new_cache(cluster)
    cache.put([b"mine"], [b"value"])
    places = cache._places
    monkeypatch.setattr(cache, "_places", lambda keys: places([b"mine"] * len(keys)))
    assert cache.get([b"yours", b"mine"]) == [None, b"value"]


def test_any_batch_is_one_round_trip_to_each_storageserver_and_none_to_a_metaserver(
    cluster, cache, monkeypatch
):
    keys = [b"page %d" % i for i in range(2000)]
    asked: Counter[int] = Counter()
    fetches: list[object] = []
    send, fetch = Links.send, RoutingCache._fetch

    def counting(self, node, *rest):
        asked[node.node] += 1
        return send(self, node, *rest)

    def fetching(self):
        fetches.append(self)
        return fetch(self)

    monkeypatch.setattr(Links, "send", counting)
    monkeypatch.setattr(RoutingCache, "_fetch", fetching)
    # Who waits for a second looks, beside, whether routing has changed: not in this test.
    monkeypatch.setattr(kvcache, "Limits", partial(kvcache.Limits, look_ms=600_000))
    buffers = [bytearray(100) for _ in keys]
    calls = {
        "put_from": lambda: cache.put_from(keys, [b"v" * 100] * 2000).all(),
        "exists": lambda: cache.exists(keys).all(),
        "match": lambda: cache.match(keys) == 2000,
        "get_into": lambda: (cache.get_into(keys, buffers) == 100).all(),
        "pin": lambda: cache.pin(keys).all(),
        "remove": lambda: cache.remove(keys).all(),
    }
    for _ in range(20):
        before = chain_versions(cluster)
        fetches.clear()
        most: dict[str, Counter[int]] = {}
        for name, call in calls.items():
            asked.clear()
            assert call(), name
            most[name] = asked.copy()
        # On a busy machine a server may be late with its lease: then chains change, and it counts
        # as a failure that is worked around.
        if chain_versions(cluster) == before:
            break
    assert {name: set(found.values()) for name, found in most.items()} == {n: {1} for n in calls}
    assert fetches == []


def chain_versions(cluster: RunningCluster) -> dict[int, int]:
    with cluster.local.administration() as calls:
        return {int(c.chain): c.version for c in calls.routing().chains.values()}


def test_only_creating_and_removing_change_a_value(cluster, cache):
    cache.put([b"k"], [b"value"])
    items = cache._items([b"k"])
    items["length"] = 5
    with pytest.raises(Fs3Error, match="WRITE of a KV value"):
        cluster.client().context.data.write_pieces(items, [memoryview(b"other")])
    assert cache.get([b"k"]) == [b"value"]


def test_a_dropped_namespace_takes_nothing_and_gives_its_space_back(cluster):
    cache = new_cache(cluster)
    cache.put(KEYS, values(4))
    name = cache.namespace.name
    assert cluster.run("kv", "drop", name).returncode == 1
    cluster.run("kv", "drop", name, "--force", check=True)
    eventually(lambda: not cache.exists(KEYS).any())
    assert not cache.put([b"k"], [b"v"]).any()
    with pytest.raises(Fs3Error, match="no KV namespace"):
        fs3.KVCache(cluster.client(), name)
    again = new_cache(cluster)
    assert again.namespace.namespace > cache.namespace.namespace


def test_values_age_by_their_ttl(cluster):
    cache = new_cache(cluster, ttl_s=1)
    cache.put(KEYS, values(5))
    eventually(lambda: cache.stat()["expired"] == len(KEYS))
    assert not cache.exists(KEYS).any()


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_full_namespace_lets_the_longest_unused_go_and_keeps_the_pinned(cluster, replicas):
    capacity = 6_000_000
    cache = new_cache(cluster, replicas=replicas, capacity_bytes=capacity)
    keys = [b"%d" % i for i in range(400)]
    # A head does not see at once what its other replicas read.
    pinned, used = keys[:10], keys[10:30] if replicas == 1 else []
    cache.put(keys[:100], [bytes(40_000)] * 100)
    assert cache.pin(pinned, 600).all()
    for start in range(100, 400, 20):
        cache.put(keys[start : start + 20], [bytes(40_000)] * 20)
        assert all(cache.get(used))
        eventually(lambda: cache.stat()["used_bytes"] <= capacity)
    there = cache.exists(keys)
    assert there[: 10 + len(used)].all()
    assert not there[40:80].any()
    assert there[390:].all()
    found = cache.stat()
    assert found["evicted"] >= 400 - capacity // 40_000
    assert (found["pinned"], found["values"]) == (10, there.sum())
    cache.unpin(pinned)
    assert cache.stat()["pinned"] == 0


def test_a_value_that_is_read_at_the_tail_only_outlives_those_that_nobody_reads(
    cluster, monkeypatch
):
    cache = new_cache(cluster, replicas=3, capacity_bytes=150 * 40_000)
    cache.use_transports(["tcp"])
    keys = [b"%d" % i for i in range(210)]
    cache.put(keys[:140], [bytes(40_000)] * 140)
    monkeypatch.setattr(cache._data, "_turns", repeat(2))  # of three replicas, head first
    used = keys[:10]

    def known() -> int:
        rows = node_stats(cache._context.routing.get(), cache._context.cluster_id, cache.namespace)
        return sum(row.heard + row.hits for row in rows if row.head)

    def all_are_told() -> bool:
        """What is told while a link is not up is lost: then they are read again."""
        before, until_s = known(), time.monotonic() + 5
        assert all(cache.get([key])[0] for key in used)
        while known() < before + len(used) and time.monotonic() < until_s:
            time.sleep(0.05)
        return known() >= before + len(used)

    eventually(all_are_told)
    monkeypatch.undo()
    cache.put(keys[140:], [bytes(40_000)] * 70)
    eventually(lambda: cache.stat()["used_bytes"] <= 150 * 40_000)
    there = cache.exists(keys)
    assert there[:10].all()
    assert cache.stat()["evicted"] == 210 - there.sum() >= 60
    assert not there[10:40].any()
    assert cache.stat()["heard"] > 0


def test_limits_can_be_changed_while_it_is_used(cluster):
    cache = new_cache(cluster)
    cache.put(KEYS, [bytes(10_000)] * len(KEYS))
    name = cache.namespace.name
    cluster.run("kv", "set", name, "--capacity", "300KiB", "--value-max", "2000", check=True)
    eventually(lambda: cache.stat()["used_bytes"] <= 300 << 10)
    assert cache.stat()["values"] > 10
    listed = cluster.run("kv", "list", check=True).stdout
    assert name in listed
    assert "300.0 KiB" in listed


def test_counts_say_what_happened(cluster):
    cache = new_cache(cluster)
    cache.put(KEYS[:10], [b"v"] * 10)
    cache.get_into(KEYS[:15], [bytearray(1) for _ in range(15)])
    cache.exists(KEYS[:30])
    found = cache.stat()
    expected = {"hits": 10, "misses": 5, "stored": 10, "values": 10, "found": 10, "not_found": 20}
    assert {name: found[name] for name in expected} == expected
    shown = cluster.run("kv", "stat", cache.namespace.name, check=True).stdout
    assert "66.7 % of 15 reads hit" in shown


def test_values_that_are_read_again_here_are_not_asked_for_and_still_counted(cluster, monkeypatch):
    cache = new_cache(cluster)
    cache.use_transports(["local", "tcp"])
    values = [bytes([i]) * 50_000 for i in range(20)]
    assert cache.put(KEYS[:20], values).all()
    rooms = [bytearray(50_000) for _ in range(20)]
    assert (cache.get_into(KEYS[:20], rooms) == 50_000).all()
    sent = []
    send = DataConnection.send

    def note(self, method, request_id, head, body_parts=()):
        sent.append(method)
        send(self, method, request_id, head, body_parts)

    monkeypatch.setattr(DataConnection, "send", note)
    for _ in range(10):
        rooms = [bytearray(50_000) for _ in range(20)]
        assert (cache.get_into(KEYS[:20], rooms) == 50_000).all()
        assert rooms == values
        assert (cache.get_into(KEYS[:1], rooms[:1]) == 50_000).all()
    assert set(sent) <= {dataplane.USED}
    assert cache.remove(KEYS[:20]).all()  # what is sent next says it first
    assert (cache.get_into(KEYS[:20], rooms) == -1).all()
    found = cache.stat()
    assert (found["hits"], found["misses"]) == (20 + 10 * 21, 20)
    assert found["read_bytes"] >= found["hits"] * 50_000


def test_namespaces_are_refused_in_words(cluster):
    name = new_namespace(cluster)
    for arguments, reason in (
        (["kv", "create", name], "already"),
        (["kv", "create", "x", "--replicas", "2"], "no chain table whose chains have 2 replicas"),
        (["kv", "create", "x", "--value-max", "1GiB"], "are allowed"),
        (["kv", "create", ""], "printable"),
        (["kv", "stat", "nowhere"], "no KV namespace"),
        (["kv", "set", "nowhere", "--ttl", "3"], "no KV namespace"),
        (["kv", "set", name], "nothing to set"),
    ):
        done = cluster.run(*arguments)
        assert done.returncode == 1, arguments
        assert reason in done.stderr, (arguments, done.stderr)


def test_coroutines_do_the_same(cluster):
    name = new_namespace(cluster)

    async def use() -> None:
        async with fs3.AsyncKVCache(cluster.dir, name, deadline_s=20) as cache:
            stored = values(7)
            puts = (cache.put(KEYS[i::4], stored[i::4]) for i in range(4))
            assert all(done.all() for done in await asyncio.gather(*puts))
            assert await cache.match(KEYS) == len(KEYS)
            assert await cache.get(KEYS) == stored
            buffer = bytearray(100_000)
            assert (await cache.get_into(KEYS[:1], [buffer])).tolist() == [len(stored[0])]
            assert (await cache.remove(KEYS[:1])).all()
            assert (await cache.exists(KEYS[:2])).tolist() == [False, True]
            assert (await cache.stat())["values"] == len(KEYS) - 1

    asyncio.run(use())


def test_a_forked_child_uses_connections_of_its_own(cluster):
    cache = new_cache(cluster)
    cache.put([b"parent"], [b"p"])
    child = os.fork()
    if child == 0:
        good = cache.get([b"parent"]) == [b"p"] and cache.put([b"child"], [b"c"]).all()
        os._exit(0 if good else 1)
    for _ in range(50):
        assert cache.get([b"parent"]) == [b"p"]
    assert os.waitpid(child, 0)[1] == 0
    assert cache.get([b"child"]) == [b"c"]


def test_threads_share_a_cache(cluster):
    cache = new_cache(cluster)
    failures: list[str] = []

    def work(number: int) -> None:
        keys = [b"%d/%d" % (number, i) for i in range(50)]
        stored = values(number, keys, 5000)
        if not cache.put(keys, stored).all() or cache.get(keys) != stored:
            failures.append(f"thread {number}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_items_beyond_one_request_go_in_several(cluster):
    cache = new_cache(cluster)
    keys = [b"%d" % i for i in range(dataplane.BATCH_ITEMS_MAX + 500)]
    assert cache.put(keys, [b"v"] * len(keys)).all()
    assert cache.match(keys) == len(keys)
