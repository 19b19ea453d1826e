"""A chunk that one client writes without a pause and others read: nobody starves or goes back."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from running_cluster import RunningCluster

pytestmark = pytest.mark.cluster

PIECE = 64 << 10
READS = 100
READERS = 3


def test_readers_of_a_chunk_that_is_always_being_written_get_on_and_see_it_move_forward(
    cluster: RunningCluster,
) -> None:
    clients = [cluster.client() for _ in range(READERS + 1)]
    clients[0].write("/hot", bytes(PIECE))
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            number = written + 1
            clients[0].write_batch([("/hot", 0, number.to_bytes(8, "big") * (PIECE // 8))])
            written = number

    def read(reader: int) -> int:
        last = reads = 0
        # A writer that starved would keep it here for ever.
        while (reads < READS or not last) and not writer.done():
            reads += 1
            acknowledged = written
            (view,) = clients[reader].read_batch([("/hot", 0, PIECE)])
            numbers = set(bytes(view[at : at + 8]) for at in range(0, PIECE, 4096))
            assert len(numbers) == 1, "a mix of two versions"
            number = int.from_bytes(numbers.pop(), "big")
            assert number >= acknowledged, "older than what was acknowledged before"
            assert number >= last, "it went back"
            last = number
        return last

    with ThreadPoolExecutor(READERS + 1) as pool:
        writer = pool.submit(write)
        try:
            seen = list(pool.map(read, range(1, READERS + 1)))
        finally:
            stop.set()
        writer.result()
    assert all(0 < last <= written for last in seen)
