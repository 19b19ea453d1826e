"""Clients that read a storageserver's files by themselves: real stores, real unix sockets."""

from __future__ import annotations

import gc
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_port_rig import LONG_MS, PATTERN, Port, Reader, before_reading, damage, fill
from storage_cluster import CLUSTER, WAIT_S, StorageCluster

from fs3 import dataplane
from fs3.core.chunks import UpdateKind
from fs3.core.types import PublicState, chunk_id
from fs3.errors import Code, Fs3Error
from fs3.storageserver import localport
from fs3.storageserver.chunkstore.records import SIZE_CLASSES
from fs3.transport.client import drive
from fs3.transport.local import LocalConnection

S, OFF = PublicState.SERVING, PublicState.OFFLINE


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[StorageCluster]:
    with StorageCluster(tmp_path, 2) as made:
        made.set_chain((1, S), (2, S))
        yield made


@pytest.fixture
def port(cluster: StorageCluster) -> Iterator[Port]:
    made = Port(cluster)
    yield made
    made.close()


@pytest.fixture
def reader(port: Port) -> Iterator[Reader]:
    made = Reader(port)
    yield made
    made.connection.close()


# What is read.


def test_random_pieces_are_what_a_read_over_the_network_brings(cluster, reader):
    rng = random.Random(7)
    sizes = [1, 16_384, 50_000, 65_536, 70_001, 1 << 20]
    for slot, size in enumerate(sizes):
        cluster.write(slot, PATTERN[:size])
    for _ in range(30):
        pieces = []
        for _ in range(rng.randrange(1, 40)):
            slot = rng.randrange(len(sizes) + 1)
            pieces.append((slot, rng.randrange(1 << 20), rng.choice([0, 1, 4096, 16_384, 200_000])))
        found = reader.read(*pieces)
        assert reader.verified
        results, expected = cluster.read(pieces, 1)
        wanted = [
            data if code == Code.OK else Code(code)
            for code, data in zip(results["code"].tolist(), expected, strict=True)
        ]
        assert found == wanted


def test_neighbouring_pieces_in_any_order_are_each_right(cluster, reader):
    cluster.write(0, PATTERN[:300_000])
    pieces = [(0, start, 4096) for start in range(0, 290_000, 4096)]
    pieces += [(0, start, 16_384) for start in range(0, 260_000, 16_384)]
    random.Random(2).shuffle(pieces[:40])
    assert reader.read(*pieces) == [PATTERN[start : start + n] for _, start, n in pieces]


def test_more_neighbours_than_one_system_call_takes_are_read(cluster, reader):
    for slot in range(3):
        cluster.write(slot, PATTERN[:65_536])
    pieces = [(slot, block * 16_384, 16_384) for slot in range(3) for block in range(4)] * 200
    assert reader.read(*pieces) == [PATTERN[start : start + n] for _, start, n in pieces]


def test_an_empty_request_is_answered(reader):
    assert reader.read() == []


def test_a_stale_chain_and_a_node_that_does_not_serve_are_told_as_ever(cluster, reader):
    cluster.write(0, b"x")
    assert reader.read((0, 0, 1), version=77) == [Code.STALE_CHAIN]
    assert "is at version 1" in reader.details[0]
    cluster.set_chain((2, S), (1, OFF))
    assert reader.read((0, 0, 1)) == [Code.NOT_SERVING]


def test_too_large_a_batch_is_refused_in_words(reader):
    reader.send(*[(0, 0, 64 << 20)] * 2)
    assert reader.finish().error.code is Code.TOO_LARGE


def test_writes_and_suspicions_travel_on_the_same_connection(cluster, port):
    connection = LocalConnection(port.port.address, CLUSTER, lambda number, head: [])
    item = np.zeros(1, dataplane.READ_ITEM)
    connection.send(dataplane.SUSPECT, 5, item.tobytes())
    (done,) = drive([connection], time.monotonic() + WAIT_S)
    assert (done.request_id, done.error) == (5, None)
    connection.close()


def test_bytes_are_scattered_over_as_many_parts_as_the_reader_has(cluster, reader, monkeypatch):
    cluster.write(0, PATTERN[:60_000])
    cluster.write(1, PATTERN[:100])
    place = reader.place

    def scattered(number: int, head: bytes) -> list[memoryview]:
        found = []
        for part in place(number, head):
            found += [part[:7], part[7:7], part[7:]]
        return found

    monkeypatch.setattr(reader.connection, "_place", scattered)
    for _ in range(2):
        found = reader.read((0, 5, 50_000), (2, 0, 9), (1, 0, 100), (0, 16_384, 16_384))
        assert found[1] == Code.NO_CHUNK
        expected = [PATTERN[5:50_005], PATTERN[:100], PATTERN[16_384:32_768]]
        assert [found[0], *found[2:]] == expected
        monkeypatch.setattr(reader.port.port._grants, "room", lambda _: False)


