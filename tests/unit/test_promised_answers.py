"""Answers whose bytes are read while they are sent: real stores, real sockets, slow readers."""

from __future__ import annotations

import errno
import os
import random
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from storage_cluster import CHAIN, CLUSTER, WAIT_S, StorageCluster

from fs3 import dataplane, frames
from fs3.checksum import crc32c
from fs3.core.types import PublicState, chunk_id
from fs3.errors import Code
from fs3.storageserver import reads
from fs3.storageserver.chunkstore.files import Files
from fs3.storageserver.chunkstore.interface import Piece
from fs3.storageserver.filesource import FileSource, Promised
from fs3.transport.client import DataConnection, drive
from fs3.transport.sources import WINDOW_BYTES

S = PublicState.SERVING
MIB = 1 << 20
LONG_MS = 10 * 60_000


class FailingFiles(Files):
    """A disk that gives I/O errors once ``good_reads`` more reads were good."""

    def __init__(self) -> None:
        super().__init__()
        self.good_reads = 1 << 60

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.good_reads -= 1
        if self.good_reads < 0:
            raise OSError(errno.EIO, "the disk has gone")
        return super().preadv(fd, buffers, offset)


@pytest.fixture
def disk() -> FailingFiles:
    return FailingFiles()


@pytest.fixture
def cluster(tmp_path: Path, disk: FailingFiles) -> Iterator[StorageCluster]:
    """Two replicas; ``disk`` is the first one's."""
    with StorageCluster(tmp_path, 2, files={1: disk}) as made:
        made.set_chain((1, S), (2, S))
        yield made


def content(slot: int, length: int = MIB) -> bytes:
    return random.Random(slot).randbytes(length)


def fill(cluster: StorageCluster, count: int) -> None:
    for slot in range(count):
        assert cluster.write(slot, content(slot))[0]["code"] == Code.OK


def encode(cluster: StorageCluster, pieces: Sequence[tuple[int, int, int]]) -> bytes:
    items = np.zeros(len(pieces), dataplane.READ_ITEM)
    for item, (slot, offset, length) in zip(items, pieces, strict=True):
        item["chunk"] = np.frombuffer(chunk_id(7, slot), "V24")[0]
        item["chain"], item["chain_version"] = CHAIN, cluster.version
        item["offset"], item["length"] = offset, length
    return items.tobytes()


class SlowReader:
    """Asks on a socket that takes little, and reads when it is told to."""

    def __init__(
        self, cluster: StorageCluster, pieces: Sequence[tuple[int, int, int]], target: int = 1
    ) -> None:
        host, port = cluster.nodes[target - 1].server.address.rsplit(":", 1)
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        self.socket.settimeout(WAIT_S)
        self.socket.connect((host, int(port)))
        head = encode(cluster, pieces)
        kind, tag = frames.FrameKind.REQUEST, frames.cluster_tag(CLUSTER)
        self.socket.sendall(frames.encode(kind, dataplane.READ_BATCH, tag, 1, head, 0) + head)
        self.count = len(pieces)
        self.stream = self.socket.makefile("rb")

    def head(self) -> Any:
        """The results: they come before any byte is read from the disk."""
        self.header = frames.decode(self.stream.read(frames.HEADER_BYTES))
        head = self.stream.read(self.header.head_bytes)
        return dataplane.decode_results(head, dataplane.READ_RESULT, self.count)[0]

    def body(self) -> bytes:
        """What comes of it until the connection ends, or all."""
        return self.stream.read(self.header.body_bytes)

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


class Client:
    """The client's own connection."""

    def __init__(self, cluster: StorageCluster, target: int = 1) -> None:
        self.cluster = cluster
        self.buffers: list[bytearray] = []
        address = cluster.nodes[target - 1].server.address
        self.connection = DataConnection(address, CLUSTER, self.place)

    def place(self, _number: int, head: bytes) -> list[memoryview]:
        results, _ = dataplane.decode_results(head, dataplane.READ_RESULT, len(self.buffers))
        lengths = results["length"].tolist()
        return [memoryview(b)[:n] for b, n in zip(self.buffers, lengths, strict=True) if n]

    def read(self, pieces: Sequence[tuple[int, int, int]]) -> Any:
        self.buffers = [bytearray(b"\xee" * length) for _, _, length in pieces]
        self.connection.send(dataplane.READ_BATCH, 1, encode(self.cluster, pieces))
        (done,) = drive([self.connection], time.monotonic() + WAIT_S)
        return done


def readers_of(cluster: StorageCluster) -> dict[int, int]:
    """What reads keep from being reused at the first node."""
    return cluster.nodes[0].target.store._readers._active


