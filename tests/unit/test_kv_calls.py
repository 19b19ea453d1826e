"""Calls of the KV cache that end early or late: deadlines, and memory after the call."""

from __future__ import annotations

import dataclasses

import pytest
from fake_cluster import fake_cluster, wait_until

from fs3 import dataplane
from fs3.client import kvcache, kvdata
from fs3.client.channels import UpdateChannels
from fs3.client.kvcache import KVCache
from fs3.core import kv
from fs3.core.types import ChainId

KEY, VALUE = b"the key", b"v" * 20_000


@pytest.fixture
def cluster():
    with fake_cluster() as made:
        yield made


def cache_of(cluster, replicas: int, deadline_s: float) -> KVCache:
    """A cache whose only value is on every node."""
    namespace = kv.KvNamespace(
        namespace=kv.NAMESPACE_FIRST,
        name="values",
        table=1,
        chains=(ChainId(1),),
        replicas=replicas,
    )
    client = cluster.client()
    routing = client.context.routing
    routing.get()
    known = routing._routing
    routing._routing = dataclasses.replace(known, namespaces={namespace.namespace: namespace})
    chunk = bytes(kv.slots_and_chains(namespace, [KEY])[0][0])
    for node in cluster.nodes.values():
        node.chunks[chunk] = bytearray(kv.header(KEY, len(VALUE)) + VALUE)
    return KVCache(client, "values", deadline_s=deadline_s)


def test_memory_of_an_interrupted_get_is_left_alone(cluster, monkeypatch):
    cache = cache_of(cluster, 3, 600.0)
    links = cache._data._links()
    for node in cluster.nodes.values():
        node.held = []
    wait = links.wait

    def interrupted(timeout_s):
        while not any(node.held for node in cluster.nodes.values()):
            wait(0)
        raise KeyboardInterrupt

    monkeypatch.setattr(links, "wait", interrupted)
    page = bytearray(len(VALUE))
    with pytest.raises(KeyboardInterrupt):
        cache.get_into([KEY], [page])
    monkeypatch.undo()
    for number in cluster.nodes:
        cluster.release(number)
    assert page == bytes(len(VALUE))
    for _ in range(3 * len(cluster.nodes)):  # each node is asked, and what it sent before is here
        assert cache.get([KEY]) == [VALUE]
    assert page == bytes(len(VALUE))


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_single_key_is_waited_for_no_longer_than_the_deadline(cluster, monkeypatch, replicas):
    cache = cache_of(cluster, replicas, 600.0)
    for _ in cluster.nodes:  # connected to each: what follows leaves at once
        assert cache.get([KEY]) == [VALUE]
    before, cache._deadline_ms = cluster.requests(dataplane.READ_BATCH), 300
    for node in cluster.nodes.values():
        node.stalled = True
    begun, more = [], []
    first, batch = cache._data._try_one, kvdata.Batch

    def try_one(job, limits):
        begun.append(kvdata._now_ms())
        return first(job, limits)

    def recorded(*arguments):
        more.append((arguments[3], arguments[4].deadline_ms))
        return batch(*arguments)

    monkeypatch.setattr(cache._data, "_try_one", try_one)
    monkeypatch.setattr(kvdata, "Batch", recorded)
    assert cache.get_into([KEY], [bytearray(len(VALUE))]).tolist() == [-1]
    wait_until(lambda: cluster.requests(dataplane.READ_BATCH) > before)
    ((now_ms, left_ms),) = more
    assert left_ms <= max(begun[0] + 300 - now_ms, 0)


def test_a_longer_value_than_expected_is_fetched_within_the_same_deadline(cluster, monkeypatch):
    cache = cache_of(cluster, 3, 600.0)
    cache._size_hint = 100
    calls = []
    run = cache._data.run

    def recorded(job, limits):
        calls.append(limits.deadline_ms)
        begun_ms, codes = kvdata._now_ms(), run(job, limits)
        while kvdata._now_ms() - begun_ms < 2:  # it takes some time
            pass
        return codes

    monkeypatch.setattr(cache._data, "run", recorded)
    assert cache.get([KEY]) == [VALUE]
    whole_ms, left_ms = calls
    assert left_ms < whole_ms == 600_000


def test_a_removal_that_waits_for_others_ends_at_the_same_deadline(cluster, monkeypatch):
    cache = cache_of(cluster, 3, 600.0)
    waited, calls = [], []
    take, run = cache._channels.take, cache._data.run

    def slow_take(count, timeout_s):
        waited.append(kvdata._now_ms())
        while kvdata._now_ms() - waited[0] < 2:
            pass
        return take(count, timeout_s)

    def recorded(job, limits):
        calls.append(limits.deadline_ms)
        return run(job, limits)

    monkeypatch.setattr(cache._channels, "take", slow_take)
    monkeypatch.setattr(cache._data, "run", recorded)
    assert cache.remove([KEY]).tolist() == [True]
    (left_ms,) = calls
    assert left_ms < 600_000


def test_threads_of_a_forked_child_never_mix_their_channels(cluster, monkeypatch):
    cache = cache_of(cluster, 3, 600.0)
    cache._pid = -1  # as in a child
    take, give = UpdateChannels.take, UpdateChannels.give
    made, taken, given, sent = kvcache.Updates, [], [], []

    def overtaken(channels, count, timeout_s):
        taken.append(channels)
        cache._channels = UpdateChannels()  # as another thread, which saw the same
        return take(channels, count, timeout_s)

    def recorded(channels, numbers):
        given.append(channels)
        give(channels, numbers)

    def updates(items, bodies, client):
        sent.append(client)
        return made(items, bodies, client)

    monkeypatch.setattr(UpdateChannels, "take", overtaken)
    monkeypatch.setattr(UpdateChannels, "give", recorded)
    monkeypatch.setattr(kvcache, "Updates", updates)
    assert cache.remove([KEY]).tolist() == [True]
    assert given == taken
    assert sent == [taken[0].client]