def test_places_that_are_not_those_asked_for_end_the_connection(cluster, reader, monkeypatch):
    cluster.write(0, PATTERN[:100])
    monkeypatch.setattr(reader.connection, "_place", lambda *_: [memoryview(bytearray(99))] * 2)
    reader.send((0, 0, 100))
    assert reader.finish().error.code is Code.PROTOCOL
    assert reader.connection.dead


# Descriptors.


def data_files(reader: Reader) -> dict[int, int]:
    return {n: fd for n, fd in reader.connection._files.items() if n % 32 < SIZE_CLASSES}


def test_descriptors_allow_nothing_but_reading(cluster, reader):
    cluster.write(0, b"x" * 100)
    reader.read((0, 0, 100))
    (descriptor,) = data_files(reader).values()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(descriptor, b"y", 0)
    with pytest.raises(OSError, match="Invalid argument"):
        os.ftruncate(descriptor, 0)
    assert not os.get_inheritable(descriptor)


def test_a_data_file_that_comes_later_is_passed_when_it_is_needed(cluster, reader):
    cluster.write(0, b"x" * 100)
    assert reader.read((0, 0, 100)) == [b"x" * 100]
    assert len(data_files(reader)) == 1
    cluster.write(1, PATTERN[:200_000])
    assert reader.read((1, 5, 70_000), (0, 0, 1)) == [PATTERN[5:70_005], b"x"]
    assert reader.read((1, 0, 4), (0, 0, 1)) == [PATTERN[:4], b"x"]
    assert len(data_files(reader)) == 2


def test_descriptors_end_with_their_connection_on_both_sides(cluster, port):
    cluster.write(0, b"x" * 100)
    before = None
    for _ in range(5):
        reader = Reader(port)
        reader.read((0, 0, 100))
        reader.connection.close()
        while port.granted:
            pass
        before = before or len(os.listdir("/proc/self/fd"))
    # Others' come and go: the store has a file open for a moment, now and then.
    while len(os.listdir("/proc/self/fd")) > before:
        pass


def test_descriptors_of_a_forgotten_request_are_kept_for_the_next(cluster, reader):
    cluster.write(0, b"x" * 100)
    reader.connection.forget(reader.send((0, 0, 100)))
    assert reader.read((0, 0, 100)) == [b"x" * 100]


