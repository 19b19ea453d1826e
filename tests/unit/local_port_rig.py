"""A node's local port and a client that reads through it, on a :class:`StorageCluster`."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from storage_cluster import CHAIN, CLUSTER, WAIT_S, StorageCluster

from fs3 import dataplane
from fs3.core.stamps import served_word
from fs3.core.types import chunk_id
from fs3.errors import Code
from fs3.storageserver.chunkstore.interface import Piece
from fs3.storageserver.localport import LocalPort
from fs3.storageserver.settings import LocalSettings
from fs3.transport import located
from fs3.transport.client import drive
from fs3.transport.local import LocalConnection

PATTERN = random.Random(1).randbytes(1 << 20)
LONG_MS = 60_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1000

    def monotonic_ms(self) -> int:
        return self.now_ms


class Port:
    """The local port of one node."""

    def __init__(self, cluster: StorageCluster, target: int = 1, **settings: Any) -> None:
        node = cluster.nodes[target - 1]
        self.cluster = cluster
        self.target = target
        self.clock = Clock()
        self.port: LocalPort = cluster.call(
            lambda: LocalPort(
                cluster.reactor,
                CLUSTER,
                LocalSettings(**{"lease_ms": LONG_MS, **settings}),
                node.data,
                {node.target_id: node.target},
                pool=node.pool,
                clock=self.clock,
                connections_max=100,
            )
        )

    @property
    def granted(self) -> int:
        return self.cluster.call(lambda: self.port.granted)

    def tick(self) -> None:
        self.cluster.call(self.port.tick)

    def close(self) -> None:
        self.cluster.call(self.port.close)


class Reader:
    """A client: reads pieces (slot, offset, length) of owner 7."""

    def __init__(self, port: Port, cluster_id: str = CLUSTER) -> None:
        self.port = port
        self.items: dict[int, Any] = {}
        self.buffers: dict[int, list[bytearray]] = {}
        self.connection = LocalConnection(port.port.address, cluster_id, self.place)
        self.numbers = iter(range(1, 1 << 30))

    def place(self, number: int, head: bytes) -> list[memoryview]:
        results, _ = dataplane.decode_results(head, dataplane.READ_RESULT, len(self.items[number]))
        return [
            memoryview(buffer)[:length]
            for buffer, length in zip(self.buffers[number], results["length"].tolist(), strict=True)
            if length
        ]

    def items_of(self, pieces: Sequence[tuple[int, int, int]], version: int | None) -> Any:
        items = np.zeros(len(pieces), dataplane.READ_ITEM)
        for item, (slot, offset, length) in zip(items, pieces, strict=True):
            item["chunk"] = np.frombuffer(chunk_id(7, slot), "V24")[0]
            item["chain"], item["chain_version"] = CHAIN, version or self.port.cluster.version
            item["offset"], item["length"] = offset, length
        return items

    def send(self, *pieces: tuple[int, int, int], version: int | None = None) -> int:
        items = self.items_of(pieces, version)
        number = next(self.numbers)
        self.items[number] = items
        self.buffers[number] = [bytearray(b"\xee" * length) for _, _, length in pieces]
        self.connection.send(dataplane.READ_BATCH, number, items.tobytes())
        return number

    def finish(self) -> Any:
        (done,) = drive([self.connection], time.monotonic() + WAIT_S)
        return done

    def read(self, *pieces: tuple[int, int, int], version: int | None = None) -> list[Any]:
        """Bytes or code of each piece."""
        number = self.send(*pieces, version=version)
        done = self.finish()
        assert done.error is None, done.error
        self.verified = done.verified
        return self.results(number, done.head)

    def results(self, number: int, head: bytes) -> list[Any]:
        results, self.details = dataplane.decode_results(
            head, dataplane.READ_RESULT, len(self.items[number])
        )
        return [
            bytes(buffer[:length]) if code == Code.OK else Code(code)
            for buffer, code, length in zip(
                self.buffers[number],
                results["code"].tolist(),
                results["length"].tolist(),
                strict=True,
            )
        ]


class BatchReader(Reader):
    """The same, of what it remembers by ``read_here``. What cannot be read so is asked for."""

    def read(self, *pieces: tuple[int, int, int], version: int | None = None) -> list[Any]:
        """Bytes or code of each piece."""
        buffers = [memoryview(bytearray(b"\xee" * length)) for _, _, length in pieces]
        if not self.read_here(pieces, buffers, version or self.port.cluster.version):
            return super().read(*pieces, version=version)
        self.verified = True
        return list(map(bytes, buffers))

    def read_here(
        self, pieces: Sequence[tuple[int, int, int]], buffers: list[memoryview], version: int
    ) -> bool:
        """Without asking, if that can be."""
        items = self.items_of(pieces, version)
        return self.connection.read_here(items, buffers, lambda _: version)


class ScatteredReader(BatchReader):
    """The same, each piece into two buffers."""

    def read_here(
        self, pieces: Sequence[tuple[int, int, int]], buffers: list[memoryview], version: int
    ) -> bool:
        """Without asking, if that can be."""
        return super().read_here(pieces, halves(buffers), version)


def halves(buffers: Sequence[memoryview]) -> list[memoryview]:
    """Both of each."""
    return [part for b in buffers for part in (b[: len(b) // 2], b[len(b) // 2 :])]


class PieceReader(BatchReader):
    """The same, one by one, by ``read_piece_here``."""

    def read_here(
        self, pieces: Sequence[tuple[int, int, int]], buffers: list[memoryview], version: int
    ) -> bool:
        """Without asking, if that can be."""
        served, read = served_word(CHAIN, version), self.connection.read_piece_here
        return all(
            read(chunk_id(7, slot), served, offset, halves([buffer]) if slot else (buffer,))
            for (slot, offset, _), buffer in zip(pieces, buffers, strict=True)
        )


def before_reading(reader: Reader, action: Any) -> None:
    """Do something once, when places are known and nothing has been read."""
    plain = located.read_pieces

    def late(*arguments: Any) -> Any:
        located.read_pieces = plain
        action()
        return plain(*arguments)

    located.read_pieces = late


def fill(cluster: StorageCluster, first_slot: int, count: int, size: int) -> None:
    """Write chunks, which take every block that has become free."""
    for slot in range(first_slot, first_slot + count):
        cluster.write(slot, bytes([slot % 255 + 1]) * size)
    cluster.call(lambda: [node.target.store.sync() for node in cluster.nodes])


def damage(cluster: StorageCluster, slot: int, position: int, target: int = 1) -> None:
    def flip() -> None:
        store: Any = cluster.nodes[target - 1].target.store
        (place,) = store.locate([Piece(chunk_id(7, slot), position, 1)], 0)
        _, _, _, _, size_class, start, before, _ = place
        fd, at = store.data_file(size_class), start + before
        os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 16]), at)

    cluster.call(flip)
