"""Batches of chunk reads and writes against servers that die, lose answers and lie."""

from __future__ import annotations

import os
import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from fake_cluster import CHUNK_BYTES, FakeCluster, fake_cluster, wait_until

from fs3 import dataplane
from fs3.client.data import chunk_items, cut, items_of
from fs3.core.layout import Layout, pieces
from fs3.core.types import ChainId, ChainVersion, InodeId, chunk_id
from fs3.errors import Code, Fs3Error

LAYOUT = Layout(CHUNK_BYTES, 3, 1, (ChainId(1), ChainId(2), ChainId(3)))
INODE = InodeId(77)


@pytest.fixture
def cluster():
    with fake_cluster() as made:
        yield made


def random_bytes(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def write(data, offset: int, content: bytes, *, sync: bool = False) -> None:
    items = items_of(LAYOUT, INODE, offset, len(content))
    data.write_pieces(items, cut(memoryview(content), items), sync=sync)


def read(data, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xff" * length)
    items = items_of(LAYOUT, INODE, offset, length)
    data.read_pieces(items, cut(memoryview(buffer), items))
    return bytes(buffer)


def data_of(cluster: FakeCluster, **limits):
    return cluster.client(**limits).context.data


def node_of(cluster: FakeCluster, chain: int, place: int) -> int:
    return cluster.routing.chains[ChainId(chain)].replicas[place].node


# Pieces.


def test_items_of_a_range_are_the_pieces_of_the_layout():
    rng = random.Random(3)
    for _ in range(200):
        offset, length = rng.randrange(5 * CHUNK_BYTES), rng.randrange(1, 4 * CHUNK_BYTES)
        items = items_of(LAYOUT, INODE, offset, length)
        expected = [
            (p.chunk, p.chain, p.offset, p.length) for p in pieces(LAYOUT, INODE, offset, length)
        ]
        found = [
            (bytes(i["chunk"]), int(i["chain"]), int(i["offset"]), int(i["length"])) for i in items
        ]
        assert found == expected


# The plain case.


def test_what_is_written_is_read_back_across_chunks(cluster):
    data = data_of(cluster)
    content = random_bytes(5 * CHUNK_BYTES + 777)
    write(data, 12_345, content)
    assert read(data, 12_345, len(content)) == content
    for node in cluster.nodes.values():
        assert len(node.chunks) == 6


def test_holes_and_short_chunks_read_as_zeros(cluster):
    data = data_of(cluster)
    write(data, 2 * CHUNK_BYTES, b"abc")
    buffer = bytearray(b"\xff" * (3 * CHUNK_BYTES))
    items = items_of(LAYOUT, INODE, 0, len(buffer))
    found = data.read_pieces(items, cut(memoryview(buffer), items))
    assert found.tolist() == [0, 0, 3]
    assert buffer == bytes(2 * CHUNK_BYTES) + b"abc" + bytes(CHUNK_BYTES - 3)


def test_many_pieces_travel_in_few_requests(cluster):
    data = data_of(cluster)
    write(data, 0, random_bytes(6 * CHUNK_BYTES))
    rng = random.Random(5)
    count = 3000
    slots = [rng.randrange(6) for _ in range(count)]
    starts = [rng.randrange(CHUNK_BYTES - 100) for _ in range(count)]
    items = chunk_items(LAYOUT, INODE, slots, starts, [100] * count)
    before = cluster.requests(dataplane.READ_BATCH)
    data.read_pieces(items, [memoryview(bytearray(100)) for _ in range(count)])
    assert cluster.requests(dataplane.READ_BATCH) - before <= 3


def test_sync_reaches_every_replica_also_of_what_was_written_before(cluster):
    data = data_of(cluster)
    write(data, 0, b"early")
    assert not any(cluster.synced.values())
    items = items_of(LAYOUT, INODE, 0, 1)
    data.sync_chunks(items)
    assert all(synced == {chunk_id(INODE, 0)} for synced in cluster.synced.values())
    assert read(data, 0, 5) == b"early"
    write(data, CHUNK_BYTES, b"late", sync=True)
    assert all(chunk_id(INODE, 1) in synced for synced in cluster.synced.values())


# Trouble.


def test_a_new_chain_version_costs_one_refresh(cluster):
    client = cluster.client(look_ms=600_000)  # nor is newer routing looked for meanwhile
    content = random_bytes(3 * CHUNK_BYTES)
    write(client.context.data, 0, content)
    cluster.bump()
    assert read(client.context.data, 0, len(content)) == content
    assert cluster.metadata_calls["get_routing"] == 2


def test_a_dead_replica_is_read_around(cluster):
    # Who waits for the dead waits longer than a test may take.
    data = data_of(cluster, request_ms=200_000, deadline_ms=300_000)
    content = random_bytes(3 * CHUNK_BYTES)
    write(data, 0, content)
    cluster.kill(2)
    for _ in range(6):
        assert read(data, 0, len(content)) == content


def test_a_write_waits_until_the_chain_has_a_new_head(cluster):
    data = data_of(cluster)
    head = node_of(cluster, 1, 0)
    write(data, 0, b"before")
    cluster.kill(head)
    reformer = threading.Timer(0.2, cluster.reform)
    reformer.start()
    write(data, 0, b"behind")
    reformer.join()
    assert read(data, 0, 6) == b"behind"


def test_a_server_that_dies_in_the_middle_of_a_batch_loses_nothing(cluster):
    data = data_of(cluster, bytes_per_request=CHUNK_BYTES)
    content = random_bytes(30 * CHUNK_BYTES)
    victim = cluster.nodes[2]
    count = 0

    def die_at_the_third() -> None:
        nonlocal count
        count += 1
        if count == 3:
            cluster.dead.add(victim.node)
            cluster.reactor.call_soon(victim.server.close)
            cluster.reactor.call_soon(cluster.reform)

    victim.before_request = die_at_the_third
    write(data, 0, content)
    assert count >= 3
    assert read(data, 0, len(content)) == content


@pytest.mark.parametrize("lost", [1, 3])
def test_a_write_whose_answer_is_lost_is_applied_once(cluster, lost):
    data = data_of(cluster)
    cluster.nodes[node_of(cluster, 1, 0)].lose_replies = lost
    write(data, 0, b"x" * 100)
    assert cluster.applied == {(chunk_id(INODE, 0), 0, 100): 1}


def test_a_head_that_dies_after_applying_leaves_the_update_to_the_next_applied_once(cluster):
    data = data_of(cluster)
    head = cluster.nodes[node_of(cluster, 1, 0)]

    def die() -> None:
        head.stalled = True
        cluster.dead.add(head.node)
        cluster.reactor.call_soon(head.server.close)
        cluster.reactor.call_soon(cluster.reform)

    head.before_request = die
    write(data, 0, b"y" * 100)
    assert cluster.applied == {(chunk_id(INODE, 0), 0, 100): 1}
    assert read(data, 0, 100) == b"y" * 100


def test_bytes_that_rotted_on_the_way_are_read_from_another_replica(cluster):
    data = data_of(cluster)
    content = random_bytes(1000)
    write(data, 0, content)
    liars = list(cluster.nodes.values())[:2]
    for node in liars:
        node.crcs_wrong.add(chunk_id(INODE, 0))
    for _ in range(6):
        assert read(data, 0, 1000) == content
    assert all(node.requests[dataplane.READ_BATCH] for node in liars)
    wait_until(lambda: all(node.suspected for node in liars))  # who is told does not answer
    for node in cluster.nodes.values():  # each has heard of its bad bytes, and of nobody else's
        assert set(node.suspected) == ({chunk_id(INODE, 0)} if node in liars else set())


def test_bytes_that_are_bad_on_every_replica_are_an_error_never_data(cluster):
    data = data_of(cluster)
    write(data, 0, b"z" * 10)
    for node in cluster.nodes.values():
        node.crcs_wrong.add(chunk_id(INODE, 0))
    with pytest.raises(Fs3Error, match="checksum") as caught:
        read(data, 0, 10)
    assert caught.value.code is Code.CORRUPT


def test_a_replica_that_knows_its_block_is_bad_is_read_around(cluster):
    data = data_of(cluster)
    write(data, 0, b"good")
    for node in list(cluster.nodes.values())[1:]:
        node.corrupt_code.add(chunk_id(INODE, 0))
    for _ in range(4):
        assert read(data, 0, 4) == b"good"


def test_a_server_that_does_not_answer_is_left_for_another(cluster):
    data = data_of(cluster, request_ms=100)
    write(data, 0, b"alive")
    cluster.nodes[3].stalled = True
    for _ in range(4):
        assert read(data, 0, 5) == b"alive"


def test_nobody_there_is_an_error_at_the_deadline(cluster):
    data = data_of(cluster)
    read(data, 0, 1)
    for node in cluster.nodes:
        cluster.kill(node)
    data._limits = replace(data._limits, deadline_ms=300)
    started = time.monotonic()
    with pytest.raises(Fs3Error) as caught:
        read(data, 0, 10)
    assert caught.value.code is Code.UNREACHABLE
    assert time.monotonic() - started > 0.2
    with pytest.raises(Fs3Error) as caught:
        write(data, 0, b"x")
    assert caught.value.code in (Code.MAYBE_APPLIED, Code.UNREACHABLE)


def test_a_refusal_names_the_chunk_and_is_not_repeated(cluster):
    data = data_of(cluster)
    head = cluster.nodes[node_of(cluster, 2, 0)]
    head.refuse = [Code.NO_SPACE]
    with pytest.raises(OSError, match="chunk 1 of inode 77 on chain 2") as caught:
        write(data, CHUNK_BYTES, b"x")
    assert caught.value.code is Code.NO_SPACE
    assert head.requests[dataplane.WRITE_BATCH] == 1


@pytest.mark.parametrize("code", [Code.BUSY, Code.DIRTY, Code.NOT_SERVING, Code.STALE_CHAIN])
def test_passing_refusals_of_some_items_of_a_batch_are_ridden_out(cluster, code):
    data = data_of(cluster)
    content = random_bytes(6 * CHUNK_BYTES)
    for node in cluster.nodes.values():
        node.refuse = [code] * 3
    write(data, 0, content)
    for node in cluster.nodes.values():
        node.refuse = [code] * 3
    assert read(data, 0, len(content)) == content


def test_a_metaserver_that_is_away_does_not_stop_reads(cluster):
    data = data_of(cluster)
    write(data, 0, b"still")
    cluster.stop_metaserver()
    cluster.kill(1)
    assert read(data, 0, 5) == b"still"


# Many threads, and forks.


def test_threads_share_a_client(cluster):
    data = data_of(cluster)
    failures = []

    def work(number: int) -> None:
        content = random_bytes(3 * CHUNK_BYTES, number)
        offset = number * 3 * CHUNK_BYTES
        for _ in range(3):
            write(data, offset, content)
            if read(data, offset, len(content)) != content:
                failures.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not any(data._loads.outstanding.values())


def test_a_forked_child_is_another_client_with_connections_of_its_own(cluster):
    data = data_of(cluster)
    write(data, 0, b"parent")
    parent = data.client
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"failed"
        try:
            assert data.client != parent
            assert read(data, 0, 6) == b"parent"
            write(data, CHUNK_BYTES, b"child")
            answer = b"worked"
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b"worked"
    os.waitpid(child, 0)
    assert read(data, CHUNK_BYTES, 5) == b"child"
    assert read(data, 0, 6) == b"parent"


def test_update_channels_are_used_again_with_growing_sequences(cluster):
    data = data_of(cluster)
    for _ in range(5):
        write(data, 0, random_bytes(4 * CHUNK_BYTES))
    channels = cluster.nodes[1].channels
    assert {channel for _, channel in channels} == {0, 1, 2, 3}
    assert {sequence for sequence, _ in channels.values()} == {5}


def test_a_chain_version_in_the_request_is_the_one_of_the_routing(cluster):
    data = data_of(cluster)
    chains = cluster.routing.chains
    write(data, 0, b"x")
    assert chains[ChainId(1)].version == ChainVersion(1)
    items = np.array([(chunk_id(INODE, 0), 99, 0, 0, 1)], dataplane.READ_ITEM)
    short = data_of(cluster, attempts_max=3)
    with pytest.raises(Fs3Error) as caught:
        short.read_pieces(items, [memoryview(bytearray(1))])
    assert caught.value.code is Code.NOT_SERVING