def test_without_descriptors_left_the_server_gives_the_connection_up(cluster, reader, monkeypatch):
    cluster.write(0, b"x" * 100)

    def fail(*_: object) -> list[int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(reader.port.port, "_open", fail)
    reader.send((0, 0, 100))
    assert reader.finish().error.code is Code.MAYBE_APPLIED
    assert reader.connection.dead


# Grants.


@pytest.mark.parametrize("kind", ["overwrite", "truncate", "remove", "remove and recreate"])
def test_what_is_granted_is_read_as_it_was_whatever_happens_meanwhile(cluster, reader, kind):
    cluster.write(0, PATTERN[:60_000])

    def change() -> None:
        match kind:
            case "overwrite":
                cluster.write(0, b"n" * 60_000)
            case "truncate":
                cluster.write(0, b"", kind=UpdateKind.TRUNCATE, length=10)
            case _:
                cluster.write(0, b"", kind=UpdateKind.REMOVE)
        fill(cluster, 1 if "recreate" not in kind else 0, 10, 60_000)

    before_reading(reader, change)
    assert reader.read((0, 0, 60_000), (0, 100, 10)) == [PATTERN[:60_000], PATTERN[100:110]]
    assert reader.verified
    assert reader.read((0, 0, 60_000))[0] != PATTERN[:60_000]


def test_what_was_read_is_released_with_the_next_request(cluster, port, reader):
    cluster.write(0, PATTERN[:60_000])
    for _ in range(3):
        reader.read((0, 0, 100))
        assert port.granted == 1
    store: Any = cluster.nodes[0].target.store
    cluster.write(0, b"n" * 60_000)
    cluster.call(store.sync)
    reader.read()
    while cluster.call(lambda: len(store._readers._waiting)):
        cluster.call(store.tick)


def test_an_answer_that_is_overtaken_by_a_later_one_is_granted_until_it_is_read(
    cluster, reader, monkeypatch
):
    for slot in (0, 1):
        cluster.write(slot, PATTERN[:60_000])
    deferred: list[Any] = []
    reply = reader.port.port._reply

    def answer_late(connection, request, grant, located, payloads):
        if not deferred:
            deferred.append((connection, request, grant, located, payloads))
        else:
            reply(connection, request, grant, located, payloads)

    monkeypatch.setattr(reader.port.port, "_reply", answer_late)  # as if a chunk were dirty
    first = reader.send((0, 0, 60_000))
    assert reader.read((1, 0, 60_000)) == [PATTERN[:60_000]]
    cluster.write(0, b"n" * 60_000)
    cluster.call(cluster.nodes[0].target.store.sync)
    for _ in range(2):  # each request says what has been read
        assert reader.read((2, 0, 10)) == [Code.NO_CHUNK]
    fill(cluster, 3, 10, 60_000)
    cluster.call(lambda: reply(*deferred[0]))
    done = reader.finish()
    assert done.request_id == first
    assert reader.results(first, done.head) == [PATTERN[:60_000]]
    # All of it is over when all of it was read.
    reader.read()
    assert reader.port.granted == 1


def test_a_client_that_is_gone_holds_nothing(cluster, port):
    cluster.write(0, PATTERN[:100])
    reader = Reader(port)
    reader.read((0, 0, 100))
    assert port.granted == 1
    reader.connection.close()
    while port.granted:
        pass


def test_a_client_that_idles_holds_nothing_beyond_its_lease(cluster, port, reader):
    cluster.write(0, PATTERN[:100])
    reader.read((0, 0, 100))
    port.clock.now_ms += LONG_MS - 1
    port.tick()
    assert port.granted == 1
    port.clock.now_ms += 1
    port.tick()
    assert port.granted == 0


def test_what_was_read_after_the_lease_is_read_again_through_the_socket(cluster):
    port = Port(cluster, lease_ms=10)
    reader = Reader(port)
    cluster.write(0, PATTERN[:60_000])

    def too_late() -> None:
        port.clock.now_ms += 10
        port.tick()
        cluster.write(0, b"n" * 60_000)
        fill(cluster, 1, 10, 60_000)
        threading.Event().wait(0.02)

    before_reading(reader, too_late)
    assert reader.read((0, 0, 60_000)) == [b"n" * 60_000]
    assert not reader.verified
    reader.connection.close()
    port.close()


def test_a_holder_of_too_many_grants_gets_bytes(cluster, port, reader, monkeypatch):
    cluster.write(0, PATTERN[:60_000])
    monkeypatch.setattr(port.port._grants, "room", lambda _: False)
    assert reader.read((0, 1, 50_000), (1, 0, 9)) == [PATTERN[1:50_001], Code.NO_CHUNK]
    assert (reader.verified, port.granted) == (True, 0)


def test_a_server_that_goes_meanwhile_takes_its_answer_along(cluster, port, reader):
    cluster.write(0, PATTERN[:60_000])
    before_reading(reader, port.close)
    reader.send((0, 0, 60_000))
    done = reader.finish()
    assert (done.error.code, reader.connection.dead) == (Code.MAYBE_APPLIED, True)


def test_a_dirty_chunk_comes_as_bytes_and_its_neighbours_as_places(cluster, reader, monkeypatch):
    cluster.write(0, PATTERN[:60_000])
    cluster.write(1, PATTERN[:60_000])
    head: Any = cluster.nodes[0].target.store
    allowed, sync = threading.Event(), head.sync

    def slow_sync() -> None:
        assert allowed.wait(WAIT_S)
        sync()

    monkeypatch.setattr(head, "sync", slow_sync)
    writer = threading.Thread(target=cluster.write, args=(0, b"n" * 60_000), kwargs={"sync": True})
    writer.start()
    while not cluster.call(lambda: head.meta(chunk_id(7, 0)).pending_version):
        pass
    pieces = (1, 0, 100), (0, 5, 40_000), (1, 200, 100), (0, 0, 4)
    located: list[int] = []
    read = reader.connection._reader.read
    monkeypatch.setattr(
        reader.connection._reader,
        "read",
        lambda found, buffers: (located.extend(place[4] for place in found), read(found, buffers))[
            1
        ],
    )
    expected = [PATTERN[start : start + n] for _, start, n in pieces]
    assert reader.read(*pieces) == expected
    none = dataplane.FILE_NONE
    assert [number == none for number in located] == [False, True, False, True]
    allowed.set()
    writer.join()
    assert reader.read((0, 0, 4)) == [b"nnnn"]


# Bad bytes.


@pytest.mark.parametrize("piece", [(0, 0, 60_000), (0, 16_384, 16_384), (0, 17_000, 10)])
def test_wrong_bytes_are_no_answer(cluster, reader, piece):
    cluster.write(0, PATTERN[:60_000])
    damage(cluster, 0, 17_005)
    assert reader.read(piece, (0, 0, 100)) == [Code.CORRUPT, PATTERN[:100]]
    assert "checksum" in reader.details[0]


def test_a_disk_that_gives_an_error_is_no_answer(cluster, reader, tmp_path):
    cluster.write(0, PATTERN[:60_000])
    reader.read((0, 0, 1))
    folder = os.open(tmp_path, os.O_RDONLY)  # which is no file to read from
    for descriptor in reader.connection._files.values():
        os.dup2(folder, descriptor)
    os.close(folder)
    located = reader.send((0, 0, 32_768), (0, 5, 10))
    done = reader.finish()
    assert reader.results(located, done.head) == [Code.DISK, Code.DISK]
    assert "Is a directory" in reader.details[1]


def test_wrong_bytes_in_the_body_are_no_answer(cluster, port, reader, monkeypatch):
    cluster.write(0, PATTERN[:60_000])
    monkeypatch.setattr(port.port._grants, "room", lambda _: False)
    before_reading(reader, lambda: reader.buffers[1][0].__setitem__(5, 1))
    assert PATTERN[5] != 1
    assert reader.read((0, 0, 60_000)) == [Code.CORRUPT]


# Who is served.


def test_another_user_is_refused(cluster, port, monkeypatch):
    peer = localport.peer_credentials
    monkeypatch.setattr(localport, "peer_credentials", lambda s: peer(s)._replace(uid=12_345))
    reader = Reader(port)
    reader.send((0, 0, 1))
    assert reader.finish().error.code is Code.ACCESS
    assert reader.connection.dead
    assert "uid 12345" in reader.connection.error.detail


def test_a_user_of_the_settings_is_served(cluster, monkeypatch):
    port = Port(cluster, uids=[12_345])
    peer = localport.peer_credentials
    monkeypatch.setattr(localport, "peer_credentials", lambda s: peer(s)._replace(uid=12_345))
    reader = Reader(port)
    assert reader.read((0, 0, 1)) == [Code.NO_CHUNK]
    reader.connection.close()
    port.close()


def test_another_cluster_is_refused(port):
    reader = Reader(port, "other")
    reader.send((0, 0, 1))
    assert reader.finish().error.code is Code.WRONG_CLUSTER
    reader.connection.close()


def test_places_are_not_told_over_the_network(cluster):
    item = np.zeros(1, dataplane.READ_ITEM)
    with pytest.raises(Fs3Error, match="0x1005"):
        cluster.request(1, dataplane.LOCATE, bytes(16) + item.tobytes())


WANTS_TOO_MANY = (0).to_bytes(8, "little") + (9).to_bytes(4, "little") + bytes(4 + 8 * 4)


@pytest.mark.parametrize("head", [b"", b"1234567", bytes(17), bytes(16 + 41), WANTS_TOO_MANY])
def test_a_head_that_makes_no_sense_is_answered_in_words(port, head):
    connection = LocalConnection(port.port.address, CLUSTER, lambda number, head: [])
    connection.send(dataplane.LOCATE, 1, head)
    (done,) = drive([connection], time.monotonic() + WAIT_S)
    assert (done.error.code, connection.dead) == (Code.PROTOCOL, False)
    connection.close()


def test_a_socket_with_a_name_replaces_a_dead_one_and_is_removed(cluster, tmp_path):
    path = tmp_path / "local"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    port = Port(cluster, listen=f"unix:{path}")
    reader = Reader(port)
    assert reader.read((0, 0, 1)) == [Code.NO_CHUNK]
    reader.connection.close()
    with pytest.raises(Fs3Error, match="cannot listen"):
        Port(cluster, listen=f"unix:{path}")
    port.close()
    assert not path.exists()


def test_what_nobody_listens_to_is_unreachable_at_once():
    with pytest.raises(Fs3Error, match="UNREACHABLE"):
        LocalConnection("unix:@fs3-nobody-listens-here", CLUSTER, lambda number, head: [])


def test_what_was_asked_for_is_let_go_without_the_collector(cluster, port, reader, monkeypatch):
    cluster.write(0, PATTERN[:60_000])
    monkeypatch.setattr(port.port._grants, "room", lambda _: False)  # so it holds a buffer
    gc.collect()
    gc.disable()
    try:
        before = cluster.call(lambda: cluster.nodes[0].pool.used_bytes)
        for _ in range(5):
            reader.read((0, 0, 60_000))
        while cluster.call(lambda: cluster.nodes[0].pool.used_bytes) > before:
            pass
    finally:
        gc.enable()