# -- what is answered ------------------------------------------------------------------------------


def test_a_batch_larger_than_the_window_arrives_whole_and_needs_no_buffer(
    cluster: StorageCluster,
) -> None:
    fill(cluster, 8)
    pool = cluster.nodes[0].pool
    client = Client(cluster)
    done = client.read([(slot, 0, MIB) for slot in range(8)])
    assert (done.error, done.verified) == (None, True)
    assert [bytes(buffer) for buffer in client.buffers] == [content(slot) for slot in range(8)]
    assert cluster.call(lambda: pool._mapped_bytes) < 8 * MIB
    cluster.wait_until(lambda: not readers_of(cluster))


def test_pieces_of_every_kind_in_one_batch_come_in_order(cluster: StorageCluster) -> None:
    fill(cluster, 3)
    short = content(9, 100_000)  # ends within a checksum block
    assert cluster.write(3, short)[0]["code"] == Code.OK
    pieces = [
        (0, 0, MIB),
        (1, 5, 300_000),  # edges at both ends
        (2, 1 << 19, 1 << 19),  # the second half
        (8, 0, MIB),  # a hole
        (3, 0, MIB),  # shorter than asked for
        (3, 16 << 10, 16 << 10),  # too small to be worth it
        (0, 32 << 10, 48 << 10),
        (2, 7, 9),
        (1, MIB - (64 << 10), 64 << 10),
    ]
    chunks = {0: content(0), 1: content(1), 2: content(2), 3: short}
    results, bodies = cluster.read(pieces, 1)
    for result, body, (slot, offset, length) in zip(results, bodies, pieces, strict=True):
        wanted = chunks.get(slot, b"")[offset : offset + length]
        assert body == wanted, (slot, offset)
        assert result["code"] == (Code.OK if slot in chunks else Code.NO_CHUNK)
        assert result["crc"] == crc32c(wanted)


def test_many_slow_readers_cost_no_memory(cluster: StorageCluster) -> None:
    fill(cluster, 8)
    node = cluster.nodes[0]
    before = cluster.call(lambda: node.pool._mapped_bytes)
    lazy = [SlowReader(cluster, [(n % 8, 0, MIB) for n in range(64)]) for _ in range(20)]
    for reader in lazy:
        assert (reader.head()["code"] == Code.OK).all()
    # 20 times 64 MiB are on their way, and nothing of it is in memory here but one window.
    assert cluster.call(lambda: node.pool._mapped_bytes) == before
    assert lazy[3].body() == b"".join(content(n % 8) for n in range(64))
    for reader in lazy:
        reader.close()
    cluster.wait_until(lambda: not readers_of(cluster))


# -- blocks that would be reused -------------------------------------------------------------------


def test_blocks_are_not_reused_while_a_slow_reader_gets_them(
    cluster: StorageCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "HOLD_MS", LONG_MS)
    fill(cluster, 8)
    reader = SlowReader(cluster, [(slot, 0, MIB) for slot in range(8)])
    results = reader.head()
    for turn in range(3):  # new versions, each in blocks that nobody holds any more
        for slot in range(8):
            assert cluster.write(slot, content(100 + turn * 8 + slot))[0]["code"] == Code.OK
    assert (results["version"] == 1).all()
    assert reader.body() == b"".join(content(slot) for slot in range(8))
    cluster.wait_until(lambda: not readers_of(cluster))
    reader.close()


