"""Writes that travel while the writer goes on: order, memory, and failures told once."""

from __future__ import annotations

import random

import pytest
from fake_cluster import CHUNK_BYTES, fake_cluster, wait_until

from fs3 import dataplane
from fs3.client import write_behind
from fs3.client.open_inodes import OpenInode
from fs3.errors import Code, Fs3Error

BATCH = 4 * CHUNK_BYTES


@pytest.fixture
def no_file_upkeep(monkeypatch):
    """Nothing leaves, and nobody waits for what is under way, for the reason that time goes by."""
    monkeypatch.setattr(OpenInode, "upkeep", lambda *_: None)


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setattr(write_behind, "FILE_DIRTY_BYTES", BATCH)
    with fake_cluster() as made:
        yield made


def hold(cluster) -> list:
    """Keep every answer of the storageservers back from now on."""
    held = []
    for node in cluster.nodes.values():
        node.held = held
    return held


def release(cluster, held) -> None:
    """Give the answers kept back, and keep no more."""

    def answer() -> None:
        for node in cluster.nodes.values():
            node.held = None
        for one in held:
            one()

    cluster.in_reactor(answer)


def write_all(file, content: bytes, step: int = CHUNK_BYTES // 2) -> None:
    for at in range(0, len(content), step):
        file.write(content[at : at + step])


def dirty_bytes(client) -> int:
    return client.context.files.buffers._dirty_bytes


@pytest.mark.usefixtures("no_file_upkeep")
def test_full_batches_leave_and_the_writer_does_not_wait_for_the_answers(cluster):
    client = cluster.client()
    content = random.Random(1).randbytes(write_behind.BATCHES_UNDER_WAY * BATCH + CHUNK_BYTES)
    held = hold(cluster)
    file = client.open_file("/f", "wb")
    write_all(file, content)  # no answer has come: who waited for one would wait for ever
    wait_until(lambda: len(held) >= 2)
    assert dirty_bytes(client) == len(content)
    release(cluster, held)
    file.close()
    assert client.read("/f") == content
    assert dirty_bytes(client) == 0


def test_what_is_under_way_is_read_back_only_when_it_is_there(cluster):
    client = cluster.client()
    content = random.Random(2).randbytes(10 * BATCH + 777)
    with client.open_file("/f", "wb+") as file:
        write_all(file, content, 10_000)
        for at in (0, 3 * BATCH - 100, len(content) - 300, 9 * BATCH):
            assert file.pread(300, at) == content[at : at + 300]
    assert client.read("/f") == content


@pytest.mark.usefixtures("no_file_upkeep")
def test_a_chunk_written_again_while_it_is_under_way_ends_as_written_last(cluster):
    client = cluster.client()
    file = client.open_file("/f", "wb")
    for turn in range(20):
        file.seek(0)
        write_all(file, bytes([turn]) * BATCH)
    file.close()
    assert client.read("/f") == bytes([19]) * BATCH
    versions = [count for (_, offset, _), count in cluster.applied.items() if offset == 0]
    assert min(versions) == 20


@pytest.fixture
def waits(cluster, monkeypatch, no_file_upkeep):
    """What the cluster had seen, as (writes, changes of attributes), at each wait for a batch.

    Until then no batch is answered.
    """
    held, seen = hold(cluster), []
    original = write_behind.WriteBehind._end_oldest

    def end_oldest(self):
        seen.append(
            (cluster.requests(dataplane.WRITE_BATCH), cluster.metadata_calls["set_attributes"])
        )
        release(cluster, held)
        return original(self)

    monkeypatch.setattr(write_behind.WriteBehind, "_end_oldest", end_oldest)
    return seen


def begin(cluster, client):
    """A file with one batch under way, and how many requests that is."""
    file = client.open_file("/f", "wb+")
    write_all(file, bytes(BATCH))
    sent = file.handle.opened._behind._under_way[0].transfer.batch._next_number
    wait_until(lambda: cluster.requests(dataplane.WRITE_BATCH) == sent)
    return file, sent


def test_a_batch_waits_for_one_that_touches_the_same_chunk(cluster, waits):
    client = cluster.client()
    file, sent = begin(cluster, client)
    file.seek(CHUNK_BYTES)
    write_all(file, b"x" * BATCH)
    assert waits == [(sent, 0)]  # before anything more was sent
    file.close()
    assert client.read("/f") == bytes(CHUNK_BYTES) + b"x" * BATCH


def test_a_read_waits_for_what_is_under_way_in_its_chunk(cluster, waits):
    file, sent = begin(cluster, cluster.client())
    assert file.pread(10, CHUNK_BYTES) == bytes(10)
    assert waits == [(sent, 0)]
    file.close()


@pytest.mark.parametrize("length", [0, 100])
def test_a_cut_waits_for_what_is_under_way(cluster, waits, length):
    file, sent = begin(cluster, cluster.client())
    file.truncate(length)
    assert waits[0] == (sent, 0)  # before the metaserver was asked to cut
    file.close()


def test_bytes_lost_on_the_way_are_told_once_at_fsync_and_not_again_at_close(cluster):
    client = cluster.client()
    file = client.open_file("/f", "wb")
    for node in cluster.nodes.values():
        node.refuse = [Code.NO_SPACE] * 1000
    write_all(file, bytes(BATCH))  # begun, and nobody has waited for it
    with pytest.raises(Fs3Error) as raised:
        file.fsync()
    assert raised.value.code is Code.NO_SPACE
    for node in cluster.nodes.values():
        cluster.in_reactor(node.refuse.clear)
    file.fsync()
    file.close()
    assert dirty_bytes(client) == 0


def test_bytes_lost_on_the_way_are_told_by_close_if_nobody_asked_before(cluster):
    client = cluster.client()
    file = client.open_file("/f", "wb")
    for node in cluster.nodes.values():
        node.refuse = [Code.NO_SPACE] * 1000
    write_all(file, bytes(BATCH))
    with pytest.raises(Fs3Error) as raised:
        file.close()
    assert raised.value.code is Code.NO_SPACE


def test_every_handle_is_told_of_bytes_lost_on_the_way(cluster):
    client = cluster.client()
    first, second = (client.open_file("/f", mode) for mode in ("wb", "rb+"))
    for node in cluster.nodes.values():
        node.refuse = [Code.NO_SPACE] * 1000
    write_all(first, bytes(BATCH))
    for file in (first, second):
        with pytest.raises(Fs3Error):
            file.flush()
        file.flush()
        file.close()


def test_a_file_that_is_emptied_waits_for_what_is_under_way(cluster):
    client = cluster.client()
    file = client.open_file("/f", "wb")
    write_all(file, b"x" * (2 * BATCH + 100))
    file.truncate(0)
    file.seek(0)
    file.write(b"short")
    file.close()
    assert client.read("/f") == b"short"
    client.truncate("/f", BATCH)
    assert client.read("/f") == b"short" + bytes(BATCH - 5)


def test_what_is_under_way_ends_by_itself(cluster):
    client = cluster.client()
    file = client.open_file("/f", "wb")
    write_all(file, bytes(BATCH))
    wait_until(lambda: dirty_bytes(client) == 0)
    assert cluster.requests(dataplane.WRITE_BATCH)
    file.close()
