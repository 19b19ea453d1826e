"""Connections of a client end when nobody can use them any more, not when garbage is collected."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from fake_cluster import CHUNK_BYTES, fake_cluster, wait_until

from fs3.client import pipeline
from fs3.transport import client as transport
from fs3.transport.client import DataConnection


@pytest.fixture
def cluster():
    with fake_cluster() as made:
        yield made


@pytest.fixture
def connections(monkeypatch):
    """The data connections that exist, each once; the collector of cycles is off."""
    made: weakref.WeakSet[DataConnection] = weakref.WeakSet()

    def make(*arguments):
        connection = DataConnection(*arguments)
        made.add(connection)
        return connection

    monkeypatch.setattr(transport, "DataConnection", make)
    monkeypatch.setattr(pipeline, "DataConnection", make)
    gc.collect()
    gc.disable()
    yield made
    gc.enable()


def use(client, name: str) -> None:
    client.write(name, b"x" * 2 * CHUNK_BYTES)
    assert client.read_batch([(name, 0, 10), (name, CHUNK_BYTES, 10)]) == [b"x" * 10] * 2


def test_a_threads_connections_end_with_it(cluster, connections):
    client = cluster.client()
    use(client, "/f")
    mine = len(connections)
    thread = threading.Thread(target=use, args=(client, "/g"))
    thread.start()
    thread.join()
    wait_until(lambda: len(connections) == mine)


def test_connections_of_living_threads_end_with_the_client(cluster, connections):
    client = cluster.client()
    used, finish = threading.Event(), threading.Event()

    def work() -> None:
        use(client, "/g")
        used.set()
        finish.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        use(client, "/f")
        assert used.wait(30)
        assert len(connections) > 2
        client.close()
        assert len(connections) == 0
    finally:
        finish.set()
        thread.join()
