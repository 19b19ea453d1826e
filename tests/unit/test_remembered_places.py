"""Reads of places that a client remembers: nothing is sent, and nothing stale is ever believed."""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_port_rig import (
    PATTERN,
    BatchReader,
    PieceReader,
    Port,
    Reader,
    ScatteredReader,
    before_reading,
    damage,
    fill,
)
from storage_cluster import CLUSTER, WAIT_S, StorageCluster

from fs3.checksum import crc32c
from fs3.core.chunks import UpdateKind
from fs3.core.stamps import STAMPS_BYTES
from fs3.core.types import PublicState, chunk_id
from fs3.errors import Code
from fs3.storageserver.chunkstore.interface import StageRequest
from fs3.transport import local, located
from fs3.transport.client import DataConnection
from fs3.transport.local import LocalConnection

S, SYNC, OFF = PublicState.SERVING, PublicState.SYNCING, PublicState.OFFLINE


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[StorageCluster]:
    with StorageCluster(tmp_path, 2) as made:
        made.set_chain((1, S), (2, S))
        yield made


@pytest.fixture(params=[1, 2], ids=["head", "tail"])
def port(cluster: StorageCluster, request: Any) -> Iterator[Port]:
    made = Port(cluster, request.param)
    yield made
    made.close()


@pytest.fixture(params=[Reader, BatchReader, ScatteredReader, PieceReader])
def reader(port: Port, request: Any) -> Iterator[Reader]:
    made: Reader = request.param(port)
    yield made
    made.connection.close()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The method of each request that a reader sent; servers repair over TCP when they please."""
    methods: list[int] = []
    send = DataConnection.send

    def note(self: DataConnection, method: int, *arguments: Any) -> None:
        if isinstance(self, LocalConnection):
            methods.append(method)
        send(self, method, *arguments)

    monkeypatch.setattr(DataConnection, "send", note)
    return methods


def asks(sent: list[int]) -> int:
    """How many requests left since it was asked last."""
    count = len(sent)
    sent.clear()
    return count


PIECES = [(0, 0, 60_000), (0, 17_000, 10), (1, 16_384, 16_384), (1, 16_000, 80_000), (0, 59_000, 9)]


def expected(pieces: list[tuple[int, int, int]], contents: dict[int, bytes]) -> list[bytes]:
    return [contents[slot][start : start + length] for slot, start, length in pieces]


def test_a_connection_that_nobody_refers_to_is_closed_at_once(port):
    """Not when a collector comes round: servers would keep descriptors and memory for it."""
    connection = LocalConnection(port.port.address, CLUSTER, lambda _number, _head: None)
    gone = weakref.ref(connection)
    del connection
    assert gone() is None


# Without asking.


def test_what_was_read_once_is_read_again_without_sending_anything(cluster, reader, sent):
    contents = {0: PATTERN[:60_000], 1: PATTERN[100_000:300_000]}
    for slot, content in contents.items():
        cluster.write(slot, content)
    assert reader.read((0, 5, 10), (1, 5, 10)) == [PATTERN[5:15], PATTERN[100_005:100_015]]
    assert asks(sent) == 1
    assert reader.read(*PIECES) == expected(PIECES, contents)
    assert reader.verified
    for piece in PIECES:
        assert reader.read(piece) == expected([piece], contents)
    assert asks(sent) == 0


def test_who_tells_of_places_that_make_no_sense_is_not_listened_to_any_more(
    cluster, reader, monkeypatch
):
    cluster.write(0, PATTERN[:50_000])
    assert reader.read((0, 0, 10)) == [PATTERN[:10]]

    def refuse(*_: Any) -> Any:
        raise ValueError("piece 0 ends behind what a file can hold")

    monkeypatch.setattr(located, "read_pieces", refuse)
    if isinstance(reader, BatchReader):
        assert not reader.read_here([(0, 0, 10)], [memoryview(bytearray(10))], cluster.version)
    else:
        reader.send((0, 0, 10))
        done = reader.finish()
        assert done.error is not None
        assert "make no sense" in done.error.detail
    assert reader.connection.dead
    assert reader.connection.error is not None
    assert reader.connection.error.code is Code.PROTOCOL


def test_pieces_at_and_behind_the_end_are_short_as_ever(cluster, reader, sent):
    cluster.write(0, PATTERN[:50_000])
    pieces = (0, 49_000, 5000), (0, 50_000, 5), (0, 70_000, 5), (0, 0, 0), (0, 0, 1 << 20)
    asked = reader.read(*pieces)
    assert asks(sent) == 1
    assert reader.read(*pieces) == asked
    assert asks(sent) == 0
    assert [len(data) for data in asked] == [1000, 0, 0, 0, 50_000]


def test_one_chunk_that_is_not_remembered_has_all_be_asked_for_and_is_remembered(
    cluster, reader, sent
):
    cluster.write(0, PATTERN[:100])
    cluster.write(1, PATTERN[:200])
    reader.read((0, 0, 1))
    assert reader.read((0, 0, 100), (1, 0, 200)) == [PATTERN[:100], PATTERN[:200]]
    assert asks(sent) == 2
    reader.read((0, 0, 100), (1, 0, 200))
    assert asks(sent) == 0


def test_a_hole_is_asked_for_each_time(cluster, reader, sent):
    for _ in range(2):
        assert reader.read((5, 0, 10)) == [Code.NO_CHUNK]
    assert asks(sent) == 2


def test_others_are_asked_before_anything_is_read(cluster, port, reader, sent):
    cluster.write(0, PATTERN[:100])
    reader.read((0, 0, 1))
    number = reader.send((0, 0, 100))
    assert bytes(reader.buffers[number][0]) == b"\xee" * 100
    assert reader.connection.pending == 1
    assert reader.results(number, reader.finish().head) == [PATTERN[:100]]
    assert reader.connection.pending == 0


def test_a_forgotten_request_touches_nothing(cluster, reader):
    cluster.write(0, PATTERN[:100])
    reader.read((0, 0, 1))
    number = reader.send((0, 0, 100))
    reader.connection.forget(number)
    assert reader.connection.take_completed() == []
    assert bytes(reader.buffers[number][0]) == b"\xee" * 100


# Changes.

CHANGES = {
    "overwrite": lambda cluster: cluster.write(0, b"n" * 60_000),
    "overwrite a part": lambda cluster: cluster.write(0, b"n" * 10, offset=17_000),
    "append": lambda cluster: cluster.write(0, b"n" * 10, offset=60_000),
    "truncate": lambda cluster: cluster.write(0, b"", kind=UpdateKind.TRUNCATE, length=17_005),
    "extend": lambda cluster: cluster.write(0, b"", kind=UpdateKind.EXTEND, length=60_001),
    "remove": lambda cluster: cluster.write(0, b"", kind=UpdateKind.REMOVE),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen_at_once(cluster, reader, change):
    for turn in range(3):
        cluster.write(0, PATTERN[turn : 60_000 + turn])
        pieces = (0, 0, 70_000), (0, 17_000, 10)
        reader.read(*pieces)
        reader.read(*pieces)
        CHANGES[change](cluster)
        fill(cluster, 10 * turn + 10, 5, 60_000)  # what was freed is used again
        results, data = cluster.read(pieces, reader.port.target)
        wanted = [
            found if code == Code.OK else Code(code)
            for code, found in zip(results["code"].tolist(), data, strict=True)
        ]
        for _ in range(2):
            assert reader.read(*pieces) == wanted


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_while_it_is_read_is_no_half_answer(cluster, reader, sent, change):
    cluster.write(0, PATTERN[:60_000])
    reader.read((0, 0, 1))
    asks(sent)

    def meanwhile() -> None:
        CHANGES[change](cluster)
        fill(cluster, 10, 5, 60_000)

    before_reading(reader, meanwhile)
    found = reader.read((0, 0, 70_000))
    assert asks(sent) == 1
    results, data = cluster.read([(0, 0, 70_000)], reader.port.target)
    assert found == [data[0] if results["code"][0] == Code.OK else Code.NO_CHUNK]


def test_a_chunk_that_is_being_written_is_asked_for_until_it_is_clean(cluster, reader, sent):
    cluster.write(0, PATTERN[:100])
    reader.read((0, 0, 1))
    store: Any = cluster.nodes[reader.port.target - 1].target.store
    chunk, data = chunk_id(7, 0), b"n" * 100
    update = StageRequest(
        chunk, UpdateKind.WRITE, 2, 0, 100, memoryview(data), crc32c(data), cluster.version
    )
    assert cluster.call(lambda: store.stage([update]))[0].code is Code.OK
    asks(sent)
    for _ in range(2):
        assert reader.read((0, 0, 100)) == [PATTERN[:100]]
    assert asks(sent) == 2
    cluster.call(lambda: store.drop([chunk]))
    for _ in range(2):
        assert reader.read((0, 0, 100)) == [PATTERN[:100]]
    assert asks(sent) == 1


# Who serves.


def test_a_place_outlives_a_chain_that_changes_around_its_replica(cluster, port, reader, sent):
    cluster.write(0, PATTERN[:100])
    reader.read((0, 0, 1))
    cluster.set_chain((port.target, S), (3 - port.target, OFF))
    asks(sent)
    assert reader.read((0, 0, 100)) == [PATTERN[:100]]
    assert asks(sent) == 0
    assert reader.read((0, 0, 100), version=cluster.version - 1) == [Code.STALE_CHAIN]
    assert reader.read((0, 0, 100)) == [PATTERN[:100]]


def test_a_replica_that_is_out_is_not_read_from(cluster, port, reader):
    cluster.write(0, PATTERN[:100])
    reader.read((0, 0, 1))
    other = 3 - port.target
    cluster.set_chain((other, S), (port.target, OFF))
    assert reader.read((0, 0, 100)) == [Code.NOT_SERVING]
    cluster.write(0, b"n" * 100, target=other)
    assert reader.read((0, 0, 100)) == [Code.NOT_SERVING]
    cluster.set_chain((other, S), (port.target, SYNC))
    assert cluster.nodes[port.target - 1].uptodate.wait(WAIT_S)
    assert reader.read((0, 0, 100)) == [Code.NOT_SERVING]
    cluster.set_chain((other, S), (port.target, S))
    for _ in range(2):
        while (found := reader.read((0, 0, 100))) == [Code.NOT_SERVING]:
            pass  # until it has joined
        assert found == [b"n" * 100]


def test_past_its_lease_a_place_is_not_believed_and_with_a_new_one_it_is(
    cluster, port, reader, sent, monkeypatch
):
    cluster.write(0, PATTERN[:100])
    reader.read((0, 0, 1))
    now_ms = local._CLOCK.monotonic_ms()
    cluster.call(lambda: cluster.nodes[port.target - 1].target.tick())

    class Late:
        def monotonic_ms(self) -> int:
            return now_ms + 61_000

    with monkeypatch.context() as patch:
        patch.setattr(local, "_CLOCK", Late())
        asks(sent)
        assert reader.read((0, 0, 100)) == [PATTERN[:100]]  # the server's clock allows it
        assert asks(sent) == 1
        cluster.call(lambda: cluster.nodes[port.target - 1].target.grant(1, now_ms + 120_000))
        assert reader.read((0, 0, 100)) == [PATTERN[:100]]
        assert asks(sent) == 0


def test_a_target_that_fails_or_leaves_serves_nobody(cluster, port, reader):
    cluster.write(0, PATTERN[:100])
    reader.read((0, 0, 1))
    target = cluster.nodes[port.target - 1].target
    cluster.call(target.leave)
    assert reader.read((0, 0, 100)) == [Code.NOT_SERVING]
    stamps = target.store.stamps
    assert stamps._words[0] == 0


def test_a_server_that_goes_while_it_is_read_takes_its_answer_along(cluster, port, reader):
    cluster.write(0, PATTERN[:100])
    reader.read((0, 0, 1))
    before_reading(reader, port.close)
    number = reader.send((0, 0, 100))
    others = reader.send((0, 0, 50))
    done = reader.connection.take_completed()
    assert {d.request_id: d.error.code for d in done} == {
        number: Code.UNREACHABLE,
        others: Code.UNREACHABLE,
    }
    assert reader.connection.dead


@pytest.mark.parametrize("kind", [BatchReader, PieceReader])
def test_what_was_read_when_the_server_was_gone_does_not_count(cluster, port, kind):
    cluster.write(0, PATTERN[:100])
    reader = kind(port)
    reader.read((0, 0, 1))
    buffers = [memoryview(bytearray(100))]
    assert reader.read_here([(0, 0, 100)], buffers, cluster.version)
    before_reading(reader, port.close)
    assert not reader.read_here([(0, 0, 100)], buffers, cluster.version)
    reader.connection.close()


# Bad bytes, and who does not remember.


@pytest.mark.parametrize("piece", [(0, 0, 60_000), (0, 16_384, 16_384), (0, 17_000, 10)])
def test_wrong_bytes_of_a_remembered_place_are_asked_about(cluster, port, reader, sent, piece):
    cluster.write(0, PATTERN[:60_000])
    reader.read((0, 0, 60_000))
    damage(cluster, 0, 17_005, port.target)
    asks(sent)
    assert reader.read(piece, (0, 0, 100)) == [Code.CORRUPT, PATTERN[:100]]
    assert "checksum" in reader.details[0]
    assert asks(sent) == 1


def test_a_client_on_another_clock_remembers_nothing(cluster, port, sent, monkeypatch):
    cluster.write(0, PATTERN[:100])
    monkeypatch.setattr(local, "boot_clock_id", lambda: 1)
    reader = Reader(port)
    for _ in range(3):
        assert reader.read((0, 0, 100)) == [PATTERN[:100]]
    assert asks(sent) == 3
    assert not len(reader.connection._remembered)
    reader.connection.close()


def test_a_client_that_cannot_map_memory_reads_on(cluster, reader, sent, monkeypatch):
    cluster.write(0, PATTERN[:100])

    def fail(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", fail)
    for _ in range(3):
        assert reader.read((0, 0, 100)) == [PATTERN[:100]]
    assert asks(sent) == 3


def test_a_server_without_shared_memory_tells_no_places(tmp_path, sent, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", fail)
        cluster = StorageCluster(tmp_path, 1)
    with cluster:
        cluster.set_chain((1, S))
        port = Port(cluster)
        reader = Reader(port)
        cluster.write(0, PATTERN[:100])
        for _ in range(3):
            assert reader.read((0, 0, 100)) == [PATTERN[:100]]
        assert asks(sent) == 3
        reader.connection.close()
        port.close()


def test_the_stamps_memory_can_be_read_and_nothing_else(cluster, reader):
    cluster.write(0, PATTERN[:100])
    reader.read((0, 0, 1))
    descriptor = reader.connection._files[31]
    with pytest.raises(OSError, match="Permission denied"):
        mmap.mmap(descriptor, STAMPS_BYTES)
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    try:
        with pytest.raises(OSError, match="Operation not permitted"):
            mmap.mmap(again, STAMPS_BYTES)
        for call in (lambda: os.pwrite(again, b"x", 0), lambda: os.ftruncate(again, 0)):
            with pytest.raises(OSError, match="Operation not permitted"):
                call()
        with pytest.raises(OSError, match="Operation not permitted"):
            fcntl.fcntl(again, fcntl.F_ADD_SEALS, 0)
    finally:
        os.close(again)