def test_an_answer_that_is_not_complete_yet_is_held_though_time_goes_by(
    cluster: StorageCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other items, which are being written, the tail is asked first: that is nobody's fault."""
    monkeypatch.setattr(reads, "HOLD_MS", 0)
    fill(cluster, 1)
    side = cluster.nodes[0].target.reads

    def try_it() -> None:
        piece = Piece(chunk_id(7, 0), 0, MIB)
        hold = side._hold(side._store)
        (place,) = side._store.locate([piece], 0)
        side.tick()
        assert hold.stands
        source = FileSource([Promised(piece, place, hold)])
        side.tick()
        assert not hold.stands
        source.close()

    cluster.call(try_it)


def reader_of_blocks_let_go(
    cluster: StorageCluster, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> SlowReader:
    """It has the head of an answer that is held for no time, and nothing is held any more."""
    monkeypatch.setattr(reads, "HOLD_MS", 0)
    fill(cluster, chunks)
    reader = SlowReader(cluster, [(slot, 0, MIB) for slot in range(chunks)])
    reader.head()
    cluster.wait_until(lambda: not readers_of(cluster))
    return reader


def test_an_answer_that_is_not_taken_holds_blocks_for_a_while_only_and_goes_on_later(
    cluster: StorageCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of_blocks_let_go(cluster, monkeypatch, 8)
    assert reader.body() == b"".join(content(slot) for slot in range(8))
    reader.close()


def test_an_answer_whose_chunk_has_changed_meanwhile_breaks_off_without_a_wrong_byte(
    cluster: StorageCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of_blocks_let_go(cluster, monkeypatch, 32)
    for slot in range(32):
        assert cluster.write(slot, content(100 + slot))[0]["code"] == Code.OK
    got = reader.body()
    whole = b"".join(content(slot) for slot in range(32))
    assert len(got) < len(whole)
    assert whole.startswith(got)
    reader.close()
    cluster.wait_until(lambda: not readers_of(cluster))
    assert cluster.read([(5, 0, MIB)], 1)[1] == [content(105)]


def test_a_reader_that_goes_away_lets_go_of_what_it_was_to_get(
    cluster: StorageCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "HOLD_MS", LONG_MS)
    fill(cluster, 16)
    reader = SlowReader(cluster, [(slot, 0, MIB) for slot in range(16)])
    reader.head()
    assert cluster.call(lambda: len(readers_of(cluster))) == 1
    reader.close()
    cluster.wait_until(lambda: not readers_of(cluster))


# -- disks that fail meanwhile ---------------------------------------------------------------------


def test_a_disk_that_fails_in_the_middle_of_an_answer_ends_it_and_its_target(
    cluster: StorageCluster, disk: FailingFiles
) -> None:
    fill(cluster, 8)
    pieces = [(slot, 0, MIB) for slot in range(8)]
    client = Client(cluster)
    disk.good_reads = 3 * MIB // WINDOW_BYTES
    done = client.read(pieces)
    assert done.error is not None
    assert done.error.code is Code.MAYBE_APPLIED  # the connection broke: ask elsewhere
    cluster.wait_until(lambda: "the disk has gone" in cluster.nodes[0].target.problem)
    assert not cluster.call(lambda: dict(readers_of(cluster)))
    other = Client(cluster, 2)
    assert other.read(pieces).error is None
    assert [bytes(buffer) for buffer in other.buffers] == [content(slot) for slot in range(8)]
    # Who asks the failed one again is told so.
    results, _ = cluster.read([(0, 0, MIB)], 1)
    assert results["code"][0] == Code.NOT_SERVING


def test_a_file_that_ends_too_early_breaks_one_answer_and_is_named_in_the_next(
    cluster: StorageCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = cluster.nodes[0].target.store
    suspected: list[bytes] = []
    repairs = cluster.nodes[0].target.repairs
    monkeypatch.setattr(repairs, "suspect", lambda chunk, _detail: suspected.append(chunk))
    fill(cluster, 4)

    def cut() -> None:
        (place,) = store.locate([Piece(chunk_id(7, 3), 0, 1)], 0)
        files = store._data._files
        whole = files.preadv
        end = place[5] + MIB // 2

        def preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
            if fd == store.data_file(place[4]) and offset >= end:
                return 0
            return whole(fd, [buffers[0][: max(0, end - offset)]], offset)

        files.preadv = preadv

    cluster.call(cut)
    client = Client(cluster)
    done = client.read([(slot, 0, MIB) for slot in range(4)])
    assert done.error is not None
    assert set(suspected) == {chunk_id(7, 3)}
    results, bodies = cluster.read([(slot, 0, MIB) for slot in range(4)], 1)
    assert results["code"].tolist() == [Code.OK, Code.OK, Code.OK, Code.CORRUPT]
    assert bodies[:3] == [content(slot) for slot in range(3)]


def test_a_piece_with_wrong_bytes_is_found_among_good_ones_as_they_arrive(
    cluster: StorageCluster,
) -> None:
    fill(cluster, 4)

    def flip() -> None:
        store = cluster.nodes[0].target.store
        (place,) = store.locate([Piece(chunk_id(7, 2), 700_000, 1)], 0)
        fd, at = store.data_file(place[4]), place[5] + place[6]
        (byte,) = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([byte ^ 1]), at)

    cluster.call(flip)
    client = Client(cluster)
    done = client.read([(slot, 0, MIB) for slot in range(4)])
    assert (done.error, done.verified) == (None, True)
    results, details = dataplane.decode_results(done.head, dataplane.READ_RESULT, 4)
    assert results["code"].tolist() == [Code.OK, Code.OK, Code.CORRUPT, Code.OK]
    assert list(details) == [2]
    assert [bytes(client.buffers[n]) for n in (0, 1, 3)] == [content(n) for n in (0, 1, 3)]
